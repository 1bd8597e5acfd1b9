//! The HTTP server over a real socket: each of its guards and limits.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../counterparts/python.rs"]
mod python;

mod guards;
mod reads;
mod server;
mod steers;
