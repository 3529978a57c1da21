// Scheduled sampling (Bengio et al. 2015, arXiv:1506.03099): tokens that a decoder draws from its own outputs in place of the
// right ones. What a row of a step draws is a matter of the seed, the step and the row alone.
#pragma once

#include "activations.h"
#include "cpu/gemm.h"
#include "philox.h"
#include "sequence/decoder_layout.h"

namespace fusedrnn::FUSEDRNN_ISA {

// The output layer in panels.
template <class T>
struct DecoderHead {
    T *weight, *bias;
    std::int64_t bytes;
    DecoderHead(const DecoderSizes& d, const void* block) {
        Arena arena(const_cast<void*>(block));
        weight = arena.take<T>(padded<T>(d.classes) * panel_depth<T>(d.H) + Vec<T>::kLanes);
        bias = arena.take<T>(padded<T>(d.classes));
        bytes = arena.used();
    }
};

// The class that u in [0, 1) falls to: logits (whole vectors) become exponentials.
template <class T>
std::int64_t draw_class(T* logits, std::int64_t classes, double u) {
    using V = Vec<T>;
    T most = logits[0];
    for (std::int64_t c = 1; c < classes; ++c) most = logits[c] > most ? logits[c] : most;
    for (std::int64_t c = 0; c < classes; c += V::kLanes)
        exp_nonpositive(V::load(logits + c) - V::set(most)).store(logits + c);
    double total = 0, below = 0;
    for (std::int64_t c = 0; c < classes; ++c) total += static_cast<double>(logits[c]);
    std::int64_t last = 0;
    for (std::int64_t c = 0; c < classes; ++c) {
        if (!(logits[c] > 0)) continue;
        last = c;
        below += static_cast<double>(logits[c]);
        if (below > u * total) break;
    }
    return last;
}

template <class T>
struct DecoderDraws {
    T* logits;
    const T** outputs;
    std::int64_t* steps;  // which rows of the step draw, and
    double* at;           // where in [0, 1)
    DecoderDraws(const DecoderSizes& d, Arena& arena) {
        const std::int64_t n = d.classes > 0 ? kDecoderRows : 0;
        logits = arena.take<T>(n * padded<T>(d.classes));
        outputs = arena.take<const T*>(n);
        steps = arena.take<std::int64_t>(n);
        at = arena.take<double>(n);
    }
};

// Which of the n rows (t, batch(i)) draw; returns how many.
template <class T, class Batch>
std::int64_t choose_rows(const DecoderSampling<T>& p, std::int64_t t, std::int64_t B, std::int64_t n,
                         DecoderDraws<T>& to, const Batch& batch) {
    constexpr double kUnit = 1.0 / 4294967296.0;
    std::int64_t count = 0;
    for (std::int64_t i = 0; i < n; ++i) {
        std::uint32_t words[4];
        philox(static_cast<std::uint64_t>(t * B + batch(i)), p.stream, p.seed, words);
        if (!(words[0] * kUnit < p.probability)) continue;
        to.steps[count] = i;
        to.at[count++] = words[1] * kUnit;
    }
    return count;
}

template <class T>
std::int64_t decoder_head_bytes(const DecoderSizes& sizes) {
    return DecoderHead<T>(sizes, nullptr).bytes;
}
template <class T>
void decoder_pack_head(const DecoderSizes& d, const T* weight, const T* bias, void* block, Team& team) {
    struct Job {
        const DecoderSizes& d;
        const T *weight, *bias;
        const DecoderHead<T> head;
        Team& team;
    } job{d, weight, bias, DecoderHead<T>(d, block), team};
    team.run(
        [](void* c, int member) {
            const Job& own = *static_cast<Job*>(c);
            if (member != 0) return;
            pack_rows<T>(own.weight, 1, own.d.classes, own.d.H, own.head.weight, own.team, member);
            pack_bias<T>(own.bias, nullptr, 1, own.d.classes, own.head.bias);
        },
        &job);
}

}  // namespace fusedrnn::FUSEDRNN_ISA
