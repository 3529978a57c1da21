// Recurrent networks whose gates are simulated quantum circuits. Everything is checked before anything is written.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "bindings/checks.h"
#include "bindings/run.h"
#include "bindings/sequence.h"
#include "layers/layer_table.h"

namespace fusedrnn {
namespace {

constexpr int kParams = 4, kKept = 4;

// What forward and backward read alike, checked against an array of the sequences' dtype.
struct Network {
    Array weight_hh, unitaries, weight_out, bias_out;
    std::vector<std::int64_t> lengths;
    QuantumSizes sizes;

    Network(const Array& like, const py::object& params, const py::object& lengths_)
        : weight_hh(parameter(params, 0, "weight_hh", like, {{"Q", -1, kQuantumGates}, {"H"}})),
          sizes{like.size(0), like.size(2), weight_hh.size(1), weight_hh.size(0) / kQuantumGates, 0} {
        const auto& s = sizes;
        require(s.Q >= 1 && s.Q <= kMostQubits && s.Q * kQuantumGates == weight_hh.size(0), "weight_hh",
                "shape (4*Q, H) with Q in 1..8", static_cast<double>(weight_hh.size(0)));
        unitaries =
            parameter(params, 1, "unitaries", like, {{"D*Q", -1, kQuantumGates}, {"8", kUnitaryParts}});
        sizes.D = unitaries.size(0) / (kQuantumGates * s.Q);
        require(s.D >= 1 && s.D * kQuantumGates * s.Q == unitaries.size(0), "unitaries",
                "shape (4*D*Q, 8) with D >= 1", static_cast<double>(unitaries.size(0)));
        const Axis outputs{"H", kQuantumGates * s.H, kQuantumGates};
        weight_out = parameter(params, 2, "weight_out", like, {outputs, {"Q", s.Q}});
        bias_out = parameter(params, 3, "bias_out", like, {outputs});
        lengths = read_lengths(lengths_, "lengths", s.B, s.T, "T", kOptional);
        // Beyond any memory before sizes are multiplied.
        checked_product({s.T + 1, s.B + 64, 4 * (s.Q + s.H), 8});
        checked_product({unitaries.size(0), kUnitaryParts, s.B + 64, 8});
    }

