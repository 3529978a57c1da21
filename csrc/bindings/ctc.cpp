// CTC: loss, alignment and decoding. Everything is checked before anything is written.
#include <cmath>
#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "bindings/run.h"
#include "bindings/sequence.h"
#include "layers/layer_table.h"

namespace fusedrnn {
namespace {

// What all CTC functions take, checked and copied.
struct CtcInput {
    Array logits;
    std::int64_t blank = 0;
    std::vector<std::int64_t> lengths, labels, offsets;
    std::int64_t most_labels = 0;

    CtcInput(const py::object& logits_, const py::object& lengths_, const char* lengths_name,
             const py::object& blank_, Presence presence)
        : logits(Array::floats(logits_, "logits").shape({{"T"}, {"B"}, {"V"}}).contiguous()) {
        require(classes() > 0, "logits", "shape (T, B, V) with V >= 1", 0);
        blank = integer(blank_, "blank", 0, classes() - 1);
        lengths = read_lengths(lengths_, lengths_name, batch(), steps(), "T", presence);
    }

    std::int64_t steps() const { return logits.size(0); }
    std::int64_t batch() const { return logits.size(1); }
    std::int64_t classes() const { return logits.size(2); }

    // Targets (B, S), or (sum of the lengths,) one after another.
    void read_targets(const py::object& targets_, const py::object& target_lengths_) {
        const Array targets = Array::int64(targets_, "targets");
        const bool padded = targets.ndim() == 2;
        if (!padded && targets.ndim() != 1) {
            throw py::value_error("targets: expected shape (B, S), or (sum of target_lengths,), got " +
                                  std::to_string(targets.ndim()) + " axes");
        }
        Array checked = targets;
        if (padded) checked.shape({{"B", batch()}, {"S"}});
        checked.contiguous();
        const std::int64_t row = padded ? targets.size(1) : 0, most = padded ? row : targets.size();
        const std::vector<std::int64_t> counts =
            read_lengths(target_lengths_, "target_lengths", batch(), most, "S", kRequired);
        std::int64_t sum = 0;
        for (const std::int64_t count : counts) {
            sum += count;
            if (sum > (std::int64_t{1} << 60)) break;
        }
        if (!padded && sum != targets.size()) {
            throw py::value_error("targets: expected shape (sum of target_lengths,) = (" +
                                  std::to_string(sum) + ",), got (" + std::to_string(targets.size()) + ",)");
        }
        const auto* const data = targets.data<std::int64_t>();
        offsets.assign(1, 0);
        for (std::size_t b = 0; b < counts.size(); ++b) {
            const std::int64_t* const from =
                padded ? data + static_cast<std::int64_t>(b) * row : data + offsets.back();
            for (std::int64_t i = 0; i < counts[b]; ++i) {
                // Read once: another thread may write to the array.
                const std::int64_t label = from[i];
                if (label < 0 || label >= classes() || label == blank) {
                    throw py::value_error(
                        "targets: expected values in [0, V) = [0, " + std::to_string(classes()) +
                        ") other than blank = " + std::to_string(blank) + ", got " + std::to_string(label) +
                        " at place " + std::to_string(i) + " of sequence " + std::to_string(b));
                }
                labels.push_back(label);
            }
            offsets.push_back(static_cast<std::int64_t>(labels.size()));
        }
        most_labels = largest(counts);
    }

