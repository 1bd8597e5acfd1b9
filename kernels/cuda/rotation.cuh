// The rotation of rotary position embedding.
#pragma once

#include "common.cuh"

// A pair of dimensions.
struct Pair {
    float a, b;
};

DEVICE Pair rotated(Pair x, float cos, float sin) {
    return {fmaf(x.a, cos, -(x.b * sin)), fmaf(x.b, cos, x.a * sin)};
}

// Cosines or sines of so many pairs, 16 bytes a load where there are so many.
template <u32 LEN>
DEVICE void load_angles(const float* from, float (&to)[LEN]) {
    constexpr u32 TOGETHER = LEN < VECTOR<float> ? LEN : VECTOR<float>;
#pragma unroll
    for (u32 at = 0; at < LEN; at += TOGETHER) {
        const auto pack = *reinterpret_cast<const Pack<float, TOGETHER>*>(from + at);
#pragma unroll
        for (u32 i = 0; i < TOGETHER; ++i) to[at + i] = pack.values[i];
    }
}
