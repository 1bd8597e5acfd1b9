// A step of AdamW (Loshchilov and Hutter 2019, algorithm 2) of many tensors, in place, with the
// arithmetic of the CPU to the bit:
//   g ← grad · grad_scale,  m ← β₁·m + (1 − β₁)·g,  v ← β₂·v + (1 − β₂)·g²,
//   p ← keep · p − step_size · m / (√v · inv_root_correction + ε)
//
// Kernels are named adamw_W_M_G:
//   W  f32: f32 weights. master: f32 weights, and `param`, which becomes them in bf16.
//      stochastic: bf16 weights, rounded at random; bits depend on seed, number, step and element.
//   M  m32: moments in f32. m8: in 8 bits, with an f32 scale for each 256 of them.
//   G  f32 or bf16: the gradient.
//
// Legend: `tensors` is a table of `Tensor` in device memory, `places` one {u32 tensor; u32 chunk} a
// block: a tensor's chunks are of 8192 elements. `grad_scale` points to one f32 in device memory
// (see norm_clip); where it is NaN, nothing moves. `step` is passed by value; `keep` is 1 − lr · λ, and 1 where a tensor does not
// decay.
//
// launch:
//   kernel         grid      block   shared bytes
//   adamw_W_M_G    places    256     0
//   moved_T_M      places    256     0
// All tensors of a launch have the same W, M and G. workspace: none.
//
// moved_T_M: how far the step has moved weights of type T (f32 or bf16), told from what it left behind:
// from p' = keep · p − s follows p' − p = ((keep − 1) · p' − s) / keep. partials: f64, of each place the
// sum of the squares of that, and of p'.

#include "codes.cuh"
#include "philox.cuh"
#include "reduce.cuh"
#include "tensors.cuh"

// Elements of a block of moments, which a warp works on: each lane has every 32nd, for which the
// Philox counter of its own number gives the bits.
constexpr u32 BLOCK = 256;
constexpr u32 OF_LANE = BLOCK / WARP;

// 72 bytes. What a variant does not use is null.
struct Tensor {
    void* weight;
    bf16* param;
    const void* grad;
    void* first;
    void* second;
    float* first_scales;
    float* second_scales;
    u64 elements;
    // The tensor's number in the model, for its random bits.
    u32 number;
    u32 decays;
};

struct Step {
    float beta1, rest1, beta2, rest2, keep, step_size, inv_root_correction, eps;
};

// The 256 elements that a warp works on.
struct Span {
    u64 block;
    u32 lane;
    // Of the tensor.
    u64 elements;

    DEVICE u64 at(u32 i) const { return block * BLOCK + i * WARP + lane; }
    DEVICE bool has(u32 i) const { return at(i) < elements; }
};

template <class T>
DEVICE void load_span(Span span, const void* from, float (&values)[OF_LANE]) {
    const T* all = static_cast<const T*>(from);
#pragma unroll
    for (u32 i = 0; i < OF_LANE; ++i) values[i] = span.has(i) ? widen(all[span.at(i)]) : 0.0f;
}

template <class T>
DEVICE void store_span(Span span, const float (&values)[OF_LANE], void* to) {
    T* all = static_cast<T*>(to);
#pragma unroll
    for (u32 i = 0; i < OF_LANE; ++i) {
        if (span.has(i)) all[span.at(i)] = narrow<T>(values[i]);
    }
}

struct F32Weights {
    static constexpr bool STOCHASTIC = false;
    using Stored = float;
    DEVICE static void also(Span, const Tensor&, const float (&)[OF_LANE]) {}
};

struct MasterWeights {
    static constexpr bool STOCHASTIC = false;
    using Stored = float;
    DEVICE static void also(Span span, const Tensor& tensor, const float (&values)[OF_LANE]) {
        store_span<bf16>(span, values, tensor.param);
    }
};

struct StochasticWeights {
    static constexpr bool STOCHASTIC = true;
    using Stored = bf16;
};

// The seed of a run and the step it is at.
struct Draw {
    u64 seed;
    u32 step;
};

// Word w of the lane's counter is for its elements 2w (low half) and 2w + 1 (high half).
DEVICE void store_at_random(
    Span span, const Tensor& tensor, Draw draw, const float (&values)[OF_LANE]
) {
    const u64 counter = span.block * WARP + span.lane;
    const Words place = {
        {static_cast<u32>(counter), static_cast<u32>(counter >> 32), tensor.number, draw.step}
    };
    const u32 seed_low = static_cast<u32>(draw.seed), seed_high = static_cast<u32>(draw.seed >> 32);
    const Words bits = philox(place, seed_low, seed_high);
    bf16* all = static_cast<bf16*>(tensor.weight);
#pragma unroll
    for (u32 i = 0; i < OF_LANE; ++i) {
        const u32 half = (bits.w[i / 2] >> (16 * (i % 2))) & 0xffffu;
        if (span.has(i)) all[span.at(i)] = rounded_at_random(values[i], half);
    }
}

