// The operands of a sum over rows: outer.h.
#pragma once

#include <cstdint>

#include "cpu/team.h"

namespace fusedrnn::FUSEDRNN_ISA {

template <class T>
struct OuterArgs {
    const T* a;  // panel j, row k, gate g, lane l at a + j * a_panel + (k * row_gates + g) * L + l
    std::int64_t a_panel, row_gates;
    std::int64_t gates, units;  // of row_gates the first
    const T* const* x;          // `rows` rows of `columns` values
    std::int64_t rows, columns;
    T* dw;       // (gates*H, columns)
    T* buffer;   // panel_depth(rows) vectors for each of the columns
    Team& team;  // ends early once it is cancelled
    int member;
    std::int64_t dw_stride = 0;  // of the rows of dw, `columns` where it is 0
};

}  // namespace fusedrnn::FUSEDRNN_ISA
