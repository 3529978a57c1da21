// All steps backward in one launch. A block keeps the transposed weights of its 16 units in registers; the
// gate gradients go round the group through the exchange.
#pragma once

#include "kernels/persistent_product.h"
#include "kernels/sweep_backward.h"

namespace fusedrnn::cuda {

// Columns of W_hh. K is in the order in which blocks write it: by tile of 16 units, then gate, then unit.
template <class T, int G>
struct BackwardWeights {
    static constexpr bool kAlongRows = true;
    const T* w;
    std::int64_t H;
    FUSEDRNN_DEVICE T at(int, int row, int k) const {
        const std::int64_t column = block_index().x * 16 + row, gate = k / 16 % G;
        const std::int64_t u = k / (16 * G) * 16 + k % 16;
        return column < H && u < H ? load_constant(w + (gate * H + u) * H + column) : T{};
    }
};

template <class Cell, Math kMath, int kShare, int kCells>
class PersistentBackward
    : public SweepBackward<PersistentBackward<Cell, kMath, kShare, kCells>, Cell, kMath, kCells> {
    using Base = SweepBackward<PersistentBackward, Cell, kMath, kCells>;
    friend Base;
    using typename Base::T;
    using typename Base::V;
    static constexpr int G = Cell::kGates, kDepth = kUnitsOfBlock * G;  // of K, what a block writes
    using Product = PersistentProduct<kMath, 1, kShare, kCells == 1 ? 4 : 2>;

  public:
    FUSEDRNN_DEVICE explicit PersistentBackward(const PersistentBackwardArgs& args)
        : Base(args, persistent_cells(args.source, args.shape)),
          args_(args),
          product_(args.shape),
          exchange_(args.shape, args.exchange, kDepth),
          to_(exchange_.place(this->column(0) * kChunk<T> + thread_index() % kUnitsOfBlock)),
          from_(exchange_.place(product_.lane_offset())) {}

  private:
    FUSEDRNN_DEVICE void prepare(int) {
        product_.load_weights(BackwardWeights<T, G>{static_cast<const T*>(args_.w_hh), args_.source.H});
    }

    // Rows that are not alive are sent as zeros.
    FUSEDRNN_DEVICE void send(const V (&dgh)[kCells][G], int active, int) {
        FUSEDRNN_UNROLL
        for (int i = 0; i < kCells; ++i) {
            if (!this->is_column(i)) continue;
            T* const to = to_ + i * this->between_ * kChunk<T>;
            const bool alive = this->is_cell(i, 0, active);
            FUSEDRNN_UNROLL
            for (int g = 0; g < G; ++g) {
                T* const place = to + exchange_.offset((block_index().x * G + g) * kUnitsOfBlock);
                exchange_.send(place, alive ? exchanged<kMath>(narrow<T>(dgh[i][g].v)) : T{});
                if (g == G - 1) exchange_.pad(place + kUnitsOfBlock);
            }
        }
        to_ += exchange_.step();
    }

    // And multiplies.
    FUSEDRNN_DEVICE void receive(int exchange) {
        product_.run(from_, exchange % 2);
        from_ += exchange_.step();
        side_ = exchange % 2;
        block_barrier();
    }

    FUSEDRNN_DEVICE float product(int i) const {
        return product_.sum(side_, this->column(i), thread_index() % kUnitsOfBlock).value[0];
    }

    const PersistentBackwardArgs& args_;
    Product product_;
    Exchange<T> exchange_;
    T *to_, *from_;  // where this thread's first cell goes, and what this lane multiplies begins
    int side_;
};

template <class Cell, Math kMath, int kShare, int kCells>
FUSEDRNN_KERNEL FUSEDRNN_LAUNCH_BOUNDS(kPersistentThreads,
                                       1) void persistent_backward(PersistentBackwardArgs args) {
    PersistentBackward<Cell, kMath, kShare, kCells>(args).run();
}

}  // namespace fusedrnn::cuda
