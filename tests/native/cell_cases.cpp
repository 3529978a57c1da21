// Forward and backward of every cell against the reference, at sizes around the vectors' widths.
#include "bindings/timetable.h"
#include "check.h"
#include "reference.h"

namespace kernel_check {
namespace {

using namespace fusedrnn;

struct Options {
    bool reverse, bias, lengths, resets, shared_reset, initial, dy, dfinal, accumulate_dx, recompute;
    std::int64_t gap;  // elements between the rows of x, y and their gradients
};

// Bit k of the counter's mixture: every option meets every size over the cases.
Options options_of(std::int64_t counter) {
    Random random(static_cast<std::uint64_t>(counter));
    const std::uint64_t bits = random.bits();
    const auto bit = [bits](int k) { return (bits >> k & 1) != 0; };
    return {bit(0),           bit(1) || bit(2), bit(3),  bit(4),  bit(5),         bit(6),
            bit(7) || bit(8), bit(9),           bit(10), bit(12), bit(11) ? 3 : 0};
}

std::string name_of(const Problem& p, const Options& o, const char* type) {
    std::string text = std::string(type) + " " + p.cell;
    const std::pair<const char*, std::int64_t> sizes[] = {
        {"T", p.T}, {"B", p.B}, {"I", p.I}, {"H", p.H}, {"P", p.P}};
    for (const auto& [symbol, size] : sizes) text += std::string(" ") + symbol + std::to_string(size);
    const std::pair<const char*, bool> flags[] = {
        {" projected", p.w_hr.given()}, {" reverse", o.reverse}, {" bias", o.bias}, {" lengths", o.lengths},
        {" resets", o.resets},          {" initial", o.initial}, {" dy", o.dy},     {" dfinal", o.dfinal},
        {" recompute", o.recompute},    {" gap", o.gap != 0}};
    for (const auto& [word, on] : flags) text += on ? word : "";
    return text;
}

// Rounded to T and back: kernel and reference get the same numbers.
template <class T>
Array<double> random_array(Random& random, std::int64_t rows, std::int64_t width, double scale = 1.0) {
    Array<double> a(rows, width);
    for (std::int64_t i = 0; i < rows; ++i) {
        for (std::int64_t k = 0; k < width; ++k) {
            a.row(i)[k] = static_cast<double>(static_cast<T>(scale * random.uniform()));
        }
    }
    return a;
}

template <class To, class From>
Array<To> copy_of(const Array<From>& from, std::int64_t gap = 0) {
    if (!from.given()) return {};
    Array<To> to(from.rows(), from.width(), gap);
    for (std::int64_t i = 0; i < from.rows(); ++i) {
        for (std::int64_t k = 0; k < from.width(); ++k) to.row(i)[k] = static_cast<To>(from.row(i)[k]);
    }
    return to;
}

template <class T>
Problem make_problem(const CellTraits& traits, const Dims& d, const Options& o, std::uint64_t seed) {
    Random random(seed);
    Problem p{};
    p.cell = traits.name;
    p.T = d.T, p.B = d.B, p.I = d.I, p.H = d.H, p.P = d.P, p.gates = traits.gates, p.states = traits.states;
    p.reverse = o.reverse;
    // Small enough that no gate saturates: there 1 - y^2 has lost its digits in any kernel.
    const double spread = 1 / std::sqrt(static_cast<double>(d.H)),
                 spread_x = 1 / std::sqrt(static_cast<double>(d.I));
    p.x = random_array<T>(random, d.T * d.B, d.I);
    p.w_ih = random_array<T>(random, p.gates * d.H, d.I, spread_x);
    p.w_hh = random_array<T>(random, p.gates * d.H, d.P, spread);
    if (o.bias) {
        p.b_ih = random_array<T>(random, 1, p.gates * d.H, 0.5);
        p.b_hh = random_array<T>(random, 1, p.gates * d.H, 0.5);
    }
    if (d.projected) p.w_hr = random_array<T>(random, d.P, d.H, spread);
    for (int i = 0; i < traits.parameter_count; ++i) {
        const Parameter& known = traits.parameters[i];
        if (known.role == Role::kPerUnit) p.units.push_back(random_array<T>(random, known.rows.times, d.H));
    }
    for (std::int64_t k = 0; k < p.states; ++k) {
        if (o.initial) p.initial[k] = random_array<T>(random, d.B, p.width(k));
        if (o.resets && k == 0) p.reset[k] = random_array<T>(random, o.shared_reset ? 1 : d.B, p.width(k));
        if (o.dfinal) p.dfinal[k] = random_array<T>(random, d.B, p.width(k));
    }
    if (o.dy) p.dy = random_array<T>(random, d.T * d.B, d.P);
    for (std::int64_t b = 0; b < d.B; ++b) p.lengths.push_back(o.lengths ? random.below(d.T + 1) : d.T);
    for (std::int64_t i = 0; o.resets && i < d.T * d.B; ++i) p.resets.push_back(random.below(3) == 0);
    return p;
}

// Where results go, as Out. Gradients that may be added to hold something already, rounded to T.
template <class T, class Out>
Results<Out> make_results(const Problem& p, std::int64_t gap) {
    Random random(7);
    Results<Out> r;
    r.y = Array<Out>(p.T * p.B, p.P, gap);
    r.dx = copy_of<Out>(random_array<T>(random, p.T * p.B, p.I), gap);
    for (std::int64_t k = 0; k < p.states; ++k) {
        r.final[k] = Array<Out>(p.B, p.width(k));
        r.dinitial[k] = Array<Out>(p.B, p.width(k));
    }
    r.dw_ih = copy_of<Out>(random_array<T>(random, p.gates * p.H, p.I));
    r.dw_hh = copy_of<Out>(random_array<T>(random, p.gates * p.H, p.P));
    if (p.b_ih.given()) r.db_ih = copy_of<Out>(random_array<T>(random, 1, p.gates * p.H));
    if (p.b_hh.given()) r.db_hh = copy_of<Out>(random_array<T>(random, 1, p.gates * p.H));
    if (p.w_hr.given()) r.dw_hr = copy_of<Out>(random_array<T>(random, p.P, p.H));
    for (const Array<double>& a : p.units) {
        r.dunits.push_back(copy_of<Out>(random_array<T>(random, a.rows(), a.width())));
    }
    return r;
}

// The problem in the element type of the kernels.
template <class T>
struct Typed {
    Array<T> x, w_ih, w_hh, b_ih, b_hh, w_hr, initial[kMaxStates], reset[kMaxStates], dy, dfinal[kMaxStates];
    std::vector<Array<T>> units;

