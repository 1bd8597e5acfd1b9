//! The forward pass over new tokens whose past stands in a cache: prompts in pieces, then token by
//! token.
//!
//! On the CPU, what is computed for a row does not depend on the rows beside it, down to the bits:
//! prompts go through the blocked products and are cut at places of their own, single tokens go through
//! [`gemv`]. On a GPU cuBLAS chooses how it sums by the number of rows.

use candle_core::{Result, Tensor};
use chandler_kernels::decode_attention::{Place, Places};
use chandler_kernels::{activation, attention, gemv, linear, memory};

use crate::ModelError;
use crate::block::Block;
use crate::causal_lm::CausalLm;
use crate::decode_graph::DecodeInput;
use crate::kv_cache::{KvCache, LayerCache, Span};
use crate::linear::{Linear, LowRank};
use crate::params::Params;
use crate::rope::Angles;

/// Tokens of prompts that go through the blocks at a time: enough for the products to be at full
/// speed, few enough for the activations to stay small beside the weights.
pub const PREFILL_TOKENS: usize = 1024;

impl CausalLm {
    /// New tokens of some rows of a generation: reads and extends `cache`, and returns the logits
    /// after each row's last token, `[rows, V]` in f32 (f64 for an f64 model).
    ///
    /// No row may be named twice or without tokens. Rows whose past is empty are prefilled, and so
    /// are those with more than one new token.
    pub fn forward_cached(
        &self,
        rows: &[(usize, &[u32])],
        cache: &mut KvCache,
    ) -> std::result::Result<Tensor, ModelError> {
        let logits = self.forward_cached_unless(rows, cache, &|| false)?;
        let unheard = || candle_core::Error::Msg("a forward pass that nobody stopped".to_owned());
        logits.ok_or_else(|| unheard().into())
    }

    /// The same bits, unless `stopped` says so, which is asked between two parts of prompts of
    /// [`PREFILL_TOKENS`] each: then there are no logits, and `cache` is good for nothing more.
    pub fn forward_cached_unless(
        &self,
        rows: &[(usize, &[u32])],
        cache: &mut KvCache,
        stopped: &dyn Fn() -> bool,
    ) -> std::result::Result<Option<Tensor>, ModelError> {
        let ids: Vec<u32> = rows.iter().flat_map(|(_, tokens)| tokens.iter().copied()).collect();
        let ids = self.ids(&ids)?;
        let spans = cache.spans(rows, PREFILL_TOKENS)?;
        let parts = parts(&spans);
        // The last token's output of each row, in the order of `rows`.
        let mut last: Vec<Option<Tensor>> = vec![None; rows.len()];
        // On threads of the pool, where handing work to the others takes no lock; who stops it is
        // asked on the caller's own.
        let (end, beginning) = parts.split_last().ok_or_else(without_tokens)?;
        for part in beginning {
            rayon::scope(|_| self.extend_by(part, &ids, rows, cache, &mut last))?;
            if stopped() {
                return Ok(None);
            }
        }
        let logits = rayon::scope(|_| {
            if spans.len() == rows.len() && spans.iter().all(is_decode) {
                // A token of each row, in their order, is all there is.
                let y = self.part_forward(&ids, end, cache)?;
                cache.advance(&spans);
                return self.logits(&y);
            }
            self.extend_by(end, &ids, rows, cache, &mut last)?;
            cache.advance(&spans);
            let last: Vec<Tensor> = last.into_iter().flatten().collect();
            if last.len() != rows.len() || last.is_empty() {
                return Err(without_tokens());
            }
            self.logits(&Tensor::cat(&last, 0)?)
        });
        logits.map(Some)
    }

    /// One part through the blocks; what comes out of its last tokens is put where `rows` has them.
    fn extend_by(
        &self,
        part: &[Span],
        ids: &Tensor,
        rows: &[(usize, &[u32])],
        cache: &mut KvCache,
        last: &mut [Option<Tensor>],
    ) -> std::result::Result<(), ModelError> {
        let y = self.part_forward(ids, part, cache)?;
        let mut end = 0;
        for span in part {
            end += span.len;
            if let Some(place) = rows.iter().position(|(named, _)| *named == span.row) {
                // A copy: a view would keep the outputs of all other tokens.
                last[place] = Some(y.narrow(0, end - 1, 1)?.force_contiguous()?);
            }
        }
        Ok(())
    }

    /// The blocks over the tokens of some spans, one behind the other: `[N, E]`.
    fn part_forward(
        &self,
        ids: &Tensor,
        spans: &[Span],
        cache: &mut KvCache,
    ) -> std::result::Result<Tensor, ModelError> {
        let ids: Result<Vec<Tensor>> =
            spans.iter().map(|span| ids.narrow(0, span.start, span.len)).collect();
        let positions = |span: &Span| (span.past..span.past + span.len).map(|p| p as u32);
        let positions: Vec<u32> = spans.iter().flat_map(positions).collect();
        let angles = self.angles(&positions)?;
        let mut x = self.embed_ids(&Tensor::cat(&ids?, 0)?)?;
        if spans.iter().all(is_decode) {
            let place = |span: &Span| Place { row: span.row, len: span.past + 1 };
            let places = Places::new(spans.iter().map(place).collect(), self.device())?;
            return Ok(self.decode(DecodeInput { x, angles, places }, cache)?);
        }
        for (index, block) in self.blocks.iter().enumerate() {
            let (layer, angles) = (cache.layer_mut(index), angles.of(block));
            x = block.prefill(&self.params, &x, angles, spans, layer)?;
        }
        Ok(x)
    }
}

