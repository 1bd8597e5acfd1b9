// The backward pass of attention, which computes the probabilities again (Dao 2023,
// arXiv:2307.08691, algorithm 2), without atomics: dq by tiles of queries, dk and dv by tiles of keys.
// With P = softmax(S): dV = Pᵀ·dY, dP = dY·Vᵀ, dS = P ∘ (dP − delta) ∘ slope, dQ = dS·K, dK = dSᵀ·Q.
//
// Legend: q, k, v, y, lse as in attention_forward.cu, without an offset; dy, dq [N, H, D], dk, dv
// [N, K, D] of T, contiguous; delta [N, H], f32: Σ dy · y of each row.
//
// Compiled with -DHEAD_DIM=D. Addresses are multiples of 16 bytes, strides too.
//
// launch, in this order:
//   kernel                      grid                   block       shared bytes
//   attention_delta_T           ⌈N · H / 32⌉           256         0
//   attention_backward_q_T      (tiles, H)             2 · ROWS    (2 · ROWS + 4 · OTHERS) · (D · sizeof T + 16)
//   attention_backward_kv_T     (tiles, K, PARTS)      2 · ROWS    the same
// with (ROWS, OTHERS) by the bytes D · sizeof T of a head: up to 256 (64, 32), up to 512 (64, 16),
// above (16, 16); PARTS is 2 for D > 128, one for dv and one for dk, else 1. `tiles`: one
// {u32 start, len, first} for every ROWS tokens of each document. Long ones are best put first: for
// dq those with the largest `first`, for dk and dv those that the most queries see. A block of another
// size traps. Up to 99 KiB of shared memory must be allowed for. workspace: delta.

#include "attention_tiles.cuh"

template <class T>
struct Sizes {
    static constexpr u32 ROWS = HEAD_BYTES<T> <= 512 ? 64 : 16;
    static constexpr u32 OTHERS = HEAD_BYTES<T> <= 256 ? 32 : 16;
    static constexpr u32 THREADS = ROWS / WARP_ROWS * WARP;
    // More would have too few registers.
    static constexpr u32 MOST_Q = HEAD_BYTES<T> <= 128 ? 5 : HEAD_BYTES<T> <= 256 ? 3 : 2;
    static constexpr u32 MOST_KV = D > 64 ? 2 : HEAD_BYTES<T> <= 128 ? 4 : 3;
    static constexpr u32 Q_AT_ONCE = blocks_at_once<T>(2 * ROWS + 4 * OTHERS, MOST_Q);
    static constexpr u32 KV_AT_ONCE = blocks_at_once<T>(2 * ROWS + 4 * OTHERS, MOST_KV);
};

// Threads of a block that sums deltas, and lanes of a row.
constexpr u32 DELTA_THREADS = 256, DELTA_LANES = 8;

// Rows of all heads, 16 bytes a lane at a time.
template <class T>
DEVICE void delta_rows(const T* dy, const T* y, float* delta, u64 rows) {
    const u64 thread = static_cast<u64>(blockIdx.x) * DELTA_THREADS + threadIdx.x;
    const u64 row = thread / DELTA_LANES;
    const u32 lane = threadIdx.x % DELTA_LANES;
    float sum = 0.0f;
#pragma unroll
    for (u32 first = 0; first < D; first += DELTA_LANES * VECTOR<T>) {
        const u32 at = first + lane * VECTOR<T>;
        if (row >= rows || at >= D) continue;
        float a[VECTOR<T>], b[VECTOR<T>];
        load(dy + row * D + at, a);
        load(y + row * D + at, b);
#pragma unroll
        for (u32 i = 0; i < VECTOR<T>; ++i) sum = fmaf(a[i], b[i], sum);
    }
    // By whole warps, past the last row too.
#pragma unroll
    for (u32 other = DELTA_LANES / 2; other > 0; other /= 2) {
        sum += __shfl_xor_sync(ALL_LANES, sum, other);
    }
    if (row < rows && lane == 0) delta[row] = sum;
}

// What the two factors of a product come from, for one head; rows from the first token of a document.
template <class T>
struct Pair {
    const T *first, *second;
    u64 first_stride, second_stride;
    // Rows of the document.
    u32 rows;

