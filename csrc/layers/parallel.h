// Loops over a team: one contiguous range for each member. What a range computes never depends on its borders.
#pragma once

#include <cstdint>

#include "cpu/team.h"
#include "simd/simd.h"

namespace fusedrnn::FUSEDRNN_ISA {

// Elements after which a member looks whether the call was cancelled, tens of microseconds of work, and as what that
// counts: a few such blocks, or rows that are longer than one, pass between two looks at the clock.
inline constexpr std::int64_t kBlock = 16384, kBlockWork = std::int64_t{1} << 20;

template <class Body>
struct RangeJob {
    const Body& body;
    int members;
    std::int64_t n, unit;

    static void run(void* context, int member) {
        const RangeJob& job = *static_cast<const RangeJob*>(context);
        const std::int64_t units = (job.n + job.unit - 1) / job.unit;
        const std::int64_t begin = units * member / job.members * job.unit;
        const std::int64_t end = units * (member + 1) / job.members * job.unit;
        if (begin < end) job.body(member, begin, end < job.n ? end : job.n);
    }
};

// body(member, begin, end) once for each member; inner borders are multiples of `unit`.
template <class Body>
void parallel_ranges(Team& team, std::int64_t n, std::int64_t unit, const Body& body) {
    RangeJob<Body> job{body, team.size(), n, unit};
    team.run(RangeJob<Body>::run, &job);
}

// body(begin, end) for blocks of at most `block`, until all are done or the team is cancelled.
template <class Body>
void interruptible_blocks(Team& team, std::int64_t n, std::int64_t block, const Body& body) {
    parallel_ranges(team, n, block, [&](int member, std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end && !team.cancelled(member, kBlockWork); i += block) {
            body(i, end - i < block ? end : i + block);
        }
    });
}

// Rows of `width` elements that make a block.
FUSEDRNN_INLINE std::int64_t rows_per_block(std::int64_t width) {
    return width < kBlock ? kBlock / (width + 1) + 1 : 1;
}

}  // namespace fusedrnn::FUSEDRNN_ISA
