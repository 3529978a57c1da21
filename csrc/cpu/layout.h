// Small pieces that the drivers share: rounding to lanes, loads and stores of a partial vector, an arena.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/partition.h"
#include "simd/simd.h"

namespace fusedrnn::FUSEDRNN_ISA {

template <class T>
constexpr std::int64_t panels_of(std::int64_t n) {
    return (n + Vec<T>::kLanes - 1) / Vec<T>::kLanes;
}
template <class T>
constexpr std::int64_t padded(std::int64_t n) {
    return panels_of<T>(n) * Vec<T>::kLanes;
}
// That the last panel has of n.
template <class T>
constexpr std::int64_t last_units(std::int64_t n) {
    return n - (panels_of<T>(n) - 1) * Vec<T>::kLanes;
}
FUSEDRNN_INLINE std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
FUSEDRNN_INLINE std::int64_t larger(std::int64_t a, std::int64_t b) { return a > b ? a : b; }

// The first n lanes of a row that ends there; n may exceed the lanes.
template <class T>
FUSEDRNN_INLINE Vec<T> load_part(const T* p, std::int64_t n) {
    return n >= Vec<T>::kLanes ? Vec<T>::load(p) : Vec<T>::load_n(p, static_cast<int>(n));
}
template <class T>
FUSEDRNN_INLINE void store_part(Vec<T> v, T* p, std::int64_t n) {
    if (n >= Vec<T>::kLanes) {
        v.store(p);
    } else {
        v.store_n(p, static_cast<int>(n));
    }
}
// A full vector whose lanes from n on are zero.
template <class T>
FUSEDRNN_INLINE void store_padded(Vec<T> v, T* p, std::int64_t n) {
    if (n >= Vec<T>::kLanes) {
        v.store(p);
    } else {
        Vec<T>::set(0).store(p);
        v.store_n(p, static_cast<int>(n));
    }
}

// Has the lines of n elements brought near; may point anywhere. For lines too far apart for the hardware to foresee. A
// function of nothing else has to be inline: GCC takes it for one without effects and drops its call.
template <class T>
FUSEDRNN_INLINE void prefetch(const T* from, std::int64_t n) {
    constexpr std::uintptr_t kLine = 64;
    const std::uintptr_t first = reinterpret_cast<std::uintptr_t>(from) & ~(kLine - 1);
    const std::uintptr_t end = reinterpret_cast<std::uintptr_t>(from + n);
    for (std::uintptr_t line = first; line < end; line += kLine) {
        __builtin_prefetch(reinterpret_cast<const void*>(line), 0, 2);
    }
}

template <class T>
FUSEDRNN_INLINE void copy(const T* from, T* to, std::int64_t n) {
    for (std::int64_t i = 0; i < n; ++i) to[i] = from[i];
}
template <class T>
FUSEDRNN_INLINE void fill_zero(T* to, std::int64_t n) {
    for (std::int64_t i = 0; i < n; ++i) to[i] = T(0);
}
// `from` null reads as zeros.
template <class T>
FUSEDRNN_INLINE void copy_or_zero(const T* from, T* to, std::int64_t n) {
    if (from == nullptr) {
        fill_zero(to, n);
    } else if (from != to) {
        copy(from, to, n);
    }
}

// Panels in equal groups of `at_once` or fewer, backwards on demand: where every other pass over weights goes backwards,
// it begins with those that the caches still hold from the pass before.
class PanelGroups {
  public:
    PanelGroups(std::int64_t panels, std::int64_t at_once, bool backwards)
        : panels_(panels), count_((panels + at_once - 1) / at_once), backwards_(backwards) {}
    std::int64_t count() const { return count_; }
    Range operator[](std::int64_t q) const {
        if (count_ == 1) return {0, panels_};
        if (backwards_) q = count_ - 1 - q;
        return {panels_ * q / count_, panels_ * (q + 1) / count_};
    }

  private:
    std::int64_t panels_, count_;
    bool backwards_;
};

// Hands out 64-byte aligned pieces of one block. On a null base it only counts, so that one function both sizes a
// workspace and lays it out.
class Arena {
  public:
    explicit Arena(void* base) : base_(static_cast<std::byte*>(base)) {}
    template <class U>
    U* take(std::int64_t n) {
        std::byte* p = base_ + used_;
        used_ += (n * static_cast<std::int64_t>(sizeof(U)) + 63) / 64 * 64;
        return base_ == nullptr ? nullptr : reinterpret_cast<U*>(p);
    }
    std::int64_t used() const { return used_; }

  private:
    std::byte* base_;
    std::int64_t used_ = 0;
};

}  // namespace fusedrnn::FUSEDRNN_ISA
