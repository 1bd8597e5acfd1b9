// Attention of one new token a row over the keys and values that a cache holds. What a row sees is
// cut into pieces of 128 keys, whose softmax sums are put together at the end, as in flash-decoding
// (Dao et al. 2023); the cut depends on the row's own length alone.
//
// Legend: q, y [R, H, D]; keys, values [rows, K, capacity, D]; fresh [R, K, D]; all of T, f32 or bf16.
// `places`: one {u32 row, len} a token: its row of the cache, and the tokens of that row, the new one
// included. It attends to all of them, or to the last `window` (0xffffffff is all). Query head h reads
// key/value head h · K / H. `softcap` 0 is none. D is a multiple of 8 up to 512; addresses are
// multiples of 16 bytes.
//
// launch:
//   kernel                     grid              block    shared bytes
//   decode_attention_store_T   (K, R)            128      0
//   decode_attention_piece_T   (pieces, K, R)    128      32 · D
//   decode_attention_merge_T   (H, R)            128      0
// pieces: ⌈min(len, window) / 128⌉ of the longest. workspace: partial, f32 [R, H, pieces, D + 2].
// store writes `fresh` into the cache of the keys, or of the values, as the last token of each place.

#include "reduce.cuh"

constexpr u32 THREADS = 128;
// Keys of a piece: one for each thread.
constexpr u32 PIECE = THREADS;
// Query heads that go through a piece together.
constexpr u32 TOGETHER = 8;

struct Place {
    u32 row, len;
};

// What a token attends to.
struct Span {
    u32 first, keys;

    DEVICE Span(Place place, u32 window)
        : first(place.len > window ? place.len - window : 0), keys(place.len - first) {}

    DEVICE u32 pieces() const { return (keys + PIECE - 1) / PIECE; }
};

// Passed by value, 32 bytes.
struct Shape {
    u32 heads, kv_heads, capacity, dim, window;
    float scale, softcap;
    // For which there is room in `partial`.
    u32 pieces;

    DEVICE u32 group() const { return heads / kv_heads; }

    DEVICE u64 in_cache(u32 row, u32 kv_head, u32 token) const {
        return ((static_cast<u64>(row) * kv_heads + kv_head) * capacity + token) * dim;
    }

    // Largest score, sum of exponentials, and the values that they weigh.
    DEVICE float* of_partial(float* partial, u32 token, u32 head, u32 piece) const {
        return partial + ((static_cast<u64>(token) * heads + head) * pieces + piece) * (dim + 2);
    }
};

template <class T>
DEVICE void store_fresh(T* cache, const T* fresh, const Place* places, Shape shape) {
    const u32 kv_head = blockIdx.x, token = blockIdx.y;
    const Place place = places[token];
    T* to = cache + shape.in_cache(place.row, kv_head, place.len - 1);
    const T* from = fresh + (static_cast<u64>(token) * shape.kv_heads + kv_head) * shape.dim;
    for (u32 i = threadIdx.x; i < shape.dim; i += THREADS) to[i] = from[i];
}

// Scores of the thread's key for each of the heads of `q [TOGETHER, D]`.
template <class T>
DEVICE void score_key(const T* key, const float* q, Shape shape, float (*scores)[PIECE]) {
    float sums[TOGETHER] = {};
    for (u32 at = 0; at < shape.dim; at += VECTOR<T>) {
        float k[VECTOR<T>];
        load(key + at, k);
#pragma unroll
        for (u32 h = 0; h < TOGETHER; ++h) {
#pragma unroll
            for (u32 i = 0; i < VECTOR<T>; ++i) {
                sums[h] = fmaf(k[i], q[h * shape.dim + at + i], sums[h]);
            }
        }
    }
    const float cap = shape.softcap;
#pragma unroll
    for (u32 h = 0; h < TOGETHER; ++h) {
        const float score = sums[h] * shape.scale;
        scores[h][threadIdx.x] = cap > 0.0f ? tanhf(score / cap) * cap : score;
    }
}

// Makes a head's scores exponentials; the largest score and their sum go to `statistics`.
DEVICE void weigh(float (&scores)[PIECE], u32 keys, float* statistics) {
    const u32 lane = threadIdx.x % WARP;
    float max = -3.4028235e38f, sum = 0.0f;
    for (u32 j = lane; j < keys; j += WARP) max = fmaxf(max, scores[j]);
    max = warp_max(max);
    for (u32 j = lane; j < keys; j += WARP) {
        scores[j] = expf(scores[j] - max);
        sum += scores[j];
    }
    sum = warp_sum(sum);
    if (lane == 0) {
        statistics[0] = max;
        statistics[1] = sum;
    }
}

// The sums of the values, each by its weight for each head: groups of threads go through the keys,
// 16 bytes of a value a thread.
template <class T>
DEVICE void weighted_sums(
    const T* values, const float (*weights)[PIECE], u32 keys, u32 dim,
    float (&sums)[TOGETHER][VECTOR<T>]
) {
    const u32 lanes = dim / VECTOR<T>, groups = THREADS / lanes;
    const u32 group = threadIdx.x / lanes, at = threadIdx.x % lanes * VECTOR<T>;
    if (group >= groups) return;
    for (u32 j = group; j < keys; j += groups) {
        float v[VECTOR<T>];
        load(values + static_cast<u64>(j) * dim + at, v);
#pragma unroll
        for (u32 h = 0; h < TOGETHER; ++h) {
#pragma unroll
            for (u32 i = 0; i < VECTOR<T>; ++i) sums[h][i] = fmaf(weights[h][j], v[i], sums[h][i]);
        }
    }
}

