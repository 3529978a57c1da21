// Decoding of CTC outputs: the best path, and the prefix beam search (Hannun et al. 2014, arXiv:1408.2873, without a
// language model).
//
// Of each hypothesis y the beam has the probabilities of the paths that end in a blank and in y's last label:
//   blank'(y)   = (blank(y) + label(y)) p_t(blank)
//   label'(y)   = label(y) p_t(last) + from(y without its last label)
//   label'(y c) = (c is y's last label ? blank(y) : blank(y) + label(y)) p_t(c)
// They are exponentials relative to the largest of their step and to the best hypothesis: what underflows is beaten.
#pragma once

#include "sequence/lattice.h"
#include "sequence/sequence_table.h"

namespace fusedrnn::FUSEDRNN_ISA {

// The first of the largest; 0 where all are NaN.
template <class T>
FUSEDRNN_INLINE std::int64_t first_largest(std::int64_t n, const T* x, T most) {
    for (std::int64_t c = 0; c < n; ++c) {
        if (x[c] == most) return c;
    }
    return 0;
}

template <class T>
void ctc_best_path(const CtcArgs<T>& in, std::int64_t* labels, std::int64_t* counts, double* scores,
                   Team& team, void* workspace) {
    Arena counted{nullptr};
    counted.take<T>(in.classes);
    parallel_ranges(team, in.batch, 1, [&](int member, std::int64_t begin, std::int64_t end) {
        T* const e = reinterpret_cast<T*>(static_cast<char*>(workspace) + member * counted.used);
        for (std::int64_t b = begin; b < end; ++b) {
            LogSum divisors;
            std::int64_t count = 0, last = in.blank;
            for (std::int64_t t = 0; t < in.lengths[b]; ++t) {
                if (team.cancelled(member, 8 * in.classes + 64)) return;
                const T* const x = in.logits + (t * in.batch + b) * in.classes;
                const RowExponentials<T> r = row_exponentials(in.classes, x, e);
                divisors.multiply(static_cast<double>(r.sum));
                const std::int64_t best = first_largest(in.classes, x, r.most);
                if (best != last && best != in.blank) labels[b * in.steps + count++] = best;
                last = best;
            }
            counts[b] = count;
            scores[b] = 0 - divisors.value();
        }
    });
}

// One member's memory.
template <class T>
struct BeamMemory {
    T* e;
    PrefixNode* nodes;
    PrefixBeam *beam, *next;
    PrefixCandidate* heap;
    std::int32_t* taken;  // (V): the hypothesis whose extension by this label is in the beam, plus one

    FUSEDRNN_INLINE BeamMemory(Arena& arena, std::int64_t steps, std::int64_t classes, std::int64_t width) {
        e = arena.take<T>(classes);
        nodes = arena.take<PrefixNode>(1 + steps * width);
        beam = arena.take<PrefixBeam>(width);
        next = arena.take<PrefixBeam>(width);
        heap = arena.take<PrefixCandidate>(width);
        taken = arena.take<std::int32_t>(classes);
    }
};

// The `width` best candidates, the worst of them first. Of equals the one that came first is better.
struct BestCandidates {
    PrefixCandidate* heap;
    std::int64_t width, size = 0;

    static FUSEDRNN_INLINE bool worse(const PrefixCandidate& a, const PrefixCandidate& b) {
        return a.score < b.score || (a.score == b.score && a.order > b.order);
    }
    FUSEDRNN_INLINE bool takes(double score) const {
        return score > 0 && (size < width || heap[0].score < score);
    }
    void add(const PrefixCandidate& c) {
        std::int64_t at;
        if (size < width) {
            at = size++;
            for (; at > 0 && worse(c, heap[(at - 1) / 2]); at = (at - 1) / 2) heap[at] = heap[(at - 1) / 2];
        } else {
            at = 0;
            for (;;) {
                std::int64_t child = 2 * at + 1;
                if (child >= size) break;
                if (child + 1 < size && worse(heap[child + 1], heap[child])) ++child;
                if (!worse(heap[child], c)) break;
                heap[at] = heap[child];
                at = child;
            }
        }
        heap[at] = c;
    }
};

// One sequence's search: the tree of labels and the beam.
template <class T>
struct PrefixSearch {
    BeamMemory<T> m;
    std::int64_t classes, blank, width;
    std::int64_t size = 1;
    std::int32_t node_count = 1;

    PrefixSearch(const BeamMemory<T>& memory, const CtcArgs<T>& in, std::int64_t beam)
        : m(memory), classes(in.classes), blank(in.blank), width(beam) {
        m.nodes[0] = {-1, -1, -1, -1, 0};
        m.beam[0] = {1, 0, 0};
        for (std::int64_t c = 0; c < classes; ++c) m.taken[c] = 0;
    }

    std::int32_t child(std::int32_t node, std::int32_t label) {
        for (std::int32_t c = m.nodes[node].first_child; c >= 0; c = m.nodes[c].sibling) {
            if (m.nodes[c].label == label) return c;
        }
        m.nodes[node_count] = {node, label, -1, m.nodes[node].first_child, -1};
        m.nodes[node].first_child = node_count;
        return node_count++;
    }

