// Causal attention over documents laid end to end, with grouped query heads, a sliding window and
// soft-capped scores, in one pass over the keys (Dao 2023, arXiv:2307.08691, algorithm 1).
//
// Legend: q [N, H, D], k and v [S, K, D] of T, f32 or bf16, with the strides of `Shape`; y [N, H, D]
// of T, contiguous; lse [N, H], f32: ln Σ exp(score) of each row, for the backward pass. Query head h
// reads key/value head h · K / H. Query i of a document stands at position query_offset + i of its
// keys; with an offset there is one document, which starts at token 0.
//
// Compiled with -DHEAD_DIM=D. Addresses are multiples of 16 bytes, strides too.
//
// launch:
//   kernel                 grid          block                 shared bytes
//   attention_forward_T    (tiles, H)    2 · QUERIES           (QUERIES + 4 · KEYS) · (D · sizeof T + 16)
// with (QUERIES, KEYS) by the bytes D · sizeof T of a head: up to 256 (128, 32), up to 512 (128, 16),
// above (32, 16). `tiles`: one {u32 start, len, first} for every QUERIES queries of each document:
// first = 0, QUERIES, 2 · QUERIES, … below len. Long ones are best put first: those with the largest
// `first`. A block of another size traps. Up to 99 KiB of shared memory must be allowed for.
// workspace: none.

#include "attention_tiles.cuh"

template <class T>
struct Sizes {
    static constexpr u32 QUERIES = HEAD_BYTES<T> <= 512 ? 128 : 32;
    static constexpr u32 KEYS = HEAD_BYTES<T> <= 256 ? 32 : 16;
    static constexpr u32 THREADS = QUERIES / WARP_ROWS * WARP;
    // More would have too few registers.
    static constexpr u32 MOST = HEAD_BYTES<T> <= 128 ? 3 : HEAD_BYTES<T> <= 256 ? 2 : 1;
    static constexpr u32 AT_ONCE = blocks_at_once<T>(QUERIES + 4 * KEYS, MOST);
};

// The softmax of a lane's two rows so far: the largest exponent, and the sum of the powers of 2
// relative to it that the lane has seen itself.
struct Online {
    float max[2], sum[2];
};

DEVICE float largest_of_row(float x) {
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));
}

DEVICE float sum_of_row(float x) {
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}

// Turns exponents into powers of 2, and scales down what was summed relative to a smaller one.
template <u32 KEYS>
DEVICE void absorb(Online& online, float (&scores)[KEYS / 8][4], Fragment<D>& sums) {
#pragma unroll
    for (u32 row = 0; row < 2; ++row) {
        float max = online.max[row];
#pragma unroll
        for (u32 n = 0; n < KEYS / 8; ++n) {
            max = fmaxf(max, fmaxf(scores[n][2 * row], scores[n][2 * row + 1]));
        }
        max = largest_of_row(max);
        const float rescale = power_of_two(online.max[row] - max);
        online.max[row] = max;
        float sum = online.sum[row] * rescale;
#pragma unroll
        for (u32 n = 0; n < KEYS / 8; ++n) {
            float *a = &scores[n][2 * row], *b = &scores[n][2 * row + 1];
            *a = power_of_two(*a - max);
            *b = power_of_two(*b - max);
            sum += *a + *b;
        }
        online.sum[row] = sum;
#pragma unroll
        for (u32 n = 0; n < D / 8; ++n) {
            sums[n][2 * row] *= rescale;
            sums[n][2 * row + 1] *= rescale;
        }
    }
}

// Makes products exponents.
template <bool CAPPED, u32 N>
DEVICE void score(float (&scores)[N][4], Rule rule) {
#pragma unroll
    for (u32 n = 0; n < N; ++n) {
#pragma unroll
        for (u32 i = 0; i < 4; ++i) scores[n][i] = rule.score<CAPPED>(scores[n][i]).exponent;
    }
}

// Keys and values of a document for one head.
template <class T>
struct Past {
    const T *k, *v;
    u64 stride;
    // Keys of the document that are there.
    u32 keys;

    DEVICE void load_later(T* stage, u32 key) const {
        constexpr u32 KEYS = Sizes<T>::KEYS, THREADS = Sizes<T>::THREADS;
        const u64 at = key * stride;
        load_tile_later<KEYS, THREADS>(stage, k + at, stride, keys - key);
        load_tile_later<KEYS, THREADS>(stage + KEYS * ROW<T>, v + at, stride, keys - key);
        commit_copies();
    }
};

