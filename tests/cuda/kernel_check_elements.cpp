// What takes elements one by one: every number has to be the one the host computes.
#include "kernel_check.h"
#include "philox.h"

namespace cuda_check {

using namespace fusedrnn::cuda;

namespace {

// Numbers in [-1, 1] and, between them, some halfway between two of 16 bits, which go to the even one, and
// some below the least normal one.
Array<double> numbers(Kind kind, std::int64_t n) {
    Random random(static_cast<std::uint64_t>(n));
    Array<double> x(1, n);
    x.fill(random, 1.0);
    for (std::int64_t i = 0; i < n; ++i) {
        double& value = x.row(0)[i];
        if (i % 5 == 1) value = 1 + static_cast<double>(i % 32) * 0x1p-12;
        if (i % 5 == 2) value = 256 + static_cast<double>(i % 32) * 0.125;
        if (i % 7 == 3) value *= 0x1p-17;
        value = round_to(kind, value);
    }
    return x;
}

void expect_equal(const DeviceArray& got, const Array<double>& want, Report& report) {
    const Array<double> result = got.download();
    for (std::int64_t i = 0; i < want.width(); ++i) {
        const double difference = result.row(0)[i] - want.row(0)[i];
        if (!(difference == 0)) return report.fail("element " + std::to_string(i), difference);
    }
    if (!got.intact()) report.fail("written outside", 0);
}

void check_round(Math math, std::int64_t n, Report& report) {
    report.begin(math, "round N" + std::to_string(n));
    const Array<double> x = numbers(Kind::f32, n);
    const DeviceArray from(Kind::f32, x, 1, 1);
    const DeviceArray to(storage_kind(math), 1, n, 1, 1);
    Launcher(math, nullptr).round(static_cast<const float*>(from.data()), n, to.data());
    Array<double> want(1, n);
    for (std::int64_t i = 0; i < n; ++i) want.row(0)[i] = round_to(storage_kind(math), x.row(0)[i]);
    expect_equal(to, want, report);
}

// grid: blocks, or 0 for as many as the host takes.
void check_dropout(Math math, std::int64_t n, double p, int grid, Report& report) {
    report.begin(math, "dropout N" + std::to_string(n) + " p" + std::to_string(p));
    constexpr std::uint64_t kSeed = 0x123456789ABCDEF, kOffset = 0xFEDCBA987654321;
    const Kind kind = storage_kind(math);
    const Array<double> x = numbers(kind, n);
    const DeviceArray from(kind, x, 1, 1), to(kind, 1, n, 1, 1);
    const double scale = p < 1 ? 1 / (1 - p) : 1;
    const auto threshold = static_cast<std::uint64_t>(p * 4294967296.0 + 0.5);
    const Launcher launcher(math, nullptr);
    if (grid == 0) {
        launcher.dropout(from.data(), n, p, kSeed, kOffset, to.data());
    } else {
        Shape shape;
        shape.grid_x = grid;
        launcher.start(launcher.entries().dropout, shape,
                       DropoutArgs{from.data(), to.data(), n, threshold, kSeed, kOffset, scale});
    }
    Array<double> want(1, n);
    for (std::int64_t i = 0; i < n; ++i) {
        std::uint32_t words[4];
        fusedrnn::FUSEDRNN_ISA::philox(static_cast<std::uint64_t>(i / 4), kOffset, kSeed, words);
        double kept = x.row(0)[i] * scale;
        if (kind != Kind::f64) {
            kept = round_to(kind, static_cast<float>(x.row(0)[i]) * static_cast<float>(scale));
        }
        want.row(0)[i] = words[i % 4] >= threshold ? kept : 0;
    }
    expect_equal(to, want, report);
}

}  // namespace

void check_elements(Report& report) {
    for (int i = 0; i < kMathCount; ++i) {
        const auto math = static_cast<Math>(i);
        for (const std::int64_t n : {1, 5, 1030}) {
            if (storage_bytes(math) == 2 && report.next()) check_round(math, n, report);
            for (const double p : {0.0, 0.3, 1.0}) {
                if (report.next()) check_dropout(math, n, p, 0, report);
            }
        }
        // Threads that take more than one block of four.
        if (report.next()) check_dropout(math, 523, 0.5, 2, report);
    }
}

}  // namespace cuda_check