    // All hypotheses of the next step that may be among the best; e is of this step.
    BestCandidates candidates() {
        BestCandidates best{m.heap, width};
        std::int64_t order = 0;
        for (std::int32_t k = 0; k < size; ++k) {
            const PrefixBeam& y = m.beam[k];
            const PrefixNode& node = m.nodes[y.node];
            const double both = y.blank + y.label;
            double label = 0;
            if (node.parent >= 0) {
                label = y.label * static_cast<double>(m.e[node.label]);
                const std::int32_t place = m.nodes[node.parent].place;
                if (place >= 0) {
                    const PrefixBeam& shorter = m.beam[place];
                    const bool again = m.nodes[shorter.node].label == node.label;
                    label += (again ? shorter.blank : shorter.blank + shorter.label) *
                             static_cast<double>(m.e[node.label]);
                }
            }
            const double of_blank = both * static_cast<double>(m.e[blank]);
            if (best.takes(of_blank + label)) best.add({of_blank, label, of_blank + label, order, k, -1});
            ++order;
            for (std::int32_t q = 0; q < size; ++q) {
                const PrefixNode& other = m.nodes[m.beam[q].node];
                if (other.parent == y.node) m.taken[other.label] = k + 1;
            }
            for (std::int32_t c = 0; c < classes; ++c, ++order) {
                const double score = (c == node.label ? y.blank : both) * static_cast<double>(m.e[c]);
                if (!best.takes(score) || c == blank || m.taken[c] == k + 1) continue;
                best.add({0, score, score, order, k, c});
            }
            for (std::int32_t q = 0; q < size; ++q) {
                const PrefixNode& other = m.nodes[m.beam[q].node];
                if (other.parent == y.node) m.taken[other.label] = 0;
            }
        }
        return best;
    }

    // One step; returns what the probabilities were divided by, 0 where none was left.
    double advance() {
        const BestCandidates best = candidates();
        if (best.size == 0) return 0;
        double most = 0;
        for (std::int64_t k = 0; k < best.size; ++k) {
            const PrefixCandidate& c = m.heap[k];
            most = c.score > most ? c.score : most;
            const std::int32_t from = m.beam[c.from].node;
            m.next[k] = {c.blank, c.label, c.extension < 0 ? from : child(from, c.extension)};
        }
        for (std::int64_t k = 0; k < size; ++k) m.nodes[m.beam[k].node].place = -1;
        size = best.size;
        for (std::int32_t k = 0; k < size; ++k) {
            m.beam[k] = {m.next[k].blank / most, m.next[k].label / most, m.next[k].node};
            m.nodes[m.beam[k].node].place = k;
        }
        return most;
    }

    std::int64_t write_best(std::int64_t* labels, double& score) const {
        std::int64_t best = 0;
        for (std::int64_t k = 1; k < size; ++k) {
            if (m.beam[k].blank + m.beam[k].label > m.beam[best].blank + m.beam[best].label) best = k;
        }
        score = m.beam[best].blank + m.beam[best].label;
        std::int64_t count = 0;
        for (std::int32_t n = m.beam[best].node; m.nodes[n].parent >= 0; n = m.nodes[n].parent) ++count;
        std::int64_t at = count;
        for (std::int32_t n = m.beam[best].node; m.nodes[n].parent >= 0; n = m.nodes[n].parent) {
            labels[--at] = m.nodes[n].label;
        }
        return count;
    }
};

template <class T>
std::int64_t ctc_beam_workspace(std::int64_t steps, std::int64_t classes, std::int64_t beam, int members) {
    Arena counted{nullptr};
    const BeamMemory<T> counting(counted, steps, classes, beam);
    return counted.used * members;
}

template <class T>
void ctc_beam_search(const CtcArgs<T>& in, std::int64_t beam, std::int64_t* labels, std::int64_t* counts,
                     double* scores, Team& team, void* workspace) {
    const std::int64_t bytes = ctc_beam_workspace<T>(in.steps, in.classes, beam, 1);
    parallel_ranges(team, in.batch, 1, [&](int member, std::int64_t begin, std::int64_t end) {
        Arena arena{static_cast<char*>(workspace) + member * bytes};
        const BeamMemory<T> memory(arena, in.steps, in.classes, beam);
        for (std::int64_t b = begin; b < end; ++b) {
            PrefixSearch<T> search(memory, in, beam);
            LogSum probability;
            double lost = 0;
            for (std::int64_t t = 0; t < in.lengths[b]; ++t) {
                if (team.cancelled(member, 16 * search.size * (in.classes + search.size) + 64)) return;
                const T* const x = in.logits + (t * in.batch + b) * in.classes;
                probability.multiply(1 / static_cast<double>(row_exponentials(in.classes, x, memory.e).sum));
                const double divisor = search.advance();
                if (divisor == 0) lost = __builtin_nan("");
                probability.multiply(divisor == 0 ? 1 : divisor);
            }
            double score;
            counts[b] = search.write_best(labels + b * in.steps, score);
            scores[b] = probability.value() + __builtin_log(score) + lost;
        }
    });
}

}  // namespace fusedrnn::FUSEDRNN_ISA