template <class T>
DEVICE void attend(
    const T* q_rows, T* stages, Past<T> past, const Shape& shape, u32 position, Online& online,
    Fragment<D>& sums
) {
    constexpr u32 QUERIES = Sizes<T>::QUERIES, KEYS = Sizes<T>::KEYS, STAGE = 2 * KEYS * ROW<T>;
    const Rule rule = {shape.scale, shape.softcap};
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const u32 end = least(position + QUERIES, past.keys);
    u32 stage = 0;
    u32 key = above(position + 1, shape.window) / KEYS * KEYS;
    past.load_later(stages, key);
    for (; key < end; key += KEYS, stage ^= 1) {
        if (key + KEYS < end) past.load_later(stages + (stage ^ 1) * STAGE, key + KEYS);
        else commit_copies();
        wait_for_copies<1>();
        __syncthreads();
        const T *k = stages + stage * STAGE, *v = k + KEYS * ROW<T>;
        const u32 first = position + warp * WARP_ROWS;
        float scores[KEYS / 8][4];
        multiply_rows<KEYS>(q_rows, k, scores);
        // Decided once for a warp's tile, not for each element of it.
        if (rule.softcap == 0.0f) score<false>(scores, rule);
        else score<true>(scores, rule);
        if (!all_see(first, WARP_ROWS, key, KEYS, shape.window)) {
            hide(scores, HIDDEN, [&](u32 n, u32 i) {
                const u32 query = first + lane / 4 + i / 2 * 8;
                return sees(query, key + 8 * n + 2 * (lane % 4) + i % 2, shape.window);
            });
        }
        absorb<KEYS>(online, scores, sums);
        add_product<KEYS>(scores, v, sums);
        __syncthreads();
    }
}

template <class T>
DEVICE void forward(
    const T* q, const T* k, const T* v, const Tile* tiles, T* y, float* lse, const Shape& shape
) {
    constexpr u32 QUERIES = Sizes<T>::QUERIES, THREADS = Sizes<T>::THREADS;
    expect_threads(THREADS);
    const Tile tile = tiles[blockIdx.x];
    const u32 head = blockIdx.y, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const u64 first = static_cast<u64>(tile.start) + tile.first;
    T *q_tile = dynamic_shared<T>(), *stages = q_tile + QUERIES * ROW<T>;
    const T* queries = q + first * shape.q_stride + head * D;
    load_tile_later<QUERIES, THREADS>(q_tile, queries, shape.q_stride, tile.len - tile.first);

    const u64 at = tile.start * shape.kv_stride + shape.kv_head(head) * shape.kv_head_stride;
    const Past<T> past = {k + at, v + at, shape.kv_stride, shape.query_offset + tile.len};
    Online online = {{LOWEST, LOWEST}, {0.0f, 0.0f}};
    Fragment<D> sums = {};
    const u32 position = shape.query_offset + tile.first;
    attend(q_tile + warp * WARP_ROWS * ROW<T>, stages, past, shape, position, online, sums);

#pragma unroll
    for (u32 which = 0; which < 2; ++which) {
        const float sum = sum_of_row(online.sum[which]);
        const u32 row = warp * WARP_ROWS + lane / 4 + 8 * which;
        if (tile.first + row >= tile.len) continue;
        const u64 token = first + row;
        store_row(sums, which, 1.0f / sum, y + (token * shape.heads + head) * D);
        const float log_sum = (online.max[which] + log2f(sum)) * LN_2;
        if (lane % 4 == 0) lse[token * shape.heads + head] = log_sum;
    }
}

#define ATTENTION_FORWARD(T, suffix)                                                               \
    extern "C" __global__ void __launch_bounds__(Sizes<T>::THREADS, Sizes<T>::AT_ONCE)             \
    attention_forward_##suffix(                                                                    \
        const T* q, const T* k, const T* v, const Tile* tiles, T* y, float* lse, Shape shape       \
    ) {                                                                                            \
        forward(q, k, v, tiles, y, lse, shape);                                                    \
    }

ATTENTION_FORWARD(float, f32)
ATTENTION_FORWARD(bf16, bf16)
