// Sums and maxima over a warp or a block, in an order that the number of threads alone decides.
// Every thread gets the result. Blocks are of whole warps.
#pragma once

#include "common.cuh"

template <class T>
DEVICE T warp_sum(T x) {
#pragma unroll
    for (u32 lane = WARP / 2; lane > 0; lane /= 2) x += __shfl_xor_sync(ALL_LANES, x, lane);
    return x;
}

DEVICE float warp_max(float x) {
#pragma unroll
    for (u32 lane = WARP / 2; lane > 0; lane /= 2) {
        x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, lane));
    }
    return x;
}

// The sums of N values at a time.
template <u32 N, class T>
DEVICE void block_sums(T (&x)[N]) {
    __shared__ T of_warp[N][WARP];
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
#pragma unroll
    for (u32 n = 0; n < N; ++n) {
        x[n] = warp_sum(x[n]);
        if (lane == 0) of_warp[n][warp] = x[n];
    }
    __syncthreads();
#pragma unroll
    for (u32 n = 0; n < N; ++n) {
        x[n] = warp_sum(lane < blockDim.x / WARP ? of_warp[n][lane] : T(0));
    }
    // Before anyone writes to the shared memory again.
    __syncthreads();
}
