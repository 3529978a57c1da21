// The table of kernels for one element type on this instruction set: one row a cell, in the order of the cell list.
#pragma once

#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"
#include "cpu/backward.h"
#include "cpu/fingerprint.h"
#include "cpu/forward.h"
#include "cpu/linear.h"
#include "cpu/pack.h"

namespace fusedrnn::FUSEDRNN_ISA {

template <class Cell, class T>
constexpr RecurrentKernels<T> recurrent_kernels(const char* name) {
    return {{name, Cell::kGates, Cell::kStates, Cell::kSaved, Cell::kSplitGates},
            packed_bytes<Cell, T>,
            pack<Cell, T>,
            forward_workspace<Cell, T>,
            forward<Cell, T>,
            backward_workspace<Cell, T>,
            backward<Cell, T>};
}

extern const QuantizedTable kQuantizedTable;  // kernels_quantized.cpp

template <class T>
constexpr KernelTable<T> make_table() {
    return {Vec<T>::kLanes,
            fingerprint,
            {
#define FUSEDRNN_TABLE_ROW(name, Type) recurrent_kernels<Type, T>(#name),
                FUSEDRNN_CELLS(FUSEDRNN_TABLE_ROW)
#undef FUSEDRNN_TABLE_ROW
            },
            {linear_workspace<T>, linear_forward<T>, linear_backward<T>},
            sizeof(T) == sizeof(float) ? &kQuantizedTable : nullptr};
}

}  // namespace fusedrnn::FUSEDRNN_ISA
