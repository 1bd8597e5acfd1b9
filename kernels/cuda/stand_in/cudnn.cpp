// cuDNN without a GPU: its graph API as far as attention over documents goes, by the rules of NVIDIA's
// header and of what the library was seen to take. The arithmetic is in attention.cpp.
// `stand_in_cudnn_spoil` has it be wrong.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "attention.h"

// The driver's: gives the work to its stream, and takes the pointer.
extern "C" int stand_in_perform(std::function<int()> *work) __attribute__((weak));

namespace {

enum { SUCCESS = 0, BAD_PARAM = 2000, NOT_SUPPORTED = 3000 };
enum Kind {
    POINTWISE = 0, ENGINE = 2, CONFIG = 3, HEURISTICS = 4, PLAN = 5, CHOICE = 7, POINTWISE_OPERATION = 13,
    GRAPH = 15, PACK = 16, TENSOR = 17, DEVICE = 38, FORWARD = 41, BACKWARD = 43, MASK = 44,
};
enum Type {
    HANDLE = 0, DATA_TYPE = 1, BOOLEAN = 2, INT64 = 3, POINTER = 6, HEURISTIC_MODE = 8, KNOB = 9, MODE = 14,
    DESCRIPTOR = 15, CHAR = 24,
};
enum { BF16 = 9, INT32 = 4, FLOAT = 0 };

char handle;
std::string last_error;

int refuse(int status, const std::string &why) {
    last_error = why;
    return status;
}

struct Attribute {
    int type;
    std::vector<char> bytes;
    int64_t count;
};

struct Descriptor {
    int kind = -1;
    bool is_whole = false;
    std::map<int, Attribute> attributes;

    bool has(int name) const { return attributes.count(name) != 0; }

