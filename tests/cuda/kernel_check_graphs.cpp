// Calls that come again and run as a graph: the same numbers, whatever the memory holds by then; and calls that
// must not.
#include <array>
#include <optional>
#include <string>

#include "bindings/timetable.h"
#include "graphs.h"
#include "kernel_check.h"
#include "kernel_table.h"

namespace cuda_check {

using namespace fusedrnn::cuda;
using fusedrnn::Dims;

namespace {

int launched = 0, replayed = 0;

void count(Math, const char* kernel, const char*) {
    ++(std::string(kernel) == "graph" ? replayed : launched);
}

Array<double> random_rows(std::uint64_t seed, std::int64_t rows, std::int64_t width) {
    Random random(seed);
    Array<double> a(rows, width);
    a.fill(random, 0.5);
    return a;
}

// h' = tanh(a) sigmoid(b) + c of three gates, as data.
const DeviceCell& program_cell() {
    using namespace fusedrnn;
    static constexpr Instruction forward[] = {
        {kProgram_tanh, 4, 0, 0, 0}, {kProgram_sigmoid, 5, 1, 1, 1}, {kProgram_fma, 3, 4, 5, 2}};
    static constexpr Instruction backward[] = {
        {kProgram_tanh_slope, 3, 2, 1, 0}, {kProgram_sigmoid_slope, 4, 2, 0, 1}, {kProgram_copy, 5, 2, 2, 2}};
    // Gates, the state after the step and before it, what is kept.
    constexpr int kGates = 3, kAfter = 6, kBefore = 7, kSaved = 8, kEnd = 10;
    static constexpr std::uint16_t in[] = {kGates, kGates + 1, kGates + 2, kAfter, kSaved, kSaved + 1};
    static constexpr std::uint16_t out[] = {kSaved, kSaved + 1, kAfter, kGates, kGates + 1, kGates + 2};
    static const ProgramStage stages[] = {{{forward, 3, nullptr, in, 0, 6, 0, 3, 0, 1, 0}, nullptr, 0},
                                          {{forward, 3, nullptr, in, 0, 4, 2, 3, 0, 1, 0}, nullptr, 0},
                                          {{backward, 3, nullptr, out, 0, 6, 0, 3, 0, 1, 0}, nullptr, 0}};
    static const CellPrograms cell = [] {
        CellPrograms p{};
        p.forward = {stages, 1, 0, 1, 0};
        p.inference = {stages + 1, 1, 0, 1, 0};
        p.backward = {stages + 2, 1, 0, 1, 0};
        p.hidden_product = true;
        p.first_gates = p.gates = kGates;
        p.after = kAfter, p.before = kBefore, p.saved = kSaved;
        p.units = p.before_gradients = kEnd;
        p.unit_gradients = p.links = p.operands = p.masks = p.values = kEnd + 1;
        return p;
    }();
    static const DevicePrograms programs(cell);
    static const DeviceCell made = [] {
        const DeviceCell& gru = device_cell("gru");
        const CellTraits traits{"program",          kGates, 1, 2, 0, false, false, gru.parameters,
                                gru.parameter_count};
        return DeviceCell{traits, {}, {}, {}, &programs};
    }();
    return made;
}

// A cell of three gates, its forward and its backward, always in the same memory.
class Layer {
  public:
    explicit Layer(Dims dims, const std::int64_t* lengths = nullptr,
                   const DeviceCell& cell = device_cell("gru"))
        : cell_(cell),
          d_(dims),
          timetable_(d_.T, d_.B, lengths, false),
          x_(Kind::f32, d_.T * d_.B, d_.I),
          w_ih_(Kind::f32, 3 * d_.H, d_.I),
          w_hh_(Kind::f32, 3 * d_.H, d_.H),
          dy_(Kind::f32, d_.T * d_.B, d_.H),
          y_(Kind::f32, d_.T * d_.B, d_.H),
          dx_(Kind::f32, d_.T * d_.B, d_.I),
          dw_ih_(Kind::f32, 3 * d_.H, d_.I),
          dw_hh_(Kind::f32, 3 * d_.H, d_.H),
          saved_(d_.T * d_.B * d_.H * cell_.saved * 4),
          kernel_(choose_kernel({&cell_, Math::ieee, d_, 80, 16, true}, "step")) {
        set(forward);
        forward.y = rows<Rows>(y_);
        set(backward);
        backward.y = rows<ConstRows>(y_);
        backward.dy = rows<ConstRows>(dy_);
        backward.dx = rows<Rows>(dx_);
        backward.dparams = {dw_ih_.data(), dw_hh_.data(), nullptr, nullptr, nullptr, {}};
        forward_memory_.emplace(kernel_.forward_workspace(forward));
        backward_memory_.emplace(kernel_.backward_workspace(backward));
    }

    // Everything that a call reads.
    void write(std::uint64_t seed) const {
        for (const DeviceArray* a : {&x_, &w_ih_, &w_hh_, &dy_}) {
            const DeviceArray from(Kind::f32, random_rows(seed++, a->rows(), a->stride()));
            copy(a->data(), from.data(), bytes(*a), nullptr);
        }
        for (const DeviceArray* a : {&dw_ih_, &dw_hh_}) fill(a->data(), 0, bytes(*a), nullptr);
    }
    void call(Stream stream) const {
        kernel_.forward(forward, forward_memory_->data(), stream);
        kernel_.backward(backward, backward_memory_->data(), stream);
    }
    std::uint64_t digest() const {
        Digest digest;
        for (const DeviceArray* a : {&y_, &dx_, &dw_ih_, &dw_hh_}) a->add_to(digest);
        return digest.value();
    }
    // What a call with these numbers gives, and how it ran.
    std::uint64_t run(std::uint64_t seed) const {
        write(seed);
        launched = replayed = 0;
        call(nullptr);
        return digest();
    }

