// Tapes in the memory of a caller, who may copy, store and send it: how much that is, and what tells one tape from another.
#pragma once

#include <array>
#include <cstdint>

#include "bindings/arrays.h"
#include "cpu/kernels.h"

namespace fusedrnn {

struct LayerTape;

// Of the memory the first bytes say what wrote it, and the last of these when.
inline constexpr std::int64_t kTapeLabelBytes = 128;
using TapeLabel = std::array<std::int64_t, kTapeLabelBytes / sizeof(std::int64_t)>;

// What a tape keeps of each row of each step: vectors of H padded to whole ones, and single numbers.
struct TapeRow {
    std::int64_t saved, states, hidden, moments;

    TapeRow(const RecurrentCell& cell, bool projected, bool recompute)
        : saved(recompute ? 0 : cell.saved),
          states(cell.states - 1),
          hidden(projected ? 1 : 0),
          moments(cell.programs == nullptr || recompute ? 0 : cell.programs->norms) {}
    // On every CPU: padded to the widest vectors that there are.
    std::int64_t bytes(std::int64_t hidden_size, std::int64_t itemsize) const {
        constexpr std::int64_t kWidest = 64;
        const std::int64_t padded = (hidden_size * itemsize + kWidest - 1) / kWidest * kWidest;
        return padded * (saved + states + hidden) + moments * itemsize;
    }
};

// The label of a call's tape, whose elements have so many bytes.
TapeLabel tape_label(const LayerTape& tape, std::int64_t itemsize, int lanes, bool recompute);
// Where a finished call writes it; a call that is interrupted leaves none.
void write_label(LayerTape& tape, const TapeLabel& label);
void clear_label(const LayerTape& tape);
// Takes the memory for the tape of an earlier call; ValueError where it holds none, or that of another kind of call.
void take_label(LayerTape& tape, const TapeLabel& label);
// RuntimeError where another call has written to a tape's memory since.
void check_label(const LayerTape& tape);

}  // namespace fusedrnn
