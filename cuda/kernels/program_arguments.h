// What the drivers hand to the kernels of cells that are data (csrc/cells/program_list.h), and their handles. Plain data, for
// any compiler.
#pragma once

#include "kernels/table.h"

namespace fusedrnn::cuda {

// What a placed value of a program is: the numbers of CellPrograms by kind. A program's list has the kind in the upper byte
// and which of them it is in the lower one.
enum class ValueKind : int {
    kInputGate,       // gates of gx where they are split, or their gradients
    kGate,            // those that the recurrent product is part of, or their gradients
    kAfter,           // states after the step, or the gradients that reach them
    kBefore,          // states before it
    kSaved,           // kept for backward
    kUnit,            // per-unit parameters
    kBeforeGradient,  // gradients of states before the step,
    kUnitGradient,    // and of per-unit parameters
    kLink,            // left by one stage for another
    kOperand,         // what a product within the step takes
    kMask,
};
inline constexpr int kKindShift = 8;

struct MaskArgs {
    MaskRule rule;
    double expected;
    bool each_step;
};

// A program for the rows of a step: a thread takes a unit of a row, its slots are a column of shared memory. All arrays begin
// at the step's first row.
struct ProgramArgs {
    // In the device's memory.
    const Instruction* code;
    const double* constants;
    const std::uint16_t* values;  // of each placed slot, what it is
    int length, constant_count, inputs, placed;
    // Of the cell.
    int gates, states, saved_count, unit_count, link_count;
    StateSource source;
    TimeStep now;
    const std::int64_t* order;
    int rows;
    const void* states_before;          // C [position][states - 1][H]
    void* saved;                        // C [position][H][saved_count]
    const void* units[kMaxUnitValues];  // T (H) each
    void* links;                        // C [position][link_count][H]
    void* operands;                     // T [position][H] each, `operand_size` elements apart
    std::int64_t operand_size;
    MaskArgs masks[kMaxMasks];
    Draws draws;
};

struct ProgramForwardArgs : ProgramArgs {
    const void *gx, *sums;  // C [position][gates][H]: of the input, and with the recurrent product
    void* hidden;  // T: h after the step, at `hidden_stride` times the row, or the position; null: not wanted
    std::int64_t hidden_stride;
    bool hidden_by_position;
    void* after;  // C [position][states - 1][H]; may be states_before; null: not wanted
};

struct ProgramBackwardArgs : ProgramArgs {
    const void*
        product;  // C [position][H]: the gradient of h from the later step, or through a projection; null: none
    bool projected, direct_hidden;
    TimeStep later;
    int later_rows;
    bool
        stores_initial;  // gradients of the initial states, of rows that are alive at the later step and not now
    const void* dy;      // T, at dy_stride times the row; null: zero
    std::int64_t dy_stride;
    const void* dfinal[kMaxStates];
    void* dinitial[kMaxStates];
    void* carry;           // C [position][states][H]: in, of the later step; out, of this one
    void *dgx, *dgh;       // T [position][gates][H]
    void* unit_gradients;  // T [position][unit_count][H]
};

inline constexpr int kNormaliseThreads = 256;

// Rows of `count` values beside each other, each H units long, normalised where they are or to the tape. Blocks (position).
struct NormaliseArgs {
    void* values;  // C; the gradients of gates T
    std::int64_t row, H;
    int count;
    void* saved;  // C: value v of unit u of position p at (p * H + u) * saved_count + v; null: none are kept
    std::int64_t saved_count;
    void* moments;  // C: at p * norms
    std::int64_t norms;
};

struct ProgramEntries {
    Entry<ProgramForwardArgs> forward;
    Entry<ProgramBackwardArgs> backward;
    Entry<NormaliseArgs> normalise, normalise_backward_gates, normalise_backward_links;
};

// Of the mode's types, whatever its products are made by.
const ProgramEntries& program_entries(Math math);

}  // namespace fusedrnn::cuda
