// The norm of the heads and rotary position embedding in one pass (rms_norm.cu, rope.cu), with nothing
// rounded in between.
//
// Legend: x, y, dy, d_x [N, H, D] of T, f32 or bf16, each with its own stride from token to token, in
// elements (H · D where it is contiguous), heads of a token next to each other; cos, sin [N, D/2] in
// f32; weight [D] of T. A row is one head of one token; row r is head r mod H of token r / H.
//
// launch:
//   kernel                    grid                   block        shared bytes
//   rope_normed_forward_T     ⌈rows / chunk_rows⌉    256          0
//   rope_normed_backward_T    ⌈rows / chunk_rows⌉    256          32 · D if dw_partial
//   rope_normed_weight_sum    ⌈D / 32⌉               512          0
// rows: N · H, below 2³². chunk_rows: rows that a block works on; with dw_partial it decides the order of
// a sum, so it must not depend on the device. y may be x and d_x may be dy or x, where the strides are
// the same.
// workspace: dw_partial, f32 [⌈rows / chunk_rows⌉, D], where the weight's gradient is wanted;
// rope_normed_weight_sum adds up its rows: chunks = ⌈rows / chunk_rows⌉.
//
// A few lanes of a warp share a row: each keeps 16 bytes of either half in registers, and the norm's
// weight for all of its rows. Heads that cannot be read so are each a warp's, element by element.

#include "column_sums.cuh"
#include "reduce.cuh"
#include "rotation.cuh"

constexpr u32 WARPS = 8;

// What all rows have in common.
template <class T>
struct Normed {
    const float* cos;
    const float* sin;
    const T* weight;
    u32 heads, half;
    float eps, offset;

    DEVICE u64 at(u32 row, u64 stride) const {
        return row / heads * stride + row % heads * 2 * half;
    }

    DEVICE u64 angles(u32 row) const { return static_cast<u64>(row / heads) * half; }

    DEVICE float mean(float sum) const { return sum * (0.5f / static_cast<float>(half)); }

    DEVICE float inverse_rms(float square_sum) const {
        return 1.0f / sqrtf(mean(square_sum) + eps);
    }

    // Whether rows with these strides can be read 16 bytes at a time, a row by no more than a warp.
    template <class... Pointers>
    DEVICE bool whole(u64 strides, Pointers... rows) const {
        return (half | strides) % VECTOR<T> == 0 && half / VECTOR<T> <= WARP &&
               all_aligned(cos, sin, weight, rows...);
    }
};

// The rows of a block.
struct Chunk {
    u32 start, end;

    DEVICE Chunk(u32 rows, u32 chunk_rows) : start(blockIdx.x * chunk_rows) {
        end = rows - start < chunk_rows ? rows : start + chunk_rows;
    }
};

// LEN pairs of a row.
template <u32 LEN>
struct Pairs {
    float a[LEN], b[LEN];

    template <class T>
    DEVICE void read(const T* row, u32 half) {
        load(row, a);
        load(row + half, b);
    }

    template <class T>
    DEVICE void write(T* row, u32 half) const {
        store(a, row);
        store(b, row + half);
    }

    DEVICE void fill(float value) {
#pragma unroll
        for (u32 i = 0; i < LEN; ++i) a[i] = b[i] = value;
    }
};

// The lanes that share a row, a power of two of them, and the pairs of this one.
template <u32 LEN>
struct Share {
    u32 lanes, first;
    bool has_any;

    DEVICE explicit Share(u32 half) : lanes(1) {
        while (lanes * LEN < half) lanes *= 2;
        first = threadIdx.x % lanes * LEN;
        has_any = first < half;
    }

    // Rows that a block works on at a time.
    DEVICE u32 rows() const { return blockDim.x / lanes; }

    // Which of them is this thread's.
    DEVICE u32 row() const { return threadIdx.x / lanes; }

    DEVICE float sum(float x) const {
        for (u32 lane = lanes / 2; lane > 0; lane /= 2) x += __shfl_xor_sync(ALL_LANES, x, lane);
        return x;
    }

