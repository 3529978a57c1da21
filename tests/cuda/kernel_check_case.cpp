// One case of a cell: its problem on the device, forward and backward, and the reference.
#include <cmath>
#include <memory>
#include <numeric>
#include <utility>

#include "bindings/timetable.h"
#include "kernel_check.h"
#include "kernel_table.h"
#include "lookups.h"

namespace cuda_check {

using fusedrnn::CellTraits;
using fusedrnn::Dims;
using fusedrnn::kMaxStates;
using fusedrnn::Timetable;
using namespace fusedrnn::cuda;
using kernel_check::Problem;
using kernel_check::Results;

namespace {

struct Options {
    bool reverse, bias, lengths, resets, shared_reset, reset_beyond, initial, dy, dfinal, accumulate_dx, odd,
        recompute;
    std::int64_t table;  // rows of the table that x is looked up in; 0: it is a sequence
};

// Bits of the counter's mixture: every option meets every size over the cases.
Options options_of(const CellCase& c) {
    Random random(static_cast<std::uint64_t>(c.counter));
    const std::uint64_t bits = random.bits();
    const auto bit = [bits](int k) { return (bits >> k & 1) != 0; };
    const std::int64_t inputs = c.dims.T * c.dims.B, table = bit(14) ? std::min(inputs, 2L) : inputs;
    return {bit(0),
            bit(1) || bit(2),
            bit(3) && !c.plain,
            bit(4),
            bit(5),
            bit(6),
            bit(7),
            bit(8) || bit(9),
            bit(10),
            bit(11),
            bit(12) && !c.plain,
            bit(13),
            bit(15) ? table : 0};
}

std::string name_of(const Problem& p, const Options& o) {
    std::string text = p.cell;
    const std::pair<const char*, std::int64_t> sizes[] = {
        {"T", p.T}, {"B", p.B}, {"I", p.I}, {"H", p.H}, {"P", p.P}};
    for (const auto& [symbol, size] : sizes) text += std::string(" ") + symbol + std::to_string(size);
    const std::pair<const char*, bool> flags[] = {{" projected", p.w_hr.given()},
                                                  {" reverse", o.reverse},
                                                  {" bias", o.bias},
                                                  {" lengths", o.lengths},
                                                  {" resets", o.resets},
                                                  {" initial", o.initial},
                                                  {" dy", o.dy},
                                                  {" dfinal", o.dfinal},
                                                  {" accumulate", o.accumulate_dx},
                                                  {" odd", o.odd},
                                                  {" recompute", o.recompute},
                                                  {" table", o.table > 0}};
    for (const auto& [word, on] : flags) text += on ? word : "";
    return text;
}

Array<double> random_array(Random& random, Kind kind, std::int64_t rows, std::int64_t width,
                           double scale = 1.0) {
    Array<double> a(rows, width);
    a.fill(random, scale);
    for (std::int64_t i = 0; i < rows; ++i) {
        for (std::int64_t k = 0; k < width; ++k) a.row(i)[k] = round_to(kind, a.row(i)[k]);
    }
    return a;
}

// Rectifiers have no slope at 0: where rounding may take a number across it, no tolerance would do. With these
// biases and weights h stays below (2.25 + 0.5) / (1 - 0.25) < 3.7, and every sum above 0.3 or below -1.3.
void avoid_kink(Problem& p, Random& random, Kind kind) {
    p.w_ih = random_array(random, kind, p.H, p.I, 0.5 / static_cast<double>(p.I));
    p.w_hh = random_array(random, kind, p.H, p.P, 0.25 / static_cast<double>(p.P));
    p.b_ih = p.b_hh = random_array(random, kind, 1, p.H, 0.25);
    for (std::int64_t u = 0; u < p.H; ++u) p.b_ih.data()[u] = random.below(2) == 0 ? 2.0 : -3.0;
}

Problem make_problem(const CellTraits& traits, const Dims& d, const Options& o, Math math,
                     std::uint64_t seed) {
    const Kind kind = storage_kind(math);
    Random random(seed);
    const auto numbers = [&](std::int64_t rows, std::int64_t width, double scale) {
        return random_array(random, kind, rows, width, scale);
    };
    Problem p{};
    p.cell = traits.name;
    p.T = d.T, p.B = d.B, p.I = d.I, p.H = d.H, p.P = d.P, p.gates = traits.gates, p.states = traits.states;
    p.reverse = o.reverse;
    const double spread = 1 / std::sqrt(static_cast<double>(d.H)),
                 spread_x = 1 / std::sqrt(static_cast<double>(d.I));
    p.x = numbers(d.T * d.B, d.I, 1);
    // A table is the first rows of x, and input i is row i % table.
    for (std::int64_t i = o.table; o.table > 0 && i < d.T * d.B; ++i) {
        std::copy_n(p.x.row(i % o.table), d.I, p.x.row(i));
    }
    p.w_ih = numbers(p.gates * d.H, d.I, spread_x);
    p.w_hh = numbers(p.gates * d.H, d.P, spread);
    if (o.bias) {
        p.b_ih = numbers(1, p.gates * d.H, 0.5);
        p.b_hh = numbers(1, p.gates * d.H, 0.5);
    }
    if (p.cell == "rnn_relu" && tolerance(math).forward > 1e-4) avoid_kink(p, random, kind);
    if (d.projected) p.w_hr = numbers(d.P, d.H, spread);
    for (std::int64_t k = 0; k < p.states; ++k) {
        if (o.initial) p.initial[k] = numbers(d.B, p.width(k), 1);
        if (o.resets && (k == 0 || o.reset_beyond))
            p.reset[k] = numbers(o.shared_reset ? 1 : d.B, p.width(k), 1);
        if (o.dfinal) p.dfinal[k] = numbers(d.B, p.width(k), 1);
    }
    if (o.dy) p.dy = numbers(d.T * d.B, d.P, 1);
    for (std::int64_t b = 0; b < d.B; ++b) p.lengths.push_back(o.lengths ? random.below(d.T + 1) : d.T);
    for (std::int64_t i = 0; o.resets && i < d.T * d.B; ++i) p.resets.push_back(random.below(3) == 0);
    return p;
}

// Where gradients that may be added to start from, rounded to what the device holds.
Results<double> make_results(const Problem& p, const Options& o, Math math) {
    Random random(7);
    const Kind storage = storage_kind(math), compute = compute_kind(math);
    Results<double> r;
    r.y = Array<double>(p.T * p.B, p.P);
    r.y.fill(0.0);
    r.dx = random_array(random, storage, o.table > 0 ? o.table : p.T * p.B, p.I);
    for (std::int64_t k = 0; k < p.states; ++k) {
        r.final[k] = Array<double>(p.B, p.width(k));
        r.dinitial[k] = Array<double>(p.B, p.width(k));
    }
    r.dw_ih = random_array(random, compute, p.gates * p.H, p.I);
    r.dw_hh = random_array(random, compute, p.gates * p.H, p.P);
    if (p.b_ih.given()) r.db_ih = random_array(random, compute, 1, p.gates * p.H);
    if (p.b_hh.given()) r.db_hh = random_array(random, compute, 1, p.gates * p.H);
    if (p.w_hr.given()) r.dw_hr = random_array(random, compute, p.P, p.H);
    return r;
}

// The inputs and the results on the device.
struct OnDevice {
    DeviceArray x, w_ih, w_hh, b_ih, b_hh, w_hr, initial[kMaxStates], reset[kMaxStates], dy,
        dfinal[kMaxStates];
    DeviceBlock resets;
    DeviceArray y, final[kMaxStates], dx, dinitial[kMaxStates], dw_ih, dw_hh, db_ih, db_hh, dw_hr;

