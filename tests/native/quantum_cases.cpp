// Networks of simulated circuits against one row at a time in double, gate after gate; gradients against differences of
// that along a direction for each array.
#include <complex>

#include "check.h"
#include "quantum/quantum_table.h"

namespace kernel_check {
namespace {

using namespace fusedrnn;
using Amplitude = std::complex<double>;

// In the order of kNames; bias_out stands for what the gates are before their activations.
constexpr int kGx = 0, kUnitaries = 1, kBias = 2, kH = 3, kC = 4, kVaried = 5, kHidden = 5, kOut = 6,
              kArrays = 7;
constexpr const char* kNames[kVaried] = {"gx", "unitaries", "gates", "h", "c"};
constexpr const char* kResults[kVaried] = {"dgx", "dunitaries", "dgates", "dh", "dc"};

struct QuantumCase {
    QuantumSizes s;
    std::vector<std::int64_t> lengths;

    QuantumCase(std::int64_t T, std::int64_t B, std::int64_t H, std::int64_t Q, std::int64_t D)
        : s{T, B, H, Q, D} {
        Random random(static_cast<std::uint64_t>(T + 31 * B + 7 * H + Q));
        for (std::int64_t b = 0; b < B; ++b) lengths.push_back(b == 0 ? T : random.below(T + 1));
    }
    // Elements of an array, in all and of each row of the batch.
    std::int64_t rows(int i) const {
        const std::int64_t sizes[kArrays] = {s.T * 4 * s.Q, 4 * s.D * s.Q * 8, 4 * s.H,      s.H,
                                             s.H,           4 * s.Q * s.H,     4 * s.H * s.Q};
        return sizes[i];
    }
    std::int64_t columns(int i) const { return i == kGx || i == kH || i == kC ? s.B : 1; }
};

// The expectations of Z after the circuit that encodes v.
std::vector<double> reference_circuit(const QuantumSizes& s, const std::vector<double>& v,
                                      const double* unitaries) {
    const std::size_t size = std::size_t{1} << s.Q;
    std::vector<Amplitude> state(size);
    state[0] = 1;
    const auto apply = [&](std::int64_t q, Amplitude a, Amplitude b, Amplitude c, Amplitude d) {
        for (std::size_t i = 0; i < size; ++i) {
            const std::size_t j = i | std::size_t{1} << q;
            if (i == j) continue;
            const Amplitude x = state[i], y = state[j];
            state[i] = a * x + b * y;
            state[j] = c * x + d * y;
        }
    };
    for (std::int64_t q = 0; q < s.Q; ++q) {
        const double value = v[static_cast<std::size_t>(q)], root = std::sqrt(0.5);
        const double y = std::atan(value) / 2, z = std::atan(value * value) / 2;
        apply(q, root, root, root, -root);
        apply(q, std::cos(y), -std::sin(y), std::sin(y), std::cos(y));
        apply(q, std::polar(1.0, -z), 0, 0, std::polar(1.0, z));
    }
    for (std::int64_t layer = 0; layer < s.D; ++layer) {
        for (std::int64_t step = 1; step <= 2 && step < s.Q; ++step) {
            for (std::int64_t q = 0; q < s.Q; ++q) {
                const std::size_t control = std::size_t{1} << q, target = std::size_t{1} << (q + step) % s.Q;
                for (std::size_t i = 0; i < size; ++i) {
                    if ((i & control) != 0 && (i & target) == 0) std::swap(state[i], state[i | target]);
                }
            }
        }
        for (std::int64_t q = 0; q < s.Q; ++q, unitaries += 8) {
            const double* const u = unitaries;
            apply(q, {u[0], u[1]}, {u[2], u[3]}, {u[4], u[5]}, {u[6], u[7]});
        }
    }
    std::vector<double> z(static_cast<std::size_t>(s.Q));
    for (std::size_t i = 0; i < size; ++i) {
        for (std::size_t q = 0; q < z.size(); ++q) z[q] += (i >> q & 1 ? -1 : 1) * std::norm(state[i]);
    }
    return z;
}

// Writes row b of y and of the final h and c; returns their sum with the weights of each.
double reference_row(const QuantumCase& p, const std::vector<Array<double>>& in, std::int64_t b,
                     const Array<double> (&weights)[3], Array<double> (&out)[3]) {
    const QuantumSizes& s = p.s;
    std::vector<double> h, c;
    for (std::int64_t k = 0; k < s.H; ++k) h.push_back(in[kH].row(k)[b]), c.push_back(in[kC].row(k)[b]);
    double total = 0;
    const auto put = [&](int i, std::int64_t at, double value) {
        out[i].row(at)[b] = value;
        total += value * weights[i].row(at)[b];
    };
    for (std::int64_t t = 0; t < s.T; ++t) {
        std::vector<double> a;
        const bool active = t < p.lengths[static_cast<std::size_t>(b)];
        for (std::int64_t gate = 0; active && gate < 4; ++gate) {
            std::vector<double> v;
            for (std::int64_t j = gate * s.Q; j < (gate + 1) * s.Q; ++j) {
                double sum = in[kGx].row(t * 4 * s.Q + j)[b];
                for (std::size_t k = 0; k < h.size(); ++k) {
                    sum += in[kHidden].data()[j * s.H + static_cast<std::int64_t>(k)] * h[k];
                }
                v.push_back(sum);
            }
            const auto z = reference_circuit(s, v, in[kUnitaries].data() + gate * s.D * s.Q * 8);
            for (std::int64_t k = gate * s.H; k < (gate + 1) * s.H; ++k) {
                double sum = in[kBias].data()[k];
                for (std::size_t q = 0; q < z.size(); ++q) {
                    sum += in[kOut].data()[k * s.Q + static_cast<std::int64_t>(q)] * z[q];
                }
                a.push_back(sum);
            }
        }
        for (std::size_t k = 0; k < h.size(); ++k) {
            if (active) {
                const auto gate = [&](std::size_t g) { return a[g * h.size() + k]; };
                const auto sigmoid = [](double x) { return 1 / (1 + std::exp(-x)); };
                c[k] = sigmoid(gate(1)) * c[k] + sigmoid(gate(0)) * std::tanh(gate(2));
                h[k] = sigmoid(gate(3)) * std::tanh(c[k]);
            }
            put(0, t * s.H + static_cast<std::int64_t>(k), active ? h[k] : 0);
        }
    }
    for (std::size_t k = 0; k < h.size(); ++k) {
        put(1, static_cast<std::int64_t>(k), h[k]);
        put(2, static_cast<std::int64_t>(k), c[k]);
    }
    return total;
}

// Any angles make a unitary.
void fill_unitaries(Array<double>& u, Random& random) {
    for (std::int64_t i = 0; i < u.rows(); i += 8) {
        const double a = 3 * random.uniform(), b = 3 * random.uniform(), c = 3 * random.uniform();
        const Amplitude entries[] = {std::cos(a) * std::polar(1.0, b), -std::sin(a) * std::polar(1.0, c),
                                     std::sin(a) * std::polar(1.0, -c), std::cos(a) * std::polar(1.0, -b)};
        for (int k = 0; k < 4; ++k) {
            u.data()[i + 2 * k] = entries[k].real();
            u.data()[i + 2 * k + 1] = entries[k].imag();
        }
    }
}

template <class T>
void check_quantum_case(const QuantumKernels<T>& kernels, const QuantumCase& p, Report& report) {
    const QuantumSizes& s = p.s;
    const std::string name = std::string(type_name<T>()) + " quantum T" + std::to_string(s.T) + " B" +
                             std::to_string(s.B) + " H" + std::to_string(s.H) + " Q" + std::to_string(s.Q) +
                             " D" + std::to_string(s.D);
    Random random(5);
    std::vector<Array<double>> wide;
    std::vector<Array<T>> in;
    for (int i = 0; i < kArrays; ++i) {
        wide.emplace_back(p.rows(i), p.columns(i)).fill(random, i < kHidden ? 2 : 0.5);
        if (i == kUnitaries) fill_unitaries(wide.back(), random);
        in.emplace_back(p.rows(i), p.columns(i));
        for (std::int64_t k = 0; k < p.rows(i) * p.columns(i); ++k) {
            in.back().data()[k] = static_cast<T>(wide.back().data()[k]);
            wide.back().data()[k] = static_cast<double>(in.back().data()[k]);
        }
    }
    const std::int64_t out_rows[3] = {s.T * s.H, s.H, s.H};
    Array<double> weights[3], want[3], moved[3];
    Array<T> flow[3], out[3];
    for (int i = 0; i < 3; ++i) {
        weights[i] = Array<double>(out_rows[i], s.B).fill(random, 1);
        flow[i] = Array<T>(out_rows[i], s.B);
        std::copy_n(weights[i].data(), out_rows[i] * s.B, flow[i].data());
        want[i] = moved[i] = Array<double>(out_rows[i], s.B);
        out[i] = Array<T>(out_rows[i], s.B);
    }
    for (std::int64_t b = 0; b < s.B; ++b) reference_row(p, wide, b, weights, want);

    const QuantumNetwork<T> network{s, p.lengths.data(), in[kHidden].data(), in[kUnitaries].data(),
                                    in[kOut].data()};
    Array<T> angles(s.T * 4 * s.Q, s.B), measured(s.T * 4 * s.Q, s.B), gates(s.T * 4 * s.H, s.B),
        cells(s.T * s.H, s.B);
    Team team(1);
    Workspace workspace(kernels.workspace(s, 1));
    kernels.forward({network,
                     in[kGx].data(),
                     in[kBias].data(),
                     in[kH].data(),
                     in[kC].data(),
                     {angles.data(), measured.data(), gates.data(), cells.data()},
                     out[0].data(),
                     out[1].data(),
                     out[2].data()},
                    team, workspace.template as<char>());
    report.compare(name, "y", out[0], want[0]);
    report.compare(name, "h_n", out[1], want[1]);
    report.compare(name, "c_n", out[2], want[2]);

    Array<T> grads[kVaried];
    for (int i = 0; i < kVaried; ++i) {
        grads[i] = Array<T>(i == kBias ? s.T * p.rows(i) : p.rows(i), s.B);
    }
    kernels.backward({network,
                      {angles.data(), measured.data(), gates.data(), cells.data()},
                      in[kC].data(),
                      flow[0].data(),
                      flow[1].data(),
                      flow[2].data(),
                      grads[kGx].data(),
                      grads[kBias].data(),
                      grads[kUnitaries].data(),
                      grads[kH].data(),
                      grads[kC].data()},
                     team, workspace.template as<char>());
    for (const Array<T>* array : {&angles, &measured, &gates, &cells}) {
        if (!array->intact()) report.fail(name, "tape: written outside", 0);
    }
    for (int i = 0; i < kVaried; ++i) {
        // Not across the gradient, where the slope would be a small difference of large numbers; short, for
        // good differences.
        const double length = i == kUnitaries ? 0.125 : 0.5;
        Array<double> along = Array<double>(p.rows(i), p.columns(i)).fill(random, length);
        double most = 0;
        const auto each_gradient = [&](auto&& body) {
            for (std::int64_t j = 0; j < grads[i].rows(); ++j) {
                for (std::int64_t b = 0; b < s.B; ++b) {
                    body(along.row(j % p.rows(i))[p.columns(i) > 1 ? b : 0],
                         static_cast<double>(grads[i].row(j)[b]));
                }
            }
        };
        each_gradient([&](double, double gradient) { most = std::max(most, std::abs(gradient)); });
        each_gradient([&](double& to, double gradient) {
            to += length * gradient / (most * static_cast<double>(s.B));
        });
        Array<double> slope(1, s.B);
        Array<T> got(1, s.B);
        slope.fill(0.0);
        const Array<double> centre = wide[static_cast<std::size_t>(i)];
        constexpr double kStep = 1e-3;
        const std::pair<double, double> points[] = {{-2, 1}, {-1, -8}, {1, 8}, {2, -1}};
        for (const auto& [at, weight] : points) {
            for (std::int64_t k = 0; k < p.rows(i) * p.columns(i); ++k) {
                wide[static_cast<std::size_t>(i)].data()[k] = centre.data()[k] + at * kStep * along.data()[k];
            }
            for (std::int64_t b = 0; b < s.B; ++b) {
                slope.data()[b] += weight * reference_row(p, wide, b, weights, moved) / (12 * kStep);
            }
        }
        wide[static_cast<std::size_t>(i)] = centre;
        for (std::int64_t b = 0; b < s.B; ++b) {
            double sum = 0;
            for (std::int64_t j = 0; j < grads[i].rows(); ++j) {
                sum += static_cast<double>(grads[i].row(j)[b]) *
                       along.row(j % p.rows(i))[p.columns(i) > 1 ? b : 0];
            }
            got.data()[b] = static_cast<T>(sum);
        }
        report.compare(name, kNames[i], got, slope);
        if (!grads[i].intact())
            report.fail(name, (std::string(kResults[i]) + ": written outside").c_str(), 0);
    }
    Digest forward, backward;
    for (const Array<T>& array : out) forward.add(array);
    for (const Array<T>& array : grads) backward.add(array);
    report.done(name, {{"y", forward}, {"gradients", backward}});
}

}  // namespace

template <class T>
void check_quantum(const LayerTable<T>& layers, Report& report) {
    for (const auto& [Q, D] : {std::pair<int, int>{1, 2}, {2, 1}, {3, 2}, {4, 1}, {8, 1}}) {
        for (const std::int64_t B : {1, 7, 17}) {
            if (!report.next() || (Q == 8 && B > 1)) continue;
            check_quantum_case(*layers.quantum, QuantumCase(Q == 8 ? 2 : 3, B, 1 + Q, Q, D), report);
        }
    }
}

template void check_quantum<float>(const LayerTable<float>&, Report&);
template void check_quantum<double>(const LayerTable<double>&, Report&);

}  // namespace kernel_check
