// A decoder of some sizes with all that its kernels take, and one row and one step of it at a time in double.
#pragma once

#include <functional>

#include "check.h"
#include "sequence/decoder_table.h"
#include "sequence/sequence_table.h"

namespace kernel_check {

using namespace fusedrnn;

inline constexpr int kGru = 1, kTanh = 2;  // of cells/all.h
// In the order of DecoderParams, then x, the memory and the initial state.
inline constexpr int kParams = 14, kX = 14, kMemory = 15, kState = 16, kArrays = 17;
inline constexpr const char* kNames[kArrays] = {
    "w_query",    "w_memory", "b_memory",   "w_energy", "w_ih",     "w_hh", "b_ih",   "b_hh", "w_output",
    "w_location", "w_filter", "w_coverage", "w_window", "b_window", "x",    "memory", "state"};
using Values = std::vector<std::vector<double>>;
using Row = std::vector<double>;

struct DecoderProblem {
    DecoderSizes d;
    Compute compute;  // of the products with weights
    std::vector<std::int64_t> order, active, offset, lengths, memory_lengths, first;  // by position
    std::vector<std::int64_t> by_batch, first_by_batch;  // the same of the memory
    std::vector<std::int64_t> owner, step;               // of the rows of the memory

    int gates() const { return d.cell == kGru ? 3 : 1; }
    std::int64_t size(int i) const {
        const std::int64_t G = gates(), H = d.H, A = d.A, C = d.filters;
        const bool additive = d.score == Score::kAdditive;
        const std::int64_t sizes[kArrays] = {additive ? A * H : 0,
                                             additive || d.score == Score::kGeneral ? A * d.M : 0,
                                             additive ? A : 0,
                                             additive ? A : 0,
                                             G * H * (d.I + d.fed()),
                                             G * H * H,
                                             G * H,
                                             G * H,
                                             d.current ? H * (d.M + H) : 0,
                                             A * C,
                                             C * d.width,
                                             d.coverage ? A : 0,
                                             d.windows() > 0 ? A * H : 0,
                                             d.windows() > 0 ? A : 0,
                                             d.T * d.B * d.I,
                                             d.S * d.B * d.M,
                                             d.B * H};
        return sizes[i];
    }

