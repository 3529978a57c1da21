// The n best paths of a CRF against all of them, and a step of beam searches against a sort.
#include "check.h"

namespace kernel_check {
namespace {

using namespace fusedrnn;

std::string named(const char* type, const char* what, std::int64_t a, std::int64_t b) {
    return std::string(type).append(what).append(std::to_string(a)).append(" ").append(std::to_string(b));
}

template <class T>
void check_nbest(const SequenceKernels<T>& kernels, std::int64_t steps, std::int64_t tags, Report& report) {
    const std::string name = named(type_name<T>(), " crf_nbest ", steps, tags);
    constexpr std::int64_t kBatch = 3, kBest = 40;
    Random random(static_cast<std::uint64_t>(steps * 31 + tags));
    Array<T> emissions(steps * kBatch, tags);
    emissions.fill(random, 3);
    Array<double> start(1, tags), pairs(tags, tags), end(1, tags);
    start.fill(random, 1), pairs.fill(random, 1), end.fill(random, 1);
    if (tags > 1) pairs.row(0)[1] = kNone;
    const std::vector<std::int64_t> lengths{steps, 0, steps / 2 + 1};
    CrfArgs<T> args{};
    args.steps = steps, args.batch = kBatch, args.tags = tags;
    args.emissions = emissions.data(), args.lengths = lengths.data();
    args.start = start.data(), args.transitions = pairs.data(), args.end = end.data();
    std::vector<std::int64_t> got(static_cast<std::size_t>(kBest * steps * kBatch));
    Array<double> scores(kBest, kBatch);
    Team team(1);
    Workspace workspace(kernels.crf_nbest_workspace(steps, tags, kBest, 1));
    kernels.crf_nbest(args, kBest, got.data(), scores.data(), team, workspace.template as<char>());
    const auto score_of = [&](std::int64_t b, const auto& tag) {
        const std::int64_t n = lengths[static_cast<std::size_t>(b)];
        double score = start.data()[tag(0)] + end.data()[tag(n - 1)];
        for (std::int64_t t = 0; t < n; ++t) {
            score += static_cast<double>(emissions.row(t * kBatch + b)[tag(t)]);
            if (t > 0) score += pairs.row(tag(t - 1))[tag(t)];
        }
        return score;
    };
    for (std::int64_t b = 0; b < kBatch; ++b) {
        const std::int64_t n = lengths[static_cast<std::size_t>(b)];
        std::int64_t count = n == 0 ? 0 : 1;
        for (std::int64_t t = 0; t < n; ++t) count *= tags;
        std::vector<double> all(n == 0 ? 1 : 0, 0.0);
        for (std::int64_t path = 0; path < count; ++path) {
            std::vector<std::int64_t> digits;
            for (std::int64_t t = 0, rest = path; t < n; ++t, rest /= tags) digits.push_back(rest % tags);
            const double score =
                score_of(b, [&](std::int64_t t) { return digits[static_cast<std::size_t>(t)]; });
            if (score > kNone) all.push_back(score);
        }
        std::sort(all.rbegin(), all.rend());
        for (std::int64_t i = 0; i < kBest; ++i) {
            const auto rank = static_cast<std::size_t>(i);
            const double want = rank < all.size() ? all[rank] : kNone, found = scores.row(i)[b];
            const auto tag = [&](std::int64_t t) {
                return got[static_cast<std::size_t>((i * steps + t) * kBatch + b)];
            };
            if (want == kNone ? found != kNone : !(std::abs(found - want) <= 1e-9)) {
                report.fail(name, "score", found);
            }
            for (std::int64_t t = want == kNone ? 0 : n; t < steps; ++t) {
                if (tag(t) != -1) report.fail(name, "tag past the end", static_cast<double>(tag(t)));
            }
            if (want > kNone && n > 0 && !(std::abs(score_of(b, tag) - found) <= 1e-9)) {
                report.fail(name, "path", found);
            }
        }
    }
    if (!scores.intact()) report.fail(name, "scores: written outside", 0);
    report.done(name, {{"score", Digest().add(scores)}});
}

template <class T>
void check_beam(const SequenceKernels<T>& kernels, std::int64_t classes, std::int64_t count, Report& report) {
    const std::string name = named(type_name<T>(), " beam_step ", classes, count);
    const std::vector<std::int64_t> first{0, 1, 4, 9};
    const std::int64_t rows = first.back(), groups = 3;
    Random random(static_cast<std::uint64_t>(classes * 7 + count));
    Array<T> logits(rows, classes);
    logits.fill(random, 4);
    logits.row(2)[classes - 1] = static_cast<T>(kNone);
    Array<double> totals(1, rows), scores(groups, count), want(groups, count);
    totals.fill(random, 1);
    std::vector<std::uint8_t> allowed;
    for (std::int64_t i = 0; i < rows * classes; ++i) allowed.push_back(random.below(4) != 0);
    std::vector<std::int64_t> parents(static_cast<std::size_t>(groups * count)), tokens(parents);
    Team team(1);
    Workspace workspace(kernels.beam_workspace(classes, count, 1));
    const BeamArgs<T> args{groups,        classes,       count,         first.data(),
                           logits.data(), totals.data(), allowed.data()};
    kernels.beam_step(args, parents.data(), tokens.data(), scores.data(), team,
                      workspace.template as<char>());
    const auto score_of = [&](std::int64_t r, std::int64_t c) {
        double sum = 0;
        for (std::int64_t k = 0; k < classes; ++k) sum += std::exp(static_cast<double>(logits.row(r)[k]));
        return totals.data()[r] + static_cast<double>(logits.row(r)[c]) - std::log(sum);
    };
    for (std::int64_t g = 0; g < groups; ++g) {
        std::vector<double> all;
        for (std::int64_t r = first[static_cast<std::size_t>(g)]; r < first[static_cast<std::size_t>(g + 1)];
             ++r) {
            for (std::int64_t c = 0; c < classes; ++c) {
                const double score = score_of(r, c);
                if (score > kNone && allowed[static_cast<std::size_t>(r * classes + c)] != 0) {
                    all.push_back(score);
                }
            }
        }
        std::sort(all.rbegin(), all.rend());
        for (std::int64_t k = 0; k < count; ++k) {
            const auto rank = static_cast<std::size_t>(k), at = static_cast<std::size_t>(g * count + k);
            const double expected = rank < all.size() ? all[rank] : kNone, found = scores.row(g)[k];
            const bool none = parents[at] == -1 && tokens[at] == -1 && found == kNone;
            if (expected == kNone ? !none : !(std::abs(found - expected) <= 1e-9)) {
                report.fail(name, "score", found);
            } else if (!none && !(std::abs(score_of(parents[at], tokens[at]) - found) <= 1e-9)) {
                report.fail(name, "continuation", found);
            }
        }
    }
    if (!scores.intact()) report.fail(name, "scores: written outside", 0);
    report.done(name, {{"score", Digest().add(scores)}});
}

}  // namespace

template <class T>
void check_decoding(const LayerTable<T>& layers, Report& report) {
    for (const std::int64_t steps : {1, 5}) {
        for (const std::int64_t tags : {1, 3}) {
            if (report.next()) check_nbest(*layers.sequence, steps, tags, report);
        }
    }
    for (const std::int64_t classes : {1, 5, 33}) {
        for (const std::int64_t count : {2, 60}) {
            if (report.next()) check_beam(*layers.sequence, classes, count, report);
        }
    }
}

template void check_decoding<float>(const LayerTable<float>&, Report&);
template void check_decoding<double>(const LayerTable<double>&, Report&);

}  // namespace kernel_check
