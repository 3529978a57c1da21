// Connectionist temporal classification (Graves et al. 2006) and its gradient.
//
// With p = softmax(logits) and the lattice of a target l_0 .. l_(L-1) with a blank before, between and after its labels,
//   blank_t[i] = (blank_(t-1)[i] + label_(t-1)[i-1]) p_t(blank)
//   label_t[i] = (label_(t-1)[i] + blank_(t-1)[i] + [l_i != l_(i-1)] label_(t-1)[i-1]) p_t(l_i)
//   loss       = -log (blank_(T-1)[L] + label_(T-1)[L-1])
//   dlogits    = p - the probability that the path is at a state of this class
// Blanks and labels lie in rows of their own, so that a step is three shifted additions and products of whole vectors. Of
// each step only the states are taken that can be reached from the start and from which the end can be.
//
// The forward values are exponentials without the softmax's divisor, times powers of two that bring them near 1; the
// backward values are the adjoints of just these operations, so that the products of both sum to 1 at every step. Where
// adjoints show that what underflowed may count, the sequence is taken again in logarithms.
#pragma once

#include "sequence/lattice.h"
#include "sequence/sequence_table.h"

namespace fusedrnn::FUSEDRNN_ISA {

// One member's memory. A row of the lattice has `stride` doubles and a line before it, whose last is what label[0] follows.
struct CtcMemory {
    std::int64_t stride;
    double *lattice, *emission;  // (T, 2, stride), (T, stride)
    double *blank, *sum;         // (T): emission of the blank; divisor of the softmax
    double *skip, *adjoint,
        *through;  // (stride): whether a label may follow the one before; of blanks, of labels
    double *entry, *entry_skip, *posterior;

    FUSEDRNN_INLINE CtcMemory(Arena& arena, std::int64_t steps, std::int64_t labels)
        : stride(whole_lines(labels + 1) + 3 * kRowLine) {
        lattice = arena.take<double>(steps * 2 * stride);
        emission = arena.take<double>(steps * stride);
        blank = arena.take<double>(steps);
        sum = arena.take<double>(steps);
        for (double** row : {&skip, &adjoint, &through, &entry, &entry_skip, &posterior}) {
            *row = arena.take<double>(stride);
        }
    }
    FUSEDRNN_INLINE double* blanks(std::int64_t t) const { return lattice + t * 2 * stride + kRowLine; }
    FUSEDRNN_INLINE double* labels(std::int64_t t) const { return blanks(t) + stride; }
};

// One sequence.
template <class T>
struct CtcRow {
    const CtcArgs<T>& in;
    std::int64_t b, steps, L;
    const std::int64_t* target;
    CtcMemory memory;

    FUSEDRNN_INLINE CtcRow(const CtcArgs<T>& args, std::int64_t row, const CtcMemory& m)
        : in(args),
          b(row),
          steps(args.lengths[row]),
          L(args.target_offsets[row + 1] - args.target_offsets[row]),
          target(args.labels + args.target_offsets[row]),
          memory(m) {}

