// Philox4x32-10, a counter-based random generator: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
// The same integers on every device and in every order of evaluation.
#pragma once

#include <cstdint>

#include "simd/simd.h"

namespace fusedrnn::FUSEDRNN_ISA {

// The four words of the block at (block, stream) under the key `seed`.
FUSEDRNN_INLINE void philox(std::uint64_t block, std::uint64_t stream, std::uint64_t seed,
                            std::uint32_t (&words)[4]) {
    std::uint32_t c0 = static_cast<std::uint32_t>(block), c1 = static_cast<std::uint32_t>(block >> 32);
    std::uint32_t c2 = static_cast<std::uint32_t>(stream), c3 = static_cast<std::uint32_t>(stream >> 32);
    std::uint32_t k0 = static_cast<std::uint32_t>(seed), k1 = static_cast<std::uint32_t>(seed >> 32);
#ifndef __CUDACC__  // which does so by itself
#pragma GCC unroll 10
#endif
    for (int round = 0; round < 10; ++round) {
        const std::uint64_t p0 = std::uint64_t{0xD2511F53} * c0, p1 = std::uint64_t{0xCD9E8D57} * c2;
        c0 = static_cast<std::uint32_t>(p1 >> 32) ^ c1 ^ k0;
        c1 = static_cast<std::uint32_t>(p1);
        c2 = static_cast<std::uint32_t>(p0 >> 32) ^ c3 ^ k1;
        c3 = static_cast<std::uint32_t>(p0);
        k0 += 0x9E3779B9;
        k1 += 0xBB67AE85;
    }
    words[0] = c0;
    words[1] = c1;
    words[2] = c2;
    words[3] = c3;
}

}  // namespace fusedrnn::FUSEDRNN_ISA
