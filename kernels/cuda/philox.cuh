// Random bits by place: Philox-4×32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as
// 1, 2, 3"), and the rounding that uses them, as the CPU has them.
#pragma once

#include "common.cuh"

struct Words {
    u32 w[4];
};

DEVICE Words philox(Words counter, u32 key_low, u32 key_high) {
#pragma unroll
    for (u32 round = 0; round < 10; ++round) {
        const u32 p_high = __umulhi(0xd2511f53u, counter.w[0]), p_low = 0xd2511f53u * counter.w[0];
        const u32 q_high = __umulhi(0xcd9e8d57u, counter.w[2]), q_low = 0xcd9e8d57u * counter.w[2];
        const u32 first = q_high ^ counter.w[1] ^ key_low, third = p_high ^ counter.w[3] ^ key_high;
        counter = {{first, q_low, third, p_low}};
        key_low += 0x9e3779b9u;
        key_high += 0xbb67ae85u;
    }
    return counter;
}

// The neighbour of x away from zero where x is nearer to it than bits / 2¹⁶ of the way, else the one
// toward zero. What is not finite is rounded as ever.
DEVICE bf16 rounded_at_random(float x, u32 bits) {
    const u32 word = __float_as_uint(x);
    const bool finite = (word & 0x7f800000u) != 0x7f800000u;
    return finite ? bf16{static_cast<u16>((word + bits) >> 16)} : narrow<bf16>(x);
}
