// What the driver hands to the persistent kernels, and their handles for hosts that do not compile kernels.
// Plain data, for any compiler.
//
// A launch runs many steps. Its blocks are (tile of 16 units, group of positions): a group's blocks exchange
// what the next step multiplies, and never wait for another group.
#pragma once

#include "kernels/sweep_arguments.h"

namespace fusedrnn::cuda {

inline constexpr int kPersistentWarps = 8;  // of a block, at most
inline constexpr int kPersistentThreads = 32 * kPersistentWarps;
inline constexpr int kUnitsOfBlock = 16;
inline constexpr int kChunkBytes = 64;  // of a row: what the four lanes of a quad load at once

// How a launch is cut up; plan_persistent() makes it.
struct PersistentShape {
    int tiles;    // blocks of a group, 16 units each
    int groups;   // of positions
    int columns;  // positions of a group, a multiple of 8
    int warps;    // of a block
    int chunks;   // of K, of the whole product
    int share;    // of those, a warp's
};

// `exchange`: T [exchange][group][columns][chunks * kChunk<T>], what the blocks of a group hand each other. All
// bits of it are ones at first.
struct PersistentForwardArgs : SweepForwardArgs {
    PersistentShape shape;
    void* exchange;
};

struct PersistentBackwardArgs : SweepBackwardArgs {
    PersistentShape shape;
    void* exchange;
};

// A thread has so many cells at most, by which there is a limit to the columns of a group.
inline constexpr int kPersistentForms = 2;
inline constexpr int kPersistentCells[kPersistentForms] = {1, 2};
inline constexpr const char* kPersistentFormNames[kPersistentForms] = {"narrow", "wide"};

template <class Args>
struct PersistentEntry : Entry<Args> {
    int most_share;    // chunks of K whose weights a warp can hold
    int depth;         // elements of K that a block of the group writes
    int stage_bytes;   // shared memory of a warp while weights are loaded,
    int column_bytes;  // and for the sums of each column
};

struct PersistentCell {
    const char* name;
    PersistentEntry<PersistentForwardArgs> forward[kPersistentForms];
    PersistentEntry<PersistentBackwardArgs> backward[kPersistentForms];
};

struct PersistentEntries {
    int chunk;  // elements of K that kernels take at once
    std::vector<PersistentCell> cells;
};

// Null for a math mode that has none.
const PersistentEntries* persistent_entries(Math math);

}  // namespace fusedrnn::cuda
