// Root-mean-square norm of rows (Zhang and Sennrich 2019, eq. 4), also of a sum, and its backward pass.
//
// Legend: x, added, sum, y, dy, dx, residual [rows, width]; weight [width]; T is f32 or bf16, the same for all
// of them. With the factor w = weight (1 + weight where `unit_offset`), x̂ = x / rms(x), g = dy · w:
//   y  = x · (1 / √(mean(x²) + eps)) · w, of sum = x + added, rounded to T, in the place of x in
//        rms_norm_forward_add_T
//   dx = (g − x̂ · mean(g · x̂)) / rms(x), plus residual where there is one, rounded once
//   dw = Σ_rows dy · x̂, in f32
//
// launch:
//   kernel                        grid                         block          shared bytes
//   rms_norm_forward_T            rows                         THREADS        0
//   rms_norm_forward_add_T        rows                         THREADS        0
//   rms_norm_backward_T           ⌈rows / chunk_rows⌉          THREADS        4 · width if dw_partial
//   rms_norm_weight_sum           ⌈width / 32⌉                 512            0
// THREADS: width / (16 / sizeof T) rounded up to whole warps, at least 32 and at most 512.
// chunk_rows: 1 without dw_partial, else 16; it decides the order of the sum, so it must not depend
// on the device. More than 48 KiB of shared memory (width > 12,288) must be allowed for first.
// workspace: dw_partial, f32 [⌈rows / chunk_rows⌉, width], where the weight's gradient is wanted.
// rms_norm_weight_sum then adds up its rows: chunks = ⌈rows / chunk_rows⌉.

#include "column_sums.cuh"
#include "reduce.cuh"

DEVICE float inverse_rms(float square_sum, u32 width, float eps) {
    return 1.0f / sqrtf(square_sum / static_cast<float>(width) + eps);
}

template <u32 LEN, class T>
DEVICE void load_factor(const T* weight, float offset, float (&factor)[LEN]) {
    load(weight, factor);
#pragma unroll
    for (u32 i = 0; i < LEN; ++i) factor[i] += offset;
}

// A part of y, of the same of what is normed.
template <u32 LEN, class T>
DEVICE void scale_part(float (&values)[LEN], const T* weight, T* y, float inv_rms, float offset) {
    float factor[LEN];
    load_factor(weight, offset, factor);
#pragma unroll
    for (u32 i = 0; i < LEN; ++i) values[i] = values[i] * inv_rms * factor[i];
    store(values, y);
}

template <u32 LEN, class T>
DEVICE void forward_row(const T* x, const T* weight, T* y, u32 width, float eps, float offset) {
    float square[1] = {0.0f};
    float values[LEN];
    for (u32 at = threadIdx.x * LEN; at < width; at += blockDim.x * LEN) {
        load(x + at, values);
#pragma unroll
        for (u32 i = 0; i < LEN; ++i) square[0] = fmaf(values[i], values[i], square[0]);
    }
    block_sums(square);
    const float inv_rms = inverse_rms(square[0], width, eps);
    for (u32 at = threadIdx.x * LEN; at < width; at += blockDim.x * LEN) {
        load(x + at, values);
        scale_part(values, weight + at, y + at, inv_rms, offset);
    }
}

template <class T>
DEVICE void forward(const T* x, const T* weight, T* y, u32 width, float eps, u32 unit_offset) {
    const u64 row = static_cast<u64>(blockIdx.x) * width;
    const float offset = unit_offset ? 1.0f : 0.0f;
    if (width % VECTOR<T> == 0 && all_aligned(x, weight, y)) {
        forward_row<VECTOR<T>>(x + row, weight, y + row, width, eps, offset);
    } else {
        forward_row<1>(x + row, weight, y + row, width, eps, offset);
    }
}

// A part of a row of x + added, rounded as it is stored, and what it has of Σ sum².
template <u32 LEN, class T>
DEVICE void add_part(const T* x, const T* added, T* sum, float (&values)[LEN], float& square) {
    float other[LEN];
    load(x, values);
    load(added, other);
#pragma unroll
    for (u32 i = 0; i < LEN; ++i) {
        values[i] = widen(narrow<T>(values[i] + other[i]));
        square = fmaf(values[i], values[i], square);
    }
    store(values, sum);
}