    OnDevice(const Problem& p, const Options& o, Math math, const Results<double>& start)
        : resets(static_cast<std::int64_t>(p.resets.size())) {
        const Kind kind = storage_kind(math), wide = compute_kind(math);
        const std::int64_t gap = o.odd ? 3 : 0, lead = o.odd ? 1 : 0;
        x = {kind, p.x, gap, lead};
        dy = {kind, p.dy, gap, lead};
        y = {kind, p.T * p.B, p.P, gap, lead};
        dx = o.accumulate_dx ? DeviceArray(kind, start.dx, gap, lead)
                             : DeviceArray(kind, start.dx.rows(), p.I, gap, lead);
        w_ih = {kind, p.w_ih, 0, lead};
        w_hh = {kind, p.w_hh, 0, lead};
        b_ih = {kind, p.b_ih, 0, lead};
        b_hh = {kind, p.b_hh, 0, lead};
        w_hr = {kind, p.w_hr, 0, lead};
        for (int k = 0; k < p.states; ++k) {
            const Kind of_state = k == 0 ? kind : wide;
            initial[k] = {of_state, p.initial[k], 0, lead};
            reset[k] = {of_state, p.reset[k], gap, lead};
            dfinal[k] = {of_state, p.dfinal[k], 0, lead};
            final[k] = {of_state, p.B, p.width(k), 0, lead};
            dinitial[k] = {of_state, p.B, p.width(k), 0, lead};
        }
        dw_ih = {wide, start.dw_ih};
        dw_hh = {wide, start.dw_hh};
        db_ih = {wide, start.db_ih};
        db_hh = {wide, start.db_hh};
        dw_hr = {wide, start.dw_hr};
        copy(resets.data(), p.resets.data(), p.resets.size(), nullptr);
    }

