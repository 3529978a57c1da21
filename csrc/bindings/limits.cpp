// What one thread of this machine can do at most, measured with the kernels' own instructions.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "bindings/buffer.h"
#include "bindings/run.h"
#include "cpu/kernels.h"
#include "layers/layer_table.h"

namespace fusedrnn {
namespace {

constexpr std::int64_t kKiB = 1024, kMiB = 1024 * kKiB;

// The best of five samples of at least 2 ms.
template <class F>
double seconds_per_call(F&& call) {
    using Clock = std::chrono::steady_clock;
    volatile double sink = call();
    double best = 1e30;
    std::int64_t calls = 1;
    for (int samples = 0; samples < 5;) {
        const auto start = Clock::now();
        for (std::int64_t i = 0; i < calls; ++i) sink = call();
        const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
        if (seconds < 0.002) {
            calls *= 2;
            continue;
        }
        best = std::min(best, seconds / static_cast<double>(calls));
        ++samples;
    }
    static_cast<void>(sink);
    return best;
}

std::int64_t cache_size(int level, std::int64_t otherwise) {
    std::int64_t size = 0;
#if defined(_SC_LEVEL1_DCACHE_SIZE)
    constexpr int kNames[] = {_SC_LEVEL1_DCACHE_SIZE, _SC_LEVEL2_CACHE_SIZE, _SC_LEVEL3_CACHE_SIZE};
    size = sysconf(kNames[level - 1]);
#else
    static_cast<void>(level);
#endif
    return size > 0 ? size : otherwise;
}

struct Limits {
    double gflops, l1, l2, l3, dram, activation_ns;
};

Limits measure() {
    const LayerTable<float>& table = layer_table<float>();
    const std::int64_t l1 = cache_size(1, 32 * kKiB), l2 = cache_size(2, 512 * kKiB),
                       l3 = cache_size(3, 8 * kMiB);
    const std::int64_t dram = std::clamp(2 * l3, 32 * kMiB, 128 * kMiB);
    const AlignedBuffer buffer(dram);
    auto* data = buffer.as<float>();
    std::fill_n(data, dram / 4, 0.5f);

    const auto gigabytes = [&](std::int64_t bytes) {
        bytes = std::min(bytes, dram) / kKiB * kKiB;
        return static_cast<double>(bytes) * 1e-9 /
               seconds_per_call([&] { return table.read(bytes / 4, data); });
    };
    constexpr std::int64_t kRounds = 1000, kUnits = 256;
    Limits limits{};
    limits.gflops = 2e-9 * static_cast<double>(kRounds * table.multiply_adds_per_round) /
                    seconds_per_call([&] { return table.multiply_adds(kRounds, data); });
    limits.l1 = gigabytes(l1 / 2);
    limits.l2 = gigabytes(l2 / 2);
    limits.l3 = gigabytes(std::max(2 * l2, l3 / 4));
    limits.dram = gigabytes(dram);
    limits.activation_ns =
        1e9 / kUnits * seconds_per_call([&] { return table.lstm_pointwise(kUnits, data); });
    return limits;
}

py::dict measure_limits() {
    Limits limits{};
    Team team(1);
    run_released(team, [&] { limits = measure(); });
    py::dict result;
    result["isa"] = kernels().isa;
    result["peak_gflops_f32"] = limits.gflops;
    result["l1_gbs"] = limits.l1;
    result["l2_gbs"] = limits.l2;
    result["l3_gbs"] = limits.l3;
    result["dram_gbs"] = limits.dram;
    result["activation_ns"] = limits.activation_ns;
    return result;
}

}  // namespace

void bind_limits(py::module_& m) {
    m.def("measure_limits", &measure_limits,
          "Measure one thread's peak float32 rate, read bandwidths and time per LSTM unit; below a second.");
}

}  // namespace fusedrnn