// A thread's first part of the row, which in most rows is its only one, stays in registers.
template <u32 LEN, class T>
DEVICE void forward_add_row(
    const T* x, const T* added, const T* weight, T* sum, T* y, u32 width, float eps, float offset
) {
    const u32 first = threadIdx.x * LEN, stride = blockDim.x * LEN;
    float square[1] = {0.0f};
    float kept[LEN] = {}, values[LEN];
    if (first < width) add_part(x + first, added + first, sum + first, kept, square[0]);
    for (u32 at = first + stride; at < width; at += stride) {
        add_part(x + at, added + at, sum + at, values, square[0]);
    }
    block_sums(square);
    const float inv_rms = inverse_rms(square[0], width, eps);
    if (first < width) scale_part(kept, weight + first, y + first, inv_rms, offset);
    for (u32 at = first + stride; at < width; at += stride) {
        load(sum + at, values);
        scale_part(values, weight + at, y + at, inv_rms, offset);
    }
}

template <class T>
DEVICE void forward_add(
    const T* x, const T* added, const T* weight, T* sum, T* y, u32 width, float eps, u32 unit_offset
) {
    const u64 row = static_cast<u64>(blockIdx.x) * width;
    const float offset = unit_offset ? 1.0f : 0.0f;
    if (width % VECTOR<T> == 0 && all_aligned(x, added, weight, sum, y)) {
        forward_add_row<VECTOR<T>>(
            x + row, added + row, weight, sum + row, y + row, width, eps, offset
        );
    } else {
        forward_add_row<1>(x + row, added + row, weight, sum + row, y + row, width, eps, offset);
    }
}

// Adds what a thread knows of Σ x² and Σ dy · w · x.
template <u32 LEN>
DEVICE void add_sums(
    const float (&x)[LEN], const float (&dy)[LEN], const float (&factor)[LEN], float (&sums)[2]
) {
#pragma unroll
    for (u32 i = 0; i < LEN; ++i) {
        sums[0] = fmaf(x[i], x[i], sums[0]);
        sums[1] = fmaf(dy[i] * factor[i], x[i], sums[1]);
    }
}

// A row of the inputs of the backward pass; `residual` may be null.
template <class T>
struct Row {
    const T* x;
    const T* dy;
    const T* residual;
    T* dx;
};

// Adds the row's gradient of the weight to `dw`, of which each thread owns the columns that it
// works on, unless that is null.
template <u32 LEN, class T>
DEVICE void backward_row(Row<T> row, const T* weight, float* dw, u32 width, float eps, float offset) {
    float sums[2] = {0.0f, 0.0f};
    float x[LEN], dy[LEN], factor[LEN], added[LEN];
    for (u32 at = threadIdx.x * LEN; at < width; at += blockDim.x * LEN) {
        load(row.x + at, x);
        load(row.dy + at, dy);
        load_factor(weight + at, offset, factor);
        add_sums(x, dy, factor, sums);
    }
    block_sums(sums);
    const float inv_rms = inverse_rms(sums[0], width, eps);
    const float along = sums[1] * inv_rms * inv_rms * inv_rms / static_cast<float>(width);
    for (u32 at = threadIdx.x * LEN; at < width; at += blockDim.x * LEN) {
        load(row.x + at, x);
        load(row.dy + at, dy);
        load_factor(weight + at, offset, factor);
#pragma unroll
        for (u32 i = 0; i < LEN; ++i) added[i] = 0.0f;
        if (row.residual) load(row.residual + at, added);
        if (dw) {
#pragma unroll
            for (u32 i = 0; i < LEN; ++i) dw[at + i] = fmaf(dy[i] * inv_rms, x[i], dw[at + i]);
        }
#pragma unroll
        for (u32 i = 0; i < LEN; ++i) {
            dy[i] = fmaf(-along, x[i], fmaf(dy[i] * factor[i], inv_rms, added[i]));
        }
        store(dy, row.dx + at);
    }
}

// Rows `blockIdx.x · chunk_rows` and on.
template <u32 LEN, class T>
DEVICE void backward_chunk(
    Row<T> first, const T* weight, float* dw_partial, u64 rows, u32 width, u32 chunk_rows, float eps,
    float offset
) {
    float* dw = dw_partial ? dynamic_shared<float>() : nullptr;
    if (dw) {
        for (u32 at = threadIdx.x * LEN; at < width; at += blockDim.x * LEN) {
#pragma unroll
            for (u32 i = 0; i < LEN; ++i) dw[at + i] = 0.0f;
        }
    }
    const u64 start = static_cast<u64>(blockIdx.x) * chunk_rows;
    const u64 end = start + chunk_rows < rows ? start + chunk_rows : rows;
    for (u64 row = start; row < end; ++row) {
        const u64 at = row * width;
        const T* residual = first.residual ? first.residual + at : nullptr;
        const Row<T> of_row = {first.x + at, first.dy + at, residual, first.dx + at};
        backward_row<LEN>(of_row, weight, dw, width, eps, offset);
    }
    if (dw) {
        float* to = dw_partial + static_cast<u64>(blockIdx.x) * width;
        for (u32 at = threadIdx.x * LEN; at < width; at += blockDim.x * LEN) {
#pragma unroll
            for (u32 i = 0; i < LEN; ++i) to[at + i] = dw[at + i];
        }
    }
}

