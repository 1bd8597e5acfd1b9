// Elements one by one, where which is which does not matter.
#pragma once

#include "common.cuh"

constexpr u32 PACK_THREADS = 256;

// Calls `work.run<n>(first)` for the n elements from `first` on that a thread of the grid works on: 16
// bytes of T at a time where `together`, else, and at the end, one at a time. The grid has
// ⌈elements / (256 · VECTOR<T>)⌉ blocks of 256 threads.
template <class T, class Work>
DEVICE void each_pack(u64 elements, bool together, Work work) {
    const u64 thread = static_cast<u64>(blockIdx.x) * PACK_THREADS + threadIdx.x;
    const u64 first = thread * VECTOR<T>;
    if (together && first + VECTOR<T> <= elements) {
        work.template run<VECTOR<T>>(first);
        return;
    }
    const u64 end = first + VECTOR<T> < elements ? first + VECTOR<T> : elements;
    for (u64 at = first; at < end; ++at) work.template run<1>(at);
}
