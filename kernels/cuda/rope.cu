// Rotary position embedding (Su et al. 2021) in the half-split layout of transformers, where the pair
// of dimension i is i + D/2; alone, and after the norm of the heads in one pass.
//
// Legend: x, y, dy, d_x [N, H, D] of T, f32 or bf16, each with its own stride from token to token, in
// elements (H · D where it is contiguous), heads of a token next to each other; cos, sin [N, D/2] in
// f32; weight [D] of T. A row is one head of one token; row r is head r mod H of token r / H.
//   rotate: (a, b) → (a · cos − b · sin, b · cos + a · sin), sin times `direction`: 1 for the
//   forward pass, −1 for the backward pass.
//   normed: the rms_norm of a row by `weight`, rotated, with nothing rounded in between.
//
// launch:
//   kernel                    grid                           block        shared bytes
//   rope_rotate_T             N                              THREADS      0
//   rope_normed_forward_T     ⌈N · H / 8⌉                    256          0
//   rope_normed_backward_T    ⌈N · H / chunk_rows⌉           256          32 · D if dw_partial
//   rope_weight_sum           ⌈D / 32⌉                       512          0
// THREADS: H · D / 2 / (16 / sizeof T) rounded up to whole warps, at least 32 and at most 256.
// chunk_rows: 8 without dw_partial, else 256; it decides the order of the sum, so it must not depend
// on the device. y may be x and d_x may be dy or x, where the strides are the same.
// workspace: dw_partial, f32 [⌈N · H / chunk_rows⌉, D], where the weight's gradient is wanted;
// rope_weight_sum adds up its rows: chunks = ⌈N · H / chunk_rows⌉.

#include "column_sums.cuh"
#include "reduce.cuh"

constexpr u32 ROW_WARPS = 8;

// A pair of dimensions.
struct Pair {
    float a, b;
};

DEVICE Pair rotated(Pair x, float cos, float sin) {
    return {fmaf(x.a, cos, -(x.b * sin)), fmaf(x.b, cos, x.a * sin)};
}

template <u32 LEN, class T>
DEVICE void rotate_token(
    const T* x, const float* cos, const float* sin, T* y, u32 heads, u32 half, float direction
) {
    for (u32 item = threadIdx.x; item < heads * (half / LEN); item += blockDim.x) {
        const u32 head = item / (half / LEN), at = item % (half / LEN) * LEN;
        const u32 first = head * 2 * half + at, second = first + half;
        float a[LEN], b[LEN];
        load(x + first, a);
        load(x + second, b);
#pragma unroll
        for (u32 i = 0; i < LEN; ++i) {
            const Pair turned = rotated({a[i], b[i]}, cos[at + i], sin[at + i] * direction);
            a[i] = turned.a;
            b[i] = turned.b;
        }
        store(a, y + first);
        store(b, y + second);
    }
}

template <class T>
DEVICE void rotate(
    const T* x, const float* cos, const float* sin, T* y, u32 heads, u32 head_dim, u64 x_stride,
    u64 y_stride, float direction
) {
    const u64 token = blockIdx.x;
    const u32 half = head_dim / 2;
    const bool whole = (half | x_stride | y_stride) % VECTOR<T> == 0;
    x += token * x_stride;
    y += token * y_stride;
    cos += token * half;
    sin += token * half;
    if (whole && all_aligned(x, y)) {
        rotate_token<VECTOR<T>>(x, cos, sin, y, heads, half, direction);
    } else {
        rotate_token<1>(x, cos, sin, y, heads, half, direction);
    }
}

// What the rows of a normed rotation have in common.
template <class T>
struct Normed {
    const float* cos;
    const float* sin;
    const T* weight;
    u32 heads, half;
    float eps, offset;

    DEVICE u64 at(u64 row, u64 stride) const {
        return row / heads * stride + row % heads * 2 * half;
    }

    DEVICE u64 angles(u64 row) const { return row / heads * half; }

    DEVICE float inverse_rms(float square_sum) const {
        return 1.0f / sqrtf(square_sum / static_cast<float>(2 * half) + eps);
    }

    DEVICE Pair factor(u32 i) const {
        return {widen(weight[i]) + offset, widen(weight[i + half]) + offset};
    }

    DEVICE Pair pair(const T* row, u32 i) const { return {widen(row[i]), widen(row[i + half])}; }
};

// A row by a warp.
template <class T>
DEVICE void forward_row(Normed<T> of, const T* x, u64 row, T* y) {
    const u32 lane = threadIdx.x % WARP;
    float square = 0.0f;
    for (u32 i = lane; i < of.half; i += WARP) {
        const Pair value = of.pair(x, i);
        square = fmaf(value.b, value.b, fmaf(value.a, value.a, square));
    }
    const float inv_rms = of.inverse_rms(warp_sum(square));
    const u64 angles = of.angles(row);
    for (u32 i = lane; i < of.half; i += WARP) {
        const Pair value = of.pair(x, i), factor = of.factor(i);
        const Pair normed = {value.a * inv_rms * factor.a, value.b * inv_rms * factor.b};
        const Pair turned = rotated(normed, of.cos[angles + i], of.sin[angles + i]);
        y[i] = narrow<T>(turned.a);
        y[i + of.half] = narrow<T>(turned.b);
    }
}

template <class T>
DEVICE void normed_forward(Normed<T> of, const T* x, T* y, u64 rows, u64 x_stride, u64 y_stride) {
    const u64 row = static_cast<u64>(blockIdx.x) * ROW_WARPS + threadIdx.x / WARP;
    if (row < rows) forward_row(of, x + of.at(row, x_stride), row, y + of.at(row, y_stride));
}

