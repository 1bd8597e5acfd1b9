// What the forward and the backward pass of attention have in common: tiles of rows in shared memory,
// and the products of a warp's 16 rows with them, as in FlashAttention-2 (Dao 2023, arXiv:2307.08691).
//
// A source is compiled for one dimension of a head: `-DHEAD_DIM=128`, a multiple of 16 up to 256.
// Products of bf16 go through the tensor cores, those of f32 are sums of `fmaf`; either leaves its
// result in the fragments that `mma.cuh` describes, 8 columns each, so that all else is the same.
#pragma once

#include "mma.cuh"

constexpr u32 D = HEAD_DIM;
static_assert(D % 16 == 0 && D >= 16 && D <= 256, "HEAD_DIM is a multiple of 16 up to 256");

constexpr float LOG2_E = 1.44269504f;
constexpr float LN_2 = 0.69314718f;
// Below every score, yet finite, so that its difference to itself is 0.
constexpr float LOWEST = -1e30f;
// The score of what is not seen: so low that its power of 2 is 0 even relative to that.
constexpr float HIDDEN = -3e38f;

// Rows of a warp.
constexpr u32 WARP_ROWS = 16;
// Bytes of a head, which decide how many rows of it there is room for.
template <class T>
constexpr u32 HEAD_BYTES = D * sizeof(T);
// Elements from row to row of a tile: an odd number of 16 bytes, so that eight rows lie in banks of
// their own. No product reads the last 16, from element D on.
template <class T>
constexpr u32 ROW = D + VECTOR<T>;

// Shared memory that a multiprocessor has.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ == 860 || __CUDA_ARCH__ == 890 || __CUDA_ARCH__ >= 1200
constexpr u32 SHARED_KIB = 100;
#elif __CUDA_ARCH__ < 900
constexpr u32 SHARED_KIB = 164;
#else
constexpr u32 SHARED_KIB = 228;
#endif

// How many blocks with tiles of so many rows fit into it, 1 KiB more for each; at most `most`. The
// compiler is told to leave registers for as many, and for no more.
template <class T>
DEVICE constexpr u32 blocks_at_once(u32 rows, u32 most) {
    const u32 fit = SHARED_KIB * 1024 / (rows * ROW<T> * sizeof(T) + 1024);
    return fit < most ? fit : most;
}

// A fragment of 16 rows for each 8 columns.
template <u32 COLUMNS>
using Fragment = float[COLUMNS / 8][4];

// Passed by value, 48 bytes. Strides are in elements, multiples of 16 bytes.
struct Shape {
    u32 heads, kv_heads;
    // Of q, from token to token.
    u64 q_stride;
    // Of k and v, from token to token and from head to head.
    u64 kv_stride, kv_head_stride;
    // Position of a document's first query among its keys.
    u32 query_offset;
    // How many keys a query sees at most, itself included; 0xffffffff is all.
    u32 window;
    float scale;
    // 0 is none.
    float softcap;

    DEVICE u32 kv_head(u32 head) const { return head / (heads / kv_heads); }
};

// Rows of one document: its first token, how many it has, and the first of them that a block works on.
struct Tile {
    u32 start, len, first;
};

// Sizes of blocks depend on the dtype and the dimension: a host that has them wrong is told so.
DEVICE void expect_threads(u32 threads) {
    if (blockDim.x != threads) __trap();
}

// Whether the query at this position sees the key at that one.
DEVICE bool sees(u32 query, u32 key, u32 window) { return key <= query && query - key < window; }

// Whether each of `queries` queries from this position on sees each of so many keys.
DEVICE bool all_see(u32 query, u32 queries, u32 key, u32 keys, u32 window) {
    return key + keys - 1 <= query && query + queries - 1 - key < window;
}

DEVICE u32 least(u32 a, u32 b) { return a < b ? a : b; }

// `a − b`, or 0.
DEVICE u32 above(u32 a, u32 b) { return a > b ? a - b : 0; }

// 2ˣ within 2 units in the last place.
DEVICE float power_of_two(float x) {
#ifdef __CUDA_ARCH__
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return exp2f(x);
#endif
}

// What becomes of a product q · k: the exponent of 2 in the softmax, and the derivative of the score by
// the product.
struct Score {
    float exponent, slope;
};

struct Rule {
    float scale, softcap;

    // CAPPED is whether there is a softcap.
    template <bool CAPPED>
    DEVICE Score score(float product) const {
        if constexpr (CAPPED) {
            const float tanh = tanhf(product * (scale / softcap));
            return {softcap * LOG2_E * tanh, (1.0f - tanh * tanh) * scale};
        } else {
            return {product * (scale * LOG2_E), scale};
        }
    }
};

// Puts `hidden` where `seen(n, i)` is not so.
template <u32 N, class Seen>
DEVICE void hide(float (&values)[N][4], float hidden, Seen seen) {
#pragma unroll
    for (u32 n = 0; n < N; ++n) {
#pragma unroll
        for (u32 i = 0; i < 4; ++i) values[n][i] = seen(n, i) ? values[n][i] : hidden;
    }
}

