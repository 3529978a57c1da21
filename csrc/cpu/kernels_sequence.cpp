// The table of the sequence kernels of one instruction set.
#include "sequence/beam.h"
#include "sequence/crf_nbest.h"
#include "sequence/ctc.h"
#include "sequence/ctc_align.h"
#include "sequence/ctc_decode.h"
#include "sequence/sequence_table.h"
#include "sequence/transducer.h"
#include "sequence/viterbi.h"

namespace fusedrnn::FUSEDRNN_ISA {

// kernels_decoder.cpp
extern const DecoderKernels<float> kDecoderF32;
extern const DecoderKernels<double> kDecoderF64;

namespace {

template <class T>
constexpr const DecoderKernels<T>* decoder() {
    if constexpr (sizeof(T) == sizeof(float)) {
        return &kDecoderF32;
    } else {
        return &kDecoderF64;
    }
}

template <class T>
constexpr SequenceKernels<T> kTable = {
    .ctc_workspace = ctc_workspace<T>,
    .ctc_loss = ctc_loss<T>,
    .ctc_align = ctc_align<T>,
    .ctc_best_path = ctc_best_path<T>,
    .ctc_beam_workspace = ctc_beam_workspace<T>,
    .ctc_beam_search = ctc_beam_search<T>,
    .crf_workspace = crf_workspace<T>,
    .crf = crf<T>,
    .crf_viterbi = crf_viterbi<T>,
    .crf_nbest_workspace = crf_nbest_workspace,
    .crf_nbest = crf_nbest<T>,
    .beam_workspace = beam_workspace,
    .beam_step = beam_step<T>,
    .decoder = decoder<T>(),
    .transducer_emissions = transducer_emissions<T>,
    .transducer_gradient = transducer_gradient<T>,
    .transducer_workspace = transducer_workspace,
    .transducer_lattice = transducer_lattice,
};

}  // namespace

extern const SequenceKernels<float> kSequenceF32;
extern const SequenceKernels<double> kSequenceF64;

const SequenceKernels<float> kSequenceF32 = kTable<float>;
const SequenceKernels<double> kSequenceF64 = kTable<double>;

}  // namespace fusedrnn::FUSEDRNN_ISA
