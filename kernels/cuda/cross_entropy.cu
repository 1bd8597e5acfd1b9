// Cross entropy of rows of logits, and its gradient, which may be written over them.
//
// Legend: logits [C, V], of X; targets [C], below V, or negative (PyTorch's −100) where a row has no
// target: its loss, hit and gradient are 0. z = cap · tanh(logit / cap), or the logit itself where
// `softcap` is 0.
//   losses [C], f32: log Σ exp(z) − z[target], in nats
//   hits [C]: 1 where the target is the first of the largest z, else 0
//   d_logits [C, V], of D: (softmax(z) − onehot(target)) · scale · dz/dlogit
//   ids [C]: the first of the largest logits, 0 where none is above −∞; logprobs [C], f32: its own
//   log softmax
// Sums are f32, each thread's own and then those of the threads.
//
// launch:
//   kernel                        grid          block   shared bytes
//   cross_entropy_forward_X       C             512     0
//   cross_entropy_gradient_X_D    C             512     0
//   most_probable_piece_f32       (pieces, C)   512     0
//   most_probable_merge           C             128     0
//   cross_entropy_total           1             512     0
// X, D: f32_f32, bf16_bf16, f32_bf16. `stride` and `d_stride` are the elements from row to row (V
// where it is contiguous). d_logits may be logits: with the same dtype and stride, or as bf16 over
// f32 with d_stride = 2 · stride, where each row begins where it did. pieces: ⌈V / 8192⌉.
// workspace: of_pieces, 12 bytes each [C, pieces], for most_probable, one after the other; else none.

// cross_entropy_total: found [2], f64: the sum of the losses, and how many hits there are.

#include "reduce.cuh"

constexpr float LOWEST = -3.4028235e38f;
constexpr u32 MINUS_INFINITY = 0xff800000u;
constexpr u32 NOWHERE = 0xffffffffu;

// Logits of a piece of a row from which the most probable is chosen, and the threads that look at them.
constexpr u32 PIECE = 8192;
constexpr u32 PIECE_THREADS = 512;

// What is known of a softmax after some of its entries. `max` is finite even where all are −∞.
struct Softmax {
    float max;
    // Of exp(z − max).
    float sum;
    u32 argmax;

    // Takes in entries that come after all others.
    template <u32 LEN>
    DEVICE void absorb(const float (&z)[LEN], u32 first) {
        float largest = max;
#pragma unroll
        for (u32 i = 0; i < LEN; ++i) {
            if (z[i] > largest) {
                largest = z[i];
                argmax = first + i;
            }
        }
        if (largest > max) sum *= expf(max - largest);
        max = largest;
#pragma unroll
        for (u32 i = 0; i < LEN; ++i) sum += expf(z[i] - max);
    }

    // The same whichever of the two is the other.
    DEVICE void merge(float other_max, float other_sum, u32 other_argmax) {
        const float larger = fmaxf(max, other_max);
        sum = sum * expf(max - larger) + other_sum * expf(other_max - larger);
        const u32 first = argmax < other_argmax ? argmax : other_argmax;
        argmax = max == other_max ? first : (max > other_max ? argmax : other_argmax);
        max = larger;
    }

    DEVICE void merge_lanes() {
#pragma unroll
        for (u32 lane = WARP / 2; lane > 0; lane /= 2) {
            const float other_max = __shfl_xor_sync(ALL_LANES, max, lane);
            const float other_sum = __shfl_xor_sync(ALL_LANES, sum, lane);
            merge(other_max, other_sum, __shfl_xor_sync(ALL_LANES, argmax, lane));
        }
    }

    // Those of all threads of the block, for each of them.
    DEVICE void merge_threads() {
        __shared__ Softmax of_warp[WARP];
        const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
        merge_lanes();
        if (lane == 0) of_warp[warp] = *this;
        __syncthreads();
        const bool there = lane < blockDim.x / WARP;
        max = there ? of_warp[lane].max : LOWEST;
        sum = there ? of_warp[lane].sum : 0.0f;
        argmax = there ? of_warp[lane].argmax : NOWHERE;
        merge_lanes();
    }
};

// Gemma 2's cap on the logits, or none where it is 0.
struct Softcap {
    float cap, inverse;

    DEVICE explicit Softcap(float cap) : cap(cap), inverse(cap > 0.0f ? 1.0f / cap : 0.0f) {}

    DEVICE float capped(float x) const { return cap > 0.0f ? cap * tanhf(x * inverse) : x; }