    FUSEDRNN_INLINE const T* logits(std::int64_t t) const {
        return in.logits + (t * in.batch + b) * in.classes;
    }
    FUSEDRNN_INLINE std::int64_t work() const { return 8 * in.classes + 32 * (L + 1); }
    FUSEDRNN_INLINE std::int64_t whole() const { return (L + kLanes) / kLanes * kLanes; }  // L + 1 in vectors
    // The states of a step, in whole vectors.
    FUSEDRNN_INLINE std::int64_t first(std::int64_t t) const {
        const std::int64_t i = L - steps + t;
        return i > 0 ? i / kLanes * kLanes : 0;
    }
    FUSEDRNN_INLINE std::int64_t end(std::int64_t t) const {
        return ((L < t ? L : t) + kLanes) / kLanes * kLanes;
    }
    // Fewer steps than labels and the blanks between equal ones.
    bool is_impossible() const {
        std::int64_t least = L;
        for (std::int64_t i = 1; i < L; ++i) least += target[i] == target[i - 1];
        return steps < least;
    }
    // 1 where a label may follow the one before it without a blank; `no` elsewhere.
    void set_skips(double yes, double no) const {
        for (std::int64_t i = 0; i < memory.stride; ++i) {
            memory.skip[i] = i > 0 && i < L && target[i] != target[i - 1] ? yes : no;
        }
    }
};

// Emissions of a step where exponentials of a float are zero that in double are not.
template <class T>
FUSEDRNN_KERNEL_RARELY void wide_emissions(const CtcRow<T>& row, std::int64_t t, T most, double scale) {
    const T* const x = row.logits(t);
    const std::int64_t from = row.first(t), to = row.end(t), emitted = to < row.L ? to : row.L;
    double* const emission = row.memory.emission + t * row.memory.stride;
    const auto wide = [&](std::int64_t c) { return static_cast<double>(x[c]) - static_cast<double>(most); };
    for (std::int64_t i = from; i < emitted; ++i) emission[i] = wide(row.target[i]);
    for (std::int64_t i = emitted; i < to; ++i) emission[i] = -1000;
    for (std::int64_t i = from; i < to; i += kLanes) {
        (exp_nonpositive(Lanes::load(emission + i)) * Lanes::set(scale)).store(emission + i);
    }
    double lanes[kLanes];
    exp_nonpositive(Lanes::set(wide(row.in.blank))).store(lanes);
    row.memory.blank[t] = lanes[0] * scale;
}

// The linear domain. Returns the loss, NaN for a row with a NaN and, where the values underflow, -1.
template <class T>
double ctc_linear(const CtcRow<T>& row, const CtcLossArgs<T>& p, Team& team, int member) {
    const CtcMemory& m = row.memory;
    const std::int64_t steps = row.steps, L = row.L, classes = p.in.classes, blank = p.in.blank;
    const auto dlogits = [&](std::int64_t t) { return p.dlogits + (t * p.in.batch + row.b) * classes; };
    row.set_skips(1, 0);
    LogSum logs;
    double scale = 1, exponents = 0;
    for (std::int64_t t = 0; t < steps; ++t) {
        if (team.cancelled(member, row.work())) return 0;
        T* const e = dlogits(t);
        if (t + kStepsAhead < steps) {
            prefetch_row(classes, row.logits(t + kStepsAhead));
            prefetch_row(classes, dlogits(t + kStepsAhead));
        }
        const RowExponentials<T> r = row_exponentials(classes, row.logits(t), e);
        m.sum[t] = static_cast<double>(r.sum);
        logs.multiply(m.sum[t]);
        const std::int64_t from = row.first(t), to = row.end(t);
        double* const emission = m.emission + t * m.stride;
        const std::int64_t emitted = to < L ? to : L;
        m.blank[t] = static_cast<double>(e[blank]) * scale;
        for (std::int64_t i = from; i < emitted; ++i) {
            emission[i] = static_cast<double>(e[row.target[i]]) * scale;
        }
        if (sizeof(T) == 4 && !(r.least > static_cast<T>(0x1p-120))) wide_emissions(row, t, r.most, scale);
        for (std::int64_t i = emitted; i < to; ++i) emission[i] = 0;
        double* const blanks = m.blanks(t);
        double* const labels = m.labels(t);
        labels[from - 1] = 0;
        if (t == 0) {
            zero(blanks, to), zero(labels, to);
            blanks[0] = m.blank[0], labels[0] = emission[0];
        } else {
            const double *was_blank = m.blanks(t - 1), *was_label = m.labels(t - 1);
            const Lanes blank_emission = Lanes::set(m.blank[t]);
            Lanes most = Lanes::set(0);
            for (std::int64_t i = from; i < to; i += kLanes) {
                const Lanes left = Lanes::load(was_label + i - 1), stay = Lanes::load(was_blank + i);
                const Lanes of_blank = (stay + left) * blank_emission;
                const Lanes of_label = fma(Lanes::load(m.skip + i), left, stay + Lanes::load(was_label + i)) *
                                       Lanes::load(emission + i);
                of_blank.store(blanks + i);
                of_label.store(labels + i);
                most = max(of_blank, max(of_label, most));
            }
            scale = 1;
            if (t % kStepsBetweenScales == 0) scale = scale_towards_one(largest_lane(most), exponents);
        }
        // What the next step reads past the end of this one.
        Lanes::set(0).store(blanks + to);
        Lanes::set(0).store(labels + to);
    }
    // The last scale multiplied no step.
    if (scale != 1) exponents += __builtin_ilogb(scale);
    const double divisors = logs.value();
    if (divisors != divisors) return divisors;
    const double total = m.blanks(steps - 1)[L] + (L > 0 ? m.labels(steps - 1)[L - 1] : 0);
    if (!(total > 0x1p-1000)) return -1;
    for (double* const carried : {m.adjoint, m.through, m.entry}) zero(carried, m.stride);
    m.adjoint[L] = 1 / total;
    if (L > 0) m.through[L - 1] = 1 / total;
    Lanes largest = Lanes::set(0);
    for (std::int64_t t = steps - 1; t >= 0; --t) {
        if (team.cancelled(member, row.work())) return 0;
        if (t >= kStepsAhead) prefetch_row(classes, dlogits(t - kStepsAhead));
        const std::int64_t from = row.first(t), to = row.end(t);
        const double *blanks = m.blanks(t), *labels = m.labels(t), *emission = m.emission + t * m.stride;
        const Lanes blank_emission = Lanes::set(m.blank[t]);
        Lanes of_blanks = Lanes::set(0);
        for (std::int64_t i = from; i < to; i += kLanes) {
            const Lanes at_blank = Lanes::load(m.adjoint + i);
            const Lanes at_label = Lanes::load(m.through + i) + Lanes::load(m.entry + i + 1);
            largest = max(at_blank, max(at_label, largest));
            of_blanks = fma(Lanes::load(blanks + i), at_blank, of_blanks);
            (Lanes::load(labels + i) * at_label).store(m.posterior + i);
            const Lanes from_blank = at_blank * blank_emission,
                        from_label = at_label * Lanes::load(emission + i);
            (from_blank + from_label).store(m.adjoint + i);
            from_label.store(m.through + i);
            fma(Lanes::load(m.skip + i), from_label, from_blank).store(m.entry + i);
        }
        m.entry[to] = 0;
        T* const d = dlogits(t);
        const double factor = p.factors[row.b];
        const Vec<T> share = Vec<T>::set(static_cast<T>(factor / m.sum[t]));
        row_vectors<T>(classes,
                       [&](std::int64_t c, int n) { store_up_to(load_up_to(d + c, n) * share, d + c, n); });
        d[blank] -= static_cast<T>(factor * sum(of_blanks));
        const std::int64_t emitted = to < L ? to : L;
        for (std::int64_t i = from; i < emitted; ++i) {
            d[row.target[i]] -= static_cast<T>(factor * m.posterior[i]);
        }
    }
    if (!(largest_lane(largest) < kMostAdjoint)) return -1;
    const double loss = divisors - __builtin_log(total) - exponents * kLn2;
    return loss > 0 ? loss : 0;
}

// Logarithms of the softmax at the blank and the labels of a step; e is scratch of V. NaN if the row has a NaN.
template <class T>
FUSEDRNN_INLINE double log_emissions(const CtcRow<T>& row, std::int64_t t, T* e) {
    const T* const x = row.logits(t);
    const RowExponentials<T> r = row_exponentials(row.in.classes, x, e);
    const double divisor = static_cast<double>(r.most) + __builtin_log(static_cast<double>(r.sum));
    double* const emission = row.memory.emission + t * row.memory.stride;
    for (std::int64_t i = 0; i < row.L; ++i) {
        emission[i] = at_least_never(static_cast<double>(x[row.target[i]]) - divisor);
    }
    for (std::int64_t i = row.L; i < row.whole(); ++i) emission[i] = kNever;
    row.memory.blank[t] = at_least_never(static_cast<double>(x[row.in.blank]) - divisor);
    row.memory.sum[t] = static_cast<double>(r.sum);
    return divisor;
}

FUSEDRNN_INLINE void fill(double* p, std::int64_t n, double value) {
    for (std::int64_t i = 0; i < n; ++i) p[i] = value;
}

// The lattice of logarithms, by sums or, for the best path, by maxima. False where it was cancelled or met a NaN.
template <bool kBest, class T>
bool ctc_log_lattice(const CtcRow<T>& row, T* (*scratch)(void*, std::int64_t), void* context, Team& team,
                     int member) {
    const CtcMemory& m = row.memory;
    const std::int64_t whole = row.whole();
    row.set_skips(0, kNever);
    const Lanes never = Lanes::set(kNever);
    for (std::int64_t t = 0; t < row.steps; ++t) {
        if (team.cancelled(member, 8 * row.work())) return false;
        const double divisor = log_emissions(row, t, scratch(context, t));
        if (divisor != divisor) return false;
        double *const blanks = m.blanks(t), *const labels = m.labels(t);
        labels[-1] = kNever;
        if (t == 0) {
            fill(blanks, whole, kNever), fill(labels, whole, kNever);
            blanks[0] = m.blank[0];
            if (row.L > 0) labels[0] = m.emission[0];
            continue;
        }
        const double *const was_blank = m.blanks(t - 1), *const was_label = m.labels(t - 1);
        const double* const emission = m.emission + t * m.stride;
        for (std::int64_t i = 0; i < whole; i += kLanes) {
            const Lanes left = Lanes::load(was_label + i - 1), stay = Lanes::load(was_blank + i);
            const Lanes same = Lanes::load(was_label + i), over = left + Lanes::load(m.skip + i);
            const Lanes of_blank = kBest ? max(stay, left) : log_add(stay, left);
            const Lanes of_label = kBest ? max(max(same, stay), over) : log_add(same, stay, over);
            max(of_blank + Lanes::set(m.blank[t]), never).store(blanks + i);
            max(of_label + Lanes::load(emission + i), never).store(labels + i);
        }
    }
    return true;
}

template <class T>
double ctc_logarithmic(const CtcRow<T>& row, const CtcLossArgs<T>& p, Team& team, int member) {
    const CtcMemory& m = row.memory;
    const std::int64_t steps = row.steps, L = row.L, classes = p.in.classes, whole = row.whole();
    struct Gradient {
        const CtcRow<T>& row;
        const CtcLossArgs<T>& p;
        static T* at(void* context, std::int64_t t) {
            const Gradient& g = *static_cast<Gradient*>(context);
            return g.p.dlogits + (t * g.p.in.batch + g.row.b) * g.p.in.classes;
        }
    } gradient{row, p};
    if (!ctc_log_lattice<false>(row, Gradient::at, &gradient, team, member)) return __builtin_nan("");
    const double total =
        L > 0 ? log_add(m.blanks(steps - 1)[L], m.labels(steps - 1)[L - 1]) : m.blanks(steps - 1)[0];
    if (total < 0.5 * kNever) return __builtin_huge_val();
    for (double* const carried : {m.adjoint, m.through, m.entry, m.entry_skip}) {
        fill(carried, m.stride, kNever);
    }
    m.adjoint[L] = 0;
    if (L > 0) m.through[L - 1] = 0;
    const Lanes shift = Lanes::set(total);
    for (std::int64_t t = steps - 1; t >= 0; --t) {
        if (team.cancelled(member, 8 * row.work())) return 0;
        const double *blanks = m.blanks(t), *labels = m.labels(t), *emission = m.emission + t * m.stride;
        Lanes of_blanks = Lanes::set(0);
        for (std::int64_t i = 0; i < whole; i += kLanes) {
            const Lanes at_blank = Lanes::load(m.adjoint + i);
            const Lanes at_label = log_add(Lanes::load(m.through + i), Lanes::load(m.entry + i + 1),
                                           Lanes::load(m.entry_skip + i + 1));
            of_blanks = of_blanks + exp_nonpositive(Lanes::load(blanks + i) + at_blank - shift);
            exp_nonpositive(Lanes::load(labels + i) + at_label - shift).store(m.posterior + i);
            const Lanes from_blank = at_blank + Lanes::set(m.blank[t]);
            const Lanes from_label = at_label + Lanes::load(emission + i);
            log_add(from_blank, from_label).store(m.adjoint + i);
            max(from_label, Lanes::set(kNever)).store(m.through + i);
            max(from_blank, Lanes::set(kNever)).store(m.entry + i);
            max(from_label + Lanes::load(m.skip + i), Lanes::set(kNever)).store(m.entry_skip + i);
        }
        T* const d = Gradient::at(&gradient, t);
        const double factor = p.factors[row.b];
        const Vec<T> share = Vec<T>::set(static_cast<T>(factor / m.sum[t]));
        row_vectors<T>(classes,
                       [&](std::int64_t c, int n) { store_up_to(load_up_to(d + c, n) * share, d + c, n); });
        d[p.in.blank] -= static_cast<T>(factor * sum(of_blanks));
        for (std::int64_t i = 0; i < L; ++i) d[row.target[i]] -= static_cast<T>(factor * m.posterior[i]);
    }
    return -total > 0 ? -total : 0;
}

template <class T>
void ctc_row(const CtcLossArgs<T>& p, const CtcRow<T>& row, Team& team, int member) {
    const std::int64_t b = row.b, classes = p.in.classes;
    const auto set_gradient = [&](std::int64_t from, T value) {
        for (std::int64_t t = from; t < p.in.steps; ++t) {
            T* const d = p.dlogits + (t * p.in.batch + b) * classes;
            for (std::int64_t c = 0; c < classes; ++c) d[c] = value;
        }
    };
    double loss = row.L == 0 ? 0 : __builtin_huge_val();
    if (row.steps > 0 && !row.is_impossible()) {
        loss = ctc_linear(row, p, team, member);
        if (loss < 0) loss = ctc_logarithmic(row, p, team, member);
    } else {
        // A NaN is told from an infinite loss.
        for (std::int64_t t = 0; t < row.steps; ++t) {
            T* const e = p.dlogits + (t * p.in.batch + b) * classes;
            const T sum = row_exponentials(classes, row.logits(t), e).sum;
            if (sum != sum) loss = __builtin_nan("");
        }
    }
    if (loss - loss != 0) {
        const bool zeroed = p.zero_infinity && loss == __builtin_huge_val();
        set_gradient(0, zeroed ? T(0) : static_cast<T>(__builtin_nan("")));
        if (zeroed) loss = 0;
    }
    p.losses[b] = loss;
    set_gradient(row.steps, T(0));
}

// body(memory, scratch of V elements, sequence) for each sequence, by members with memory of their own.
template <class T, class Body>
void each_sequence(const CtcArgs<T>& in, Team& team, void* workspace, const Body& body) {
    Arena counted{nullptr};
    const CtcMemory counting(counted, in.steps, in.most_labels);
    counted.take<T>(in.classes);
    parallel_ranges(team, in.batch, 1, [&](int member, std::int64_t begin, std::int64_t end) {
        Arena arena{static_cast<char*>(workspace) + member * counted.used};
        const CtcMemory memory(arena, in.steps, in.most_labels);
        T* const scratch = arena.take<T>(in.classes);
        for (std::int64_t b = begin; b < end && !team.cancelled(member, 4096); ++b) {
            body(member, memory, scratch, b);
        }
    });
}

template <class T>
std::int64_t ctc_workspace(std::int64_t steps, std::int64_t classes, std::int64_t most_labels, int members) {
    Arena counted{nullptr};
    const CtcMemory counting(counted, steps, most_labels);
    counted.take<T>(classes);
    return counted.used * members;
}

template <class T>
void ctc_loss(const CtcLossArgs<T>& p, Team& team, void* workspace) {
    each_sequence(p.in, team, workspace, [&](int member, const CtcMemory& memory, T*, std::int64_t b) {
        ctc_row(p, CtcRow<T>(p.in, b, memory), team, member);
    });
}

}  // namespace fusedrnn::FUSEDRNN_ISA
