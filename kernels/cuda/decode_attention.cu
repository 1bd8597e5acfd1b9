// Attention of one new token a row over the keys and values that a cache holds. What a row sees is
// cut into pieces of 128 keys, whose softmax sums are put together at the end, as in flash-decoding
// (Dao et al. 2023); the cut depends on the row's own length alone.
//
// Legend: q, y [R, H, D]; keys, values [rows, K, capacity, D]; fresh [R, K, D]; all of T, f32 or bf16.
// `places`: one {u32 row, len} a token: its row of the cache, and the tokens of that row, the new one
// included. It attends to all of them, or to the last `window` (0xffffffff is all). Query head h reads
// key/value head h · K / H. `softcap` 0 is none.
//
// Compiled with -DHEAD_DIM=D, a multiple of 8 up to 512. Addresses are multiples of 16 bytes.
//
// launch:
//   kernel                       grid                     block    shared bytes
//   decode_attention_store_T     (K, R)                   128      0
//   decode_attention_piece_T_G   (pieces, K · sets, R)    256      0
//   decode_attention_merge_T     (H, R)                   128      0
// pieces: ⌈min(len, window) / 128⌉ of the longest. G: query heads that go through a piece together, 1,
// 2, 4 or 8: the least that H / K fits into, or 8 in several sets: sets = ⌈H / K / G⌉.
// workspace: partial, f32 [R, H, pieces, D + 2].
// store writes `fresh` into the cache of the keys, or of the values, as the last token of each place.

#include "reduce.cuh"

constexpr u32 D = HEAD_DIM;
static_assert(D % 8 == 0 && D >= 8 && D <= 512, "HEAD_DIM is a multiple of 8 up to 512");

// Of a block that has a piece.
constexpr u32 THREADS = 256;
// Keys of a piece.
constexpr u32 PIECE = 128;
// Neighbouring lanes that share keys: together they load 128 bytes of one at a time.
constexpr u32 LANES = 8;
// Keys that they share.
constexpr u32 KEYS = PIECE * LANES / THREADS;
// Elements that they load of each at a time.
template <class T>
constexpr u32 STEP = LANES * VECTOR<T>;
// Such loads of each key that are on their way together.
template <u32 HEADS>
constexpr u32 STEPS = HEADS < 4 ? 2 : 1;
// Groups of threads that share out the values, 16 bytes of one a thread. Those that are too few for a
// group do as the last one does, and nobody asks for their sums.
template <class T>
constexpr u32 GROUPS = THREADS * VECTOR<T> / D;
// Values of a group, at most.
template <class T>
constexpr u32 VALUES = (PIECE + GROUPS<T> - 1) / GROUPS<T>;
// Those that are on their way together, where there are so many.
template <u32 HEADS>
constexpr u32 AHEAD = HEADS < 8 ? 8 : 4;

constexpr float LOWEST = -3.4028235e38f;

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

// Passed by value, 28 bytes.
struct Shape {
    u32 heads, kv_heads, capacity, window;
    float scale, softcap;
    // For which there is room in `partial`.
    u32 pieces;

    DEVICE u32 group() const { return heads / kv_heads; }

    DEVICE u64 in_cache(u32 row, u32 kv_head, u32 token) const {
        return ((static_cast<u64>(row) * kv_heads + kv_head) * capacity + token) * D;
    }

    // Largest score, sum of exponentials, and the values that they weigh.
    DEVICE float* of_partial(float* partial, u32 token, u32 head, u32 piece) const {
        return partial + ((static_cast<u64>(token) * heads + head) * pieces + piece) * (D + 2);
    }
};

template <class T>
DEVICE void store_fresh(T* cache, const T* fresh, const Place* places, Shape shape) {
    const u32 kv_head = blockIdx.x, token = blockIdx.y;
    const Place place = places[token];
    T* to = cache + shape.in_cache(place.row, kv_head, place.len - 1);
    const T* from = fresh + (static_cast<u64>(token) * shape.kv_heads + kv_head) * D;
    for (u32 i = threadIdx.x; i < D; i += blockDim.x) to[i] = from[i];
}

