// One step of beam searches side by side. Everything is checked before anything is written.
#include <cstdint>
#include <tuple>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "bindings/run.h"
#include "bindings/sequence.h"
#include "layers/layer_table.h"

namespace fusedrnn {
namespace {

std::tuple<py::array, py::array, py::array> beam_step(const py::object& logits_, const py::object& totals_,
                                                      const py::object& rows_, const py::object& allowed_,
                                                      const py::object& count_) {
    const Array logits = Array::floats(logits_, "logits").shape({{"N"}, {"V"}}).contiguous();
    const std::int64_t n = logits.size(0), classes = logits.size(1);
    const Array totals = Array::floats(totals_, "totals").shape({{"N", n}}).contiguous();
    if (totals.dtype() != DType::float64) {
        throw py::type_error("totals: expected a float64 numpy.ndarray, got float32");
    }
    const Array rows = Array::int64(rows_, "rows").shape({{"N", n}}).contiguous();
    const auto* const row = rows.data<std::int64_t>();
    std::vector<std::int64_t> first;
    std::int64_t most = 0;
    for (std::int64_t i = 0; i < n; ++i) {
        if (i > 0 && row[i] < row[i - 1]) throw py::value_error("rows: expected numbers in order");
        if (i == 0 || row[i] != row[i - 1]) first.push_back(i);
        most = std::max(most, i + 1 - first.back());
    }
    const auto groups = static_cast<std::int64_t>(first.size());
    first.push_back(n);
    require(checked_product({most, classes}) <= INT32_MAX, "logits",
            "fewer continuations of a sequence than 2^31",
            static_cast<double>(most) * static_cast<double>(classes));
    const std::int64_t count = integer(count_, "count", 1, INT32_MAX);
    const Array allowed =
        Array::boolean(allowed_, "allowed", kOptional).shape({{"N", n}, {"V", classes}}).contiguous();
    py::array parents = new_array(DType::int64, {groups, count});
    py::array tokens = new_array(DType::int64, {groups, count});
    py::array scores = new_array(DType::float64, {groups, count});
    by_dtype(logits.dtype(), [&]<class T>() {
        if (groups == 0) return;
        const SequenceKernels<T>& kernels = *layer_table<T>().sequence;
        Team team(static_cast<int>(std::min<std::int64_t>(
            threads_for(16 * static_cast<double>(n) * static_cast<double>(classes)), groups)));
        const AlignedBuffer workspace(kernels.beam_workspace(classes, count, team.size()));
        const BeamArgs<T> args{groups,
                               classes,
                               count,
                               first.data(),
                               logits.data<T>(),
                               totals.data<double>(),
                               allowed.data<std::uint8_t>()};
        auto* const parent = values_of<std::int64_t>(parents);
        auto* const token = values_of<std::int64_t>(tokens);
        auto* const score = values_of<double>(scores);
        run_released(team, [&] { kernels.beam_step(args, parent, token, score, team, workspace.data()); });
    });
    return {parents, tokens, scores};
}

}  // namespace

void bind_beam(py::module_& m) {
    using py::arg;
    m.def(
        "beam_step", &beam_step, arg("logits"), arg("totals"), arg("rows"), arg("allowed"), arg("count"),
        "Return the likeliest continuations of the hypotheses of each sequence (groups, count): hypothesis, "
        "token and log probability; -1, -1 and -inf where there are fewer.");
}

}  // namespace fusedrnn
