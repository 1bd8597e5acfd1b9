// Rotary position embedding (Su et al. 2021) in the half-split layout of transformers, where the pair
// of dimension i is i + D/2.
//
// Legend: x, y [N, H, D] of T, f32 or bf16, each with its own stride from token to token, in elements
// (H · D where it is contiguous), heads of a token next to each other; cos, sin [N, D/2] in f32.
//   rotate: (a, b) → (a · cos − b · sin, b · cos + a · sin), sin times `direction`: 1 for the
//   forward pass, −1 for the backward pass.
//
// launch:
//   kernel             grid    block      shared bytes
//   rope_rotate_T      N       THREADS    0
// THREADS: H · D / 2 / (16 / sizeof T) rounded up to whole warps, at least 32 and at most 256.
// y may be x, where the strides are the same. workspace: none.

#include "rotation.cuh"

template <u32 LEN, class T>
DEVICE void rotate_token(
    const T* x, const float* cos, const float* sin, T* y, u32 heads, u32 half, float direction
) {
    for (u32 item = threadIdx.x; item < heads * (half / LEN); item += blockDim.x) {
        const u32 head = item / (half / LEN), at = item % (half / LEN) * LEN;
        const u32 first = head * 2 * half + at, second = first + half;
        float a[LEN], b[LEN], cosines[LEN], sines[LEN];
        load(x + first, a);
        load(x + second, b);
        load_angles(cos + at, cosines);
        load_angles(sin + at, sines);
#pragma unroll
        for (u32 i = 0; i < LEN; ++i) {
            const Pair turned = rotated({a[i], b[i]}, cosines[i], sines[i] * direction);
            a[i] = turned.a;
            b[i] = turned.b;
        }
        store(a, y + first);
        store(b, y + second);
    }
}

template <class T>
DEVICE void rotate(
    const T* x, const float* cos, const float* sin, T* y, u32 heads, u32 head_dim, u64 x_stride,
    u64 y_stride, float direction
) {
    const u64 token = blockIdx.x;
    const u32 half = head_dim / 2;
    const bool whole = (half | x_stride | y_stride) % VECTOR<T> == 0;
    const bool together = whole && all_aligned(x, cos, sin, y);
    x += token * x_stride;
    y += token * y_stride;
    cos += token * half;
    sin += token * half;
    if (together) {
        rotate_token<VECTOR<T>>(x, cos, sin, y, heads, half, direction);
    } else {
        rotate_token<1>(x, cos, sin, y, heads, half, direction);
    }
}

#define ROPE(T, suffix)                                                                            \
    extern "C" __global__ void rope_rotate_##suffix(                                               \
        const T* x, const float* cos, const float* sin, T* y, u32 heads, u32 head_dim,             \
        u64 x_stride, u64 y_stride, float direction                                                \
    ) {                                                                                            \
        rotate(x, cos, sin, y, heads, head_dim, x_stride, y_stride, direction);                    \
    }

ROPE(float, f32)
ROPE(bf16, bf16)
