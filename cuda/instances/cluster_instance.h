// The cluster kernels of one math mode, compiled and listed. Each .cu file beside this one whose name begins
// with `cluster` is one mode.
#pragma once

#include "cells/all.h"
#include "kernels/cluster_backward.h"
#include "kernels/cluster_forward.h"

namespace fusedrnn::cuda {

// What leaves no kernel short of registers. Elements of four bytes take twice as many. Backward does without
// 16 columns, since every kernel takes time to compile: batches that would be cut up so run in 32.
constexpr int most_cluster_tiles(Math math) { return storage_bytes(math) == 2 ? kMostClusterTiles : 2; }
constexpr int most_cluster_cells(int tiles) { return tiles < kMostClusterTiles ? 4 : 1; }

template <Math kMath>
class ClusterInstance {
    struct Names {
        const char *forward, *backward;
    };
    template <class Cell, int kTiles, int kForm>
    static void add_form(ClusterCell& c, Names names) {
        constexpr int cells = kClusterCells[kForm];
        if constexpr (kTiles <= most_cluster_tiles(kMath) && cells <= most_cluster_cells(kTiles)) {
            c.forward[kTiles - 1][kForm] = {names.forward, &cluster_forward<Cell, kMath, kTiles, cells>,
                                            ClusterForward<Cell, kMath, kTiles, cells>::shared_bytes()};
            if constexpr (cells != 2) {
                c.backward[kTiles - 1][kForm] = {names.backward,
                                                 &cluster_backward<Cell, kMath, kTiles, cells>,
                                                 ClusterBackward<Cell, kMath, kTiles, cells>::shared_bytes()};
            }
        }
    }
    template <class Cell, int kTiles>
    static void add_forms(ClusterCell& c, Names names) {
        static_assert(kClusterForms == 3);
        add_form<Cell, kTiles, 0>(c, names);
        add_form<Cell, kTiles, 1>(c, names);
        add_form<Cell, kTiles, 2>(c, names);
    }
    template <class Cell, unsigned kFamilies>
    static void add(ClusterEntries& e, const char* name, const Names (&names)[kMostClusterTiles]) {
        if constexpr ((kFamilies & kCluster) != 0) {
            ClusterCell c{};
            c.name = name;
            add_forms<Cell, 1>(c, names[0]);
            add_forms<Cell, 2>(c, names[1]);
            add_forms<Cell, 3>(c, names[2]);
            e.push_back(c);
        }
    }

  public:
    static ClusterEntries make() {
        ClusterEntries e;
        static_assert(kMostClusterTiles == 3 && cluster_hidden(1) == 128);
#define FUSEDRNN_CLUSTER_NAMES(name, H) {"cluster_forward " #name " " #H, "cluster_backward " #name " " #H}
#define FUSEDRNN_CLUSTER_CELL(name, Type, driver, families)                                    \
    add<Type, families>(e, #name,                                                              \
                        {FUSEDRNN_CLUSTER_NAMES(name, 128), FUSEDRNN_CLUSTER_NAMES(name, 256), \
                         FUSEDRNN_CLUSTER_NAMES(name, 384)});
        FUSEDRNN_CELLS(FUSEDRNN_CLUSTER_CELL)
#undef FUSEDRNN_CLUSTER_CELL
#undef FUSEDRNN_CLUSTER_NAMES
        return e;
    }
};

}  // namespace fusedrnn::cuda

// cluster_entries_<math>(), which cluster.cpp lists.
#define FUSEDRNN_CLUSTER_INSTANCE(math)                                            \
    namespace fusedrnn::cuda {                                                     \
    const ClusterEntries& cluster_entries_##math() {                               \
        static const ClusterEntries entries = ClusterInstance<Math::math>::make(); \
        return entries;                                                            \
    }                                                                              \
    }
