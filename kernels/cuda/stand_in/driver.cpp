// A CUDA driver without a GPU: device memory is the host's (memory.cpp), a stream does its work at once, and
// kernels run in the emulator. It has what chandler, candle and cudarc call, and refuses the rest.
//
// With CHANDLER_STAND_IN_LATE the stream does nothing before somebody waits for it (graphs.cpp).
// CHANDLER_STAND_IN_MEMORY is how many bytes the device has (1 GiB without it). CHANDLER_STAND_IN_OTHERS
// are taken by others. With CHANDLER_STAND_IN_PIECES=1 what a pool keeps is in pieces that serve nothing
// large. CHANDLER_STAND_IN_INIT is what starting the driver ends with, in place of success;
// CHANDLER_STAND_IN_CAPABILITY the compute capability (90 without it); with CHANDLER_STAND_IN_POOLS=0 there
// are no pools. CHANDLER_STAND_IN_LOST is the path of a file with a number: after so many pieces of work the
// context is lost, as it is after an illegal address, and the file removed, so that another process keeps its
// context. Fresh memory is filled with 0xFF bytes, which are NaN, and whoever reads what was freed is ended,
// so that either is found out.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <string>
#include <vector>

#include "candle_kernels.h"
#include "graphs.h"
#include "memory.h"
#include "results.h"