    template <u32 ROWS>
    DEVICE void load_later(T* tile, u32 row) const {
        constexpr u32 THREADS = Sizes<T>::THREADS;
        load_tile_later<ROWS, THREADS>(tile, first + row * first_stride, first_stride, rows - row);
        tile += ROWS * ROW<T>;
        load_tile_later<ROWS, THREADS>(tile, second + row * second_stride, second_stride, rows - row);
    }
};

// The inputs, and where they lie.
template <class T>
struct Inputs {
    const T *q, *k, *v, *dy;
    const float *lse, *delta;
    Shape shape;

    DEVICE Pair<T> queries(Tile tile, u32 head) const {
        const u64 start = tile.start;
        const u64 dy_stride = static_cast<u64>(shape.heads) * D;
        const T* of_head = dy + start * dy_stride + head * D;
        return {q + start * shape.q_stride + head * D, of_head, shape.q_stride, dy_stride, tile.len};
    }

    DEVICE Pair<T> keys(Tile tile, u32 kv_head) const {
        const u64 at = tile.start * shape.kv_stride + kv_head * shape.kv_head_stride;
        return {k + at, v + at, shape.kv_stride, shape.kv_stride, tile.len};
    }
};

// What is known of a query's softmax.
struct Query {
    // Of the log-sum-exp, as an exponent of 2.
    float exponent, delta;
};

template <class T>
DEVICE Query query_of(const Inputs<T>& in, Tile tile, u32 head, u32 row) {
    if (row >= tile.len) return {0.0f, 0.0f};
    const u64 at = (static_cast<u64>(tile.start) + row) * in.shape.heads + head;
    return {in.lse[at] * LOG2_E, in.delta[at]};
}

// Asks for QUERIES queries of a head, and for what is known of their softmax, which comes to lie where no
// product reads: the log-sum-exp behind a row of q, delta behind that of dy.
template <u32 QUERIES, class T>
DEVICE void load_queries_later(const Inputs<T>& in, Tile tile, u32 head, u32 query, T* stage) {
    static_assert(2 * QUERIES <= Sizes<T>::THREADS, "a thread for each number");
    in.queries(tile, head).template load_later<QUERIES>(stage, query);
    if (threadIdx.x >= 2 * QUERIES) return;
    const u32 row = query + threadIdx.x % QUERIES;
    const u64 at = (static_cast<u64>(tile.start) + row) * in.shape.heads + head;
    const float* numbers = threadIdx.x < QUERIES ? in.lse : in.delta;
    copy_word_later(stage + threadIdx.x * ROW<T> + D, numbers + at, row >= tile.len);
}

// The same of a query that has been loaded so.
template <class T>
DEVICE Query query_behind(const T* q_row, const T* dy_row) {
    const auto number = [](const T* row) { return *reinterpret_cast<const float*>(row + D); };
    return {number(q_row) * LOG2_E, number(dy_row)};
}

// Makes products q · k probabilities as if each were seen, and gradients of probabilities those of
// products. `query_of(n, i)` is the query of an element.
template <bool CAPPED, u32 N, class QueryOf>
DEVICE void differentiate(float (&p)[N][4], float (&slopes)[N][4], Rule rule, QueryOf query_of) {
#pragma unroll
    for (u32 n = 0; n < N; ++n) {
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            const Query query = query_of(n, i);
            const Score score = rule.score<CAPPED>(p[n][i]);
            p[n][i] = power_of_two(score.exponent - query.exponent);
            slopes[n][i] = p[n][i] * (slopes[n][i] - query.delta) * score.slope;
        }
    }
}

