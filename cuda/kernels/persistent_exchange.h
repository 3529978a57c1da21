// How the blocks of a group hand each other the rows that the next step multiplies.
//
// Each exchange has rows of its own, whose bits are all ones at first. Who computes a piece of 16 bytes stores
// it as a whole, and who multiplies it asks for it until it is there: data are their own flag. So the way from
// one block to another is a store and a load, and no fence has to be waited for; and since no place is written
// twice, nobody has to know how far the others have come. The one number whose bits are all ones is a NaN, in
// whose place another is sent.
//
// Rows are cut into chunks of K, and the same chunk of all columns lies together, as a warp reads it.
#pragma once

#include "kernels/persistent_arguments.h"
#include "kernels/sweep.h"

namespace fusedrnn::cuda {

// Loads of a piece before the launch is given up as lost: more than ten seconds, where a step takes
// microseconds.
inline constexpr int kMostPolls = 1 << 25;

FUSEDRNN_DEVICE SweepCells persistent_cells(const StateSource& source, const PersistentShape& shape) {
    return {source.H, block_index().x, kUnitsOfBlock, shape.columns, block_threads() / kUnitsOfBlock};
}

template <class T>
FUSEDRNN_DEVICE T sendable(T x) {
    if constexpr (sizeof(T) == 2) {
        return x.bits == 0xffff ? T{0x7fff} : x;
    } else {
        return as_unsigned(x) == 0xffffffffu ? as_float(0x7fffffffu) : x;
    }
}

FUSEDRNN_DEVICE bool is_missing(Vector16 piece) { return piece.word[0] == 0xffffffffu; }

// Pieces of other blocks, `between` elements apart, the first `count` of which were loaded some time ago. All
// that are missing are asked for at the same time: the way there and back takes longer than all else.
template <class T, int n>
FUSEDRNN_DEVICE void receive(const T* from, int between, int count, Piece<T> (&pieces)[n]) {
    for (int polls = 0;; ++polls) {
        bool missing = false;
        FUSEDRNN_UNROLL
        for (int i = 0; i < n; ++i) missing = missing || (i < count && is_missing(pieces[i].vector));
        if (!missing) return;
        if (polls == kMostPolls) trap();
        spin_pause();
        FUSEDRNN_UNROLL
        for (int i = 0; i < n; ++i) {
            if (i < count && is_missing(pieces[i].vector)) {
                pieces[i].vector = load16_relaxed(from + i * between);
            }
        }
    }
}

// `depth`: elements of K that a block sends of each column.
template <class T>
class Exchange {
  public:
    FUSEDRNN_DEVICE Exchange(const PersistentShape& shape, void* memory, int depth)
        : line_(shape.columns * kChunk<T>),
          step_(static_cast<std::int64_t>(shape.groups) * line_ * shape.chunks),
          padding_(block_index().x + 1 == shape.tiles ? shape.chunks * kChunk<T> - shape.tiles * depth : 0),
          rows_(static_cast<T*>(memory) + static_cast<std::int64_t>(block_index().y) * line_ * shape.chunks) {
    }

    // Of element k of a column; columns are kChunk<T> elements apart.
    FUSEDRNN_DEVICE int offset(int k) const { return k / kChunk<T> * line_ + k % kChunk<T>; }
    // A place in the rows of the first exchange, for a thread to keep; it is further on by step() in each of the
    // following ones.
    FUSEDRNN_DEVICE T* place(int offset) const { return opaque(rows_ + offset); }
    FUSEDRNN_DEVICE std::int64_t step() const { return step_; }

    // By all lanes of a warp, which hold 16 units of two columns: element `to` of a row.
    FUSEDRNN_DEVICE void send(T* to, T element) const {
        const Vector16 piece = gather_piece(sendable(element));
        if (lane() % kPiece<T> == 0) store_relaxed(reinterpret_cast<Vector16*>(to), piece);
    }
    // After its last element: zeros up to the end of the row.
    FUSEDRNN_DEVICE void pad(T* to) const {
        if (padding_ > 0 && lane() % kPiece<T> == 0) {
            store_relaxed(reinterpret_cast<Vector16*>(to), Vector16{});
        }
    }

  private:
    int line_;
    std::int64_t step_;
    int padding_;  // 16 or none, of the last block
    T* rows_;
};

}  // namespace fusedrnn::cuda
