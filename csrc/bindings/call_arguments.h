// The arrays of a call of one layer and direction, wherever they are: read and checked, and made where they are results for
// which the caller gives none.
//
// A Place says how, for its kind of Array, beside the x of the call:
//   Array read(value, name, element, x, presence)    an argument
//   Array read_parameter(value, parameter, x)
//   Array make(sizes, element, name, x)              a new array
#pragma once

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "bindings/checks.h"
#include "bindings/timetable.h"

namespace fusedrnn {

// What an array holds: elements as those of x, or as those that the call computes in, which are wider where x has 16 bits.
enum class Element { kStored, kComputed, kBool };

// An array for each state, or none of any: most calls give no states, and need not pay for those of other cells.
template <class A>
class StateArrays {
  public:
    const A& operator[](int k) const {
        static const A none;
        return static_cast<std::size_t>(k) < arrays_.size() ? arrays_[static_cast<std::size_t>(k)] : none;
    }
    // To be written; those from at(k) of a smaller k move.
    A& at(int k) {
        constexpr std::size_t kUsual = 4;
        const auto wanted = static_cast<std::size_t>(k) + 1;
        if (arrays_.size() < wanted) arrays_.resize(wanted <= kUsual ? kUsual : kMaxStates);
        return arrays_[static_cast<std::size_t>(k)];
    }
    auto begin() const { return arrays_.begin(); }
    auto end() const { return arrays_.end(); }

