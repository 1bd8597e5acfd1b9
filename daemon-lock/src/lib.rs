//! A single-instance lock held by the kernel, which survives kill -9 and fork.
