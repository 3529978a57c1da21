// What a driver hands to the cluster kernels, and their handles for hosts that do not compile kernels. Plain
// data, for any compiler.
//
// A launch runs many steps. Its blocks are (rank in the cluster, group of positions): a cluster works on its
// positions by itself, so any number of groups may follow each other on the device.
#pragma once

#include "kernels/table.h"

namespace fusedrnn::cuda {

inline constexpr int kClusterBlocks = 8;  // of a cluster, at most
inline constexpr int kClusterSplits = 4;  // warps that share out K, for each tile of 16 units

struct ClusterForwardArgs {
    const void *w_hh, *b_hh;  // b_hh: only where the gates are split; may be null
    bool vector;              // whether the rows of w_hh start and end at multiples of 16 bytes
    StateSource source;
    DeviceSchedule schedule;
    std::int64_t first,
        count;       // the steps of this launch; the ones before them, in the direction of time, are done
    const void* gx;  // C [compact index, from step `first` on][G*H]
    Rows y;
    void* states;          // C [row][kStates - 1][H]
    bool states_by_index;  // rows of `states` are compact indices (a tape), else positions
    void* saved;           // C [compact index][H][kSaved], or null
};

// Forms: tiles of 16 units of a block, by which there is a limit to H, and cells of a thread.
inline constexpr int kMostClusterTiles = 3;
inline constexpr int kClusterForms = 3;
inline constexpr int kClusterCells[kClusterForms] = {1, 2, 4};
inline constexpr const char* kClusterFormNames[kClusterForms] = {"8 columns", "16 columns", "32 columns"};

constexpr int cluster_threads(int tiles) { return 32 * kClusterSplits * tiles; }
constexpr int cluster_columns(int form) { return 8 * kClusterCells[form]; }
// The largest H of so many tiles: those of all blocks, and what a warp holds of K, are as many.
constexpr int cluster_hidden(int tiles) { return 16 * kClusterBlocks * tiles; }

inline constexpr int kMostClusterHidden = cluster_hidden(kMostClusterTiles);

struct ClusterEntries {
    // kernel null: its weights or its cells do not fit into registers
    Entry<ClusterForwardArgs> forward[kCellCount][kMostClusterTiles][kClusterForms];
};

// Null for a math mode that has none.
const ClusterEntries* cluster_entries(Math math);

}  // namespace fusedrnn::cuda
