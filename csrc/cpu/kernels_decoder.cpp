// The table of the decoders of one instruction set: compiled once for each type, whatever the cell.
#include "sequence/decoder_backward.h"
#include "sequence/decoder_search.h"

namespace fusedrnn::FUSEDRNN_ISA {
namespace {

template <class T>
constexpr DecoderKernels<T> decoder_kernels() {
    return {decoder_weight_bytes<T>, decoder_column_bytes<T>,
            decoder_head_bytes<T>,   decoder_projection_bytes<T>,
            decoder_key_bytes<T>,    decoder_tape_bytes<T>,
            decoder_workspace<T>,    decoder_backward_workspace<T>,
            decoder_pack<T>,         decoder_pack_columns<T>,
            decoder_prepare<T>,      decoder_pack_head<T>,
            decoder_project<T>,      decoder_forward<T>,
            decoder_backward<T>,     decoder_search_workspace<T>,
            decoder_search<T>};
}

}  // namespace

extern const DecoderKernels<float> kDecoderF32;
const DecoderKernels<float> kDecoderF32 = decoder_kernels<float>();
#ifndef FUSEDRNN_BF16
extern const DecoderKernels<double> kDecoderF64;
const DecoderKernels<double> kDecoderF64 = decoder_kernels<double>();
#endif

}  // namespace fusedrnn::FUSEDRNN_ISA