// dq of ROWS queries of a head.
template <class T>
DEVICE void backward_q(const Inputs<T>& in, const Tile* tiles, T* dq) {
    constexpr u32 ROWS = Sizes<T>::ROWS, KEYS = Sizes<T>::OTHERS, STAGE = 2 * KEYS * ROW<T>;
    expect_threads(Sizes<T>::THREADS);
    const Tile tile = tiles[blockIdx.x];
    const u32 head = blockIdx.y, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const u32 window = in.shape.window;
    const Rule rule = {in.shape.scale, in.shape.softcap};
    const Pair<T> keys = in.keys(tile, in.shape.kv_head(head));
    T *own = dynamic_shared<T>(), *stages = own + 2 * ROWS * ROW<T>;
    in.queries(tile, head).template load_later<ROWS>(own, tile.first);
    const T* q_rows = own + warp * WARP_ROWS * ROW<T>;
    const T* dy_rows = q_rows + ROWS * ROW<T>;
    const u32 row = tile.first + warp * WARP_ROWS + lane / 4;
    const Query of_rows[2] = {query_of(in, tile, head, row), query_of(in, tile, head, row + 8)};
    const auto of_element = [&](u32, u32 i) { return of_rows[i / 2]; };

    Fragment<D> sums = {};
    const u32 end = least(tile.first + ROWS, tile.len);
    u32 stage = 0;
    u32 key = above(tile.first + 1, window) / KEYS * KEYS;
    keys.template load_later<KEYS>(stages, key);
    commit_copies();
    for (; key < end; key += KEYS, stage ^= 1) {
        if (key + KEYS < end) {
            keys.template load_later<KEYS>(stages + (stage ^ 1) * STAGE, key + KEYS);
        }
        commit_copies();
        wait_for_copies<1>();
        __syncthreads();
        const T *k = stages + stage * STAGE, *v = k + KEYS * ROW<T>;
        float scores[KEYS / 8][4], slopes[KEYS / 8][4];
        multiply_rows<KEYS>(q_rows, k, scores);
        multiply_rows<KEYS>(dy_rows, v, slopes);
        // Decided once for a warp's tile, not for each element of it.
        if (rule.softcap == 0.0f) differentiate<false>(scores, slopes, rule, of_element);
        else differentiate<true>(scores, slopes, rule, of_element);
        if (!all_see(tile.first + warp * WARP_ROWS, WARP_ROWS, key, KEYS, window)) {
            hide(slopes, 0.0f, [&](u32 n, u32 i) {
                return sees(row + i / 2 * 8, key + 8 * n + 2 * (lane % 4) + i % 2, window);
            });
        }
        add_product<KEYS>(slopes, k, sums);
        __syncthreads();
    }
#pragma unroll
    for (u32 which = 0; which < 2; ++which) {
        if (row + 8 * which >= tile.len) continue;
        const u64 token = static_cast<u64>(tile.start) + row + 8 * which;
        store_row(sums, which, 1.0f, dq + (token * in.shape.heads + head) * D);
    }
}

// Which gradients of a tile of keys are taken.
enum class Part { Both, Values, Keys };

// One tile of queries, of one head, from the one at `query` on, for a warp's 16 keys from `key` on.
template <Part PART, class T>
DEVICE void add_queries(
    const Shape& shape, u32 query, const T* k_rows, const T* v_rows, const T* q, const T* dy, u32 key,
    Fragment<D>& dk, Fragment<D>& dv
) {
    constexpr u32 QUERIES = Sizes<T>::OTHERS;
    const Rule rule = {shape.scale, shape.softcap};
    const u32 g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    float probabilities[QUERIES / 8][4], slopes[QUERIES / 8][4] = {};
    multiply_rows<QUERIES>(k_rows, q, probabilities);
    if constexpr (PART != Part::Values) multiply_rows<QUERIES>(v_rows, dy, slopes);
    const auto of_element = [&](u32 n, u32 i) {
        const u32 row = 8 * n + 2 * t + i % 2;
        return query_behind(q + row * ROW<T>, dy + row * ROW<T>);
    };
    // Decided once for a warp's tile, not for each element of it.
    if (rule.softcap == 0.0f) differentiate<false>(probabilities, slopes, rule, of_element);
    else differentiate<true>(probabilities, slopes, rule, of_element);
    if (!all_see(query, QUERIES, key, WARP_ROWS, shape.window)) {
        const auto seen = [&](u32 n, u32 i) {
            return sees(query + 8 * n + 2 * t + i % 2, key + g + i / 2 * 8, shape.window);
        };
        hide(probabilities, 0.0f, seen);
        hide(slopes, 0.0f, seen);
    }
    // Queries past the end are zeros, and so is what they add.
    if constexpr (PART != Part::Keys) add_product<QUERIES>(probabilities, dy, dv);
    if constexpr (PART != Part::Values) add_product<QUERIES>(slopes, q, dk);
}

