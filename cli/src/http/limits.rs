//! How much of everything there is for clients.

use std::time::Duration;

/// What clients may take. The defaults are for everybody; tests are less patient.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at one time; a browser makes six to a server.
    pub connections: usize,
    /// Viewers of the stream at one time.
    pub viewers: usize,
    /// How long the lines before a body may take; also how long an idle connection is kept.
    pub header_patience: Duration,
    /// How long until an answer begins; reading the request's body is part of it.
    pub answer_patience: Duration,
    /// How long a client may not read what is written to it.
    pub write_patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 64,
            viewers: 16,
            header_patience: Duration::from_secs(10),
            answer_patience: Duration::from_secs(15),
            write_patience: Duration::from_secs(10),
        }
    }
}
