// What the rest of the driver asks of the device's memory.
#pragma once

#include <cstdint>

// How much there is.
uint64_t device_bytes();

// As a synchronisation does: gives back what the pool keeps beyond its threshold.
void trim_current_pool();
