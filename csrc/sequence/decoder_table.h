// The kernels of decoders with attention. One table per instruction set and type.
//
// Plain data only. T, B, S stand for the steps, the rows of the batch and the steps of the memory; I, M, A, H for the sizes of
// the input, the memory, the attention and the state, F for that of what a step is fed besides its input. Position p is a row
// of the batch in the order of descending length (`Schedule`), and r = offset[t] + p one of the R rows of all steps. The memory
// has N rows in all, those of each sequence together.
#pragma once

#include <cstdint>

#include "cpu/kernels.h"

namespace fusedrnn {

// The energies of keys k and a query q: v . tanh(k + q), or q . k. The keys of kDot are the memory itself, and its query and
// that of kGeneral the hidden state. kWindow has neither keys nor energies: its query says where the attention is (window.h).
enum class Score : int { kAdditive, kDot, kGeneral, kWindow };

struct DecoderSizes {
    int cell;  // of cells/all.h
    Score score;
    bool current;  // the query is the state after a step, whose output is tanh(W [c; h]); else that before it
    bool feeds;    // whether a step is fed the output before it
    bool coverage;                // whether energies know the sum of the attention before,
    std::int64_t filters, width;  // and so many filters of that of the step before (history.h)
    std::int64_t T, B, S, I, M, A, H;
    std::int64_t rows;         // R, or those that a call without a tape keeps at a time
    std::int64_t memory_rows;  // N
    std::int64_t classes = 0;  // of a sampling's tokens; 0 without one
    std::int64_t table = 0;    // so many tokens a search has projected to the gates, and
    bool contexts = false;     // whether the rows of the memory, too

    std::int64_t windows() const { return score == Score::kWindow ? A / 3 : 0; }
    std::int64_t features() const { return filters + coverage; }
    // What a step is fed besides its input: the context, where the query is the state before it; else the output before it.
    std::int64_t fed() const { return current ? (feeds ? H : 0) : M; }
};

// As the caller holds them; where they are gradients, all null if they are not wanted.
template <class T>
struct DecoderParams {
    T *w_query, *w_memory, *b_memory, *w_energy;  // (A, H), (A, M), (A), (A)
    T *w_ih, *w_hh, *b_ih, *b_hh;                 // (G*H, I + F), (G*H, H), (G*H), (G*H)
    T* w_output;                                  // (H, M + H)
    T *w_location, *w_filter, *w_coverage;        // (A, C), (C, K), (A)
    T *w_window, *b_window;                       // (A, H), (A): of the windows' parameters, A = 3 windows

