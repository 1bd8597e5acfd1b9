//! Requests that are answered side by side, as one batch.

use std::sync::Arc;

use chandler_evaluator::{GenerateOptions, SamplingOptions};
use chandler_model::CausalLm;

use super::desk::Desk;
use super::reader::Read;
use super::refusal::Refusal;
use super::request::MOST_ROWS;
use crate::engine::bytes_of_answers;

/// Tells the same to all of them.
pub(super) fn refuse(reads: &[Read], refusal: &Refusal) {
    for read in reads {
        read.ticket.refuse(refusal.clone());
    }
}

/// Whether nobody waits for these answers any more.
pub(super) fn are_gone(reads: &[Read]) -> bool {
    reads.iter().all(|read| read.ticket.client.is_closed())
}

/// Those who wait and can be answered beside `first`, so that each gets what it would get alone:
/// greedy decoding with the same settings, which does not depend on the place in a batch.
pub(super) fn beside(desk: &Desk<Read>, first: &Read) -> Vec<Read> {
    let alike = |read: &Read| {
        let seedless =
            |read: &Read| SamplingOptions { seed: 0, ..read.ticket.asked.sampling.clone() };
        let greedy = first.ticket.asked.sampling.temperature <= 0.0;
        greedy
            && Arc::ptr_eq(&read.opened, &first.opened)
            && seedless(read) == seedless(first)
            && !read.ticket.client.is_closed()
    };
    desk.take_beside(MOST_ROWS.saturating_sub(first.ticket.asked.rows()), |read, left| {
        Some(read.ticket.asked.rows()).filter(|rows| *rows <= left && alike(read))
    })
}

/// Every prompt as often as it is to be answered, in the order of the requests' choices.
pub(super) fn prompts(reads: &[Read]) -> Vec<Vec<u32>> {
    let of = |read: &Read| -> Vec<Vec<u32>> {
        let choices = read.ticket.asked.choices;
        read.prompts.iter().flat_map(|prompt| vec![prompt.clone(); choices]).collect()
    };
    reads.iter().flat_map(of).collect()
}

/// Answers in all, and the tokens of the longest prompt.
pub(super) fn extent(reads: &[Read]) -> (usize, usize) {
    let longest = reads.iter().flat_map(|read| &read.prompts).map(Vec::len).max();
    (reads.iter().map(|read| read.ticket.asked.rows()).sum(), longest.unwrap_or(0))
}

/// Ends of answers are watched for where they are told.
pub(super) fn options_of(reads: &[Read]) -> GenerateOptions {
    GenerateOptions {
        max_new_tokens: reads.iter().map(|read| read.max_new_tokens).max().unwrap_or(0),
        stop_ids: vec![],
        sampling: reads.first().map(|read| read.ticket.asked.sampling.clone()).unwrap_or_default(),
        batch_size: MOST_ROWS,
    }
}

/// Bytes that answering takes.
pub(super) fn needed(model: &CausalLm, reads: &[Read]) -> u64 {
    let (rows, longest) = extent(reads);
    bytes_of_answers(model, rows, longest, &options_of(reads))
}