// Adds up the groups' sums of one head, in their order.
template <class T>
DEVICE void add_groups(const float (&sums)[VECTOR<T>], u32 dim, float* to) {
    __shared__ float of_groups[THREADS * VECTOR<T>];
    const u32 lanes = dim / VECTOR<T>, groups = THREADS / lanes;
    __syncthreads();
    for (u32 i = 0; i < VECTOR<T>; ++i) of_groups[threadIdx.x * VECTOR<T> + i] = sums[i];
    __syncthreads();
    for (u32 d = threadIdx.x; d < dim; d += THREADS) {
        float sum = of_groups[d];
        for (u32 group = 1; group < groups; ++group) sum += of_groups[group * dim + d];
        to[d] = sum;
    }
}

// One piece for the query heads from `head` on that share its keys and values.
template <class T>
DEVICE void attend_together(
    const T* q, const T* keys, const T* values, u32 count, u32 heads, Shape shape, float* partial
) {
    __shared__ float scores[TOGETHER][PIECE];
    float* q_rows = dynamic_shared<float>();
    const u64 stride = static_cast<u64>(shape.pieces) * (shape.dim + 2);
    __syncthreads();
    for (u32 i = threadIdx.x; i < TOGETHER * shape.dim; i += THREADS) {
        q_rows[i] = i < heads * shape.dim ? widen(q[i]) : 0.0f;
    }
    __syncthreads();
    if (threadIdx.x < count) {
        score_key(keys + static_cast<u64>(threadIdx.x) * shape.dim, q_rows, shape, scores);
    }
    __syncthreads();
    for (u32 h = threadIdx.x / WARP; h < heads; h += THREADS / WARP) {
        weigh(scores[h], count, partial + h * stride);
    }
    __syncthreads();
    float sums[TOGETHER][VECTOR<T>] = {};
    weighted_sums(values, scores, count, shape.dim, sums);
#pragma unroll
    for (u32 h = 0; h < TOGETHER; ++h) {
        if (h < heads) add_groups<T>(sums[h], shape.dim, partial + h * stride + 2);
    }
}

template <class T>
DEVICE void attend_piece(
    const T* q, const T* keys, const T* values, const Place* places, float* partial, Shape shape
) {
    const u32 piece = blockIdx.x, kv_head = blockIdx.y, token = blockIdx.z;
    const Place place = places[token];
    const Span span(place, shape.window);
    if (piece >= span.pieces()) return;
    const u32 first = piece * PIECE, left = span.keys - first;
    const u32 count = left < PIECE ? left : PIECE;
    const u64 at = shape.in_cache(place.row, kv_head, span.first + first);
    const u32 end = (kv_head + 1) * shape.group();
    for (u32 head = kv_head * shape.group(); head < end; head += TOGETHER) {
        const u32 heads = end - head < TOGETHER ? end - head : TOGETHER;
        const T* rows = q + (static_cast<u64>(token) * shape.heads + head) * shape.dim;
        float* to = shape.of_partial(partial, token, head, piece);
        attend_together(rows, keys + at, values + at, count, heads, shape, to);
    }
}

template <class T>
DEVICE void merge(float* partial, const Place* places, T* y, Shape shape) {
    const u32 head = blockIdx.x, token = blockIdx.y;
    const u32 pieces = Span(places[token], shape.window).pieces();
    const float* first = shape.of_partial(partial, token, head, 0);
    const u32 stride = shape.dim + 2;
    float max = first[0];
    for (u32 piece = 1; piece < pieces; ++piece) max = fmaxf(max, first[piece * stride]);
    for (u32 d = threadIdx.x; d < shape.dim; d += THREADS) {
        float sum = 0.0f, value = 0.0f;
        for (u32 piece = 0; piece < pieces; ++piece) {
            const float* of_piece = first + piece * stride;
            const float factor = expf(of_piece[0] - max);
            sum = fmaf(factor, of_piece[1], sum);
            value = fmaf(factor, of_piece[2 + d], value);
        }
        y[(static_cast<u64>(token) * shape.heads + head) * shape.dim + d] = narrow<T>(value / sum);
    }
}

#define DECODE_ATTENTION(T, suffix)                                                                \
    extern "C" __global__ void decode_attention_store_##suffix(                                    \
        T* cache, const T* fresh, const Place* places, Shape shape                                 \
    ) {                                                                                            \
        store_fresh(cache, fresh, places, shape);                                                  \
    }                                                                                              \
    extern "C" __global__ void decode_attention_piece_##suffix(                                    \
        const T* q, const T* keys, const T* values, const Place* places, float* partial,           \
        Shape shape                                                                                \
    ) {                                                                                            \
        attend_piece(q, keys, values, places, partial, shape);                                     \
    }                                                                                              \
    extern "C" __global__ void decode_attention_merge_##suffix(                                    \
        float* partial, const Place* places, T* y, Shape shape                                     \
    ) {                                                                                            \
        merge(partial, places, y, shape);                                                          \
    }

DECODE_ATTENTION(float, f32)
DECODE_ATTENTION(bf16, bf16)
