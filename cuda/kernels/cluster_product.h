// A product whose weights stay in registers: 16 units of each of G gates, for each of kTiles tiles, times the
// rows in the block's shared memory. Four warps share out K of a tile; each leaves its sums in shared memory,
// where they are added in the order of the warps.
#pragma once

#include "kernels/cluster_arguments.h"
#include "kernels/math.h"

namespace fusedrnn::cuda {

template <Math kMath, int G, int kTiles, int kColumns>
class ClusterProduct {
  public:
    using T = typename MathTraits<kMath>::T;
    static constexpr int kDepth =
        cluster_hidden(kTiles);  // of the product, with zeros behind the hidden units
    // Between rows: 16 banks more, so that the lanes which read at the same time are in different ones.
    static constexpr int kStride = kDepth + kChunk<T>;
    static constexpr int kRowElements = kColumns * kStride;
    static constexpr int kRowBytes = kRowElements * static_cast<int>(sizeof(T));

    // The sums of one unit and column, of all gates, and how far apart columns are.
    struct alignas(G == 1 ? 4 : 16) Sum {
        float value[G == 1 ? 1 : 4];
    };
    static constexpr int kSumStride = G == 1 ? 20 : 17;
    static constexpr int kSumBytes =
        kClusterSplits * kTiles * kColumns * kSumStride * static_cast<int>(sizeof(Sum));

    // Units `unit` and following of this block.
    FUSEDRNN_DEVICE void load_weights(const T* w, int unit, int units, bool vector) {
        FUSEDRNN_UNROLL
        for (int g = 0; g < G; ++g) {
            FUSEDRNN_UNROLL
            for (int half = 0; half < 2; ++half) {
                const int u = unit + warp() / kClusterSplits * 16 + half * 8 + lane() / 4;
                const T* const row =
                    u < units ? w + (static_cast<std::int64_t>(g) * units + u) * units : nullptr;
                FUSEDRNN_UNROLL
                for (int i = 0; i < kShare; ++i) {
                    const Piece<T> piece =
                        vector ? load_piece<true>(row, at(i), units) : load_piece<false>(row, at(i), units);
                    weights_[g][i][half] = make_factor<kMath>(piece);
                }
            }
        }
    }

    // Multiplies with rows that st_async brought. The sums are there after the next barrier.
    FUSEDRNN_DEVICE void run(const T* rows, Sum* sums) const {
        Sum* to = sums + (warp() * kColumns + lane() % 4 * 2) * kSumStride + lane() / 4;
        FUSEDRNN_UNROLL
        for (int column = 0; column < kColumns; column += 8) {
            const T* const row = rows + (column + lane() / 4) * kStride;
            float c[G][4] = {};
            FUSEDRNN_UNROLL
            for (int i = 0; i < kShare; ++i) {
                Piece<T> piece;
                piece.vector = load_received(reinterpret_cast<const Vector16*>(row + at(i)));
                const Factor<kMath> b = row_factor<kMath>(piece);
                FUSEDRNN_UNROLL
                for (int g = 0; g < G; ++g) multiply<kMath>(c[g], weights_[g][i][0], weights_[g][i][1], b);
            }
            FUSEDRNN_UNROLL
            for (int i = 0; i < 4; ++i) {
                Sum sum{};
                FUSEDRNN_UNROLL
                for (int g = 0; g < G; ++g) sum.value[g] = c[g][i];
                to[(column + i % 2) * kSumStride + i / 2 * 8] = sum;
            }
        }
    }

    // The product for one unit of the block and column.
    static FUSEDRNN_DEVICE Sum sum(const Sum* sums, int column, int unit) {
        const Sum* const from =
            sums + (unit / 16 * kClusterSplits * kColumns + column) * kSumStride + unit % 16;
        Sum total = from[0];
        FUSEDRNN_UNROLL
        for (int w = 1; w < kClusterSplits; ++w) {
            const Sum part = from[w * kColumns * kSumStride];
            FUSEDRNN_UNROLL
            for (int g = 0; g < G; ++g) total.value[g] += part.value[g];
        }
        return total;
    }

  private:
    static constexpr int kShare = kDepth / kChunk<T> / kClusterSplits;  // chunks of K that a warp holds
    // The first element of K of this lane's piece of chunk i.
    static FUSEDRNN_DEVICE int at(int i) {
        return (warp() % kClusterSplits * kShare + i) * kChunk<T> + lane() % 4 * kPiece<T>;
    }

    Factor<kMath> weights_[G][kShare][2];
};

}  // namespace fusedrnn::cuda
