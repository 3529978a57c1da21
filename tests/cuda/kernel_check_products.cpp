// The products of matrices by themselves: every layout at sizes around the tiles, cut along K, with rows that
// do and do not start at multiples of 16 bytes.
#include <cmath>

#include "kernel_check.h"

namespace cuda_check {

using namespace fusedrnn::cuda;

namespace {

struct Sizes {
    std::int64_t m, n, k;
};

struct Case {
    Math math;
    Layout layout;
    Sizes size;
    bool vector, bias, accumulate;
};

Array<double> random_array(Random& random, Kind kind, std::int64_t rows, std::int64_t width) {
    Array<double> a(rows, width);
    a.fill(random, 1.0);
    for (std::int64_t i = 0; i < rows; ++i) {
        for (std::int64_t k = 0; k < width; ++k) a.row(i)[k] = round_to(kind, a.row(i)[k]);
    }
    return a;
}

void run_case(const Case& c, std::uint64_t seed, Report& report) {
    constexpr const char* kNames[] = {"NT", "NN", "TN"};
    const auto [m, n, k] = c.size;
    report.begin(c.math, std::string("gemm ") + kNames[static_cast<int>(c.layout)] + " M" +
                             std::to_string(m) + " N" + std::to_string(n) + " K" + std::to_string(k) +
                             (c.vector ? " vector" : "") + (c.bias ? " bias" : "") +
                             (c.accumulate ? " accumulate" : ""));
    emulator::Config config;
    config.seed = seed;
    emulator::set_config(config);
    const Kind kind = storage_kind(c.math), result = c.layout == Layout::kNN ? kind : compute_kind(c.math);
    const bool a_last = c.layout != Layout::kTN, b_last = c.layout == Layout::kNT;
    Random random(seed);
    const Array<double> a = random_array(random, kind, a_last ? m : k, a_last ? k : m),
                        b = random_array(random, kind, b_last ? n : k, b_last ? k : n),
                        bias = random_array(random, kind, 2, n);
    Array<double> want = random_array(random, result, m, n);
    const std::int64_t a_width = a.width(), b_width = b.width();
    // Rows of whole pieces, or an odd number of elements apart from an odd place on.
    const auto gap = [&](std::int64_t width) { return c.vector ? (16 - width % 16) % 16 : 1; };
    const std::int64_t lead = c.vector ? 0 : 1;
    const DeviceArray da(kind, a, gap(a_width), lead), db(kind, b, gap(b_width), lead),
        dbias(kind, bias, 1, lead), dc(result, want, 2, lead);
    for (std::int64_t i = 0; i < m; ++i) {
        for (std::int64_t j = 0; j < n; ++j) {
            double sum = c.accumulate ? want.row(i)[j] : 0;
            if (c.bias) sum += bias.row(0)[j] + bias.row(1)[j];
            for (std::int64_t e = 0; e < k; ++e) {
                sum += (a_last ? a.row(i)[e] : a.row(e)[i]) * (b_last ? b.row(j)[e] : b.row(e)[j]);
            }
            want.row(i)[j] = sum;
        }
    }
    const Launcher launcher(c.math, nullptr);
    const DeviceBlock partial(launcher.partial_bytes(m, n, k));
    Product product{};
    product.layout = c.layout;
    product.m = m, product.n = n, product.k = k;
    product.a = {da.data(), da.stride()};
    product.b = {db.data(), db.stride()};
    product.c = dc.data();
    product.c_stride = dc.stride();
    if (c.bias) {
        product.bias[0] = dbias.data();
        product.bias[1] = static_cast<char*>(dbias.data()) + dbias.stride() * storage_bytes(c.math);
    }
    product.accumulate = c.accumulate;
    launcher.multiply(product, partial.data());
    report.compare("product", dc, want, false);
}

}  // namespace

void check_products(Report& report) {
    std::uint64_t seed = 0;
    for (int i = 0; i < kMathCount; ++i) {
        for (int layout = 0; layout < kLayoutCount; ++layout) {
            const auto run = [&](Sizes size, bool vector) {
                ++seed;
                const bool bias = layout != static_cast<int>(Layout::kTN) && seed % 2 == 0;
                if (!report.next()) return;
                run_case(
                    {static_cast<Math>(i), static_cast<Layout>(layout), size, vector, bias, seed % 3 == 0},
                    seed, report);
            };
            for (const Sizes& size : {Sizes{1, 1, 1}, {5, 7, 3}, {17, 33, 20}, {16, 24, 64}, {3, 5, 0}}) {
                run(size, false);
                run(size, true);
            }
            run({129, 20, 40}, true);   // more than one tile of rows
            run({20, 130, 70}, false);  // and of columns
            run({9, 10, 700}, true);    // more than one slice of K
            run({9, 10, 523}, false);
        }
    }
}

}  // namespace cuda_check
