// As the real driver: a node that allocates gives its address when it is recorded and memory when it is
// launched, a graph must free what it allocates, memory of a graph is nobody else's to free, and a capture
// in which something went wrong is good for nothing more.

#include "graphs.h"

#include "results.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <vector>

namespace {

struct Step {
    Node kind;
    Work work;
    bool from_host = false, to_host = false;
    // Of a copy, and where what is allocated lies.
    uintptr_t from = 0, to = 0;
    size_t bytes = 0;
};

struct Graph {
    std::vector<Step> steps;
    // Of what it allocates: how much, and whether it is freed again.
    std::map<uintptr_t, std::pair<size_t, bool>> memory;
    // What it has allocated and not freed, as it was recorded; and at most: that is what it takes, since
    // it uses the memory of what it has freed again.
    size_t live = 0, bytes = 0;
    bool launched = false;
};

// Of the device's one stream.
Graph *captured = nullptr;
bool broken = false;

// What graphs take that have been launched and are there, and what they have of the device, now and at
// most.
size_t used = 0, reserved = 0, reserved_high = 0;

constexpr size_t GRANULE = 2 << 20;

size_t whole_granules(size_t bytes) { return (bytes + GRANULE - 1) / GRANULE * GRANULE; }

bool reserve(size_t wanted) {
    wanted = whole_granules(wanted);
    if (wanted <= reserved) return true;
    if (!take_for_graphs(static_cast<int64_t>(wanted - reserved))) return false;
    reserved = wanted;
    if (reserved > reserved_high) reserved_high = reserved;
    return true;
}

void trim() {
    size_t wanted = whole_granules(used);
    if (wanted >= reserved) return;
    take_for_graphs(-static_cast<int64_t>(reserved - wanted));
    reserved = wanted;
}

void destroy(Graph *graph) {
    for (const auto &block : graph->memory) unmap_of_graph(block.first);
    if (graph->launched) used -= graph->bytes;
    delete graph;
}

// What the stream is yet to do, and how much it has ever been given.
std::recursive_mutex stream_lock;
std::deque<Work> kept;
size_t given = 0;
// How often somebody has waited for all of it.
size_t waits = 0;
// What went wrong when nobody waited: the next call that does hears of it.
int failed = SUCCESS;

// After how much work the context is to be lost, of the file of CHANDLER_STAND_IN_LOST; 0 for never.
size_t number_in(const char *path) {
    unsigned long number = 0;
    FILE *file = path ? fopen(path, "r") : nullptr;
    if (!file) return 0;
    if (fscanf(file, "%lu", &number) != 1) number = 0;
    fclose(file);
    return number;
}

std::atomic<bool> lost = false;

// Whether the context is lost at this piece of work, or was before.
bool loses_context() {
    static const char *path = getenv("CHANDLER_STAND_IN_LOST");
    static const size_t after = number_in(path);
    if (!lost && after && given >= after) {
        lost = true;
        kept.clear();
        remove(path);
    }
    return lost;
}

bool is_late() {
    static const bool late = getenv("CHANDLER_STAND_IN_LATE") != nullptr;
    return late;
}

} // namespace

int perform(Work work) {
    std::lock_guard<std::recursive_mutex> hold(stream_lock);
    if (lost) return ILLEGAL_ADDRESS;
    given++;
    // The call that hands it over does not hear of it yet.
    if (loses_context()) return SUCCESS;
    if (!is_late()) return work();
    kept.push_back(std::move(work));
    return SUCCESS;
}

size_t kept_so_far() {
    std::lock_guard<std::recursive_mutex> hold(stream_lock);
    return given;
}

int catch_up_to(size_t number) {
    std::lock_guard<std::recursive_mutex> hold(stream_lock);
    while (!kept.empty() && given - kept.size() < number) {
        Work work = std::move(kept.front());
        kept.pop_front();
        int status = work();
        if (status && !failed) failed = status;
    }
    int status = lost ? ILLEGAL_ADDRESS : failed;
    failed = SUCCESS;
    return status;
}

bool is_lost() { return lost; }

int wait_for_all() {
    {
        std::lock_guard<std::recursive_mutex> hold(stream_lock);
        waits++;
    }
    return catch_up();
}

int catch_up() { return catch_up_to(kept_so_far()); }

bool is_capturing() { return captured != nullptr; }

int record(Node kind, Work work) {
    if (broken) return CAPTURE_INVALIDATED;
    captured->steps.push_back(Step{kind, std::move(work)});
    return SUCCESS;
}

int record_copy(bool from_host, bool to_host, uintptr_t from, uintptr_t to, Work work) {
    int status = record(Node::COPY, std::move(work));
    if (status == SUCCESS) {
        Step &step = captured->steps.back();
        step.from_host = from_host, step.to_host = to_host, step.from = from, step.to = to;
    }
    return status;
}

int record_allocation(uintptr_t *address, size_t bytes) {
    if (broken) return CAPTURE_INVALIDATED;
    int status = map_for_graph(address, bytes);
    if (status != SUCCESS) return status;
    uintptr_t at = *address;
    captured->memory[at] = {bytes, false};
    captured->live += bytes;
    captured->bytes = std::max(captured->bytes, captured->live);
    status = record(Node::ALLOCATION, [=] { return set_there(at, bytes, true); });
    captured->steps.back().to = at, captured->steps.back().bytes = bytes;
    return status;
}

