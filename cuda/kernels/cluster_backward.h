// All steps backward in one launch, by clusters. A block keeps the weights of its units in registers, as
// forward does: multiplied with the gate gradients of its units they give a share of the gradient of h of ALL
// units. It sends each block, straight into its shared memory and in float32, the share for that block's
// units; who gets the shares adds them up in the order of the blocks.
//
// The other way round, as in the persistent kernels, a block would hold W_hh^T for its units and get the gate
// gradients of all. The words of weights are as many, but of each step and column it would get kGates H
// numbers in T, where here it gets H in float32: for an LSTM half the bytes in 16 bits and a quarter in
// `tf32`, for a GRU 2/3 and a third, and for an RNN twice the bytes in 16 bits, of few. Both buffers of an
// LSTM in `tf32` with H = 256 and 32 columns would be more than a multiprocessor's shared memory. Here, too,
// no sum is spread over warps, since K, the block's own gates, is short.
#pragma once

#include "kernels/cluster_exchange.h"
#include "kernels/sweep_backward.h"
#include "kernels/weights.h"

namespace fusedrnn::cuda {

// The product of a block: its rows of W_hh, transposed, times its gate gradients, [column][gate][unit]. A
// warp has two of the tiles of 16 units that the cluster has at most.
template <Math kMath, int G, int kTiles, int kColumns>
class ClusterShares {
  public:
    using T = typename MathTraits<kMath>::T;
    static constexpr int kUnits = 16 * kTiles;
    static constexpr int kChunks = (G * kUnits + kChunk<T> - 1) / kChunk<T>;
    static constexpr int kDepth = kChunks * kChunk<T>;  // with zeros behind the gates
    // Between rows: an odd number of chunks, so that lanes which read at the same time are in different
    // banks.
    static constexpr int kStride = (kChunks | 1) * kChunk<T>;
    static constexpr int kRowElements = kColumns * kStride;

    // Of this block's units, through so many times kStageBytes as there are warps.
    FUSEDRNN_DEVICE void load_weights(const T* w, int units, T* stage) {
        FUSEDRNN_UNROLL
        for (int held = 0; held < kHeld; ++held) {
            FUSEDRNN_UNROLL
            for (int i = 0; i < kChunks; ++i) {
                load_chunk<kMath>(Weights{w, units}, stage + warp() * 16 * kChunk<T>, tile(held),
                                  i * kChunk<T>, weights_[held][i]);
            }
        }
    }

    // send(rank, unit, column, piece): shares for four units of the block of that rank, from `unit` on.
    template <class Send>
    FUSEDRNN_DEVICE void run(const T* rows, Send send) const {
        FUSEDRNN_UNROLL
        for (int column = 0; column < kColumns; column += 8) {
            const T* const row = rows + (column + lane() / 4) * kStride + lane() % 4 * kPiece<T>;
            float c[kHeld][kChains][4] = {};
            FUSEDRNN_UNROLL
            for (int i = 0; i < kChunks; ++i) {
                Piece<T> piece;
                piece.vector = *reinterpret_cast<const Vector16*>(row + i * kChunk<T>);
                const Factor<kMath> b = row_factor<kMath>(piece);
                FUSEDRNN_UNROLL
                for (int held = 0; held < kHeld; ++held) {
                    multiply<kMath>(c[held][i % kChains], weights_[held][i][0], weights_[held][i][1], b);
                }
            }
            FUSEDRNN_UNROLL
            for (int held = 0; held < kHeld; ++held) {
                const int rank = tile(held) / kTiles;
                if (rank >= cluster_size()) continue;
                FUSEDRNN_UNROLL
                for (int i = 0; i < 4; ++i) {
                    FUSEDRNN_UNROLL
                    for (int chain = 1; chain < kChains; ++chain) c[held][0][i] += c[held][chain][i];
                }
                const int unit = warp() % kTiles * 16 + lane() / 8 % 2 * 8 + lane() / 16 * 4;
                send(rank, unit, column + lane() % 4 * 2 + lane() / 4 % 2, gather_units(c[held][0]));
            }
        }
    }

  private:
    static constexpr int kHeld = kClusterBlocks / kClusterSplits;  // tiles of a warp
    // Sums that one tile is spread over, so that enough products are under way at the same time.
    static constexpr int kChains = kColumns == 8 && kChunks > 1 ? 2 : 1;
    static FUSEDRNN_DEVICE int tile(int i) { return warp() + i * kClusterSplits * kTiles; }

    struct Weights {
        static constexpr bool kAlongRows = true;
        const T* w;
        int units;
        FUSEDRNN_DEVICE T at(int tile, int row, int k) const {
            const int to = tile * 16 + row, gate = k / kUnits, from = cluster_rank() * kUnits + k % kUnits;
            if (gate >= G || from >= units || to >= units) return T{};
            return load_constant(w + (static_cast<std::int64_t>(gate) * units + from) * units + to);
        }
    };