fn without_tokens() -> ModelError {
    candle_core::Error::Msg("a row without new tokens".to_owned()).into()
}

/// One token of a row that has a past.
fn is_decode(span: &Span) -> bool {
    span.len == 1 && span.past > 0
}

/// Spans that go through the blocks together: single tokens all at once, pieces of prompts up to
/// [`PREFILL_TOKENS`].
fn parts(spans: &[Span]) -> Vec<&[Span]> {
    let mut parts = Vec::new();
    let (mut first, mut tokens) = (0, 0);
    for (index, span) in spans.iter().enumerate() {
        let other_kind = index > first && is_decode(span) != is_decode(&spans[first]);
        let full = !is_decode(span) && index > first && tokens + span.len > PREFILL_TOKENS;
        if other_kind || full {
            parts.push(&spans[first..index]);
            (first, tokens) = (index, 0);
        }
        tokens += span.len;
    }
    parts.push(&spans[first..]);
    parts
}

impl Block {
    /// Pieces of prompts: `x [N, E]` → `[N, E]`.
    fn prefill(
        &self,
        params: &Params,
        x: &Tensor,
        angles: &Angles,
        spans: &[Span],
        cache: &mut LayerCache,
    ) -> Result<Tensor> {
        let normed = self.input_norm.forward(params, x)?;
        let heads = |linear: &Linear| self.heads(&linear.forward(params, &normed)?);
        let q = Self::turned(params, self.q_norm, &heads(&self.q)?, angles)?;
        let k = Self::turned(params, self.k_norm, &heads(&self.k)?, angles)?;
        let v = heads(&self.v)?;
        let mut rows = Vec::with_capacity(spans.len());
        let mut start = 0;
        for span in spans {
            let new = |t: &Tensor| t.narrow(0, start, span.len);
            let (new_q, new_k, new_v) = (new(&q)?, new(&k)?, new(&v)?);
            start += span.len;
            cache.extend(span, &new_k, &new_v)?;
            let (keys, values) = if span.past == 0 { (new_k, new_v) } else { cache.past(span)? };
            let past = span.past;
            rows.push(attention::forward_from(&new_q, &keys, &values, past, self.attention)?);
        }
        let attended = if rows.len() == 1 { rows.remove(0) } else { joined(&rows)? };
        drop(rows);
        let projected = self.o.forward(params, &attended.flatten_from(1)?)?;
        let [middle, normed] = self.middle(params, x, &projected)?;
        drop(projected);
        let [gate, up] = self.gates(params, &normed)?;
        drop(normed);
        self.output(params, &middle, &self.fed(params, &gate, &up)?)
    }

    /// One new token a row, `x [R, E]` and it after the block's first norm: the sum in the middle, and
    /// what the feed-forward makes of it.
    pub(crate) fn decode(
        &self,
        params: &Params,
        [x, normed]: [&Tensor; 2],
        angles: &Angles,
        places: &Places,
        cache: &mut LayerCache,
    ) -> Result<[Tensor; 2]> {
        let [q, k, v] = decode_products(params, normed, [&self.q, &self.k, &self.v])?;
        let q = Self::turned(params, self.q_norm, &self.heads(&q)?, angles)?;
        let k = Self::turned(params, self.k_norm, &self.heads(&k)?, angles)?;
        let attended = cache.attend(&q, [&k, &self.heads(&v)?], places, self.attention)?;
        let [projected] = decode_products(params, &attended.flatten_from(1)?, [&self.o])?;
        let [middle, normed] = self.middle(params, x, &projected)?;
        drop(projected);
        let [gate, up] = decode_products(params, &normed, [&self.gate, &self.up])?;
        let gated = activation::forward(&gate, &up, self.activation)?;
        let [fed] = decode_products(params, &gated, [&self.down])?;
        Ok([middle, fed])
    }
}

/// Parts of a batch, one behind the other.
fn joined(parts: &[Tensor]) -> Result<Tensor> {
    memory::request(
        parts.iter().map(|part| part.elem_count() * part.dtype().size_in_bytes()).sum(),
    )?;
    Tensor::cat(parts, 0)
}

/// Several linear layers over the same few rows, `[R, I]` → `[R, O]` each, in one go.
fn decode_products<const N: usize>(
    params: &Params,
    x: &Tensor,
    linears: [&Linear; N],
) -> Result<[Tensor; N]> {
    let layers = linears.map(|linear| gemv::Layer {
        weight: params.value(linear.weight),
        bias: linear.bias.map(|id| params.value(id)),
    });
    let mut products = gemv::forward(x, &layers)?;
    for (product, linear) in products.iter_mut().zip(linears) {
        if let Some(adapter) = linear.adapter {
            *product = product.add(&low_rank(params, x, adapter)?)?;
        }
    }
    products.try_into().map_err(|_| candle_core::Error::Msg("a product for each layer".to_owned()))
}

/// `s·(x·Aᵀ)·Bᵀ`
fn low_rank(params: &Params, x: &Tensor, adapter: LowRank) -> Result<Tensor> {
    let by = |x: &Tensor, id| {
        let layer = gemv::Layer { weight: params.value(id), bias: None };
        gemv::forward(x, &[layer])?.pop().map_or_else(|| linear::forward(x, layer.weight, None), Ok)
    };
    by(&by(x, adapter.a)?, adapter.b)? * adapter.scale
}
