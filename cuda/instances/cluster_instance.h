// The cluster kernels of one math mode, compiled and listed. Each .cu file beside this one whose name begins
// with `cluster` is one mode.
#pragma once

#include "kernels/cluster_forward.h"

namespace fusedrnn::cuda {

// What leaves no kernel short of registers. Elements of four bytes take twice as many.
constexpr int most_cluster_tiles(Math math) { return storage_bytes(math) == 2 ? kMostClusterTiles : 2; }
constexpr int most_cluster_cells(int tiles) { return tiles < kMostClusterTiles ? 4 : 1; }

template <Math kMath>
class ClusterInstance {
    template <class Cell, int kTiles, int kForm>
    static void add(ClusterEntries& e, CellId cell) {
        constexpr int cells = kClusterCells[kForm];
        if constexpr (kTiles <= most_cluster_tiles(kMath) && cells <= most_cluster_cells(kTiles)) {
            e.forward[cell][kTiles - 1][kForm] = {"cluster_forward",
                                                  &cluster_forward<Cell, kMath, kTiles, cells>,
                                                  ClusterForward<Cell, kMath, kTiles, cells>::shared_bytes()};
        }
    }
    template <class Cell, int kTiles>
    static void add_forms(ClusterEntries& e, CellId cell) {
        static_assert(kClusterForms == 3);
        add<Cell, kTiles, 0>(e, cell);
        add<Cell, kTiles, 1>(e, cell);
        add<Cell, kTiles, 2>(e, cell);
    }

  public:
    static ClusterEntries make() {
        ClusterEntries e{};
        static_assert(kMostClusterTiles == 3);
#define FUSEDRNN_CLUSTER_CELL(name, Type) \
    add_forms<Type, 1>(e, kCell_##name);  \
    add_forms<Type, 2>(e, kCell_##name);  \
    add_forms<Type, 3>(e, kCell_##name);
        FUSEDRNN_CELLS(FUSEDRNN_CLUSTER_CELL)
#undef FUSEDRNN_CLUSTER_CELL
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
