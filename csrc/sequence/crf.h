// Linear-chain conditional random field (Lafferty et al. 2001): its negative log likelihood, gradients and marginals.
// With x the emissions,
//   score(y) = start[y_0] + sum_t x_t[y_t] + sum_t transitions[y_(t-1), y_t] + end[y_(T-1)]
//   loss     = log sum over all y' of exp(score(y')) - score(y)
// and the gradient of every weight is how often it counts, expected minus in y.
//
// Forward values are exponentials relative to the largest emission of their step and the largest weights, times powers of
// two; backward values are the adjoints of these operations. Where they show that what underflowed may count, the sequence
// is taken again in logarithms. Weights are summed over groups of sequences, whose borders depend on nothing else.
#pragma once

#include "sequence/lattice.h"
#include "sequence/row_products.h"
#include "sequence/sequence_table.h"

namespace fusedrnn::FUSEDRNN_ISA {

inline constexpr std::int64_t kCrfGroup = 8;  // sequences

// The weights that all sequences share, and what is made of them once.
struct CrfWeights {
    std::int64_t K, stride;
    double *start, *end, *forward, *backward;  // exponentials: (stride), (K, stride) and its transpose
    double *log_backward, *log_forward;        // the transitions, transposed and not, kNever past the end
    double shift_start, shift_end, shift_transitions;

    FUSEDRNN_INLINE CrfWeights(Arena& arena, std::int64_t tags)
        : K(tags), stride(whole_lines(tags)), shift_start(0), shift_end(0), shift_transitions(0) {
        start = arena.take<double>(stride);
        end = arena.take<double>(stride);
        for (double** matrix : {&forward, &backward, &log_backward, &log_forward}) {
            *matrix = arena.take<double>(K * stride);
        }
    }
};

FUSEDRNN_INLINE double largest_of(std::int64_t n, const double* x) {
    double most = -__builtin_huge_val();
    for (std::int64_t i = 0; i < n; ++i) most = x[i] > most ? x[i] : most;
    return most - most == 0 ? most : 0;
}

// exp(x - shift), 0 for what is below the range, and past the end up to the stride.
FUSEDRNN_INLINE void exponentials(std::int64_t n, std::int64_t stride, const double* x, double shift,
                                  double* e) {
    for (std::int64_t i = 0; i < n; ++i) e[i] = x[i] - shift;
    for (std::int64_t i = n; i < stride; ++i) e[i] = -1000;
    for (std::int64_t i = 0; i < stride; i += kLanes) exp_nonpositive(Lanes::load(e + i)).store(e + i);
}

template <class T>
void prepare(const CrfArgs<T>& p, CrfWeights& w) {
    const std::int64_t K = w.K, stride = w.stride;
    w.shift_start = largest_of(K, p.start), w.shift_end = largest_of(K, p.end);
    w.shift_transitions = largest_of(K * K, p.transitions);
    exponentials(K, stride, p.start, w.shift_start, w.start);
    exponentials(K, stride, p.end, w.shift_end, w.end);
    for (std::int64_t i = 0; i < K; ++i) {
        exponentials(K, stride, p.transitions + i * K, w.shift_transitions, w.forward + i * stride);
        for (std::int64_t j = K; j < stride; ++j) {
            w.backward[i * stride + j] = 0;
            w.log_backward[i * stride + j] = w.log_forward[i * stride + j] = kNever;
        }
    }
    for (std::int64_t i = 0; i < K; ++i) {
        for (std::int64_t j = 0; j < K; ++j) {
            w.backward[j * stride + i] = w.forward[i * stride + j];
            const double x = at_least_never(p.transitions[i * K + j]);
            w.log_forward[i * stride + j] = w.log_backward[j * stride + i] = x;
        }
    }
}

// One member's memory for one sequence.
struct CrfMemory {
    double *lattice, *emission;  // (T, stride) each
    double *adjoint, *through;   // (stride)
    double *first, *last;        // (stride): the probabilities of the first and of the last step's tags

    FUSEDRNN_INLINE CrfMemory(Arena& arena, std::int64_t steps, std::int64_t stride) {
        lattice = arena.take<double>(steps * stride);
        emission = arena.take<double>(steps * stride);
        adjoint = arena.take<double>(stride);
        through = arena.take<double>(stride);
        first = arena.take<double>(stride);
        last = arena.take<double>(stride);
    }
};

// What a group of sequences adds to the gradients, without the factor.
struct CrfSums {
    double *start, *end, *transitions,
        *pairs;  // pairs: to be multiplied by the exponentials of the transitions