namespace {

// Of the one context and the one stream.
char handle;

// A module is a shared object that nvrtc's stand-in has made, or one of candle's.
struct Module {
    void *object = nullptr;
};

// `emulator_sizes` of the emulator.
using Sizes = const size_t *(*)(const char *, size_t *);

// Shared memory that a block may have: any function, and one that it was allowed for.
constexpr int USUAL_SHARED = 48 << 10, MOST_SHARED = 101376;

struct Function {
    std::string name;
    // Dynamic shared memory that a block of it may ask for.
    int shared = USUAL_SHARED;
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

// A kernel with the arguments that it has now; nothing where they are not known.
Work launch_of(const Function &kernel, std::vector<unsigned> grid, std::vector<unsigned> block,
               unsigned shared, void **arguments) {
    std::vector<std::vector<char>> values;
    for (size_t size : sizes_of(kernel)) {
        const char *value = static_cast<char *>(arguments[values.size()]);
        values.emplace_back(value, value + size);
    }
    if (values.empty()) return nullptr;
    return [=, &kernel] {
        std::vector<void *> places;
        for (const auto &value : values) places.push_back(const_cast<char *>(value.data()));
        return launch_now(kernel, grid.data(), block.data(), shared, places.data());
    };
}

} // namespace

extern "C" {

static int from_environment(const char *name, int otherwise) {
    const char *text = getenv(name);
    return text ? atoi(text) : otherwise;
}

int cuInit(unsigned) { return from_environment("CHANDLER_STAND_IN_INIT", SUCCESS); }
int cuDriverGetVersion(int *version) { *version = 13000; return SUCCESS; }
int cuDeviceGetCount(int *count) { *count = 1; return SUCCESS; }
int cuDeviceGet(int *handle, int ordinal) {
    *handle = 0;
    return ordinal == 0 ? SUCCESS : INVALID_DEVICE;
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
int cuDeviceTotalMem_v2(size_t *bytes, int) { *bytes = device_bytes(); return SUCCESS; }

int cuDeviceGetAttribute(int *value, int attribute, int) {
    const int capability = from_environment("CHANDLER_STAND_IN_CAPABILITY", 90);
    switch (attribute) {
    case 16: *value = 4; break;      // multiprocessors
    case 75: *value = capability / 10; break; // compute capability, major
    case 76: *value = capability % 10; break; // and minor
    case 97: *value = MOST_SHARED; break; // shared memory that a block may ask for
    case 115: *value = from_environment("CHANDLER_STAND_IN_POOLS", 1); break;
    case 1: *value = 1024; break;    // threads of a block
    default: *value = 0;
    }
    return SUCCESS;
}

int cuDevicePrimaryCtxRetain(void **context, int) {
    *context = &handle;
    return SUCCESS;
}
int cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
int cuCtxSetCurrent(void *) { return SUCCESS; }
int cuCtxGetCurrent(void **context) { *context = &handle; return SUCCESS; }
int cuCtxSynchronize() { return is_lost() ? ILLEGAL_ADDRESS : SUCCESS; }

// cuStreamBeginCapture and what goes with it are in graphs.cpp.
int cuStreamCreate(void **stream, unsigned) {
    *stream = &handle;
    return SUCCESS;
}
int cuStreamDestroy_v2(void *) { return SUCCESS; }
int cuStreamWaitEvent(void *, void *, unsigned) { return SUCCESS; }
int cuStreamSynchronize(void *) {
    if (is_capturing()) return refuse_in_capture();
    if (int status = wait_for_all()) return status;
    trim_current_pool();
    return SUCCESS;
}

// An event is how much the stream had been given when it was recorded.
int cuEventCreate(void **event, unsigned) { *event = new size_t(0); return SUCCESS; }
int cuEventDestroy_v2(void *event) { delete static_cast<size_t *>(event); return SUCCESS; }
int cuEventRecord(void *event, void *) { *static_cast<size_t *>(event) = kept_so_far(); return SUCCESS; }
int cuEventSynchronize(void *event) { return catch_up_to(*static_cast<size_t *>(event)); }

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

int cuFuncSetAttribute(void *function, int attribute, int value) {
    if (attribute != 8) return SUCCESS; // the most dynamic shared memory
    if (value < 0 || value > MOST_SHARED) return INVALID_VALUE;
    static_cast<Function *>(function)->shared = value;
    return SUCCESS;
}

// What cuDNN compiles for its plans is taken, and never launched.
int cuLibraryLoadData(void **library, const void *, void *, void *, unsigned, void *, void *, unsigned) {
    *library = &handle;
    return SUCCESS;
}
int cuLibraryUnload(void *) { return SUCCESS; }
int cuLibraryGetKernel(void **kernel, void *, const char *) {
    *kernel = &handle;
    return SUCCESS;
}
int cuKernelSetAttribute(int, int, void *, int) { return SUCCESS; }
// These it looks for by their older names, and does not call.
int cuCtxPushCurrent(void *) { return NOT_SUPPORTED; }
int cuCtxPopCurrent(void **) { return NOT_SUPPORTED; }
int cuLinkCreate(unsigned, int *, void **, void **) { return NOT_SUPPORTED; }
int cuLinkAddData(void *, int, void *, size_t, const char *, unsigned, int *, void **) { return NOT_SUPPORTED; }
int cuKernelGetAttribute(int *value, int, void *, int) {
    *value = 0;
    return SUCCESS;
}

int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, void *, void **arguments, void **) {
    const Function &kernel = *static_cast<Function *>(function);
    if (shared > static_cast<unsigned>(std::max(kernel.shared, USUAL_SHARED))) return INVALID_VALUE;
    Work work = launch_of(kernel, {gx, gy, gz}, {bx, by, bz}, shared, arguments);
    if (is_capturing()) {
        if (work) return record(Node::KERNEL, work);
        fprintf(stderr, "the stand-in does not record %s\n", kernel.name.c_str());
        return refuse_in_capture();
    }
    if (work) return perform(work);
    // Its arguments cannot be kept.
    if (int status = catch_up()) return status;
    const unsigned grid[] = {gx, gy, gz}, block[] = {bx, by, bz};
    return launch_now(kernel, grid, block, shared, arguments);
}

static const char *name_of(int error) {
    switch (error) {
    case SUCCESS: return "CUDA_SUCCESS";
    case INVALID_VALUE: return "CUDA_ERROR_INVALID_VALUE";
    case OUT_OF_MEMORY: return "CUDA_ERROR_OUT_OF_MEMORY";
    case NO_DEVICE: return "CUDA_ERROR_NO_DEVICE";
    case INVALID_DEVICE: return "CUDA_ERROR_INVALID_DEVICE";
    case NOT_FOUND: return "CUDA_ERROR_NOT_FOUND";
    case ILLEGAL_ADDRESS: return "CUDA_ERROR_ILLEGAL_ADDRESS";
    case LAUNCH_FAILED: return "CUDA_ERROR_LAUNCH_FAILED";
    case CAPTURE_UNSUPPORTED: return "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED";
    case CAPTURE_INVALIDATED: return "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED";
    case UNKNOWN: return "CUDA_ERROR_UNKNOWN";
    default: return "CUDA_ERROR_NOT_SUPPORTED";
    }
}
int cuGetErrorName(int error, const char **text) { *text = name_of(error); return SUCCESS; }
int cuGetErrorString(int error, const char **text) { *text = name_of(error); return SUCCESS; }

} // extern "C"