    ForwardProblem forward{};
    BackwardProblem backward{};

  private:
    const DeviceCell& cell_;

    static std::size_t bytes(const DeviceArray& a) {
        return static_cast<std::size_t>(a.rows() * a.stride() * 4);
    }
    template <class Row>
    Row rows(const DeviceArray& a) const {
        return {a.data(), d_.B * a.stride(), a.stride()};
    }
    template <class Problem>
    void set(Problem& problem) const {
        problem.cell = &cell_;
        problem.dims = d_;
        problem.schedule = timetable_.view(nullptr);
        problem.weights = {w_ih_.data(), w_hh_.data(), nullptr, nullptr, nullptr, {}};
        problem.x = rows<ConstRows>(x_);
        problem.saved = saved_.data();
    }

    Dims d_;
    fusedrnn::Timetable timetable_;
    DeviceArray x_, w_ih_, w_hh_, dy_, y_, dx_, dw_ih_, dw_hh_;
    DeviceBlock saved_;
    const Kernel& kernel_;
    std::optional<DeviceBlock> forward_memory_, backward_memory_;
};

constexpr Dims kDims{4, 3, 5, 16, 16, 0, false};

void expect(bool good, const char* what, Report& report) {
    if (!good) report.fail(what, launched + 1e-3 * replayed);
}

void check_repeated(const DeviceCell& cell, Report& report) {
    const Layer layer(kDims, nullptr, cell);
    const std::uint64_t first = layer.run(1);
    const int plain = launched;
    expect(plain > 2 * kDims.T && replayed == 0, "the first call runs plainly", report);
    const std::uint64_t other = layer.run(2);
    expect(replayed == 2 && first != other, "the second call is captured", report);
    expect(layer.run(1) == first && launched == 0 && replayed == 2, "the third call is a graph", report);
    expect(layer.run(2) == other && launched == 0, "with other numbers", report);
    // In a stream that the caller captures the launches are the caller's.
    launched = replayed = 0;
    const Graph graph = capture([&](Stream stream) { layer.call(stream); });
    expect(launched == plain && replayed == 0, "captured by the caller", report);
    layer.write(1);
    launch_graph(graph, nullptr);
    expect(layer.digest() == first, "the caller's graph", report);
    destroy_graph(graph);
}

void check_other_calls(Report& report) {
    Layer layer(kDims);
    for (int i = 0; i < 3; ++i) layer.run(1);
    const DeviceArray elsewhere(Kind::f32, kDims.T * kDims.B, kDims.H);
    void* const usual = layer.forward.y.data;
    layer.forward.y.data = elsewhere.data();
    layer.run(1);
    expect(replayed == 1, "another pointer is another call", report);
    layer.forward.y.data = usual;
    layer.run(1);
    expect(replayed == 2, "the pointer is back", report);
    layer.forward.dims.T = layer.backward.dims.T = kDims.T - 1;
    const fusedrnn::Timetable shorter(kDims.T - 1, kDims.B, nullptr, false);
    layer.forward.schedule = layer.backward.schedule = shorter.view(nullptr);
    layer.run(1);
    expect(replayed == 0, "another size is another call", report);
    layer.forward.draws.drawn = true;
    for (int i = 0; i < 3; ++i) layer.run(1);
    expect(replayed == 1, "masks are no graph", report);
    const std::int64_t lengths[] = {4, 1, 2};
    const Layer ragged(kDims, lengths);
    for (int i = 0; i < 3; ++i) ragged.run(1);
    expect(replayed == 0, "rows of different lengths are no graph", report);
}

void check_cache(Report& report) {
    const Layer layer(kDims);
    Graphs graphs;
    std::array<unsigned char, 4> memory;
    int runs = 0;
    const auto run = [&](std::int64_t workspace_bytes, const Graphs::Launches& launches) {
        graphs.run(layer.forward, nullptr, workspace_bytes, nullptr, launches);
    };
    // Memory cannot be had while a stream is captured.
    for (int i = 0; i < 3; ++i) {
        run(0, [&](Stream stream) {
            fusedrnn::cuda::free(allocate(1, stream), stream);
            ++runs;
        });
    }
    expect(runs == 3 && graphs.calls() == 1 && graphs.graphs() == 0, "what cannot be captured runs plainly",
           report);
    const auto fill_memory = [&](Stream stream) { fill(memory.data(), 1, memory.size(), stream); };
    for (std::int64_t i = 1; i <= 3 * static_cast<std::int64_t>(Graphs::kMostCalls); ++i) {
        run(i, fill_memory);
        run(i, fill_memory);
    }
    expect(graphs.calls() == Graphs::kMostCalls && graphs.graphs() == Graphs::kMostCalls,
           "the cache is bounded", report);
}

}  // namespace

void check_graphs(Report& report) {
    for (const char* cublas : {"0", FUSEDRNN_FAKE_CUBLAS}) {
        if (!report.next_always()) continue;
        choose_cublas(cublas);
        report.begin(Math::ieee, std::string("graphs, cublas ") + cublas);
        emulator::set_config({});
        launch_observer = count;
        check_repeated(device_cell("gru"), report);
        check_repeated(program_cell(), report);
        check_other_calls(report);
        check_cache(report);
        launch_observer = nullptr;
    }
    choose_cublas("0");
}

}  // namespace cuda_check