    T* query() const { return w_window != nullptr ? w_window : w_query; }
};

// Scheduled sampling: after a step, with a probability, the next input of a row is replaced by that of a token which is drawn
// from what a head makes of the output.
template <class T>
struct DecoderSampling {
    const void* head;  // in panels
    const T* table;    // (V, I), the inputs of the tokens
    double probability;
    std::uint64_t seed, stream;
    T* x;                  // (T, B, I), the inputs
    std::int64_t* tokens;  // (T, B), those that were drawn; the rest is left
};

template <class T>
struct DecoderArgs {
    DecoderSizes sizes;
    Schedule schedule;
    bool keeps;                          // rows are those of a tape
    const std::int64_t* memory_first;    // (B) by position: where its rows of the memory begin,
    const std::int64_t* memory_lengths;  // and how many they are
    DecoderParams<const T> params;
    const T* x;  // (T, B, I)
    // The states before the first step, and the rows of them and of what follows that each row goes on from, where there
    // are others than B of them; null: its own. They may come again, of which each is computed once in a search.
    const std::int64_t* places;    // (B)
    const std::int64_t* parents;   // (B), which position of the step before each goes on from; null: its own
    const T* initial[kMaxStates];  // (B, H); null is zero
    const T* feed;                 // (B, H), the output before the first step; null is zero
    const T *attention,
        *covered;      // (B, S), that of the step before, and the sum of all before that; null is zero
    const T* centres;  // (B, windows) before the first step; null is zero
    T* final_centres;  // (B, windows)
    DecoderSampling<T> sampling;  // where classes > 0
    const std::int64_t* tokens;   // (T, B), in place of x; null without a search
    void* projections;            // decoder_layout.h
    T *y, *alpha;                 // (T, B, H), (T, B, S); null: not wanted
    T* final[kMaxStates];         // (B, H)
    void *weights, *keys, *tape;
};

// The memory (S, B, M) and what it is projected to.
template <class T>
struct DecoderMemory {
    const T* memory;
    std::int64_t batch;
    const std::int64_t* lengths;  // (batch)
};

// What a search has room for: hypotheses of a sequence, and tokens of these.
inline constexpr std::int64_t kSearchBeam = 256, kSearchNodes = 1 << 18;

// Beam searches of all sequences of a memory: hypotheses are continued by all V tokens of a head, as decode.py says.
template <class T>
struct DecoderSearchArgs {
    DecoderArgs<T>
        decoder;       // T = 1; sizes, parameters, weights, keys and projections, and states (sequences, H)
    const void* head;  // in panels, sizes.classes of them
    const T* table;    // (V, I), the inputs of tokens that are not projected
    std::int64_t sequences, beam, most, best;  // at most so many tokens; how many hypotheses are wanted
    std::int64_t bos, eos;
    const std::int64_t *memory_first, *memory_lengths;  // (sequences)
    const double* divisors;                             // (most), of the scores of so many tokens - 1
    std::int64_t *tokens,
        *lengths;    // (sequences, best, most), past the end nothing; (sequences, best)
    double* scores;  // (sequences, best)
    // (sequences): of the best hypotheses the most tokens; the step of a logit that is NaN or inf, else -1.
    std::int64_t *longest, *failed;
};

template <class T>
struct DecoderBackwardArgs {
    DecoderArgs<T> forward;
    void* columns;                     // the weights, as pack_columns leaves them
    const std::int64_t* memory_owner;  // (N): which row of the memory's batch each is of, and
    const std::int64_t* memory_step;   // of which step
    const T *dy, *dalpha;              // null: zero
    const T* dfinal[kMaxStates];
    T* dinitial[kMaxStates];
    T* dx;       // null: not wanted
    T* dmemory;  // (S, B, M), zero
    DecoderParams<T> dparams;
};

template <class T>
struct DecoderKernels {
    // Bytes of the blocks in the arguments, and of the workspace for so many members.
    std::int64_t (*weight_bytes)(const DecoderSizes&);
    std::int64_t (*column_bytes)(const DecoderSizes&);
    std::int64_t (*head_bytes)(const DecoderSizes&);
    std::int64_t (*projection_bytes)(const DecoderSizes&);
    std::int64_t (*key_bytes)(const DecoderSizes&);
    std::int64_t (*tape_bytes)(const DecoderSizes&, bool keeps);
    std::int64_t (*workspace)(const DecoderSizes&, int members);
    std::int64_t (*backward_workspace)(const DecoderSizes&, int members);
    // Fills `weights`; fills `keys` from them and a memory.
    void (*pack)(const DecoderArgs<T>&, Team&);
    // Fills what backward reads of the weights.
    void (*pack_columns)(const DecoderArgs<T>&, void* columns, Team&);
    void (*prepare)(const DecoderArgs<T>&, const DecoderMemory<T>&, Team&, void* workspace);
    // Fills a head's panels from its weight (V, H) and bias (V), which may be null.
    void (*pack_head)(const DecoderSizes&, const T* weight, const T* bias, void* head, Team&);
    // Fills `projections` from a table (V, I) and from the memory.
    void (*project)(const DecoderArgs<T>&, const T* table, Team&, void* workspace);
    void (*forward)(const DecoderArgs<T>&, Team&, void* workspace);
    void (*backward)(const DecoderBackwardArgs<T>&, Team&, void* workspace);
    std::int64_t (*search_workspace)(const DecoderSearchArgs<T>&, int members);
    void (*search)(const DecoderSearchArgs<T>&, Team&, void* workspace);
};

}  // namespace fusedrnn
