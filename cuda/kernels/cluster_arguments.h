// What a driver hands to the cluster kernels, and their handles for hosts that do not compile kernels. Plain
// data, for any compiler.
//
// A launch runs many steps. Its blocks are (rank in the cluster, group of positions): a cluster works on its
// positions by itself, so any number of groups may follow each other on the device.
#pragma once

#include "kernels/sweep_arguments.h"

namespace fusedrnn::cuda {

inline constexpr int kClusterBlocks = 8;  // of a cluster, at most
inline constexpr int kClusterSplits = 4;  // warps that share out K, for each tile of 16 units

struct ClusterForwardArgs : SweepForwardArgs {
    bool vector;  // whether the rows of w_hh start and end at multiples of 16 bytes
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

// kernel null: its weights or its cells do not fit into registers, or there is a wider one in its place
template <class Args>
using ClusterKernels = Entry<Args>[kMostClusterTiles][kClusterForms];

struct ClusterCell {
    const char* name;
    ClusterKernels<ClusterForwardArgs> forward;
    ClusterKernels<SweepBackwardArgs> backward;
};

using ClusterEntries = std::vector<ClusterCell>;

// Null for a math mode that has none.
const ClusterEntries* cluster_entries(Math math);

}  // namespace fusedrnn::cuda