    // Of the result of an mma, for four units that follow each other: the lanes that differ in bits 2 and 3
    // have them, of both halves and columns, and each keeps one of these four.
    static FUSEDRNN_DEVICE Vector16 gather_units(const float (&c)[4]) {
        const bool odd = (lane() & 4) != 0, upper = (lane() & 8) != 0;
        unsigned two[2][2];  // [half][unit]
        FUSEDRNN_UNROLL
        for (int half = 0; half < 2; ++half) {
            const unsigned even_column = as_unsigned(c[2 * half]), odd_column = as_unsigned(c[2 * half + 1]);
            const unsigned other = shuffle_xor(odd ? even_column : odd_column, 4);
            two[half][0] = odd ? other : even_column;
            two[half][1] = odd ? odd_column : other;
        }
        unsigned own[2], other[2];
        FUSEDRNN_UNROLL
        for (int i = 0; i < 2; ++i) {
            own[i] = upper ? two[1][i] : two[0][i];
            other[i] = shuffle_xor(upper ? two[0][i] : two[1][i], 8);
        }
        if (upper) return {{other[0], other[1], own[0], own[1]}};
        return {{own[0], own[1], other[0], other[1]}};
    }

    HeldWeights<kMath> weights_[kHeld][kChunks][2];
};

template <class Cell, Math kMath, int kTiles, int kCells>
class ClusterBackward
    : public SweepBackward<ClusterBackward<Cell, kMath, kTiles, kCells>, Cell, kMath, kCells> {
    using Base = SweepBackward<ClusterBackward, Cell, kMath, kCells>;
    friend Base;
    using typename Base::T;
    using typename Base::V;
    static constexpr int G = Cell::kGates, kColumns = 8 * kCells, kUnits = 16 * kTiles;
    static constexpr int kShare = kColumns * kUnits;  // what a block gets of another one
    using Product = ClusterShares<kMath, G, kTiles, kColumns>;

  public:
    static constexpr int shared_bytes() {
        return ClusterExchange::kBytes + 2 * kClusterBlocks * kShare * static_cast<int>(sizeof(float)) +
               2 * Product::kRowElements * static_cast<int>(sizeof(T));
    }

    FUSEDRNN_DEVICE explicit ClusterBackward(const SweepBackwardArgs& args)
        : Base(args, SweepCells(args.source.H, cluster_rank(), kUnits, kColumns, 8)), args_(args) {}

  private:
    // [rank][column][unit]
    static FUSEDRNN_DEVICE float* shares(int exchange) {
        return reinterpret_cast<float*>(shared_memory<unsigned char>() + ClusterExchange::kBytes) +
               exchange % 2 * kClusterBlocks * kShare;
    }
    // The block's gate gradients. Two buffers, too: a thread may be one step ahead of warps that multiply,
    // since what it waits for is not sent by all of them.
    static FUSEDRNN_DEVICE T* rows(int exchange) {
        return reinterpret_cast<T*>(shares(0) + 2 * kClusterBlocks * kShare) +
               exchange % 2 * Product::kRowElements;
    }

    FUSEDRNN_DEVICE void prepare(int exchanges) {
        exchange_.prepare(exchanges, cluster_size() * kShare * static_cast<int>(sizeof(float)));
        constexpr int rest = Product::kDepth - G * kUnits;
        if constexpr (rest > 0) {
            for (int i = thread_index(); i < 2 * kColumns * rest; i += block_threads()) {
                rows(0)[i / rest * Product::kStride + G * kUnits + i % rest] = T{};
            }
        }
        product_.load_weights(static_cast<const T*>(args_.w_hh), this->H_, reinterpret_cast<T*>(shares(0)));
        cluster_barrier();
    }

    // Rows that are not alive are zeros.
    FUSEDRNN_DEVICE void send(const V (&dgh)[kCells][G], int active, int exchange) const {
        FUSEDRNN_UNROLL
        for (int i = 0; i < kCells; ++i) {
            T* const to = rows(exchange) + this->column(i) * Product::kStride + thread_index() % kUnits;
            const bool alive = this->is_cell(i, 0, active);
            FUSEDRNN_UNROLL
            for (int g = 0; g < G; ++g) {
                to[g * kUnits] = alive ? exchanged<kMath>(narrow<T>(dgh[i][g].v)) : T{};
            }
        }
        block_barrier();
        float* const own = shares(exchange) + cluster_rank() * kShare;
        product_.run(rows(exchange), [&](int rank, int unit, int column, Vector16 piece) {
            exchange_.send(own + column * kUnits + unit, piece, exchange, rank);
        });
    }

    FUSEDRNN_DEVICE void receive(int exchange) {
        exchange_.wait(exchange);
        received_ = shares(exchange);
    }

    FUSEDRNN_DEVICE float product(int i) const {
        const float* const from = received_ + this->column(i) * kUnits + thread_index() % kUnits;
        float sum = load_received(from);
        FUSEDRNN_UNROLL
        for (int rank = 1; rank < kClusterBlocks; ++rank) {
            if (rank < cluster_size()) sum += load_received(from + rank * kShare);
        }
        return sum;
    }

    const SweepBackwardArgs& args_;
    Product product_;
    ClusterExchange exchange_;
    const float* received_;
};

template <class Cell, Math kMath, int kTiles, int kCells>
FUSEDRNN_KERNEL FUSEDRNN_LAUNCH_BOUNDS(cluster_threads(kTiles),
                                       1) void cluster_backward(SweepBackwardArgs args) {
    if constexpr (kHasClusters) {
        ClusterBackward<Cell, kMath, kTiles, kCells>(args).run();
    } else {
        trap();
    }
}

}  // namespace fusedrnn::cuda
