//! Laying documents into rows, as TRL's `pack_dataset` does.

use std::collections::{BTreeMap, VecDeque};

use crate::options::Packing;

/// TRL packs each batch of `Dataset.map` by itself, and a batch is a thousand rows.
const BATCH: usize = 1000;

/// Part of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) document: u32,
    pub(crate) start: u32,
    pub(crate) len: u32,
}

/// The rows of documents of these lengths.
pub(crate) fn pack(lengths: &[u32], max_length: u32, packing: Packing) -> Vec<Vec<Piece>> {
    let mut rows = vec![];
    for (batch, lengths) in lengths.chunks(BATCH).enumerate() {
        let first = (batch * BATCH) as u32;
        match packing {
            Packing::Bfd => best_fit(lengths, max_length, first, &mut rows),
            Packing::Wrapped => wrapped(lengths, max_length, first, &mut rows),
        }
    }
    rows
}

/// Best fit decreasing (Ding et al. 2024): the longest document first, each into the fullest row
/// that still has room for it.
fn best_fit(lengths: &[u32], max_length: u32, first: u32, rows: &mut Vec<Vec<Piece>>) {
    let mut documents: Vec<(u32, u32)> =
        (first..).zip(lengths).map(|(document, length)| (document, *length)).collect();
    documents.retain(|(_, length)| *length > 0);
    for (_, length) in &mut documents {
        *length = (*length).min(max_length);
    }
    documents.sort_by_key(|(_, length)| std::cmp::Reverse(*length));
    // Rows by the room they have left, the one that has had it longest in front.
    let mut room: BTreeMap<u32, VecDeque<usize>> = BTreeMap::new();
    for (document, length) in documents {
        let fullest = room.range_mut(length..).next().map(|(space, rows)| (*space, rows));
        let (space, row) = match fullest {
            Some((space, waiting)) => {
                let row = waiting.pop_front().expect("empty queues are removed");
                if waiting.is_empty() {
                    room.remove(&space);
                }
                (space, row)
            }
            None => {
                rows.push(vec![]);
                (max_length, rows.len() - 1)
            }
        };
        rows[row].push(Piece { document, start: 0, len: length });
        if space > length {
            room.entry(space - length).or_default().push_back(row);
        }
    }
}

fn wrapped(lengths: &[u32], max_length: u32, first: u32, rows: &mut Vec<Vec<Piece>>) {
    let mut row: Vec<Piece> = vec![];
    let mut room = max_length;
    for (document, length) in (first..).zip(lengths) {
        let mut start = 0;
        while start < *length {
            let len = room.min(length - start);
            row.push(Piece { document, start, len });
            start += len;
            room -= len;
            if room == 0 {
                rows.push(std::mem::take(&mut row));
                room = max_length;
            }
        }
    }
    if !row.is_empty() {
        rows.push(row);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_example_of_trl() {
        let rows = pack(&[5, 2, 3, 1], 4, Packing::Bfd);
        let lengths: Vec<Vec<(u32, u32)>> =
            rows.iter().map(|row| row.iter().map(|p| (p.document, p.len)).collect()).collect();
        assert_eq!(lengths, [vec![(0, 4)], vec![(2, 3), (3, 1)], vec![(1, 2)]]);
        let rows = pack(&[5, 2, 3, 1], 4, Packing::Wrapped);
        let lengths: Vec<Vec<u32>> =
            rows.iter().map(|row| row.iter().map(|p| p.len).collect()).collect();
        assert_eq!(lengths, [vec![4], vec![1, 2, 1], vec![2, 1]]);
    }

    proptest! {
        #[test]
        fn every_token_stands_once_and_no_row_is_too_long(
            lengths in proptest::collection::vec(0u32..50, 0..2500),
            max_length in 1u32..60,
        ) {
            for packing in [Packing::Bfd, Packing::Wrapped] {
                let rows = pack(&lengths, max_length, packing);
                let mut seen = vec![0u32; lengths.len()];
                for row in &rows {
                    prop_assert!(!row.is_empty());
                    prop_assert!(row.iter().map(|p| p.len).sum::<u32>() <= max_length);
                    for piece in row {
                        prop_assert_eq!(piece.start, seen[piece.document as usize]);
                        prop_assert!(piece.len > 0);
                        seen[piece.document as usize] += piece.len;
                    }
                }
                let kept = |length: u32| match packing {
                    Packing::Bfd => length.min(max_length),
                    Packing::Wrapped => length,
                };
                let expected: Vec<u32> = lengths.iter().map(|length| kept(*length)).collect();
                prop_assert_eq!(seen, expected);
            }
        }
    }
}