    // Over the rows of a warp.
    DEVICE float sum_of_rows(float x) const {
        for (u32 lane = lanes; lane < WARP; lane *= 2) x += __shfl_xor_sync(ALL_LANES, x, lane);
        return x;
    }

    template <class T>
    DEVICE Pairs<LEN> factor(Normed<T> of) const {
        Pairs<LEN> factor;
        factor.fill(0.0f);
        if (has_any) factor.read(of.weight + first, of.half);
#pragma unroll
        for (u32 i = 0; i < LEN; ++i) {
            factor.a[i] += of.offset;
            factor.b[i] += of.offset;
        }
        return factor;
    }
};

template <u32 LEN, class T>
DEVICE void forward_rows(Normed<T> of, const T* x, T* y, Chunk chunk, u64 x_stride, u64 y_stride) {
    const Share<LEN> share(of.half);
    const Pairs<LEN> factor = share.factor(of);
    for (u32 next = chunk.start; next < chunk.end; next += share.rows()) {
        const u32 row = next + share.row();
        const bool works = share.has_any && row < chunk.end;
        Pairs<LEN> value;
        value.fill(0.0f);
        if (works) value.read(x + of.at(row, x_stride) + share.first, of.half);
        float square = 0.0f;
#pragma unroll
        for (u32 i = 0; i < LEN; ++i) {
            square = fmaf(value.b[i], value.b[i], fmaf(value.a[i], value.a[i], square));
        }
        const float inv_rms = of.inverse_rms(share.sum(square));
        if (!works) continue;
        float cos[LEN], sin[LEN];
        load_angles(of.cos + of.angles(row) + share.first, cos);
        load_angles(of.sin + of.angles(row) + share.first, sin);
#pragma unroll
        for (u32 i = 0; i < LEN; ++i) {
            const float a = value.a[i] * inv_rms * factor.a[i];
            const float b = value.b[i] * inv_rms * factor.b[i];
            const Pair turned = rotated({a, b}, cos[i], sin[i]);
            value.a[i] = turned.a;
            value.b[i] = turned.b;
        }
        value.write(y + of.at(row, y_stride) + share.first, of.half);
    }
}

struct Strides {
    u64 x, dy, d_x;
};

// The gradient of the normed rows is `dy` turned back. Adds up what the rows of a warp say of the weight in
// the warp's row of `sums [WARPS, D]`, unless that is null.
template <u32 LEN, class T>
DEVICE void backward_rows(
    Normed<T> of, const T* x, const T* dy, T* d_x, float* sums, Chunk chunk, Strides strides
) {
    const Share<LEN> share(of.half);
    const Pairs<LEN> factor = share.factor(of);
    Pairs<LEN> dw;
    dw.fill(0.0f);
    for (u32 next = chunk.start; next < chunk.end; next += share.rows()) {
        const u32 row = next + share.row();
        const bool works = share.has_any && row < chunk.end;
        Pairs<LEN> value, gradient;
        value.fill(0.0f);
        gradient.fill(0.0f);
        if (works) {
            value.read(x + of.at(row, strides.x) + share.first, of.half);
            gradient.read(dy + of.at(row, strides.dy) + share.first, of.half);
            float cos[LEN], sin[LEN];
            load_angles(of.cos + of.angles(row) + share.first, cos);
            load_angles(of.sin + of.angles(row) + share.first, sin);
#pragma unroll
            for (u32 i = 0; i < LEN; ++i) {
                const Pair back = rotated({gradient.a[i], gradient.b[i]}, cos[i], -sin[i]);
                gradient.a[i] = back.a;
                gradient.b[i] = back.b;
            }
        }
        float square = 0.0f, product = 0.0f;
#pragma unroll
        for (u32 i = 0; i < LEN; ++i) {
            square = fmaf(value.b[i], value.b[i], fmaf(value.a[i], value.a[i], square));
            product = fmaf(gradient.a[i] * factor.a[i], value.a[i], product);
            product = fmaf(gradient.b[i] * factor.b[i], value.b[i], product);
        }
        const float inv_rms = of.inverse_rms(share.sum(square));
        const float along = of.mean(share.sum(product) * inv_rms * inv_rms * inv_rms);
        if (!works) continue;
#pragma unroll
        for (u32 i = 0; i < LEN; ++i) {
            const float a = gradient.a[i] * inv_rms, b = gradient.b[i] * inv_rms;
            dw.a[i] = fmaf(a, value.a[i], dw.a[i]);
            dw.b[i] = fmaf(b, value.b[i], dw.b[i]);
            value.a[i] = fmaf(-along, value.a[i], a * factor.a[i]);
            value.b[i] = fmaf(-along, value.b[i], b * factor.b[i]);
        }
        value.write(d_x + of.at(row, strides.d_x) + share.first, of.half);
    }
    if (!sums) return;
    const bool writes = threadIdx.x % WARP < share.lanes && share.has_any;
#pragma unroll
    for (u32 i = 0; i < LEN; ++i) {
        const float a = share.sum_of_rows(dw.a[i]), b = share.sum_of_rows(dw.b[i]);
        if (!writes) continue;
        sums[share.first + i] = a;
        sums[share.first + i + of.half] = b;
    }
}

