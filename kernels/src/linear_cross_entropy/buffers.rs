//! How many tokens go through the head at a time on the CPU, and the buffers that they take.

use candle_core::DType;

use crate::cpu::Real;
use crate::gemm;
use crate::rehearsal::Rehearsal;

/// What chunks are cut for where products take the same buffers whatever their size: what these
/// take on up to 16 threads.
const CONSTANT_BYTES: usize = 13 << 20;
/// Entries of the vocabulary in a piece.
pub(super) const PIECE: usize = 2048;
/// Bytes of workspace that the chunks of tokens are cut for.
const WORKSPACE_BYTES: usize = 64 << 20;
/// Tokens of a chunk are a multiple of this: whole panels of the products.
const PANEL: usize = 12;
/// Tokens of a chunk with gradients, at most.
const MOST_TOKENS: usize = 4096;
/// Tokens of a chunk without gradients.
pub(super) const FORWARD_TOKENS: usize = 1536;
/// What a product packs at a time: rows of the left side, columns of the right side, elements
/// along the summed dimension; and what it rounds rows and columns up to a multiple of, at most.
const PACKED_ROWS: usize = 2048;
const PACKED_COLUMNS: usize = 1024;
const PACKED_DEPTH: usize = 4096;
const PACKED_PANEL: usize = 32;

/// What the gradient of the head is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeadGradient {
    /// It is not wanted.
    Unwanted,
    /// The exponentials of a chunk, which are kept.
    Kept,
    /// Logits that are computed a second time, where products are faster than memory.
    Again,
}

impl HeadGradient {
    pub(super) fn new(wanted: bool, dtype: DType) -> Self {
        match wanted {
            false => Self::Unwanted,
            true if gemm::outruns_memory(dtype) => Self::Again,
            true => Self::Kept,
        }
    }
}

/// Elements of the buffers for a chunk of `tokens`.
pub(super) struct Buffers {
    /// Hidden states; exponentials, of all the vocabulary where they are kept and else of a piece;
    /// hidden states times a piece's factors.
    pub(super) narrow: [usize; 3],
    /// Logits of a piece, or what it adds to the gradients of the hidden states; and these, f32.
    pub(super) wide: [usize; 2],
    /// The panels that the products pack, left and right, where their size depends on the product.
    packed: [usize; 2],
    /// Bytes of the products' buffers, where their size depends on the threads alone.
    constant: Option<usize>,
}

impl Buffers {
    pub(super) fn new(
        tokens: usize,
        vocab: usize,
        width: usize,
        dtype: DType,
        way: HeadGradient,
    ) -> Self {
        let piece = vocab.min(PIECE);
        let packed = |len: usize, depth: usize| {
            (len + PACKED_PANEL - 1) * depth.min(PACKED_DEPTH).next_multiple_of(2)
        };
        let left = |len: usize, depth| packed(len.min(PACKED_ROWS), depth);
        let right = |len: usize, depth| packed(len.min(PACKED_COLUMNS), depth);
        // Logits, what a piece adds to the hidden states' gradients, and the head's gradient.
        let products = if way == HeadGradient::Unwanted { 2 } else { 3 };
        let lefts = [left(tokens, width), left(tokens, piece), left(piece, tokens)];
        let rights = [right(piece, width), right(width, piece), right(width, tokens)];
        let largest = |of: [usize; 3]| of.into_iter().take(products).fold(0, usize::max);
        let sizes = [
            ([tokens, piece, width], false),
            ([tokens, width, piece], false),
            ([piece, width, tokens], true),
        ];
        let constant = gemm::constant_buffer_bytes(dtype, &sizes[..products]);
        let (kept, scaled) = if way == HeadGradient::Kept { (vocab, width) } else { (piece, 0) };
        Self {
            narrow: [tokens * width, tokens * kept, tokens * scaled],
            wide: [tokens * piece.max(width), tokens * width],
            packed: if constant.is_some() { [0; 2] } else { [largest(lefts), largest(rights)] },
            constant,
        }
    }

    fn bytes(&self, dtype: DType) -> usize {
        self.bytes_of_size(dtype) + self.constant.unwrap_or(0)
    }