// The sums of each of `x` over LANES neighbouring lanes, shared out among them: lane `part` gets those
// of the elements from part · N / LANES on, from x[0] on.
template <u32 N>
DEVICE void share_sums(float (&x)[N], u32 part) {
#pragma unroll
    for (u32 lane = LANES / 2, left = N / 2; lane > 0; lane /= 2, left /= 2) {
        const bool upper = (part & lane) != 0;
        if (left == 0) x[0] += __shfl_xor_sync(ALL_LANES, x[0], lane);
#pragma unroll
        for (u32 i = 0; i < N / 2; ++i) {
            if (i >= left) break;
            const float own = upper ? x[i + left] : x[i], other = upper ? x[i] : x[i + left];
            x[i] = own + __shfl_xor_sync(ALL_LANES, other, lane);
        }
    }
}

// Adds to `sums [HEADS, KEYS]` the products of elements of KEYS keys with those of `q [heads, D]`.
template <u32 HEADS, class T>
DEVICE void multiply_packs(
    const T* q, const Pack<T, VECTOR<T>> (&keys)[KEYS], u32 heads, float (&sums)[HEADS * KEYS]
) {
    float k[KEYS][VECTOR<T>], x[VECTOR<T>];
#pragma unroll
    for (u32 n = 0; n < KEYS; ++n) widen(keys[n], k[n]);
#pragma unroll
    for (u32 h = 0; h < HEADS; ++h) {
        load(q + (h < heads ? h : 0) * D, x);
#pragma unroll
        for (u32 i = 0; i < VECTOR<T> * KEYS; ++i) {
            float& sum = sums[h * KEYS + i % KEYS];
            sum = fmaf(k[i % KEYS][i / KEYS], x[i / KEYS], sum);
        }
    }
}

// The same for STEPS steps of `keys` from one element on, all of which are on their way before the
// first is used.
template <u32 STEPS, u32 HEADS, class T>
DEVICE void multiply_keys(
    const T* q, const T* const (&keys)[KEYS], u32 at, u32 heads, float (&sums)[HEADS * KEYS]
) {
    Pack<T, VECTOR<T>> packs[STEPS][KEYS];
#pragma unroll
    for (u32 i = 0; i < STEPS * KEYS; ++i) {
        packs[i / KEYS][i % KEYS] = packed<VECTOR<T>>(keys[i % KEYS] + at + i / KEYS * STEP<T>);
    }
#pragma unroll
    for (u32 i = 0; i < STEPS; ++i) {
        multiply_packs<HEADS>(q + at + i * STEP<T>, packs[i], heads, sums);
    }
}

// Scores of each key for each head; behind the last key they are the last one's.
template <u32 HEADS, class T>
DEVICE void score_keys(
    const T* q, const T* keys, u32 heads, u32 count, Shape shape, float (&scores)[HEADS][PIECE]
) {
    const u32 part = threadIdx.x % LANES, first = threadIdx.x / LANES * KEYS;
    const T* rows[KEYS];
#pragma unroll
    for (u32 n = 0; n < KEYS; ++n) rows[n] = keys + (first + n < count ? first + n : count - 1) * D;
    constexpr u32 TOGETHER = STEPS<HEADS> * STEP<T>, WHOLE = D - D % TOGETHER;
    float sums[HEADS * KEYS] = {};
    if constexpr (WHOLE > 0) {
#pragma unroll 1
        for (u32 at = part * VECTOR<T>; at < WHOLE; at += TOGETHER) {
            multiply_keys<STEPS<HEADS>, HEADS>(q, rows, at, heads, sums);
        }
    }
#pragma unroll 1
    for (u32 at = WHOLE + part * VECTOR<T>; at < D; at += STEP<T>) {
        multiply_keys<1, HEADS>(q, rows, at, heads, sums);
    }
    share_sums(sums, part);
    const float cap = shape.softcap;
#pragma unroll
    for (u32 i = 0; i < (HEADS * KEYS + LANES - 1) / LANES; ++i) {
        const u32 place = part * HEADS * KEYS / LANES + i;
        const float score = sums[i] * shape.scale;
        scores[place / KEYS][first + place % KEYS] = cap > 0.0f ? tanhf(score / cap) * cap : score;
    }
}

