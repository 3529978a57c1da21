#include "bindings/xla_forward.h"

#include <algorithm>
#include <initializer_list>
#include <string>
#include <vector>

#include "bindings/recurrent.h"
#include "bindings/run.h"
#include "cpu/partition.h"

namespace fusedrnn {
namespace {

using xla::Buffer;
using xla::Buffers;

// What stands before the next separator, which is taken off the text.
std::string_view taken(std::string_view& text, char separator) {
    const std::size_t end = text.find(separator);
    const std::string_view part = text.substr(0, end);
    text = end == std::string_view::npos ? std::string_view() : text.substr(end + 1);
    return part;
}

// The place of a parameter in the cell's schema, -1 for what is none.
int place_of(const RecurrentCell& cell, std::string_view name) {
    for (int i = 0; i < cell.parameter_count; ++i) {
        if (name == cell.parameters[i].name) return i;
    }
    return -1;
}

// A call of the kernels, and the buffers of its parameters by the cell's schema.
struct Plain {
    const RecurrentCell& cell;
    bool reverse;
    Dims dims{};
    std::vector<const Buffer*> params;
};

bool is_array(const Buffer& given, int dtype, std::initializer_list<std::int64_t> sizes) {
    return given.dtype == dtype &&
           std::equal(given.dims, given.dims + given.rank, sizes.begin(), sizes.end());
}

// Whether buffers are what the kernels take. They were checked when the program was made, if this version has made it.
bool fits(const Plain& plain, const Buffers& arguments, const Buffers& results) {
    const Dims& d = plain.dims;
    const int dtype = xla::buffer(arguments, 0).dtype;
    if (dtype != xla::kFloat32 && dtype != xla::kFloat64) return false;
    if (d.H < 1 || !is_array(xla::buffer(results, 0), dtype, {d.T, d.B, d.P})) return false;
    for (int k = 0; k < plain.cell.states; ++k) {
        for (const Buffer* state : {&xla::buffer(arguments, 1 + k), &xla::buffer(results, 1 + k)}) {
            if (!is_array(*state, dtype, {d.B, state_width(d, k)})) return false;
        }
    }
    for (int i = 0; i < plain.cell.parameter_count; ++i) {
        const Parameter& p = plain.cell.parameters[i];
        const Buffer* const given = plain.params.at(i);
        if (given == nullptr) {
            if (p.need == Need::kRequired) return false;
        } else if (p.columns.size == Size::kOne
                       ? !is_array(*given, dtype, {size_of(p.rows, d)})
                       : !is_array(*given, dtype, {size_of(p.rows, d), size_of(p.columns, d)})) {
            return false;
        }
    }
    return true;
}

template <class T>
void run(const Plain& plain, const Buffers& arguments, const Buffers& results) {
    const RecurrentCell& cell = plain.cell;
    const Dims& d = plain.dims;
    const RecurrentKernels<T>& kernels = cell.kernels<T>();
    Params<const T> params{};
    for (int i = 0; i < cell.parameter_count; ++i) {
        if (plain.params.at(i) != nullptr) params.of[i] = static_cast<const T*>(plain.params.at(i)->data);
    }
    const Timetable timetable(d.T, d.B, nullptr, plain.reverse);
    const auto* const x = static_cast<const T*>(xla::buffer(arguments, 0).data);
    auto* const y = static_cast<T*>(xla::buffer(results, 0).data);
    ForwardProblem<T> problem =
        forward_problem<T>(cell, d, timetable.view(nullptr), {}, Sequence<const T>{x, d.B * d.I, d.I},
                           Sequence<T>{y, d.B * d.P, d.P}, [&](int k) {
                               return StateRows<T>{static_cast<const T*>(xla::buffer(arguments, 1 + k).data),
                                                   static_cast<T*>(xla::buffer(results, 1 + k).data)};
                           });
    Team team(recurrent_threads(d, cell.gates, false));
    const AlignedBuffer workspace(kernels.forward_workspace(cell, d, team.size()));
    run_released(team, [&] {
        const auto weights = pack_weights<T>(cell, d, params, false, Identity{}, team);
        if (team.was_cancelled()) return;
        problem.weights = weights->packed;
        kernels.forward(problem, team, workspace.data());
    });
}

}  // namespace

bool run_plain_forward(std::string_view call, const Buffers& arguments, const Buffers& results) {
    if (taken(call, '|') != "forward") return false;
    const RecurrentCell& cell = cell_by_name(std::string(taken(call, '|')));
    Plain plain{cell, taken(call, '|') == "1", {}, std::vector<const Buffer*>(cell.parameter_count)};
    taken(call, '|');  // names of the results: y, the states, and the tape where it is kept
    if (results.size != 1 + cell.states || arguments.size <= cell.states) return false;
    const Buffer &x = xla::buffer(arguments, 0), &y = xla::buffer(results, 0);
    if (x.rank != 3 || y.rank != 3) return false;
    Dims& d = plain.dims;
    d.T = x.dims[0];
    d.B = x.dims[1];
    d.I = x.dims[2];
    d.P = y.dims[2];
    for (int k = 0; k <= cell.states; ++k) taken(call, '|');  // x and the states
    for (std::int64_t i = 1 + cell.states; i < arguments.size; ++i) {
        const int place = place_of(cell, taken(call, '|'));
        if (place < 0) return false;
        const Buffer& given = xla::buffer(arguments, i);
        plain.params.at(place) = &given;
        const Role role = cell.parameters[place].role;
        if (role == Role::kInputWeight && given.rank > 0) d.H = given.dims[0] / cell.gates;
        if (role == Role::kProjection) d.projected = true;
    }
    if (!fits(plain, arguments, results)) return false;
    by_dtype(x.dtype == xla::kFloat32 ? DType::float32 : DType::float64,
             [&]<class T>() { run<T>(plain, arguments, results); });
    return true;
}

}  // namespace fusedrnn
