// What happens to whole rows between the programs of a step, but for products: as csrc/cpu/row_operations.h, the threads of a
// block sharing a row.
#pragma once

#include "kernels/block_sums.h"
#include "kernels/math.h"
#include "kernels/program_arguments.h"

namespace fusedrnn::cuda {

// Calls visit(place among the row's values, place on the tape) for this thread's elements of a position.
template <class Visit>
FUSEDRNN_DEVICE void for_row(const NormaliseArgs& args, std::int64_t p, Visit visit) {
    for (std::int64_t i = thread_index(); i < args.count * args.H; i += block_threads()) {
        visit(p * args.row + i, (p * args.H + i % args.H) * args.saved_count + i / args.H);
    }
}

// The mean is that of the distances from the row's first value, so that equal values have none; what its rounding leaves is
// corrected by the mean of the distances from it.
template <class C>
FUSEDRNN_KERNEL void normalise(NormaliseArgs args) {
    const std::int64_t p = block_index().x;
    C* const x = static_cast<C*>(args.values);
    const C each = C(1) / static_cast<C>(args.count * args.H), first = load(x + p * args.row);
    C total = 0, rest = 0, square = 0;
    for_row(args, p, [&](std::int64_t i, std::int64_t) { total += load(x + i) - first; });
    const C mean = each * BlockThreads::sum(total);
    for_row(args, p, [&](std::int64_t i, std::int64_t) {
        const C d = load(x + i) - first - mean;
        rest += d;
        square = fused(d, d, square);
    });
    const double left = static_cast<double>(each * BlockThreads::sum(rest));
    const double spread = static_cast<double>(each * BlockThreads::sum(square)) - left * left;
    const double inverse = 1.0 / ::sqrt((spread < 0 ? 0 : spread) + kNormaliseEps);
    const C scale = static_cast<C>(inverse), shift = static_cast<C>(-left * inverse);
    for_row(args, p, [&](std::int64_t i, std::int64_t on_tape) {
        C* const to = args.saved == nullptr ? x + i : static_cast<C*>(args.saved) + on_tape;
        store(to, fused(load(x + i) - first - mean, scale, shift));
    });
    if (args.moments != nullptr && thread_index() == 0) {
        store(static_cast<C*>(args.moments) + p * args.norms, scale);
    }
}

// The adjoint, in place of the gradients g of the normalised values y: rstd (g - mean(g) - y mean(g y)).
template <class T, class C>
FUSEDRNN_KERNEL void normalise_backward(NormaliseArgs args) {
    const std::int64_t p = block_index().x;
    T* const g = static_cast<T*>(args.values);
    const C* const y = static_cast<const C*>(args.saved);
    const C each = C(1) / static_cast<C>(args.count * args.H);
    C total = 0, slope = 0;
    for_row(args, p, [&](std::int64_t i, std::int64_t on_tape) {
        const C d = widen(load(g + i));
        total += d;
        slope = fused(d, load(y + on_tape), slope);
    });
    const C scale = load(static_cast<const C*>(args.moments) + p * args.norms);
    const C minus_mean = -scale * (each * BlockThreads::sum(total));
    const C minus_slope = -scale * (each * BlockThreads::sum(slope));
    for_row(args, p, [&](std::int64_t i, std::int64_t on_tape) {
        const C d = fused(C(widen(load(g + i))), scale, minus_mean);
        store(g + i, narrow<T>(fused(load(y + on_tape), minus_slope, d)));
    });
}

}  // namespace fusedrnn::cuda
