// Decoders with attention: a memory prepared for them, the steps over it, and their backward. Everything is checked before
// anything is written.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "bindings/checks.h"
#include "bindings/run.h"
#include "bindings/sequence.h"
#include "bindings/timetable.h"
#include "cpu/partition.h"
#include "layers/layer_table.h"

namespace fusedrnn {
namespace {

constexpr int kParams = 9;

// The arrays of a decoder's parameters, or of their gradients.
struct ParamArrays {
    Array of[kParams];

    template <class T>
    DecoderParams<T> view() const {
        const auto at = [&](int i) { return of[i].given() ? const_cast<T*>(of[i].data<T>()) : nullptr; };
        return {at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7), at(8)};
    }
};

// A memory with its keys, and the weights in panels.
struct Prepared {
    const RecurrentCell* cell;
    DType dtype;
    DecoderSizes sizes{};
    std::int64_t batch = 0;
    std::vector<std::int64_t> lengths, first;
    ParamArrays params;
    AlignedBuffer weights, keys;

    template <class T>
    const DecoderKernels<T>& kernels() const {
        return *layer_table<T>().sequence->decoder;
    }
    double step_work() const {
        const DecoderSizes& d = sizes;
        const double G = cell->gates;
        return static_cast<double>(d.H) * G * static_cast<double>(d.I + d.fed() + d.H) +
               (d.current ? static_cast<double>(d.H) * static_cast<double>(d.M + d.H) : 0) +
               static_cast<double>(d.A) * static_cast<double>(d.H + 12 * d.S) +
               static_cast<double>(d.M) * static_cast<double>(d.S);
    }
    std::int64_t nbytes() const { return weights.bytes() + keys.bytes(); }
};

struct DecoderTape {
    std::shared_ptr<Prepared> prepared;
    Timetable timetable;
    DecoderSizes sizes;
    std::vector<std::int64_t> memory_first, memory_lengths;
    Array x;
    bool has_state[kMaxStates]{};
    AlignedBuffer tape;

