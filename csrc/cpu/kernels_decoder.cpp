// The table of the decoders of one instruction set.
#include "cells/all.h"
#include "sequence/decoder_backward.h"

namespace fusedrnn::FUSEDRNN_ISA {
namespace {

template <class Cell, class T>
constexpr DecoderKernels<T> decoder_kernels() {
    return {decoder_weight_bytes<Cell, T>,
            decoder_key_bytes<Cell, T>,
            decoder_tape_bytes<Cell, T>,
            decoder_workspace<Cell, T>,
            decoder_backward_workspace<Cell, T>,
            decoder_prepare<Cell, T>,
            decoder_forward<Cell, T>,
            decoder_backward<Cell, T>};
}

}  // namespace

#define FUSEDRNN_DECODER_F32(name, Type, driver, families) decoder_kernels<Type, float>(),
#define FUSEDRNN_DECODER_F64(name, Type, driver, families) decoder_kernels<Type, double>(),
extern const DecoderKernels<float> kDecodersF32[];
extern const DecoderKernels<double> kDecodersF64[];
const DecoderKernels<float> kDecodersF32[] = {FUSEDRNN_CELLS(FUSEDRNN_DECODER_F32)};
const DecoderKernels<double> kDecodersF64[] = {FUSEDRNN_CELLS(FUSEDRNN_DECODER_F64)};
#undef FUSEDRNN_DECODER_F32
#undef FUSEDRNN_DECODER_F64

}  // namespace fusedrnn::FUSEDRNN_ISA
