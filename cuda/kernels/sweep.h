// Which cells of a step a thread has, in a kernel that runs many steps in one launch.
#pragma once

#include "cells/call.h"
#include "kernels/math.h"
#include "kernels/rows.h"
#include "kernels/sweep_arguments.h"

namespace fusedrnn::cuda {

// Steps, positions and compact indices of a sweep are an int, since plans for more are refused: in kernels that
// keep weights in registers, words count, and so do instructions, since few warps share a multiprocessor.
FUSEDRNN_DEVICE int alive_at(const DeviceSchedule& s, int t) { return static_cast<int>(active_at(s, t)); }
FUSEDRNN_DEVICE int index_at(const DeviceSchedule& s, int t) {
    return s.offset == nullptr ? t * static_cast<int>(s.B) : static_cast<int>(load_constant(s.offset + t));
}

// Whether all rows are T long and no state is replaced on its way.
FUSEDRNN_DEVICE bool is_plain(const DeviceSchedule& s, const StateSource& source) {
    return s.offset == nullptr && source.resets == nullptr;
}

// Element `row * width` of an array.
template <class E>
FUSEDRNN_DEVICE E* row_of(E* base, int row, int width) {
    return base + static_cast<std::int64_t>(row) * width;
}

// n numbers that follow each other, aligned to their size where they are four.
template <class V, int n>
FUSEDRNN_DEVICE void load_numbers(const float* from, V (&to)[n]) {
    if constexpr (n == 4) {
        const Vector16 four = load16_constant(from);
        FUSEDRNN_UNROLL
        for (int k = 0; k < n; ++k) to[k] = V::set(as_float(four.word[k]));
    } else {
        FUSEDRNN_UNROLL
        for (int k = 0; k < n; ++k) to[k] = V::set(load_constant(from + k));
    }
}
template <class V, int n>
FUSEDRNN_DEVICE void store_numbers(float* to, const V (&from)[n]) {
    if constexpr (n == 4) {
        store16(to, {{as_unsigned(from[0].v), as_unsigned(from[1].v), as_unsigned(from[2].v),
                      as_unsigned(from[3].v)}});
    } else {
        FUSEDRNN_UNROLL
        for (int k = 0; k < n; ++k) store(to + k, from[k].v);
    }
}

// By all lanes of a warp, which hold neighbours: the 16 bytes that this lane's element is in.
template <class T>
FUSEDRNN_DEVICE Vector16 gather_piece(T element) {
    constexpr int step = kPiece<T> / 4;
    unsigned word;
    if constexpr (sizeof(T) == 2) {
        const unsigned own = element.bits, other = shuffle_xor(own, 1);
        word = (lane() & 1) != 0 ? other | own << 16 : own | other << 16;
    } else {
        word = as_unsigned(element);
    }
    const bool odd = (lane() & step) != 0, upper = (lane() & 2 * step) != 0;
    const unsigned neighbour = shuffle_xor(word, step);
    const unsigned low = odd ? neighbour : word, high = odd ? word : neighbour;
    const unsigned other_low = shuffle_xor(low, 2 * step), other_high = shuffle_xor(high, 2 * step);
    if (upper) return {{other_low, other_high, low, high}};
    return {{low, high, other_low, other_high}};
}

FUSEDRNN_DEVICE std::int64_t length_at(const DeviceSchedule& s, int position) {
    return s.length == nullptr ? s.T : load_constant(s.length + position);
}

// A block's threads take its units, then the next column. Its columns are positions of the batch: those of
// block_index().y.
class SweepCells {
  public:
    // `units` of each block, this one being the n-th; a thread's cells are `between` columns apart.
    FUSEDRNN_DEVICE SweepCells(std::int64_t H, int n, int units, int columns, int between)
        : H_(static_cast<int>(H)),
          unit_(n * units + thread_index() % units),
          first_position_(block_index().y * columns),
          between_(between),
          first_column_(thread_index() / units),
          columns_(columns) {}

  protected:
    FUSEDRNN_DEVICE int column(int i) const { return first_column_ + i * between_; }
    FUSEDRNN_DEVICE int position(int i) const { return first_position_ + column(i); }
    // Of a whole warp: its columns are two, of an even number.
    FUSEDRNN_DEVICE bool is_column(int i) const { return column(i) < columns_; }
    // Whether cell i exists and its position is in [from, to).
    FUSEDRNN_DEVICE bool is_cell(int i, int from, int to) const {
        const int p = position(i);
        return column(i) < columns_ && from <= p && p < to && unit_ < H_;
    }

    int H_, unit_, first_position_, between_;

  private:
    int first_column_, columns_;
};

}  // namespace fusedrnn::cuda
