// Decoders with attention before their steps: weights in panels, a memory prepared for them, and what a search and a sampling
// have besides. Everything is checked before anything is written.
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/checks.h"
#include "bindings/decoder.h"
#include "bindings/recurrent.h"
#include "bindings/run.h"
#include "bindings/sequence.h"

namespace fusedrnn {
namespace {

Score score_among(const std::string& name) {
    if (name == "additive") return Score::kAdditive;
    if (name == "dot") return Score::kDot;
    if (name == "general") return Score::kGeneral;
    if (name == "window") return Score::kWindow;
    throw py::value_error("score: expected 'additive', 'dot', 'general' or 'window', got '" + name + "'");
}

std::shared_ptr<PackedDecoder> decoder_pack(const std::string& cell_, const py::object& params_,
                                            std::int64_t memory_size, const std::string& score, bool current,
                                            bool feeds, const std::string& compute) {
    auto p = std::make_shared<PackedDecoder>();
    p->cell = &cell_among(kernels().cells, cell_);
    static constexpr const char* kNames[kDecoderParams] = {
        "weight_query",  "weight_memory",   "bias_memory",   "weight_energy", "weight_ih",
        "weight_hh",     "bias_ih",         "bias_hh",       "weight_output", "weight_location",
        "weight_filter", "weight_coverage", "weight_window", "bias_window"};
    const Array like = Array::floats(item_of(params_, "params", kDecoderParams, 4), "weight_ih");
    p->dtype = like.dtype();
    p->compute = read_compute(compute);
    const auto take = [&](int i, const std::vector<Axis>& axes, Presence presence = kRequired) {
        p->params.of[i] =
            Array::parameter(item_of(params_, "params", kDecoderParams, i), kNames[i], like, presence);
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
    if (d.score == Score::kWindow) {
        take(12, {{"3*K"}, {"H", d.H}});
        d.A = size(12, 0, "shape (3*K, H) with K >= 1");
        require(d.A % 3 == 0, kNames[12], "shape (3*K, H)", static_cast<double>(d.A));
        take(13, {{"3*K", d.A}}, kOptional);
    } else if (d.score == Score::kDot) {
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
                                          const py::object& memory_, const py::object& memory_lengths_,
                                          const py::object& table_, bool contexts, std::int64_t steps) {
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
    const Array table =
        Array::like(table_, "table", memory, kOptional).shape({{"V"}, {"I", d.I}}).contiguous();
    d.table = table.given() ? table.size(0) : 0;
    if (table.given()) require(d.table > 0, "table", "shape (V, I) with V >= 1", 0);
    check_sizes(d, decoder->cell->gates);
    checked_product({d.table + d.S * (d.B + 1) + 1, 16 * decoder->cell->gates * (d.H + 64), 8});
    p->first.reserve(p->lengths.size());
    for (const std::int64_t length : p->lengths) {
        p->first.push_back(d.memory_rows);
        d.memory_rows += length;
    }
    // A step waits for the bytes of the weights where it has few rows. Then those of the context are multiplied with the
    // memory once, if what that leaves is a third of them at most, and there are as many steps as rows of the memory. Where a
    // context comes after the step, it is no part of the gates. Kernels of bfloat16 round what they multiply, and what the
    // memory adds is a sum.
    d.contexts = !d.current && decoder->compute == Compute::kFloat32 &&
                 (contexts || (3 * d.memory_rows <= d.M && d.S <= steps));
    by_dtype(decoder->dtype, [&]<class T>() {
        const DecoderKernels<T>& kernels = decoder->kernels<T>();
        p->keys = AlignedBuffer(kernels.key_bytes(d));
        p->projections = AlignedBuffer(kernels.projection_bytes(d));
        DecoderArgs<T> args = decoder->args<T>(d);
        args.keys = p->keys.data();
        args.projections = p->projections.data();
        const DecoderMemory<T> from{memory.data<T>(), p->batch, p->lengths.data()};
        const double work = static_cast<double>(d.memory_rows) * static_cast<double>(d.M * d.A);
        Team team(members_for(work, d.memory_rows));
        const AlignedBuffer workspace(kernels.workspace(d, team.size()));
        run_released(team, [&] { kernels.prepare(args, from, team, workspace.data()); });
        if (d.table == 0 && !d.contexts) return;
        const double rows = static_cast<double>(d.table) * static_cast<double>(d.I) +
                            static_cast<double>(d.contexts ? d.memory_rows * d.M : 0);
        Team more(
            members_for(rows * decoder->cell->gates * static_cast<double>(d.H), d.table + d.memory_rows));
        const AlignedBuffer room(kernels.workspace(d, more.size()));
        run_released(more, [&] { kernels.project(args, table.data<T>(), more, room.data()); });
    });
    return p;
}

std::unique_ptr<DecoderSampler> decoder_sampling(const py::object& weight_, const py::object& bias_,
                                                 const py::object& table_, const py::object& probability_,
                                                 const py::object& seed_, const py::object& offset_,
                                                 const std::string& compute_) {
    const Array weight = Array::floats(weight_, "weight").shape({{"V"}, {"H"}}).contiguous();
    const std::int64_t classes = weight.size(0), units = weight.size(1);
    require(classes > 0, "weight", "shape (V, H) with V >= 1", 0);
    const Array bias = Array::like(bias_, "bias", weight, kOptional).shape({{"V", classes}}).contiguous();
    const Array table = Array::like(table_, "table", weight).shape({{"V", classes}, {"I"}}).contiguous();
    const double probability = finite_number(probability_, "probability");
    require(probability >= 0 && probability <= 1, "probability", "a number in [0, 1]", probability);
    const std::uint64_t seed = unsigned_integer(seed_, "seed"), stream = unsigned_integer(offset_, "offset");
    const Compute compute = read_compute(compute_);
    checked_product({classes + 64, units + 64, 16});
    auto p = std::make_unique<DecoderSampler>(
        DecoderSampler{weight.dtype(), table, classes, units, probability, seed, stream, compute, {}});
    by_dtype(weight.dtype(), [&]<class T>() {
        const DecoderKernels<T>& kernels = decoder_kernels<T>(compute);
        DecoderSizes d{};
        d.classes = classes, d.H = units;
        p->head = AlignedBuffer(kernels.head_bytes(d));
        Team team(1);
        run_released(team, [&] {
            kernels.pack_head(d, weight.data<T>(), bias.given() ? bias.data<T>() : nullptr, p->head.data(),
                              team);
        });
    });
    return p;
}

}  // namespace

void bind_decoder_prepare(py::module_& m) {
    using py::arg;
    py::class_<PackedDecoder, std::shared_ptr<PackedDecoder>>(m, "PackedDecoder",
                                                              "A decoder's weights in panels.");
    py::class_<Prepared, std::shared_ptr<Prepared>>(m, "DecoderMemory", "A memory with its keys.")
        .def_property_readonly("nbytes", &Prepared::nbytes)
        .def_property_readonly("batch", [](const Prepared& p) { return p.batch; });
    m.def("decoder_pack", &decoder_pack, arg("cell"), arg("params"), arg("memory_size"), arg("score"),
          arg("current"), arg("feeds"), arg("compute") = "float32",
          "Return the weights in panels, which hold their parameters.");
    m.def("decoder_prepare", &decoder_prepare, arg("decoder"), arg("memory"), arg("memory_lengths"),
          arg("table"), arg("contexts"), arg("steps") = 0,
          "Return the memory (S, B, M) with its keys, for decoder_forward; for a search what the rows of a "
          "table (V, I) and, with contexts, those of the memory add to the gates besides.");
    py::class_<DecoderSampler>(m, "DecoderSampling", "What draws the inputs of scheduled sampling.");
    m.def("decoder_sampling", &decoder_sampling, arg("weight"), arg("bias"), arg("table"), arg("probability"),
          arg("seed"), arg("offset"), arg("compute") = "float32",
          "Return what replaces inputs by rows of the table (V, I), drawn from softmax(weight y + bias).");
}

}  // namespace fusedrnn
