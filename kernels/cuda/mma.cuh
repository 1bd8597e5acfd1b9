// What a warp does on its own: products on the tensor cores, their operands out of shared memory, and
// copies into shared memory that go on while it computes. Each is one instruction on a GPU, and has a
// twin for the CPU.
//
// A product is of [16, 16] by [16, 8] into [16, 8]. Lane l is (g, t) = (l / 4, l mod 4) and holds
//   of the first factor   rows g and g + 8, columns 2t, 2t + 1, 2t + 8, 2t + 9:
//                         a[0] (g, 2t…), a[1] (g + 8, 2t…), a[2] (g, 2t + 8…), a[3] (g + 8, 2t + 8…)
//   of the second         rows 2t, 2t + 1 (b0) and 2t + 8, 2t + 9 (b1) of column g
//   of the result         rows g (c[0], c[1]) and g + 8 (c[2], c[3]), columns 2t, 2t + 1
// where two bf16 are one word, the first of them in its lower half.
#pragma once

#include "common.cuh"

DEVICE u32 packed(bf16 low, bf16 high) {
    return static_cast<u32>(low.bits) | static_cast<u32>(high.bits) << 16;
}

// Both rounded.
DEVICE u32 packed(float low, float high) {
#ifdef __CUDA_ARCH__
    u32 word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
#else
    return packed(narrow<bf16>(low), narrow<bf16>(high));
#endif
}

DEVICE bf16 half_of(u32 word, u32 which) { return {static_cast<u16>(word >> (16 * which))}; }

// c += a · b, of bf16 with sums in f32.
DEVICE void multiply_add(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#ifdef __CUDA_ARCH__
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1)
    );
#else
    const u32 own[6] = {a[0], a[1], a[2], a[3], b0, b1};
    const auto lanes = emulator::exchange(ALL_LANES, "mma", own, sizeof own);
    const auto word = [&](u32 lane, u32 which) {
        return reinterpret_cast<const u32*>(lanes[lane])[which];
    };
    const u32 g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    for (u32 pair = 0; pair < 8; ++pair) {
        const u32 upper = pair / 4, from = pair % 4;
        const u32 left[2] = {word(4 * g + from, 2 * upper), word(4 * g + from, 2 * upper + 1)};
        const u32 right[2] = {word(8 * t + from, 4 + upper), word(8 * t + 4 + from, 4 + upper)};
        for (u32 i = 0; i < 8; ++i) {
            const bf16 x = half_of(left[i % 4 / 2], i / 4), y = half_of(right[i % 2], i / 4);
            c[i % 4] = fmaf(widen(x), widen(y), c[i % 4]);
        }
    }
#endif
}

// Four matrices of [8, 8] bf16 out of shared memory: lane l gives where row l mod 8 of matrix l / 8
// begins. Of each matrix lane (g, t) gets columns 2t, 2t + 1 of row g.
DEVICE void load_matrices(u32 (&m)[4], const bf16* row) {
#ifdef __CUDA_ARCH__
    const u32 address = static_cast<u32>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"(address)
                 : "memory");
#else
    const auto lanes = emulator::exchange(ALL_LANES, "ldmatrix", &row, sizeof row);
    const u32 g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    for (u32 i = 0; i < 4; ++i) {
        const bf16* from = *reinterpret_cast<const bf16**>(lanes[8 * i + g]);
        m[i] = packed(from[2 * t], from[2 * t + 1]);
    }
#endif
}

// The same, each matrix turned around: lane (g, t) gets rows 2t, 2t + 1 of column g.
DEVICE void load_transposed_matrices(u32 (&m)[4], const bf16* row) {
#ifdef __CUDA_ARCH__
    const u32 address = static_cast<u32>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"(address)
                 : "memory");
#else
    const auto lanes = emulator::exchange(ALL_LANES, "ldmatrix.trans", &row, sizeof row);
    const u32 g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    for (u32 i = 0; i < 4; ++i) {
        const bf16* first = *reinterpret_cast<const bf16**>(lanes[8 * i + 2 * t]);
        const bf16* second = *reinterpret_cast<const bf16**>(lanes[8 * i + 2 * t + 1]);
        m[i] = packed(first[g], second[g]);
    }
#endif
}

// 16 bytes from global to shared memory, or as many zeros, by the time that its group is waited for.
DEVICE void copy_later(void* to, const void* from, bool zeros) {
#ifdef __CUDA_ARCH__
    const u32 address = static_cast<u32>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(address), "l"(from), "r"(zeros ? 0 : 16)
                 : "memory");
#else
    emulator::copy_later(to, from, zeros ? 0 : 16, zeros ? 16 : 0);
#endif
}

// The same of 4 bytes.
DEVICE void copy_word_later(void* to, const void* from, bool zeros) {
#ifdef __CUDA_ARCH__
    const u32 address = static_cast<u32>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
                 :
                 : "r"(address), "l"(from), "r"(zeros ? 0 : 4)
                 : "memory");
#else
    emulator::copy_later(to, from, zeros ? 0 : 4, zeros ? 4 : 0);
#endif
}

// Ends a group of copies.
DEVICE void commit_copies() {
#ifdef __CUDA_ARCH__
    asm volatile("cp.async.commit_group;" : : : "memory");
#else
    emulator::commit_copies();
#endif
}

// Waits for the thread's own copies but for the last so many groups; the others see them after a
// barrier.
template <u32 GROUPS>
DEVICE void wait_for_copies() {
#ifdef __CUDA_ARCH__
    asm volatile("cp.async.wait_group %0;" : : "n"(GROUPS) : "memory");
#else
    emulator::wait_for_copies(GROUPS);
#endif
}
