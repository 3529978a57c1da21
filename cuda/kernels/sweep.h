// Which cells of a step a thread has, in a kernel that runs many steps in one launch.
#pragma once

#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"
#include "kernels/math.h"
#include "kernels/rows.h"
#include "kernels/sweep_arguments.h"

namespace fusedrnn::cuda {

// Steps and positions of a sweep are an int, since plans for more are refused: in kernels that keep weights in
// registers, words count. Compact indices are not.
FUSEDRNN_DEVICE int alive_at(const DeviceSchedule& s, int t) { return static_cast<int>(active_at(s, t)); }

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