    template <class T>
    CtcArgs<T> args() const {
        return {steps(),        batch(),       classes(),      blank,      logits.data<T>(),
                lengths.data(), labels.data(), offsets.data(), most_labels};
    }
    // Members for sequences with so much work for each step and class, and for each step.
    int members(double per_class, double per_step) const {
        const double steps_in_all = static_cast<double>(steps()) * static_cast<double>(batch());
        const int wanted =
            threads_for(steps_in_all * (per_class * static_cast<double>(classes()) + per_step));
        return static_cast<int>(std::min<std::int64_t>(wanted, std::max<std::int64_t>(batch(), 1)));
    }
    int lattice_members() const { return members(4, 16 * static_cast<double>(most_labels + 1)); }
};

// Calls f(kernels, team, workspace), without the GIL, for what goes through the lattices of all sequences.
template <class F>
void run_on_lattices(const CtcInput& in, F&& f) {
    by_dtype(in.logits.dtype(), [&]<class T>() {
        if (in.batch() == 0) return;
        const SequenceKernels<T>& kernels = *layer_table<T>().sequence;
        Team team(in.lattice_members());
        const AlignedBuffer workspace(
            kernels.ctc_workspace(in.steps(), in.classes(), in.most_labels, team.size()));
        run_released(team, [&] { f(kernels, team, workspace.data()); });
    });
}

std::tuple<py::array, py::array> ctc_loss(const py::object& logits_, const py::object& targets_,
                                          const py::object& input_lengths_, const py::object& target_lengths_,
                                          const py::object& blank_, const py::object& mean_,
                                          const py::object& zero_infinity_) {
    CtcInput in(logits_, input_lengths_, "input_lengths", blank_, kRequired);
    in.read_targets(targets_, target_lengths_);
    const bool mean = flag(mean_, "mean"), zero_infinity = flag(zero_infinity_, "zero_infinity");
    std::vector<double> factors(static_cast<std::size_t>(in.batch()), 1.0);
    for (std::size_t b = 0; mean && b < factors.size(); ++b) {
        const std::int64_t count = std::max<std::int64_t>(in.offsets[b + 1] - in.offsets[b], 1);
        factors[b] = 1 / (static_cast<double>(count) * static_cast<double>(in.batch()));
    }
    py::array losses = new_array(DType::float64, {in.batch()});
    py::array dlogits = new_array(in.logits.dtype(), in.logits.sizes());
    auto* const loss = values_of<double>(losses);
    void* const gradient = dlogits.mutable_data();
    run_on_lattices(in, [&]<class T>(const SequenceKernels<T>& kernels, Team& team, void* workspace) {
        kernels.ctc_loss({in.args<T>(), factors.data(), zero_infinity, loss, static_cast<T*>(gradient)}, team,
                         workspace);
    });
    return {losses, dlogits};
}

std::tuple<py::array, py::array> ctc_align(const py::object& logits_, const py::object& targets_,
                                           const py::object& input_lengths_,
                                           const py::object& target_lengths_, const py::object& blank_) {
    CtcInput in(logits_, input_lengths_, "input_lengths", blank_, kRequired);
    in.read_targets(targets_, target_lengths_);
    py::array alignment = new_array(DType::int64, {in.steps(), in.batch()});
    py::array scores = new_array(DType::float64, {in.batch()});
    auto* const places = values_of<std::int64_t>(alignment);
    auto* const score = values_of<double>(scores);
    run_on_lattices(in, [&]<class T>(const SequenceKernels<T>& kernels, Team& team, void* workspace) {
        kernels.ctc_align(in.args<T>(), places, score, team, workspace);
    });
    return {alignment, scores};
}

std::tuple<py::array, py::array, py::array> ctc_decode(const py::object& logits_, const py::object& lengths_,
                                                       const py::object& beam_, const py::object& blank_) {
    constexpr std::int64_t kMost = (std::int64_t{1} << 31) - 2;  // nodes have 32 bits
    const CtcInput in(logits_, lengths_, "lengths", blank_, kOptional);
    const std::int64_t beam = integer(beam_, "beam", 1, kMost);
    if (beam > 1 && (in.classes() > kMost || in.steps() > kMost / beam)) {
        throw py::value_error("beam: expected T * beam and V below 2^31, got beam = " + std::to_string(beam) +
                              ", T = " + std::to_string(in.steps()) +
                              ", V = " + std::to_string(in.classes()));
    }
    py::array labels = new_array(DType::int64, {in.batch(), in.steps()});
    py::array counts = new_array(DType::int64, {in.batch()});
    py::array scores = new_array(DType::float64, {in.batch()});
    by_dtype(in.logits.dtype(), [&]<class T>() {
        if (in.batch() == 0) return;
        const SequenceKernels<T>& kernels = *layer_table<T>().sequence;
        Team team(in.members(4.0 * static_cast<double>(beam), 16.0 * static_cast<double>(beam)));
        const AlignedBuffer workspace(
            beam == 1 ? kernels.ctc_workspace(1, in.classes(), 0, team.size())
                      : kernels.ctc_beam_workspace(in.steps(), in.classes(), beam, team.size()));
        auto *const label = values_of<std::int64_t>(labels), *const count = values_of<std::int64_t>(counts);
        auto* const score = values_of<double>(scores);
        run_released(team, [&] {
            if (beam == 1) {
                kernels.ctc_best_path(in.args<T>(), label, count, score, team, workspace.data());
            } else {
                kernels.ctc_beam_search(in.args<T>(), beam, label, count, score, team, workspace.data());
            }
        });
    });
    return {labels, counts, scores};
}

}  // namespace

void bind_ctc(py::module_& m) {
    using py::arg;
    m.def(
        "ctc_loss", &ctc_loss, arg("logits"), arg("targets"), arg("input_lengths"), arg("target_lengths"),
        arg("blank"), arg("mean"), arg("zero_infinity"),
        "Return losses (B,) in float64 and the gradient (T, B, V) of their sum; with `mean`, of the mean of "
        "each divided by its target's length.");
    m.def("ctc_align", &ctc_align, arg("logits"), arg("targets"), arg("input_lengths"), arg("target_lengths"),
          arg("blank"),
          "Return the best alignment (T, B), -1 for blanks, and its logarithm (B,) in float64.");
    m.def("ctc_decode", &ctc_decode, arg("logits"), arg("lengths"), arg("beam"), arg("blank"),
          "Return labels (B, T), how many of them count (B,), and scores (B,) in float64.");
}

}  // namespace fusedrnn
