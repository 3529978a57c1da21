// The float32 kernels whose products take bfloat16. Compiled once for each instruction set that multiplies it.
#include "cpu/table.h"

namespace fusedrnn::FUSEDRNN_ISA {

extern const DecoderKernels<float> kDecoderF32;  // kernels_decoder.cpp

Bf16Kernels kernels_bf16() {
    static constexpr KernelTable<float> table = make_table<float>();
    return {nullptr, &table, &kDecoderF32};
}

}  // namespace fusedrnn::FUSEDRNN_ISA
