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
#include "sequence/decoder_table.h"

namespace fusedrnn {
namespace {

constexpr int kParams = 12;

// The arrays of a decoder's parameters, or of their gradients.
struct ParamArrays {
    Array of[kParams];

    template <class T>
    DecoderParams<T> view() const {
        const auto at = [&](int i) { return of[i].given() ? const_cast<T*>(of[i].data<T>()) : nullptr; };
        return {at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7), at(8), at(9), at(10), at(11)};
    }
};

// A decoder's weights in panels, beside those they were made of.
struct PackedDecoder {
    const RecurrentCell* cell;
    DType dtype;
    DecoderSizes sizes{};
    ParamArrays params;
    AlignedBuffer weights;

    template <class T>
    const DecoderKernels<T>& kernels() const {
        return *layer_table<T>().sequence->decoder;
    }
    template <class T>
    DecoderArgs<T> args(const DecoderSizes& d) const {
        DecoderArgs<T> args{};
        args.sizes = d;
        args.params = params.view<const T>();
        args.weights = weights.data();
        return args;
    }
};

// A memory with its keys.
struct Prepared {
    std::shared_ptr<PackedDecoder> decoder;
    DecoderSizes sizes{};
    std::int64_t batch = 0;
    std::vector<std::int64_t> lengths, first;
    AlignedBuffer keys;