// The same where no thread has more than one load of a row: then it keeps its part of the weight, and its
// sums, from row to row.
template <u32 LEN, class T>
DEVICE void backward_narrow_chunk(
    Row<T> first, const T* weight, float* dw_partial, u64 rows, u32 width, u32 chunk_rows, float eps,
    float offset
) {
    const u32 at = threadIdx.x * LEN;
    const bool works = at < width;
    float factor[LEN] = {}, dw[LEN] = {};
    if (works) load_factor(weight + at, offset, factor);
    const u64 start = static_cast<u64>(blockIdx.x) * chunk_rows;
    const u64 end = start + chunk_rows < rows ? start + chunk_rows : rows;
    for (u64 row = start; row < end; ++row) {
        const u64 place = row * width + at;
        float x[LEN] = {}, dy[LEN] = {}, added[LEN] = {};
        if (works) {
            load(first.x + place, x);
            load(first.dy + place, dy);
            if (first.residual) load(first.residual + place, added);
        }
        float sums[2] = {0.0f, 0.0f};
        add_sums(x, dy, factor, sums);
        block_sums(sums);
        const float inv_rms = inverse_rms(sums[0], width, eps);
        const float along = sums[1] * inv_rms * inv_rms * inv_rms / static_cast<float>(width);
        if (!works) continue;
#pragma unroll
        for (u32 i = 0; i < LEN; ++i) {
            dw[i] = fmaf(dy[i] * inv_rms, x[i], dw[i]);
            dy[i] = fmaf(-along, x[i], fmaf(dy[i] * factor[i], inv_rms, added[i]));
        }
        store(dy, first.dx + place);
    }
    if (dw_partial && works) {
        float* to = dw_partial + static_cast<u64>(blockIdx.x) * width + at;
#pragma unroll
        for (u32 i = 0; i < LEN; ++i) to[i] = dw[i];
    }
}

template <class T>
DEVICE void backward(
    Row<T> first, const T* weight, float* dw_partial, u64 rows, u32 width, u32 chunk_rows, float eps,
    u32 unit_offset
) {
    const float offset = unit_offset ? 1.0f : 0.0f;
    const bool together = all_aligned(first.x, first.dy, first.residual, first.dx, weight);
    if (width % VECTOR<T> == 0 && together && width <= blockDim.x * VECTOR<T>) {
        backward_narrow_chunk<VECTOR<T>>(
            first, weight, dw_partial, rows, width, chunk_rows, eps, offset
        );
    } else if (width % VECTOR<T> == 0 && together) {
        backward_chunk<VECTOR<T>>(first, weight, dw_partial, rows, width, chunk_rows, eps, offset);
    } else {
        backward_chunk<1>(first, weight, dw_partial, rows, width, chunk_rows, eps, offset);
    }
}

#define RMS_NORM(T, suffix)                                                                        \
    extern "C" __global__ void rms_norm_forward_##suffix(                                          \
        const T* x, const T* weight, T* y, u32 width, float eps, u32 unit_offset                   \
    ) {                                                                                            \
        forward(x, weight, y, width, eps, unit_offset);                                            \
    }                                                                                              \
    extern "C" __global__ void rms_norm_forward_add_##suffix(                                      \
        const T* x, const T* added, const T* weight, T* sum, T* y, u32 width, float eps,           \
        u32 unit_offset                                                                            \
    ) {                                                                                            \
        forward_add(x, added, weight, sum, y, width, eps, unit_offset);                            \
    }                                                                                              \
    extern "C" __global__ void rms_norm_backward_##suffix(                                         \
        const T* x, const T* weight, const T* dy, const T* residual, T* dx, float* dw_partial,     \
        u64 rows, u32 width, u32 chunk_rows, float eps, u32 unit_offset                            \
    ) {                                                                                            \
        const Row<T> first = {x, dy, residual, dx};                                                \
        backward(first, weight, dw_partial, rows, width, chunk_rows, eps, unit_offset);            \
    }

RMS_NORM(float, f32)
RMS_NORM(bf16, bf16)

extern "C" __global__ void rms_norm_weight_sum(
    const float* dw_partial, float* dw, u64 chunks, u32 width
) {
    column_sums(dw_partial, dw, chunks, width);
}
