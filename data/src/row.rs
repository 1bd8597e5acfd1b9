//! What a micro-batch is made of.

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
