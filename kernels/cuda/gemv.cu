// y = x·Wᵀ + b for the few rows of a decode step, where reading W is all the work: it is read once,
// by a warp for each two of its rows. The sum of an element of y is taken in an order that I alone
// decides, so a row has the same bits whatever other rows stand beside it.
//
// Legend: x [N, I] and W [O, I] of T, 1 ≤ N ≤ 8; bias [O] of T, or null; y [N, O] of Y. Sums are f32
// and rounded once, the bias included.
//
// launch:
//   kernel      grid         block   shared bytes
//   gemv_T_Y    ⌈O / 8⌉      128     0
// T, Y: f32_f32, bf16_bf16, bf16_f32. workspace: none.

#include "reduce.cuh"

constexpr u32 WARPS = 4;
// Outputs of a warp.
constexpr u32 OUTPUTS = 2;

template <class T, class Y>
struct Product {
    const T *x, *weight, *bias;
    Y* y;
    u32 rows, inputs, outputs;
};

// ROWS is at least the number of rows; what is more is computed again and not stored.
template <u32 ROWS, u32 LEN, class T, class Y>
DEVICE void multiply(const Product<T, Y>& of, u32 first) {
    float sums[OUTPUTS][ROWS] = {};
    const u32 lane = threadIdx.x % WARP;
    for (u32 at = lane * LEN; at < of.inputs; at += WARP * LEN) {
        float w[OUTPUTS][LEN], x[LEN];
#pragma unroll
        for (u32 o = 0; o < OUTPUTS; ++o) {
            const u32 output = first + o < of.outputs ? first + o : first;
            load(of.weight + static_cast<u64>(output) * of.inputs + at, w[o]);
        }
#pragma unroll
        for (u32 n = 0; n < ROWS; ++n) {
            load(of.x + static_cast<u64>(n < of.rows ? n : 0) * of.inputs + at, x);
#pragma unroll
            for (u32 i = 0; i < LEN * OUTPUTS; ++i) {
                const u32 o = i % OUTPUTS;
                sums[o][n] = fmaf(w[o][i / OUTPUTS], x[i / OUTPUTS], sums[o][n]);
            }
        }
    }
#pragma unroll
    for (u32 o = 0; o < OUTPUTS; ++o) {
#pragma unroll
        for (u32 n = 0; n < ROWS; ++n) {
            const float sum = warp_sum(sums[o][n]);
            if (lane != 0 || first + o >= of.outputs || n >= of.rows) continue;
            const float bias = of.bias ? widen(of.bias[first + o]) : 0.0f;
            of.y[static_cast<u64>(n) * of.outputs + first + o] = narrow<Y>(sum + bias);
        }
    }
}

template <class T, class Y>
DEVICE void gemv(const Product<T, Y>& of) {
    const u32 first = (blockIdx.x * WARPS + threadIdx.x / WARP) * OUTPUTS;
    if (first >= of.outputs) return;
    const bool together = of.inputs % VECTOR<T> == 0 && all_aligned(of.x, of.weight);
    if (!together) multiply<8, 1>(of, first);
    else if (of.rows > 4) multiply<8, VECTOR<T>>(of, first);
    else if (of.rows > 2) multiply<4, VECTOR<T>>(of, first);
    else if (of.rows > 1) multiply<2, VECTOR<T>>(of, first);
    else multiply<1, VECTOR<T>>(of, first);
}

#define GEMV(T, Y, suffix)                                                                         \
    extern "C" __global__ void gemv_##suffix(                                                      \
        const T* x, const T* weight, const T* bias, Y* y, u32 rows, u32 inputs, u32 outputs        \
    ) {                                                                                            \
        gemv(Product<T, Y>{x, weight, bias, y, rows, inputs, outputs});                            \
    }

GEMV(float, float, f32_f32)
GEMV(bf16, bf16, bf16_bf16)
GEMV(bf16, float, bf16_f32)
