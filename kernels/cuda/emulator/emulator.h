// Runs the kernels on a CPU, so that tests can hold their numbers against the CPU's own ops.
//
// A translation unit that includes this header, then a `.cu` file, then says
// `EMULATED_KERNELS = {EMULATED(name), …};` becomes a shared object with one entry point,
// `emulator_launch`. Blocks run one after the other. The threads of a block are fibers of one thread
// of the CPU: each runs until it waits for others, so barriers and what a warp exchanges are exact.
// The order of blocks, warps and lanes can be turned around or shuffled, and asynchronous copies be made
// at once or at last: numbers that depend on it show a barrier that is missing.
//
// What a GPU would do something unspecified with is an error here: a barrier that not every thread
// comes to, an exchange that not every lane of its mask takes part in, an asynchronous copy from an
// address that is no multiple of its size, writing past the dynamic shared memory, arguments of other
// sizes than the kernel's. Dynamic shared memory begins as NaN.
//
// One launch at a time, which is up to the caller: what a block shares are static variables.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <utility>
#include <vector>

#include "fiber.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __shared__ static
#define __launch_bounds__(...)
#define __restrict__ __restrict

namespace emulator {

struct Index {
    unsigned x, y, z;
};

// What lanes of a warp exchange at a time, at most.
constexpr size_t SLOT_BYTES = 64;
constexpr unsigned LANES = 32;

enum class State { Ready, AtBarrier, InExchange, Done };

// A copy that has been asked for. A GPU makes it at any time until it is waited for: here that is at
// once or at last.
struct Copy {
    void* to;
    const void* from;
    size_t bytes, zeros;
};

struct Thread {
    Fiber fiber;
    Index index;
    unsigned lane, warp;
    State state;
    // Copies in groups, the one last committed next to last; the last is not committed yet.
    std::vector<std::vector<Copy>> copies;
};

// An exchange: which lanes are expected and which are there. The slots of the one before are still
// being read, so there are two sets of them.
struct Warp {
    unsigned expected, arrived, round;
    const char* what;
    alignas(16) unsigned char slots[2][LANES][SLOT_BYTES];
};

struct Block {
    Index index, size, grid;
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    unsigned at_barrier;
    std::vector<unsigned char> shared;
    size_t shared_bytes;
    void (*kernel)(void**);
    void** arguments;
    bool copies_at_once;
    const char* fault;
};

inline Block block;
inline Thread* current;

constexpr size_t GUARD_BYTES = 1024;
constexpr unsigned char GUARD = 0xa5, UNSET = 0xff;

inline void* dynamic_shared() { return block.shared.data() + GUARD_BYTES; }

// Back to the scheduler, until it takes this thread up again.
inline void wait(State state) {
    current->state = state;
    current->fiber.leave();
}

// Ends the launch with a message.
[[noreturn]] inline void fail(const char* message) {
    block.fault = message;
    for (;;) wait(State::Done);
}

inline void barrier() {
    if (++block.at_barrier < block.threads.size()) return wait(State::AtBarrier);
    block.at_barrier = 0;
    for (Thread& thread : block.threads) {
        if (thread.state == State::AtBarrier) thread.state = State::Ready;
    }
}

// What each lane of the mask gave: slot `lane` of the result, good until the lane's next exchange but
// one.
inline unsigned char (*exchange(unsigned mask, const char* what, const void* value, size_t bytes))
    [SLOT_BYTES] {
    Warp& warp = block.warps[current->warp];
    if (warp.arrived == 0) {
        warp.expected = mask;
        warp.what = what;
    }
    if (warp.expected != mask || std::strcmp(warp.what, what) != 0) {
        fail("lanes of a warp meet in different exchanges");
    }
    if (!(mask >> current->lane & 1)) fail("a lane takes part in an exchange without being asked");
    auto slots = warp.slots[warp.round % 2];
    std::memcpy(slots[current->lane], value, bytes);
    warp.arrived |= 1u << current->lane;
    if (warp.arrived != mask) {
        wait(State::InExchange);
        return slots;
    }
    warp.arrived = 0;
    ++warp.round;
    const size_t first = static_cast<size_t>(current->warp) * LANES;
    for (size_t i = first; i < first + LANES && i < block.threads.size(); ++i) {
        if (block.threads[i].state == State::InExchange) block.threads[i].state = State::Ready;
    }
    return slots;
}

template <class T>
T shuffle(unsigned mask, const char* what, T value, unsigned from) {
    static_assert(sizeof(T) <= SLOT_BYTES);
    auto slots = exchange(mask, what, &value, sizeof(T));
    T result;
    // Beyond the warp a lane gets its own value back.
    std::memcpy(&result, slots[from < LANES ? from : current->lane], sizeof(T));
    return result;
}

inline void make(const Copy& copy) {
    std::memcpy(copy.to, copy.from, copy.bytes);
    std::memset(static_cast<unsigned char*>(copy.to) + copy.bytes, 0, copy.zeros);
}

// Copies `bytes` and then zeros, both ends at a multiple of how many they are together.
inline void copy_later(void* to, const void* from, size_t bytes, size_t zeros) {
    const auto places = reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from);
    if (places % (bytes + zeros) != 0) fail("a copy that does not lie as it must");
    const Copy copy = {to, from, bytes, zeros};
    if (block.copies_at_once) return make(copy);
    current->copies.back().push_back(copy);
}