// A row by a warp, its elements one by one.
template <class T>
DEVICE void forward_row(Normed<T> of, const T* x, u32 row, T* y) {
    const u32 lane = threadIdx.x % WARP;
    float square = 0.0f;
    for (u32 i = lane; i < 2 * of.half; i += WARP) square = fmaf(widen(x[i]), widen(x[i]), square);
    const float inv_rms = of.inverse_rms(warp_sum(square));
    const u64 angles = of.angles(row);
    for (u32 i = lane; i < of.half; i += WARP) {
        const u32 j = i + of.half;
        const float a = widen(x[i]) * inv_rms * (widen(of.weight[i]) + of.offset);
        const float b = widen(x[j]) * inv_rms * (widen(of.weight[j]) + of.offset);
        const Pair turned = rotated({a, b}, of.cos[angles + i], of.sin[angles + i]);
        y[i] = narrow<T>(turned.a);
        y[j] = narrow<T>(turned.b);
    }
}

// Each lane owns the dimensions of `dw` that it works on.
template <class T>
DEVICE void backward_row(Normed<T> of, const T* x, const T* dy, u32 row, T* d_x, float* dw) {
    const u32 lane = threadIdx.x % WARP;
    const u64 angles = of.angles(row);
    const auto turned_back = [=](u32 i) {
        const Pair pair = {widen(dy[i]), widen(dy[i + of.half])};
        return rotated(pair, of.cos[angles + i], -of.sin[angles + i]);
    };
    const auto factor = [=](u32 i) { return widen(of.weight[i]) + of.offset; };
    float square = 0.0f, product = 0.0f;
    for (u32 i = lane; i < of.half; i += WARP) {
        const u32 j = i + of.half;
        const Pair value = {widen(x[i]), widen(x[j])}, g = turned_back(i);
        square = fmaf(value.b, value.b, fmaf(value.a, value.a, square));
        product = fmaf(g.b * factor(j), value.b, fmaf(g.a * factor(i), value.a, product));
    }
    const float inv_rms = of.inverse_rms(warp_sum(square));
    const float along = of.mean(warp_sum(product) * inv_rms * inv_rms * inv_rms);
    for (u32 i = lane; i < of.half; i += WARP) {
        const u32 j = i + of.half;
        const Pair value = {widen(x[i]), widen(x[j])}, g = turned_back(i);
        if (dw) {
            dw[i] = fmaf(g.a * inv_rms, value.a, dw[i]);
            dw[j] = fmaf(g.b * inv_rms, value.b, dw[j]);
        }
        d_x[i] = narrow<T>(fmaf(-along, value.a, g.a * inv_rms * factor(i)));
        d_x[j] = narrow<T>(fmaf(-along, value.b, g.b * inv_rms * factor(j)));
    }
}