    template <class T>
    DecoderArgs<T> args() const {
        DecoderArgs<T> args{};
        args.sizes = sizes;
        args.schedule = timetable.view(nullptr);
        args.keeps = true;
        args.memory_first = memory_first.data();
        args.memory_lengths = memory_lengths.data();
        args.params = prepared->params.view<const T>();
        args.x = x.data<T>();
        args.weights = prepared->weights.data();
        args.keys = prepared->keys.data();
        args.tape = tape.data();
        return args;
    }
    std::int64_t nbytes() const { return prepared->nbytes() + tape.bytes() + timetable.nbytes(); }
};

int members_for(double work, std::int64_t batch) {
    return static_cast<int>(
        std::min<std::int64_t>(dense_threads(2 * work), std::max<std::int64_t>(batch, 1)));
}

// Beyond any memory before sizes are multiplied.
void check_sizes(const DecoderSizes& d, std::int64_t gates) {
    const std::int64_t widths = 16 * gates * (d.I + d.M + d.A + d.H + d.S + 64);
    checked_product({d.T + 1, d.B + 1, widths, 8});
    checked_product({d.S + 1, d.B + 1, widths, 8});
    checked_product({d.H + 64, widths, 16});
    checked_product({d.A + 64, widths, 16});
}

template <class T>
void fill_prepared(Prepared& p, const Array& memory) {
    const DecoderKernels<T>& kernels = p.kernels<T>();
    p.weights = AlignedBuffer(kernels.weight_bytes(p.sizes));
    p.keys = AlignedBuffer(kernels.key_bytes(p.sizes));
    DecoderArgs<T> args{};
    args.sizes = p.sizes;
    args.params = p.params.view<const T>();
    args.weights = p.weights.data();
    args.keys = p.keys.data();
    const double work = static_cast<double>(p.sizes.memory_rows) * static_cast<double>(p.sizes.M * p.sizes.A);
    Team team(members_for(work, p.sizes.memory_rows));
    const AlignedBuffer workspace(kernels.workspace(p.sizes, team.size()));
    const DecoderMemory<T> from{memory.data<T>(), p.batch, p.lengths.data()};
    run_released(team, [&] {
        kernels.pack(args, team);
        if (!team.was_cancelled()) kernels.prepare(args, from, team, workspace.data());
    });
}

Score score_among(const std::string& name) {
    if (name == "additive") return Score::kAdditive;
    if (name == "dot") return Score::kDot;
    if (name == "general") return Score::kGeneral;
    throw py::value_error("score: expected 'additive', 'dot' or 'general', got '" + name + "'");
}

std::shared_ptr<Prepared> decoder_prepare(const std::string& cell_, const py::object& memory_,
                                          const py::object& memory_lengths_, const py::object& params_,
                                          const std::string& score, bool current, bool feeds) {
    auto p = std::make_shared<Prepared>();
    p->cell = &cell_among(kernels().cells, cell_);
    const Array memory = Array::floats(memory_, "memory").shape({{"S"}, {"B"}, {"M"}}).contiguous();
    p->dtype = memory.dtype();
    DecoderSizes& d = p->sizes;
    d.cell = static_cast<int>(p->cell - kernels().cells.first);
    d.score = score_among(score), d.current = current, d.feeds = current && feeds;
    const bool additive = d.score == Score::kAdditive;
    d.S = memory.size(0), p->batch = memory.size(1), d.M = memory.size(2);
    const int G = p->cell->gates;
    static constexpr const char* kNames[kParams] = {"weight_query",  "weight_memory", "bias_memory",
                                                    "weight_energy", "weight_ih",     "weight_hh",
                                                    "bias_ih",       "bias_hh",       "weight_output"};
    const auto take = [&](int i, const std::vector<Axis>& axes, Presence presence = kRequired) {
        p->params.of[i] =
            Array::parameter(item_of(params_, "params", kParams, i), kNames[i], memory, presence);
        p->params.of[i].shape(axes).contiguous();
    };
    take(5, {{"G*H"}, {"H"}});
    d.H = p->params.of[5].size(1);
    require(d.H > 0, "weight_hh", "shape (G*H, H) with H >= 1", static_cast<double>(d.H));
    take(5, {{"H", G * d.H, G}, {"H", d.H}});
    require(d.M > 0, "memory", "shape (S, B, M) with M >= 1", static_cast<double>(d.M));
    d.A = d.H;
    if (additive) {
        take(0, {{"A"}, {"H", d.H}});
        d.A = p->params.of[0].size(0);
        require(d.A > 0, "weight_query", "shape (A, H) with A >= 1", static_cast<double>(d.A));
        take(2, {{"A", d.A}}, kOptional);
        take(3, {{"A", d.A}});
    }
    if (d.score == Score::kDot) {
        require(d.M == d.H, "memory", "shape (S, B, H) for the score 'dot'", static_cast<double>(d.M));
    } else {
        take(1, {{"A", d.A}, {"M", d.M}});
    }
    if (current) take(8, {{"H", d.H}, {"M+H", d.M + d.H}});
    take(4, {{"H", G * d.H, G}, {"I+F"}});
    d.I = p->params.of[4].size(1) - d.fed();
    require(d.I > 0, "weight_ih", "shape (G*H, I + F) with I >= 1", static_cast<double>(d.I + d.fed()));
    take(6, {{"H", G * d.H, G}}, kOptional);
    take(7, {{"H", G * d.H, G}}, kOptional);
    p->lengths = read_lengths(memory_lengths_, "memory_lengths", p->batch, d.S, "S", kOptional);
    d.B = p->batch;
    check_sizes(d, G);
    p->first.reserve(p->lengths.size());
    for (const std::int64_t length : p->lengths) {
        p->first.push_back(d.memory_rows);
        d.memory_rows += length;
    }
    by_dtype(p->dtype, [&]<class T>() { fill_prepared<T>(*p, memory); });
    return p;
}

py::tuple decoder_forward(const std::shared_ptr<Prepared>& prepared, const py::object& x_,
                          const py::object& lengths_, const py::object& state_, const py::object& rows_,
                          bool keep) {
    if (prepared == nullptr) throw py::type_error("prepared: expected a DecoderMemory, got None");
    const Prepared& p = *prepared;
    const Array x = Array::floats(x_, "x").shape({{"T"}, {"B"}, {"I", p.sizes.I}}).contiguous();
    if (x.dtype() != p.dtype) {
        throw py::type_error("x: expected the dtype of the memory, got another; use x.astype(memory.dtype)");
    }
    DecoderSizes sizes = p.sizes;
    sizes.T = x.size(0), sizes.B = x.size(1);
    std::vector<std::int64_t> owner;
    if (rows_.is_none()) {
        if (sizes.B != p.batch) {
            throw py::value_error("x: expected shape (T, B, I) with B = " + std::to_string(p.batch) +
                                  " as the memory, got B = " + std::to_string(sizes.B));
        }
    } else {
        if (keep) throw py::value_error("rows: expected None where a tape is kept, got rows");
        owner =
            checked_indices(Array::int64(rows_, "rows").shape({{"B", sizes.B}}).contiguous(), p.batch, "B");
    }
    check_sizes(sizes, p.cell->gates);
    const auto lengths = read_lengths(lengths_, "lengths", sizes.B, sizes.T, "T", kOptional);
    // Of the cell, and the output before.
    const int states = p.cell->states;
    Array initial[kMaxStates + 1];
    for (int k = 0; k < states + sizes.feeds && !state_.is_none(); ++k) {
        initial[k] =
            Array::like(item_of(state_, "state", states + sizes.feeds, k), {"state", k}, x, kOptional)
                .shape({{"B", sizes.B}, {"H", sizes.H}})
                .contiguous();
    }
    auto tape = std::make_unique<DecoderTape>(
        DecoderTape{prepared, Timetable(sizes.T, sizes.B, lengths.data(), false), sizes, {}, {}, x, {}, {}});
    tape->sizes.rows = keep ? tape->timetable.rows() : 2 * sizes.B;
    const Schedule schedule = tape->timetable.view(nullptr);
    for (std::int64_t i = 0; i < sizes.B; ++i) {
        const std::int64_t b =
            owner.empty() ? schedule.order[i] : owner[static_cast<std::size_t>(schedule.order[i])];
        tape->memory_first.push_back(p.first[static_cast<std::size_t>(b)]);
        tape->memory_lengths.push_back(p.lengths[static_cast<std::size_t>(b)]);
    }
    py::array y = new_array(p.dtype, {sizes.T, sizes.B, sizes.H}),
              alpha = new_array(p.dtype, {sizes.T, sizes.B, sizes.S});
    py::tuple state(p.cell->states);
    by_dtype(p.dtype, [&]<class T>() {
        const DecoderKernels<T>& kernels = p.kernels<T>();
        tape->tape = AlignedBuffer(kernels.tape_bytes(tape->sizes, keep));
        DecoderArgs<T> args = tape->args<T>();
        args.keeps = keep;
        args.y = values_of<T>(y), args.alpha = values_of<T>(alpha);
        for (int k = 0; k < p.cell->states; ++k) {
            py::array final_state = new_array(p.dtype, {sizes.B, sizes.H});
            args.final[k] = values_of<T>(final_state);
            args.initial[k] = initial[k].given() ? initial[k].data<T>() : nullptr;
            state[static_cast<std::size_t>(k)] = final_state;
        }
        if (initial[states].given()) args.feed = initial[states].data<T>();
        Team team(members_for(p.step_work() * static_cast<double>(tape->timetable.rows()), sizes.B));
        const AlignedBuffer workspace(kernels.workspace(tape->sizes, team.size()));
        run_released(team, [&] { kernels.forward(args, team, workspace.data()); });
    });
    if (!keep) return py::make_tuple(y, alpha, state, py::none());
    return py::make_tuple(y, alpha, state, py::cast(std::move(tape)));
}

py::tuple decoder_backward(const DecoderTape& tape, const py::object& dy_, const py::object& dalpha_,
                           const py::object& dstate_, const py::object& grads_, bool need_dx) {
    const Prepared& p = *tape.prepared;
    const DecoderSizes& d = tape.sizes;
    const Array dy =
        Array::like(dy_, "dy", tape.x, kOptional).shape({{"T", d.T}, {"B", d.B}, {"H", d.H}}).contiguous();
    const Array dalpha = Array::like(dalpha_, "dalpha", tape.x, kOptional)
                             .shape({{"T", d.T}, {"B", d.B}, {"S", d.S}})
                             .contiguous();
    Array dfinal[kMaxStates];
    for (int k = 0; k < p.cell->states && !dstate_.is_none(); ++k) {
        dfinal[k] =
            Array::like(item_of(dstate_, "dstate", p.cell->states, k), {"dstate", k}, tape.x, kOptional)
                .shape({{"B", d.B}, {"H", d.H}})
                .contiguous();
    }
    ParamArrays grads;
    for (int i = 0; i < kParams && !grads_.is_none(); ++i) {
        const Array& parameter = p.params.of[i];
        const py::object value = item_of(grads_, "grads", kParams, i);
        if (!parameter.given() && value.is_none()) continue;
        grads.of[i] = Array::like(value, {"grads", i}, tape.x).shape_of(parameter).writable();
        grads.of[i].apart_from(dy).apart_from(dalpha).apart_from(tape.x).apart_from(parameter);
        for (int j = 0; j < i; ++j) grads.of[i].apart_from(grads.of[j]);
    }
    std::vector<std::int64_t> owner, step;
    for (std::int64_t b = 0; b < p.batch; ++b) {
        for (std::int64_t s = 0; s < p.lengths[static_cast<std::size_t>(b)]; ++s)
            owner.push_back(b), step.push_back(s);
    }
    py::array dx = new_array(p.dtype, {need_dx ? d.T : 0, d.B, d.I}),
              dmemory = new_array(p.dtype, {d.S, d.B, d.M});
    py::tuple dstate(p.cell->states);
    by_dtype(p.dtype, [&]<class T>() {
        const DecoderKernels<T>& kernels = p.kernels<T>();
        DecoderBackwardArgs<T> args{};
        args.forward = tape.args<T>();
        args.memory_owner = owner.data(), args.memory_step = step.data();
        args.dy = dy.given() ? dy.data<T>() : nullptr;
        args.dalpha = dalpha.given() ? dalpha.data<T>() : nullptr;
        for (int k = 0; k < p.cell->states; ++k) {
            args.dfinal[k] = dfinal[k].given() ? dfinal[k].data<T>() : nullptr;
            py::array dinitial = new_array(p.dtype, {d.B, d.H});
            args.dinitial[k] = values_of<T>(dinitial);
            dstate[static_cast<std::size_t>(k)] = dinitial;
        }
        args.dx = need_dx ? values_of<T>(dx) : nullptr;
        args.dmemory = values_of<T>(dmemory);
        std::fill_n(args.dmemory, dmemory.size(), T(0));
        args.dparams = grads.view<T>();
        Team team(members_for(2 * p.step_work() * static_cast<double>(d.rows), d.B));
        const AlignedBuffer workspace(kernels.backward_workspace(d, team.size()));
        run_released(team, [&] { kernels.backward(args, team, workspace.data()); });
    });
    return py::make_tuple(need_dx ? py::object(dx) : py::none(), dmemory, dstate);
}

}  // namespace

