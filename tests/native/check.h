// What every part of kernel_check needs: arrays with guards around them, numbers, digests and the count of
// failures.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "cpu/kernels.h"
#include "layers/layer_table.h"

namespace kernel_check {

using fusedrnn::Compute;
using fusedrnn::Kernels;

// The logarithm of zero, and of a sum.
inline constexpr double kNone = -std::numeric_limits<double>::infinity();
inline double log_add(double a, double b) {
    const double most = std::max(a, b);
    return most == kNone ? kNone : most + std::log1p(std::exp(std::min(a, b) - most));
}

// SplitMix64: the same numbers on every machine.
class Random {
  public:
    explicit Random(std::uint64_t seed) : state_(seed) {}
    std::uint64_t bits() {
        std::uint64_t z = state_ += 0x9E3779B97F4A7C15u;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
        return z ^ (z >> 31);
    }
    // In [-1, 1), a multiple of 2^-23: a float holds it.
    double uniform() { return static_cast<double>(bits() >> 40) / 8388608.0 - 1.0; }
    std::int64_t below(std::int64_t n) {
        return static_cast<std::int64_t>(bits() % static_cast<std::uint64_t>(n));
    }

  private:
    std::uint64_t state_;
};

// Rows of numbers with NaN between and around them: what reads past a row spoils its results, what writes
// there is seen. The first element has the alignment of its type and no more.
template <class T>
class Array {
  public:
    Array() = default;
    Array(std::int64_t rows, std::int64_t width, std::int64_t gap = 0)
        : rows_(rows),
          width_(width),
          stride_(width + gap),
          storage_(static_cast<std::size_t>(rows * stride_ + 2 * kGuard + 1), canary()) {}

    bool given() const { return !storage_.empty(); }
    std::int64_t rows() const { return rows_; }
    std::int64_t width() const { return width_; }
    std::int64_t stride() const { return stride_; }
    T* data() { return given() ? storage_.data() + kGuard + 1 : nullptr; }
    const T* data() const { return given() ? storage_.data() + kGuard + 1 : nullptr; }
    T* row(std::int64_t i) { return data() + i * stride_; }
    const T* row(std::int64_t i) const { return data() + i * stride_; }

    Array& fill(Random& random, double scale) {
        for (std::int64_t i = 0; i < rows_; ++i) {
            for (std::int64_t k = 0; k < width_; ++k) row(i)[k] = static_cast<T>(scale * random.uniform());
        }
        return *this;
    }
    Array& fill(T value) {
        for (std::int64_t i = 0; i < rows_; ++i) std::fill_n(row(i), width_, value);
        return *this;
    }
    // Whether everything outside of the rows is as it was.
    bool intact() const {
        const T expected = canary();
        const std::int64_t first = kGuard + 1, last = first + rows_ * stride_;
        for (std::int64_t i = 0; i < static_cast<std::int64_t>(storage_.size()); ++i) {
            if (i >= first && i < last && (i - first) % stride_ < width_) continue;
            if (std::memcmp(&storage_[static_cast<std::size_t>(i)], &expected, sizeof expected) != 0)
                return false;
        }
        return true;
    }

  private:
    static constexpr std::int64_t kGuard = 32;  // twice the longest vector
    static T canary() { return std::numeric_limits<T>::quiet_NaN(); }

    std::int64_t rows_ = 0, width_ = 0, stride_ = 0;
    std::vector<T> storage_;
};

// Zeroed nowhere: every byte starts as part of a NaN.
class Workspace {
  public:
    explicit Workspace(std::int64_t bytes) : storage_(static_cast<std::size_t>(bytes) + 64, 0xFF) {}
    template <class T>
    T* as() {
        const auto address = reinterpret_cast<std::uintptr_t>(storage_.data());
        return reinterpret_cast<T*>(storage_.data() + (64 - address % 64) % 64);
    }

  private:
    std::vector<unsigned char> storage_;
};

// FNV-1a over the bytes of the rows.
class Digest {
  public:
    template <class T>
    Digest& add(const Array<T>& a) {
        for (std::int64_t i = 0; i < a.rows(); ++i) add(a.row(i), a.width() * std::int64_t{sizeof(T)});
        return *this;
    }
    Digest& add(const void* data, std::int64_t bytes) {
        const auto* p = static_cast<const unsigned char*>(data);
        for (std::int64_t i = 0; i < bytes; ++i) value_ = (value_ ^ p[i]) * 0x100000001B3u;
        return *this;
    }
    std::uint64_t value() const { return value_; }

