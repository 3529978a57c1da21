// A digest of an array that tells whether it changed: 64 polynomials modulo 2^32 in an odd base, one a lane, so that the
// order matters and any change confined to one element is always seen.
#pragma once

#include <cstdint>

#include "cpu/kernels.h"

namespace fusedrnn::FUSEDRNN_ISA {

inline void fingerprint(const void* data, std::int64_t bytes, Digest& digest) {
    constexpr std::uint32_t kBase = 0x9E3779B1u;
    std::uint32_t lanes[kDigestLanes];
    for (int j = 0; j < kDigestLanes; ++j) lanes[j] = digest.lanes[j];
    const char* p = static_cast<const char*>(data);
    std::uint32_t words[kDigestLanes];
    for (; bytes >= static_cast<std::int64_t>(sizeof words); bytes -= sizeof words, p += sizeof words) {
        __builtin_memcpy(words, p, sizeof words);
        for (int j = 0; j < kDigestLanes; ++j) lanes[j] = lanes[j] * kBase + words[j];
    }
    for (int j = 0; j < kDigestLanes; ++j) words[j] = 0;
    __builtin_memcpy(words, p, static_cast<std::size_t>(bytes));
    for (int j = 0; j < kDigestLanes; ++j) digest.lanes[j] = lanes[j] * kBase + words[j];
}

}  // namespace fusedrnn::FUSEDRNN_ISA