template <class T>
DEVICE void forward(
    Normed<T> of, const T* x, T* y, Chunk chunk, u64 x_stride, u64 y_stride
) {
    if (of.whole(x_stride | y_stride, x, y)) {
        return forward_rows<VECTOR<T>>(of, x, y, chunk, x_stride, y_stride);
    }
    for (u32 row = chunk.start + threadIdx.x / WARP; row < chunk.end; row += WARPS) {
        forward_row(of, x + of.at(row, x_stride), row, y + of.at(row, y_stride));
    }
}

template <class T>
DEVICE void backward(
    Normed<T> of, const T* x, const T* dy, T* d_x, float* dw_partial, Chunk chunk, Strides strides
) {
    const u32 warp = threadIdx.x / WARP, head_dim = 2 * of.half;
    float* sums = dw_partial ? dynamic_shared<float>() : nullptr;
    float* of_warp = sums ? sums + warp * head_dim : nullptr;
    if (of.whole(strides.x | strides.dy | strides.d_x, x, dy, d_x)) {
        backward_rows<VECTOR<T>>(of, x, dy, d_x, of_warp, chunk, strides);
    } else {
        for (u32 i = threadIdx.x % WARP; sums && i < head_dim; i += WARP) of_warp[i] = 0.0f;
        __syncwarp();
        for (u32 row = chunk.start + warp; row < chunk.end; row += WARPS) {
            const T* of_x = x + of.at(row, strides.x);
            const T* of_dy = dy + of.at(row, strides.dy);
            backward_row(of, of_x, of_dy, row, d_x + of.at(row, strides.d_x), of_warp);
        }
    }
    if (!sums) return;
    __syncthreads();
    for (u32 i = threadIdx.x; i < head_dim; i += blockDim.x) {
        float sum = sums[i];
        for (u32 other = 1; other < WARPS; ++other) sum += sums[other * head_dim + i];
        dw_partial[static_cast<u64>(blockIdx.x) * head_dim + i] = sum;
    }
}

#define ROPE_NORMED(T, suffix)                                                                     \
    extern "C" __global__ void rope_normed_forward_##suffix(                                       \
        const T* x, const T* weight, const float* cos, const float* sin, T* y, u32 rows,           \
        u32 heads, u32 head_dim, u64 x_stride, u64 y_stride, u32 chunk_rows, float eps,            \
        u32 unit_offset                                                                            \
    ) {                                                                                            \
        const float offset = unit_offset ? 1.0f : 0.0f;                                            \
        const Normed<T> of = {cos, sin, weight, heads, head_dim / 2, eps, offset};                 \
        forward(of, x, y, Chunk(rows, chunk_rows), x_stride, y_stride);                            \
    }                                                                                              \
    extern "C" __global__ void rope_normed_backward_##suffix(                                      \
        const T* x, const T* weight, const float* cos, const float* sin, const T* dy, T* d_x,      \
        float* dw_partial, u32 rows, u32 heads, u32 head_dim, u64 x_stride, u64 dy_stride,         \
        u64 d_x_stride, u32 chunk_rows, float eps, u32 unit_offset                                 \
    ) {                                                                                            \
        const float offset = unit_offset ? 1.0f : 0.0f;                                            \
        const Normed<T> of = {cos, sin, weight, heads, head_dim / 2, eps, offset};                 \
        const Strides strides = {x_stride, dy_stride, d_x_stride};                                 \
        backward(of, x, dy, d_x, dw_partial, Chunk(rows, chunk_rows), strides);                    \
    }

ROPE_NORMED(float, f32)
ROPE_NORMED(bf16, bf16)

extern "C" __global__ void rope_normed_weight_sum(
    const float* dw_partial, float* dw, u64 chunks, u32 head_dim
) {
    column_sums(dw_partial, dw, chunks, head_dim);
}
