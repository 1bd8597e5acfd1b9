// Kernels of candle's own, by their names, for a driver that cannot run the compiled ones.
#pragma once

// Runs over all elements at once; the arguments are those of the kernel.
using CandleKernel = void (*)(void **arguments);

// Null where there is none of this name.
CandleKernel candle_kernel(const char *name);
