//! The process that reads what strangers wrote.
//!
//! A tokenizer may hold an expression that backtracks for hours, a chat template may double a
//! string until no memory is left, and a training file is whatever somebody dropped. None of that
//! can be bounded from within, so it happens in a child: the same binary with a hidden subcommand,
//! which confines itself by the kernel's limits before it opens a file, tells how far it is, and is
//! killed when nothing comes any more, when it is no longer wanted, and when its parent dies. What
//! it leaves is a token cache, token ids and text; the parent opens the first and is done.
//!
//! Whoever answers requests keeps one that stands ready (`standing.rs`): it is asked one prompt after
//! the other, each watched as if it were the only one.

mod child;
mod confine;
mod error;
mod parent;
mod preview;
mod protocol;
mod questions;
mod standing;

pub(crate) use child::serve;
pub use error::{End, ReadThing, WorkerError};
pub(crate) use parent::{Handed, Supervision, send};
pub use protocol::Refusal;
pub(crate) use protocol::{
    HeldOut, PreviewRow, Query, QuestionsFrom, SetRead, SetToRead, Tokenized, Work,
};
pub(crate) use standing::Standing;

/// The hidden subcommand.
pub(crate) const SUBCOMMAND: &str = "read-foreign-text";
