//! What a micro-batch is made of.

use sha2::{Digest, Sha256};

use crate::tokenizer::hexadecimal;

/// The label of a token that carries no loss, as in PyTorch.
pub const IGNORE_INDEX: i64 = -100;

/// One or several documents laid end to end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Row {
    /// Token ids.
    pub input_ids: Vec<u32>,
    /// For each token its own id, or −100 where it carries no loss. Not shifted.
    pub labels: Vec<i64>,
    /// Lengths of the documents; their sum is the number of tokens.
    pub seq_lengths: Vec<u32>,
    /// Records that the row holds tokens of.
    pub examples: u32,
}

/// SHA-256 of all that these rows hold, in hexadecimal.
pub fn digest_of(rows: &[Row]) -> String {
    let mut hash = Sha256::new();
    for Row { input_ids, labels, seq_lengths, examples } in rows {
        for size in [input_ids.len(), labels.len(), seq_lengths.len(), *examples as usize] {
            hash.update((size as u64).to_le_bytes());
        }
        for number in input_ids.iter().chain(seq_lengths) {
            hash.update(number.to_le_bytes());
        }
        for label in labels {
            hash.update(label.to_le_bytes());
        }
    }
    hexadecimal(&hash.finalize())
}