int record_release(uintptr_t address) {
    if (broken) return CAPTURE_INVALIDATED;
    auto found = captured->memory.find(address);
    if (found == captured->memory.end() || found->second.second) return refuse_in_capture();
    found->second.second = true;
    size_t bytes = found->second.first;
    captured->live -= bytes;
    return record(Node::RELEASE, [=] { return set_there(address, bytes, false); });
}

int refuse_in_capture() {
    broken = true;
    return CAPTURE_UNSUPPORTED;
}

extern "C" {

int cuStreamBeginCapture_v2(void *, int) {
    if (captured) return CAPTURE_UNMATCHED;
    captured = new Graph;
    broken = false;
    return SUCCESS;
}

int cuStreamEndCapture(void *, void **graph) {
    *graph = nullptr;
    if (!captured) return CAPTURE_UNMATCHED;
    Graph *ended = captured;
    captured = nullptr;
    if (broken) {
        destroy(ended);
        return CAPTURE_INVALIDATED;
    }
    *graph = ended;
    return SUCCESS;
}

int cuStreamIsCapturing(void *, int *status) {
    *status = !captured ? 0 : broken ? 2 : 1;
    return SUCCESS;
}

// The executable graph is the graph itself.
int cuGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long) {
    *executable = graph;
    return SUCCESS;
}
int cuGraphExecDestroy(void *) { return SUCCESS; }
int cuGraphDestroy(void *graph) {
    // The real one keeps it as long as the stream needs it.
    int status = catch_up();
    destroy(static_cast<Graph *>(graph));
    return status;
}

int cuGraphLaunch(void *executable, void *) {
    Graph &graph = *static_cast<Graph *>(executable);
    if (captured) return refuse_in_capture();
    for (const auto &block : graph.memory)
        // The real one launches such a graph once and no more.
        if (!block.second.second) return INVALID_VALUE;
    if (!graph.launched) {
        if (!reserve(used + graph.bytes)) return OUT_OF_MEMORY;
        used += graph.bytes;
        graph.launched = true;
    }
    Graph *launched = &graph;
    return perform([launched] {
        for (const Step &step : launched->steps)
            if (int status = step.work()) return status;
        return static_cast<int>(SUCCESS);
    });
}

int cuGraphGetNodes(void *handle, void **nodes, size_t *count) {
    Graph &graph = *static_cast<Graph *>(handle);
    if (!nodes) {
        *count = graph.steps.size();
        return SUCCESS;
    }
    if (*count > graph.steps.size()) *count = graph.steps.size();
    for (size_t i = 0; i < *count; i++) nodes[i] = &graph.steps[i];
    return SUCCESS;
}

int cuGraphNodeGetType(void *node, int *kind) {
    *kind = static_cast<int>(static_cast<Step *>(node)->kind);
    return SUCCESS;
}

// CUDA_MEMCPY3D, of which the sides' kinds of memory are told.
struct Copy3D {
    size_t from[4];
    int from_kind;
    size_t from_rest[6];
    size_t to[4];
    int to_kind;
    size_t to_rest[6];
    size_t extent[3];
};
static_assert(sizeof(Copy3D) == 200, "as the driver has it");

int cuGraphMemcpyNodeGetParams_v2(void *node, Copy3D *copy) {
    // The real one may name either; what is unified it knows by its address.
    enum { HOST = 1, DEVICE = 2, UNIFIED = 4 };
    const Step &step = *static_cast<Step *>(node);
    if (step.kind != Node::COPY) return INVALID_VALUE;
    memset(copy, 0, sizeof *copy);
    copy->from_kind = step.from_host ? HOST : UNIFIED;
    copy->to_kind = step.to_host ? HOST : step.from_host ? UNIFIED : DEVICE;
    copy->from_rest[1] = step.from;
    copy->to_rest[1] = step.to;
    return SUCCESS;
}
int cuGraphMemcpyNodeGetParams(void *node, Copy3D *copy) {
    return cuGraphMemcpyNodeGetParams_v2(node, copy);
}

// The fields that are read of CUDA_MEM_ALLOC_NODE_PARAMS.
struct AllocationNode {
    char pool[88];
    const void *access;
    size_t access_count, bytes;
    uintptr_t address;
};

int cuGraphMemAllocNodeGetParams(void *node, AllocationNode *memory) {
    const Step &step = *static_cast<Step *>(node);
    if (step.kind != Node::ALLOCATION) return INVALID_VALUE;
    memset(memory, 0, sizeof *memory);
    memory->bytes = step.bytes;
    memory->address = step.to;
    return SUCCESS;
}

int cuDeviceGraphMemTrim(int) {
    trim();
    return SUCCESS;
}

// The attributes by their numbers.
enum { USED = 0, RESERVED = 2, RESERVED_HIGH = 3 };

int cuDeviceGetGraphMemAttribute(int, int attribute, uint64_t *value) {
    switch (attribute) {
    case USED: *value = used; return SUCCESS;
    case RESERVED: *value = reserved; return SUCCESS;
    case RESERVED_HIGH: *value = reserved_high; return SUCCESS;
    default: return INVALID_VALUE;
    }
}

int cuDeviceSetGraphMemAttribute(int, int attribute, const uint64_t *value) {
    if (attribute != RESERVED_HIGH || *value) return INVALID_VALUE;
    reserved_high = reserved;
    return SUCCESS;
}

// For tests.
size_t stand_in_waits() { return waits; }

// For the other libraries: whether work is recorded now; work that is recorded, kept or done.
bool stand_in_records() { return is_capturing(); }

int stand_in_perform(Work *work) {
    int status = is_capturing() ? record(Node::KERNEL, *work) : perform(*work);
    delete work;
    return status;
}

} // extern "C"