    static Array parameter(const py::object& params, int i, const char* name, const Array& like,
                           const std::vector<Axis>& axes) {
        return Array::parameter(item_of(params, "params", kParams, i), name, like).shape(axes).contiguous();
    }
    // h or c (H, B), or its gradient.
    Array state(const py::object& value, const Name& name, const Array& like) const {
        return Array::like(value, name, like).shape({{"H", sizes.H}, {"B", sizes.B}}).contiguous();
    }
    Array state(const py::object& pair, const char* name, int i, const Array& like) const {
        return state(item_of(pair, name, 2, i), {name, i}, like);
    }
    template <class T>
    QuantumNetwork<T> view() const {
        return {sizes, lengths.data(), weight_hh.data<T>(), unitaries.data<T>(), weight_out.data<T>()};
    }
    // Members for a pass over the states that costs `passes` times the circuits.
    int members(double passes) const {
        const double amplitudes = 1 << sizes.Q, D = static_cast<double>(sizes.D);
        const double row =
            (D + 1) * static_cast<double>(sizes.Q) * amplitudes + 4 * static_cast<double>(sizes.H);
        const int wanted =
            threads_for(passes * row * static_cast<double>(sizes.T) * static_cast<double>(sizes.B));
        return static_cast<int>(std::min<std::int64_t>(wanted, std::max<std::int64_t>(sizes.B, 1)));
    }
    // The shapes of the tape: what was encoded, what was measured, gates and cells.
    std::vector<std::int64_t> kept(int i) const {
        const std::int64_t widths[kKept] = {kQuantumGates * sizes.Q, kQuantumGates * sizes.Q,
                                            kQuantumGates * sizes.H, sizes.H};
        return {sizes.T, widths[i], sizes.B};
    }
};

py::tuple quantum_forward(const py::object& gx_, const py::object& params, const py::object& lengths,
                          const py::object& state, bool keep) {
    const Array gx = Array::floats(gx_, "gx").shape({{"T"}, {"4*Q"}, {"B"}}).contiguous();
    const Network n(gx, params, lengths);
    const QuantumSizes& s = n.sizes;
    require(gx.size(1) == kQuantumGates * s.Q, "gx", "shape (T, 4*Q, B)", static_cast<double>(gx.size(1)));
    const Array h = n.state(state, "state", 0, gx), c = n.state(state, "state", 1, gx);
    const DType dtype = gx.dtype();
    py::array y = new_array(dtype, {s.T, s.H, s.B}), h_final = new_array(dtype, {s.H, s.B}),
              c_final = new_array(dtype, {s.H, s.B});
    py::object tape = py::none();
    by_dtype(dtype, [&]<class T>() {
        T* kept[kKept]{};
        if (keep) {
            py::tuple arrays(kKept);
            for (int i = 0; i < kKept; ++i) {
                py::array array = new_array(dtype, n.kept(i));
                kept[i] = values_of<T>(array);
                arrays[static_cast<std::size_t>(i)] = array;
            }
            tape = arrays;
        }
        const QuantumForwardArgs<T> args{
            n.view<T>(),     gx.data<T>(),          n.bias_out.data<T>(),
            h.data<T>(),     c.data<T>(),           {kept[0], kept[1], kept[2], kept[3]},
            values_of<T>(y), values_of<T>(h_final), values_of<T>(c_final)};
        const QuantumKernels<T>& kernels = *layer_table<T>().quantum;
        Team team(n.members(1));
        const AlignedBuffer workspace(kernels.workspace(s, team.size()));
        run_released(team, [&] { kernels.forward(args, team, workspace.data()); });
    });
    return py::make_tuple(y, h_final, c_final, tape);
}

py::tuple quantum_backward(const py::object& tape, const py::object& params, const py::object& lengths,
                           const py::object& c_, const py::object& dy_, const py::object& dstate) {
    const Array dy = Array::floats(dy_, "dy").shape({{"T"}, {"H"}, {"B"}}).contiguous();
    const Network n(dy, params, lengths);
    const QuantumSizes& s = n.sizes;
    require(dy.size(1) == s.H, "dy", "shape (T, H, B)", static_cast<double>(dy.size(1)));
    Array kept[kKept];
    for (int i = 0; i < kKept; ++i) {
        const auto sizes = n.kept(i);
        kept[i] = Array::like(item_of(tape, "tape", kKept, i), {"tape", i}, dy)
                      .shape({{"T", sizes[0]},
                              {i < 2   ? "4*Q"
                               : i < 3 ? "4*H"
                                       : "H",
                               sizes[1]},
                              {"B", sizes[2]}})
                      .contiguous();
    }
    const Array c = n.state(c_, "c", dy);
    const Array dh = n.state(dstate, "dstate", 0, dy), dc = n.state(dstate, "dstate", 1, dy);
    const DType dtype = dy.dtype();
    py::array dgx = new_array(dtype, n.kept(0)), dgates = new_array(dtype, n.kept(2)),
              dunitaries = new_array(dtype, {kQuantumGates * s.D * s.Q, kUnitaryParts, s.B}),
              dh_first = new_array(dtype, {s.H, s.B}), dc_first = new_array(dtype, {s.H, s.B});
    by_dtype(dtype, [&]<class T>() {
        const QuantumBackwardArgs<T> args{
            n.view<T>(),
            {kept[0].data<T>(), kept[1].data<T>(), kept[2].data<T>(), kept[3].data<T>()},
            c.data<T>(),
            dy.data<T>(),
            dh.data<T>(),
            dc.data<T>(),
            values_of<T>(dgx),
            values_of<T>(dgates),
            values_of<T>(dunitaries),
            values_of<T>(dh_first),
            values_of<T>(dc_first)};
        const QuantumKernels<T>& kernels = *layer_table<T>().quantum;
        Team team(n.members(3));
        const AlignedBuffer workspace(kernels.workspace(s, team.size()));
        run_released(team, [&] { kernels.backward(args, team, workspace.data()); });
    });
    return py::make_tuple(dgx, dgates, dunitaries, dh_first, dc_first);
}

}  // namespace

void bind_quantum(py::module_& m) {
    using py::arg;
    m.def("quantum_forward", &quantum_forward, arg("gx"), arg("params"), arg("lengths"), arg("state"),
          arg("keep"),
          "Return y (T, H, B), h and c (H, B), and a tape or None: (T, 4Q, B) twice, (T, 4H, B), (T, H, B).");
    m.def("quantum_backward", &quantum_backward, arg("tape"), arg("params"), arg("lengths"), arg("c"),
          arg("dy"), arg("dstate"),
          "Return the gradients of gx (T, 4Q, B), of the gates before their activations (T, 4H, B), of the "
          "unitaries for each row (4DQ, 8, B), and of the first h and c (H, B).");
}

}  // namespace fusedrnn
