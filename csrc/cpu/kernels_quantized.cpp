// The kernels for weights of fewer bits. Compiled once per instruction set.
#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"
#include "cpu/quantized_forward.h"

namespace fusedrnn::FUSEDRNN_ISA {

template <class Format, class Cell>
constexpr QuantizedKernels quantized_kernels() {
    return {quantized_bytes<Format, Cell>, quantized_pack<Format, Cell>, quantized_workspace<Format, Cell>,
            quantized_forward<Format, Cell>};
}

extern const QuantizedTable kQuantizedTable;

#define FUSEDRNN_QUANTIZED(Format, Type) quantized_kernels<Format, Type>(),
#define FUSEDRNN_BF16(name, Type) FUSEDRNN_QUANTIZED(Bf16, Type)
#define FUSEDRNN_INT8(name, Type) FUSEDRNN_QUANTIZED(Int8, Type)
constexpr QuantizedTable kQuantizedTable = {
    {{FUSEDRNN_CELLS(FUSEDRNN_BF16)}, {FUSEDRNN_CELLS(FUSEDRNN_INT8)}}};
#undef FUSEDRNN_QUANTIZED
#undef FUSEDRNN_BF16
#undef FUSEDRNN_INT8

}  // namespace fusedrnn::FUSEDRNN_ISA
