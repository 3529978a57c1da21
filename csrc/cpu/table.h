// The table of kernels for one element type on this instruction set: one row a cell, in the order of the cell list.
#pragma once

#include "cells/all.h"
#include "cpu/backward_projected.h"
#include "cpu/fingerprint.h"
#include "cpu/forward.h"
#include "cpu/linear.h"
#include "cpu/pack.h"

namespace fusedrnn::FUSEDRNN_ISA {

// The kernels of the driver `dense`.
template <class Cell, class T>
constexpr RecurrentKernels<T> dense_kernels() {
    return {packed_bytes<Cell, T>,      pack<Cell, T>,    hidden_bytes<Cell, T>,       pack_hidden<Cell, T>,
            forward_workspace<Cell, T>, forward<Cell, T>, backward_workspace<Cell, T>, backward<Cell, T>};
}

inline constexpr CellTraits kCellTraits[] = {
#define FUSEDRNN_TRAITS(name, Type, driver, families) traits_of<Type>(#name),
    FUSEDRNN_CELLS(FUSEDRNN_TRAITS)
#undef FUSEDRNN_TRAITS
};
template <class T>
inline constexpr RecurrentKernels<T> kCellKernels[] = {
#define FUSEDRNN_KERNELS(name, Type, driver, families) driver##_kernels<Type, T>(),
    FUSEDRNN_CELLS(FUSEDRNN_KERNELS)
#undef FUSEDRNN_KERNELS
};

extern const QuantizedKernels kQuantizedKernels[][kWeightFormats];  // kernels_quantized.cpp

template <class T>
inline constexpr const QuantizedKernels (*kQuantizedOf)[kWeightFormats] = nullptr;
#ifndef FUSEDRNN_BF16
template <>
inline constexpr const QuantizedKernels (*kQuantizedOf<float>)[kWeightFormats] = kQuantizedKernels;
#endif

template <class T>
constexpr KernelTable<T> make_table() {
    return {Vec<T>::kLanes,
            fingerprint,
            {linear_workspace<T>, linear_forward<T>, linear_backward<T>},
            kCellTraits,
            kCellKernels<T>,
            static_cast<int>(sizeof(kCellTraits) / sizeof(CellTraits)),
            kQuantizedOf<T>,
            dense_kernels<ProgramCell, T>()};
}

}  // namespace fusedrnn::FUSEDRNN_ISA