    std::uint64_t digest() const {
        Digest d;
        for (const DeviceArray* a : {&y, &final[0], &final[1], &dx, &dinitial[0], &dinitial[1], &dw_ih,
                                     &dw_hh, &db_ih, &db_hh, &dw_hr}) {
            a->add_to(d);
        }
        return d.value();
    }
};

template <class Row>
Row rows_of(const DeviceArray& a, std::int64_t batch) {
    return {a.data(), batch * a.stride(), a.stride()};
}

// What forward and backward problems name alike.
template <class Call>
Call make_call(Math math, const DeviceCell* cell, const Dims& d, const Timetable& timetable, const Problem& p,
               const OnDevice& device) {
    Call call{};
    call.cell = cell;
    call.math = math;
    call.dims = d;
    call.schedule =
        timetable.view(p.resets.empty() ? nullptr : static_cast<const std::uint8_t*>(device.resets.data()));
    call.weights = {device.w_ih.data(), device.w_hh.data(), device.b_ih.data(),
                    device.b_hh.data(), device.w_hr.data(), {}};
    call.x = rows_of<ConstRows>(device.x, d.B);
    call.y = rows_of<decltype(call.y)>(device.y, d.B);
    for (int k = 0; k < kMaxStates; ++k) {
        call.initial[k] = device.initial[k].data();
        call.reset[k] = device.reset[k].data();
        call.reset_stride[k] = device.reset[k].rows() > 1 ? device.reset[k].stride() : 0;
    }
    return call;
}

void run_forward(const Kernel& kernel, const ForwardProblem& call) {
    const DeviceBlock workspace(kernel.forward_workspace(call));
    kernel.forward(call, workspace.data(), nullptr);
}

struct Kernels {
    const Kernel &forward, &backward;
};

LookupTable lookups_of(const Dims& d, const Options& o) {
    auto index = std::make_shared<std::vector<std::int64_t>>(static_cast<std::size_t>(d.T * d.B));
    for (std::size_t i = 0; i < index->size() && o.table > 0; ++i) {
        (*index)[i] = static_cast<std::int64_t>(i) % o.table;
    }
    return LookupTable(std::move(index));
}

void run_training(const Kernels& kernels, const DeviceCell* cell, Math math, const Dims& d, const Problem& p,
                  const Options& o, OnDevice& device) {
    const Timetable timetable(d.T, d.B, o.lengths ? p.lengths.data() : nullptr, o.reverse);
    const CellTraits& traits = *cell;
    const std::int64_t numbers = timetable.rows() * d.H, compute = compute_bytes(math);
    const DeviceBlock saved(numbers * traits.saved * compute),
        states(numbers * (traits.states - 1) * compute), hidden(numbers * storage_bytes(math));
    auto forward = make_call<ForwardProblem>(math, cell, d, timetable, p, device);
    LookupTable lookups = lookups_of(d, o);
    forward.dims.V = o.table;
    if (o.table > 0) lookups.sort(forward.dims, timetable);
    forward.lookups = lookups.view();
    forward.saved = saved.data(), forward.states = states.data(), forward.hidden = hidden.data();
    auto backward = make_call<BackwardProblem>(math, cell, d, timetable, p, device);
    backward.dims.V = o.table;
    backward.lookups = forward.lookups;
    if (o.recompute) forward.saved = nullptr;
    backward.saved = forward.saved, backward.states = states.data(), backward.hidden = hidden.data();
    backward.dy = rows_of<ConstRows>(device.dy, d.B);
    backward.dx = rows_of<Rows>(device.dx, d.B);
    backward.accumulate_dx = o.accumulate_dx;
    for (int k = 0; k < kMaxStates; ++k) {
        forward.final[k] = device.final[k].data();
        backward.dfinal[k] = device.dfinal[k].data();
        backward.dinitial[k] = device.dinitial[k].data();
    }
    backward.dparams = {device.dw_ih.data(), device.dw_hh.data(), device.db_ih.data(),
                        device.db_hh.data(), device.dw_hr.data(), {}};
    run_forward(kernels.forward, forward);
    const DeviceBlock workspace(kernels.backward.backward_workspace(backward));
    kernels.backward.backward(backward, workspace.data(), nullptr);
}

// Without a tape, and with the final states in place of the initial ones.
void run_inference(const Kernel& kernel, const DeviceCell* cell, Math math, const Dims& d, const Problem& p,
                   const Options& o, OnDevice& device) {
    const Timetable timetable(d.T, d.B, o.lengths ? p.lengths.data() : nullptr, o.reverse);
    auto call = make_call<ForwardProblem>(math, cell, d, timetable, p, device);
    const LookupTable lookups = lookups_of(d, o);
    call.dims.V = o.table;
    call.lookups = lookups.view();
    for (int k = 0; k < p.states; ++k)
        call.final[k] = o.initial ? device.initial[k].data() : device.final[k].data();
    run_forward(kernel, call);
}

std::uint64_t digest_of(const DeviceArray& a, const DeviceArray& b, const DeviceArray& c) {
    Digest d;
    a.add_to(d);
    b.add_to(d);
    c.add_to(d);
    return d.value();
}

void set_seed(emulator::Config config, std::uint64_t seed) {
    config.seed = seed;
    emulator::set_config(config);
}

void compare_all(const Problem& p, const Results<double>& want, const OnDevice& got, Report& report) {
    report.compare("y", got.y, want.y, false);
    for (int k = 0; k < p.states; ++k) {
        report.compare("final state", got.final[k], want.final[k], false);
        report.compare("initial state's gradient", got.dinitial[k], want.dinitial[k], true);
    }
    report.compare("dx", got.dx, want.dx, true, p.T * p.B / std::max<std::int64_t>(1, want.dx.rows()) + 1);
    // Added up over all rows, to what the gradient held.
    const std::int64_t terms = 1 + std::accumulate(p.lengths.begin(), p.lengths.end(), std::int64_t{0});
    report.compare("dweight_ih", got.dw_ih, want.dw_ih, true, terms);
    report.compare("dweight_hh", got.dw_hh, want.dw_hh, true, terms);
    report.compare("dbias_ih", got.db_ih, want.db_ih, true, terms);
    report.compare("dbias_hh", got.db_hh, want.db_hh, true, terms);
    report.compare("dweight_hr", got.dw_hr, want.dw_hr, true, terms);
}

// The reference, which knows no tables: the gradients of equal inputs are added up here.
bool reference_of(const Problem& p, const Options& o, Results<double>& want) {
    if (!o.accumulate_dx) want.dx.fill(0.0);
    if (o.table == 0) return reference(p, want);
    Array<double> table = std::move(want.dx);
    want.dx = Array<double>(p.T * p.B, p.I);
    want.dx.fill(0.0);
    const bool known = reference(p, want);
    for (std::int64_t i = 0; i < p.T * p.B; ++i) {
        for (std::int64_t k = 0; k < p.I; ++k) table.row(i % o.table)[k] += want.dx.row(i)[k];
    }
    want.dx = std::move(table);
    return known;
}

Kernels kernels_of(const CellCase& c) {
    const Request request{c.cell, c.math, c.dims, c.config.architecture, c.config.resident_blocks, true};
    return {choose_kernel(request, c.kernel),
            choose_kernel(request, c.backward == nullptr ? c.kernel : c.backward)};
}

}  // namespace

void run_case(const CellCase& c, Report& report) {
    const auto [math, cell, d, counter, plain, name, backward, config] = c;
    const auto seed = static_cast<std::uint64_t>(counter);
    const Options o = options_of(c);
    const Problem p = make_problem(*cell, d, o, math, seed);
    report.begin(math, name_of(p, o));
    const Results<double> start = make_results(p, o, math);
    Results<double> want = make_results(p, o, math);
    if (!reference_of(p, o, want)) {
        report.fail("tests/reference.py knows no such cell", 0);
        return;
    }
    const Kernels kernels = kernels_of(c);
    set_seed(config, seed);
    OnDevice device(p, o, math, start);
    run_training(kernels, cell, math, d, p, o, device);
    compare_all(p, want, device, report);
    // The order in which blocks, warps and threads run is another one: the results are not.
    if (counter % 4 == 0 && training_digest(c, seed + 1) != device.digest()) {
        report.fail("results depend on the order of threads", 0);
    }
    set_seed(config, seed);
    OnDevice inference(p, o, math, start);
    run_inference(kernels.forward, cell, math, d, p, o, inference);
    DeviceArray* const final = o.initial ? inference.initial : inference.final;
    if (digest_of(inference.y, final[0], final[1]) != digest_of(device.y, device.final[0], device.final[1])) {
        report.fail("results differ between inference and training", 0);
    }
}

std::uint64_t training_digest(const CellCase& c, std::uint64_t seed) {
    const Options o = options_of(c);
    const Problem p = make_problem(*c.cell, c.dims, o, c.math, static_cast<std::uint64_t>(c.counter));
    set_seed(c.config, seed);
    OnDevice device(p, o, c.math, make_results(p, o, c.math));
    run_training(kernels_of(c), c.cell, c.math, c.dims, p, o, device);
    return device.digest();
}

std::string run_layer(Math math, const emulator::Config& config) {
    const Dims d{3, 3, 20, 24, 24, 0, false}, projected{2, 3, 20, 24, 16, 0, true};
    const Options options{false, true, true, true, false, true, true, true, true, true, false, false, 0};
    std::string text;
    emulator::set_config(config);
    try {
        for (const auto& [cell, dims] :
             {std::pair{&device_cell("gru"), d}, {&device_cell("lstm"), projected}}) {
            const Problem p = make_problem(*cell, dims, options, math, 5);
            OnDevice device(p, options, math, make_results(p, options, math));
            const Kernel& step = choose_kernel({cell, math, dims, 80, 132, true}, "step");
            run_training({step, step}, cell, math, dims, p, options, device);
            text += std::to_string(device.digest()) + " ";
        }
    } catch (const Error& error) {
        return error.what();
    }
    return text;
}

}  // namespace cuda_check