// dk and dv of ROWS keys of a key/value head: the query heads that share it one after the other, each
// from the first query that sees a key on.
template <Part PART, class T>
DEVICE void backward_kv(const Inputs<T>& in, const Tile* tiles, T* dk, T* dv) {
    constexpr u32 ROWS = Sizes<T>::ROWS, QUERIES = Sizes<T>::OTHERS, STAGE = 2 * QUERIES * ROW<T>;
    expect_threads(Sizes<T>::THREADS);
    const Tile tile = tiles[blockIdx.x];
    const u32 kv_head = blockIdx.y, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const u32 group = in.shape.heads / in.shape.kv_heads;
    T *own = dynamic_shared<T>(), *stages = own + 2 * ROWS * ROW<T>;
    in.keys(tile, kv_head).template load_later<ROWS>(own, tile.first);
    const T* k_rows = own + warp * WARP_ROWS * ROW<T>;
    const T* v_rows = k_rows + ROWS * ROW<T>;
    const u32 key = tile.first + warp * WARP_ROWS;

    // Tiles of queries that see a key of this one; the last key is seen by window − 1 more.
    const u32 begin = tile.first / QUERIES * QUERIES;
    const u32 last = least(tile.first + ROWS, tile.len) - 1;
    const u32 end = tile.len - last > in.shape.window ? last + in.shape.window : tile.len;
    u32 stage = 0, head = kv_head * group, query = begin;
    const u32 last_head = head + group - 1;

    Fragment<D> dk_sums = {}, dv_sums = {};
    load_queries_later<QUERIES>(in, tile, head, query, stages);
    commit_copies();
    for (bool more = true; more; stage ^= 1) {
        const u32 this_query = query;
        query += QUERIES;
        if (query >= end) {
            query = begin;
            ++head;
        }
        more = head <= last_head;
        if (more) load_queries_later<QUERIES>(in, tile, head, query, stages + (stage ^ 1) * STAGE);
        commit_copies();
        wait_for_copies<1>();
        __syncthreads();
        const T *q = stages + stage * STAGE, *dy = q + QUERIES * ROW<T>;
        add_queries<PART>(in.shape, this_query, k_rows, v_rows, q, dy, key, dk_sums, dv_sums);
        __syncthreads();
    }
#pragma unroll
    for (u32 which = 0; which < 2; ++which) {
        const u32 row = key + lane / 4 + 8 * which;
        if (row >= tile.len) continue;
        const u64 token = static_cast<u64>(tile.start) + row;
        const u64 at = (token * in.shape.kv_heads + kv_head) * D;
        if constexpr (PART != Part::Values) store_row(dk_sums, which, 1.0f, dk + at);
        if constexpr (PART != Part::Keys) store_row(dv_sums, which, 1.0f, dv + at);
    }
}

// Sums for both do not fit into the registers of a thread where heads are wide.
template <class T>
DEVICE void backward_kv_parts(const Inputs<T>& in, const Tile* tiles, T* dk, T* dv) {
    if constexpr (D > 128) {
        if (blockIdx.z == 0) {
            backward_kv<Part::Values>(in, tiles, dk, dv);
        } else {
            backward_kv<Part::Keys>(in, tiles, dk, dv);
        }
    } else {
        backward_kv<Part::Both>(in, tiles, dk, dv);
    }
}

#define ATTENTION_BACKWARD(T, suffix)                                                              \
    extern "C" __global__ void attention_delta_##suffix(                                           \
        const T* dy, const T* y, float* delta, u64 rows                                            \
    ) {                                                                                            \
        delta_rows(dy, y, delta, rows);                                                            \
    }                                                                                              \
    extern "C" __global__ void __launch_bounds__(Sizes<T>::THREADS, Sizes<T>::Q_AT_ONCE)           \
    attention_backward_q_##suffix(                                                                 \
        const T* q, const T* k, const T* v, const T* dy, const float* lse, const float* delta,     \
        const Tile* tiles, T* dq, Shape shape                                                      \
    ) {                                                                                            \
        const Inputs<T> in = {q, k, v, dy, lse, delta, shape};                                     \
        backward_q(in, tiles, dq);                                                                 \
    }                                                                                              \
    extern "C" __global__ void __launch_bounds__(Sizes<T>::THREADS, Sizes<T>::KV_AT_ONCE)          \
    attention_backward_kv_##suffix(                                                                \
        const T* q, const T* k, const T* v, const T* dy, const float* lse, const float* delta,     \
        const Tile* tiles, T* dk, T* dv, Shape shape                                               \
    ) {                                                                                            \
        const Inputs<T> in = {q, k, v, dy, lse, delta, shape};                                     \
        backward_kv_parts(in, tiles, dk, dv);                                                      \
    }

ATTENTION_BACKWARD(float, f32)
ATTENTION_BACKWARD(bf16, bf16)