// A moment in f32.
struct Wide {
    DEVICE Wide() {}

    DEVICE void load(Span span, const void* from, const float*, float (&values)[OF_LANE]) const {
        load_span<float>(span, from, values);
    }

    DEVICE void store(Span span, const float (&values)[OF_LANE], void* to, float*) const {
        store_span<float>(span, values, to);
    }
};

// A moment in 8 bits; the values of its codes are looked up.
template <bool SIGNED>
struct Bytes {
    float* values_of_codes;

    DEVICE Bytes() {
        __shared__ float values[BLOCK];
        values_of_codes = values;
        values[threadIdx.x] = Code<SIGNED>::value(threadIdx.x);
        __syncthreads();
    }

    DEVICE void load(Span span, const void* from, const float* scales, float (&values)[OF_LANE])
        const {
        const u8* codes = static_cast<const u8*>(from);
        const float scale = scales[span.block];
#pragma unroll
        for (u32 i = 0; i < OF_LANE; ++i) {
            values[i] = span.has(i) ? values_of_codes[codes[span.at(i)]] * scale : 0.0f;
        }
    }

    // Without their sign, floats are in the order of their bits, and what is not a number is above
    // all of them: it becomes the scale, and thus stays in the state.
    DEVICE void store(Span span, const float (&values)[OF_LANE], void* to, float* scales) const {
        u32 largest = 0;
#pragma unroll
        for (u32 i = 0; i < OF_LANE; ++i) largest = larger(largest, magnitude(values[i]));
#pragma unroll
        for (u32 lane = WARP / 2; lane > 0; lane /= 2) {
            largest = larger(largest, __shfl_xor_sync(ALL_LANES, largest, lane));
        }
        const float scale = __uint_as_float(largest);
        const bool is_zero = scale < LEAST_SCALE;
        const float inverse = is_zero ? 0.0f : 1.0f / scale;
        u8* codes = static_cast<u8*>(to);
#pragma unroll
        for (u32 i = 0; i < OF_LANE; ++i) {
            const u32 code = Code<SIGNED>::nearest(values[i] * inverse);
            if (span.has(i)) codes[span.at(i)] = static_cast<u8>(code);
        }
        if (span.lane == 0) scales[span.block] = is_zero ? 0.0f : scale;
    }

    DEVICE static u32 magnitude(float x) { return __float_as_uint(x) & 0x7fffffffu; }
    DEVICE static u32 larger(u32 a, u32 b) { return a > b ? a : b; }
};

// Every product and sum is rounded, as on the CPU.
DEVICE void step_element(const Step& c, float keep, float g, float& p, float& m, float& v) {
    m = c.beta1 * m + c.rest1 * g;
    v = c.beta2 * v + c.rest2 * (g * g);
    const float denominator = sqrtf(v) * c.inv_root_correction + c.eps;
    p = p * keep - c.step_size * (m / denominator);
}

template <class Weights, class First, class Second, class G>
DEVICE void step_span(
    Span span, const Tensor& tensor, const Step& c, float grad_scale, Draw draw, First first,
    Second second
) {
    float p[OF_LANE], m[OF_LANE], v[OF_LANE], g[OF_LANE];
    load_span<typename Weights::Stored>(span, tensor.weight, p);
    first.load(span, tensor.first, tensor.first_scales, m);
    second.load(span, tensor.second, tensor.second_scales, v);
    load_span<G>(span, tensor.grad, g);
    const float keep = tensor.decays ? c.keep : 1.0f;
#pragma unroll
    for (u32 i = 0; i < OF_LANE; ++i) {
        step_element(c, keep, g[i] * grad_scale, p[i], m[i], v[i]);
    }
    if constexpr (Weights::STOCHASTIC) {
        store_at_random(span, tensor, draw, p);
    } else {
        store_span<float>(span, p, tensor.weight);
        Weights::also(span, tensor, p);
    }
    first.store(span, m, tensor.first, tensor.first_scales);
    second.store(span, v, tensor.second, tensor.second_scales);
}