inline void commit_copies() { current->copies.emplace_back(); }

// Until at most so many committed groups are on their way.
inline void wait_for_copies(size_t groups) {
    auto& copies = current->copies;
    while (copies.size() > groups + 1) {
        for (const Copy& copy : copies.front()) make(copy);
        copies.erase(copies.begin());
    }
}

// One kernel under its name, called with pointers to its arguments.
struct Kernel {
    const char* name;
    void (*call)(void**);
    std::vector<size_t> sizes;
};

template <auto FUNCTION>
struct Typed;

template <class... A, void (*FUNCTION)(A...)>
struct Typed<FUNCTION> {
    template <size_t... I>
    static void call_with(void** arguments, std::index_sequence<I...>) {
        FUNCTION(*static_cast<A*>(arguments[I])...);
    }
    static void call(void** arguments) {
        call_with(arguments, std::index_sequence_for<A...>());
    }
    static Kernel named(const char* name) { return {name, call, {sizeof(A)...}}; }
};

// Numbers from 0 on in the order that `seed` asks for: 0 as they are, 1 backwards, else shuffled.
inline std::vector<unsigned> order(unsigned count, unsigned seed) {
    std::vector<unsigned> numbers(count);
    for (unsigned i = 0; i < count; ++i) numbers[i] = seed == 1 ? count - 1 - i : i;
    uint64_t state = seed;
    for (unsigned i = count; seed > 1 && i > 1; --i) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        std::swap(numbers[i - 1], numbers[(state >> 33) % i]);
    }
    return numbers;
}

inline void run_thread() {
    block.kernel(block.arguments);
    for (;;) wait(State::Done);
}

// Lets each thread of the warp run that can, until none can. Whether any could.
inline bool run_warp(unsigned warp, const std::vector<unsigned>& lanes) {
    bool ran = false;
    for (bool again = true; again && !block.fault;) {
        again = false;
        for (unsigned lane : lanes) {
            const size_t number = static_cast<size_t>(warp) * LANES + lane;
            if (number >= block.threads.size()) continue;
            Thread& thread = block.threads[number];
            if (thread.state != State::Ready) continue;
            current = &thread;
            thread.fiber.enter();
            if (block.fault) return true;
            ran = again = true;
        }
    }
    return ran;
}

inline void run_block(unsigned seed) {
    block.at_barrier = 0;
    std::memset(block.shared.data(), GUARD, block.shared.size());
    std::memset(dynamic_shared(), UNSET, block.shared_bytes);
    for (Warp& warp : block.warps) warp.arrived = 0;
    for (Thread& thread : block.threads) {
        thread.state = State::Ready;
        thread.copies.assign(1, {});
        thread.fiber.begin(run_thread);
    }
    const auto warps = order(static_cast<unsigned>(block.warps.size()), seed);
    const auto lanes = order(LANES, seed);
    for (bool ran = true; ran && !block.fault;) {
        ran = false;
        for (unsigned warp : warps) {
            ran = run_warp(warp, lanes) || ran;
            if (block.fault) return;
        }
    }
    for (const Thread& thread : block.threads) {
        if (thread.state != State::Done) block.fault = "threads wait for others that have left";
    }
    const size_t end = GUARD_BYTES + block.shared_bytes;
    for (size_t i = 0; i < block.shared.size(); ++i) {
        const bool guard = i < GUARD_BYTES || i >= end;
        if (guard && block.shared[i] != GUARD) block.fault = "written outside of the shared memory";
    }
}

