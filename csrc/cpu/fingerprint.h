// A digest of an array that tells whether it changed: 64 lanes, each of which takes a word by a step that can be undone,
// so that the order matters and any change confined to one element is always seen. The shift brings high bits down: a
// product alone would keep a difference of the exponents, as of weights that were all halved, to the last nine bits.
#pragma once

#include <cstdint>

#include "cpu/kernels.h"

namespace fusedrnn::FUSEDRNN_ISA {

inline std::uint32_t fingerprint_step(std::uint32_t lane, std::uint32_t word) {
    const std::uint32_t mixed = (lane ^ word) * 0x9E3779B1u;
    return mixed ^ mixed >> 15;
}

inline void fingerprint(const void* data, std::int64_t bytes, Digest& digest) {
    std::uint32_t lanes[kDigestLanes];
    for (int j = 0; j < kDigestLanes; ++j) lanes[j] = digest.lanes[j];
    const char* p = static_cast<const char*>(data);
    constexpr std::int64_t kWord = sizeof(std::uint32_t), kBlock = kDigestLanes * kWord;
    for (; bytes >= kBlock; bytes -= kBlock, p += kBlock) {
        // Word by word: a copy of all went through the stack, and took longer than the memory.
        for (int j = 0; j < kDigestLanes; ++j) {
            std::uint32_t word;
            __builtin_memcpy(&word, p + j * kWord, sizeof word);
            lanes[j] = fingerprint_step(lanes[j], word);
        }
    }
    std::uint32_t words[kDigestLanes]{};
    __builtin_memcpy(words, p, static_cast<std::size_t>(bytes));
    for (int j = 0; j < kDigestLanes; ++j) digest.lanes[j] = fingerprint_step(lanes[j], words[j]);
}

}  // namespace fusedrnn::FUSEDRNN_ISA
