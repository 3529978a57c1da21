// The RNN transducer: emissions of cells, the lattice, and the gradient of logits. Everything is checked before anything
// is written.
#include <algorithm>
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

Array doubles(const py::object& value, const char* name, const std::vector<Axis>& axes) {
    Array array = Array::floats(value, name);
    if (array.dtype() != DType::float64) {
        throw py::type_error(std::string(name).append(": expected a float64 numpy.ndarray, got float32"));
    }
    array.shape(axes).contiguous();
    return array;
}

// Logits (N, V) of cells, checked, and a copy of their labels.
struct CellRows {
    Array logits;
    std::int64_t blank = 0;
    std::vector<std::int64_t> labels;

    CellRows(const py::object& logits_, const py::object& labels_, const py::object& blank_)
        : logits(Array::floats(logits_, "logits").shape({{"N"}, {"V"}}).contiguous()) {
        require(classes() > 0, "logits", "shape (N, V) with V >= 1", 0);
        blank = integer(blank_, "blank", 0, classes() - 1);
        const Array given = Array::int64(labels_, "labels").shape({{"N", n()}}).contiguous();
        const auto* const data = given.data<std::int64_t>();
        labels.assign(data, data + n());
        for (const std::int64_t label : labels) {
            require(label >= kTransducerOutside && label < classes(), "labels", "values in -2..V-1",
                    static_cast<double>(label));
        }
    }
    std::int64_t n() const { return logits.size(0); }
    std::int64_t classes() const { return logits.size(1); }
    int members() const { return threads_for(4 * static_cast<double>(n()) * static_cast<double>(classes())); }
    template <class T>
    TransducerCells<T> cells() const {
        return {n(), classes(), blank, logits.data<T>(), labels.data()};
    }
};

py::array transducer_emissions(const py::object& logits_, const py::object& labels_,
                               const py::object& blank_) {
    const CellRows in(logits_, labels_, blank_);
    py::array emissions = new_array(DType::float64, {4, in.n()});
    auto* const data = values_of<double>(emissions);
    by_dtype(in.logits.dtype(), [&]<class T>() {
        Team team(in.members());
        run_released(team,
                     [&] { layer_table<T>().sequence->transducer_emissions(in.cells<T>(), data, team); });
    });
    return emissions;
}

std::tuple<py::array, py::array> transducer_lattice(const py::object& emissions_, const py::object& lengths_,
                                                    const py::object& target_lengths_,
                                                    const py::object& label_factor_) {
    const Array emissions = doubles(emissions_, "emissions", {{"2", 2}, {"B"}, {"T"}, {"U + 1"}});
    const std::int64_t batch = emissions.size(1), steps = emissions.size(2), width = emissions.size(3);
    require(width > 0, "emissions", "shape (2, B, T, U + 1) with U >= 0", 0);
    const auto lengths = read_lengths(lengths_, "logit_lengths", batch, steps, "T", kRequired);
    const auto counts = read_lengths(target_lengths_, "target_lengths", batch, width - 1, "U", kRequired);
    const double label_factor = finite_number(label_factor_, "label_factor");
    py::array losses = new_array(DType::float64, {batch});
    py::array flow = new_array(DType::float64, emissions.sizes());
    if (batch == 0) return {losses, flow};
    const std::int64_t cells = batch * steps * width;
    const auto* const given = emissions.data<double>();
    auto* const out = values_of<double>(flow);
    const TransducerLattice lattice{batch,
                                    steps,
                                    width,
                                    lengths.data(),
                                    counts.data(),
                                    given,
                                    given + cells,
                                    label_factor,
                                    values_of<double>(losses),
                                    out,
                                    out + cells};
    const int wanted = threads_for(32 * static_cast<double>(cells));
    Team team(static_cast<int>(std::min<std::int64_t>(wanted, batch)));
    const SequenceKernels<double>& kernels = *layer_table<double>().sequence;
    const AlignedBuffer workspace(kernels.transducer_workspace(steps, width - 1, team.size()));
    run_released(team, [&] { kernels.transducer_lattice(lattice, team, workspace.data()); });
    return {losses, flow};
}

py::array transducer_gradient(const py::object& logits_, const py::object& labels_, const py::object& blank_,
                              const py::object& emissions_, const py::object& flow_,
                              const py::object& factor_, const py::object& clamp_) {
    const CellRows in(logits_, labels_, blank_);
    const Array emissions = doubles(emissions_, "emissions", {{"4", 4}, {"N", in.n()}});
    const Array flow = doubles(flow_, "flow", {{"2", 2}, {"N", in.n()}});
    const double factor = finite_number(factor_, "factor"), clamp = real_number(clamp_, "clamp");
    py::array dlogits = new_array(in.logits.dtype(), in.logits.sizes());
    void* const out = dlogits.mutable_data();
    by_dtype(in.logits.dtype(), [&]<class T>() {
        Team team(in.members());
        run_released(team, [&] {
            layer_table<T>().sequence->transducer_gradient(in.cells<T>(), emissions.data<double>(),
                                                           flow.data<double>(), factor, clamp,
                                                           static_cast<T*>(out), team);
        });
    });
    return dlogits;
}

}  // namespace

void bind_transducer(py::module_& m) {
    using py::arg;
    m.def("transducer_emissions", &transducer_emissions, arg("logits"), arg("labels"), arg("blank"),
          "Return (4, N) in float64: logarithms of the probabilities of the blank and of the label, largest "
          "logit, sum of exponentials.");
    m.def(
        "transducer_lattice", &transducer_lattice, arg("emissions"), arg("logit_lengths"),
        arg("target_lengths"), arg("label_factor"),
        "Return losses (B,) and, (2, B, T, U + 1), how often a path takes each blank and label, in float64.");
    m.def(
        "transducer_gradient", &transducer_gradient, arg("logits"), arg("labels"), arg("blank"),
        arg("emissions"), arg("flow"), arg("factor"), arg("clamp"),
        "Return factor times the gradient of the logits (N, V), each in -clamp..clamp before if clamp > 0.");
}

}  // namespace fusedrnn