// The gradient of the normed row is `dy` turned back. Each lane owns the dimensions of `dw` that it
// works on.
template <class T>
DEVICE void backward_row(Normed<T> of, const T* x, const T* dy, u64 row, T* d_x, float* dw) {
    const u32 lane = threadIdx.x % WARP;
    const u64 angles = of.angles(row);
    const auto turned_back = [=](u32 i) {
        return rotated(of.pair(dy, i), of.cos[angles + i], -of.sin[angles + i]);
    };
    float square = 0.0f, product = 0.0f;
    for (u32 i = lane; i < of.half; i += WARP) {
        const Pair value = of.pair(x, i), factor = of.factor(i), g = turned_back(i);
        square = fmaf(value.b, value.b, fmaf(value.a, value.a, square));
        product = fmaf(g.b * factor.b, value.b, fmaf(g.a * factor.a, value.a, product));
    }
    const float inv_rms = of.inverse_rms(warp_sum(square));
    const float cubed = inv_rms * inv_rms * inv_rms;
    const float along = warp_sum(product) * cubed / static_cast<float>(2 * of.half);
    for (u32 i = lane; i < of.half; i += WARP) {
        const u32 j = i + of.half;
        const Pair value = of.pair(x, i), factor = of.factor(i), g = turned_back(i);
        if (dw) {
            dw[i] = fmaf(g.a * inv_rms, value.a, dw[i]);
            dw[j] = fmaf(g.b * inv_rms, value.b, dw[j]);
        }
        d_x[i] = narrow<T>(fmaf(-along, value.a, g.a * factor.a * inv_rms));
        d_x[j] = narrow<T>(fmaf(-along, value.b, g.b * factor.b * inv_rms));
    }
}

struct Strides {
    u64 x, dy, d_x;
};

// Rows `blockIdx.x · chunk_rows` and on, every eighth by the same warp.
template <class T>
DEVICE void normed_backward(
    Normed<T> of, const T* x, const T* dy, T* d_x, float* dw_partial, u64 rows, Strides strides,
    u32 chunk_rows
) {
    const u32 warp = threadIdx.x / WARP, head_dim = 2 * of.half;
    float* sums = dw_partial ? dynamic_shared<float>() : nullptr;
    if (sums) {
        for (u32 i = threadIdx.x; i < ROW_WARPS * head_dim; i += blockDim.x) sums[i] = 0.0f;
        __syncthreads();
    }
    const u64 start = static_cast<u64>(blockIdx.x) * chunk_rows;
    const u64 end = start + chunk_rows < rows ? start + chunk_rows : rows;
    for (u64 row = start + warp; row < end; row += ROW_WARPS) {
        float* dw = sums ? sums + warp * head_dim : nullptr;
        const T* of_x = x + of.at(row, strides.x);
        const T* of_dy = dy + of.at(row, strides.dy);
        backward_row(of, of_x, of_dy, row, d_x + of.at(row, strides.d_x), dw);
    }
    if (!sums) return;
    __syncthreads();
    for (u32 i = threadIdx.x; i < head_dim; i += blockDim.x) {
        float sum = sums[i];
        for (u32 other = 1; other < ROW_WARPS; ++other) sum += sums[other * head_dim + i];
        dw_partial[static_cast<u64>(blockIdx.x) * head_dim + i] = sum;
    }
}

#define ROPE(T, suffix)                                                                            \
    extern "C" __global__ void rope_rotate_##suffix(                                               \
        const T* x, const float* cos, const float* sin, T* y, u32 heads, u32 head_dim,             \
        u64 x_stride, u64 y_stride, float direction                                                \
    ) {                                                                                            \
        rotate(x, cos, sin, y, heads, head_dim, x_stride, y_stride, direction);                    \
    }                                                                                              \
    extern "C" __global__ void rope_normed_forward_##suffix(                                       \
        const T* x, const T* weight, const float* cos, const float* sin, T* y, u64 tokens,         \
        u32 heads, u32 head_dim, u64 x_stride, u64 y_stride, float eps, u32 unit_offset            \
    ) {                                                                                            \
        const float offset = unit_offset ? 1.0f : 0.0f;                                            \
        const Normed<T> of = {cos, sin, weight, heads, head_dim / 2, eps, offset};                 \
        normed_forward(of, x, y, tokens * heads, x_stride, y_stride);                              \
    }                                                                                              \
    extern "C" __global__ void rope_normed_backward_##suffix(                                      \
        const T* x, const T* weight, const float* cos, const float* sin, const T* dy, T* d_x,      \
        float* dw_partial, u64 tokens, u32 heads, u32 head_dim, u64 x_stride, u64 dy_stride,       \
        u64 d_x_stride, u32 chunk_rows, float eps, u32 unit_offset                                 \
    ) {                                                                                            \
        const float offset = unit_offset ? 1.0f : 0.0f;                                            \
        const Normed<T> of = {cos, sin, weight, heads, head_dim / 2, eps, offset};                 \
        const Strides strides = {x_stride, dy_stride, d_x_stride};                                 \
        normed_backward(of, x, dy, d_x, dw_partial, tokens * heads, strides, chunk_rows);          \
    }

ROPE(float, f32)
ROPE(bf16, bf16)

extern "C" __global__ void rope_weight_sum(
    const float* dw_partial, float* dw, u64 chunks, u32 head_dim
) {
    column_sums(dw_partial, dw, chunks, head_dim);
}
