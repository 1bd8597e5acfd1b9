//! Files that are whole or absent, after any crash.
