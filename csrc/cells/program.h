// A cell that is data: its equations as a list of vector operations, executed over a tile of rows.
//
// A program works on numbered slots: constants, inputs, outputs and temporaries, in this order. A slot is a vector for
// every row of the tile, at equal distances: a gate beside the other gates, a value on the tape, a parameter that all rows
// share (stride 0). The caller says where each is, so that nothing is moved to be computed with; what the program makes on
// the way lies in the caller's scratch and stays in the L1 cache. At one row of the batch the tile's rows are panels.
//
// An operation reads a row before it writes it: a slot may be written where an operand lies, if both have one stride.
#pragma once

#include "cells/program_functions.h"
#include "cells/program_list.h"

namespace fusedrnn::FUSEDRNN_ISA {

// One instruction for all rows of a tile. Unrolled, the backward of an LSTM takes a quarter less time from eight rows on.
template <class T>
using RowLoop = void (*)(std::int64_t rows, const Slot<T>* slots, const Instruction& step);

#define FUSEDRNN_ROW_LOOP(name, arity, expression)                                            \
    template <class T>                                                                        \
    void row_loop_##name(std::int64_t rows, const Slot<T>* slots, const Instruction& step) {  \
        using V = Vec<T>;                                                                     \
        const Slot<T> to = slots[step.to], from_a = slots[step.a];                            \
        const Slot<T> from_b = slots[step.b], from_c = slots[step.c];                         \
        T *p = to.at, *p_a = from_a.at, *p_b = from_b.at, *p_c = from_c.at;                   \
        _Pragma("GCC unroll 4") for (std::int64_t row = 0; row < rows; ++row) {               \
            [[maybe_unused]] const V a = V::load(p_a), b = arity > 1 ? V::load(p_b) : a;      \
            [[maybe_unused]] const V c = arity > 2 ? V::load(p_c) : a;                        \
            (expression).store(p);                                                            \
            p += to.stride, p_a += from_a.stride, p_b += from_b.stride, p_c += from_c.stride; \
        }                                                                                     \
    }
FUSEDRNN_PROGRAM_OPERATIONS(FUSEDRNN_ROW_LOOP)
#undef FUSEDRNN_ROW_LOOP

template <class T>
void run_program(const Instruction* code, std::int64_t length, std::int64_t rows, const Slot<T>* slots) {
    static constexpr RowLoop<T> loops[] = {
#define FUSEDRNN_ROW_LOOP_ENTRY(name, arity, expression) row_loop_##name<T>,
        FUSEDRNN_PROGRAM_OPERATIONS(FUSEDRNN_ROW_LOOP_ENTRY)
#undef FUSEDRNN_ROW_LOOP_ENTRY
    };
    for (std::int64_t i = 0; i < length; ++i) loops[code[i].operation](rows, slots, code[i]);
}

}  // namespace fusedrnn::FUSEDRNN_ISA