    FUSEDRNN_INLINE CrfSums(Arena& arena, std::int64_t tags, std::int64_t stride) {
        start = arena.take<double>(stride);
        end = arena.take<double>(stride);
        transitions = arena.take<double>(tags * stride);
        pairs = arena.take<double>(tags * stride);
    }
};

template <class T>
struct CrfRow {
    const CrfArgs<T>& p;
    const CrfWeights& w;
    const CrfMemory& m;
    const CrfSums& sums;
    std::int64_t b, steps;

    FUSEDRNN_INLINE std::int64_t place(std::int64_t t) const { return (t * p.batch + b) * p.tags; }
    FUSEDRNN_INLINE double* lattice(std::int64_t t) const { return m.lattice + t * w.stride; }
    FUSEDRNN_INLINE double* emission(std::int64_t t) const { return m.emission + t * w.stride; }
    FUSEDRNN_INLINE std::int64_t gold(std::int64_t t) const { return p.gold[t * p.batch + b]; }
    FUSEDRNN_INLINE std::int64_t work() const { return 4 * w.K * w.K + 64 * w.K; }
    // Expected counts of a step's tags: posterior (K).
    FUSEDRNN_INLINE void write_step(std::int64_t t, const double* posterior) const {
        T* const d = p.demissions + place(t);
        for (std::int64_t j = 0; j < w.K; ++j) d[j] = static_cast<T>(p.factor * posterior[j]);
        for (std::int64_t j = 0; t == 0 && j < w.K; ++j) m.first[j] = posterior[j];
        for (std::int64_t j = 0; t == steps - 1 && j < w.K; ++j) m.last[j] = posterior[j];
    }
};

// The linear domain: the logarithm of the sum over all paths, NaN for a row with a NaN and -inf where values underflow.
template <class T>
double crf_linear(const CrfRow<T>& r, Team& team, int member) {
    const CrfWeights& w = r.w;
    const std::int64_t K = w.K, stride = w.stride, steps = r.steps;
    double shifts = w.shift_start + w.shift_end + static_cast<double>(steps - 1) * w.shift_transitions;
    double scale = 1, exponents = 0;
    for (std::int64_t t = 0; t < steps; ++t) {
        if (team.cancelled(member, r.work())) return 0;
        const T* const x = r.p.emissions + r.place(t);
        double *const e = r.emission(t), *const a = r.lattice(t);
        const double most = static_cast<double>(row_max<OneThread>(K, x));
        shifts += most;
        for (std::int64_t j = 0; j < K; ++j) e[j] = static_cast<double>(x[j]) - most;
        for (std::int64_t j = K; j < stride; ++j) e[j] = -1000;
        const Lanes scales = Lanes::set(scale);
        for (std::int64_t j = 0; j < stride; j += kLanes) {
            (exp_nonpositive(Lanes::load(e + j)) * scales).store(e + j);
        }
        if (t > 0) row_product(K, stride, r.lattice(t - 1), w.forward, a);
        const double* const before = t > 0 ? a : w.start;
        Lanes largest = Lanes::set(0);
        const std::int64_t whole = (K + kLanes - 1) / kLanes * kLanes;
        for (std::int64_t j = 0; j < whole; j += kLanes) {
            const Lanes v = Lanes::load(before + j) * Lanes::load(e + j);
            v.store(a + j);
            largest = max(v, largest);
        }
        scale = 1;
        if (t % kStepsBetweenScales == kStepsBetweenScales - 1 && t + 1 < steps) {
            scale = scale_towards_one(largest_lane(largest), exponents);
        }
    }
    double total = 0;
    for (std::int64_t j = 0; j < K; ++j) total += r.lattice(steps - 1)[j] * w.end[j];
    if (total != total || shifts - shifts != 0) return __builtin_nan("");
    if (!(total > 0x1p-1000)) return -__builtin_huge_val();
    const Lanes share = Lanes::set(1 / total);
    for (std::int64_t j = 0; j < stride; j += kLanes) (Lanes::load(w.end + j) * share).store(r.m.adjoint + j);
    Lanes largest = Lanes::set(0);
    for (std::int64_t t = steps - 1; t >= 0; --t) {
        if (team.cancelled(member, r.work())) return 0;
        double *const e = r.emission(t), *const a = r.lattice(t), *const posterior = r.m.through;
        const std::int64_t whole = (K + kLanes - 1) / kLanes * kLanes;
        for (std::int64_t j = 0; j < whole; j += kLanes) {
            const Lanes v = Lanes::load(r.m.adjoint + j);
            largest = max(v, largest);
            (Lanes::load(a + j) * v).store(posterior + j);
            (Lanes::load(e + j) * v).store(e + j);
        }
        r.write_step(t, posterior);
        if (t > 0) row_product(K, stride, e, w.backward, r.m.adjoint);
    }
    if (!(largest_lane(largest) < 0x1p800)) return -__builtin_huge_val();
    return __builtin_log(total) + exponents * kLn2 + shifts;
}

// y[j] = log sum_i exp(x[i] + w[i, j]).
FUSEDRNN_INLINE void log_product(std::int64_t K, std::int64_t stride, const double* x, const double* w,
                                 double* y) {
    for (std::int64_t j = 0; j < K; j += kLanes) {
        Lanes most = Lanes::set(kNever), sum = Lanes::set(0);
        for (std::int64_t i = 0; i < K; ++i) {
            most = max(Lanes::set(x[i]) + Lanes::load(w + i * stride + j), most);
        }
        for (std::int64_t i = 0; i < K; ++i) {
            sum = sum + exp_nonpositive(Lanes::set(x[i]) + Lanes::load(w + i * stride + j) - most);
        }
        max(most + log(sum), Lanes::set(kNever)).store(y + j);
    }
}

// The same in logarithms; -inf where no path is allowed. Rows are without NaN.
template <class T>
double crf_logarithmic(const CrfRow<T>& r, Team& team, int member) {
    const CrfWeights& w = r.w;
    const std::int64_t K = w.K, stride = w.stride, steps = r.steps;
    for (std::int64_t t = 0; t < steps; ++t) {
        if (team.cancelled(member, 16 * r.work())) return 0;
        const T* const x = r.p.emissions + r.place(t);
        double* const a = r.lattice(t);
        if (t > 0) log_product(K, stride, r.lattice(t - 1), w.log_forward, a);
        for (std::int64_t j = 0; j < K; ++j) {
            const double e = at_least_never(static_cast<double>(x[j]));
            r.emission(t)[j] = e;
            a[j] = at_least_never((t > 0 ? a[j] : at_least_never(r.p.start[j])) + e);
        }
    }
    double* const adjoint = r.m.adjoint;
    double* const through = r.m.through;
    double total = kNever;
    for (std::int64_t j = 0; j < K; ++j) {
        adjoint[j] = at_least_never(r.p.end[j]);
        total = log_add(total, r.lattice(steps - 1)[j] + adjoint[j]);
    }
    if (!(total > 0.5 * kNever)) return -__builtin_huge_val();
    for (std::int64_t t = steps - 1; t >= 0; --t) {
        if (team.cancelled(member, 16 * r.work())) return 0;
        const double* const a = r.lattice(t);
        for (std::int64_t j = 0; j < K; ++j) through[j] = __builtin_exp(a[j] + adjoint[j] - total);
        r.write_step(t, through);
        if (t == 0) break;
        for (std::int64_t j = 0; j < K; ++j) through[j] = at_least_never(r.emission(t)[j] + adjoint[j]);
        const double* const before = r.lattice(t - 1);
        for (std::int64_t i = 0; i < K && r.p.gold != nullptr; ++i) {
            for (std::int64_t j = 0; j < K; ++j) {
                r.sums.transitions[i * stride + j] +=
                    __builtin_exp(before[i] + w.log_forward[i * stride + j] + through[j] - total);
            }
        }
        log_product(K, stride, through, w.log_backward, adjoint);
    }
    return total;
}

// Loss and gradient of one sequence, added to the sums of its group.
template <class T>
void crf_row(const CrfRow<T>& r, Team& team, int member) {
    const CrfArgs<T>& p = r.p;
    const std::int64_t K = p.tags, stride = r.w.stride;
    const auto set_gradient = [&](std::int64_t from, std::int64_t to, T value) {
        for (std::int64_t t = from; t < to; ++t) {
            for (std::int64_t j = 0; j < K; ++j) p.demissions[r.place(t) + j] = value;
        }
    };
    set_gradient(r.steps, p.steps, T(0));
    p.losses[r.b] = 0;
    if (r.steps == 0) return;
    double total = crf_linear(r, team, member);
    if (total == -__builtin_huge_val()) {
        total = crf_logarithmic(r, team, member);
    } else if (p.gold != nullptr && total == total) {
        std::int64_t i = 0;
        for (; i + 4 <= K; i += 4) {
            outer_rows<4>(r.steps - 1, K, stride, r.lattice(0) + i, r.emission(0) + stride,
                          r.sums.pairs + i * stride);
        }
        for (; i < K; ++i) {
            outer_rows<1>(r.steps - 1, K, stride, r.lattice(0) + i, r.emission(0) + stride,
                          r.sums.pairs + i * stride);
        }
    }
    p.losses[r.b] = total;
    if (total - total != 0) set_gradient(0, r.steps, static_cast<T>(__builtin_nan("")));
    if (p.gold == nullptr) return;
    for (std::int64_t j = 0; j < K; ++j) {
        r.sums.start[j] += r.m.first[j];
        r.sums.end[j] += r.m.last[j];
    }
    double score = p.start[r.gold(0)] + p.end[r.gold(r.steps - 1)];
    r.sums.start[r.gold(0)] -= 1;
    r.sums.end[r.gold(r.steps - 1)] -= 1;
    for (std::int64_t t = 0; t < r.steps; ++t) {
        const std::int64_t at = r.place(t) + r.gold(t);
        score += static_cast<double>(p.emissions[at]);
        p.demissions[at] -= static_cast<T>(p.factor);
        if (t == 0) continue;
        score += p.transitions[r.gold(t - 1) * K + r.gold(t)];
        r.sums.transitions[r.gold(t - 1) * stride + r.gold(t)] -= 1;
    }
    const double loss = total - score;
    p.losses[r.b] = loss < 0 ? 0 : loss;
    if (total - total != 0) {
        for (std::int64_t j = 0; j < K; ++j) r.sums.start[j] = r.sums.end[j] = __builtin_nan("");
        for (std::int64_t j = 0; j < K * stride; ++j) r.sums.transitions[j] = __builtin_nan("");
    }
}

// The memory of a call: of all sequences, then of each group, then of each member.
struct CrfLayout {
    std::int64_t groups, shared_bytes, group_bytes, member_bytes;

