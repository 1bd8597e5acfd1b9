// The driver's compiler without a GPU: has the C++ compiler build the source for the emulator, and returns
// the path of the shared object in the place of PTX.
//
// CHANDLER_STAND_IN_CXX is the compiler (c++ without it), CHANDLER_STAND_IN_HEADER the emulator's header,
// CHANDLER_STAND_IN_CACHE a folder that compiled sources are kept in.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <unistd.h>
#include <vector>

namespace {

struct Program {
    std::string source, log, ptx;
    // Those of the options that define a name.
    std::string defines;
};

// FNV-1a over 64 bits.
uint64_t hash_of(const std::string &text) {
    uint64_t hash = 0xcbf29ce484222325;
    for (unsigned char byte : text) hash = (hash ^ byte) * 0x100000001b3;
    return hash;
}

std::string from_environment(const char *name, const char *otherwise) {
    const char *text = getenv(name);
    return text ? text : otherwise;
}

bool is_there(const std::string &path) { return access(path.c_str(), R_OK) == 0; }

std::string compiler() { return from_environment("CHANDLER_STAND_IN_CXX", "c++") + " -std=c++17 "; }

// The place behind the parenthesis that closes one opened before `at`, and behind spaces.
size_t behind_parentheses(const std::string &text, size_t at) {
    for (int open = 1; open > 0 && at < text.size(); at++) {
        if (text[at] == '(') open++;
        if (text[at] == ')') open--;
    }
    return text.find_first_not_of(" \n", at);
}

// The names of the kernels in a file, once its macros are expanded.
std::vector<std::string> kernels_of(const std::string &file, const std::string &defines) {
    static const std::string BEGIN = "extern \"C\" __global__ void ", BOUNDS = "__launch_bounds__(";
    std::vector<std::string> names;
    FILE *expanded = popen((compiler() + defines + "-E -P -w '" + file + "'").c_str(), "r");
    std::string text;
    char part[4096];
    while (size_t count = fread(part, 1, sizeof part, expanded)) text.append(part, count);
    pclose(expanded);
    for (size_t at = 0; (at = text.find(BEGIN, at)) != std::string::npos;) {
        at += BEGIN.size();
        if (text.compare(at, BOUNDS.size(), BOUNDS) == 0) at = behind_parentheses(text, at + BOUNDS.size());
        names.push_back(text.substr(at, text.find('(', at) - at));
    }
    return names;
}

// Compiles to the place that the source's hash names, by way of a name of this process's own.
bool build(Program &program, const std::string &object) {
    std::string own = object + "." + std::to_string(getpid());
    std::string source = own + ".cpp", log = own + ".log";
    std::ofstream(source) << program.source;
    std::ofstream list(source, std::ios::app);
    std::string separator = "\nEMULATED_KERNELS = {";
    for (const std::string &name : kernels_of(source, program.defines)) {
        list << separator << "EMULATED(" << name << ")";
        separator = ", ";
    }
    list << "};\n";
    list.close();
    std::string command = compiler() + program.defines +
                          "-O2 -ffp-contract=off -fno-strict-aliasing -w -shared -fPIC "
                          "-fvisibility=hidden -include '" +
                          from_environment("CHANDLER_STAND_IN_HEADER", "emulator.h") + "' -o '" +
                          own + "' '" + source + "' 2> '" + log + "'";
    bool built = system(command.c_str()) == 0;
    std::ifstream text(log);
    program.log.assign(std::istreambuf_iterator<char>(text), {});
    unlink(source.c_str());
    unlink(log.c_str());
    return built && rename(own.c_str(), object.c_str()) == 0;
}

} // namespace

extern "C" {

int nvrtcVersion(int *major, int *minor) { *major = 13; *minor = 0; return 0; }

int nvrtcCreateProgram(void **made, const char *source, const char *, int, const char *const *,
                       const char *const *) {
    *made = new Program{source, "", "", ""};
    return 0;
}

int nvrtcCompileProgram(void *handle, int count, const char *const *options) {
    Program &program = *static_cast<Program *>(handle);
    for (int i = 0; i < count; i++)
        if (strncmp(options[i], "-D", 2) == 0) program.defines += std::string(options[i]) + " ";
    char name[64];
    snprintf(name, sizeof name, "/chandler-%016llx.so",
             static_cast<unsigned long long>(hash_of(program.defines + program.source)));
    std::string object = from_environment("CHANDLER_STAND_IN_CACHE", "/tmp") + name;
    if (!is_there(object) && !build(program, object)) return 6;
    program.ptx = "// shared object " + object + "\n";
    return 0;
}

int nvrtcGetPTXSize(void *handle, size_t *bytes) {
    *bytes = static_cast<Program *>(handle)->ptx.size() + 1;
    return 0;
}
int nvrtcGetPTX(void *handle, char *text) {
    strcpy(text, static_cast<Program *>(handle)->ptx.c_str());
    return 0;
}
int nvrtcGetProgramLogSize(void *handle, size_t *bytes) {
    *bytes = static_cast<Program *>(handle)->log.size() + 1;
    return 0;
}
int nvrtcGetProgramLog(void *handle, char *text) {
    strcpy(text, static_cast<Program *>(handle)->log.c_str());
    return 0;
}
int nvrtcDestroyProgram(void **handle) {
    delete static_cast<Program *>(*handle);
    return 0;
}
const char *nvrtcGetErrorString(int error) {
    return error == 0 ? "NVRTC_SUCCESS" : "NVRTC_ERROR_COMPILATION";
}

} // extern "C"
