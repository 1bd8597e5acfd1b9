// Moments in 8 bits: blocks of 256 values, each a code times the block's largest magnitude (Dettmers
// et al. 2022, "8-bit optimizers via block-wise quantization", section 2).
//
// A code is read like a number in their dynamic tree: leading zeros count powers of ten, the first
// one ends them, and the bits after it are a fraction that divides the decade evenly. With i bits
// after it, a code stands for 10^(i − most) · (0.1 + 0.9 · (fraction + ½) / 2^i). Code 0 is 0. The
// signed code has its sign in bit 7 and up to 6 bits of fraction, the unsigned code up to 7; the one
// pattern that is left over (the signed "−0", the unsigned 1) is 1.
//
// The arithmetic is that of the CPU, to the bit: the two can go on with each other's state.
#pragma once

#include "common.cuh"

// Blocks whose largest magnitude is below this are zero: its inverse would overflow.
constexpr float LEAST_SCALE = 1e-37f;

// 10^−n for n up to 7, within two units in the last place.
DEVICE float tenths(u32 n) {
    const float ones = n & 1 ? 0.1f : 1.0f, twos = n & 2 ? 0.01f : 1.0f;
    return ones * twos * (n & 4 ? 0.0001f : 1.0f);
}

// The whole number below x, which is at most 256: adding 2²³ rounds to a whole number, and half less
// to the one below.
DEVICE u32 floor_of(float x) { return __float_as_uint((x - 0.5f) + 8388608.0f) & 0xffu; }

__device__ constexpr double power_of_ten(u32 n) { return n == 0 ? 1.0 : 10.0 * power_of_ten(n - 1); }

// The code of the first moment (SIGNED, from −0.993 to 1) or of the second (from 0 to 1, and what is
// not zero never becomes zero, or the step would be divided by ε alone).
template <bool SIGNED>
struct Code {
    // Bits of the longest fraction.
    static constexpr u32 MOST = SIGNED ? 6 : 7;
    // The pattern that stands for 1.
    static constexpr u32 ONE = SIGNED ? 0x80 : 1;

    DEVICE static float value(u32 code) {
        const u32 pattern = SIGNED ? code & 0x7f : code;
        // The exponent of pattern + ½ is the number of fraction bits, its mantissa the fraction.
        const u32 bits = __float_as_uint(static_cast<float>(pattern) + 0.5f);
        const u32 places = (bits >> 23) - 127;
        const float fraction = __uint_as_float((bits & 0x007fffff) | 0x3f800000) - 1.0f;
        const float magnitude = (0.1f + 0.9f * fraction) * tenths(MOST - places);
        if (code == ONE) return 1.0f;
        if (pattern == 0) return 0.0f;
        return SIGNED && code > 0x80 ? -magnitude : magnitude;
    }

    // The code whose value is nearest to x, for magnitudes up to 1. Within a decade of i bits the
    // pattern is ⌊|x| · a + b⌋, with a = 10^(6 − decade) · 2^i / 0.9 and b = 2^i · 8/9. These lines
    // meet where decades do, and each is flatter than the one before, so that the least of them is
    // the decade's own.
    DEVICE static u32 nearest(float x) {
        const float magnitude = fabsf(x);
        float place = static_cast<float>(2u << MOST) - 0.5f;
        place = least_line<0>(magnitude, place);
        const u32 whole = floor_of(place);
        // A decade's first cell is wider than the last one before it: up to a fifth of it, the value
        // before is nearer.
        const bool begins_decade = (whole & (whole - 1)) == 0;
        u32 pattern = begins_decade ? floor_of(place - 0.2f) : whole;
        const u32 first = 1u << bits_of(0);
        pattern = pattern > first ? pattern : first;
        // Half of the smallest value, and halfway from the largest fraction to 1.
        const float zero = SIGNED ? 0.275e-6f : 0.0f;
        const float top = SIGNED ? 1.0f - 0.225f / 64.0f : 1.0f - 0.225f / 128.0f;
        if (x >= top) return ONE;
        if (!(magnitude > zero)) return 0;
        return SIGNED ? pattern | ((__float_as_uint(x) >> 24) & 0x80) : pattern;
    }

  private:
    // Bits of the fraction in a decade, of which the smallest is decade 0.
    __device__ static constexpr u32 bits_of(u32 decade) { return SIGNED ? decade : decade + 1; }

    template <u32 DECADE>
    DEVICE static float least_line(float magnitude, float place) {
        if constexpr (DECADE == 7) {
            return place;
        } else {
            constexpr double cells = 1u << bits_of(DECADE);
            constexpr float a = static_cast<float>(power_of_ten(6 - DECADE) * cells / 0.9);
            constexpr float b = static_cast<float>(cells * 8.0 / 9.0);
            const float on_line = magnitude * a + b;
            return least_line<DECADE + 1>(magnitude, on_line < place ? on_line : place);
        }
    }
};
