// A CUDA driver without a GPU: device memory is the host's, a stream does its work at once, and kernels
// run in the emulator. It has what chandler, candle and cudarc call, and refuses the rest.
//
// CHANDLER_STAND_IN_MEMORY is how many bytes the device has (1 GiB without it). CHANDLER_STAND_IN_OTHERS
// are taken by others. Fresh memory is filled with 0xFF bytes, which are NaN, and whoever reads what was
// freed is ended, so that either is found out.

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <map>
#include <mutex>
#include <new>
#include <string>
#include <sys/mman.h>
#include <vector>

#include "candle_kernels.h"
#include "graphs.h"

namespace {

enum Result {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_FOUND = 500,
    LAUNCH_FAILED = 719,
    NOT_SUPPORTED = 801,
};

// What cuMemPoolCreate and the counters of a pool speak of.
struct Pool {
    uint64_t limit = 0;
    uint64_t threshold = 0;
    uint64_t used = 0, used_high = 0, reserved = 0, reserved_high = 0;
};

struct Block {
    size_t bytes;
    Pool *pool;
    bool of_graph;
};

// A pool takes memory from the device in pieces of this size.
constexpr uint64_t GRANULE = 2 << 20;

struct Device {
    std::mutex lock;
    Pool standard;
    Pool *current = &standard;
    std::map<uintptr_t, Block> blocks;
    // Of all pools, and of what was allocated outside of them.
    uint64_t taken = 0;
};

Device device;

uint64_t from_environment(const char *name, uint64_t otherwise) {
    const char *text = getenv(name);
    return text ? strtoull(text, nullptr, 10) : otherwise;
}

uint64_t total_bytes() { return from_environment("CHANDLER_STAND_IN_MEMORY", 1ull << 30); }

uint64_t of_others() { return from_environment("CHANDLER_STAND_IN_OTHERS", 0); }

uint64_t free_bytes() {
    uint64_t used = device.taken + of_others();
    uint64_t total = total_bytes();
    return used < total ? total - used : 0;
}

void raise(uint64_t &high, uint64_t now) {
    if (now > high) high = now;
}

// Memory that the pool keeps serves first; what is missing is taken from the device.
bool grow(Pool &pool, uint64_t used) {
    if (pool.limit && used > pool.limit) return false;
    if (used <= pool.reserved) return true;
    uint64_t missing = (used - pool.reserved + GRANULE - 1) / GRANULE * GRANULE;
    if (missing > free_bytes()) return false;
    pool.reserved += missing;
    device.taken += missing;
    raise(pool.reserved_high, pool.reserved);
    return true;
}

void trim(Pool &pool, uint64_t keep) {
    uint64_t held = (pool.used + GRANULE - 1) / GRANULE * GRANULE;
    uint64_t wanted = held > keep ? held : keep;
    if (wanted < pool.reserved) {
        device.taken -= pool.reserved - wanted;
        pool.reserved = wanted;
    }
}

// A mapping each, as the heap of a program that keeps its pages would fray.
void *map(size_t bytes, int protection) {
    void *block = mmap(nullptr, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return block == MAP_FAILED ? nullptr : block;
}

int allocate(uintptr_t *address, size_t bytes, Pool *pool) {
    std::lock_guard<std::mutex> hold(device.lock);
    // As the real one: sizes are rounded up, and no allocation is empty.
    size_t rounded = (bytes + 511) / 512 * 512;
    if (bytes == 0) return INVALID_VALUE;
    if (pool) {
        if (!grow(*pool, pool->used + rounded)) return OUT_OF_MEMORY;
        pool->used += rounded;
        raise(pool->used_high, pool->used);
    } else {
        if (rounded > free_bytes()) return OUT_OF_MEMORY;
        device.taken += rounded;
    }
    void *block = map(rounded, PROT_READ | PROT_WRITE);
    if (!block) return OUT_OF_MEMORY;
    memset(block, 0xff, rounded);
    *address = reinterpret_cast<uintptr_t>(block);
    device.blocks[*address] = Block{rounded, pool, false};
    return SUCCESS;
}

int release(uintptr_t address) {
    std::lock_guard<std::mutex> hold(device.lock);
    auto found = device.blocks.find(address);
    if (found == device.blocks.end() || found->second.of_graph) return INVALID_VALUE;
    Block block = found->second;
    device.blocks.erase(found);
    munmap(reinterpret_cast<void *>(address), block.bytes);
    if (block.pool) {
        block.pool->used -= block.bytes;
    } else {
        device.taken -= block.bytes;
    }
    return SUCCESS;
}

// Whether so many bytes from an address on lie in one allocation.
bool lies_within(uintptr_t address, size_t bytes) {
    std::lock_guard<std::mutex> hold(device.lock);
    auto next = device.blocks.upper_bound(address);
    if (next == device.blocks.begin()) return false;
    auto block = std::prev(next);
    return address + bytes <= block->first + block->second.bytes;
}

int outside(const char *what, uintptr_t address, size_t bytes) {
    fprintf(stderr, "%s of %zu bytes at %#zx is not within an allocation\n", what, bytes,
            static_cast<size_t>(address));
    return INVALID_VALUE;
}

// A module is a shared object that nvrtc's stand-in has made, or one of candle's.
struct Module {
    void *object = nullptr;
};

// `emulator_sizes` of the emulator.
using Sizes = const size_t *(*)(const char *, size_t *);

struct Function {
    std::string name;
    void *launch = nullptr;
    Sizes sizes = nullptr;
    CandleKernel candle = nullptr;
};

// `emulator_launch` of the emulator.
using Launch = const char *(*)(const char *, const unsigned *, const unsigned *, size_t, void **,
                               const size_t *, size_t, unsigned);

int launch_now(const Function &kernel, const unsigned *grid, const unsigned *block, unsigned shared,
               void **arguments) {
    if (kernel.candle) {
        kernel.candle(arguments);
        return SUCCESS;
    }
    auto launch = reinterpret_cast<Launch>(kernel.launch);
    const char *fault =
        launch(kernel.name.c_str(), grid, block, shared, arguments, nullptr, 0, 0);
    if (!fault) return SUCCESS;
    fprintf(stderr, "%s\n", fault);
    return LAUNCH_FAILED;
}

// The sizes of a kernel's arguments; none where they are not known.
std::vector<size_t> sizes_of(const Function &kernel) {
    // Each is at most so long, and what follows it on the caller's stack may be read with it.
    if (kernel.candle) return std::vector<size_t>(candle_arguments(kernel.name.c_str()), 8);
    size_t count = 0;
    const size_t *sizes = kernel.sizes ? kernel.sizes(kernel.name.c_str(), &count) : nullptr;
    return sizes ? std::vector<size_t>(sizes, sizes + count) : std::vector<size_t>();
}

// A kernel with the arguments that it has now.
int record_launch(const Function &kernel, std::vector<unsigned> grid, std::vector<unsigned> block,
                  unsigned shared, void **arguments) {
    std::vector<std::vector<char>> values;
    for (size_t size : sizes_of(kernel)) {
        const char *value = static_cast<char *>(arguments[values.size()]);
        values.emplace_back(value, value + size);
    }
    if (values.empty()) {
        fprintf(stderr, "the stand-in does not record %s\n", kernel.name.c_str());
        return refuse_in_capture();
    }
    return record(Node::KERNEL, [=, &kernel] {
        std::vector<void *> places;
        for (const auto &value : values) places.push_back(const_cast<char *>(value.data()));
        return launch_now(kernel, grid.data(), block.data(), shared, places.data());
    });
}

} // namespace

int map_for_graph(uintptr_t *address, size_t bytes) {
    std::lock_guard<std::mutex> hold(device.lock);
    size_t rounded = (bytes + 4095) / 4096 * 4096;
    void *block = bytes ? map(rounded, PROT_NONE) : nullptr;
    if (!block) return bytes ? OUT_OF_MEMORY : INVALID_VALUE;
    *address = reinterpret_cast<uintptr_t>(block);
    device.blocks[*address] = Block{rounded, nullptr, true};
    return SUCCESS;
}

void unmap_of_graph(uintptr_t address) {
    std::lock_guard<std::mutex> hold(device.lock);
    munmap(reinterpret_cast<void *>(address), device.blocks[address].bytes);
    device.blocks.erase(address);
}

int set_there(uintptr_t address, size_t bytes, bool there) {
    void *block = reinterpret_cast<void *>(address);
    if (mprotect(block, bytes, there ? PROT_READ | PROT_WRITE : PROT_NONE)) return INVALID_VALUE;
    if (there) memset(block, 0xff, bytes);
    return SUCCESS;
}

bool take_for_graphs(int64_t bytes) {
    std::lock_guard<std::mutex> hold(device.lock);
    if (bytes > 0 && static_cast<uint64_t>(bytes) > free_bytes()) return false;
    device.taken += static_cast<uint64_t>(bytes);
    return true;
}

extern "C" {

int cuInit(unsigned) { return SUCCESS; }
int cuDriverGetVersion(int *version) { *version = 13000; return SUCCESS; }
int cuDeviceGetCount(int *count) { *count = 1; return SUCCESS; }
int cuDeviceGet(int *handle, int ordinal) {
    *handle = 0;
    return ordinal == 0 ? SUCCESS : 101;
}
int cuDeviceGetName(char *name, int length, int) {
    snprintf(name, static_cast<size_t>(length), "stand-in without a GPU");
    return SUCCESS;
}
int cuDeviceGetUuid_v2(char *uuid, int) {
    for (int i = 0; i < 16; i++) uuid[i] = static_cast<char>(0x10 + i);
    return SUCCESS;
}
int cuDeviceGetUuid(char *uuid, int handle) { return cuDeviceGetUuid_v2(uuid, handle); }
int cuDeviceTotalMem_v2(size_t *bytes, int) { *bytes = total_bytes(); return SUCCESS; }

int cuDeviceGetAttribute(int *value, int attribute, int) {
    switch (attribute) {
    case 16: *value = 4; break;      // multiprocessors
    case 75: *value = 9; break;      // compute capability, major
    case 76: *value = 0; break;      // and minor
    case 97: *value = 101376; break; // shared memory that a block may ask for
    case 115: *value = 1; break;     // memory pools
    case 1: *value = 1024; break;    // threads of a block
    default: *value = 0;
    }
    return SUCCESS;
}

int cuDevicePrimaryCtxRetain(void **context, int) {
    *context = &device;
    return SUCCESS;
}
int cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
int cuCtxSetCurrent(void *) { return SUCCESS; }
int cuCtxGetCurrent(void **context) { *context = &device; return SUCCESS; }
int cuCtxSynchronize() { return SUCCESS; }

// cuStreamBeginCapture and what goes with it are in graphs.cpp.
int cuStreamCreate(void **stream, unsigned) {
    *stream = &device;
    return SUCCESS;
}
int cuStreamDestroy_v2(void *) { return SUCCESS; }
int cuStreamWaitEvent(void *, void *, unsigned) { return SUCCESS; }
int cuStreamSynchronize(void *) {
    if (is_capturing()) return refuse_in_capture();
    // A pool gives back what is beyond its threshold.
    std::lock_guard<std::mutex> hold(device.lock);
    trim(*device.current, device.current->threshold);
    return SUCCESS;
}

int cuEventCreate(void **event, unsigned) { *event = &device; return SUCCESS; }
int cuEventDestroy_v2(void *) { return SUCCESS; }
int cuEventRecord(void *, void *) { return SUCCESS; }
int cuEventSynchronize(void *) { return SUCCESS; }

int cuMemGetInfo_v2(size_t *free, size_t *total) {
    std::lock_guard<std::mutex> hold(device.lock);
    *free = free_bytes();
    *total = total_bytes();
    return SUCCESS;
}

int cuMemAlloc_v2(uintptr_t *address, size_t bytes) { return allocate(address, bytes, nullptr); }
int cuMemFree_v2(uintptr_t address) { return release(address); }
int cuMemAllocAsync(uintptr_t *address, size_t bytes, void *) {
    if (is_capturing()) return record_allocation(address, bytes);
    return allocate(address, bytes, device.current);
}
int cuMemFreeAsync(uintptr_t address, void *) {
    return is_capturing() ? record_release(address) : release(address);
}

int cuMemsetD8Async(uintptr_t address, unsigned char value, size_t bytes, void *) {
    if (!lies_within(address, bytes)) return outside("a fill", address, bytes);
    auto fill = [=] {
        memset(reinterpret_cast<void *>(address), value, bytes);
        return SUCCESS;
    };
    return is_capturing() ? record(Node::FILL, fill) : fill();
}
int cuMemsetD8_v2(uintptr_t address, unsigned char value, size_t bytes) {
    return cuMemsetD8Async(address, value, bytes, nullptr);
}
int cuMemcpyHtoDAsync_v2(uintptr_t to, const void *from, size_t bytes, void *) {
    if (!lies_within(to, bytes)) return outside("a copy", to, bytes);
    auto copy = [=] {
        memcpy(reinterpret_cast<void *>(to), from, bytes);
        return SUCCESS;
    };
    return is_capturing() ? record_copy(true, false, copy) : copy();
}
int cuMemcpyDtoHAsync_v2(void *to, uintptr_t from, size_t bytes, void *) {
    if (!lies_within(from, bytes)) return outside("a copy", from, bytes);
    auto copy = [=] {
        memcpy(to, reinterpret_cast<void *>(from), bytes);
        return SUCCESS;
    };
    return is_capturing() ? record_copy(false, true, copy) : copy();
}
int cuMemcpyDtoDAsync_v2(uintptr_t to, uintptr_t from, size_t bytes, void *) {
    if (!lies_within(to, bytes)) return outside("a copy", to, bytes);
    if (!lies_within(from, bytes)) return outside("a copy", from, bytes);
    auto copy = [=] {
        memmove(reinterpret_cast<void *>(to), reinterpret_cast<void *>(from), bytes);
        return SUCCESS;
    };
    return is_capturing() ? record_copy(false, false, copy) : copy();
}

// The fields that are read of CUmemPoolProps: kinds, place, a handle, and the limit.
struct PoolProperties {
    int allocation, handle, place, ordinal;
    void *attributes;
    size_t limit;
};

int cuMemPoolCreate(void **pool, const PoolProperties *properties) {
    Pool *made = new Pool;
    made->limit = properties->limit;
    *pool = made;
    return SUCCESS;
}
int cuMemPoolDestroy(void *pool) { delete static_cast<Pool *>(pool); return SUCCESS; }
int cuDeviceGetDefaultMemPool(void **pool, int) { *pool = &device.standard; return SUCCESS; }
int cuDeviceGetMemPool(void **pool, int) { *pool = device.current; return SUCCESS; }
int cuDeviceSetMemPool(int, void *pool) {
    std::lock_guard<std::mutex> hold(device.lock);
    device.current = static_cast<Pool *>(pool);
    return SUCCESS;
}
int cuMemPoolTrimTo(void *pool, size_t keep) {
    std::lock_guard<std::mutex> hold(device.lock);
    trim(*static_cast<Pool *>(pool), keep);
    return SUCCESS;
}

// The attributes of a pool, by their numbers.
enum { THRESHOLD = 4, RESERVED = 5, RESERVED_HIGH = 6, USED = 7, USED_HIGH = 8 };

int cuMemPoolGetAttribute(void *pool, int attribute, uint64_t *value) {
    std::lock_guard<std::mutex> hold(device.lock);
    Pool &of = *static_cast<Pool *>(pool);
    switch (attribute) {
    case THRESHOLD: *value = of.threshold; return SUCCESS;
    case RESERVED: *value = of.reserved; return SUCCESS;
    case RESERVED_HIGH: *value = of.reserved_high; return SUCCESS;
    case USED: *value = of.used; return SUCCESS;
    case USED_HIGH: *value = of.used_high; return SUCCESS;
    default: return INVALID_VALUE;
    }
}

int cuMemPoolSetAttribute(void *pool, int attribute, const uint64_t *value) {
    std::lock_guard<std::mutex> hold(device.lock);
    Pool &of = *static_cast<Pool *>(pool);
    switch (attribute) {
    case THRESHOLD: of.threshold = *value; return SUCCESS;
    case RESERVED_HIGH: of.reserved_high = of.reserved; return *value ? INVALID_VALUE : SUCCESS;
    case USED_HIGH: of.used_high = of.used; return *value ? INVALID_VALUE : SUCCESS;
    default: return INVALID_VALUE;
    }
}

int cuModuleLoadData(void **module, const void *image) {
    // What nvrtc's stand-in returns begins so, and goes on with the path of a shared object.
    static const char BEGIN[] = "// shared object ";
    const char *text = static_cast<const char *>(image);
    Module *loaded = new Module;
    if (strncmp(text, BEGIN, sizeof BEGIN - 1) == 0) {
        std::string path = text + sizeof BEGIN - 1;
        path.erase(path.find('\n'));
        loaded->object = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
        if (!loaded->object) {
            fprintf(stderr, "%s\n", dlerror());
            return NOT_FOUND;
        }
    }
    *module = loaded;
    return SUCCESS;
}
int cuModuleUnload(void *) { return SUCCESS; }

int cuModuleGetFunction(void **function, void *module, const char *name) {
    void *object = static_cast<Module *>(module)->object;
    Function *found = new Function;
    found->name = name;
    if (object) {
        found->launch = dlsym(object, "emulator_launch");
        found->sizes = reinterpret_cast<Sizes>(dlsym(object, "emulator_sizes"));
    } else {
        found->candle = candle_kernel(name);
    }
    if (!found->launch && !found->candle) {
        fprintf(stderr, "the stand-in has no kernel %s\n", name);
        return NOT_FOUND;
    }
    *function = found;
    return SUCCESS;
}

int cuFuncSetAttribute(void *, int, int) { return SUCCESS; }

int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, void *, void **arguments, void **) {
    const Function &kernel = *static_cast<Function *>(function);
    if (is_capturing()) return record_launch(kernel, {gx, gy, gz}, {bx, by, bz}, shared, arguments);
    const unsigned grid[] = {gx, gy, gz}, block[] = {bx, by, bz};
    return launch_now(kernel, grid, block, shared, arguments);
}

static const char *name_of(int error) {
    switch (error) {
    case SUCCESS: return "CUDA_SUCCESS";
    case INVALID_VALUE: return "CUDA_ERROR_INVALID_VALUE";
    case OUT_OF_MEMORY: return "CUDA_ERROR_OUT_OF_MEMORY";
    case 101: return "CUDA_ERROR_INVALID_DEVICE";
    case NOT_FOUND: return "CUDA_ERROR_NOT_FOUND";
    case LAUNCH_FAILED: return "CUDA_ERROR_LAUNCH_FAILED";
    case 900: return "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED";
    case 901: return "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED";
    default: return "CUDA_ERROR_NOT_SUPPORTED";
    }
}
int cuGetErrorName(int error, const char **text) { *text = name_of(error); return SUCCESS; }
int cuGetErrorString(int error, const char **text) { *text = name_of(error); return SUCCESS; }

} // extern "C"