    // The lengths, of which one of each kind is 0.
    void set_positions(Random& random) {
        by_batch.resize(static_cast<std::size_t>(d.B));
        for (std::int64_t i = 0; i < d.B; ++i) {
            order.push_back(d.B - 1 - i);
            lengths.push_back(std::max<std::int64_t>(0, d.T - i / 2));
            memory_lengths.push_back(i == 1 ? 0 : i == 0 ? d.S : random.below(d.S + 1));
            by_batch[static_cast<std::size_t>(d.B - 1 - i)] = memory_lengths.back();
        }
        for (std::int64_t t = 0; t <= d.T; ++t) {
            active.push_back(std::count_if(lengths.begin(), lengths.end(), [&](auto n) { return n > t; }));
            offset.push_back(d.rows);
            d.rows += active.back();
        }
        for (std::int64_t b = 0; b < d.B; ++b) {
            first_by_batch.push_back(d.memory_rows);
            for (std::int64_t s = 0; s < by_batch[static_cast<std::size_t>(b)]; ++s)
                owner.push_back(b), step.push_back(s);
            d.memory_rows += by_batch[static_cast<std::size_t>(b)];
        }
        for (const std::int64_t b : order) first.push_back(first_by_batch[static_cast<std::size_t>(b)]);
    }
};

// out += W x, W (rows, columns of `stride`) from `first` on.
inline void multiply(const Row& w, std::int64_t first, std::int64_t stride, const Row& x, Row& out,
                     Compute compute = Compute::kFloat32) {
    for (std::size_t i = 0; i < out.size(); ++i) {
        for (std::size_t k = 0; k < x.size(); ++k) {
            const std::size_t row = static_cast<std::size_t>(first + static_cast<std::int64_t>(i) * stride);
            out[i] += term(w[row + k], x[k], compute);
        }
    }
}
inline Row part(const Row& v, std::int64_t first, std::int64_t n) {
    return Row(v.begin() + first, v.begin() + first + n);
}

// y (T, B, H), alpha (T, B, S) and the final state (B, H), one after another.
inline Row reference(const DecoderProblem& p, const Values& v) {
    const DecoderSizes& d = p.d;
    const auto n = [](std::int64_t i) { return static_cast<std::size_t>(i); };
    Row y(n(d.T * d.B * d.H)), alpha(n(d.T * d.B * d.S)), final_state(n(d.B * d.H));
    const auto sigmoid = [](double a) { return 1 / (1 + std::exp(-a)); };
    for (std::int64_t position = 0; position < d.B; ++position) {
        const std::int64_t b = p.order[n(position)], count = p.memory_lengths[n(position)];
        Row h = part(v[kState], b * d.H, d.H), output(n(d.H)), before(n(d.S)), sum(n(d.S)), context(n(d.M)),
            centres(n(d.windows()));
        const auto attend = [&] {
            Row e(n(count));
            if (const std::int64_t K = d.windows(); K > 0) {
                Row q = v[13];
                multiply(v[12], 0, d.H, h, q, p.compute);
                before.assign(n(d.S), 0), context.assign(n(d.M), 0);
                for (std::int64_t k = 0; k < K; ++k) {
                    centres[n(k)] += std::exp(q[n(2 * K + k)]);
                    for (std::int64_t s = 0; s < count; ++s) {
                        const double gap = centres[n(k)] - static_cast<double>(s + 1);
                        before[n(s)] += std::exp(q[n(k)] - std::exp(q[n(K + k)]) * gap * gap);
                    }
                }
                for (std::int64_t s = 0; s < count; ++s) {
                    for (std::int64_t k = 0; k < d.M; ++k)
                        context[n(k)] += before[n(s)] * v[kMemory][n((s * d.B + b) * d.M + k)];
                }
                return;
            }
            for (std::int64_t s = 0; s < count; ++s) {
                const Row m = part(v[kMemory], (s * d.B + b) * d.M, d.M);
                Row key(n(d.A));
                if (d.score == Score::kDot) key = m;
                if (d.score != Score::kDot) multiply(v[1], 0, d.M, m, key, p.compute);
                if (d.score == Score::kAdditive) multiply(v[0], 0, d.H, h, key, p.compute);
                Row features(n(d.filters));
                for (std::int64_t c = 0; c < d.filters; ++c) {
                    for (std::int64_t k = 0; k < d.width; ++k) {
                        const std::int64_t place = s + k - d.width / 2;
                        if (place >= 0 && place < d.S)
                            features[n(c)] += v[10][n(c * d.width + k)] * before[n(place)];
                    }
                }
                if (d.filters > 0) multiply(v[9], 0, d.filters, features, key);
                for (std::int64_t a = 0; a < d.A; ++a) {
                    if (d.coverage) key[n(a)] += v[11][n(a)] * sum[n(s)];
                    e[n(s)] += d.score == Score::kAdditive ? v[3][n(a)] * std::tanh(key[n(a)] + v[2][n(a)])
                                                           : key[n(a)] * h[n(a)];
                }
            }
            double most = -1e300, total = 0;
            for (const double value : e) most = std::max(most, value);
            for (double& value : e) total += value = std::exp(value - most);
            before.assign(n(d.S), 0), context.assign(n(d.M), 0);
            for (std::int64_t s = 0; s < count; ++s) {
                before[n(s)] = e[n(s)] / total;
                sum[n(s)] += before[n(s)];
                for (std::int64_t k = 0; k < d.M; ++k)
                    context[n(k)] += before[n(s)] * v[kMemory][n((s * d.B + b) * d.M + k)];
            }
        };
        for (std::int64_t t = 0; t < p.lengths[n(position)]; ++t) {
            if (!d.current) attend();
            Row gx = v[6], gh = v[7];
            const std::int64_t input = d.I + d.fed();
            multiply(v[4], 0, input, part(v[kX], (t * d.B + b) * d.I, d.I), gx, p.compute);
            if (!d.current) multiply(v[4], d.I, input, context, gx, p.compute);
            if (d.feeds) multiply(v[4], d.I, input, output, gx, p.compute);
            multiply(v[5], 0, d.H, h, gh, p.compute);
            for (std::int64_t i = 0; i < d.H; ++i) {
                double& unit = h[n(i)];
                if (p.gates() == 1) {
                    unit = std::tanh(gx[n(i)] + gh[n(i)]);
                    continue;
                }
                const double r = sigmoid(gx[n(i)] + gh[n(i)]), z = sigmoid(gx[n(d.H + i)] + gh[n(d.H + i)]);
                const double next = std::tanh(gx[n(2 * d.H + i)] + r * gh[n(2 * d.H + i)]);
                unit = (1 - z) * next + z * unit;
            }
            output = h;
            if (d.current) {
                attend();
                output.assign(n(d.H), 0);
                multiply(v[8], 0, d.M + d.H, context, output, p.compute);
                multiply(v[8], d.M, d.M + d.H, h, output, p.compute);
                for (double& value : output) value = std::tanh(value);
            }
            std::copy(output.begin(), output.end(), y.begin() + (t * d.B + b) * d.H);
            std::copy(before.begin(), before.end(), alpha.begin() + (t * d.B + b) * d.S);
        }
        std::copy(h.begin(), h.end(), final_state.begin() + b * d.H);
    }
    y.insert(y.end(), alpha.begin(), alpha.end());
    y.insert(y.end(), final_state.begin(), final_state.end());
    return y;
}

template <class T>
DecoderParams<T> params_of(const std::function<T*(int)>& at) {
    return {at(0), at(1), at(2), at(3),  at(4),  at(5),  at(6),
            at(7), at(8), at(9), at(10), at(11), at(12), at(13)};
}

// A problem's arrays, the packed weights and the keys.
template <class T>
struct DecoderCase {
    DecoderProblem p;
    std::string name;
    Random random;
    std::vector<Array<T>> arrays;
    Values values;
    DecoderArgs<T> args{};
    Team team{1};
    Workspace weights{0}, keys{0};

