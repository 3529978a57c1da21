#include "cpu/partition.h"

#include <algorithm>

namespace fusedrnn {
namespace {

// Below this a second thread costs more than it brings: waking it takes 5 to 50 microseconds.
constexpr double kFlopsPerThread = 1.5e6;
// A barrier takes 0.1 to 0.3 microseconds where both threads run; with one row a step of so many operations takes 1.
constexpr double kStepFlopsPerThread = 2.5e4;
constexpr std::int64_t kRowsPerThread = 4;
// What a team that splits the rows makes of its members' time; one that splits the units loses a barrier in every step,
// in which one thread would do so many operations.
constexpr double kRowsEfficiency = 0.95, kBarrierFlops = 1.6e4;
// A call that follows another begins this part of the sequence later.
constexpr std::int64_t kFollowingBlocks = 12;

// Calls in bfloat16 that are small enough for a choice take this part of the time of the same in float32: with AMX 1 / 2.5
// at 32 to 64 units, with AVX512_BF16 1 / 2 of its dot product on Zen 4. Of two for each factor, 1 / 1.9 to 1 / 1.1.
constexpr double kBf16Time = 0.5, kBf16x3Time = 0.7;

double compute_time(Compute compute) {
    switch (compute) {
        case Compute::kBf16:
            return kBf16Time;
        case Compute::kBf16x3:
            return kBf16x3Time;
        case Compute::kFloat32:
            break;
    }
    return 1.0;
}

// Operations by the time they take: those of float32 count once.
double products_flops(const Dims& d, int gates, std::int64_t inputs) {
    const double rows = static_cast<double>(d.B * gates * d.H);
    return 2.0 * rows * static_cast<double>(inputs) * compute_time(d.compute);
}

double step_flops(const Dims& d, int gates) { return products_flops(d, gates, d.P); }

double call_flops(const Dims& d, int gates, bool backward) {
    return products_flops(d, gates, d.P + d.I) * static_cast<double>(d.T) * (backward ? 2.0 : 1.0);
}

}  // namespace

Split recurrent_split(const Dims& d, int threads) {
    if (d.projected || d.whole_rows || d.B >= kRowsPerThread * threads) return Split::kRows;
    return Split::kUnits;
}

int recurrent_threads(const Dims& d, int gates, bool backward) {
    const double total = call_flops(d, gates, backward);
    int n = static_cast<int>(std::min<double>(get_num_threads(), total / kFlopsPerThread));
    if (d.whole_rows) n = static_cast<int>(std::min<std::int64_t>(n, d.B));
    if (n <= 1) return 1;
    if (recurrent_split(d, n) == Split::kUnits) {
        if (d.B >= 2 * kRowsPerThread) return static_cast<int>(d.B / kRowsPerThread);
        n = static_cast<int>(std::min<double>(n, step_flops(d, gates) / kStepFlopsPerThread));
    }
    return std::max(1, n);
}

int concurrent_members(const CallCost* calls, int count, bool following) {
    double total = 0, longest = 0, in_turn = 0;
    for (int i = 0; i < count; ++i) {
        const auto& [dims, gates, backward] = calls[i];
        const double flops = call_flops(dims, gates, backward);
        const int team = recurrent_threads(dims, gates, backward);
        total += flops;
        longest = std::max(longest, flops);
        if (team == 1) {
            in_turn += flops;
        } else if (recurrent_split(dims, team) == Split::kRows) {
            in_turn += flops / (team * kRowsEfficiency);
        } else {
            in_turn += flops / team + static_cast<double>(dims.T) * kBarrierFlops;
        }
    }
    const double worth = std::min<double>(count, total / kFlopsPerThread);
    const int members = static_cast<int>(std::min<double>(get_num_threads(), worth));
    if (members <= 1) return 1;
    double at_once = 0;
    for (int m = 0; m < members; ++m) {
        double mine = following ? m * longest / kFollowingBlocks : 0;
        for (int i = m; i < count; i += members) {
            mine += call_flops(calls[i].dims, calls[i].gates, calls[i].backward);
        }
        at_once = std::max(at_once, mine);
    }
    return at_once < in_turn ? members : 1;
}

std::int64_t following_steps(std::int64_t seq_len) {
    return std::max<std::int64_t>(1, seq_len / kFollowingBlocks);
}

int dense_threads(double flops) {
    return static_cast<int>(std::max(1.0, std::min<double>(get_num_threads(), flops / kFlopsPerThread)));
}

Range share(std::int64_t count, int size, int member) {
    return {count * member / size, count * (member + 1) / size};
}

}  // namespace fusedrnn
