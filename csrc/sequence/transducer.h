// The lattice of the RNN transducer (Graves 2012), and the gradient of logits through their softmax.
//
// At cell (t, u) of a lattice of T steps and U labels, p = softmax(logits) either emits the blank, and goes to (t + 1, u),
// or label u, and goes to (t, u + 1); the end is the blank of (T - 1, U). With the probabilities P that a path takes each,
//   dlogits = p (P_blank + P_label) - P_blank [blank] - P_label [label]
// Cells of one diagonal t + u do not depend on each other: they lie side by side, in logarithms and in double.
#pragma once

#include "sequence/lattice.h"
#include "sequence/sequence_table.h"

namespace fusedrnn::FUSEDRNN_ISA {

template <class T>
void transducer_emissions(const TransducerCells<T>& p, double* emissions, Team& team) {
    using V = Vec<T>;
    constexpr T kLowest = -static_cast<T>(__builtin_huge_val());
    double *const blanks = emissions, *const labels = blanks + p.n, *const most = labels + p.n,
                  *const sums = most + p.n;
    interruptible_blocks(team, p.n, rows_per_block(p.classes), [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
            const std::int64_t label = p.labels[i];
            if (label == kTransducerOutside) {
                blanks[i] = labels[i] = kNever, most[i] = 0, sums[i] = 1;
                continue;
            }
            const T* const x = p.logits + i * p.classes;
            const T largest = row_max<OneThread>(p.classes, x);
            const V shift = V::set(largest);
            const T sum = row_sum<T>(p.classes, [&](std::int64_t c, int m) {
                if (m == V::kLanes) return exp_nonpositive(V::load(x + c) - shift);
                return only_first(exp_nonpositive(load_filled(x + c, m, kLowest) - shift), m, T(0));
            });
            most[i] = static_cast<double>(largest), sums[i] = static_cast<double>(sum);
            const double log_sum = __builtin_log(sums[i]);
            blanks[i] = static_cast<double>(x[p.blank]) - most[i] - log_sum;
            labels[i] = label < 0 ? kNever : static_cast<double>(x[label]) - most[i] - log_sum;
        }
    });
}

// Each gradient is bounded by `clamp`, if that is above 0, and then multiplied by `factor`.
template <class T>
void transducer_gradient(const TransducerCells<T>& p, const double* emissions, const double* flow,
                         double factor, double clamp, T* dlogits, Team& team) {
    using V = Vec<T>;
    const double *const most = emissions + 2 * p.n, *const sums = most + p.n;
    const double *const blanks = flow, *const labels = flow + p.n;
    const bool clamped = clamp > 0;
    const double times = clamped ? 1 : factor;
    interruptible_blocks(team, p.n, rows_per_block(p.classes), [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
            const T* const x = p.logits + i * p.classes;
            T* const d = dlogits + i * p.classes;
            const std::int64_t label = p.labels[i];
            const double of_blank = times * blanks[i], of_label = label < 0 ? 0 : times * labels[i];
            if (label == kTransducerOutside || of_blank + of_label == 0) {
                row_vectors<T>(p.classes, [&](std::int64_t c, int m) { store_up_to(V::set(0), d + c, m); });
                continue;
            }
            const V shift = V::set(static_cast<T>(most[i]));
            const V share = V::set(static_cast<T>((of_blank + of_label) / sums[i]));
            row_vectors<T>(p.classes, [&](std::int64_t c, int m) {
                store_up_to(exp_nonpositive(load_up_to(x + c, m) - shift) * share, d + c, m);
            });
            d[p.blank] -= static_cast<T>(of_blank);
            if (label >= 0) d[label] -= static_cast<T>(of_label);
            if (!clamped) continue;
            const V high = V::set(static_cast<T>(clamp)), low = V::set(static_cast<T>(-clamp));
            const V scale = V::set(static_cast<T>(factor));
            row_vectors<T>(p.classes, [&](std::int64_t c, int m) {
                store_up_to(max(low, min(high, load_up_to(d + c, m))) * scale, d + c, m);
            });
        }
    });
}

// One member's memory: rows of a diagonal each, a line before them.
struct TransducerMemory {
    std::int64_t stride, rows;
    double *alpha, *blank, *label, *beta;

    FUSEDRNN_INLINE TransducerMemory(Arena& arena, std::int64_t steps, std::int64_t labels)
        : stride(whole_lines(labels + 1) + 2 * kRowLine), rows(steps + labels + 1) {
        for (double** array : {&alpha, &blank, &label}) *array = arena.take<double>(rows * stride) + kRowLine;
        beta = arena.take<double>(stride) + kRowLine;
    }
    FUSEDRNN_INLINE void clear(std::int64_t diagonals) const {
        for (double* const array : {alpha, blank, label}) {
            for (std::int64_t i = 0; i < diagonals * stride; ++i) array[i - kRowLine] = kNever;
        }
        for (std::int64_t i = 0; i < stride; ++i) beta[i - kRowLine] = kNever;
    }
};

