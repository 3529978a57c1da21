// The one place that calls a cell's equations, whatever it takes.
#pragma once

#include "cells/schema.h"
#include "simd/simd.h"

namespace fusedrnn::FUSEDRNN_ISA {

// Values of each unit that are parameters, and the length of an array of them, which cannot be 0.
template <class Cell>
inline constexpr int kPerUnit = per_unit_values(Cell::kParameters);
template <class Cell>
inline constexpr int kPerUnitRoom = kPerUnit<Cell> == 0 ? 1 : kPerUnit<Cell>;

template <class Cell>
constexpr CellTraits traits_of(const char* name) {
    return {name,
            Cell::kGates,
            Cell::kStates,
            Cell::kSaved,
            kPerUnit<Cell>,
            Cell::kSplitGates,
            Cell::kDirectHidden,
            Cell::kParameters.list,
            static_cast<int>(sizeof(Cell::kParameters.list) / sizeof(Parameter))};
}

// `gx` is read where gates are split only: elsewhere `gates` are the whole sums.
template <class Cell, class V>
FUSEDRNN_INLINE void call_forward(const V (&gx)[Cell::kGates], const V (&gates)[Cell::kGates],
                                  const V (&units)[kPerUnitRoom<Cell>], const V (&s)[Cell::kStates],
                                  V (&s_next)[Cell::kStates], V (&saved)[Cell::kSaved]) {
    if constexpr (Cell::kSplitGates && kPerUnit<Cell> > 0) {
        Cell::forward(gx, gates, units, s, s_next, saved);
    } else if constexpr (Cell::kSplitGates) {
        Cell::forward(gx, gates, s, s_next, saved);
    } else if constexpr (kPerUnit<Cell> > 0) {
        Cell::forward(gates, units, s, s_next, saved);
    } else {
        Cell::forward(gates, s, s_next, saved);
    }
}

// The gradients of gx are those of the gates where these are not split.
template <class Cell, class V>
FUSEDRNN_INLINE void call_backward(const V (&saved)[Cell::kSaved], const V (&units)[kPerUnitRoom<Cell>],
                                   const V (&s)[Cell::kStates], const V (&ds_next)[Cell::kStates],
                                   V (&dgx)[Cell::kGates], V (&dgates)[Cell::kGates],
                                   V (&dunits)[kPerUnitRoom<Cell>], V (&ds)[Cell::kStates]) {
    if constexpr (Cell::kSplitGates && kPerUnit<Cell> > 0) {
        Cell::backward(saved, units, s, ds_next, dgx, dgates, dunits, ds);
    } else if constexpr (Cell::kSplitGates) {
        Cell::backward(saved, s, ds_next, dgx, dgates, ds);
    } else if constexpr (kPerUnit<Cell> > 0) {
        Cell::backward(saved, units, s, ds_next, dgates, dunits, ds);
    } else {
        Cell::backward(saved, s, ds_next, dgates, ds);
    }
}

}  // namespace fusedrnn::FUSEDRNN_ISA
