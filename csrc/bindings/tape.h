// What one forward call of a layer and direction keeps for its backward.
#pragma once

#include <memory>
#include <vector>

#include "bindings/buffer.h"
#include "bindings/call_arguments.h"
#include "bindings/tape_memory.h"
#include "bindings/weights.h"

namespace fusedrnn {

// Whether tapes made from now on remember what their arrays hold.
void set_detect_changes(bool enabled);

// The tape keeps them alive; it does not copy them.
struct CallArrays : LayerArrays<Array> {
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
        for (const StateArrays<Array>* states : {&arrays.initial, &arrays.reset}) {
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
    Array memory;       // the caller's, of which the four are parts, or none
    TapeLabel label{};  // what its first bytes hold

  private:
    std::vector<Digest> digests_;
};

template <class T>
struct TypedTape : LayerTape {
    using LayerTape::LayerTape;
    std::shared_ptr<const WeightBlock<T>> weights;
};

}  // namespace fusedrnn
