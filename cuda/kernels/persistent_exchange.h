// How the blocks of a group hand each other the rows that the next step multiplies.
//
// Each block writes the columns of its 16 units into one of two buffers and then sets its flag to how many
// exchanges it has written; a warp that multiplies waits for the flags of the blocks whose units it reads,
// and for no others. The buffer of exchange e is written again by exchange e + 2. A block gets there only after
// its warps have, between them, seen all flags of e + 1, and a block sets that flag after its warps are done
// with the rows of e.
#pragma once

#include "kernels/persistent_arguments.h"
#include "kernels/sweep.h"

namespace fusedrnn::cuda {

// Polls of a flag before the launch is given up as lost: more than ten seconds, where a step takes
// microseconds.
inline constexpr int kMostPolls = 1 << 25;

FUSEDRNN_DEVICE SweepCells persistent_cells(const StateSource& source, const PersistentShape& shape) {
    return {source.H, block_index().x, kUnitsOfBlock, shape.columns, block_threads() / kUnitsOfBlock};
}

template <class T>
class Exchange {
  public:
    FUSEDRNN_DEVICE Exchange(const PersistentShape& shape, const ExchangeMemory& memory)
        : flags_(memory.flags + block_index().y * shape.tiles),
          stride_(shape.chunks * kChunk<T>),
          buffer_(shape.columns * stride_),
          rows_(static_cast<T*>(memory.rows) + std::int64_t{2} * block_index().y * buffer_) {}

    // Between rows.
    FUSEDRNN_DEVICE int stride() const { return stride_; }
    // A place in the rows of exchange 0, for a thread to keep; exchanges count from 0.
    FUSEDRNN_DEVICE T* place(int offset) const { return opaque(rows_ + offset); }
    // The same place in the rows of another exchange.
    FUSEDRNN_DEVICE T* of(int exchange, T* place) const { return place + exchange % 2 * buffer_; }

    // By all threads of the block: what they stored into rows(exchange) is there for the group.
    FUSEDRNN_DEVICE void publish(int exchange) const {
        block_barrier();
        if (thread_index() == 0) store_release(flags_ + block_index().x, static_cast<unsigned>(exchange) + 1);
    }

    // By all lanes of a warp: until the blocks [first, last) have published it.
    FUSEDRNN_DEVICE void wait(int exchange, int first, int last) const {
        for (int block = first + lane(); block < last; block += 32) {
            for (int polls = 0; load_acquire(flags_ + block) <= static_cast<unsigned>(exchange); ++polls) {
                if (polls == kMostPolls) trap();
                spin_pause();
            }
        }
        warp_barrier();
    }

  private:
    unsigned* flags_;
    int stride_, buffer_;
    T* rows_;
};

}  // namespace fusedrnn::cuda