    double step_work() const {
        const DecoderSizes& d = sizes;
        const double G = decoder->cell->gates;
        const auto product = [](std::int64_t a, std::int64_t b) {
            return static_cast<double>(a) * static_cast<double>(b);
        };
        return G * product(d.H, d.I + d.fed() + d.H) + (d.current ? product(d.H, d.M + d.H) : 0) +
               product(d.A, d.H + (12 + d.features()) * d.S) + product(d.M + d.filters * d.width, d.S);
    }
    std::int64_t nbytes() const { return decoder->weights.bytes() + keys.bytes(); }
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
        DecoderArgs<T> args = prepared->decoder->args<T>(sizes);
        args.schedule = timetable.view(nullptr);
        args.keeps = true;
        args.memory_first = memory_first.data();
        args.memory_lengths = memory_lengths.data();
        args.x = x.data<T>();
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
    const std::int64_t widths =
        16 * gates * (d.I + d.M + d.A + d.H + checked_product({d.S + 1, d.features() + 1}) + d.width + 64);
    checked_product({d.T + 1, d.B + 1, widths, 8});
    checked_product({d.S + 1, d.B + 1, widths, 8});
    checked_product({d.H + 64, widths, 16});
    checked_product({d.A + 64, widths, 16});
}

Score score_among(const std::string& name) {
    if (name == "additive") return Score::kAdditive;
    if (name == "dot") return Score::kDot;
    if (name == "general") return Score::kGeneral;
    throw py::value_error("score: expected 'additive', 'dot' or 'general', got '" + name + "'");
}

std::shared_ptr<PackedDecoder> decoder_pack(const std::string& cell_, const py::object& params_,
                                            std::int64_t memory_size, const std::string& score, bool current,
                                            bool feeds) {
    auto p = std::make_shared<PackedDecoder>();
    p->cell = &cell_among(kernels().cells, cell_);
    static constexpr const char* kNames[kParams] = {"weight_query",    "weight_memory", "bias_memory",
                                                    "weight_energy",   "weight_ih",     "weight_hh",
                                                    "bias_ih",         "bias_hh",       "weight_output",
                                                    "weight_location", "weight_filter", "weight_coverage"};
    const Array like = Array::floats(item_of(params_, "params", kParams, 4), "weight_ih");
    p->dtype = like.dtype();
    const auto take = [&](int i, const std::vector<Axis>& axes, Presence presence = kRequired) {
        p->params.of[i] = Array::parameter(item_of(params_, "params", kParams, i), kNames[i], like, presence);
        p->params.of[i].shape(axes).contiguous();
        return p->params.of[i].given();
    };
    const auto size = [&](int i, std::size_t axis, const char* expected) {
        const std::int64_t found = p->params.of[i].size(static_cast<int>(axis));
        require(found > 0, kNames[i], expected, static_cast<double>(found));
        return found;
    };
    DecoderSizes& d = p->sizes;
    d.cell = static_cast<int>(p->cell - kernels().cells.first);
    d.score = score_among(score), d.current = current, d.feeds = current && feeds;
    require(memory_size > 0, "memory_size", "M >= 1", static_cast<double>(memory_size));
    d.M = memory_size;
    const int G = p->cell->gates;
    take(5, {{"G*H"}, {"H"}});
    d.H = d.A = size(5, 1, "shape (G*H, H) with H >= 1");
    take(5, {{"H", G * d.H, G}, {"H", d.H}});
    if (d.score == Score::kAdditive) {
        take(0, {{"A"}, {"H", d.H}});
        d.A = size(0, 0, "shape (A, H) with A >= 1");
        take(2, {{"A", d.A}}, kOptional);
        take(3, {{"A", d.A}});
        if (take(9, {{"A", d.A}, {"C"}}, kOptional)) {
            d.filters = size(9, 1, "shape (A, C) with C >= 1");
            take(10, {{"C", d.filters}, {"K"}});
            d.width = size(10, 1, "shape (C, K) with K >= 1");
            require(d.width % 2 == 1, "weight_filter", "shape (C, K) with K odd",
                    static_cast<double>(d.width));
        }
        d.coverage = take(11, {{"A", d.A}}, kOptional);
    }
    if (d.score == Score::kDot) {
        require(d.M == d.H, "memory_size", "H for the score 'dot'", static_cast<double>(d.M));
    } else {
        take(1, {{"A", d.A}, {"M", d.M}});
    }
    if (current) take(8, {{"H", d.H}, {"M+H", d.M + d.H}});
    take(4, {{"H", G * d.H, G}, {"I+F"}});
    d.I = p->params.of[4].size(1) - d.fed();
    require(d.I > 0, "weight_ih", "shape (G*H, I + F) with I >= 1", static_cast<double>(d.I + d.fed()));
    take(6, {{"H", G * d.H, G}}, kOptional);
    take(7, {{"H", G * d.H, G}}, kOptional);
    check_sizes(d, G);
    by_dtype(p->dtype, [&]<class T>() {
        const DecoderKernels<T>& kernels = p->kernels<T>();
        p->weights = AlignedBuffer(kernels.weight_bytes(d));
        Team team(members_for(p->weights.bytes(), d.H));
        run_released(team, [&] { kernels.pack(p->args<T>(d), team); });
    });
    return p;
}

std::shared_ptr<Prepared> decoder_prepare(const std::shared_ptr<PackedDecoder>& decoder,
                                          const py::object& memory_, const py::object& memory_lengths_) {
    if (decoder == nullptr) throw py::type_error("decoder: expected a PackedDecoder, got None");
    auto p = std::make_shared<Prepared>();
    p->decoder = decoder;
    DecoderSizes& d = p->sizes = decoder->sizes;
    const Array memory = Array::floats(memory_, "memory").shape({{"S"}, {"B"}, {"M", d.M}}).contiguous();
    if (memory.dtype() != decoder->dtype) {
        throw py::type_error("memory: expected the dtype of the parameters, got another; use memory.astype");
    }
    d.S = memory.size(0), d.B = p->batch = memory.size(1);
    p->lengths = read_lengths(memory_lengths_, "memory_lengths", p->batch, d.S, "S", kOptional);
    check_sizes(d, decoder->cell->gates);
    p->first.reserve(p->lengths.size());
    for (const std::int64_t length : p->lengths) {
        p->first.push_back(d.memory_rows);
        d.memory_rows += length;
    }
    by_dtype(decoder->dtype, [&]<class T>() {
        const DecoderKernels<T>& kernels = decoder->kernels<T>();
        p->keys = AlignedBuffer(kernels.key_bytes(d));
        DecoderArgs<T> args = decoder->args<T>(d);
        args.keys = p->keys.data();
        const DecoderMemory<T> from{memory.data<T>(), p->batch, p->lengths.data()};
        const double work = static_cast<double>(d.memory_rows) * static_cast<double>(d.M * d.A);
        Team team(members_for(work, d.memory_rows));
        const AlignedBuffer workspace(kernels.workspace(d, team.size()));
        run_released(team, [&] { kernels.prepare(args, from, team, workspace.data()); });
    });
    return p;
}

py::tuple decoder_forward(const std::shared_ptr<Prepared>& prepared, const py::object& x_,
                          const py::object& lengths_, const py::object& state_, const py::object& rows_,
                          bool keep) {
    if (prepared == nullptr) throw py::type_error("prepared: expected a DecoderMemory, got None");
    const Prepared& p = *prepared;
    const Array x = Array::floats(x_, "x").shape({{"T"}, {"B"}, {"I", p.sizes.I}}).contiguous();
    if (x.dtype() != p.decoder->dtype) {
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
    const RecurrentCell& cell = *p.decoder->cell;
    check_sizes(sizes, cell.gates);
    const auto lengths = read_lengths(lengths_, "lengths", sizes.B, sizes.T, "T", kOptional);
    // Of the cell; the output, the attention and the coverage of the step before.
    Array initial[kMaxStates + 3];
    for (int k = 0; k < cell.states + 3 && !state_.is_none(); ++k) {
        const Axis width = k <= cell.states ? Axis{"H", sizes.H} : Axis{"S", sizes.S};
        initial[k] = Array::like(item_of(state_, "state", cell.states + 3, k), {"state", k}, x, kOptional)
                         .shape({{"B", sizes.B}, width})
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
    py::array y = new_array(p.decoder->dtype, {sizes.T, sizes.B, sizes.H}),
              alpha = new_array(p.decoder->dtype, {sizes.T, sizes.B, sizes.S});
    py::tuple state(cell.states);
    by_dtype(p.decoder->dtype, [&]<class T>() {
        const DecoderKernels<T>& kernels = p.decoder->kernels<T>();
        tape->tape = AlignedBuffer(kernels.tape_bytes(tape->sizes, keep));
        DecoderArgs<T> args = tape->args<T>();
        args.keeps = keep;
        args.y = values_of<T>(y), args.alpha = values_of<T>(alpha);
        for (int k = 0; k < cell.states; ++k) {
            py::array final_state = new_array(p.decoder->dtype, {sizes.B, sizes.H});
            args.final[k] = values_of<T>(final_state);
            args.initial[k] = initial[k].given() ? initial[k].data<T>() : nullptr;
            state[static_cast<std::size_t>(k)] = final_state;
        }
        const Array* const more = initial + cell.states;
        args.feed = more[0].given() ? more[0].data<T>() : nullptr;
        args.attention = more[1].given() ? more[1].data<T>() : nullptr;
        args.covered = more[2].given() ? more[2].data<T>() : nullptr;
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
    for (int k = 0; k < p.decoder->cell->states && !dstate_.is_none(); ++k) {
        dfinal[k] = Array::like(item_of(dstate_, "dstate", p.decoder->cell->states, k), {"dstate", k}, tape.x,
                                kOptional)
                        .shape({{"B", d.B}, {"H", d.H}})
                        .contiguous();
    }
    ParamArrays grads;
    for (int i = 0; i < kParams && !grads_.is_none(); ++i) {
        const Array& parameter = p.decoder->params.of[i];
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
    py::array dx = new_array(p.decoder->dtype, {need_dx ? d.T : 0, d.B, d.I}),
              dmemory = new_array(p.decoder->dtype, {d.S, d.B, d.M});
    py::tuple dstate(p.decoder->cell->states);
    by_dtype(p.decoder->dtype, [&]<class T>() {
        const DecoderKernels<T>& kernels = p.decoder->kernels<T>();
        DecoderBackwardArgs<T> args{};
        args.forward = tape.args<T>();
        args.memory_owner = owner.data(), args.memory_step = step.data();
        args.dy = dy.given() ? dy.data<T>() : nullptr;
        args.dalpha = dalpha.given() ? dalpha.data<T>() : nullptr;
        for (int k = 0; k < p.decoder->cell->states; ++k) {
            args.dfinal[k] = dfinal[k].given() ? dfinal[k].data<T>() : nullptr;
            py::array dinitial = new_array(p.decoder->dtype, {d.B, d.H});
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
    py::class_<PackedDecoder, std::shared_ptr<PackedDecoder>>(m, "PackedDecoder",
                                                              "A decoder's weights in panels.");
    py::class_<Prepared, std::shared_ptr<Prepared>>(m, "DecoderMemory", "A memory with its keys.")
        .def_property_readonly("nbytes", &Prepared::nbytes)
        .def_property_readonly("batch", [](const Prepared& p) { return p.batch; });
    py::class_<DecoderTape>(m, "DecoderTape", "What the steps of a decoder keep for backward.")
        .def_property_readonly("nbytes", &DecoderTape::nbytes);
    m.def("decoder_pack", &decoder_pack, arg("cell"), arg("params"), arg("memory_size"), arg("score"),
          arg("current"), arg("feeds"), "Return the weights in panels, which hold their parameters.");
    m.def("decoder_prepare", &decoder_prepare, arg("decoder"), arg("memory"), arg("memory_lengths"),
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