    template <class T>
    std::vector<T> all(int name) const {
        auto found = attributes.find(name);
        if (found == attributes.end()) return {};
        std::vector<T> values(static_cast<size_t>(found->second.count));
        memcpy(values.data(), found->second.bytes.data(), values.size() * sizeof(T));
        return values;
    }
    int64_t number(int name) const { return has(name) ? all<int64_t>(name).at(0) : 0; }
    int code(int name) const { return has(name) ? all<int>(name).at(0) : -1; }
    const Descriptor *other(int name) const {
        return has(name) ? all<const Descriptor *>(name).at(0) : nullptr;
    }
};

size_t size_of(int type) {
    switch (type) {
    case BOOLEAN: case CHAR: return 1;
    case DATA_TYPE: case HEURISTIC_MODE: case KNOB: case MODE: return 4;
    default: return 8;
    }
}

// The type that each attribute has.
int type_of(int name) {
    switch (name) {
    case 0: case 3007: return MODE;
    case 1: case 901: return DATA_TYPE;
    case 200: return HEURISTIC_MODE;
    case 400: case 800: return HANDLE;
    case 600: return KNOB;
    case 907: case 908: return BOOLEAN;
    case 402: case 601: case 900: case 902: case 903: case 906: case 914: case 1000: case 1301:
    case 2812: case 2813: case 2865: case 2866: case 2868: case 2869: return INT64;
    case 1001: case 1003: return POINTER;
    case 2702: return CHAR;
    default: return DESCRIPTOR;
    }
}

// What must be there before a descriptor is whole.
std::vector<int> required(int kind) {
    switch (kind) {
    case POINTWISE: return {0, 1};
    case ENGINE: return {1300, 1301};
    case CONFIG: return {300};
    case HEURISTICS: return {200, 201};
    case PLAN: return {401};
    case CHOICE: return {600, 601};
    case POINTWISE_OPERATION: return {750, 751, 753};
    case GRAPH: return {801};
    case PACK: return {1000, 1001, 1003};
    case TENSOR: return {900, 901, 902, 903, 906};
    case DEVICE: return {2702};
    case FORWARD: return {2800, 2801, 2802, 2803};
    case BACKWARD: return {2851, 2852, 2853, 2854, 2855, 2859, 2860, 2861, 2862};
    case MASK: return {3000, 3005, 3006, 3007};
    default: return {};
    }
}

// Attributes of the operation, which differ between its passes.
struct Names {
    int q, k, scale, cu_q, cu_k, rules, input, output;
    std::vector<int> tensors;
};

const Names &names(int kind) {
    static const Names forward = {2800, 2801, 2805, 2820, 2821, 2811, 2812, 2813,
                                  {2800, 2801, 2802, 2803, 2804}};
    static const Names backward = {2851, 2852, 2856, 2870, 2871, 2867, 2868, 2869,
                                   {2851, 2852, 2853, 2854, 2855, 2862, 2859, 2860, 2861}};
    return kind == FORWARD ? forward : backward;
}

// Ways to be wrong: masks that are not applied, sums in another order each time, not to start, not to do
// what was planned, to be right only where the workspace is zero or the row behind the last document is a
// number, and to write that row.
enum Spoiled { NOTHING = 0, MASKS = 1, ORDER = 2, START = 3, WORK = 4, ZEROED = 5, READS = 6, WRITES = 7 };
int spoiled = NOTHING;

// The operation of a graph that is one attention.
const Descriptor *operation_of(const Descriptor &graph) {
    auto operations = graph.all<const Descriptor *>(801);
    return operations.size() == 1 && (operations[0]->kind == FORWARD || operations[0]->kind == BACKWARD)
        ? operations[0] : nullptr;
}

int64_t dimension(const Descriptor &tensor, size_t axis) { return tensor.all<int64_t>(902).at(axis); }

// Whether a tensor has its rows end to end, documents where the boundaries say.
bool is_packed(const Descriptor &tensor, const Descriptor *boundaries) {
    auto dims = tensor.all<int64_t>(902), strides = tensor.all<int64_t>(903);
    const int64_t row = dims[1] * dims[3];
    return tensor.other(913) == boundaries && tensor.number(914) == row && strides[1] == dims[3] &&
        strides[2] == row && strides[3] == 1;
}

// Whether the library has kernels for the operation.
int check_operation(const Descriptor &operation) {
    const Names &of = names(operation.kind);
    const Descriptor *boundaries = operation.other(of.cu_q);
    if (!boundaries || operation.other(of.cu_k) != boundaries) return refuse(NOT_SUPPORTED, "no boundaries");
    if (boundaries->code(901) != INT32) return refuse(BAD_PARAM, "boundaries are of 32 bits");
    for (int name : of.tensors) {
        const Descriptor *tensor = operation.other(name);
        const bool is_sums = name == 2804 || name == 2855;
        if (!tensor || tensor->code(901) != (is_sums ? FLOAT : BF16)) return refuse(NOT_SUPPORTED, "dtype");
        if (!is_packed(*tensor, boundaries)) return refuse(NOT_SUPPORTED, "strides");
        if (dimension(*tensor, 0) + 1 != dimension(*boundaries, 0)) return refuse(BAD_PARAM, "documents");
    }
    const int64_t dim = dimension(*operation.other(of.q), 3);
    if (dim % 8 || dim > 256) return refuse(NOT_SUPPORTED, "head dimension");
    if (!operation.other(of.rules)) return refuse(NOT_SUPPORTED, "no rules");
    return SUCCESS;
}

// The compute capability of a device that is described, ten times; without one that of the stand-in.
int64_t version_of(const Descriptor *device) {
    if (!device) return 900;
    auto text = device->all<char>(2702);
    std::string json(text.begin(), text.end());
    const std::string key = "\"deviceVer\": ";
    size_t at = json.find(key);
    return at == std::string::npos ? 0 : atoll(json.c_str() + at + key.size());
}

void set(Descriptor &descriptor, int name, int type, const void *values, size_t size) {
    const char *bytes = static_cast<const char *>(values);
    descriptor.attributes[name] = {type, std::vector<char>(bytes, bytes + size), 1};
}

// The knob that orders sums, if the configuration has it.
int64_t order_of(const Descriptor &config) {
    for (const Descriptor *choice : config.all<const Descriptor *>(302))
        if (choice->code(600) == 14) return choice->number(601);
    return 0;
}

int finalize_config(const Descriptor &config) {
    const Descriptor &engine = *config.other(300);
    const Descriptor *operation = operation_of(*engine.other(1300));
    const bool is_ordered = order_of(config) == 4;
    if (is_ordered && (operation->kind != BACKWARD || version_of(engine.other(1307)) != 900))
        return refuse(NOT_SUPPORTED, "ordered sums are for 9.0");
    return SUCCESS;
}

int finalize_plan(Descriptor &plan) {
    const Descriptor *operation = operation_of(*plan.other(401)->other(300)->other(1300));
    const Names &of = names(operation->kind);
    const int64_t heads = dimension(*operation->other(of.q), 1), dim = dimension(*operation->other(of.q), 3);
    const bool shares = heads != dimension(*operation->other(of.k), 1);
    int64_t bytes = 17408;
    if (operation->kind == BACKWARD)
        bytes += operation->number(2865) * heads * (4 * dim + 4 + (shares ? 4 * dim : 0));
    set(plan, 402, INT64, &bytes, sizeof bytes);
    return SUCCESS;
}

// Where a tensor of the plan lies now.
struct Addresses {
    std::map<int64_t, void *> places;
    void *of(const Descriptor *tensor) const {
        auto found = tensor ? places.find(tensor->number(906)) : places.end();
        return found == places.end() ? nullptr : found->second;
    }
    float number(const Descriptor *tensor) const { return *static_cast<const float *>(of(tensor)); }
};

// The rules of a graph of scores, with their numbers as they are now.
bool read_rules(const Descriptor &operation, const Addresses &now, std::vector<Rule> &rules) {
    const Names &of = names(operation.kind);
    int64_t at = operation.number(of.input);
    for (const Descriptor *step : operation.other(of.rules)->all<const Descriptor *>(801)) {
        const bool is_mask = step->kind == MASK;
        const Descriptor *x = step->other(is_mask ? 3000 : 751), *y = step->other(is_mask ? 3006 : 753);
        if (x->number(906) != at) return false;
        at = y->number(906);
        if (is_mask) {
            const Descriptor *window = step->other(3003);
            const int comparison = step->code(3007);
            if (comparison != (window ? 302 : 303)) return false;
            if (now.number(step->other(3005)) != -INFINITY) return false;
            if (spoiled == MASKS) continue;
            if (window) rules.push_back({Rule::WINDOW, double(*static_cast<int32_t *>(now.of(window)))});
            else rules.push_back({Rule::CAUSAL});
            continue;
        }
        switch (step->other(750)->code(0)) {
        case 1: rules.push_back({Rule::MULTIPLY, now.number(step->other(752))}); break;
        case 6: rules.push_back({Rule::DIVIDE, now.number(step->other(752))}); break;
        case 101: rules.push_back({Rule::TANH}); break;
        default: return false;
        }
    }
    return at == operation.number(of.output);
}

// Is wrong in one of the ways that go by what lies in memory. `rest` is what the workspace began with.
void spoil_rows(const Attention &attention, const Places &p, int64_t rows, float rest, bool is_backward) {
    const int64_t width = attention.heads * attention.dim, kv_width = attention.kv_heads * attention.dim;
    uint16_t *result = is_backward ? p.dq : p.y;
    const uint16_t no_number = 0x7fc0;
    if (spoiled == ZEROED && rest != 0) result[0] = no_number;
    if (spoiled == READS && (p.v[rows * kv_width] & 0x7fff) > 0x7f80) result[0] = no_number;
    if (spoiled == WRITES) result[rows * width] = 0;
}

// How often anything was executed, for tests to ask.
int runs = 0;

} // namespace

