//! Rows laid end to end for one forward and backward pass.

use chandler_data::Row;
use chandler_model::{IGNORE_INDEX, SequenceLayout};

/// Token ids of some rows, what each token is to predict, and where documents begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MicroBatch {
    /// N ids.
    pub input_ids: Vec<u32>,
    /// N targets: the next token's label within the document, or −100.
    pub targets: Vec<i64>,
    /// The documents.
    pub layout: SequenceLayout,
}

impl MicroBatch {
    /// Lays `rows` end to end.
    pub fn new(rows: &[Row]) -> Self {
        let lengths = rows.iter().flat_map(|row| row.seq_lengths.iter().copied());
        let tokens = rows.iter().map(|row| row.input_ids.len()).sum();
        let (mut input_ids, mut targets) = (Vec::with_capacity(tokens), Vec::with_capacity(tokens));
        for row in rows {
            input_ids.extend_from_slice(&row.input_ids);
            let mut labels = row.labels.as_slice();
            for length in &row.seq_lengths {
                let (document, rest) = labels.split_at(*length as usize);
                targets.extend(document.iter().skip(1).copied());
                targets.extend((*length > 0).then_some(IGNORE_INDEX));
                labels = rest;
            }
        }
        Self { input_ids, targets, layout: SequenceLayout::new(lengths) }
    }

    /// N.
    pub fn num_tokens(&self) -> usize {
        self.input_ids.len()
    }
}

/// Labels that are not −100: what a global batch's loss is divided by, as TRL counts them.
pub fn num_items(rows: &[Row]) -> usize {
    rows.iter().flat_map(|row| &row.labels).filter(|label| **label != IGNORE_INDEX).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_stay_within_their_document() {
        let row = |ids: &[u32], lengths: &[u32]| Row {
            input_ids: ids.to_vec(),
            labels: ids.iter().map(|id| i64::from(*id)).collect(),
            seq_lengths: lengths.to_vec(),
            examples: lengths.len() as u32,
        };
        let rows = [row(&[1, 2, 3, 4, 5], &[2, 3]), row(&[6, 7], &[2])];
        let batch = MicroBatch::new(&rows);
        assert_eq!(batch.targets, [2, -100, 4, 5, -100, 7, -100]);
        assert_eq!(batch.layout.cu_seqlens(), [0, 2, 5, 7]);
        assert_eq!((batch.num_tokens(), num_items(&rows)), (7, 7));
    }
}