  private:
    std::vector<A> arrays_;
};

template <class A>
py::tuple objects_of(const StateArrays<A>& arrays, int states) {
    py::tuple objects(states);
    for (int k = 0; k < states; ++k) objects[static_cast<std::size_t>(k)] = arrays[k].object();
    return objects;
}

// The arrays that forward and backward read.
template <class A>
struct LayerArrays {
    A x, y, resets;
    std::shared_ptr<const std::vector<std::int64_t>> index;  // (T, B), a copy; null where x is a sequence
    StateArrays<A> initial, reset;
};

// The width of state k, and its axis.
inline std::int64_t state_width(const Dims& d, int k) { return k == 0 ? d.P : d.H; }
inline Axis state_axis(const Dims& d, int k) {
    return {k == 0 && d.projected ? "P" : "H", state_width(d, k)};
}
inline Element state_element(int k) { return k == 0 ? Element::kStored : Element::kComputed; }

// How far apart the rows of a replacement state are, 0 where there is one for all.
template <class A>
std::int64_t reset_stride(const A& reset, const Dims& d, int k) {
    return reset.given() && reset.ndim() == 2 ? state_width(d, k) : 0;
}

// The parameters in the order of the cell's schema; sets I, H and P. x may be the input or what has its dtype and last axis.
template <class Place, class A, class Cells>
std::vector<A> read_parameters(const Place& place, const CellTraits& cell, const Cells& cells,
                               py::handle params, const A& x, Dims& d) {
    std::vector<A> arrays;
    arrays.reserve(static_cast<std::size_t>(cell.parameter_count));
    for (int i = 0; i < cell.parameter_count; ++i) {
        arrays.push_back(place.read_parameter(parameter_of(params, cell, i), cell.parameters[i], x));
    }
    d.I = x.size(x.ndim() - 1);
    check_parameters(cell, cells, arrays, d);
    for (A& a : arrays) a.made_contiguous();
    return arrays;
}

// One state (B, width).
template <class Place, class A>
A read_state(const Place& place, py::handle value, const char* name, int k, const Dims& d, const A& x) {
    A a = place.read(value, Name(name, k), state_element(k), x, kOptional);
    a.shape({{"B", d.B}, state_axis(d, k)}).made_contiguous();
    return a;
}

// A sequence (T, B, I), or a table (V, I) into which there are indices.
template <class A>
void check_input(A& x, py::handle indices) {
    if (indices.is_none()) {
        x.shape({{"T"}, {"B"}, {"I"}}).made_rows();
    } else {
        x.shape({{"V"}, {"I"}}).made_rows();
    }
}

// A copy of the length of each row, or nothing where there are none: all rows are `seq_len` long.
inline std::vector<std::int64_t> checked_lengths(py::handle value, std::int64_t seq_len, std::int64_t batch) {
    Array lengths = Array::int64(value, "lengths", kOptional);
    if (!lengths.given()) return {};
    lengths.shape({{"B", batch}}).made_contiguous();
    return checked_indices(lengths, seq_len + 1, "T + 1");
}

// What a caller of forward gives beside x and the parameters.
struct SequenceOptions {
    py::handle state, indices, lengths, resets, reset_state;
    bool reverse;
};

// Reads them into `in`, whose x is there; sets T, B and V.
template <class Place, class A>
std::shared_ptr<const Timetable> read_sequence(const Place& place, const SequenceOptions& given,
                                               const CellTraits& cell, LayerArrays<A>& in, Dims& d) {
    Array indices = Array::int64(given.indices, "indices", kOptional);
    if (indices.given()) {
        indices.shape({{"T"}, {"B"}}).made_contiguous();
        d.T = indices.size(0);
        d.B = indices.size(1);
        d.V = in.x.size(0);
        in.index = std::make_shared<const std::vector<std::int64_t>>(checked_indices(indices, d.V, "V"));
    } else {
        d.T = in.x.size(0);
        d.B = in.x.size(1);
    }
    for (int k = 0; k < cell.states; ++k) {
        if (!given.state.is_none()) {
            const py::object one = item_of(given.state, "state", cell.states, k);
            in.initial.at(k) = read_state(place, one, "state", k, d, in.x);
        }
        if (given.reset_state.is_none()) continue;
        A& reset = in.reset.at(k);
        reset = place.read(item_of(given.reset_state, "reset_state", cell.states, k), {"reset_state", k},
                           state_element(k), in.x, kOptional);
        if (reset.given() && reset.ndim() == 1) {  // one row for all
            reset.shape({state_axis(d, k)});
        } else {
            reset.shape({{"B", d.B}, state_axis(d, k)});
        }
        reset.made_contiguous();
    }
    in.resets = place.read(given.resets, "resets", Element::kBool, in.x, kOptional);
    in.resets.shape({{"T", d.T}, {"B", d.B}}).made_contiguous();
    const std::vector<std::int64_t> lengths = checked_lengths(given.lengths, d.T, d.B);
    // Beyond any memory: before there is an array of the steps.
    checked_product({d.T, std::max<std::int64_t>(d.B, 1), d.P, std::int64_t{sizeof(double)}});
    return std::make_shared<const Timetable>(d.T, d.B, lengths.empty() ? nullptr : lengths.data(),
                                             given.reverse);
}

// What a forward call writes: the caller's arrays, or new ones.
template <class A>
struct Outputs {
    A y;
    StateArrays<A> final;
};

// All that was given is checked before memory is asked for.
template <class Place, class A>
Outputs<A> make_outputs(const Place& place, py::handle out, py::handle state_out, int states,
                        const LayerArrays<A>& in, const Dims& d) {
    Outputs<A> o;
    const auto keep_apart = [&](A& array) {
        array.apart_from(in.x).apart_from(o.y);
        for (int k = 0; k < states; ++k) array.apart_from(in.initial[k]).apart_from(in.reset[k]);
    };
    if (!out.is_none()) {
        A y = place.read(out, "out", Element::kStored, in.x, kRequired);
        y.shape({{"T", d.T}, {"B", d.B}, state_axis(d, 0)}).writable_rows();
        keep_apart(y);
        o.y = std::move(y);
    }
    for (int k = 0; k < states && !state_out.is_none(); ++k) {
        A& final = o.final.at(k);
        final = place.read(item_of(state_out, "state_out", states, k), {"state_out", k}, state_element(k),
                           in.x, kRequired);
        final.shape({{"B", d.B}, state_axis(d, k)}).writable();
        keep_apart(final);
        for (int j = 0; j < k; ++j) final.apart_from(o.final[j]);
    }
    if (out.is_none()) o.y = place.make({d.T, d.B, d.P}, Element::kStored, "y", in.x);
    for (int k = 0; k < states && state_out.is_none(); ++k) {
        o.final.at(k) = place.make({d.B, state_width(d, k)}, state_element(k), {"state", k}, in.x);
    }
    return o;
}

// What a caller of backward gives, and the arrays of the call.
struct GradientOptions {
    py::handle dy, dstate, dparams, dx;
    bool need_dx, accumulate_dx;
};

template <class A>
struct GradientArrays {
    A dy, dx;
    StateArrays<A> dfinal, dinitial;
    std::vector<A> grads;  // of the parameters that forward had; new ones are not set to zero