extern "C" {

int stand_in_cudnn_runs() { return runs; }
void stand_in_cudnn_spoil(int what) { spoiled = what; }

size_t cudnnGetVersion() { return 92801; }
int cudnnCreate(void **made) {
    if (spoiled == START) return refuse(1001, "not initialized");
    *made = &handle;
    return SUCCESS;
}
int cudnnDestroy(void *) { return SUCCESS; }
int cudnnSetStream(void *, void *) { return SUCCESS; }
void cudnnGetLastErrorString(char *text, size_t size) { snprintf(text, size, "%s", last_error.c_str()); }

int cudnnBackendCreateDescriptor(int kind, void **made) {
    auto descriptor = new Descriptor;
    descriptor->kind = kind;
    *made = descriptor;
    return SUCCESS;
}

int cudnnBackendDestroyDescriptor(void *descriptor) {
    delete static_cast<Descriptor *>(descriptor);
    return SUCCESS;
}

int cudnnBackendSetAttribute(void *to, int name, int type, int64_t count, const void *values) {
    auto &descriptor = *static_cast<Descriptor *>(to);
    if (descriptor.is_whole) return refuse(BAD_PARAM, "it is whole");
    if (type != type_of(name) || count < 0) return refuse(BAD_PARAM, "type of " + std::to_string(name));
    if (type == DESCRIPTOR)
        for (int64_t i = 0; i < count; i++)
            if (!static_cast<Descriptor *const *>(values)[i]->is_whole) return refuse(BAD_PARAM, "not whole");
    const char *bytes = static_cast<const char *>(values);
    descriptor.attributes[name] = {type, {bytes, bytes + static_cast<size_t>(count) * size_of(type)}, count};
    return SUCCESS;
}

int cudnnBackendFinalize(void *of) {
    auto &descriptor = *static_cast<Descriptor *>(of);
    for (int name : required(descriptor.kind))
        if (!descriptor.has(name)) return refuse(BAD_PARAM, "without " + std::to_string(name));
    int status = SUCCESS;
    switch (descriptor.kind) {
    case FORWARD: case BACKWARD: status = check_operation(descriptor); break;
    case HEURISTICS:
        if (!operation_of(*descriptor.other(201))) status = refuse(NOT_SUPPORTED, "not one attention");
        break;
    case CONFIG: status = finalize_config(descriptor); break;
    case PLAN: status = finalize_plan(descriptor); break;
    default: break;
    }
    descriptor.is_whole = status == SUCCESS;
    return status;
}

int cudnnBackendGetAttribute(void *of, int name, int type, int64_t room, int64_t *count, void *values) {
    const auto &descriptor = *static_cast<Descriptor *>(of);
    if (!descriptor.is_whole || type != type_of(name)) return refuse(BAD_PARAM, "not whole, or of another type");
    if (descriptor.kind == HEURISTICS && name == 202) {
        // One engine, of which the configuration has a knob already.
        *count = 1;
        if (room == 0) return SUCCESS;
        auto &config = **static_cast<Descriptor **>(values);
        auto engine = new Descriptor, choice = new Descriptor;
        const int64_t number = 13, tile = 2;
        const int tile_m = 40;
        *engine = {ENGINE, true, {}};
        set(*engine, 1301, INT64, &number, sizeof number);
        engine->attributes[1300] = descriptor.attributes.at(201);
        if (descriptor.has(204)) engine->attributes[1307] = descriptor.attributes.at(204);
        *choice = {CHOICE, true, {}};
        set(*choice, 600, KNOB, &tile_m, sizeof tile_m);
        set(*choice, 601, INT64, &tile, sizeof tile);
        config = {CONFIG, true, {}};
        set(config, 300, DESCRIPTOR, &engine, sizeof engine);
        set(config, 302, DESCRIPTOR, &choice, sizeof choice);
        return SUCCESS;
    }
    auto found = descriptor.attributes.find(name);
    if (found == descriptor.attributes.end()) return refuse(BAD_PARAM, "without it");
    *count = found->second.count;
    const int64_t given = std::min(room, *count);
    if (type != DESCRIPTOR) {
        memcpy(values, found->second.bytes.data(), static_cast<size_t>(given) * size_of(type));
        return SUCCESS;
    }
    // What is asked for is filled in.
    auto all = descriptor.all<const Descriptor *>(name);
    for (int64_t i = 0; i < given; i++) *static_cast<Descriptor **>(values)[i] = *all[static_cast<size_t>(i)];
    return SUCCESS;
}

int cudnnBackendExecute(void *, void *of_plan, void *of_pack) {
    const auto &plan = *static_cast<Descriptor *>(of_plan), &pack = *static_cast<Descriptor *>(of_pack);
    if (!plan.is_whole || !pack.is_whole) return refuse(BAD_PARAM, "not whole");
    if (spoiled == WORK) return refuse(5000, "execution");
    const Descriptor &config = *plan.other(401);
    const Descriptor &operation = *operation_of(*config.other(300)->other(1300));
    const Names &of = names(operation.kind);
    Addresses now;
    auto tensors = pack.all<int64_t>(1000);
    auto places = pack.all<void *>(1001);
    if (tensors.size() != places.size()) return refuse(BAD_PARAM, "names and addresses");
    for (size_t i = 0; i < tensors.size(); i++) now.places[tensors[i]] = places[i];

    std::vector<void *> at;
    for (int name : of.tensors) {
        at.push_back(now.of(operation.other(name)));
        if (!at.back()) return refuse(BAD_PARAM, "no address for " + std::to_string(name));
    }
    const Descriptor &q = *operation.other(of.q), &k = *operation.other(of.k);
    Attention attention = {dimension(q, 1), dimension(k, 1), dimension(q, 3), now.number(operation.other(of.scale)), {}, {}};
    if (!read_rules(operation, now, attention.rules)) return refuse(BAD_PARAM, "the rules of scores");
    Places p = {};
    p.q = static_cast<uint16_t *>(at[0]), p.k = static_cast<uint16_t *>(at[1]), p.v = static_cast<uint16_t *>(at[2]);
    p.y = static_cast<uint16_t *>(at[3]), p.log_sum_exp = static_cast<float *>(at[4]);
    const bool is_backward = operation.kind == BACKWARD;
    if (is_backward) {
        p.dy = static_cast<uint16_t *>(at[5]), p.dq = static_cast<uint16_t *>(at[6]);
        p.dk = static_cast<uint16_t *>(at[7]), p.dv = static_cast<uint16_t *>(at[8]);
    }
    const int64_t documents = dimension(q, 0), longest = dimension(q, 2), most = operation.number(2865);
    const auto *boundaries = static_cast<const int32_t *>(now.of(operation.other(of.cu_q)));
    void *workspace = pack.all<void *>(1003).at(0);
    const size_t bytes = static_cast<size_t>(plan.number(402));
    runs++;
    const bool is_ordered = order_of(config) == 4 && spoiled != ORDER;
    const double wobble = is_backward && !is_ordered && runs % 2 ? 0.01 : 0;
    auto work = [=]() mutable {
        float rest;
        memcpy(&rest, workspace, sizeof rest);
        // Whatever lies there is the plan's.
        memset(workspace, 0xff, bytes);
        attention.boundaries.assign(boundaries, boundaries + documents + 1);
        for (int64_t d = 0; d < documents; d++) {
            const int64_t len = boundaries[d + 1] - boundaries[d];
            if (len < 0 || len > longest) return 700;
        }
        if (is_backward && most && boundaries[documents] > most) return 700;
        if (is_backward) attention_backward(attention, p, wobble);
        else attention_forward(attention, p);
        spoil_rows(attention, p, boundaries[documents], rest, is_backward);
        return 0;
    };
    const int status = stand_in_perform ? stand_in_perform(new std::function<int()>(work)) : work();
    return status ? refuse(5000, "execution") : SUCCESS;
}

} // extern "C"
