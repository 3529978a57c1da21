// Many steps forward in one launch. A block keeps the weights of its 16 units in registers; the hidden state
// goes round the group through the exchange.
#pragma once

#include "kernels/persistent_product.h"
#include "kernels/sweep_forward.h"

namespace fusedrnn::cuda {

// Rows of W_hh, the tiles are gates.
template <class T>
struct ForwardWeights {
    static constexpr bool kAlongRows = false;
    const T* w;
    std::int64_t H;
    FUSEDRNN_DEVICE T at(int gate, int row, int k) const {
        const std::int64_t u = block_index().x * 16 + row;
        return u < H && k < H ? load_constant(w + (gate * H + u) * H + k) : T{};
    }
};

template <class Cell, Math kMath, int kShare, int kCells>
class PersistentForward
    : public SweepForward<PersistentForward<Cell, kMath, kShare, kCells>, Cell, kMath, kCells> {
    using Base = SweepForward<PersistentForward, Cell, kMath, kCells>;
    friend Base;
    using typename Base::T;
    using Product = PersistentProduct<kMath, Cell::kGates, kShare>;

  public:
    FUSEDRNN_DEVICE explicit PersistentForward(const PersistentForwardArgs& args)
        : Base(args, persistent_cells(args.source, args.shape)),
          args_(args),
          product_(args.shape),
          exchange_(args.shape, args.exchange, kUnitsOfBlock),
          to_(exchange_.place(this->column(0) * kChunk<T> +
                              exchange_.offset(block_index().x * kUnitsOfBlock) +
                              thread_index() % kUnitsOfBlock)),
          from_(exchange_.place(product_.lane_offset())) {}

  private:
    FUSEDRNN_DEVICE void prepare(int) {
        product_.load_weights(ForwardWeights<T>{static_cast<const T*>(args_.w_hh), args_.source.H});
    }

    // Rows that are not alive are sent as zeros.
    FUSEDRNN_DEVICE void send(int active, int) {
        FUSEDRNN_UNROLL
        for (int i = 0; i < kCells; ++i) {
            if (!this->is_column(i)) continue;
            T* const to = to_ + i * this->between_ * kChunk<T>;
            exchange_.send(to, this->is_cell(i, 0, active) ? this->hidden(i) : T{});
            exchange_.pad(to + kUnitsOfBlock);
        }
        to_ += exchange_.step();
    }

    FUSEDRNN_DEVICE void multiply(int exchange) {
        product_.run(from_, exchange % 2);
        from_ += exchange_.step();
        side_ = exchange % 2;
        block_barrier();
    }

    FUSEDRNN_DEVICE typename Product::Sum sum(int i) const {
        return product_.sum(side_, this->column(i), thread_index() % kUnitsOfBlock);
    }

    const PersistentForwardArgs& args_;
    Product product_;
    Exchange<T> exchange_;
    T *to_, *from_;  // where this thread's first cell goes, and what this lane multiplies begins
    int side_;
};

template <class Cell, Math kMath, int kShare, int kCells>
FUSEDRNN_KERNEL FUSEDRNN_LAUNCH_BOUNDS(kPersistentThreads,
                                       1) void persistent_forward(PersistentForwardArgs args) {
    PersistentForward<Cell, kMath, kShare, kCells>(args).run();
}

}  // namespace fusedrnn::cuda
