// The sizes of a cell, for drivers that are written once: constants of a compiled cell, read from its handle for one that is
// data. A driver inherits them.
#pragma once

#include "cells/call.h"
#include "cpu/kernels.h"
#include "cpu/layout.h"

namespace fusedrnn::FUSEDRNN_ISA {

// Stands for every cell that is data: its equations are programs (cells/program.h), which work on tiles of many vectors.
struct ProgramCell {};

template <class Cell>
struct CellSizes {
    static constexpr bool kIsProgram = false;
    // Gates that a matrix product takes together, interleaved in its panels of weights.
    static constexpr int kInterleaved = Cell::kGates;
    static constexpr int kMostStates = Cell::kStates;
    static constexpr int G = Cell::kGates, S = Cell::kStates, kept = Cell::kSaved, units = kPerUnit<Cell>;
    static constexpr bool split_gates = Cell::kSplitGates, direct_hidden = Cell::kDirectHidden;
    static constexpr bool multiplies_h = true;
    static constexpr bool passes_h = true;  // whether the product of any gate is that of h itself
    // Gates whose product is that of h before the step; whether whole rows are worked on within a step.
    static constexpr int first_gates = Cell::kGates;
    static constexpr bool staged = false;

    constexpr explicit CellSizes(const RecurrentCell&) {}
};

template <>
struct CellSizes<ProgramCell> {
    static constexpr bool kIsProgram = true;
    static constexpr int kInterleaved = 1;
    static constexpr int kMostStates = kMaxStates;
    int G, S, kept, units, first_gates, links, products, norms;
    bool split_gates, direct_hidden, multiplies_h, passes_h, staged;

    explicit CellSizes(const RecurrentCell& cell)
        : G(cell.gates),
          S(cell.states),
          kept(cell.saved),
          units(cell.per_unit),
          first_gates(cell.programs->first_gates),
          links(cell.programs->link_count),
          products(cell.programs->products),
          norms(cell.programs->norms),
          split_gates(cell.split_gates && cell.programs->hidden_product),
          direct_hidden(cell.direct_hidden),
          multiplies_h(cell.programs->hidden_product),
          passes_h(multiplies_h && first_gates > 0),
          staged(cell.programs->staged) {}
};

// Units that each gate has room for in gate gradients, [panel][row][G][L]. In the last panel the gates of a compiled cell stand
// side by side, however few units it has, which products over them then read without padding; a program's are whole vectors.
template <class Cell, class T>
constexpr std::int64_t unit_room(std::int64_t units) {
    return CellSizes<Cell>::kIsProgram ? padded<T>(units) : units;
}

}  // namespace fusedrnn::FUSEDRNN_ISA
