// The sum of two tensors, a bias added to every row, and the bias's gradient.
//
// Legend: a, b, y: `elements` each; rows of y and dy [N, O]; bias [O]; all of T, f32 or bf16. The
// gradient of the bias is the sum of the columns of dy, [O] in f32.
//
// launch:
//   kernel                       grid                                  block     shared bytes
//   elementwise_add_T            ⌈elements / (256 · 16 / sizeof T)⌉    256       0
//   elementwise_add_bias_T       N                                     THREADS   0
//   elementwise_bias_partial_T   (⌈O / 32⌉, ⌈N / chunk_rows⌉)          512       0
//   elementwise_bias_sum         ⌈O / 32⌉                              512       0
// THREADS: O / (16 / sizeof T) rounded up to whole warps, at least 32 and at most 512. y may be a or
// b. chunk_rows is 512; it decides the order of the sum, so it must not depend on the device.
// workspace: partial, f32 [⌈N / chunk_rows⌉, O], which elementwise_bias_sum adds up.

#include "column_sums.cuh"
#include "packs.cuh"

template <class T>
struct Add {
    const T *a, *b;
    T* y;

    template <u32 LEN>
    DEVICE void run(u64 at) const {
        float x[LEN], other[LEN];
        load(a + at, x);
        load(b + at, other);
#pragma unroll
        for (u32 i = 0; i < LEN; ++i) x[i] += other[i];
        store(x, y + at);
    }
};

template <u32 LEN, class T>
DEVICE void add_to_row(T* row, const T* bias, u32 width) {
    for (u32 at = threadIdx.x * LEN; at < width; at += blockDim.x * LEN) {
        float x[LEN], added[LEN];
        load(row + at, x);
        load(bias + at, added);
#pragma unroll
        for (u32 i = 0; i < LEN; ++i) x[i] += added[i];
        store(x, row + at);
    }
}

template <class T>
DEVICE void add_bias(T* y, const T* bias, u32 width) {
    T* row = y + static_cast<u64>(blockIdx.x) * width;
    if (width % VECTOR<T> == 0 && all_aligned(y, bias)) {
        add_to_row<VECTOR<T>>(row, bias, width);
    } else {
        add_to_row<1>(row, bias, width);
    }
}

// Columns of `chunk_rows` rows.
template <class T>
DEVICE void bias_partial(const T* dy, float* partial, u64 rows, u32 width, u32 chunk_rows) {
    const u64 chunk = blockIdx.y, first = chunk * chunk_rows;
    const u64 left = rows - first;
    const u64 own = left < chunk_rows ? left : chunk_rows;
    column_sums(dy + first * width, partial + chunk * width, own, width);
}

#define ELEMENTWISE(T, suffix)                                                                     \
    extern "C" __global__ void elementwise_add_##suffix(                                           \
        const T* a, const T* b, T* y, u64 elements                                                 \
    ) {                                                                                            \
        each_pack<T>(elements, all_aligned(a, b, y), Add<T>{a, b, y});                             \
    }                                                                                              \
    extern "C" __global__ void elementwise_add_bias_##suffix(T* y, const T* bias, u32 width) {     \
        add_bias(y, bias, width);                                                                  \
    }                                                                                              \
    extern "C" __global__ void elementwise_bias_partial_##suffix(                                  \
        const T* dy, float* partial, u64 rows, u32 width, u32 chunk_rows                           \
    ) {                                                                                            \
        bias_partial(dy, partial, rows, width, chunk_rows);                                        \
    }

ELEMENTWISE(float, f32)
ELEMENTWISE(bf16, bf16)

extern "C" __global__ void elementwise_bias_sum(
    const float* partial, float* d_bias, u64 chunks, u32 width
) {
    column_sums(partial, d_bias, chunks, width);
}
