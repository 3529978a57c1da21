// CTC and CRF against sums in logarithms, state by state; best paths by their scores; decoding by all paths.
#include <map>

#include "check.h"

namespace kernel_check {
namespace {

using namespace fusedrnn;

// A problem of CTC: B sequences, lengths and targets at random, the blank in the middle.
template <class T>
struct Ctc {
    std::int64_t steps, batch, classes, blank;
    Array<T> logits;
    std::vector<std::int64_t> lengths, labels, offsets{0};
    std::int64_t most = 0;

    Ctc(std::int64_t t, std::int64_t b, std::int64_t v, std::int64_t l, double scale)
        : steps(t), batch(b), classes(v), blank(v / 2), logits(t * b, v) {
        Random random(static_cast<std::uint64_t>(t * 31 + v));
        logits.fill(random, scale);
        for (std::int64_t i = 0; i < b; ++i) {
            const std::int64_t count = v < 2 || i == 1 ? 0 : 1 + random.below(l);
            for (std::int64_t k = 0; k < count; ++k) {
                labels.push_back((blank + 1 + random.below(v - 1)) % v);
            }
            offsets.push_back(static_cast<std::int64_t>(labels.size()));
            lengths.push_back(i == 2 ? 0 : std::min(t, 2 * count + random.below(t)));
            most = std::max(most, count);
        }
    }
    CtcArgs<T> args() const {
        return {steps,          batch,         classes,        blank, logits.data(),
                lengths.data(), labels.data(), offsets.data(), most};
    }
    std::vector<double> log_softmax(std::int64_t t, std::int64_t b) const {
        const T* const x = logits.row(t * batch + b);
        double sum = kNone;
        for (std::int64_t c = 0; c < classes; ++c) sum = log_add(sum, static_cast<double>(x[c]));
        std::vector<double> result;
        for (std::int64_t c = 0; c < classes; ++c) result.push_back(static_cast<double>(x[c]) - sum);
        return result;
    }
    std::vector<std::int64_t> target(std::int64_t b) const {
        return {labels.begin() + offsets[static_cast<std::size_t>(b)],
                labels.begin() + offsets[static_cast<std::size_t>(b) + 1]};
    }
};

// Loss and gradient of sequence b: states with blanks between, forward and backward.
template <class T>
double reference_ctc(const Ctc<T>& p, std::int64_t b, Array<double>& gradient, double& best) {
    const auto label = p.target(b);
    const std::int64_t n = p.lengths[static_cast<std::size_t>(b)],
                       states = 2 * static_cast<std::int64_t>(label.size()) + 1;
    best = n == 0 && states == 1 ? 0 : kNone;
    if (n == 0) return states == 1 ? 0 : -kNone;
    const auto at = [&](std::int64_t s) { return s % 2 ? label[static_cast<std::size_t>(s / 2)] : p.blank; };
    const auto skips = [&](std::int64_t s) { return s % 2 && s > 1 && at(s) != at(s - 2); };
    const auto table = [&] { return Array<double>(n, states).fill(kNone); };
    Array<double> ahead = table(), behind = table(), top = table();
    for (std::int64_t t = 0; t < n; ++t) {
        const std::vector<double> x = p.log_softmax(t, b);
        for (std::int64_t s = 0; s < states; ++s) {
            double sum = t == 0 && s < 2 ? 0 : kNone, most = sum;
            for (std::int64_t from = s; t > 0 && from >= 0 && from >= s - (skips(s) ? 2 : 1); --from) {
                sum = log_add(sum, ahead.row(t - 1)[from]);
                most = std::max(most, top.row(t - 1)[from]);
            }
            ahead.row(t)[s] = sum + x[static_cast<std::size_t>(at(s))];
            top.row(t)[s] = most + x[static_cast<std::size_t>(at(s))];
        }
    }
    double total = kNone;
    for (std::int64_t s = std::max<std::int64_t>(states - 2, 0); s < states; ++s) {
        behind.row(n - 1)[s] = 0;
        total = log_add(total, ahead.row(n - 1)[s]);
        best = std::max(best, top.row(n - 1)[s]);
    }
    if (total == kNone) return -kNone;
    for (std::int64_t t = n - 1; t >= 0; --t) {
        const std::vector<double> x = p.log_softmax(t, b);
        double* const d = gradient.row(t * p.batch + b);
        for (std::int64_t c = 0; c < p.classes; ++c) d[c] = std::exp(x[static_cast<std::size_t>(c)]);
        for (std::int64_t s = 0; s < states; ++s) {
            d[at(s)] -= std::exp(ahead.row(t)[s] + behind.row(t)[s] - total);
            for (std::int64_t from = s; t > 0 && from >= 0 && from >= s - (skips(s) ? 2 : 1); --from) {
                double& sum = behind.row(t - 1)[from];
                sum = log_add(sum, behind.row(t)[s] + x[static_cast<std::size_t>(at(s))]);
            }
        }
    }
    return -total;
}

template <class T>
Array<T> narrowed(const Array<double>& from) {
    Array<T> to(from.rows(), from.width());
    for (std::int64_t i = 0; i < from.rows(); ++i) {
        for (std::int64_t k = 0; k < from.width(); ++k) to.row(i)[k] = static_cast<T>(from.row(i)[k]);
    }
    return to;
}

template <class T>
void check_ctc(const SequenceKernels<T>& kernels, std::int64_t steps, std::int64_t classes,
               std::int64_t labels, double scale, Report& report) {
    const std::string name = std::string(type_name<T>()) + " ctc T" + std::to_string(steps) + " V" +
                             std::to_string(classes) + " L" + std::to_string(labels) + " S" +
                             std::to_string(static_cast<int>(scale));
    const Ctc<T> p(steps, 5, classes, labels, scale);
    const std::vector<double> factors(5, 1.0);
    Array<double> losses(1, 5), scores(1, 5);
    Array<T> dlogits(steps * 5, classes);
    std::vector<std::int64_t> alignment(static_cast<std::size_t>(steps * 5));
    Team team(1);
    Workspace workspace(kernels.ctc_workspace(steps, classes, p.most, 1));
    kernels.ctc_loss({p.args(), factors.data(), true, losses.data(), dlogits.data()}, team,
                     workspace.template as<char>());
    kernels.ctc_align(p.args(), alignment.data(), scores.data(), team, workspace.template as<char>());
    Array<double> want_losses(1, 5), want_scores(1, 5), want(steps * 5, classes);
    want.fill(0.0);
    for (std::int64_t b = 0; b < 5; ++b) {
        double& loss = want_losses.data()[b] = reference_ctc(p, b, want, want_scores.data()[b]);
        if (loss == -kNone) loss = 0;
        // Infinite scores are compared here, and are then both 0.
        if (want_scores.data()[b] == kNone) {
            if (scores.data()[b] != kNone) report.fail(name, "score", scores.data()[b]);
            want_scores.data()[b] = scores.data()[b] = 0;
        }
    }
    report.compare(name, "losses", narrowed<T>(losses), want_losses);
    report.compare(name, "dlogits", dlogits, want);
    report.compare(name, "scores", narrowed<T>(scores), want_scores);
    if (!losses.intact() || !scores.intact()) report.fail(name, "losses: written outside", 0);
    report.done(name, {{"loss", Digest().add(losses).add(dlogits)}, {"score", Digest().add(scores)}});
}

// All V^T paths, by what they read.
template <class T>
void check_decode(const SequenceKernels<T>& kernels, std::int64_t steps, std::int64_t classes,
                  Report& report) {
    const std::string name = std::string(type_name<T>()) + " ctc_decode T" + std::to_string(steps) + " V" +
                             std::to_string(classes);
    const Ctc<T> p(steps, 3, classes, 1, 2);
    std::vector<std::int64_t> labels(static_cast<std::size_t>(3 * steps), -1), counts(3), greedy(3);
    Array<double> scores(1, 3), best_path(1, 3), want(1, 3), want_path(1, 3);
    Team team(1);
    constexpr std::int64_t kBeam = 200;
    Workspace workspace(kernels.ctc_beam_workspace(steps, classes, kBeam, 1));
    kernels.ctc_best_path(p.args(), labels.data(), greedy.data(), best_path.data(), team,
                          workspace.template as<char>());
    kernels.ctc_beam_search(p.args(), kBeam, labels.data(), counts.data(), scores.data(), team,
                            workspace.template as<char>());
    for (std::int64_t b = 0; b < 3; ++b) {
        const std::int64_t n = p.lengths[static_cast<std::size_t>(b)];
        std::int64_t paths = 1;
        for (std::int64_t t = 0; t < n; ++t) paths *= classes;
        std::map<std::vector<std::int64_t>, double> found;
        want_path.data()[b] = n == 0 ? 0 : kNone;
        for (std::int64_t path = 0; path < paths; ++path) {
            std::vector<std::int64_t> read;
            std::int64_t rest = path, last = p.blank;
            double score = 0;
            for (std::int64_t t = 0; t < n; ++t, rest /= classes) {
                const std::int64_t c = rest % classes;
                if (c != last && c != p.blank) read.push_back(c);
                last = c;
                score += p.log_softmax(t, b)[static_cast<std::size_t>(c)];
            }
            found[read] += std::exp(score);
            want_path.data()[b] = std::max(want_path.data()[b], score);
        }
        const auto* const first = labels.data() + b * steps;
        const std::vector<std::int64_t> got(first, first + counts[static_cast<std::size_t>(b)]);
        double most = 0;
        for (const auto& [read, probability] : found) most = std::max(most, probability);
        want.data()[b] = std::log(most);
        if (!(std::abs(found[got] - most) <= tolerance<T>() * most)) report.fail(name, "labels", found[got]);
    }
    report.compare(name, "scores", narrowed<T>(scores), want);
    report.compare(name, "best path", narrowed<T>(best_path), want_path);
    report.done(name, {{"score", Digest().add(scores).add(best_path)}});
}

template <class T>
void check_crf(const SequenceKernels<T>& kernels, std::int64_t steps, std::int64_t K, double scale,
               Report& report) {
    const std::string name = std::string(type_name<T>()) + " crf T" + std::to_string(steps) + " K" +
                             std::to_string(K) + " S" + std::to_string(static_cast<int>(scale));
    constexpr std::int64_t kBatch = 10;
    Random random(static_cast<std::uint64_t>(steps * 7 + K));
    const Array<T> x = Array<T>(steps * kBatch, K).fill(random, scale);
    Array<double> weights = Array<double>(K + 2, K).fill(random, 2);  // start, end, transitions
    const double *const start = weights.row(0), *const end = weights.row(1), *const pairs = weights.row(2);
    std::vector<std::int64_t> lengths, gold, best(static_cast<std::size_t>(steps * kBatch));
    for (std::int64_t b = 0; b < kBatch; ++b) lengths.push_back(b == 0 ? steps : random.below(steps + 1));
    for (std::int64_t i = 0; i < steps * kBatch; ++i) gold.push_back(random.below(K));
    Array<double> losses(1, kBatch), dweights(K + 2, K), scores(1, kBatch);
    Array<T> dx(steps * kBatch, K);
    Team team(1);
    Workspace workspace(kernels.crf_workspace(steps, kBatch, K, 1));
    const CrfArgs<T> args{steps, kBatch, K,   x.data(),      lengths.data(), gold.data(),    start,
                          pairs, end,    1.0, losses.data(), dx.data(),      dweights.data()};
    kernels.crf(args, team, workspace.template as<char>());
    kernels.crf_viterbi(args, best.data(), scores.data(), team, workspace.template as<char>());
    // Counts lie beside 1, so that what is left of their difference from the gold ones is not all rounding.
    const auto ones = [](std::int64_t rows, std::int64_t width) {
        return Array<double>(rows, width).fill(1.0);
    };
    Array<double> want_losses = ones(1, kBatch), want_dx = ones(steps * kBatch, K), want = ones(K + 2, K);
    Array<double> want_scores = ones(1, kBatch);
    for (std::int64_t b = 0; b < kBatch; ++b) {
        const std::int64_t n = lengths[static_cast<std::size_t>(b)];
        if (n == 0) continue;
        const auto e = [&](std::int64_t t, std::int64_t j) {
            return static_cast<double>(x.row(t * kBatch + b)[j]);
        };
        const auto tag = [&](std::int64_t t) { return gold[static_cast<std::size_t>(t * kBatch + b)]; };
        Array<double> ahead(n, K), behind(n, K), top(n, K);
        for (std::int64_t t = 0; t < n; ++t) {
            for (std::int64_t j = 0; j < K; ++j) {
                double sum = t == 0 ? start[j] : kNone, most = sum;
                for (std::int64_t i = 0; t > 0 && i < K; ++i) {
                    sum = log_add(sum, ahead.row(t - 1)[i] + pairs[i * K + j]);
                    most = std::max(most, top.row(t - 1)[i] + pairs[i * K + j]);
                }
                ahead.row(t)[j] = sum + e(t, j), top.row(t)[j] = most + e(t, j);
            }
        }
        double total = kNone, most = kNone;
        for (std::int64_t j = 0; j < K; ++j) {
            behind.row(n - 1)[j] = end[j];
            total = log_add(total, ahead.row(n - 1)[j] + end[j]);
            most = std::max(most, top.row(n - 1)[j] + end[j]);
        }
        for (std::int64_t t = n - 2; t >= 0; --t) {
            for (std::int64_t i = 0; i < K; ++i) {
                double sum = kNone;
                for (std::int64_t j = 0; j < K; ++j) {
                    const double then = pairs[i * K + j] + e(t + 1, j) + behind.row(t + 1)[j];
                    sum = log_add(sum, then);
                    want.row(2 + i)[j] += std::exp(ahead.row(t)[i] + then - total);
                }
                behind.row(t)[i] = sum;
            }
        }
        double score = start[tag(0)] + end[tag(n - 1)];
        double found = start[best[static_cast<std::size_t>(b)]] +
                       end[best[static_cast<std::size_t>((n - 1) * kBatch + b)]];
        for (std::int64_t t = 0; t < n; ++t) {
            const std::int64_t y = best[static_cast<std::size_t>(t * kBatch + b)];
            for (std::int64_t j = 0; j < K; ++j) {
                const double share = std::exp(ahead.row(t)[j] + behind.row(t)[j] - total);
                want_dx.row(t * kBatch + b)[j] += share;
                if (t == 0) want.row(0)[j] += share;
                if (t == n - 1) want.row(1)[j] += share;
            }
            want_dx.row(t * kBatch + b)[tag(t)] -= 1;
            score += e(t, tag(t));
            found += e(t, y);
            if (t == 0) continue;
            want.row(2 + tag(t - 1))[tag(t)] -= 1;
            score += pairs[tag(t - 1) * K + tag(t)];
            found += pairs[best[static_cast<std::size_t>((t - 1) * kBatch + b)] * K + y];
        }
        want.row(0)[tag(0)] -= 1;
        want.row(1)[tag(n - 1)] -= 1;
        want_losses.data()[b] += total - score;
        want_scores.data()[b] += most;
        if (!(std::abs(found - most) <= 1e-10 * (1 + std::abs(most)))) report.fail(name, "best path", found);
    }
    const Digest loss = Digest().add(losses).add(dx).add(dweights), score = Digest().add(scores);
    for (Array<double>* a : {&losses, &dweights, &scores}) {
        for (std::int64_t i = 0; i < a->rows() * a->width(); ++i) a->data()[i] += 1;
    }
    for (std::int64_t i = 0; i < dx.rows() * K; ++i) dx.data()[i] += 1;
    report.compare(name, "losses", narrowed<T>(losses), want_losses);
    report.compare(name, "demissions", dx, want_dx);
    report.compare(name, "dweights", narrowed<T>(dweights), want);
    report.compare(name, "scores", narrowed<T>(scores), want_scores);
    if (!losses.intact() || !dweights.intact()) report.fail(name, "losses: written outside", 0);
    report.done(name, {{"loss", loss}, {"score", score}});
}

}  // namespace

template <class T>
void check_sequences(const LayerTable<T>& layers, Report& report) {
    const SequenceKernels<T>& kernels = *layers.sequence;
    for (const std::int64_t steps : {1, 6, 37}) {
        for (const std::int64_t size : {1, 2, 3, 17, 33}) {
            for (const double scale : {1.0, 600.0}) {
                if (report.next()) check_ctc(kernels, steps, size, size > 8 ? 20 : 3, scale, report);
                if (report.next()) check_crf(kernels, steps, size, scale, report);
            }
            if (steps < 7 && size < 4 && report.next()) check_decode(kernels, steps, size, report);
        }
    }
}

template void check_sequences<float>(const LayerTable<float>&, Report&);
template void check_sequences<double>(const LayerTable<double>&, Report&);

}  // namespace kernel_check