    DEVICE float slope(float capped) const {
        const float tanh = capped * inverse;
        return cap > 0.0f ? 1.0f - tanh * tanh : 1.0f;
    }
};

template <u32 LEN, class X>
DEVICE void load_capped(const X* from, Softcap softcap, float (&z)[LEN]) {
    load(from, z);
#pragma unroll
    for (u32 i = 0; i < LEN; ++i) z[i] = softcap.capped(z[i]);
}

template <u32 LEN, class X>
DEVICE Softmax softmax_of(const X* logits, u32 vocab, Softcap softcap) {
    Softmax softmax = {LOWEST, 0.0f, NOWHERE};
    for (u32 at = threadIdx.x * LEN; at < vocab; at += blockDim.x * LEN) {
        float z[LEN];
        load_capped(logits + at, softcap, z);
        softmax.absorb(z, at);
    }
    softmax.merge_threads();
    return softmax;
}

// A row of the chunk: what it is scored by, and where to.
struct Score {
    float* loss;
    u32* hit;
};

// The row's loss, which one thread writes.
DEVICE float scored(Softmax softmax, float target_logit, u32 target, Score score) {
    const float loss = logf(softmax.sum) - (target_logit - softmax.max);
    if (threadIdx.x == 0) {
        *score.loss = loss;
        *score.hit = softmax.argmax == target ? 1 : 0;
    }
    return loss;
}

DEVICE void nothing_scored(Score score) {
    if (threadIdx.x == 0) {
        *score.loss = 0.0f;
        *score.hit = 0;
    }
}

template <class D>
DEVICE void zero_row(D* d_logits, u32 vocab) {
    for (u32 at = threadIdx.x; at < vocab; at += blockDim.x) d_logits[at] = narrow<D>(0.0f);
}

// The softmax of a row, and its gradient with it.
template <u32 LEN, class X, class D>
DEVICE void gradient_row(
    const X* logits, u32 target, D* d_logits, Score score, u32 vocab, Softcap softcap, float scale
) {
    const float target_logit = softcap.capped(widen(logits[target]));
    const Softmax softmax = softmax_of<LEN>(logits, vocab, softcap);
    const float loss = scored(softmax, target_logit, target, score);
    const float factor = scale / softmax.sum;
    const u32 step = blockDim.x * LEN;
    // Narrower gradients lie over logits, of which all threads must have read their own before.
    u32 free = 0;
    for (u32 tile = 0; tile < vocab; tile += step) {
        const u32 at = tile + threadIdx.x * LEN;
        float z[LEN];
        if (at < vocab) load_capped(logits + at, softcap, z);
        if (sizeof(D) < sizeof(X) && tile >= free) {
            __syncthreads();
            free = (tile + step) * (sizeof(X) / sizeof(D));
        }
        if (at >= vocab) continue;
#pragma unroll
        for (u32 i = 0; i < LEN; ++i) {
            z[i] = expf(z[i] - softmax.max) * factor * softcap.slope(z[i]);
        }
        store(z, d_logits + at);
    }
    // Over what this thread has just written: a softmax near 1 would cancel.
    if (target / LEN % blockDim.x == threadIdx.x) {
        d_logits[target] = narrow<D>(expm1f(-loss) * scale * softcap.slope(target_logit));
    }
}

template <class X>
DEVICE void forward(
    const X* logits, const int* targets, float* losses, u32* hits, u32 vocab, u64 stride, float cap
) {
    const u64 row = blockIdx.x;
    const Score score = {losses + row, hits + row};
    if (targets[row] < 0) return nothing_scored(score);
    const u32 target = static_cast<u32>(targets[row]);
    const Softcap softcap(cap);
    const bool together = (vocab | stride) % VECTOR<X> == 0 && aligned(logits);
    logits += row * stride;
    const Softmax softmax = together ? softmax_of<VECTOR<X>>(logits, vocab, softcap)
                                     : softmax_of<1>(logits, vocab, softcap);
    scored(softmax, softcap.capped(widen(logits[target])), target, score);
}

template <class X, class D>
DEVICE void gradient(
    const X* logits, const int* targets, D* d_logits, float* losses, u32* hits, u32 vocab,
    u64 stride, u64 d_stride, float cap, float scale
) {
    const u64 row = blockIdx.x;
    const Score score = {losses + row, hits + row};
    const bool whole = (vocab | stride | d_stride) % VECTOR<X> == 0;
    const bool together = whole && all_aligned(logits, d_logits);
    logits += row * stride;
    d_logits += row * d_stride;
    if (targets[row] < 0) {
        nothing_scored(score);
        return zero_row(d_logits, vocab);
    }
    const u32 target = static_cast<u32>(targets[row]);
    const Softcap softcap(cap);
    if (together) {
        gradient_row<VECTOR<X>>(logits, target, d_logits, score, vocab, softcap, scale);
    } else {
        gradient_row<1>(logits, target, d_logits, score, vocab, softcap, scale);
    }
}