    CrfLayout(std::int64_t steps, std::int64_t batch, std::int64_t tags)
        : groups((batch + kCrfGroup - 1) / kCrfGroup) {
        Arena shared{nullptr}, group{nullptr}, member{nullptr};
        const CrfWeights w(shared, tags);
        const CrfSums sums(group, tags, w.stride);
        const CrfMemory memory(member, steps, w.stride);
        shared_bytes = shared.used, group_bytes = group.used, member_bytes = member.used;
    }
    char* group(void* workspace, std::int64_t g) const {
        return static_cast<char*>(workspace) + shared_bytes + g * group_bytes;
    }
    char* member(void* workspace, int m) const { return group(workspace, groups) + m * member_bytes; }
};

template <class T>
std::int64_t crf_workspace(std::int64_t steps, std::int64_t batch, std::int64_t tags, int members) {
    const CrfLayout layout(steps, batch, tags);
    return layout.shared_bytes + layout.groups * layout.group_bytes + members * layout.member_bytes;
}

template <class T>
void crf(const CrfArgs<T>& p, Team& team, void* workspace) {
    const CrfLayout layout(p.steps, p.batch, p.tags);
    Arena shared{static_cast<char*>(workspace)};
    CrfWeights w(shared, p.tags);
    prepare(p, w);
    const std::int64_t K = p.tags, stride = w.stride;
    parallel_ranges(team, layout.groups, 1, [&](int member, std::int64_t begin, std::int64_t end) {
        Arena own{layout.member(workspace, member)};
        const CrfMemory memory(own, p.steps, stride);
        for (std::int64_t i = 0; i < stride; ++i) memory.through[i] = 0;
        for (std::int64_t g = begin; g < end; ++g) {
            Arena of_group{layout.group(workspace, g)};
            const CrfSums sums(of_group, K, stride);
            for (double* row : {sums.start, sums.end}) zero(row, stride);
            for (double* matrix : {sums.transitions, sums.pairs}) zero(matrix, K * stride);
            const std::int64_t last = (g + 1) * kCrfGroup;
            for (std::int64_t b = g * kCrfGroup; b < last && b < p.batch; ++b) {
                if (team.cancelled(member, 1024)) return;
                crf_row(CrfRow<T>{p, w, memory, sums, b, p.lengths[b]}, team, member);
            }
        }
    });
    if (p.gold == nullptr || team.was_cancelled()) return;
    double* const d = p.dweights;
    for (std::int64_t i = 0; i < 2 * K + K * K; ++i) d[i] = 0;
    for (std::int64_t g = 0; g < layout.groups; ++g) {
        Arena of_group{layout.group(workspace, g)};
        const CrfSums sums(of_group, K, stride);
        for (std::int64_t j = 0; j < K; ++j) {
            d[j] += p.factor * sums.start[j];
            d[K + j] += p.factor * sums.end[j];
        }
        for (std::int64_t i = 0; i < K; ++i) {
            for (std::int64_t j = 0; j < K; ++j) {
                const std::int64_t at = i * stride + j;
                d[2 * K + i * K + j] += p.factor * (sums.transitions[at] + sums.pairs[at] * w.forward[at]);
            }
        }
    }
}

}  // namespace fusedrnn::FUSEDRNN_ISA
