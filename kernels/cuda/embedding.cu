// Token embedding: rows of a table, and a gradient that is added to the used rows alone.
//
// Legend: table, d_table [V, E]; ids [N]; y, dy [N, E]. `scale` is rounded to the table's dtype by
// the host (to that of dy for the gradient), 1 where there is none. Ids are below V.
//
// For the gradient, the host sorts the tokens by their ids, those of one id in their order, without
// those that are to be skipped: rows [U] are the distinct ids, and the tokens of rows[u] are
// tokens[offsets[u] .. offsets[u + 1]]. A row's sum is taken in f32 in the order of its tokens,
// beginning with what is there, and rounded once.
//
// launch:
//   kernel                          grid                    block      shared bytes
//   embedding_forward_T             N                       THREADS    0
//   embedding_add_gradient_T_G      (U, ⌈E / 256⌉, 1)       64         0
// T is the dtype of table, y and dy, G that of d_table: f32_f32, bf16_f32, bf16_bf16.
// THREADS: E / (16 / sizeof T) rounded up to whole warps, at least 32 and at most 256.
// workspace: none.

#include "common.cuh"

// Columns that a thread of the gradient works on.
constexpr u32 COLUMNS = 4;

template <u32 LEN, class T>
DEVICE void copy_row(const T* row, T* y, u32 width, float scale) {
    for (u32 at = threadIdx.x * LEN; at < width; at += blockDim.x * LEN) {
        float values[LEN];
        load(row + at, values);
#pragma unroll
        for (u32 i = 0; i < LEN; ++i) values[i] *= scale;
        store(values, y + at);
    }
}

template <class T>
DEVICE void forward(const T* table, const u32* ids, T* y, u32 width, float scale) {
    const u64 token = blockIdx.x;
    const T* row = table + static_cast<u64>(ids[token]) * width;
    if (width % VECTOR<T> == 0 && all_aligned(table, y)) {
        copy_row<VECTOR<T>>(row, y + token * width, width, scale);
    } else {
        copy_row<1>(row, y + token * width, width, scale);
    }
}

// The tokens `tokens[begin .. end]` of one row, for the columns from `at` on.
template <u32 LEN, class T, class G>
DEVICE void add_tokens(
    const T* dy, G* d_row, const u32* tokens, u32 begin, u32 end, u32 at, u32 width, float scale
) {
    float sums[LEN], values[LEN];
    load(d_row + at, sums);
#pragma unroll 4
    for (u32 i = begin; i < end; ++i) {
        load(dy + static_cast<u64>(tokens[i]) * width + at, values);
#pragma unroll
        for (u32 j = 0; j < LEN; ++j) sums[j] = fmaf(values[j], scale, sums[j]);
    }
    store(sums, d_row + at);
}

template <class T, class G>
DEVICE void add_gradient(
    const T* dy, G* d_table, const u32* rows, const u32* offsets, const u32* tokens, u32 width,
    float scale
) {
    const u32 used = blockIdx.x, begin = offsets[used], end = offsets[used + 1];
    const u32 at = (blockIdx.y * blockDim.x + threadIdx.x) * COLUMNS;
    G* d_row = d_table + static_cast<u64>(rows[used]) * width;
    if (width % COLUMNS == 0 && all_aligned(dy, d_table)) {
        if (at < width) add_tokens<COLUMNS>(dy, d_row, tokens, begin, end, at, width, scale);
    } else {
        for (u32 i = at; i < at + COLUMNS && i < width; ++i) {
            add_tokens<1>(dy, d_row, tokens, begin, end, i, width, scale);
        }
    }
}

#define EMBEDDING_FORWARD(T, suffix)                                                               \
    extern "C" __global__ void embedding_forward_##suffix(                                         \
        const T* table, const u32* ids, T* y, u32 width, float scale                               \
    ) {                                                                                            \
        forward(table, ids, y, width, scale);                                                      \
    }

#define EMBEDDING_ADD_GRADIENT(T, G, suffix)                                                       \
    extern "C" __global__ void embedding_add_gradient_##suffix(                                    \
        const T* dy, G* d_table, const u32* rows, const u32* offsets, const u32* tokens,           \
        u32 width, float scale                                                                     \
    ) {                                                                                            \
        add_gradient(dy, d_table, rows, offsets, tokens, width, scale);                            \
    }

EMBEDDING_FORWARD(float, f32)
EMBEDDING_FORWARD(bf16, bf16)
EMBEDDING_ADD_GRADIENT(float, float, f32_f32)
EMBEDDING_ADD_GRADIENT(bf16, float, bf16_f32)
EMBEDDING_ADD_GRADIENT(bf16, bf16, bf16_bf16)
