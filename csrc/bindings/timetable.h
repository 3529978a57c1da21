// The schedule of a batch (see cpu/kernels.h), built from `lengths` and owned.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "cpu/kernels.h"

namespace fusedrnn {

// Of one step, for each row of the batch.
inline constexpr std::int64_t kTimetableBytes = 2 * sizeof(std::int64_t);

class Timetable {
  public:
    // `lengths` holds `batch` values in [0, seq_len], or is null: all rows are seq_len long.
    Timetable(std::int64_t seq_len, std::int64_t batch, const std::int64_t* lengths, bool reverse)
        : order_(batch),
          length_(batch, seq_len),
          active_(seq_len + 1, batch),
          offset_(seq_len + 1),
          reverse_(reverse) {
        std::iota(order_.begin(), order_.end(), std::int64_t{0});
        active_[seq_len] = 0;
        if (lengths != nullptr) {
            std::stable_sort(order_.begin(), order_.end(),
                             [&](std::int64_t a, std::int64_t b) { return lengths[a] > lengths[b]; });
            for (std::int64_t p = 0; p < batch; ++p) length_[p] = lengths[order_[p]];
            std::int64_t alive = batch;
            for (std::int64_t t = 0; t < seq_len; ++t) {
                while (alive > 0 && length_[alive - 1] <= t) --alive;
                active_[t] = alive;
            }
        }
        for (std::int64_t t = 0; t < seq_len; ++t) offset_[t + 1] = offset_[t] + active_[t];
    }

    Schedule view(const std::uint8_t* resets) const {
        return {order_.data(), active_.data(), offset_.data(), length_.data(), resets, reverse_};
    }
    // Rows of all steps together.
    std::int64_t rows() const { return offset_.back(); }
    bool reverse() const { return reverse_; }
    std::int64_t nbytes() const {
        return static_cast<std::int64_t>((order_.size() + length_.size() + active_.size() + offset_.size()) *
                                         sizeof(std::int64_t));
    }

  private:
    std::vector<std::int64_t> order_, length_, active_, offset_;
    bool reverse_;
};

}  // namespace fusedrnn
