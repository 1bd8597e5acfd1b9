// Many tensors in one launch: a table says where they lie, and each block of the grid has a place in
// it.
#pragma once

#include "common.cuh"

// Elements of a tensor that a block works on; a tensor has ⌈elements / CHUNK_ELEMENTS⌉ places.
constexpr u32 CHUNK_ELEMENTS = 8192;
constexpr u32 CHUNK_THREADS = 256;

// What a block works on: this chunk of this tensor of the table.
struct Place {
    u32 tensor, chunk;
};