template <class Weights, class First, class Second, class G>
DEVICE void step_chunk(
    const Tensor* tensors, const Place* places, const Step& step, const float* grad_scale, Draw draw
) {
    const float scale = *grad_scale;
    if (scale != scale) return;
    const Place place = places[blockIdx.x];
    const Tensor tensor = tensors[place.tensor];
    const First first;
    const Second second;
    constexpr u32 WARPS = CHUNK_THREADS / WARP, BLOCKS = CHUNK_ELEMENTS / BLOCK;
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    for (u32 i = warp; i < BLOCKS; i += WARPS) {
        const Span span = {static_cast<u64>(place.chunk) * BLOCKS + i, lane, tensor.elements};
        if (span.block * BLOCK >= tensor.elements) break;
        step_span<Weights, First, Second, G>(span, tensor, step, scale, draw, first, second);
    }
}

template <class T, class First, class Second>
DEVICE void moved_span(
    Span span, const Tensor& tensor, const Step& c, First first, Second second, double (&sums)[2]
) {
    float p[OF_LANE], m[OF_LANE], v[OF_LANE];
    load_span<T>(span, tensor.weight, p);
    first.load(span, tensor.first, tensor.first_scales, m);
    second.load(span, tensor.second, tensor.second_scales, v);
    const double keep = tensor.decays ? c.keep : 1.0f, decay = keep - 1.0, inverse = 1.0 / keep;
#pragma unroll
    for (u32 i = 0; i < OF_LANE; ++i) {
        if (!span.has(i)) continue;
        const float denominator = sqrtf(v[i]) * c.inv_root_correction + c.eps;
        const double after = p[i], step = c.step_size * (m[i] / denominator);
        const double moved = (decay * after - step) * inverse;
        sums[0] = fma(moved, moved, sums[0]);
        sums[1] = fma(after, after, sums[1]);
    }
}

template <class T, class First, class Second>
DEVICE void moved_chunk(
    const Tensor* tensors, const Place* places, const Step& step, double* partials
) {
    const Place place = places[blockIdx.x];
    const Tensor tensor = tensors[place.tensor];
    const First first;
    const Second second;
    constexpr u32 WARPS = CHUNK_THREADS / WARP, BLOCKS = CHUNK_ELEMENTS / BLOCK;
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    double sums[2] = {0.0, 0.0};
    for (u32 i = warp; i < BLOCKS; i += WARPS) {
        const Span span = {static_cast<u64>(place.chunk) * BLOCKS + i, lane, tensor.elements};
        if (span.block * BLOCK >= tensor.elements) break;
        moved_span<T>(span, tensor, step, first, second, sums);
    }
    block_sums(sums);
    if (threadIdx.x == 0) {
        partials[2 * blockIdx.x] = sums[0];
        partials[2 * blockIdx.x + 1] = sums[1];
    }
}

#define MOVED(T, First, Second, suffix)                                                            \
    extern "C" __global__ void moved_##suffix(                                                     \
        const Tensor* tensors, const Place* places, Step step, double* partials                    \
    ) {                                                                                            \
        moved_chunk<T, First, Second>(tensors, places, step, partials);                            \
    }

MOVED(float, Wide, Wide, f32_m32)
MOVED(float, Bytes<true>, Bytes<false>, f32_m8)
MOVED(bf16, Wide, Wide, bf16_m32)
MOVED(bf16, Bytes<true>, Bytes<false>, bf16_m8)

#define ADAMW(Weights, First, Second, G, suffix)                                                   \
    extern "C" __global__ void adamw_##suffix(                                                     \
        const Tensor* tensors, const Place* places, Step step, const float* grad_scale, u64 seed,  \
        u32 step_number                                                                            \
    ) {                                                                                            \
        const Draw draw = {seed, step_number};                                                     \
        step_chunk<Weights, First, Second, G>(tensors, places, step, grad_scale, draw);            \
    }

#define ADAMW_MOMENTS(Weights, weights)                                                            \
    ADAMW(Weights, Wide, Wide, float, weights##_m32_f32)                                           \
    ADAMW(Weights, Wide, Wide, bf16, weights##_m32_bf16)                                           \
    ADAMW(Weights, Bytes<true>, Bytes<false>, float, weights##_m8_f32)                             \
    ADAMW(Weights, Bytes<true>, Bytes<false>, bf16, weights##_m8_bf16)

ADAMW_MOMENTS(F32Weights, f32)
ADAMW_MOMENTS(MasterWeights, master)
ADAMW_MOMENTS(StochasticWeights, stochastic)
