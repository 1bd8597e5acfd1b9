//! From the inbox to `done/` or `failed/`: which file is next, and whose it is at each moment.
//!
//! A file belongs to its user until it lies still, then to the queue, and from the claim on to us:
//! the claim renames it into `processing/`, so that nobody else's name leads to it any more.

mod add;
mod claim;
mod error;
mod inbox;
mod mark;
mod recover;
mod report;
mod settle;
mod writers;

pub use add::add_file;
pub use claim::{ClaimedJob, claim};
pub use error::QueueError;
pub use inbox::{Inbox, Look, Refusal};
pub use mark::{mark, report_of_model};
pub use recover::{Recovered, recover};
pub use report::{BadLine, FailureReport};
pub use settle::{archive, fail, put_back, retry, set_priority, skip_queued, skipped};
