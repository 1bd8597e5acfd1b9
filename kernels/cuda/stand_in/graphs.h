// The stream of a driver without a GPU, and CUDA graphs: a stream that is being captured keeps its work, and
// a graph does it when it is launched.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

// What the stream is given to do; the result is the driver's.
using Work = std::function<int()>;

// Does the work, or keeps it until somebody waits for it where the environment has
// CHANDLER_STAND_IN_LATE, which is as late as a GPU may be with it.
int perform(Work work);

// Does all that is kept, or the first so many of all that the stream was ever given.
int catch_up();
int catch_up_to(size_t number);
// How many it was given so far.
size_t kept_so_far();
// As `catch_up`, for a caller who waits for all of the device: `stand_in_waits` counts these.
int wait_for_all();

// Whether the context is lost: then nothing is done any more, and every call ends with an error.
bool is_lost();

// As the driver numbers the kinds of nodes.
enum class Node { KERNEL = 0, COPY = 1, FILL = 2, ALLOCATION = 10, RELEASE = 11 };

// Whether the stream is being captured: then nothing is done, and what there is to do is recorded.
bool is_capturing();

int record(Node kind, Work work);

// A copy, whether its sides are the host's, and where they lie.
int record_copy(bool from_host, bool to_host, uintptr_t from, uintptr_t to, Work work);

// Memory that is a graph's own, and has an address from now on.
int record_allocation(uintptr_t *address, size_t bytes);
int record_release(uintptr_t address);

// What cannot be captured: an error, and so is all that comes after it.
int refuse_in_capture();

// Memory of graphs, which has no pool: the driver keeps blocks and counts what the device has left.
int map_for_graph(uintptr_t *address, size_t bytes);
void unmap_of_graph(uintptr_t address);
// Makes memory of a graph writable and fills it as fresh memory is, or takes it away.
int set_there(uintptr_t address, size_t bytes, bool there);
// Takes what graphs have more of the device than they had, or gives back; whether there is so much.
bool take_for_graphs(int64_t bytes);
