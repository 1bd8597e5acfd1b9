//! What becomes of an evaluation for which there may be too little memory.

use chandler_evaluator::GenerateOptions;
use chandler_model::{CausalLm, KvCache};
use chandler_vram::Bytes;

use crate::config::OnPressure;

/// What is done.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Decision {
    /// The evaluation, with these options; cut down where there are words for it.
    Evaluate(GenerateOptions, Option<String>),
    /// None now, for this reason.
    Postpone(String),
    /// The run ends, for this reason.
    Stop(String),
}

/// Bytes of the largest cache that answers to so many prompts, of `longest` tokens at most, take,
/// and of their logits.
pub(crate) fn bytes_of_answers(
    model: &CausalLm,
    prompts: usize,
    longest: usize,
    options: &GenerateOptions,
) -> u64 {
    let rows = options.batch_size.min(prompts);
    let (config, tokens) = (model.config(), longest + options.max_new_tokens);
    let cache = KvCache::bytes_needed(config, rows, tokens, model.dtype());
    (cache + 4 * rows * config.vocab_size) as u64
}

/// Decides about an evaluation of `prompts` prompts that would need `needed(options)` bytes where
/// there is `room` for so many; unknown room is taken to be enough.
pub(crate) fn decide(
    policy: OnPressure,
    options: &GenerateOptions,
    prompts: usize,
    needed: impl Fn(&GenerateOptions) -> u64,
    room: Option<u64>,
) -> Decision {
    let wanted = needed(options);
    let Some(room) = room.filter(|room| wanted > *room) else {
        return Decision::Evaluate(options.clone(), None);
    };
    let lacks = format!("the evaluation needs {} and there are {}", Bytes(wanted), Bytes(room));
    match policy {
        OnPressure::Postpone => return Decision::Postpone(format!("{lacks}; it is postponed")),
        OnPressure::Stop => return Decision::Stop(lacks),
        OnPressure::Adapt => {}
    }
    let mut cut = options.clone();
    while needed(&cut) > room {
        let side_by_side = cut.batch_size.min(prompts);
        match cut.smaller(side_by_side) {
            Some(smaller) => cut = smaller,
            None => return Decision::Postpone(format!("{lacks}, even when cut; it is postponed")),
        }
    }
    let (batch, tokens) = (cut.batch_size, cut.max_new_tokens);
    let words = format!("{lacks}; cut to {batch} prompts side by side and {tokens} new tokens");
    Decision::Evaluate(cut, Some(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needed(options: &GenerateOptions) -> u64 {
        (options.batch_size.min(8) * options.max_new_tokens) as u64
    }

    fn with(policy: OnPressure, room: Option<u64>) -> Decision {
        decide(policy, &GenerateOptions::default(), 8, needed, room)
    }

    #[test]
    fn what_fits_is_left_alone() {
        let whole = Decision::Evaluate(GenerateOptions::default(), None);
        for policy in [OnPressure::Adapt, OnPressure::Postpone, OnPressure::Stop] {
            assert_eq!(with(policy, Some(8 * 2048)), whole);
            assert_eq!(with(policy, None), whole);
        }
    }

    #[test]
    fn an_evaluation_is_cut_to_what_there_is() {
        for (room, batch, tokens) in [(5000, 2, 2048), (2047, 1, 1024), (16, 1, 16)] {
            let Decision::Evaluate(cut, Some(words)) = with(OnPressure::Adapt, Some(room)) else {
                panic!("room for {room}")
            };
            assert_eq!((cut.batch_size, cut.max_new_tokens), (batch, tokens), "{words}");
            assert!(needed(&cut) <= room);
        }
        assert!(matches!(with(OnPressure::Adapt, Some(15)), Decision::Postpone(_)));
    }

    #[test]
    fn the_policy_decides() {
        assert!(matches!(with(OnPressure::Postpone, Some(5)), Decision::Postpone(_)));
        assert!(matches!(with(OnPressure::Stop, Some(5)), Decision::Stop(_)));
    }
}
