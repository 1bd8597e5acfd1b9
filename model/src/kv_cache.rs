//! Keys and values of the tokens that a generation has already seen.

use candle_core::{DType, Device, Result, Tensor};

use crate::ModelError;
use crate::config::ModelConfig;

/// Preallocated room for the keys and values of a batch, each row with its own length.
///
/// It is memory that a training run must get back, so its maker owns it for a while and no longer:
/// the model only ever borrows it.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<LayerCache>,
    lengths: Vec<usize>,
    capacity: usize,
}

/// One layer's part: a `[capacity, K, D]` pair for each row.
#[derive(Debug)]
pub(crate) struct LayerCache {
    rows: Vec<(Tensor, Tensor)>,
}

/// New tokens of one row of a batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    /// Row of the cache.
    pub(crate) row: usize,
    /// First of the tokens among those of the batch.
    pub(crate) start: usize,
    /// How many.
    pub(crate) len: usize,
    /// Tokens of the row that are in the cache already.
    pub(crate) past: usize,
}

impl KvCache {
    /// Room for `rows` texts of `capacity` tokens each.
    pub fn new(
        config: &ModelConfig,
        rows: usize,
        capacity: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let shape = (capacity, config.num_key_value_heads, config.head_dim);
        let pair =
            || Ok((Tensor::zeros(shape, dtype, device)?, Tensor::zeros(shape, dtype, device)?));
        let layer = || Ok(LayerCache { rows: (0..rows).map(|_| pair()).collect::<Result<_>>()? });
        let layers = (0..config.layers.len()).map(|_| layer()).collect::<Result<_>>()?;
        Ok(Self { layers, lengths: vec![0; rows], capacity })
    }

    /// Bytes that [`new`](Self::new) allocates.
    pub fn bytes_needed(config: &ModelConfig, rows: usize, capacity: usize, dtype: DType) -> usize {
        let token = 2 * config.num_key_value_heads * config.head_dim * dtype.size_in_bytes();
        config.layers.len() * rows * capacity * token
    }

    /// Tokens of a row that are in the cache.
    pub fn len(&self, row: usize) -> usize {
        self.lengths[row]
    }

    /// Tokens that a row can hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    pub(crate) fn layer_mut(&mut self, layer: usize) -> &mut LayerCache {
        &mut self.layers[layer]
    }

    /// Where new tokens of some rows come to stand.
    pub(crate) fn spans(
        &self,
        rows: &[(usize, &[u32])],
    ) -> std::result::Result<Vec<Span>, ModelError> {
        let mut start = 0;
        let mut spans = Vec::with_capacity(rows.len());
        for (row, tokens) in rows {
            let span = Span { row: *row, start, len: tokens.len(), past: self.lengths[*row] };
            let (wanted, capacity) = (span.past + span.len, self.capacity);
            if wanted > capacity {
                return Err(ModelError::CacheFull { wanted, capacity });
            }
            start += span.len;
            spans.push(span);
        }
        Ok(spans)
    }

    /// Takes the tokens of `spans` as seen.
    pub(crate) fn advance(&mut self, spans: &[Span]) {
        for span in spans {
            self.lengths[span.row] = span.past + span.len;
        }
    }
}

impl LayerCache {
    /// Writes new keys and values after the old ones and returns all of the row's, `[S, K, D]`.
    pub(crate) fn extend(
        &mut self,
        span: &Span,
        k: &Tensor,
        v: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let (keys, values) = &self.rows[span.row];
        keys.slice_set(&k.to_dtype(keys.dtype())?.contiguous()?, 0, span.past)?;
        values.slice_set(&v.to_dtype(values.dtype())?.contiguous()?, 0, span.past)?;
        let all = span.past + span.len;
        Ok((keys.narrow(0, 0, all)?, values.narrow(0, 0, all)?))
    }
}
