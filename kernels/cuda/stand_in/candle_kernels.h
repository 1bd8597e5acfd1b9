// Kernels of candle's own, by their names, for a driver that cannot run the compiled ones.
#pragma once

#include <cstddef>

// Runs over all elements at once; the arguments are those of the kernel.
using CandleKernel = void (*)(void **arguments);

// How many arguments a kernel has that may be recorded; 0 for all others.
size_t candle_arguments(const char *name);

// Null where there is none of this name.
CandleKernel candle_kernel(const char *name);
