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

constexpr int kKept = 4;

// What forward and backward read alike, checked against an array of the sequences' dtype.
struct Network {
    Array weight_hh, unitaries, weight_out;
    std::vector<std::int64_t> lengths;
    QuantumSizes sizes;

    Network(const Array& like, const py::object& weight_hh_, const py::object& unitaries_,
            const py::object& weight_out_, const py::object& lengths_, std::int64_t steps, std::int64_t batch)
        : weight_hh(
              Array::parameter(weight_hh_, "weight_hh", like).shape({{"Q", -1, 4}, {"H"}}).contiguous()),
          sizes{steps, batch, weight_hh.size(1), weight_hh.size(0) / kQuantumGates, 0} {
        require(sizes.Q >= 1 && sizes.Q <= kMostQubits && weight_hh.size(0) % kQuantumGates == 0, "weight_hh",
                "shape (4*Q, H) with Q in 1..8", static_cast<double>(weight_hh.size(0)));
        weight_out = Array::parameter(weight_out_, "weight_out", like)
                         .shape({{"H", kQuantumGates * sizes.H, kQuantumGates}, {"Q", sizes.Q}})
                         .contiguous();
        unitaries = Array::parameter(unitaries_, "unitaries", like)
                        .shape({{"D*Q", -1, kQuantumGates}, {"8", kUnitaryParts}})
                        .contiguous();
        sizes.D = unitaries.size(0) / (kQuantumGates * sizes.Q);
        require(sizes.D >= 1 && sizes.D * kQuantumGates * sizes.Q == unitaries.size(0), "unitaries",
                "shape (4*D*Q, 8) with D >= 1", static_cast<double>(unitaries.size(0)));
        lengths = read_lengths(lengths_, "lengths", batch, steps, "T", kOptional);
        // Beyond any memory before sizes are multiplied.
        checked_product({steps + 1, batch + 64, 4 * (sizes.Q + sizes.H), 8});
        checked_product({unitaries.size(0), kUnitaryParts, batch + 64, 8});
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

Array states(const py::object& value, const char* name, const Array& like, const QuantumSizes& s) {
    return Array::like(value, name, like).shape({{"H", s.H}, {"B", s.B}}).contiguous();
}

py::tuple quantum_forward(const py::object& gx_, const py::object& weight_hh_, const py::object& unitaries_,
                          const py::object& weight_out_, const py::object& bias_out_,
                          const py::object& lengths_, const py::object& h_, const py::object& c_, bool keep) {
    const Array gx = Array::floats(gx_, "gx").shape({{"T"}, {"4*Q"}, {"B"}}).contiguous();
    const Network n(gx, weight_hh_, unitaries_, weight_out_, lengths_, gx.size(0), gx.size(2));
    const QuantumSizes& s = n.sizes;
    require(gx.size(1) == kQuantumGates * s.Q, "gx", "shape (T, 4*Q, B)", static_cast<double>(gx.size(1)));
    const Array bias = Array::parameter(bias_out_, "bias_out", gx)
                           .shape({{"H", kQuantumGates * s.H, kQuantumGates}})
                           .contiguous();
    const Array h = states(h_, "h", gx, s), c = states(c_, "c", gx, s);
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
            n.view<T>(),     gx.data<T>(),          bias.data<T>(),
            h.data<T>(),     c.data<T>(),           {kept[0], kept[1], kept[2], kept[3]},
            values_of<T>(y), values_of<T>(h_final), values_of<T>(c_final)};
        const QuantumKernels<T>& kernels = *layer_table<T>().quantum;
        Team team(n.members(1));
        const AlignedBuffer workspace(kernels.workspace(s, team.size()));
        run_released(team, [&] { kernels.forward(args, team, workspace.data()); });
    });
    return py::make_tuple(y, h_final, c_final, tape);
}

py::tuple quantum_backward(const py::object& tape_, const py::object& weight_hh_,
                           const py::object& unitaries_, const py::object& weight_out_,
                           const py::object& lengths_, const py::object& c_, const py::object& dy_,
                           const py::object& dh_, const py::object& dc_) {
    const Array dy = Array::floats(dy_, "dy").shape({{"T"}, {"H"}, {"B"}}).contiguous();
    const Network n(dy, weight_hh_, unitaries_, weight_out_, lengths_, dy.size(0), dy.size(2));
    const QuantumSizes& s = n.sizes;
    require(dy.size(1) == s.H, "dy", "shape (T, H, B)", static_cast<double>(dy.size(1)));
    Array kept[kKept];
    for (int i = 0; i < kKept; ++i) {
        const auto sizes = n.kept(i);
        kept[i] = Array::like(item_of(tape_, "tape", kKept, i), {"tape", i}, dy)
                      .shape({{"T", sizes[0]},
                              {i < 2   ? "4*Q"
                               : i < 3 ? "4*H"
                                       : "H",
                               sizes[1]},
                              {"B", sizes[2]}})
                      .contiguous();
    }
    const Array c = states(c_, "c", dy, s), dh = states(dh_, "dh", dy, s), dc = states(dc_, "dc", dy, s);
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
    m.def("quantum_forward", &quantum_forward, arg("gx"), arg("weight_hh"), arg("unitaries"),
          arg("weight_out"), arg("bias_out"), arg("lengths"), arg("h"), arg("c"), arg("keep"),
          "Return y (T, H, B), h and c (H, B), and a tape or None: (T, 4Q, B) twice, (T, 4H, B), (T, H, B).");
    m.def("quantum_backward", &quantum_backward, arg("tape"), arg("weight_hh"), arg("unitaries"),
          arg("weight_out"), arg("lengths"), arg("c"), arg("dy"), arg("dh"), arg("dc"),
          "Return the gradients of gx (T, 4Q, B), of the gates before their activations (T, 4H, B), of the "
          "unitaries for each row (4DQ, 8, B), and of the first h and c (H, B).");
}

}  // namespace fusedrnn