// The softmax of a piece of a row, of whose logits a thread has all of its own on their way together.
template <u32 LEN>
DEVICE Softmax softmax_of_piece(const float* logits, u32 count) {
    constexpr u32 LOADS = PIECE / PIECE_THREADS / LEN;
    float z[LOADS][LEN];
#pragma unroll
    for (u32 i = 0; i < LOADS; ++i) {
        const u32 at = (i * PIECE_THREADS + threadIdx.x) * LEN;
#pragma unroll
        for (u32 n = 0; n < LEN; ++n) z[i][n] = __uint_as_float(MINUS_INFINITY);
        if (at < count) load(logits + at, z[i]);
    }
    Softmax softmax = {LOWEST, 0.0f, NOWHERE};
#pragma unroll
    for (u32 i = 0; i < LOADS; ++i) {
        softmax.absorb(z[i], (i * PIECE_THREADS + threadIdx.x) * LEN);
    }
    softmax.merge_threads();
    return softmax;
}

extern "C" __global__ void most_probable_piece_f32(
    const float* logits, Softmax* of_pieces, u32 vocab
) {
    const u64 row = blockIdx.y;
    const u32 first = blockIdx.x * PIECE, count = vocab - first < PIECE ? vocab - first : PIECE;
    const bool together = vocab % VECTOR<float> == 0 && aligned(logits);
    logits += row * vocab + first;
    Softmax softmax = together ? softmax_of_piece<VECTOR<float>>(logits, count)
                               : softmax_of_piece<1>(logits, count);
    if (threadIdx.x != 0) return;
    if (softmax.argmax != NOWHERE) softmax.argmax += first;
    of_pieces[row * gridDim.x + blockIdx.x] = softmax;
}

extern "C" __global__ void most_probable_merge(
    const Softmax* of_pieces, u32* ids, float* logprobs, u32 pieces
) {
    const u64 row = blockIdx.x;
    Softmax softmax = {LOWEST, 0.0f, NOWHERE};
    for (u32 piece = threadIdx.x; piece < pieces; piece += blockDim.x) {
        const Softmax other = of_pieces[row * pieces + piece];
        softmax.merge(other.max, other.sum, other.argmax);
    }
    softmax.merge_threads();
    if (threadIdx.x != 0) return;
    ids[row] = softmax.argmax == NOWHERE ? 0 : softmax.argmax;
    logprobs[row] = -logf(softmax.sum);
}

extern "C" __global__ void cross_entropy_total(
    const float* losses, const u32* hits, u32 rows, double* found
) {
    double sums[2] = {0.0, 0.0};
    for (u32 row = threadIdx.x; row < rows; row += blockDim.x) {
        sums[0] += losses[row];
        sums[1] += hits[row];
    }
    block_sums(sums);
    if (threadIdx.x != 0) return;
    found[0] = sums[0];
    found[1] = sums[1];
}

#define CROSS_ENTROPY_FORWARD(X, suffix)                                                           \
    extern "C" __global__ void cross_entropy_forward_##suffix(                                     \
        const X* logits, const int* targets, float* losses, u32* hits, u32 vocab, u64 stride,      \
        float softcap                                                                              \
    ) {                                                                                            \
        forward(logits, targets, losses, hits, vocab, stride, softcap);                            \
    }

#define CROSS_ENTROPY_GRADIENT(X, D, suffix)                                                       \
    extern "C" __global__ void cross_entropy_gradient_##suffix(                                    \
        const X* logits, const int* targets, D* d_logits, float* losses, u32* hits, u32 vocab,     \
        u64 stride, u64 d_stride, float softcap, float scale                                       \
    ) {                                                                                            \
        gradient(                                                                                  \
            logits, targets, d_logits, losses, hits, vocab, stride, d_stride, softcap, scale       \
        );                                                                                         \
    }

CROSS_ENTROPY_FORWARD(float, f32)
CROSS_ENTROPY_FORWARD(bf16, bf16)
CROSS_ENTROPY_GRADIENT(float, float, f32_f32)
CROSS_ENTROPY_GRADIENT(bf16, bf16, bf16_bf16)
CROSS_ENTROPY_GRADIENT(float, bf16, f32_bf16)
