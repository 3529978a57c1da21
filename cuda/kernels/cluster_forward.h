// Many steps forward in one launch, by clusters. A block keeps the weights of its units in registers; each
// writes the hidden state of its units straight into the shared memory of all blocks of its cluster.
#pragma once

#include "kernels/cluster_exchange.h"
#include "kernels/cluster_product.h"
#include "kernels/sweep_forward.h"

namespace fusedrnn::cuda {

template <class Cell, Math kMath, int kTiles, int kCells>
class ClusterForward : public SweepForward<ClusterForward<Cell, kMath, kTiles, kCells>, Cell, kMath, kCells> {
    using Base = SweepForward<ClusterForward, Cell, kMath, kCells>;
    friend Base;
    using typename Base::T;
    static constexpr int kColumns = 8 * kCells, kUnits = 16 * kTiles;
    using Product = ClusterProduct<kMath, Cell::kGates, kTiles, kColumns>;
    using Sum = typename Product::Sum;

  public:
    static constexpr int shared_bytes() {
        return ClusterExchange::kBytes + 2 * Product::kRowBytes + Product::kSumBytes;
    }

    FUSEDRNN_DEVICE explicit ClusterForward(const ClusterForwardArgs& args)
        : Base(args, SweepCells(args.source.H, cluster_rank(), kUnits, kColumns, 8)), args_(args) {}

  private:
    static FUSEDRNN_DEVICE T* rows(int exchange) {
        return reinterpret_cast<T*>(shared_memory<unsigned char>() + ClusterExchange::kBytes +
                                    exchange % 2 * Product::kRowBytes);
    }
    static FUSEDRNN_DEVICE Sum* sums() { return reinterpret_cast<Sum*>(rows(0) + 2 * Product::kRowElements); }

    // Where no block sends units there are zeros.
    FUSEDRNN_DEVICE void prepare(int steps) {
        const int sent = cluster_size() * kUnits, rest = Product::kDepth - sent;
        exchange_.prepare(steps, kColumns * sent * static_cast<int>(sizeof(T)));
        for (int i = thread_index(); i < 2 * kColumns * rest; i += block_threads()) {
            rows(0)[i / rest * Product::kStride + sent + i % rest] = T{};
        }
        product_.load_weights(static_cast<const T*>(args_.w_hh), cluster_rank() * kUnits, this->H_,
                              args_.vector);
        cluster_barrier();
    }

    // The lanes that hold a piece take turns at the blocks. Rows that are not alive are sent as zeros.
    FUSEDRNN_DEVICE void send(int active, int exchange) const {
        FUSEDRNN_UNROLL
        for (int i = 0; i < kCells; ++i) {
            const Vector16 piece = gather_piece(this->is_cell(i, 0, active) ? this->hidden(i) : T{});
            T* const to =
                rows(exchange) + this->column(i) * Product::kStride + this->unit_ / kPiece<T> * kPiece<T>;
            for (int rank = lane() % kPiece<T>; rank < cluster_size(); rank += kPiece<T>) {
                exchange_.send(to, piece, exchange, rank);
            }
        }
    }

    FUSEDRNN_DEVICE void multiply(int exchange) const {
        exchange_.wait(exchange);
        product_.run(rows(exchange), sums());
        block_barrier();
    }

    FUSEDRNN_DEVICE Sum sum(int i) const {
        return Product::sum(sums(), this->column(i), thread_index() % kUnits);
    }

    const ClusterForwardArgs& args_;
    Product product_;
    ClusterExchange exchange_;
};

template <class Cell, Math kMath, int kTiles, int kCells>
FUSEDRNN_KERNEL FUSEDRNN_LAUNCH_BOUNDS(cluster_threads(kTiles),
                                       1) void cluster_forward(ClusterForwardArgs args) {
    if constexpr (kHasClusters) {
        ClusterForward<Cell, kMath, kTiles, kCells>(args).run();
    } else {
        trap();
    }
}

}  // namespace fusedrnn::cuda
