// What one forward call of a layer and direction keeps for its backward.
#pragma once

#include <memory>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/buffer.h"
#include "bindings/timetable.h"
#include "bindings/weights.h"

namespace fusedrnn {

// Whether tapes made from now on remember what their arrays hold.
void set_detect_changes(bool enabled);

// An array for each state, or none of any: most calls give no states, and need not pay for those of other cells.
class StateArrays {
  public:
    const Array& operator[](int k) const {
        static const Array none;
        return static_cast<std::size_t>(k) < arrays_.size() ? arrays_[static_cast<std::size_t>(k)] : none;
    }
    // To be written; those from at(k) of a smaller k move.
    Array& at(int k) {
        constexpr std::size_t kUsual = 4;
        const auto wanted = static_cast<std::size_t>(k) + 1;
        if (arrays_.size() < wanted) arrays_.resize(wanted <= kUsual ? kUsual : kMaxStates);
        return arrays_[static_cast<std::size_t>(k)];
    }
    auto begin() const { return arrays_.begin(); }
    auto end() const { return arrays_.end(); }

  private:
    std::vector<Array> arrays_;
};

// The arrays of a call that forward and backward read. The tape keeps them alive; it does not copy them.
struct CallArrays {
    Array x, y, resets;
    std::shared_ptr<const std::vector<std::int64_t>> index;  // a copy; null where x is a sequence
    StateArrays initial, reset;
    Draws draws{};
};

struct LayerTape {
    LayerTape(const RecurrentCell& cell, const Dims& dims, DType dtype,
              std::shared_ptr<const Timetable> timetable)
        : cell(cell), dims(dims), dtype(dtype), timetable(std::move(timetable)) {}
    virtual ~LayerTape() = default;

    // What the tape keeps beyond the caller's arrays and the weights.
    std::int64_t nbytes() const {
        std::int64_t copies = arrays.x.copied_bytes() + arrays.resets.copied_bytes();
        for (const StateArrays* states : {&arrays.initial, &arrays.reset}) {
            for (const Array& state : *states) copies += state.copied_bytes();
        }
        if (arrays.index != nullptr) {
            copies += static_cast<std::int64_t>(arrays.index->size() * sizeof(std::int64_t));
        }
        const std::int64_t own =
            memory.given() ? 0 : saved.bytes() + states.bytes() + hidden.bytes() + moments.bytes();
        return own + timetable->nbytes() + copies;
    }

    // After forward, where changes are to be detected.
    void remember();
    // RuntimeError if an array that backward reads has changed since then.
    void check_unchanged() const;

    const RecurrentCell& cell;
    Dims dims;
    DType dtype;
    std::shared_ptr<const Timetable> timetable;
    CallArrays arrays;
    bool has_parameter[kMaxParameters]{};  // by the cell's schema
    AlignedBuffer saved, states, hidden, moments;
    Array memory;  // the caller's, of which the four are parts, or none

  private:
    std::vector<Digest> digests_;
};

template <class T>
struct TypedTape : LayerTape {
    using LayerTape::LayerTape;
    std::shared_ptr<const WeightBlock<T>> weights;
};

}  // namespace fusedrnn