// Exponentials of a head's scores, by a warp; the largest score and their sum go to `statistics`,
// unless it is null.
template <u32 HEADS>
DEVICE void weigh(
    const float (&scores)[PIECE], u32 keys, u32 head, Pack<float, HEADS>* weights, float* statistics
) {
    const u32 lane = threadIdx.x % WARP;
    float max = scores[lane], sum = 0.0f;
#pragma unroll
    for (u32 j = lane + WARP; j < PIECE; j += WARP) max = fmaxf(max, scores[j]);
    max = warp_max(max);
#pragma unroll
    for (u32 i = 0; i < PIECE / WARP; ++i) {
        const u32 j = lane + i * WARP;
        const float weight = expf(j < keys ? scores[j] - max : LOWEST);
        weights[j].values[head] = weight;
        sum += weight;
    }
    sum = warp_sum(sum);
    if (lane != 0 || !statistics) return;
    statistics[0] = max;
    statistics[1] = sum;
}

// This thread's part of the values of its group from key `first` on: behind the last key, of the last
// one's.
template <u32 AHEAD, class T>
DEVICE void load_values(
    const T* values, u32 first, u32 keys, Pack<T, VECTOR<T>> (&loaded)[AHEAD]
) {
    const u32 at = threadIdx.x % (D / VECTOR<T>) * VECTOR<T>;
#pragma unroll
    for (u32 n = 0; n < AHEAD; ++n) {
        const u32 key = first + n * GROUPS<T>;
        loaded[n] = packed<VECTOR<T>>(values + (key < keys ? key : keys - 1) * D + at);
    }
}

// The sums of the values of this thread's group, each by its weight for each head. The first of them
// are loaded; behind the last key, weights are 0.
template <u32 AHEAD, u32 HEADS, class T>
DEVICE void weighted_sums(
    const T* values, const Pack<float, HEADS>* weights, u32 group, u32 keys,
    Pack<T, VECTOR<T>> (&loaded)[AHEAD], float (&sums)[HEADS][VECTOR<T>]
) {
    constexpr u32 ROUND = AHEAD * GROUPS<T>;
#pragma unroll 1
    for (u32 first = 0; first < PIECE && first < keys; first += ROUND) {
        if (first > 0) load_values(values, group + first, keys, loaded);
#pragma unroll
        for (u32 n = 0; n < AHEAD; ++n) {
            const u32 key = group + first + n * GROUPS<T>;
            if (PIECE % ROUND != 0 && key >= PIECE) break;
            float v[VECTOR<T>];
            widen(loaded[n], v);
            const auto weight = weights[key];
#pragma unroll
            for (u32 i = 0; i < VECTOR<T> * HEADS; ++i) {
                float& sum = sums[i % HEADS][i / HEADS];
                sum = fmaf(weight.values[i % HEADS], v[i / HEADS], sum);
            }
        }
    }
}

// Adds up the groups' sums of each head, in their order.
template <u32 HEADS, class T>
DEVICE void add_groups(
    const float (&sums)[HEADS][VECTOR<T>], u32 heads, float* to, u64 stride
) {
    constexpr u32 AT_ONCE = HEADS < 2 ? HEADS : 2;
    __shared__ Pack<float, VECTOR<T>> of_threads[AT_ONCE][THREADS];
#pragma unroll
    for (u32 head = 0; head < HEADS; head += AT_ONCE) {
        if (head > 0) __syncthreads();
#pragma unroll
        for (u32 h = 0; h < AT_ONCE; ++h) store(sums[head + h], of_threads[h][threadIdx.x].values);
        __syncthreads();
        for (u32 i = threadIdx.x; i < AT_ONCE * D; i += THREADS) {
            const u32 h = i / D, d = i % D;
            if (head + h >= heads) break;
            const float* of_groups = reinterpret_cast<const float*>(of_threads[h]) + d;
            float sum = of_groups[0];
#pragma unroll 16
            for (u32 group = 1; group < GROUPS<T>; ++group) sum += of_groups[group * D];
            to[(head + h) * stride + d] = sum;
        }
    }
}

// One piece for so many query heads that share its keys and values.
template <u32 HEADS, class T>
DEVICE void attend_together(
    const T* q, const T* keys, const T* values, u32 count, u32 heads, Shape shape, float* partial
) {
    __shared__ float scores[HEADS][PIECE];
    __shared__ Pack<float, HEADS> weights[PIECE];
    const u64 stride = static_cast<u64>(shape.pieces) * (D + 2);
    const u32 warp = threadIdx.x / WARP, own = threadIdx.x / (D / VECTOR<T>);
    const u32 group = own < GROUPS<T> ? own : GROUPS<T> - 1;
    // On their way while the keys are scored.
    Pack<T, VECTOR<T>> loaded[VALUES<T> < AHEAD<HEADS> ? VALUES<T> : AHEAD<HEADS>];
    load_values(values, group, count, loaded);
    score_keys(q, keys, heads, count, shape, scores);
    __syncthreads();
    if (warp < HEADS) {
        float* statistics = warp < heads ? partial + warp * stride : nullptr;
        weigh(scores[warp], count, warp, weights, statistics);
    }
    __syncthreads();
    float sums[HEADS][VECTOR<T>] = {};
    weighted_sums(values, weights, group, count, loaded, sums);
    add_groups<HEADS, T>(sums, heads, partial + 2, stride);
}