    Typed(const Problem& p, std::int64_t gap)
        : x(copy_of<T>(p.x, gap)),
          w_ih(copy_of<T>(p.w_ih)),
          w_hh(copy_of<T>(p.w_hh)),
          b_ih(copy_of<T>(p.b_ih)),
          b_hh(copy_of<T>(p.b_hh)),
          w_hr(copy_of<T>(p.w_hr)),
          dy(copy_of<T>(p.dy, gap)) {
        for (int k = 0; k < kMaxStates; ++k) {
            initial[k] = copy_of<T>(p.initial[k]);
            reset[k] = copy_of<T>(p.reset[k]);
            dfinal[k] = copy_of<T>(p.dfinal[k]);
        }
        for (const Array<double>& a : p.units) units.push_back(copy_of<T>(a));
    }
};

template <class Row, class T>
Sequence<Row> sequence(T& array, std::int64_t batch) {
    return {array.data(), batch * array.stride(), array.stride()};
}

// What forward and backward problems name alike.
template <class Call, class T>
void set_call(Call& call, const RecurrentCell& cell, const Dims& d, const Timetable& timetable,
              const Problem& p, const Typed<T>& in, const Packed<T>& weights) {
    call.cell = &cell;
    call.dims = d;
    call.schedule = timetable.view(p.resets.empty() ? nullptr : p.resets.data());
    call.weights = weights;
    call.x = sequence<const T>(in.x, d.B);
    for (int k = 0; k < kMaxStates; ++k) {
        call.initial[k] = in.initial[k].data();
        call.reset[k] = in.reset[k].data();
        call.reset_stride[k] = in.reset[k].given() && in.reset[k].rows() > 1 ? in.reset[k].stride() : 0;
    }
}

// Whether the tape is filled: the lanes past H too, whose products are 0.
template <class T>
bool is_finite(const T* tape, std::int64_t n) {
    return std::all_of(tape, tape + n, [](T x) { return std::isfinite(x); });
}

template <class T>
Results<T> run_kernels(const RecurrentCell& cell, int lanes, const Dims& d, const Problem& p,
                       const Options& o, Array<T>& y_inference, bool& tape_filled) {
    const RecurrentKernels<T>& kernels = cell.kernels<T>();
    const Typed<T> in(p, o.gap);
    const Timetable timetable(d.T, d.B, o.lengths ? p.lengths.data() : nullptr, o.reverse);
    Results<T> out = make_results<T, T>(p, o.gap);
    Workspace block(kernels.packed_bytes(cell, d, true));
    Packed<T> weights;
    Team team(1);
    Params<const T> params{{in.w_ih.data(), in.w_hh.data(), in.b_ih.data(), in.b_hh.data(), in.w_hr.data()}};
    for (std::size_t k = 0; k < in.units.size(); ++k) params.of[5 + k] = in.units[k].data();
    kernels.pack(cell, d, params, true, block.as<void>(), weights, team);
    const std::int64_t padded = (d.H + lanes - 1) / lanes * lanes, item = sizeof(T), rows = timetable.rows();
    Workspace saved(rows * padded * cell.saved * item), states(rows * padded * (cell.states - 1) * item),
        hidden(rows * padded * item);

    ForwardProblem<T> forward{};
    set_call(forward, cell, d, timetable, p, in, weights);
    forward.y = sequence<T>(y_inference, d.B);
    for (int k = 0; k < cell.states; ++k) forward.final[k] = out.final[k].data();
    Workspace workspace(kernels.forward_workspace(cell, d, 1));
    kernels.forward(forward, team, workspace.as<void>());
    forward.y = sequence<T>(out.y, d.B);
    forward.saved = o.recompute ? nullptr : saved.as<T>();
    forward.states = cell.states > 1 ? states.as<T>() : nullptr;
    forward.hidden = d.projected ? hidden.as<T>() : nullptr;
    kernels.forward(forward, team, workspace.as<void>());
    tape_filled = o.recompute || is_finite(saved.as<T>(), rows * padded * cell.saved);

    BackwardProblem<T> backward{};
    set_call(backward, cell, d, timetable, p, in, weights);
    backward.y = sequence<const T>(out.y, d.B);
    backward.saved = forward.saved, backward.states = forward.states, backward.hidden = forward.hidden;
    if (in.dy.given()) backward.dy = sequence<const T>(in.dy, d.B);
    backward.dx = sequence<T>(out.dx, d.B);
    backward.accumulate_dx = o.accumulate_dx;
    for (int k = 0; k < cell.states; ++k) {
        backward.dfinal[k] = in.dfinal[k].data();
        backward.dinitial[k] = out.dinitial[k].data();
    }
    backward.dparams = {
        {out.dw_ih.data(), out.dw_hh.data(), out.db_ih.data(), out.db_hh.data(), out.dw_hr.data()}};
    for (std::size_t k = 0; k < out.dunits.size(); ++k) backward.dparams.of[5 + k] = out.dunits[k].data();
    Workspace backward_workspace(kernels.backward_workspace(cell, d, o.recompute, 1));
    kernels.backward(backward, team, backward_workspace.as<void>());
    return out;
}

template <class T>
void run_case(const RecurrentCell& cell, int lanes, const Dims& d, const Options& o, Compute compute,
              Report& report) {
    // A seed with which no lone number, where H = 1, is left over from a cancellation.
    const std::uint64_t seed = 1000039u * static_cast<std::uint64_t>(d.H) + static_cast<std::uint64_t>(d.T);
    Problem p = make_problem<T>(cell, d, o, seed);
    p.compute = compute;
    const std::string name = name_of(p, o, type_name<T>());
    Array<T> y_inference(d.T * d.B, d.P, o.gap);
    bool tape_filled = false;
    const Results<T> got = run_kernels<T>(cell, lanes, d, p, o, y_inference, tape_filled);
    Results<double> want = make_results<T, double>(p, 0);
    want.y.fill(0.0);
    if (!o.accumulate_dx) want.dx.fill(0.0);
    if (!reference(p, want)) {
        report.fail(name, "tests/reference.py knows no such cell", 0);
        return;
    }
    report.compare(name, "y", got.y, want.y);
    if (!tape_filled) report.fail(name, "not a number on the tape", 0);
    report.compare(name, "y in inference", y_inference, want.y);
    if (Digest().add(y_inference).value() != Digest().add(got.y).value()) {
        report.fail(name, "y differs between inference and training", 0);
    }
    report.compare(name, "dx", got.dx, want.dx);
    for (int k = 0; k < cell.states; ++k) {
        report.compare(name, "final state", got.final[k], want.final[k]);
        report.compare(name, "initial state's gradient", got.dinitial[k], want.dinitial[k]);
    }
    report.compare(name, "dweight_ih", got.dw_ih, want.dw_ih);
    report.compare(name, "dweight_hh", got.dw_hh, want.dw_hh);
    report.compare(name, "dbias_ih", got.db_ih, want.db_ih);
    report.compare(name, "dbias_hh", got.db_hh, want.db_hh);
    report.compare(name, "dweight_hr", got.dw_hr, want.dw_hr);
    for (std::size_t k = 0; k < got.dunits.size(); ++k) {
        report.compare(name, "gradient of a per-unit parameter", got.dunits[k], want.dunits[k]);
    }
    Digest out, inputs, weights;
    out.add(got.y);
    inputs.add(got.dx);
    for (int k = 0; k < cell.states; ++k) {
        out.add(got.final[k]);
        inputs.add(got.dinitial[k]);
    }
    weights.add(got.dw_ih).add(got.dw_hh).add(got.db_ih).add(got.db_hh).add(got.dw_hr);
    for (const Array<T>& units : got.dunits) weights.add(units);
    report.done(name, {{"y", out}, {"dx", inputs}, {"dw", weights}});
}

}  // namespace

template <class T>
void check_cells(const Kernels& kernels, int lanes, Report& report, Compute compute) {
    std::int64_t number = 0;
    for (const RecurrentCell& cell : kernels.cells) {
        std::int64_t counter = 1000 * number++;
        const auto run = [&](const Dims& d) {
            const Options options = options_of(++counter);
            if (report.next()) run_case<T>(cell, lanes, d, options, compute, report);
        };
        const bool projects = cell.parameters[cell.place(Role::kProjection)].need != Need::kRefused;
        for (const std::int64_t H : {1, 7, 8, 9, 17, 33}) {
            for (const std::int64_t B : {1, 3, 5}) {
                for (const std::int64_t T_ : {1, 2, 3, 4}) {
                    for (const std::int64_t I : {1, 3, 9}) run({T_, B, I, H, H, 0, false});
                    if (!projects) continue;
                    for (const std::int64_t P : {1, 5, 9}) run({T_, B, 3, H, P, 0, true});
                }
            }
        }
        // More than one block of steps, more than one group of rows, products cut along K.
        if (report.sampled()) continue;
        run({6, 70, 3, 33, 33, 0, false});
        run({2, 9, 9, 780, 780, 0, false});
        // Last panels of every number of vectors, on few rows beside the panels before them and alone.
        for (const std::int64_t H : {18, 22, 27, 40, 90}) {
            for (const std::int64_t B : {1, 2, 3, 7}) run({2, B, 5, H, H, 0, false});
        }
    }
}

template void check_cells<float>(const Kernels&, int, Report&, Compute);
template void check_cells<double>(const Kernels&, int, Report&, Compute);

}  // namespace kernel_check