inline void lay_out_threads() {
    const Index size = block.size;
    const unsigned count = size.x * size.y * size.z;
    block.threads.resize(count);
    block.warps.resize((count + LANES - 1) / LANES);
    for (unsigned i = 0; i < count; ++i) {
        Thread& thread = block.threads[i];
        thread.index = {i % size.x, i / size.x % size.y, i / size.x / size.y};
        thread.lane = i % LANES;
        thread.warp = i / LANES;
    }
}

inline const char* out_of_range(Index grid, Index size, size_t shared_bytes) {
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535) {
        return "a grid that no GPU takes";
    }
    const uint64_t threads = static_cast<uint64_t>(size.x) * size.y * size.z;
    if (threads == 0 || threads > 1024) return "a block that no GPU takes";
    return shared_bytes > 99 * 1024 ? "more shared memory than every GPU has" : nullptr;
}

inline const char* run_grid(Index grid, Index size, size_t shared_bytes, unsigned seed) {
    if (const char* fault = out_of_range(grid, size, shared_bytes)) return fault;
    block.grid = grid;
    block.size = size;
    block.shared_bytes = shared_bytes;
    block.shared.resize(shared_bytes + 2 * GUARD_BYTES);
    block.fault = nullptr;
    block.copies_at_once = seed % 2 == 1;
    lay_out_threads();
    for (unsigned number : order(grid.x * grid.y * grid.z, seed)) {
        block.index = {number % grid.x, number / grid.x % grid.y, number / grid.x / grid.y};
        run_block(seed);
        if (block.fault) return block.fault;
    }
    return nullptr;
}

}  // namespace emulator

#define threadIdx (emulator::current->index)
#define blockIdx (emulator::block.index)
#define blockDim (emulator::block.size)
#define gridDim (emulator::block.grid)

inline void __syncthreads() { emulator::barrier(); }

inline void __trap() { emulator::fail("a kernel gave up"); }

inline void __syncwarp(unsigned mask = 0xffffffffu) {
    emulator::exchange(mask, "__syncwarp", "", 0);
}

template <class T>
T __shfl_sync(unsigned mask, T value, unsigned lane) {
    return emulator::shuffle(mask, "__shfl_sync", value, lane);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, unsigned bits) {
    return emulator::shuffle(mask, "__shfl_xor_sync", value, emulator::current->lane ^ bits);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned lanes) {
    return emulator::shuffle(mask, "__shfl_down_sync", value, emulator::current->lane + lanes);
}

inline unsigned __float_as_uint(float x) {
    unsigned bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

inline float __uint_as_float(unsigned bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

inline unsigned __umulhi(unsigned a, unsigned b) {
    return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32);
}

extern const std::vector<emulator::Kernel> EMULATED_KERNELS_OF_SOURCE;
#define EMULATED_KERNELS const std::vector<emulator::Kernel> EMULATED_KERNELS_OF_SOURCE
#define EMULATED(name) emulator::Typed<&name>::named(#name)

// Runs a kernel over a grid. `arguments` points to so many arguments of these sizes; whoever does not
// know the sizes gives null. Returns nothing, or what went wrong, good until the next launch.
extern "C" __attribute__((visibility("default"))) const char* emulator_launch(
    const char* name, const unsigned grid[3], const unsigned size[3], size_t shared_bytes,
    void** arguments, const size_t* sizes, size_t count, unsigned seed
) {
    const char* fault = "no such kernel";
    for (const auto& kernel : EMULATED_KERNELS_OF_SOURCE) {
        if (std::strcmp(kernel.name, name) != 0) continue;
        fault = "other arguments than the kernel's";
        if (sizes && kernel.sizes != std::vector<size_t>(sizes, sizes + count)) break;
        emulator::block.kernel = kernel.call;
        emulator::block.arguments = arguments;
        fault = emulator::run_grid(
            {grid[0], grid[1], grid[2]}, {size[0], size[1], size[2]}, shared_bytes, seed
        );
    }
    if (!fault) return nullptr;
    static char message[256];
    std::snprintf(message, sizeof message, "%s: %s", name, fault);
    return message;
}

// The sizes of a kernel's arguments, in their order, and how many they are; null if there is no such
// kernel.
extern "C" __attribute__((visibility("default"))) const size_t* emulator_sizes(
    const char* name, size_t* count
) {
    for (const auto& kernel : EMULATED_KERNELS_OF_SOURCE) {
        if (std::strcmp(kernel.name, name) != 0) continue;
        *count = kernel.sizes.size();
        return kernel.sizes.data();
    }
    return nullptr;
}
