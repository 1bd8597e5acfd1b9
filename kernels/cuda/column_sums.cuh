// Sums of columns in a fixed order, for gradients of what all rows share.
#pragma once

#include "common.cuh"

constexpr u32 COLUMN_WARPS = 16;

// The sum over the rows of `from [rows, width]`, for the 32 columns of a block of 512 threads: each of
// its 16 warps adds every 16th row, then their sums are added one after the other.
template <class T>
DEVICE void column_sums(const T* from, float* to, u64 rows, u32 width) {
    __shared__ float sums[COLUMN_WARPS][WARP];
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const u32 column = blockIdx.x * WARP + lane;
    float sum = 0.0f;
    if (column < width) {
#pragma unroll 16
        for (u64 row = warp; row < rows; row += COLUMN_WARPS) {
            sum += widen(from[row * width + column]);
        }
    }
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && column < width) {
        for (u32 other = 1; other < COLUMN_WARPS; ++other) sum += sums[other][lane];
        to[column] = sum;
    }
}
