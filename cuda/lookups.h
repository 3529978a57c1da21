// Which row of a table each input of a sequence is, in the orders that forward and backward read.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "bindings/timetable.h"
#include "problem.h"

namespace fusedrnn::cuda {

class LookupTable {
  public:
    // `index` (T, B): rows of the table, each in [0, V).
    explicit LookupTable(std::shared_ptr<const std::vector<std::int64_t>> index) : index_(std::move(index)) {}

    // What backward needs, too: the inputs by the row that they are.
    void sort(const Dims& dims, const Timetable& timetable) {
        const Schedule s = timetable.view(nullptr);
        first_.assign(static_cast<std::size_t>(dims.V) + 1, 0);
        inputs_.resize(static_cast<std::size_t>(timetable.rows()));
        const auto visit = [&](const auto& each) {
            for (std::int64_t t = 0; t < dims.T; ++t) {
                for (std::int64_t p = 0; p < s.active[t]; ++p) {
                    each((*index_)[t * dims.B + s.order[p]], s.offset[t] + p);
                }
            }
        };
        visit([&](std::int64_t row, std::int64_t) { ++first_[row + 1]; });
        std::partial_sum(first_.begin(), first_.end(), first_.begin());
        std::vector<std::int64_t> next = first_;
        visit([&](std::int64_t row, std::int64_t input) { inputs_[next[row]++] = input; });
    }

    Lookups view() const { return {index_->data(), first_.data(), inputs_.data()}; }
    std::int64_t nbytes() const {
        return static_cast<std::int64_t>((index_->size() + first_.size() + inputs_.size()) *
                                         sizeof(std::int64_t));
    }

  private:
    std::shared_ptr<const std::vector<std::int64_t>> index_;
    std::vector<std::int64_t> first_, inputs_;
};

}  // namespace fusedrnn::cuda
