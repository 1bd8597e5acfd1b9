// The memory of a driver without a GPU: blocks of the host's, pools that count and refuse, copies.

#include "memory.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <mutex>
#include <sys/mman.h>
#include <vector>

#include "graphs.h"
#include "results.h"

namespace {

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
    // Memory of the host that is not paged out, and how much.
    std::map<uintptr_t, size_t> pinned;
    // Of all pools, and of what was allocated outside of them.
    uint64_t taken = 0;
};

Device device;

// The bytes of fresh memory.
int fresh = 0xff;

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

// Whether what a pool keeps is in pieces that serve no large allocation.
bool in_pieces(uint64_t bytes) {
    return bytes >= GRANULE && from_environment("CHANDLER_STAND_IN_PIECES", 0);
}

// Memory that the pool keeps serves first; what is missing is taken from the device.
bool grow(Pool &pool, uint64_t bytes) {
    uint64_t used = pool.used + bytes;
    uint64_t served = in_pieces(bytes) ? pool.used : pool.reserved;
    if (pool.limit && used > pool.limit) return false;
    if (used <= served) return true;
    uint64_t missing = (used - served + GRANULE - 1) / GRANULE * GRANULE;
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
        if (!grow(*pool, rounded)) return OUT_OF_MEMORY;
        pool->used += rounded;
        raise(pool->used_high, pool->used);
    } else {
        if (rounded > free_bytes()) return OUT_OF_MEMORY;
        device.taken += rounded;
    }
    void *block = map(rounded, PROT_READ | PROT_WRITE);
    if (!block) return OUT_OF_MEMORY;
    memset(block, fresh, rounded);
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

bool is_allocated(uintptr_t address) {
    std::lock_guard<std::mutex> hold(device.lock);
    auto found = device.blocks.find(address);
    return found != device.blocks.end() && !found->second.of_graph;
}

bool is_pinned(const void *address) {
    std::lock_guard<std::mutex> hold(device.lock);
    uintptr_t at = reinterpret_cast<uintptr_t>(address);
    auto next = device.pinned.upper_bound(at);
    if (next == device.pinned.begin()) return false;
    auto memory = std::prev(next);
    return at < memory->first + memory->second;
}

int outside(const char *what, uintptr_t address, size_t bytes) {
    fprintf(stderr, "%s of %zu bytes at %#zx is not within an allocation\n", what, bytes,
            static_cast<size_t>(address));
    return INVALID_VALUE;
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

uint64_t device_bytes() { return total_bytes(); }

void trim_current_pool() {
    std::lock_guard<std::mutex> hold(device.lock);
    trim(*device.current, device.current->threshold);
}

extern "C" {

int cuMemGetInfo_v2(size_t *free, size_t *total) {
    std::lock_guard<std::mutex> hold(device.lock);
    *free = free_bytes();
    *total = total_bytes();
    return SUCCESS;
}

int cuMemAlloc_v2(uintptr_t *address, size_t bytes) {
    return is_lost() ? ILLEGAL_ADDRESS : allocate(address, bytes, nullptr);
}
int cuMemFree_v2(uintptr_t address) { return release(address); }
int cuMemAllocAsync(uintptr_t *address, size_t bytes, void *) {
    if (is_lost()) return ILLEGAL_ADDRESS;
    if (is_capturing()) return record_allocation(address, bytes);
    int status = allocate(address, bytes, device.current);
    if (status != OUT_OF_MEMORY) return status;
    // What the stream is yet to free serves what comes after it.
    if (int failed = catch_up()) return failed;
    return allocate(address, bytes, device.current);
}
int cuMemFreeAsync(uintptr_t address, void *) {
    if (is_capturing()) return record_release(address);
    if (!is_allocated(address)) return INVALID_VALUE;
    return perform([=] { return release(address); });
}

// Memory of the host that is not paged out.
int cuMemHostAlloc(void **memory, size_t bytes, unsigned) {
    *memory = malloc(bytes);
    if (!*memory) return OUT_OF_MEMORY;
    std::lock_guard<std::mutex> hold(device.lock);
    device.pinned[reinterpret_cast<uintptr_t>(*memory)] = bytes;
    return SUCCESS;
}
int cuMemFreeHost(void *memory) {
    int status = catch_up();
    std::lock_guard<std::mutex> hold(device.lock);
    device.pinned.erase(reinterpret_cast<uintptr_t>(memory));
    free(memory);
    return status;
}

int cuMemsetD8Async(uintptr_t address, unsigned char value, size_t bytes, void *) {
    if (!lies_within(address, bytes)) return outside("a fill", address, bytes);
    auto fill = [=] {
        memset(reinterpret_cast<void *>(address), value, bytes);
        return SUCCESS;
    };
    return is_capturing() ? record(Node::FILL, fill) : perform(fill);
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
    if (is_capturing()) return record_copy(true, false, reinterpret_cast<uintptr_t>(from), to, copy);
    if (is_pinned(from)) return perform(copy);
    // Memory that may be paged out is read before the call returns.
    std::vector<char> values(static_cast<const char *>(from), static_cast<const char *>(from) + bytes);
    return perform([=] {
        memcpy(reinterpret_cast<void *>(to), values.data(), bytes);
        return SUCCESS;
    });
}
int cuMemcpyDtoHAsync_v2(void *to, uintptr_t from, size_t bytes, void *) {
    if (!lies_within(from, bytes)) return outside("a copy", from, bytes);
    auto copy = [=] {
        memcpy(to, reinterpret_cast<void *>(from), bytes);
        return SUCCESS;
    };
    if (is_capturing()) return record_copy(false, true, from, reinterpret_cast<uintptr_t>(to), copy);
    if (is_pinned(to)) return perform(copy);
    if (int status = wait_for_all()) return status;
    return copy();
}
int cuMemcpyDtoDAsync_v2(uintptr_t to, uintptr_t from, size_t bytes, void *) {
    if (!lies_within(to, bytes)) return outside("a copy", to, bytes);
    if (!lies_within(from, bytes)) return outside("a copy", from, bytes);
    auto copy = [=] {
        memmove(reinterpret_cast<void *>(to), reinterpret_cast<void *>(from), bytes);
        return SUCCESS;
    };
    return is_capturing() ? record_copy(false, false, from, to, copy) : perform(copy);
}

// For tests: fresh memory is full of this byte, as a card's is often full of zeros.
void stand_in_fresh(int byte) { fresh = byte; }

// For the other libraries.
bool stand_in_has(const void *address, size_t bytes) {
    return lies_within(reinterpret_cast<uintptr_t>(address), bytes);
}

// Of the attributes that an address has, its kind of memory. That of a graph has none before it is there.
int cuPointerGetAttribute(void *value, int attribute, uintptr_t address) {
    enum { KIND = 2, DEVICE = 2 };
    if (attribute != KIND || !lies_within(address, 1)) return INVALID_VALUE;
    std::lock_guard<std::mutex> hold(device.lock);
    if (std::prev(device.blocks.upper_bound(address))->second.of_graph) return INVALID_VALUE;
    *static_cast<unsigned *>(value) = DEVICE;
    return SUCCESS;
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
    if (!is_capturing()) catch_up();
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

} // extern "C"
