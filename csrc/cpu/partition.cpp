#include "cpu/partition.h"

#include <algorithm>

namespace fusedrnn {
namespace {

// Below this a second thread costs more than it brings: waking it takes 5 to 50 microseconds.
constexpr double kFlopsPerThread = 1.5e6;
// A barrier takes 0.1 to 0.3 microseconds where both threads run; with one row a step of so many operations takes 1.
constexpr double kStepFlopsPerThread = 2.5e4;
constexpr std::int64_t kRowsPerThread = 4;

}  // namespace

Split recurrent_split(const Dims& d, int threads) {
    if (d.projected || d.B >= kRowsPerThread * threads) return Split::kRows;
    return Split::kUnits;
}

int recurrent_threads(const Dims& d, int gates, bool backward) {
    const double step = 2.0 * d.B * gates * d.H * d.P;
    const double total = (step + 2.0 * d.B * gates * d.H * d.I) * d.T * (backward ? 2.0 : 1.0);
    int n = static_cast<int>(std::min<double>(get_num_threads(), total / kFlopsPerThread));
    if (n <= 1) return 1;
    if (recurrent_split(d, n) == Split::kUnits) {
        if (d.B >= 2 * kRowsPerThread) return static_cast<int>(d.B / kRowsPerThread);
        n = static_cast<int>(std::min<double>(n, step / kStepFlopsPerThread));
    }
    return std::max(1, n);
}

int dense_threads(double flops) {
    return static_cast<int>(std::max(1.0, std::min<double>(get_num_threads(), flops / kFlopsPerThread)));
}

Range share(std::int64_t count, int size, int member) {
    return {count * member / size, count * (member + 1) / size};
}

}  // namespace fusedrnn
