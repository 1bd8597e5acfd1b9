//! From the inbox to `done/` or `failed/`: which file is next, and whose it is at each moment.
//!
//! A file belongs to its user until it lies still, then to the queue, and from the claim on to us:
//! the claim renames it into `processing/`, so that nobody else's name leads to it any more. A file
//! that has further names is copied there instead.

mod add;
mod claim;
mod error;
#[cfg(test)]
mod fixture;
mod inbox;
mod mark;
mod names;
mod recover;
mod refusal;
mod report;
mod settle;
mod writers;

pub use add::add_file;
pub use claim::{ClaimTerms, ClaimedJob, claim};
pub use error::QueueError;
pub use inbox::{Inbox, Look};
pub use mark::{mark, report_of_model};
pub use recover::{Recovered, recover};
pub use refusal::Refusal;
pub use report::{BadLine, FailureReport};
pub use settle::{archive, fail, put_back, retry, set_priority, skip_queued, skipped};