    /// What does not depend on the threads, or a bound on it, so that chunks do not either.
    fn bytes_on_any_threads(&self, dtype: DType) -> usize {
        let constant = if self.constant.is_some() { CONSTANT_BYTES } else { 0 };
        self.bytes_of_size(dtype) + constant
    }

    fn bytes_of_size(&self, dtype: DType) -> usize {
        let sum = |of: &[usize]| of.iter().sum::<usize>();
        dtype.size_in_bytes() * sum(&self.narrow)
            + gemm::packed_element_bytes(dtype) * sum(&self.packed)
            + 4 * sum(&self.wide)
    }

    /// The panels in words of 4 bytes, whatever the kernels pack into them.
    pub(super) fn packed_words(&self, dtype: DType) -> [usize; 2] {
        self.packed.map(|len| (len * gemm::packed_element_bytes(dtype)).div_ceil(4))
    }
}

/// Tokens of a chunk with gradients, of `tokens` in all: as many whole panels as the workspace
/// holds.
pub(super) fn chunk_tokens(
    tokens: usize,
    vocab: usize,
    width: usize,
    dtype: DType,
    way: HeadGradient,
) -> usize {
    let buffers = |tokens: usize| Buffers::new(tokens, vocab, width, dtype, way);
    let fits =
        |panels: &usize| buffers(panels * PANEL).bytes_on_any_threads(dtype) <= WORKSPACE_BYTES;
    let most = tokens.div_ceil(PANEL).min(MOST_TOKENS / PANEL);
    (2..=most).rev().find(fits).unwrap_or(1) * PANEL
}

/// Takes the buffers of [`Head::losses`](super::cpu::Head::losses) over `tokens`, and gives them
/// back.
pub(super) fn rehearse_losses<T: Real>(pool: &mut Rehearsal, [tokens, vocab, width]: [usize; 3]) {
    let tokens = FORWARD_TOKENS.min(tokens);
    let piece = vocab.min(PIECE);
    let taken = [pool.take::<T>(tokens * width), pool.take::<f32>(tokens * piece)];
    gemm::rehearse(pool, [tokens, piece, width], false, [T::DTYPE, DType::F32]);
    pool.give_all(taken);
}

/// Takes the buffers of [`Head::gradients`](super::cpu::Head::gradients) over `tokens`, and gives
/// them back.
pub(super) fn rehearse_gradients<T: Real>(
    pool: &mut Rehearsal,
    [tokens, vocab, width]: [usize; 3],
    trains: bool,
) {
    let way = HeadGradient::new(trains, T::DTYPE);
    let tokens = tokens.min(chunk_tokens(tokens, vocab, width, T::DTYPE, way));
    let buffers = Buffers::new(tokens, vocab, width, T::DTYPE, way);
    let packed = buffers.packed_words(T::DTYPE);
    let Buffers { narrow, wide, .. } = buffers;
    let mut taken: Vec<_> = narrow.map(|len| pool.take::<T>(len)).into();
    taken.extend(wide.map(|len| pool.take::<f32>(len)));
    let packed = packed.map(|len| pool.take::<u32>(len));
    pool.give_all(packed);
    let piece = vocab.min(PIECE);
    gemm::rehearse(pool, [tokens, piece, width], false, [T::DTYPE, DType::F32]);
    gemm::rehearse(pool, [tokens, width, piece], false, [T::DTYPE, DType::F32]);
    if trains {
        gemm::rehearse(pool, [piece, width, tokens], true, [T::DTYPE, DType::F32]);
    }
    pool.give_all(taken);
}

/// Bytes of workspace of [`Head::gradients`](super::cpu::Head::gradients) over `tokens`.
pub(super) fn workspace_bytes(
    tokens: usize,
    vocab: usize,
    width: usize,
    dtype: DType,
    trains: bool,
) -> usize {
    let way = HeadGradient::new(trains, dtype);
    let chunk = tokens.min(chunk_tokens(tokens, vocab, width, dtype, way));
    Buffers::new(chunk, vocab, width, dtype, way).bytes(dtype)
}
