// y = x·Wᵀ + b for the few rows of a decode step, where reading W is all the work: it is read once,
// by a warp for each one or two of its rows. The sum of an element of y is taken in an order that I alone
// decides, so a row has the same bits whatever other rows stand beside it.
//
// Legend: x [N, I] and W [O, I] of T, 1 ≤ N ≤ 8; bias [O] of T, or null; y [N, O] of Y. Sums are f32
// and rounded once, the bias included.
//
// launch:
//   kernel      grid             block   shared bytes
//   gemv_T_Y    ⌈O / (4 · P)⌉    128     0
// T, Y: f32_f32, bf16_bf16, bf16_f32. P: outputs of a warp, 1 of a single row of up to 2,048 outputs, so
// that there are warps enough, else 2. workspace: none.

#include "reduce.cuh"

constexpr u32 WARPS = 4;
// Outputs of a single row up to which a warp has one of them, else two.
constexpr u32 FEW_OUTPUTS = 2048;
// Loads of weights that a thread has on their way together.
constexpr u32 LOADS = 8;

template <class T, class Y>
struct Product {
    const T *x, *weight, *bias;
    Y* y;
    u32 rows, inputs, outputs;
};

// A lane's part of DEPTH steps of a warp along the inputs, from input `at` on, all of whose weights are
// on their way before the first is used. Unless WHOLE, what is beyond the inputs counts as zeros.
// ROWS is at least the number of rows; what is more is computed again.
template <u32 DEPTH, bool WHOLE, u32 LEN, u32 OUTPUTS, u32 ROWS, class T, class Y>
DEVICE void add_steps(
    const Product<T, Y>& of, u32 first, u32 at, float (&sums)[OUTPUTS][ROWS]
) {
    Pack<T, LEN> packs[DEPTH][OUTPUTS] = {};
#pragma unroll
    for (u32 i = 0; i < DEPTH * OUTPUTS; ++i) {
        const u32 input = at + i / OUTPUTS * WARP * LEN, output = first + i % OUTPUTS;
        const T* row = of.weight + static_cast<u64>(output < of.outputs ? output : first) * of.inputs;
        if (WHOLE || input < of.inputs) packs[i / OUTPUTS][i % OUTPUTS] = packed<LEN>(row + input);
    }
#pragma unroll
    for (u32 step = 0; step < DEPTH; ++step) {
        const u32 input = at + step * WARP * LEN;
        float w[OUTPUTS][LEN], x[LEN] = {};
#pragma unroll
        for (u32 o = 0; o < OUTPUTS; ++o) widen(packs[step][o], w[o]);
#pragma unroll
        for (u32 n = 0; n < ROWS; ++n) {
            const T* row = of.x + static_cast<u64>(n < of.rows ? n : 0) * of.inputs;
            if (WHOLE || input < of.inputs) load(row + input, x);
#pragma unroll
            for (u32 i = 0; i < LEN * OUTPUTS; ++i) {
                const u32 o = i % OUTPUTS;
                sums[o][n] = fmaf(w[o][i / OUTPUTS], x[i / OUTPUTS], sums[o][n]);
            }
        }
    }
}

template <u32 OUTPUTS, u32 ROWS, u32 LEN, class T, class Y>
DEVICE void multiply(const Product<T, Y>& of, u32 first) {
    constexpr u32 DEPTH = LOADS / OUTPUTS, REST = LOADS / 2;
    constexpr u32 STEP = WARP * LEN;
    const u32 lane = threadIdx.x % WARP;
    float sums[OUTPUTS][ROWS] = {};
    u32 begin = 0;
    for (; begin + DEPTH * STEP <= of.inputs; begin += DEPTH * STEP) {
        add_steps<DEPTH, true, LEN>(of, first, begin + lane * LEN, sums);
    }
    for (; begin < of.inputs; begin += REST * STEP) {
        add_steps<REST, false, LEN>(of, first, begin + lane * LEN, sums);
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

template <u32 OUTPUTS, u32 ROWS, class T, class Y>
DEVICE void multiply_rows(const Product<T, Y>& of) {
    const u32 first = (blockIdx.x * WARPS + threadIdx.x / WARP) * OUTPUTS;
    if (first >= of.outputs) return;
    const bool together = of.inputs % VECTOR<T> == 0 && all_aligned(of.x, of.weight);
    if (together) multiply<OUTPUTS, ROWS, VECTOR<T>>(of, first);
    else multiply<OUTPUTS, ROWS, 1>(of, first);
}

template <class T, class Y>
DEVICE void gemv(const Product<T, Y>& of) {
    if (of.rows > 4) multiply_rows<2, 8>(of);
    else if (of.rows > 2) multiply_rows<2, 4>(of);
    else if (of.rows > 1) multiply_rows<2, 2>(of);
    else if (of.outputs > FEW_OUTPUTS) multiply_rows<2, 1>(of);
    else multiply_rows<1, 1>(of);
}

#define GEMV(T, Y, suffix)                                                                         \
    extern "C" __global__ void __launch_bounds__(WARPS * WARP, 4) gemv_##suffix(                   \
        const T* x, const T* weight, const T* bias, Y* y, u32 rows, u32 inputs, u32 outputs        \
    ) {                                                                                            \
        gemv(Product<T, Y>{x, weight, bias, y, rows, inputs, outputs});                            \
    }

GEMV(float, float, f32_f32)
GEMV(bf16, bf16, bf16_bf16)
GEMV(bf16, float, bf16_f32)
