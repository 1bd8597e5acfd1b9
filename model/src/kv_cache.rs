//! Keys and values of the tokens that a generation has already seen.

use candle_core::{DType, Device, Result, Tensor};
use chandler_kernels::attention::Params;
use chandler_kernels::decode_attention::{self, Places};
use chandler_kernels::memory;

use crate::ModelError;
use crate::config::ModelConfig;
use crate::decode_graph::Recorded;

/// Preallocated room for the keys and values of a batch, each row with its own length.
///
/// It is memory that a training run must get back, so its maker owns it for a while and no longer:
/// the model only ever borrows it.
#[derive(Debug)]
pub struct KvCache {
    // First, so that it goes before the layers, of which it has the addresses.
    recorded: Recorded,
    layers: Vec<LayerCache>,
    lengths: Vec<usize>,
    capacity: usize,
}

/// One layer's part, `[rows, K, capacity, D]` each: what one head reads of a row lies in one piece.
#[derive(Debug)]
pub(crate) struct LayerCache {
    keys: Tensor,
    values: Tensor,
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
        let shape = (rows, config.num_key_value_heads, capacity, config.head_dim);
        let zeros = || memory::zeros(shape, dtype, device);
        let layer = |_| Ok(LayerCache { keys: zeros()?, values: zeros()? });
        let layers = (0..config.layers.len()).map(layer).collect::<Result<_>>()?;
        Ok(Self { recorded: Recorded::default(), layers, lengths: vec![0; rows], capacity })
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

    /// The same, whose steps are never recorded: every op is handed to the GPU by itself.
    #[must_use]
    pub fn op_by_op(self) -> Self {
        Self { recorded: Recorded::Never, ..self }
    }

    /// Whether the last step of single tokens was launched as one recorded graph, which only a GPU
    /// does, from the second step of the same rows on.
    pub fn is_recorded(&self) -> bool {
        matches!(self.recorded, Recorded::Step(_))
    }

    pub(crate) fn recorded(&mut self) -> &mut Recorded {
        &mut self.recorded
    }

    pub(crate) fn layer_mut(&mut self, layer: usize) -> &mut LayerCache {
        &mut self.layers[layer]
    }

    /// Where new tokens of some rows come to stand, each row's in pieces of at most `most`.
    pub(crate) fn spans(
        &self,
        rows: &[(usize, &[u32])],
        most: usize,
    ) -> std::result::Result<Vec<Span>, ModelError> {
        let mut spans = Vec::with_capacity(rows.len());
        let mut start = 0;
        for (row, tokens) in rows {
            let past = self.lengths[*row];
            let (wanted, capacity) = (past + tokens.len(), self.capacity);
            if wanted > capacity {
                return Err(ModelError::CacheFull { wanted, capacity });
            }
            for at in (0..tokens.len()).step_by(most) {
                let len = most.min(tokens.len() - at);
                spans.push(Span { row: *row, start: start + at, len, past: past + at });
            }
            start += tokens.len();
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
    /// Writes the keys and values of a span, `[T, K, D]`, after the old ones.
    pub(crate) fn extend(&mut self, span: &Span, k: &Tensor, v: &Tensor) -> Result<()> {
        for (cache, new) in [(&self.keys, k), (&self.values, v)] {
            let heads_first = new.transpose(0, 1)?.unsqueeze(0)?.contiguous()?;
            cache.narrow(0, span.row, 1)?.slice_set(&heads_first, 2, span.past)?;
        }
        Ok(())
    }

    /// The keys and values of a row up to the end of a span, `[S, K, D]`.
    pub(crate) fn past(&self, span: &Span) -> Result<(Tensor, Tensor)> {
        let all = span.past + span.len;
        let of = |cache: &Tensor| cache.get(span.row)?.narrow(1, 0, all)?.transpose(0, 1);
        Ok((of(&self.keys)?, of(&self.values)?))
    }

    /// Stores one new token for each of `places` and lets it attend to its row: `q [R, H, D]`, `k`
    /// and `v` `[R, K, D]` → `[R, H, D]`.
    pub(crate) fn attend(
        &mut self,
        q: &Tensor,
        [k, v]: [&Tensor; 2],
        places: &Places,
        params: Params,
    ) -> Result<Tensor> {
        decode_attention::store(&self.keys, k, places)?;
        decode_attention::store(&self.values, v, places)?;
        decode_attention::forward(q, &self.keys, &self.values, places, params)
    }
}
