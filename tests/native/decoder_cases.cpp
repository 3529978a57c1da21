// The decoder's kernels against one row and one step at a time in double; gradients against differences of that along a
// direction for each array.
#include "decoder_case.h"

namespace kernel_check {
namespace {

template <class T>
void check_decoder(const DecoderKernels<T>& kernels, const DecoderProblem& problem, const std::string& kind,
                   Report& report) {
    DecoderCase<T> own(kernels, problem, kind);
    DecoderProblem& p = own.p;
    const DecoderSizes& d = p.d;
    const Compute compute = p.compute;
    const std::string& name = own.name;
    Random& random = own.random;
    Values& values = own.values;
    std::vector<Array<T>> grads;
    for (int i = 0; i < kArrays; ++i) grads.push_back(Array<T>(1, p.size(i)).fill(T(0)));
    Array<T> y(1, d.T * d.B * d.H), alpha(1, d.T * d.B * d.S), final_state(1, d.B * d.H);
    Array<T>* const results[] = {&y, &alpha, &final_state};
    Array<T> centres(1, d.B * d.windows());
    Workspace tape(kernels.tape_bytes(d, true)), workspace(kernels.workspace(d, 1)),
        back(kernels.backward_workspace(d, 1)), columns(kernels.column_bytes(d));
    DecoderArgs<T> args = own.args;
    args.keeps = true;
    args.y = y.data(), args.alpha = alpha.data(), args.final[0] = final_state.data();
    args.final_centres = centres.data();
    args.tape = tape.template as<char>();
    Team& team = own.team;
    kernels.forward(args, team, workspace.template as<char>());

    const Row want = reference(p, values);
    std::size_t place = 0;
    Digest outputs, gradients;
    Row flow;
    std::vector<Array<T>> flows;
    for (Array<T>* result : results) {
        Array<double> expected(1, result->width());
        for (std::int64_t i = 0; i < result->width(); ++i) expected.data()[i] = want[place++];
        report.compare(name, "forward", *result, expected);
        outputs.add(*result);
        flows.push_back(Array<T>(1, result->width()).fill(random, 1));
        flow.insert(flow.end(), flows.back().data(), flows.back().data() + result->width());
    }
    // A search, to which every row of x is a token.
    {
        std::vector<std::int64_t> tokens;
        for (std::int64_t i = 0; i < d.T * d.B; ++i) tokens.push_back(i);
        Array<T> found(1, d.T * d.B * d.H), looked(1, d.T * d.B * d.S), last(1, d.B * d.H);
        DecoderArgs<T> search = args;
        search.sizes.table = d.T * d.B, search.sizes.contexts = !d.current && compute == Compute::kFloat32,
        search.sizes.rows = 2 * d.B;
        search.keeps = false;
        Workspace projections(kernels.projection_bytes(search.sizes)),
            two(kernels.tape_bytes(search.sizes, false)), room(kernels.workspace(search.sizes, 1));
        search.projections = projections.template as<char>(), search.tape = two.template as<char>();
        search.tokens = tokens.data(), search.x = nullptr;
        search.y = found.data(), search.alpha = looked.data(), search.final[0] = last.data();
        kernels.project(search, own.arrays[kX].data(), team, room.template as<char>());
        kernels.forward(search, team, room.template as<char>());
        Array<double> expected(1, found.width());
        for (std::int64_t i = 0; i < found.width(); ++i)
            expected.data()[i] = want[static_cast<std::size_t>(i)];
        report.compare(name, "search", found, expected);
    }
    DecoderBackwardArgs<T> b{};
    b.forward = args;
    b.memory_owner = p.owner.data(), b.memory_step = p.step.data();
    b.dy = flows[0].data(), b.dalpha = flows[1].data(), b.dfinal[0] = flows[2].data();
    b.dinitial[0] = grads[kState].data(), b.dx = grads[kX].data(), b.dmemory = grads[kMemory].data();
    b.dparams = params_of<T>(
        [&](int i) { return p.size(i) == 0 ? nullptr : grads[static_cast<std::size_t>(i)].data(); });
    kernels.pack_columns(args, columns.template as<char>(), team);
    b.columns = columns.template as<char>();
    kernels.backward(b, team, back.template as<char>());
    // Differences of results that are rounded say nothing: those of the others, which these gradients are near to.
    p.compute = Compute::kFloat32;
    const double allowed = compute == Compute::kBf16     ? 2e-2
                           : compute == Compute::kBf16x3 ? 1e-4
                           : sizeof(T) == 4              ? 3e-5
                                                         : 1e-7;

    for (int i = 0; i < kArrays; ++i) {
        const Array<T>& gradient = grads[static_cast<std::size_t>(i)];
        gradients.add(gradient);
        if (!gradient.intact()) report.fail(name, kNames[i], 0);
        if (p.size(i) == 0) continue;
        // Along signs of the gradient, so that nothing cancels.
        constexpr double kStep = 1e-5;
        double along = 0, difference = 0;
        for (const double sign : {1.0, -1.0}) {
            Values moved = values;
            for (std::int64_t k = 0; k < p.size(i); ++k) {
                const auto g = static_cast<double>(gradient.data()[k]);
                moved[static_cast<std::size_t>(i)][static_cast<std::size_t>(k)] +=
                    sign * kStep * (g > 0 ? 1 : -1);
                if (sign > 0) along += std::abs(g);
            }
            const Row there = reference(p, moved);
            for (std::size_t k = 0; k < there.size(); ++k) difference += sign * there[k] * flow[k];
        }
        difference /= 2 * kStep;
        const double error = std::abs(along - difference) / std::max(1.0, std::abs(difference));
        if (!(error <= allowed)) report.fail(name, kNames[i], error);
    }
    report.done(name, {{"forward", outputs}, {"backward", gradients}});
}

}  // namespace

template <class T>
void check_decoders(const DecoderKernels<T>& kernels, Report& report, Compute compute) {
    struct Sizes {
        std::int64_t steps, batch, source, input, memory, attention, hidden;
    };
    for (const Sizes& z : {Sizes{1, 1, 1, 1, 1, 1, 1}, {3, 5, 9, 3, 5, 17, 7}, {2, 34, 4, 2, 17, 3, 18}}) {
        const auto check = [&](const char* kind, int cell, Score score, bool current, bool feeds, bool past) {
            if (!report.next()) return;
            DecoderProblem p{};
            p.compute = compute;
            p.d = {cell,         score,    current, feeds,    past,    past ? 2 : 0,
                   past ? 5 : 0, z.steps,  z.batch, z.source, z.input, z.memory,
                   z.attention,  z.hidden, 0,       0};
            if (score == Score::kDot) p.d.M = z.hidden;
            if (score != Score::kAdditive) p.d.A = score == Score::kWindow ? 3 * z.attention : z.hidden;
            check_decoder(kernels, p, kind, report);
        };
        check("previous", kGru, Score::kAdditive, false, false, false);
        check("past", kGru, Score::kAdditive, false, false, true);
        check("dot", kTanh, Score::kDot, false, false, false);
        check("luong", kGru, Score::kGeneral, true, true, false);
        check("window", kGru, Score::kWindow, false, false, false);
        check("window, fed", kTanh, Score::kWindow, true, true, false);
        check("all", kTanh, Score::kAdditive, true, true, true);
    }
}

template void check_decoders<float>(const DecoderKernels<float>&, Report&, Compute);
template void check_decoders<double>(const DecoderKernels<double>&, Report&, Compute);

}  // namespace kernel_check
