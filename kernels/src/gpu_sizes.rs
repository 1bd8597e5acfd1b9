//! What the kernels of a GPU take beside their arguments and results, in bytes: known to every build, so
//! that a run on another machine's GPU can be planned on this one.
//!
//! Nothing of it outlives its op: the device's pool keeps it, and serves the next op from it.

use candle_core::DType;

use crate::attention::HeadShape;

/// Rows whose gradients of a norm's weight are summed before the sums are.
pub(crate) const NORM_CHUNK_ROWS: usize = 16;
/// Keys of a piece of a row of the cache.
pub(crate) const DECODE_PIECE: usize = 128;
/// Logits that exist at a time, at most: enough rows for a chunk's products to take longer than reading
/// the head and adding to its gradient.
const LOGITS_BYTES: usize = 640 << 20;
/// Rows of a chunk are a multiple of this where it holds so many: whole tiles of the products.
const LOGITS_ROWS: usize = 256;

/// Of the gradient of a norm over `[rows, width]`.
pub(crate) fn norm_backward([rows, width]: [usize; 2], wants_weight: bool) -> usize {
    if wants_weight { 4 * width * rows.div_ceil(NORM_CHUNK_ROWS) } else { 0 }
}

/// Of the forward pass of attention: the log-sum-exp of each row.
pub(crate) fn attention_forward([heads, _, _]: HeadShape, tokens: usize) -> usize {
    4 * heads * tokens
}

/// Of the backward pass with what the forward pass has left: two numbers a row.
pub(crate) fn attention_backward([heads, _, _]: HeadShape, tokens: usize) -> usize {
    2 * 4 * heads * tokens
}

/// Of the backward pass of cuDNN's over a run of at most so many tokens: sums of the gradients of queries and
/// a number a row, gradients of keys and values by query head where heads share them, and what is counted
/// by document. (Its plans of release 9.28.1 for compute capability 9.0 took so much.)
#[cfg(feature = "cuda")]
pub(crate) fn library_backward([heads, kv_heads, dim]: HeadShape, tokens: usize) -> usize {
    let shared = if heads == kv_heads { 0 } else { 4 * dim };
    tokens * heads * (4 * dim + 4 + shared) + (256 << 10)
}

/// Of a decode step over texts of `lens` tokens.
pub(crate) fn decode_attention(
    [heads, _, dim]: HeadShape,
    lens: &[usize],
    window: Option<usize>,
) -> usize {
    let longest = lens.iter().map(|len| window.map_or(*len, |window| window.min(*len))).max();
    let pieces = longest.unwrap_or(0).div_ceil(DECODE_PIECE);
    4 * lens.len() * heads * pieces * (dim + 2)
}

/// Tokens whose logits exist at a time, of so many.
pub(crate) fn loss_chunk(tokens: usize, vocab: usize) -> usize {
    let rows = LOGITS_BYTES / (4 * vocab.max(1));
    let rows = if rows < LOGITS_ROWS { rows.max(16) } else { rows / LOGITS_ROWS * LOGITS_ROWS };
    rows.min(tokens.max(1))
}

/// Of the loss over `[tokens, vocab, hidden]`: the logits of a chunk, its rows gathered where tokens
/// without a target lie between them, and three numbers a token.
pub(crate) fn loss_forward([tokens, vocab, hidden]: [usize; 3], dtype: DType) -> usize {
    let chunk = loss_chunk(tokens, vocab);
    4 * chunk * vocab + chunk * hidden * dtype.size_in_bytes() + 12 * tokens
}

/// Of the loss and its gradients: the same, and the gradient of the rows that were gathered.
pub(crate) fn loss_with_gradients(size: [usize; 3], dtype: DType) -> usize {
    let [tokens, vocab, hidden] = size;
    loss_forward(size, dtype) + loss_chunk(tokens, vocab) * hidden * dtype.size_in_bytes()
}