void bind_decoder(py::module_& m) {
    using py::arg;
    py::class_<Prepared, std::shared_ptr<Prepared>>(
        m, "DecoderMemory", "A memory with its keys, and a decoder's weights in panels.")
        .def_property_readonly("nbytes", &Prepared::nbytes)
        .def_property_readonly("batch", [](const Prepared& p) { return p.batch; });
    py::class_<DecoderTape>(m, "DecoderTape", "What the steps of a decoder keep for backward.")
        .def_property_readonly("nbytes", &DecoderTape::nbytes);
    m.def("decoder_prepare", &decoder_prepare, arg("cell"), arg("memory"), arg("memory_lengths"),
          arg("params"), arg("score"), arg("current"), arg("feeds"),
          "Return the memory (S, B, M) with its keys, for decoder_forward.");
    m.def(
        "decoder_forward", &decoder_forward, arg("prepared"), arg("x"), arg("lengths"), arg("state"),
        arg("rows"), arg("keep"),
        "Return y (T, B, H), alpha (T, B, S), the state and the tape; rows (B,) says which row of the memory "
        "each of x attends to.");
    m.def("decoder_backward", &decoder_backward, arg("tape"), arg("dy"), arg("dalpha"), arg("dstate"),
          arg("grads"), arg("need_dx"), "Return dx, dmemory and dstate; grads are added to.");
}

}  // namespace fusedrnn
