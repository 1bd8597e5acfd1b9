// Gated feed-forward activations (Shazeer 2020), act(gate) · up, and their backward pass.
//
// Legend: gate, up, y, dy, d_gate, d_up, gated: `elements` each, all of T, f32 or bf16.
//   y = gated = act(gate) · up,  d_gate = dy · up · act′(gate),  d_up = dy · act(gate)
// kind: 0 is SiLU, 1 GELU by its tanh approximation, 2 GELU by the error function.
//
// launch:
//   kernel                      grid                                   block   shared bytes
//   activation_forward_T        ⌈elements / (256 · 16 / sizeof T)⌉     256     0
//   activation_backward_T       the same                               256     0
// `gated` may be null where it is not wanted again. Outputs may be inputs: d_gate over gate, d_up
// over up, and gated or y over either or over dy. workspace: none.

#include "packs.cuh"

// An activation and its derivative.
struct Curve {
    float value, slope;
};

DEVICE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

struct Silu {
    DEVICE static Curve at(float x) {
        const float share = sigmoid(x), value = x * share;
        return {value, fmaf(value, 1.0f - share, share)};
    }
};

// ½·(1 + tanh(u)) is σ(2u), which has no cancellation anywhere.
struct GeluTanh {
    DEVICE static Curve at(float x) {
        // 2·√(2/π), and that times 0.044715.
        const float linear = 1.595769f, cubic = 0.071354814f;
        const float square = x * x;
        const float share = sigmoid(x * fmaf(square, cubic, linear)), value = x * share;
        // Where the square overflows, σ is 0 or 1 and the curve flat.
        const float inner_slope = fminf(fmaf(square, 3.0f * cubic, linear), 3.4028235e38f);
        return {value, fmaf(value * (1.0f - share), inner_slope, share)};
    }
};

// x·Φ(x) and Φ(x) + x·φ(x), Φ and φ the standard normal's distribution and density.
struct GeluErf {
    DEVICE static Curve at(float x) {
        const float share = fmaf(0.5f, erff(x * 0.70710678f), 0.5f);
        const float density = 0.3989423f * expf(-0.5f * (x * x));
        return {x * share, fmaf(x, density, share)};
    }
};

template <class Activation, class T>
struct Forward {
    const T *gate, *up;
    T* y;

    template <u32 LEN>
    DEVICE void run(u64 at) const {
        float gates[LEN], ups[LEN];
        load(gate + at, gates);
        load(up + at, ups);
#pragma unroll
        for (u32 i = 0; i < LEN; ++i) ups[i] = Activation::at(gates[i]).value * ups[i];
        store(ups, y + at);
    }
};

template <class Activation, class T>
DEVICE void forward(const T* gate, const T* up, T* y, u64 elements) {
    each_pack<T>(elements, all_aligned(gate, up, y), Forward<Activation, T>{gate, up, y});
}

template <class T>
struct Gradients {
    T *d_gate, *d_up, *gated;
};

template <class Activation, class T>
struct Backward {
    const T *gate, *up, *dy;
    Gradients<T> to;

    template <u32 LEN>
    DEVICE void run(u64 at) const {
        float gates[LEN], ups[LEN], dys[LEN], outputs[LEN];
        load(gate + at, gates);
        load(up + at, ups);
        load(dy + at, dys);
#pragma unroll
        for (u32 i = 0; i < LEN; ++i) {
            const Curve curve = Activation::at(gates[i]);
            outputs[i] = curve.value * ups[i];
            gates[i] = dys[i] * ups[i] * curve.slope;
            ups[i] = dys[i] * curve.value;
        }
        store(gates, to.d_gate + at);
        store(ups, to.d_up + at);
        if (to.gated) store(outputs, to.gated + at);
    }
};

template <class Activation, class T>
DEVICE void backward(const T* gate, const T* up, const T* dy, Gradients<T> to, u64 elements) {
    const bool together = all_aligned(gate, up, dy, to.d_gate, to.d_up, to.gated);
    each_pack<T>(elements, together, Backward<Activation, T>{gate, up, dy, to});
}

#define ACTIVATION(T, suffix)                                                                      \
    extern "C" __global__ void activation_forward_##suffix(                                        \
        const T* gate, const T* up, T* y, u64 elements, u32 kind                                   \
    ) {                                                                                            \
        if (kind == 0) forward<Silu>(gate, up, y, elements);                                       \
        if (kind == 1) forward<GeluTanh>(gate, up, y, elements);                                   \
        if (kind == 2) forward<GeluErf>(gate, up, y, elements);                                    \
    }                                                                                              \
    extern "C" __global__ void activation_backward_##suffix(                                       \
        const T* gate, const T* up, const T* dy, T* d_gate, T* d_up, T* gated, u64 elements,       \
        u32 kind                                                                                   \
    ) {                                                                                            \
        const Gradients<T> to = {d_gate, d_up, gated};                                             \
        if (kind == 0) backward<Silu>(gate, up, dy, to, elements);                                 \
        if (kind == 1) backward<GeluTanh>(gate, up, dy, to, elements);                             \
        if (kind == 2) backward<GeluErf>(gate, up, dy, to, elements);                              \
    }

ACTIVATION(float, f32)
ACTIVATION(bf16, bf16)
