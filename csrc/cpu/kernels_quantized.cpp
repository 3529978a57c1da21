// The kernels for weights of fewer bits. Compiled once per instruction set.
#include "cells/all.h"
#include "cpu/quantized_forward.h"

namespace fusedrnn::FUSEDRNN_ISA {

template <class Format, class Cell, unsigned kFamilies>
constexpr QuantizedKernels quantized_kernels() {
    if constexpr ((kFamilies & kQuantized) == 0)
        return {};
    else
        return {quantized_bytes<Format, Cell>, quantized_pack<Format, Cell>,
                forward_workspace<Cell, float, QuantizedProduct<Format>>,
                forward<Cell, float, QuantizedProduct<Format>>};
}

extern const QuantizedKernels kQuantizedKernels[][kWeightFormats];

constexpr QuantizedKernels kQuantizedKernels[][kWeightFormats] = {
#define FUSEDRNN_QUANTIZED(name, Type, driver, families) \
    {quantized_kernels<Bf16, Type, families>(), quantized_kernels<Int8, Type, families>()},
    FUSEDRNN_CELLS(FUSEDRNN_QUANTIZED)
#undef FUSEDRNN_QUANTIZED
};

}  // namespace fusedrnn::FUSEDRNN_ISA