// Asks for ROWS rows of a head, of which the first `rows` are there; the others become zeros, and nothing
// is read for them. The block has THREADS threads.
template <u32 ROWS, u32 THREADS, class T>
DEVICE void load_tile_later(T* tile, const T* from, u64 stride, u32 rows) {
    constexpr u32 PACKS = D / VECTOR<T>, ITEMS = ROWS * PACKS;
    // Then the items of all threads are equally far from their first ones.
    constexpr bool EVEN = THREADS % PACKS == 0 || PACKS % THREADS == 0;
    const u32 first = threadIdx.x / PACKS, first_at = threadIdx.x % PACKS * VECTOR<T>;
    T* to = tile + first * ROW<T> + first_at;
    const T* own = from + first * stride + first_at;
#pragma unroll
    for (u32 item = 0; item < ITEMS; item += THREADS) {
        if (item + THREADS > ITEMS && item + threadIdx.x >= ITEMS) break;
        if constexpr (EVEN) {
            const u32 row = item / PACKS, at = item % PACKS * VECTOR<T>;
            copy_later(to + row * ROW<T> + at, own + row * stride + at, first + row >= rows);
        } else {
            const u32 row = (item + threadIdx.x) / PACKS;
            const u32 at = (item + threadIdx.x) % PACKS * VECTOR<T>;
            copy_later(tile + row * ROW<T> + at, from + row * stride + at, row >= rows);
        }
    }
}

// `c = a · bᵀ` of 16 rows and COLUMNS rows, over the dimensions of a head.
template <u32 COLUMNS>
DEVICE void multiply_rows(const bf16* a, const bf16* b, float (&c)[COLUMNS / 8][4]) {
    const u32 lane = threadIdx.x % WARP;
    const bf16* a_row = a + lane % 16 * ROW<bf16> + lane / 16 * 8;
    const bf16* b_row = b + (lane / 16 * 8 + lane % 8) * ROW<bf16> + lane / 8 % 2 * 8;
#pragma unroll
    for (u32 n = 0; n < COLUMNS / 8; ++n) c[n][0] = c[n][1] = c[n][2] = c[n][3] = 0.0f;
#pragma unroll
    for (u32 k = 0; k < D; k += 16) {
        u32 left[4], right[4];
        load_matrices(left, a_row + k);
#pragma unroll
        for (u32 n = 0; n < COLUMNS / 8; n += 2) {
            load_matrices(right, b_row + n * 8 * ROW<bf16> + k);
            multiply_add(c[n], left, right[0], right[1]);
            multiply_add(c[n + 1], left, right[2], right[3]);
        }
    }
}

template <u32 COLUMNS>
DEVICE void multiply_rows(const float* a, const float* b, float (&c)[COLUMNS / 8][4]) {
    const u32 lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
#pragma unroll
    for (u32 n = 0; n < COLUMNS / 8; ++n) c[n][0] = c[n][1] = c[n][2] = c[n][3] = 0.0f;
    for (u32 k = 0; k < D; k += 4) {
        float left[2][4], right[2][4];
        load(a + g * ROW<float> + k, left[0]);
        load(a + (g + 8) * ROW<float> + k, left[1]);
#pragma unroll
        for (u32 n = 0; n < COLUMNS / 8; ++n) {
            load(b + (8 * n + 2 * t) * ROW<float> + k, right[0]);
            load(b + (8 * n + 2 * t + 1) * ROW<float> + k, right[1]);
#pragma unroll
            for (u32 i = 0; i < 16; ++i) {
                c[n][i % 4] = fmaf(left[i % 4 / 2][i / 4], right[i % 2][i / 4], c[n][i % 4]);
            }
        }
    }
}

// `c += a · b` of 16 rows, rounded to bf16, and ROWS rows of a head.
template <u32 ROWS>
DEVICE void add_product(const float (&a)[ROWS / 8][4], const bf16* b, Fragment<D>& c) {
    const u32 lane = threadIdx.x % WARP;
    const bf16* b_row = b + lane % 16 * ROW<bf16> + lane / 16 * 8;
#pragma unroll
    for (u32 k = 0; k < ROWS; k += 16) {
        const auto &low = a[k / 8], &high = a[k / 8 + 1];
        const u32 left[4] = {
            packed(low[0], low[1]), packed(low[2], low[3]), packed(high[0], high[1]),
            packed(high[2], high[3])
        };
#pragma unroll
        for (u32 n = 0; n < D / 8; n += 2) {
            u32 right[4];
            load_transposed_matrices(right, b_row + k * ROW<bf16> + n * 8);
            multiply_add(c[n], left, right[0], right[1]);
            multiply_add(c[n + 1], left, right[2], right[3]);
        }
    }
}

// The same in f32: who holds an element of `a` hands it to the lanes of its rows.
template <u32 ROWS>
DEVICE void add_product(const float (&a)[ROWS / 8][4], const float* b, Fragment<D>& c) {
    const u32 lane = threadIdx.x % WARP, t = lane % 4;
#pragma unroll
    for (u32 k = 0; k < ROWS; ++k) {
        const u32 holder = (lane & ~3u) | k % 8 / 2;
        const float upper = __shfl_sync(ALL_LANES, a[k / 8][k % 2], holder);
        const float lower = __shfl_sync(ALL_LANES, a[k / 8][2 + k % 2], holder);
#pragma unroll
        for (u32 n = 0; n < D / 8; ++n) {
            float right[2];
            load(b + k * ROW<float> + 8 * n + 2 * t, right);
            c[n][0] = fmaf(upper, right[0], c[n][0]);
            c[n][1] = fmaf(upper, right[1], c[n][1]);
            c[n][2] = fmaf(lower, right[0], c[n][2]);
            c[n][3] = fmaf(lower, right[1], c[n][3]);
        }
    }
}

// Stores a lane's part of one of its two rows (0 is row g, 1 is row g + 8), times `factor`.
template <class T>
DEVICE void store_row(const Fragment<D>& c, u32 which, float factor, T* row) {
    const u32 t = threadIdx.x % 4;
#pragma unroll
    for (u32 n = 0; n < D / 8; ++n) {
        const float pair[2] = {c[n][2 * which] * factor, c[n][2 * which + 1] * factor};
        store(pair, row + 8 * n + 2 * t);
    }
}