    // (dx, dstate, dparams).
    py::tuple result(int states) const {
        py::tuple parameters(grads.size());
        for (std::size_t i = 0; i < grads.size(); ++i) parameters[i] = grads[i].object_or_none();
        return py::make_tuple(dx.object_or_none(), objects_of(dinitial, states), parameters);
    }
};

// The gradient of the input, or none.
template <class Place, class A>
A input_gradient(const Place& place, const GradientOptions& given, const GradientArrays<A>& a,
                 const LayerArrays<A>& in, const Dims& d) {
    const bool table = in.index != nullptr;
    if (!given.dx.is_none()) {
        if (!given.need_dx) throw py::value_error("dx: expected None with need_dx=False, got an array");
        A dx = place.read(given.dx, "dx", Element::kStored, in.x, kRequired);
        if (table) {
            dx.shape({{"V", d.V}, {"I", d.I}});
        } else {
            dx.shape({{"T", d.T}, {"B", d.B}, {"I", d.I}});
        }
        dx.writable_rows().apart_from(in.x).apart_from(a.dy).apart_from(in.y);
        for (const A& grad : a.grads) dx.apart_from(grad);
        return dx;
    }
    if (!given.need_dx) return {};
    if (given.accumulate_dx) throw py::value_error("accumulate_dx: expected False without dx, got True");
    return table ? place.make({d.V, d.I}, Element::kStored, "dx", in.x)
                 : place.make({d.T, d.B, d.I}, Element::kStored, "dx", in.x);
}

// `has_parameter(i)` says whether forward had parameter i.
template <class Place, class A, class Has>
GradientArrays<A> read_gradients(const Place& place, const GradientOptions& given, const CellTraits& cell,
                                 Has&& has_parameter, const LayerArrays<A>& in, const Dims& d) {
    GradientArrays<A> a;
    a.dy = place.read(given.dy, "dy", Element::kStored, in.x, kOptional);
    a.dy.shape({{"T", d.T}, {"B", d.B}, state_axis(d, 0)}).made_rows();
    for (int k = 0; k < cell.states && !given.dstate.is_none(); ++k) {
        const py::object one = item_of(given.dstate, "dstate", cell.states, k);
        a.dfinal.at(k) = read_state(place, one, "dstate", k, d, in.x);
    }
    a.grads.resize(static_cast<std::size_t>(cell.parameter_count));
    for (int i = 0; i < cell.parameter_count; ++i) {
        const Parameter& p = cell.parameters[i];
        const Name name(p.name, -1, "d");
        A& grad = a.grads[static_cast<std::size_t>(i)];
        if (given.dparams.is_none()) {
            if (has_parameter(i)) grad = place.make(sizes_of(p, d), Element::kComputed, name, in.x);
            continue;
        }
        grad = place.read(item_of(given.dparams, "dparams", cell.parameter_count, i), name,
                          Element::kComputed, in.x, kOptional);
        if (!grad.given()) continue;
        if (!has_parameter(i)) {
            throw py::value_error(name.str() + ": expected None, because the forward call had no such " +
                                  "parameter, got an array");
        }
        check_shape(grad, p, d);
        grad.writable().apart_from(in.x).apart_from(in.y).apart_from(a.dy);
        for (int k = 0; k < cell.states; ++k) grad.apart_from(a.dfinal[k]);
        for (int j = 0; j < i; ++j) grad.apart_from(a.grads[static_cast<std::size_t>(j)]);
    }
    a.dx = input_gradient(place, given, a, in, d);
    for (int k = 0; k < cell.states; ++k) {
        a.dinitial.at(k) = place.make({d.B, state_width(d, k)}, state_element(k), {"dstate", k}, in.x);
    }
    return a;
}

}  // namespace fusedrnn
