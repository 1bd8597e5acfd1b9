//! How documents lie in a micro-batch.

/// Documents laid end to end, without padding: where each begins, and every token's position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SequenceLayout {
    cu_seqlens: Vec<u32>,
    positions: Vec<u32>,
}

impl SequenceLayout {
    /// Documents of these lengths, one after another; positions restart at each.
    ///
    /// ```
    /// use chandler_model::SequenceLayout;
    ///
    /// let layout = SequenceLayout::new([2, 3]);
    /// assert_eq!(layout.cu_seqlens(), [0, 2, 5]);
    /// assert_eq!(layout.positions(), [0, 1, 0, 1, 2]);
    /// ```
    pub fn new(lengths: impl IntoIterator<Item = u32>) -> Self {
        let mut layout = Self { cu_seqlens: vec![0], positions: vec![] };
        let mut end = 0;
        for length in lengths.into_iter().filter(|length| *length > 0) {
            end += length;
            layout.cu_seqlens.push(end);
            layout.positions.extend(0..length);
        }
        layout
    }

    /// Where documents begin and end: first 0, last N.
    pub fn cu_seqlens(&self) -> &[u32] {
        &self.cu_seqlens
    }

    /// Each token's place in its document.
    pub fn positions(&self) -> &[u32] {
        &self.positions
    }

    /// N.
    pub fn num_tokens(&self) -> usize {
        self.positions.len()
    }
}
