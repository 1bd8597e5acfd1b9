// The norm of all gradients together, and the factor that clips them, without leaving the device.
//
// Legend: `tensors` is a table in device memory of {const T* values; u64 elements}, `places` one
// {u32 tensor; u32 chunk} a block: a tensor's chunks are of 8192 elements. Squares and sums are f64,
// in an order that the table alone decides.
//
// launch, one after the other:
//   kernel                grid              block   shared bytes
//   norm_squares_T        places            256     0
//   norm_total            1                 256     0
//   norm_clip             1                 1       0
// or, in the place of the last two:
//   norm_by_tensor        tensors           256     0
// Tensors of f32 and bf16 take a launch each, with partials that lie one after the other.
// workspace: partials, f64, one a place. norm_total: sum = Σ partials.
// norm_clip: norm = √sum; scale = min(max_norm / (norm + 1e-6), 1) as PyTorch has it, or 1 where
// max_norm is 0. Where the norm or one of the losses, whose `count` places `losses` has, is no number,
// `halted` becomes 1, and where that is 1, the scale is NaN.
// norm_by_tensor: sums[tensor][w] = Σ partials[place][w] over the tensor's places, with `width` numbers a
// place (1 or 2). `ends`: u32, one a tensor: the place behind its last.

#include "reduce.cuh"
#include "tensors.cuh"

template <class T>
struct Values {
    const T* values;
    u64 elements;
};

template <u32 LEN, class T>
DEVICE double squares_of(const T* values, u64 begin, u64 end) {
    double sum = 0.0;
    for (u64 at = begin + threadIdx.x * LEN; at < end; at += CHUNK_THREADS * LEN) {
        float x[LEN];
        load(values + at, x);
#pragma unroll
        for (u32 i = 0; i < LEN; ++i) {
            sum = fma(static_cast<double>(x[i]), static_cast<double>(x[i]), sum);
        }
    }
    return sum;
}

template <class T>
DEVICE void squares(const Values<T>* tensors, const Place* places, double* partials) {
    const Place place = places[blockIdx.x];
    const Values<T> of = tensors[place.tensor];
    const u64 begin = static_cast<u64>(place.chunk) * CHUNK_ELEMENTS;
    const u64 end = begin + CHUNK_ELEMENTS < of.elements ? begin + CHUNK_ELEMENTS : of.elements;
    const u64 whole = aligned(of.values) ? end / VECTOR<T> * VECTOR<T> : begin;
    double sums[1] = {squares_of<VECTOR<T>>(of.values, begin, whole)};
    sums[0] += squares_of<1>(of.values, whole, end);
    block_sums(sums);
    if (threadIdx.x == 0) partials[blockIdx.x] = sums[0];
}

extern "C" __global__ void norm_squares_f32(
    const Values<float>* tensors, const Place* places, double* partials
) {
    squares(tensors, places, partials);
}

extern "C" __global__ void norm_squares_bf16(
    const Values<bf16>* tensors, const Place* places, double* partials
) {
    squares(tensors, places, partials);
}

extern "C" __global__ void norm_total(const double* partials, u32 places, double* sum) {
    double sums[1] = {0.0};
    for (u32 i = threadIdx.x; i < places; i += CHUNK_THREADS) sums[0] += partials[i];
    block_sums(sums);
    if (threadIdx.x == 0) *sum = sums[0];
}

extern "C" __global__ void norm_clip(
    const double* sum, const double* const* losses, u32 count, double max_norm, u32* halted,
    double* norm, float* scale
) {
    *norm = sqrt(*sum);
    // What is infinite or NaN does not go away where it is taken from itself.
    double rest = *norm - *norm;
    for (u32 i = 0; i < count; ++i) rest += *losses[i] - *losses[i];
    if (rest != 0.0) *halted = 1;
    const double factor = max_norm > 0.0 ? fmin(max_norm / (*norm + 1e-6), 1.0) : 1.0;
    *scale = *halted ? __uint_as_float(0x7fc00000u) : static_cast<float>(factor);
}

extern "C" __global__ void norm_by_tensor(
    const double* partials, const u32* ends, u32 width, double* sums
) {
    const u32 tensor = blockIdx.x, first = tensor > 0 ? ends[tensor - 1] : 0, end = ends[tensor];
    for (u32 w = 0; w < width; ++w) {
        double sum[1] = {0.0};
        for (u32 i = first + threadIdx.x; i < end; i += CHUNK_THREADS) sum[0] += partials[i * width + w];
        block_sums(sum);
        if (threadIdx.x == 0) sums[tensor * width + w] = sum[0];
    }
}