template <u32 HEADS, class T>
DEVICE void attend_piece(
    const T* q, const T* keys, const T* values, const Place* places, float* partial, Shape shape
) {
    const u32 piece = blockIdx.x, sets = (shape.group() + HEADS - 1) / HEADS, token = blockIdx.z;
    const u32 kv_head = blockIdx.y / sets, set = blockIdx.y % sets * HEADS;
    const Place place = places[token];
    const Span span(place, shape.window);
    if (piece >= span.pieces()) return;
    const u32 first = piece * PIECE, left = span.keys - first;
    const u32 count = left < PIECE ? left : PIECE;
    const u64 at = shape.in_cache(place.row, kv_head, span.first + first);
    const u32 head = kv_head * shape.group() + set, others = shape.group() - set;
    const T* rows = q + (static_cast<u64>(token) * shape.heads + head) * D;
    float* to = shape.of_partial(partial, token, head, piece);
    const u32 heads = others < HEADS ? others : HEADS;
    attend_together<HEADS>(rows, keys + at, values + at, count, heads, shape, to);
}

template <class T>
DEVICE void merge(float* partial, const Place* places, T* y, Shape shape) {
    const u32 head = blockIdx.x, token = blockIdx.y;
    const u32 pieces = Span(places[token], shape.window).pieces();
    const float* first = shape.of_partial(partial, token, head, 0);
    const u32 stride = D + 2;
    float max = first[0];
    for (u32 piece = threadIdx.x % WARP; piece < pieces; piece += WARP) {
        max = fmaxf(max, first[piece * stride]);
    }
    max = warp_max(max);
    for (u32 d = threadIdx.x; d < D; d += blockDim.x) {
        float sum = 0.0f, value = 0.0f;
#pragma unroll 8
        for (u32 piece = 0; piece < pieces; ++piece) {
            const float* of_piece = first + piece * stride;
            const float factor = expf(of_piece[0] - max);
            sum = fmaf(factor, of_piece[1], sum);
            value = fmaf(factor, of_piece[2 + d], value);
        }
        y[(static_cast<u64>(token) * shape.heads + head) * D + d] = narrow<T>(value / sum);
    }
}

#define DECODE_ATTENTION(T, suffix)                                                                \
    extern "C" __global__ void decode_attention_store_##suffix(                                    \
        T* cache, const T* fresh, const Place* places, Shape shape                                 \
    ) {                                                                                            \
        store_fresh(cache, fresh, places, shape);                                                  \
    }                                                                                              \
    extern "C" __global__ void decode_attention_merge_##suffix(                                    \
        float* partial, const Place* places, T* y, Shape shape                                     \
    ) {                                                                                            \
        merge(partial, places, y, shape);                                                          \
    }

#define DECODE_ATTENTION_PIECE(T, suffix, heads)                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS, 2)                                       \
    decode_attention_piece_##suffix##_##heads(                                                     \
        const T* q, const T* keys, const T* values, const Place* places, float* partial,           \
        Shape shape                                                                                \
    ) {                                                                                            \
        attend_piece<heads>(q, keys, values, places, partial, shape);                              \
    }

DECODE_ATTENTION(float, f32)
DECODE_ATTENTION(bf16, bf16)
DECODE_ATTENTION_PIECE(float, f32, 1)
DECODE_ATTENTION_PIECE(float, f32, 2)
DECODE_ATTENTION_PIECE(float, f32, 4)
DECODE_ATTENTION_PIECE(float, f32, 8)
DECODE_ATTENTION_PIECE(bf16, bf16, 1)
DECODE_ATTENTION_PIECE(bf16, bf16, 2)
DECODE_ATTENTION_PIECE(bf16, bf16, 4)
DECODE_ATTENTION_PIECE(bf16, bf16, 8)
