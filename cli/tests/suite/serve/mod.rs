//! `chandler serve`, and the daemon's `/v1/…`, over real sockets.

mod answers;
mod client;
mod daemon;
mod limits;
mod openai;