    DecoderCase(const DecoderKernels<T>& kernels, const DecoderProblem& problem, const std::string& kind)
        : p(problem),
          name(std::string(p.compute == Compute::kFloat32 ? type_name<T>() : compute_name(p.compute)) +
               " decoder " + kind + " B" + std::to_string(p.d.B) + " S" + std::to_string(p.d.S) + " H" +
               std::to_string(p.d.H)),
          random(static_cast<std::uint64_t>(p.d.H * 31 + p.d.S)) {
        p.set_positions(random);
        for (int i = 0; i < kArrays; ++i) {
            // Windows are exponentials of exponentials: small weights, so that differences are near to gradients.
            arrays.push_back(Array<T>(1, p.size(i)).fill(random, i == 12 ? 0.1 : i < kParams ? 0.5 : 1));
            values.emplace_back(arrays.back().data(), arrays.back().data() + p.size(i));
        }
        weights = Workspace(kernels.weight_bytes(p.d)), keys = Workspace(kernels.key_bytes(p.d));
        args.sizes = p.d;
        args.schedule = {p.order.data(), p.active.data(), p.offset.data(), p.lengths.data(), nullptr, false};
        args.memory_first = p.first.data(), args.memory_lengths = p.memory_lengths.data();
        args.params = params_of<const T>(
            [&](int i) { return p.size(i) == 0 ? nullptr : arrays[static_cast<std::size_t>(i)].data(); });
        args.x = arrays[kX].data(), args.initial[0] = arrays[kState].data();
        args.weights = weights.template as<char>(), args.keys = keys.template as<char>();
        Workspace workspace(kernels.workspace(p.d, 1));
        kernels.pack(args, team);
        kernels.prepare(args, {arrays[kMemory].data(), p.d.B, p.by_batch.data()}, team,
                        workspace.template as<char>());
    }
};

}  // namespace kernel_check
