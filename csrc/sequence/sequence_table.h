// The kernels of sequence losses and decoders: CTC, the linear-chain CRF and the RNN transducer. One table per instruction set and type.
//
// Plain data only, as layers/layer_table.h. T, B, V, K, L stand for steps, sequences, classes, tags and labels of a
// target. Sequences are independent; each member of a team takes whole ones (of a CRF whole groups of them), so that
// results do not depend on its size. All kernels stop early once the team is cancelled.
#pragma once

#include <cstdint>

#include "cpu/team.h"

namespace fusedrnn {

// Logits of sequences and what is to be read from them. Lengths and labels are checked.
template <class T>
struct CtcArgs {
    std::int64_t steps, batch, classes, blank;
    const T* logits;                     // (T, B, V)
    const std::int64_t* lengths;         // (B), each in [0, T]
    const std::int64_t* labels;          // the targets one after another, without blanks
    const std::int64_t* target_offsets;  // (B + 1): where each begins, and the end
    std::int64_t most_labels;            // of one target
};

template <class T>
struct CtcLossArgs {
    CtcArgs<T> in;
    const double* factors;  // (B): of each sequence's loss in what is differentiated
    bool zero_infinity;
    double* losses;  // (B), each times 1
    T* dlogits;      // (T, B, V): the gradient of the sum of factor times loss
};

// Hypotheses of a prefix beam search, each a node of a tree of labels.
struct PrefixNode {
    std::int32_t parent, label, first_child, sibling, place;  // place in the beam, or -1
};
struct PrefixBeam {
    double blank, label;  // probability of the paths that end in a blank, in the last label
    std::int32_t node;
};
struct PrefixCandidate {
    double blank, label, score;
    std::int64_t order;
    std::int32_t from, extension;  // a place in the beam and the label to add, or -1
};

template <class T>
struct CrfArgs {
    std::int64_t steps, batch, tags;
    const T* emissions;                       // (T, B, K)
    const std::int64_t* lengths;              // (B), each in [0, T]
    const std::int64_t* gold;                 // (T, B), those that count in [0, K); null: marginals
    const double *start, *transitions, *end;  // (K), (K, K) from and to, (K); -inf is never gone
    double factor;                            // of each sequence's loss in what is differentiated
    double* losses;                           // (B); without gold the logarithm of the sum over all paths
    T* demissions;                            // (T, B, K): the gradient, or the probability of each tag
    double* dweights;  // (2 K + K K): the gradients of start, end and transitions; null without gold
};

// Hypotheses of beam searches, those of a group one after another.
template <class T>
struct BeamArgs {
    std::int64_t groups, classes, count;
    const std::int64_t* first;    // (groups + 1): where the hypotheses of each begin, and the end
    const T* logits;              // (N, V)
    const double* totals;         // (N)
    const std::uint8_t* allowed;  // (N, V), which tokens may come next; null for all
};

// Rows of logits, a cell of a transducer's lattice each: any of them, in any order.
inline constexpr std::int64_t kTransducerLast = -1, kTransducerOutside = -2;
template <class T>
struct TransducerCells {
    std::int64_t n, classes, blank;
    const T* logits;  // (n, V)
    const std::int64_t*
        labels;  // (n), each in [0, V); kTransducerLast: none is left; kTransducerOutside: no cell
};

// Logarithms of probabilities (B, T, U + 1) and, likewise, how often the path through the lattice takes each.
struct TransducerLattice {
    std::int64_t batch, steps, width;              // width: U + 1
    const std::int64_t *lengths, *target_lengths;  // (B), in [0, T] and in [0, U]
    const double *blanks, *labels;
    double label_factor;  // of label_flow
    double *losses, *blank_flow, *label_flow;
};

template <class T>
struct DecoderKernels;  // decoder_table.h

template <class T>
struct SequenceKernels {
    // Bytes of workspace for so many members.
    std::int64_t (*ctc_workspace)(std::int64_t steps, std::int64_t classes, std::int64_t most_labels,
                                  int members);
    void (*ctc_loss)(const CtcLossArgs<T>&, Team&, void* workspace);
    // alignment (T, B): the place in its target of the label that each step emits, -1 for a blank, past the end and where
    // there is no path; scores (B): its logarithm.
    void (*ctc_align)(const CtcArgs<T>&, std::int64_t* alignment, double* scores, Team&, void* workspace);
    // labels (B, T) and how many (B); scores (B). `labels` and `target_offsets` of the arguments are not read.
    void (*ctc_best_path)(const CtcArgs<T>&, std::int64_t* labels, std::int64_t* counts, double* scores,
                          Team&, void* workspace);
    std::int64_t (*ctc_beam_workspace)(std::int64_t steps, std::int64_t classes, std::int64_t beam,
                                       int members);
    void (*ctc_beam_search)(const CtcArgs<T>&, std::int64_t beam, std::int64_t* labels, std::int64_t* counts,
                            double* scores, Team&, void* workspace);

    std::int64_t (*crf_workspace)(std::int64_t steps, std::int64_t batch, std::int64_t tags, int members);
    void (*crf)(const CrfArgs<T>&, Team&, void* workspace);
    // best (T, B), -1 past the end, and scores (B). `gold` and what follows `end` in the arguments are not read.
    void (*crf_viterbi)(const CrfArgs<T>&, std::int64_t* best, double* scores, Team&, void* workspace);

    // The n best, (n, T, B) and (n, B); -1 and -inf where there are fewer.
    std::int64_t (*crf_nbest_workspace)(std::int64_t steps, std::int64_t tags, std::int64_t n, int members);
    void (*crf_nbest)(const CrfArgs<T>&, std::int64_t n, std::int64_t* tags, double* scores, Team&,
                      void* workspace);

    std::int64_t (*beam_workspace)(std::int64_t classes, std::int64_t count, int members);
    void (*beam_step)(const BeamArgs<T>&, std::int64_t* parents, std::int64_t* tokens, double* totals, Team&,
                      void* workspace);

    const DecoderKernels<T>* decoder;
    // emissions (4, n): logarithms of the blank's and the label's probability, largest logit, sum of exponentials past it.
    void (*transducer_emissions)(const TransducerCells<T>&, double* emissions, Team&);
    // From emissions as above and flow (2, n): of blanks and of labels.
    void (*transducer_gradient)(const TransducerCells<T>&, const double* emissions, const double* flow,
                                double factor, double clamp, T* dlogits, Team&);
    std::int64_t (*transducer_workspace)(std::int64_t steps, std::int64_t labels, int members);
    void (*transducer_lattice)(const TransducerLattice&, Team&, void* workspace);
};

}  // namespace fusedrnn
