//! Which documents the library computes: long ones that follow each other. Attention within short ones is
//! little work, and every shape of a graph is compiled when it is first met.

use std::ops::Range;

/// Tokens of a document that is long.
pub(super) const LONG: usize = 512;
/// Tokens of a run in the backward pass, which bound the library's workspace.
pub(super) const RUN_BACKWARD: usize = 8192;

/// Documents that are computed together, one behind the other.
pub(super) type Run = Vec<Range<usize>>;

/// Runs of long documents of at most `most` tokens (or one document), and the other documents.
pub(super) fn share(documents: &[Range<usize>], most: usize) -> (Vec<Run>, Run) {
    let (mut runs, mut rest): (Vec<Run>, Run) = (vec![], vec![]);
    for document in documents {
        if document.len() < LONG {
            rest.push(document.clone());
            continue;
        }
        let run = runs.last_mut().filter(|run| {
            let (first, last) = (&run[0], &run[run.len() - 1]);
            last.end == document.start && document.end - first.start <= most
        });
        match run {
            Some(run) => run.push(document.clone()),
            None => runs.push(vec![document.clone()]),
        }
    }
    (runs, rest)
}

/// Documents of these lengths, one behind the other.
pub(super) fn end_to_end(lengths: &[usize]) -> Vec<Range<usize>> {
    let mut end = 0;
    let document = |len: &usize| {
        end += len;
        end - len..end
    };
    lengths.iter().map(document).collect()
}

/// Tokens that a plan has room for whose run has so many.
pub(super) fn room(tokens: usize) -> usize {
    tokens.max(RUN_BACKWARD).next_power_of_two()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_documents_that_follow_each_other_are_a_run() {
        let documents = [0..600, 600..700, 700..1300, 1300..2300];
        let (runs, rest) = share(&documents, 2000);
        assert_eq!(rest, documents[1..2]);
        assert_eq!(runs, [&documents[..1], &documents[2..]]);
    }

    #[test]
    fn a_run_has_no_more_tokens_than_it_may() {
        let documents = [0..4096, 4096..8192, 8192..12288, 12288..22288];
        let (runs, rest) = share(&documents, RUN_BACKWARD);
        assert!(rest.is_empty());
        assert_eq!(runs.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1, 1]);
        assert_eq!([room(4096), room(8192), room(10_000)], [8192, 8192, 16384]);
    }
}
