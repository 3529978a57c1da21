// The step of a cell on whole rows, behind a pointer: all of a decoder that differs from cell to cell.
#pragma once

#include "cells/all.h"
#include "cells/call.h"
#include "cpu/layout.h"

namespace fusedrnn::FUSEDRNN_ISA {

// Of n rows and the units of some panels. Gates lie as [panel][G][L], row after row; states are S rows for each row.
template <class T>
struct CellStep {
    std::int64_t units;  // H
    Range panels;
    std::int64_t n;
    const T *gates,
        *gx;  // of the first panel: the sums; where gates are split that of the state, and that of the input
    std::int64_t gates_row, gx_row;
    const std::int64_t* sources;  // which row of `gates` and `gx` each has; null: its own
    const T* const* inputs;       // all gates of what each row's input adds besides; null: nothing
    const T* const* before;
    T* const* after;
    T* const* y;  // null: not wanted
    T* saved;     // null: not wanted; [row][panel of all][kSaved][L]
};

// Of n rows and all units. Gradients of the gates lie as [panel][row][G][L].
template <class T>
struct CellStepBackward {
    std::int64_t units, panels, n;
    const T* saved;
    const T* const* before;
    const T* const* dy;  // null: zero
    T* carry;            // gradients of the states after the step, then the pointwise part of those before
    std::int64_t carry_row, carry_state;
    T *dgx, *dgates;  // the same where gates are not split
    std::int64_t gradient_panel;
};

template <class T>
struct DecoderCell {
    int gates, states, saved;
    bool split;
    void (*forward)(const CellStep<T>&);
    void (*backward)(const CellStepBackward<T>&);
};

template <class Cell, class T>
void cell_step(const CellStep<T>& p) {
    using V = Vec<T>;
    constexpr int G = Cell::kGates, S = Cell::kStates, L = V::kLanes;
    const V none[kPerUnitRoom<Cell>]{V::set(0)};
    const std::int64_t panels = panels_of<T>(p.units);
    for (std::int64_t i = 0; i < p.n; ++i) {
        const std::int64_t source = p.sources == nullptr ? i : p.sources[i];
        const T *const sums = p.gates + source * p.gates_row, *const gx = p.gx + source * p.gx_row;
        for (std::int64_t j = p.panels.begin; j < p.panels.end; ++j) {
            const std::int64_t unit = j * L, valid = p.units - unit, place = (j - p.panels.begin) * G * L;
            V from_x[G], gates[G], s[S], next[S], keep[Cell::kSaved];
            for (int g = 0; g < G; ++g) gates[g] = V::load(sums + place + g * L);
            if constexpr (Cell::kSplitGates) {
                for (int g = 0; g < G; ++g) from_x[g] = V::load(gx + place + g * L);
            }
            if (p.inputs != nullptr) {
                V* const with_input = Cell::kSplitGates ? from_x : gates;
                const T* const input = p.inputs[i] + j * G * L;
                for (int g = 0; g < G; ++g) with_input[g] = V::load(input + g * L) + with_input[g];
            }
            s[0] = Cell::kDirectHidden ? load_part(p.before[i * S] + unit, valid) : V::set(0);
            for (int k = 1; k < S; ++k) s[k] = load_part(p.before[i * S + k] + unit, valid);
            call_forward<Cell>(from_x, gates, none, s, next, keep);
            for (int k = 0; k < S; ++k) next[k].store(p.after[i * S + k] + unit);
            if (p.y != nullptr) store_part(next[0], p.y[i] + unit, valid);
            if (p.saved == nullptr) continue;
            T* const saved = p.saved + (i * panels + j) * Cell::kSaved * L;
            for (int k = 0; k < Cell::kSaved; ++k) keep[k].store(saved + k * L);
        }
    }
}

template <class Cell, class T>
void cell_step_backward(const CellStepBackward<T>& p) {
    using V = Vec<T>;
    constexpr int G = Cell::kGates, S = Cell::kStates, L = V::kLanes;
    const V none[kPerUnitRoom<Cell>]{V::set(0)};
    for (std::int64_t i = 0; i < p.n; ++i) {
        for (std::int64_t j = 0; j < p.panels; ++j) {
            const std::int64_t unit = j * L;
            T* const carry = p.carry + i * p.carry_row + unit;
            V saved[Cell::kSaved], before[S], next[S], dgx[G], dgates[G], dunits[kPerUnitRoom<Cell>], ds[S];
            for (int k = 0; k < Cell::kSaved; ++k) {
                saved[k] = V::load(p.saved + ((i * p.panels + j) * Cell::kSaved + k) * L);
            }
            for (int k = 0; k < S; ++k) {
                before[k] = V::load(p.before[i * S + k] + unit);
                next[k] = V::load(carry + k * p.carry_state);
            }
            if (p.dy != nullptr) next[0] = next[0] + load_part(p.dy[i] + unit, p.units - unit);
            call_backward<Cell>(saved, none, before, next, dgx, dgates, dunits, ds);
            const std::int64_t place = j * p.gradient_panel + i * G * L;
            for (int g = 0; g < G; ++g) dgates[g].store(p.dgates + place + g * L);
            if constexpr (Cell::kSplitGates) {
                for (int g = 0; g < G; ++g) dgx[g].store(p.dgx + place + g * L);
            }
            (Cell::kDirectHidden ? ds[0] : V::set(0)).store(carry);
            for (int k = 1; k < S; ++k) ds[k].store(carry + k * p.carry_state);
        }
    }
}

template <class T>
const DecoderCell<T>& decoder_cell(int cell) {
#define FUSEDRNN_DECODER_CELL(name, Type, driver, families) \
    {Type::kGates,      Type::kStates,      Type::kSaved,   \
     Type::kSplitGates, cell_step<Type, T>, cell_step_backward<Type, T>},
    static constexpr DecoderCell<T> kCells[] = {FUSEDRNN_CELLS(FUSEDRNN_DECODER_CELL)};
#undef FUSEDRNN_DECODER_CELL
    return kCells[cell];
}

}  // namespace fusedrnn::FUSEDRNN_ISA
