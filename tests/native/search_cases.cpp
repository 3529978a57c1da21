// Beam searches of a decoder against all sequences of tokens, and of one hypothesis against the likeliest token of every step.
#include "decoder_case.h"

namespace kernel_check {
namespace {

constexpr std::int64_t kClasses = 4, kMost = 3, kBos = 1, kEos = 2, kCodes = 64;  // classes^most
constexpr double kDivisors[kMost] = {1, 1.3, 1.7};

struct Found {
    double score;
    std::vector<std::int64_t> tokens;
    bool operator<(const Found& other) const { return score > other.score; }
};
std::int64_t digit(std::int64_t code, std::int64_t t) {
    while (t-- > 0) code /= kClasses;
    return code % kClasses;
}

// The log probabilities of a sequence's tokens, step by step: [code][batch][step][token]. Those of a step depend on the tokens
// before it alone.
using LogProbabilities = std::vector<std::vector<std::vector<Row>>>;
template <class T>
LogProbabilities log_probabilities(const DecoderCase<T>& own, const Array<T>& table, const Row& head,
                                   const Row& bias) {
    DecoderProblem p = own.p;
    const DecoderSizes& d = p.d;
    std::fill(p.lengths.begin(), p.lengths.end(), d.T);
    LogProbabilities all;
    for (std::int64_t code = 0; code < kCodes; ++code) {
        Values values = own.values;
        for (std::int64_t i = 0; i < d.T * d.B; ++i) {
            const T* const input = table.row(i < d.B ? kBos : digit(code, i / d.B - 1));
            std::copy_n(input, d.I, values[kX].begin() + i * d.I);
        }
        const Row y = reference(p, values);
        all.emplace_back();
        for (std::int64_t b = 0; b < d.B; ++b) {
            all.back().emplace_back();
            for (std::int64_t t = 0; t < d.T; ++t) {
                Row logits = bias;
                multiply(head, 0, d.H, part(y, (t * d.B + b) * d.H, d.H), logits, p.compute);
                double sum = kNone;
                for (const double logit : logits) sum = log_add(sum, logit);
                for (double& logit : logits) logit -= sum;
                all.back().back().push_back(logits);
            }
        }
    }
    return all;
}

// All sequences that end, the best first.
std::vector<Found> sequences(const LogProbabilities& all, std::size_t b) {
    std::vector<Found> found;
    for (std::int64_t code = 0; code < kCodes; ++code) {
        Found one{0, {}};
        double total = 0;
        for (std::int64_t t = 0; t < kMost; ++t) {
            const auto step = static_cast<std::size_t>(t);
            one.tokens.push_back(digit(code, t));
            total += all[static_cast<std::size_t>(code)][b][step][static_cast<std::size_t>(digit(code, t))];
            one.score = total / kDivisors[t];
            std::int64_t rest = 0;  // another code has the same tokens so far
            for (std::int64_t k = t + 1; k < kMost; ++k) rest += digit(code, k);
            const bool ends = digit(code, t) == kEos;
            if (rest == 0 && (ends || t + 1 == kMost)) found.push_back(one);
            if (ends) break;
        }
    }
    std::sort(found.begin(), found.end());
    return found;
}

Found likeliest(const LogProbabilities& all, std::size_t b) {
    Found found{0, {}};
    double total = 0;
    for (std::int64_t t = 0, code = 0, place = 1; t < kMost; ++t, place *= kClasses) {
        const Row& step = all[static_cast<std::size_t>(code)][b][static_cast<std::size_t>(t)];
        const std::int64_t token = std::max_element(step.begin(), step.end()) - step.begin();
        code += token * place;
        total += step[static_cast<std::size_t>(token)];
        found.tokens.push_back(token);
        found.score = total / kDivisors[t];
        if (token == kEos) break;
    }
    return found;
}

template <class T>
void check_search(const DecoderKernels<T>& kernels, const DecoderProblem& problem, bool projected,
                  Report& report) {
    DecoderCase<T> own(
        kernels, problem,
        std::string(problem.d.current ? "luong" : "previous") + " search" + (projected ? ", projected" : ""));
    const DecoderSizes& d = own.p.d;
    const auto at = [](std::int64_t i) { return static_cast<std::size_t>(i); };
    Array<T> table(kClasses, d.I), weight(1, kClasses * d.H), bias(1, kClasses);
    table.fill(own.random, 1), weight.fill(own.random, 1), bias.fill(own.random, 1);
    DecoderSearchArgs<T> args{};
    args.decoder = own.args;
    DecoderSizes& sizes = args.decoder.sizes;
    sizes.T = 1, sizes.classes = kClasses;
    sizes.table = projected ? kClasses : 0,
    sizes.contexts = projected && !d.current && own.p.compute == Compute::kFloat32;
    Workspace head(kernels.head_bytes(sizes)), projections(kernels.projection_bytes(sizes)),
        room(kernels.workspace(sizes, 1));
    kernels.pack_head(sizes, weight.data(), bias.data(), head.template as<char>(), own.team);
    args.decoder.projections = projections.template as<char>();
    if (projected) kernels.project(args.decoder, table.data(), own.team, room.template as<char>());
    args.head = head.template as<char>(), args.table = table.data();
    args.sequences = d.B, args.most = kMost, args.bos = kBos, args.eos = kEos, args.divisors = kDivisors;
    args.memory_first = own.p.first_by_batch.data(), args.memory_lengths = own.p.by_batch.data();
    const LogProbabilities all =
        log_probabilities(own, table, Row(weight.data(), weight.data() + weight.width()),
                          Row(bias.data(), bias.data() + bias.width()));
    const double allowed = own.p.compute == Compute::kBf16 ? 2e-3 : sizeof(T) == 4 ? 1e-5 : 1e-10;
    Digest digest;
    const auto search = [&](std::int64_t beam, std::int64_t best, const auto& wanted) {
        args.beam = beam, args.best = best;
        std::vector<std::int64_t> tokens(at(d.B * best * kMost), -1), lengths(at(d.B * best)),
            longest(at(d.B)), failed(at(d.B));
        Array<double> scores(d.B, best);
        args.tokens = tokens.data(), args.lengths = lengths.data(), args.scores = scores.data();
        args.longest = longest.data(), args.failed = failed.data();
        Workspace workspace(kernels.search_workspace(args, 1));
        kernels.search(args, own.team, workspace.template as<char>());
        for (std::int64_t b = 0; b < d.B; ++b) {
            const std::vector<Found> want = wanted(at(b));
            if (failed[at(b)] != -1) report.fail(own.name, "failed", static_cast<double>(failed[at(b)]));
            for (std::int64_t k = 0; k < best; ++k) {
                const double score = scores.row(b)[k];
                if (!(std::abs(score - want[at(k)].score) <= allowed)) report.fail(own.name, "score", score);
                // Nearly equal ones may change places: its tokens have to be worth its score.
                const std::int64_t* const mine = tokens.data() + (b * best + k) * kMost;
                const bool same = std::any_of(want.begin(), want.end(), [&](const Found& one) {
                    return std::abs(one.score - score) <= allowed &&
                           std::equal(one.tokens.begin(), one.tokens.end(), mine) &&
                           lengths[at(b * best + k)] ==
                               static_cast<std::int64_t>(one.tokens.size()) - (one.tokens.back() == kEos);
                });
                if (!same) report.fail(own.name, "tokens", static_cast<double>(k));
            }
        }
        if (!scores.intact()) report.fail(own.name, "scores: written outside", 0);
        digest.add(scores);
    };
    search(kCodes, 7, [&](std::size_t b) { return sequences(all, b); });
    search(1, 1, [&](std::size_t b) { return std::vector<Found>{likeliest(all, b)}; });
    report.done(own.name, {{"scores", digest}});
}

}  // namespace

template <class T>
void check_searches(const DecoderKernels<T>& kernels, Report& report, Compute compute) {
    for (const bool projected : {false, true}) {
        for (const bool current : {false, true}) {
            if (!report.next()) continue;
            DecoderProblem p{};
            p.compute = compute;
            p.d.cell = kGru, p.d.score = current ? Score::kGeneral : Score::kAdditive;
            p.d.current = p.d.feeds = current;
            p.d.T = kMost, p.d.B = 5, p.d.S = 9, p.d.I = 3, p.d.M = 5, p.d.H = 18;
            p.d.A = current ? p.d.H : 7;
            check_search(kernels, p, projected, report);
        }
    }
}

template void check_searches<float>(const DecoderKernels<float>&, Report&, Compute);
template void check_searches<double>(const DecoderKernels<double>&, Report&, Compute);

}  // namespace kernel_check
