// Quantized networks on instruction sets beyond avx512: sums of bytes are exact, so that the bits are those of avx512's kernels.
#include "bindings/timetable.h"
#include "check.h"

namespace kernel_check {
namespace {

using namespace fusedrnn;

struct Call {
    const RecurrentCell& cell;
    Dims d;
    Params<const float> params;
    const Array<float>& x;
};

std::vector<Array<float>> run(const Call& call, const QuantizedKernels& kernels) {
    const Dims& d = call.d;
    Workspace block(kernels.packed_bytes(call.cell, d)),
        workspace(kernels.forward_workspace(call.cell, d, 1));
    QuantizedWeights weights{};
    Team team(1);
    kernels.pack(call.cell, d, call.params, block.as<void>(), weights, team);
    const Timetable timetable(d.T, d.B, nullptr, false);
    std::vector<Array<float>> results{Array<float>(d.T * d.B, d.P)};
    for (int k = 0; k < call.cell.states; ++k) results.emplace_back(d.B, k == 0 ? d.P : d.H);
    ForwardProblem<float> problem{};
    problem.cell = &call.cell;
    problem.dims = d;
    problem.schedule = timetable.view(nullptr);
    problem.weights = weights.packed();
    problem.x = {call.x.data(), d.B * d.I, d.I};
    problem.y = {results[0].data(), d.B * d.P, d.P};
    for (int k = 0; k < call.cell.states; ++k)
        problem.final[k] = results[static_cast<std::size_t>(k + 1)].data();
    kernels.forward(problem, team, workspace.as<void>());
    return results;
}

void check(const RecurrentCell& cell, const Dims& d, Report& report) {
    std::string name = std::string("f32 int8_") + cell.name;
    const std::pair<const char*, std::int64_t> sizes[] = {
        {"T", d.T}, {"B", d.B}, {"I", d.I}, {"H", d.H}, {"P", d.P}};
    for (const auto& [symbol, size] : sizes) name += std::string(" ") + symbol + std::to_string(size);
    Random random(29);
    const auto filled = [&](std::int64_t rows, std::int64_t width, double scale) {
        return Array<float>(rows, width).fill(random, scale);
    };
    const std::int64_t gates = cell.gates * d.H;
    const Array<float> x = filled(d.T * d.B, d.I, 2), w_ih = filled(gates, d.I, 0.5),
                       w_hh = filled(gates, d.P, 0.5), b_ih = filled(1, gates, 0.5),
                       b_hh = filled(1, gates, 0.5), w_hr = filled(d.P, d.H, 0.5);
    const Call call{
        cell,
        d,
        {{w_ih.data(), w_hh.data(), b_ih.data(), b_hh.data(), d.projected ? w_hr.data() : nullptr}},
        x};
    const std::vector<Array<float>> got = run(call, quantized_kernels(cell, kInt8)),
                                    want = run(call, cell.quantized[kInt8]);
    Digest digest;
    for (std::size_t i = 0; i < got.size(); ++i) {
        digest.add(got[i]);
        if (Digest().add(got[i]).value() != Digest().add(want[i]).value())
            report.fail(
                name, i == 0 ? "y has other bits than avx512's" : "a state has other bits than avx512's", 0);
        if (!got[i].intact()) report.fail(name, "written outside", 0);
    }
    report.done(name, {{"y", digest}});
}

}  // namespace

void check_int8(const Kernels& kernels, Report& report) {
    for (const RecurrentCell& cell : kernels.cells) {
        if (cell.quantized == nullptr) continue;
        const bool projects = cell.parameters[cell.place(Role::kProjection)].need != Need::kRefused;
        // Around tiles of 16 rows and columns, of 64 values.
        for (const std::int64_t B : {1, 3, 4, 16, 17, 33}) {
            for (const std::int64_t H : {1, 16, 33, 70}) {
                for (const std::int64_t I : {1, 63, 130}) {
                    if (report.next()) check(cell, {3, B, I, H, H, 0, false}, report);
                }
                if (projects && H > 1 && report.next()) check(cell, {3, B, 9, H, H - 1, 0, true}, report);
            }
        }
    }
}

}  // namespace kernel_check
