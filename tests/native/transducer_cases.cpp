// The RNN transducer against a recursion over the lattice, cell by cell in logarithms.
#include "check.h"

namespace kernel_check {
namespace {

using namespace fusedrnn;

constexpr std::int64_t kBatch = 4;

// Logits of all cells, and the label of each; the first sequence has no steps.
template <class T>
struct Transducer {
    std::int64_t steps, width, classes, blank;
    Array<T> logits;
    std::vector<std::int64_t> lengths, counts, labels;

    Transducer(std::int64_t t, std::int64_t u, std::int64_t v, double scale)
        : steps(t), width(u + 1), classes(v), blank(v / 2), logits(kBatch * t * (u + 1), v) {
        Random random(static_cast<std::uint64_t>(t * 31 + u * 7 + v));
        logits.fill(random, scale);
        for (std::int64_t b = 0; b < kBatch; ++b) {
            lengths.push_back(b == 0 ? 0 : b == 1 ? t : 1 + random.below(t));
            counts.push_back(v < 2 || b == 0 ? 0 : b == 1 ? u : random.below(u + 1));
        }
        for (std::int64_t b = 0; b < kBatch; ++b) {
            std::vector<std::int64_t> target;
            for (std::int64_t k = 0; k < counts[at(b)]; ++k) {
                target.push_back((blank + 1 + random.below(v - 1)) % v);
            }
            target.push_back(kTransducerLast);
            target.resize(static_cast<std::size_t>(width), kTransducerOutside);
            for (std::int64_t i = 0; i < t; ++i) {
                for (const std::int64_t label : target) {
                    labels.push_back(i < lengths[at(b)] ? label : kTransducerOutside);
                }
            }
        }
    }
    static std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }
    std::int64_t cells() const { return kBatch * steps * width; }
    std::int64_t cell(std::int64_t b, std::int64_t t, std::int64_t u) const {
        return (b * steps + t) * width + u;
    }
    double log_probability(std::int64_t i, std::int64_t label) const {
        double sum = kNone;
        for (std::int64_t c = 0; c < classes; ++c) {
            sum = log_add(sum, static_cast<double>(logits.row(i)[c]));
        }
        return static_cast<double>(logits.row(i)[label]) - sum;
    }
};

// Loss and gradient of sequence b.
template <class T>
double reference_transducer(const Transducer<T>& p, std::int64_t b, double label_factor,
                            Array<double>& gradient) {
    const std::int64_t steps = p.lengths[p.at(b)], count = p.counts[p.at(b)];
    if (steps == 0) return 0;
    const auto table = [&] { return Array<double>(steps + 1, count + 2).fill(kNone); };
    Array<double> ahead = table(), behind = table();
    const auto blank = [&](std::int64_t t, std::int64_t u) {
        return p.log_probability(p.cell(b, t, u), p.blank);
    };
    const auto label = [&](std::int64_t t, std::int64_t u) {
        const std::int64_t i = p.cell(b, t, u);
        return u < count ? p.log_probability(i, p.labels[p.at(i)]) : kNone;
    };
    for (std::int64_t t = 0; t < steps; ++t) {
        for (std::int64_t u = 0; u <= count; ++u) {
            double sum = t + u == 0 ? 0 : kNone;
            if (t > 0) sum = log_add(sum, ahead.row(t - 1)[u] + blank(t - 1, u));
            if (u > 0) sum = log_add(sum, ahead.row(t)[u - 1] + label(t, u - 1));
            ahead.row(t)[u] = sum;
        }
    }
    behind.row(steps)[count] = 0;
    const double total = ahead.row(steps - 1)[count] + blank(steps - 1, count);
    for (std::int64_t t = steps - 1; t >= 0; --t) {
        for (std::int64_t u = count; u >= 0; --u) {
            const double by_blank = behind.row(t + 1)[u] + blank(t, u);
            const double by_label = behind.row(t)[u + 1] + label(t, u);
            behind.row(t)[u] = log_add(by_blank, by_label);
            const double of_blank = std::exp(ahead.row(t)[u] + by_blank - total);
            const double of_label = label_factor * std::exp(ahead.row(t)[u] + by_label - total);
            const std::int64_t i = p.cell(b, t, u);
            for (std::int64_t c = 0; c < p.classes; ++c) {
                gradient.row(i)[c] = (of_blank + of_label) * std::exp(p.log_probability(i, c));
            }
            gradient.row(i)[p.blank] -= of_blank;
            if (u < count) gradient.row(i)[p.labels[p.at(i)]] -= of_label;
        }
    }
    return -total;
}

template <class T>
void check_transducer(const SequenceKernels<T>& kernels, std::int64_t steps, std::int64_t count,
                      std::int64_t classes, double scale, Report& report) {
    const std::string name = std::string(type_name<T>())
                                 .append(" transducer T")
                                 .append(std::to_string(steps))
                                 .append(" U")
                                 .append(std::to_string(count))
                                 .append(" V")
                                 .append(std::to_string(classes))
                                 .append(" S")
                                 .append(std::to_string(static_cast<int>(scale)));
    const Transducer<T> p(steps, count, classes, scale);
    const TransducerCells<T> cells{p.cells(), classes, p.blank, p.logits.data(), p.labels.data()};
    const double label_factor = 1.25, factor = 0.5, clamp = 0.125;
    Array<double> emissions(4, p.cells()), flow(2, p.cells()), losses(1, kBatch);
    Array<T> dlogits(p.cells(), classes), clamped(p.cells(), classes);
    Team team(1);
    Workspace workspace(kernels.transducer_workspace(steps, count, 1));
    kernels.transducer_emissions(cells, emissions.data(), team);
    const TransducerLattice lattice{
        kBatch,           steps,        p.width,       p.lengths.data(), p.counts.data(), emissions.row(0),
        emissions.row(1), label_factor, losses.data(), flow.row(0),      flow.row(1)};
    kernels.transducer_lattice(lattice, team, workspace.template as<char>());
    kernels.transducer_gradient(cells, emissions.data(), flow.data(), factor, 0, dlogits.data(), team);
    kernels.transducer_gradient(cells, emissions.data(), flow.data(), factor, clamp, clamped.data(), team);
    Array<double> want_losses(1, kBatch), want(p.cells(), classes);
    want.fill(0.0);
    for (std::int64_t b = 0; b < kBatch; ++b) {
        want_losses.data()[b] = reference_transducer(p, b, label_factor, want);
    }
    Array<double> want_clamped(p.cells(), classes);
    Array<T> narrow_losses(1, kBatch);
    for (std::int64_t b = 0; b < kBatch; ++b) {
        narrow_losses.data()[b] = static_cast<T>(losses.data()[b]);
    }
    for (std::int64_t i = 0; i < p.cells(); ++i) {
        for (std::int64_t c = 0; c < classes; ++c) {
            want_clamped.row(i)[c] = factor * std::clamp(want.row(i)[c], -clamp, clamp);
            want.row(i)[c] *= factor;
            // With one class all gradients are rounding errors about 0.
            dlogits.row(i)[c] += 1, clamped.row(i)[c] += 1;
            want.row(i)[c] += 1, want_clamped.row(i)[c] += 1;
        }
    }
    report.compare(name, "losses", narrow_losses, want_losses);
    report.compare(name, "dlogits", dlogits, want);
    report.compare(name, "clamped", clamped, want_clamped);
    for (const Array<double>* array : {&emissions, &flow, &losses}) {
        if (!array->intact()) report.fail(name, "written outside", 0);
    }
    report.done(name, {{"loss", Digest().add(losses).add(dlogits)}});
}

}  // namespace

template <class T>
void check_transducers(const LayerTable<T>& layers, Report& report) {
    for (const std::int64_t steps : {1, 5, 19}) {
        for (const std::int64_t count : {0, 2, 16}) {
            for (const std::int64_t classes : {1, 3, 33}) {
                if (!report.next()) continue;
                check_transducer(*layers.sequence, steps, count, classes, count == 2 ? 60.0 : 2.0, report);
            }
        }
    }
}

template void check_transducers<float>(const LayerTable<float>&, Report&);
template void check_transducers<double>(const LayerTable<double>&, Report&);

}  // namespace kernel_check
