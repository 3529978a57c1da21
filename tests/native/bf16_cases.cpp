// Kernels whose products take bfloat16. Where each factor is one, the reference rounds it as the kernels do: a dense layer's are
// what the caller gives; within a cell they are results, of which one in thousands may be rounded the other way. Where each is
// two, that is of the size of float32's own errors.
#include "check.h"
#include "cpu/partition.h"
#include "cpu/team.h"

namespace kernel_check {
namespace {

using namespace fusedrnn;

constexpr double kCellTolerance = 2e-3, kPartsTolerance = 2e-5;

void check_linear(const DenseKernels<float>& kernels, Compute compute, std::int64_t n, std::int64_t in,
                  std::int64_t out, Report& report) {
    const std::string name = std::string(compute_name(compute)) + " linear N" + std::to_string(n) + " I" +
                             std::to_string(in) + " O" + std::to_string(out);
    Random random(17);
    const auto filled = [&](std::int64_t rows, std::int64_t width) {
        return Array<float>(rows, width).fill(random, 1);
    };
    const Array<float> x = filled(n, in), w = filled(out, in), b = filled(1, out), dy = filled(n, out);
    Array<float> y(n, out), dx(n, in), dw = filled(out, in), db = filled(1, out);
    const auto product = [&](float a, float b) {
        return term(static_cast<double>(a), static_cast<double>(b), compute);
    };
    Array<double> want_y(n, out), want_dx = Array<double>(n, in).fill(0.0), want_dw(out, in), want_db(1, out);
    for (std::int64_t o = 0; o < out; ++o) {
        want_db.data()[o] = static_cast<double>(db.data()[o]);
        for (std::int64_t k = 0; k < in; ++k) want_dw.row(o)[k] = static_cast<double>(dw.row(o)[k]);
    }
    for (std::int64_t i = 0; i < n; ++i) {
        for (std::int64_t o = 0; o < out; ++o) {
            double total = static_cast<double>(b.data()[o]);
            for (std::int64_t k = 0; k < in; ++k) {
                total += product(x.row(i)[k], w.row(o)[k]);
                want_dx.row(i)[k] += product(dy.row(i)[o], w.row(o)[k]);
                want_dw.row(o)[k] += product(dy.row(i)[o], x.row(i)[k]);
            }
            want_y.row(i)[o] = total;
            want_db.data()[o] += static_cast<double>(dy.row(i)[o]);  // a sum, no product
        }
    }
    Team team(1);
    Workspace workspace(kernels.linear_workspace(n, in, out, 1));
    kernels.linear_forward(n, in, out, x.data(), w.data(), b.data(), y.data(), team, workspace.as<void>());
    kernels.linear_backward(n, in, out, x.data(), w.data(), dy.data(), dx.data(), dw.data(), db.data(), team,
                            workspace.as<void>());
    report.compare(name, "y", y, want_y);
    report.compare(name, "dx", dx, want_dx);
    report.compare(name, "dweight", dw, want_dw);
    report.compare(name, "dbias", db, want_db);
    report.done(name, {{"y", Digest().add(y)}, {"dx", Digest().add(dx)}, {"dw", Digest().add(dw).add(db)}});
}

// A team by the time that work takes: of a call in bfloat16 as of half the steps in float32.
void check_threads(Report& report) {
    const int before = get_num_threads();
    set_num_threads(8);
    for (const std::int64_t B : {1, 5, 9, 32, 64}) {
        for (const std::int64_t H : {16, 33, 64, 200, 1024}) {
            for (const std::int64_t T_ : {1, 3, 8, 50}) {
                // Where rows are shared, steps make the call; where units are, a step counts itself.
                Dims d{2 * T_, B, H, H, H, 0, false}, half{T_, B, H, H, H, 0, false};
                d.compute = Compute::kBf16;
                for (const bool backward : {false, true}) {
                    const int got = recurrent_threads(d, 4, backward),
                              most = recurrent_threads(half, 4, backward);
                    const bool rows = recurrent_split(half, most) == Split::kRows;
                    if (rows && most > 1 ? got != most : got > most) report.fail("threads", "of bf16", got);
                }
            }
        }
    }
    Dims d{4, 16, 64, 64, 64, 0, false};
    const int in_float32 = recurrent_threads(d, 4, false);
    d.compute = Compute::kBf16;
    const int in_bf16 = recurrent_threads(d, 4, false);
    if (in_float32 != 2 || in_bf16 != 1) report.fail("threads", "of a short call", in_bf16);
    set_num_threads(before);
}

}  // namespace

void check_bf16(const Kernels& kernels, Compute compute, Report& report) {
    const KernelTable<float>& table = *bf16_kernels(compute).table;
    // Around tiles of 16 rows and columns, of 32 values, and around what is rounded at a time.
    for (const std::int64_t n : {1, 5, 16, 17, 33, 48, 64, 70}) {
        for (const std::int64_t in : {1, 15, 16, 31, 33, 64, 300}) {
            if (report.next()) check_linear(table.dense, compute, n, in, (in + n) % 40 + 1, report);
        }
    }
    for (const std::int64_t n : {40, 520}) {
        if (!report.sampled()) check_linear(table.dense, compute, n, 550, 530, report);
    }
    std::vector<RecurrentCell> cells;
    for (const RecurrentCell& cell : kernels.cells) cells.push_back(*bf16_cell(cell, compute));
    Kernels rounding = kernels;
    rounding.cells = {cells.data(), static_cast<int>(cells.size())};
    report.set_tolerance(compute == Compute::kBf16 ? kCellTolerance : kPartsTolerance);
    check_cells<float>(rounding, table.lanes, report, compute);
    for (const RecurrentCell& cell : cells) {
        if (cell.compute != compute) report.fail("cells", "of bf16", 0);
    }
    check_threads(report);
    check_decoders(*bf16_kernels(compute).decoder, report, compute);
    check_searches(*bf16_kernels(compute).decoder, report, compute);
}

}  // namespace kernel_check