// Returns the loss of sequence b and sets the flow of its cells, which is 0 elsewhere.
inline double transducer_row(const TransducerLattice& p, std::int64_t b, const TransducerMemory& m,
                             Team& team, int member) {
    const std::int64_t steps = p.lengths[b], U = p.target_lengths[b], cells = p.steps * p.width;
    const double *const blanks = p.blanks + b * cells, *const labels = p.labels + b * cells;
    double *const blank_flow = p.blank_flow + b * cells, *const label_flow = p.label_flow + b * cells;
    zero(blank_flow, cells), zero(label_flow, cells);
    if (steps == 0) return U == 0 ? 0 : __builtin_huge_val();
    const std::int64_t last = steps - 1 + U;  // diagonal
    const auto from = [&](std::int64_t d) { return d < steps ? 0 : d - steps + 1; };
    const auto to = [&](std::int64_t d) { return (d < U ? d : U) + 1; };
    m.clear(last + 2);
    double finite = 0;
    for (std::int64_t d = 0; d <= last; ++d) {
        if (team.cancelled(member, 8 * m.stride)) return 0;
        for (std::int64_t u = from(d); u < to(d); ++u) {
            const std::int64_t cell = (d - u) * p.width + u;
            const double blank = at_least_never(blanks[cell]);
            const double label = u < U ? at_least_never(labels[cell]) : kNever;
            finite += 0 * blank + 0 * label;
            m.blank[d * m.stride + u] = blank, m.label[d * m.stride + u] = label;
        }
    }
    const auto set_flow = [&](auto&& blank, auto&& label) {
        for (std::int64_t d = 0; d <= last; ++d) {
            for (std::int64_t u = from(d); u < to(d); ++u) {
                const std::int64_t cell = (d - u) * p.width + u;
                blank_flow[cell] = blank(d * m.stride + u);
                if (u < U) label_flow[cell] = p.label_factor * label(d * m.stride + u);
            }
        }
    };
    const double nan = __builtin_nan("");
    const auto without_gradient = [&](double loss) {
        set_flow([&](std::int64_t) { return nan; }, [&](std::int64_t) { return nan; });
        return loss;
    };
    if (finite != 0) return without_gradient(nan);
    m.alpha[0] = 0;
    const auto first_vector = [&](std::int64_t d) { return from(d) / kLanes * kLanes; };
    for (std::int64_t d = 1; d <= last; ++d) {
        if (team.cancelled(member, 32 * m.stride)) return 0;
        const double* const was = m.alpha + (d - 1) * m.stride;
        const double *const blank = m.blank + (d - 1) * m.stride, *const label = m.label + (d - 1) * m.stride;
        for (std::int64_t u = first_vector(d); u < to(d); u += kLanes) {
            const Lanes stay = Lanes::load(was + u) + Lanes::load(blank + u);
            const Lanes left = Lanes::load(was + u - 1) + Lanes::load(label + u - 1);
            log_add(stay, left).store(m.alpha + d * m.stride + u);
        }
    }
    const double total = m.alpha[last * m.stride + U] + m.blank[last * m.stride + U];
    if (total < 0.5 * kNever) return without_gradient(__builtin_huge_val());
    m.beta[U] = 0;
    const Lanes shift = Lanes::set(total), none = Lanes::set(0);
    for (std::int64_t d = last; d >= 0; --d) {
        if (team.cancelled(member, 64 * m.stride)) return 0;
        double *const blank = m.blank + d * m.stride, *const label = m.label + d * m.stride;
        for (std::int64_t u = first_vector(d); u < to(d); u += kLanes) {
            const Lanes before = Lanes::load(m.alpha + d * m.stride + u) - shift;
            const Lanes by_blank = Lanes::load(m.beta + u) + Lanes::load(blank + u);
            const Lanes by_label = Lanes::load(m.beta + u + 1) + Lanes::load(label + u);
            exp_nonpositive(min(none, before + by_blank)).store(blank + u);
            exp_nonpositive(min(none, before + by_label)).store(label + u);
            log_add(by_blank, by_label).store(m.beta + u);
        }
    }
    set_flow([&](std::int64_t i) { return m.blank[i]; }, [&](std::int64_t i) { return m.label[i]; });
    return total < 0 ? -total : 0;
}

inline std::int64_t transducer_workspace(std::int64_t steps, std::int64_t labels, int members) {
    Arena counted{nullptr};
    const TransducerMemory counting(counted, steps, labels);
    return counted.used * members;
}

inline void transducer_lattice(const TransducerLattice& p, Team& team, void* workspace) {
    const std::int64_t each = transducer_workspace(p.steps, p.width - 1, 1);
    parallel_ranges(team, p.batch, 1, [&](int member, std::int64_t begin, std::int64_t end) {
        Arena arena{static_cast<char*>(workspace) + member * each};
        const TransducerMemory memory(arena, p.steps, p.width - 1);
        for (std::int64_t b = begin; b < end && !team.cancelled(member, 4096); ++b) {
            p.losses[b] = transducer_row(p, b, memory, team, member);
        }
    });
}

}  // namespace fusedrnn::FUSEDRNN_ISA
