// Loops that are bound by one thing each, to measure what the machine can do at most.
#pragma once

#include "cells/lstm.h"
#include "simd/simd.h"

namespace fusedrnn::FUSEDRNN_ISA {

inline constexpr int kChains =
    12;  // independent multiply-adds: their latency times the units that execute them
inline constexpr int kRepeats = 8;

// Bound by the multiply-add units: no memory, no dependence between the chains.
template <class T>
double multiply_adds(std::int64_t rounds, const T* values) {
    using V = Vec<T>;
    V factor = V::load(values);
    V acc[kChains];
    for (int k = 0; k < kChains; ++k) acc[k] = V::set(static_cast<T>(k));
    for (std::int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 8
        for (int r = 0; r < kRepeats; ++r) {
#pragma GCC unroll 12
            for (int k = 0; k < kChains; ++k) acc[k] = fma(acc[k], factor, factor);
        }
    }
    V total = acc[0];
    for (int k = 1; k < kChains; ++k) total = total + acc[k];
    return static_cast<double>(sum(total));
}

// Bound by loads.
template <class T>
double read(std::int64_t n, const T* x) {
    using V = Vec<T>;
    constexpr int L = V::kLanes, kStep = 8 * L;
    V acc[8];
    for (V& a : acc) a = V::set(0);
    for (std::int64_t i = 0; i + kStep <= n; i += kStep) {
#pragma GCC unroll 8
        for (int k = 0; k < 8; ++k) acc[k] = acc[k] + V::load(x + i + k * L);
    }
    V total = acc[0];
    for (int k = 1; k < 8; ++k) total = total + acc[k];
    return static_cast<double>(sum(total));
}

// The pointwise part of one LSTM step, from gates in memory.
template <class T>
double lstm_pointwise(std::int64_t units, T* block) {
    using V = Vec<T>;
    T* c = block + 4 * units;
    T* h = block + 5 * units;
    for (std::int64_t u = 0; u + V::kLanes <= units; u += V::kLanes) {
        const V a[4] = {V::load(block + u), V::load(block + units + u), V::load(block + 2 * units + u),
                        V::load(block + 3 * units + u)};
        const V s[2] = {V::load(h + u), V::load(c + u)};
        V next[2], saved[4];
        Lstm::forward(a, s, next, saved);
        next[0].store(h + u);
        next[1].store(c + u);
    }
    return static_cast<double>(h[0]);
}

}  // namespace fusedrnn::FUSEDRNN_ISA