  private:
    std::uint64_t value_ = 0xCBF29CE484222325u;
};

template <class T>
constexpr const char* type_name() {
    return sizeof(T) == 4 ? "f32" : "f64";
}
// To the nearest bfloat16, ties to even.
inline double to_bf16(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000u;
    std::memcpy(&value, &bits, sizeof value);
    return static_cast<double>(value);
}

// a b as a product of kernels takes it.
inline double term(double a, double b, Compute compute) {
    if (compute == Compute::kFloat32) return a * b;
    const float wide[2] = {static_cast<float>(a), static_cast<float>(b)};
    const double first[2] = {to_bf16(wide[0]), to_bf16(wide[1])};
    if (compute == Compute::kBf16) return first[0] * first[1];
    const auto rest = [&](int i) {
        return to_bf16(static_cast<float>(static_cast<double>(wide[i]) - first[i]));
    };
    return first[0] * first[1] + rest(0) * first[1] + first[0] * rest(1);
}
inline const char* compute_name(Compute compute) { return compute == Compute::kBf16 ? "bf16" : "bf16x3"; }

// ||got - want|| / ||want||: the tolerances of tests/tolerances.py.
template <class T>
constexpr double tolerance() {
    return sizeof(T) == 4 ? 1e-5 : 1e-10;
}

class Report {
  public:
    // Runs every `every`-th case only.
    explicit Report(int every) : every_(every) {}

    // For results of float instead of tolerance().
    void set_tolerance(double value) { f32_tolerance_ = value; }
    bool sampled() const { return every_ > 1; }
    // Whether to run the next case.
    bool next() { return seen_++ % every_ == 0; }
    void fail(const std::string& name, const char* what, double error) {
        ++failures_;
        std::printf("FAILED %s: %s: %.3g\n", name.c_str(), what, error);
    }
    // `digests`: "label=hex" for each group of results, in one line that two runs may be compared by.
    void done(const std::string& name, const std::vector<std::pair<const char*, Digest>>& digests) {
        ++cases_;
        std::printf("%s:", name.c_str());
        for (const auto& [label, digest] : digests) {
            std::printf(" %s=%016llx", label, static_cast<unsigned long long>(digest.value()));
        }
        std::printf("\n");
    }
    int cases() const { return cases_; }
    int failures() const { return failures_; }

    // `got` is near to `want` and nothing was written around it. All zero is all zero.
    template <class T>
    void compare(const std::string& name, const char* what, const Array<T>& got, const Array<double>& want) {
        double difference = 0, scale = 0;
        for (std::int64_t i = 0; i < want.rows(); ++i) {
            for (std::int64_t k = 0; k < want.width(); ++k) {
                const double w = want.row(i)[k], d = static_cast<double>(got.row(i)[k]) - w;
                difference += d * d;
                scale += w * w;
            }
        }
        const double error = difference == 0 ? 0 : std::sqrt(difference / scale);
        if (!(error <= (sizeof(T) == 4 ? f32_tolerance_ : tolerance<T>()))) fail(name, what, error);
        if (!got.intact()) fail(name, (std::string(what) + ": written outside").c_str(), 0);
    }

  private:
    int every_, cases_ = 0, failures_ = 0;
    double f32_tolerance_ = tolerance<float>();
    std::int64_t seen_ = 0;
};

template <class T>
void check_cells(const Kernels& kernels, int lanes, Report& report, Compute compute = Compute::kFloat32);
void check_bf16(const Kernels& kernels, Compute compute, Report& report);
void check_int8(const Kernels& kernels, Report& report);
template <class T>
void check_programs(const fusedrnn::KernelTable<T>& table, const fusedrnn::LayerTable<T>& layers,
                    Report& report);
template <class T>
void check_activations(const fusedrnn::LayerTable<T>& layers, Report& report);
template <class T>
void check_layers(const fusedrnn::KernelTable<T>& table, const fusedrnn::LayerTable<T>& layers,
                  Report& report);
template <class T>
void check_sequences(const fusedrnn::LayerTable<T>& layers, Report& report);
template <class T>
void check_decoding(const fusedrnn::LayerTable<T>& layers, Report& report);
template <class T>
void check_transducers(const fusedrnn::LayerTable<T>& layers, Report& report);
template <class T>
void check_decoders(const fusedrnn::DecoderKernels<T>& kernels, Report& report,
                    Compute compute = Compute::kFloat32);
template <class T>
void check_searches(const fusedrnn::DecoderKernels<T>& kernels, Report& report,
                    Compute compute = Compute::kFloat32);
template <class T>
void check_quantum(const fusedrnn::LayerTable<T>& layers, Report& report);

}  // namespace kernel_check
