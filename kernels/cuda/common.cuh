// What every kernel needs and a bare nvrtc lacks: integers of fixed width, bf16, and elements of a
// row as f32, 16 bytes a load where they lie so.
//
// No header of the toolkit is included: the machine that compiles these sources has none. The
// sources are compiled with `--std=c++17 --fmad=false`: a multiplication and an addition are one
// instruction where they are written as `fmaf`, and nowhere else, so that the CPU's arithmetic can
// be repeated to the bit.
#pragma once

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;

#define DEVICE __device__ __forceinline__

constexpr u32 WARP = 32;
constexpr u32 ALL_LANES = 0xffffffffu;

// The upper half of an f32.
struct bf16 {
    u16 bits;
};

DEVICE float widen(float x) { return x; }

DEVICE float widen(bf16 x) { return __uint_as_float(static_cast<u32>(x.bits) << 16); }

// Rounds to the nearest, ties to even.
template <class T>
DEVICE T narrow(float x);

template <>
DEVICE float narrow<float>(float x) {
    return x;
}

template <>
DEVICE bf16 narrow<bf16>(float x) {
    bf16 y;
#ifdef __CUDA_ARCH__
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#else
    const u32 bits = __float_as_uint(x);
    const u32 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    y.bits = static_cast<u16>(x != x ? (bits >> 16) | 0x40u : rounded);
#endif
    return y;
}

// Elements of 16 bytes.
template <class T>
constexpr u32 VECTOR = 16 / sizeof(T);

// So many elements, loaded and stored at once.
template <class T, u32 LEN>
struct alignas(sizeof(T) * LEN) Pack {
    T values[LEN];
};

// Loaded now, to be widened where it is used: until then it takes no more registers than memory.
template <u32 LEN, class T>
DEVICE Pack<T, LEN> packed(const T* from) {
    return *reinterpret_cast<const Pack<T, LEN>*>(from);
}

template <u32 LEN, class T>
DEVICE void widen(const Pack<T, LEN>& from, float (&to)[LEN]) {
#pragma unroll
    for (u32 i = 0; i < LEN; ++i) to[i] = widen(from.values[i]);
}

// The same, two elements of a word at a time, which is an instruction for each.
template <u32 LEN>
DEVICE void widen(const Pack<bf16, LEN>& from, float (&to)[LEN]) {
    if constexpr (LEN % 2 == 1) {
#pragma unroll
        for (u32 i = 0; i < LEN; ++i) to[i] = widen(from.values[i]);
    } else {
        const auto pairs = *reinterpret_cast<const Pack<u32, LEN / 2>*>(&from);
#pragma unroll
        for (u32 i = 0; i < LEN / 2; ++i) {
            to[2 * i] = __uint_as_float(pairs.values[i] << 16);
            to[2 * i + 1] = __uint_as_float(pairs.values[i] & 0xffff0000u);
        }
    }
}

template <u32 LEN, class T>
DEVICE void load(const T* from, float (&to)[LEN]) {
    widen(packed<LEN>(from), to);
}

// Four words to 16 bytes of any memory by one instruction, which the compiler does not always find.
DEVICE void store_words(const u32 (&words)[4], void* to) {
#ifdef __CUDA_ARCH__
    asm volatile("st.v4.u32 [%0], {%1, %2, %3, %4};"
                 :
                 : "l"(to), "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3])
                 : "memory");
#else
    *static_cast<Pack<u32, 4>*>(to) = {{words[0], words[1], words[2], words[3]}};
#endif
}

template <u32 LEN, class T>
DEVICE void store(const float (&from)[LEN], T* to) {
    Pack<T, LEN> pack;
#pragma unroll
    for (u32 i = 0; i < LEN; ++i) pack.values[i] = narrow<T>(from[i]);
    if constexpr (sizeof(pack) == 16) {
        store_words(reinterpret_cast<const u32(&)[4]>(pack), to);
    } else {
        *reinterpret_cast<Pack<T, LEN>*>(to) = pack;
    }
}

// Whether a pointer (null too) may be loaded from 16 bytes at a time.
DEVICE bool aligned(const void* pointer) {
    return (reinterpret_cast<u64>(pointer) & 15u) == 0;
}

template <class... Pointers>
DEVICE bool all_aligned(Pointers... pointers) {
    return (aligned(pointers) && ...);
}

// The block's dynamic shared memory.
template <class T>
DEVICE T* dynamic_shared() {
#ifdef __CUDA_ARCH__
    extern __shared__ __align__(16) u8 bytes[];
    return reinterpret_cast<T*>(bytes);
#else
    return static_cast<T*>(emulator::dynamic_shared());
#endif
}
