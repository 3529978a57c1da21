// The kernels beside the recurrent ones: layers, the loss and the optimisers.
#include "check.h"

namespace kernel_check {
namespace {

using namespace fusedrnn;

template <class T>
Array<double> widened(const Array<T>& a) {
    Array<double> to(a.rows(), a.width());
    for (std::int64_t i = 0; i < a.rows(); ++i) {
        for (std::int64_t k = 0; k < a.width(); ++k) to.row(i)[k] = static_cast<double>(a.row(i)[k]);
    }
    return to;
}

template <class T>
void check_linear(const DenseKernels<T>& kernels, std::int64_t n, std::int64_t in, std::int64_t out,
                  Report& report) {
    const std::string name = std::string(type_name<T>()) + " linear N" + std::to_string(n) + " I" +
                             std::to_string(in) + " O" + std::to_string(out);
    Random random(11);
    const Array<T> x = Array<T>(n, in).fill(random, 1), w = Array<T>(out, in).fill(random, 1),
                   b = Array<T>(1, out).fill(random, 1), dy = Array<T>(n, out).fill(random, 1);
    Array<T> y(n, out), dx(n, in), dw = Array<T>(out, in).fill(random, 1),
                                   db = Array<T>(1, out).fill(random, 1);
    Array<double> want_y(n, out), want_dx = Array<double>(n, in).fill(0.0), want_dw = widened(dw),
                                  want_db = widened(db);
    Team team(1);
    Workspace workspace(kernels.linear_workspace(n, in, out, 1));
    kernels.linear_forward(n, in, out, x.data(), w.data(), b.data(), y.data(), team, workspace.as<void>());
    kernels.linear_backward(n, in, out, x.data(), w.data(), dy.data(), dx.data(), dw.data(), db.data(), team,
                            workspace.as<void>());
    for (std::int64_t i = 0; i < n; ++i) {
        for (std::int64_t o = 0; o < out; ++o) {
            const double d = static_cast<double>(dy.row(i)[o]);
            double total = static_cast<double>(b.data()[o]);
            for (std::int64_t k = 0; k < in; ++k) {
                const double x_k = static_cast<double>(x.row(i)[k]), w_k = static_cast<double>(w.row(o)[k]);
                total += x_k * w_k;
                want_dx.row(i)[k] += d * w_k;
                want_dw.row(o)[k] += d * x_k;
            }
            want_y.row(i)[o] = total;
            want_db.data()[o] += d;
        }
    }
    report.compare(name, "y", y, want_y);
    report.compare(name, "dx", dx, want_dx);
    report.compare(name, "dweight", dw, want_dw);
    report.compare(name, "dbias", db, want_db);
    report.done(name, {{"y", Digest().add(y)}, {"dx", Digest().add(dx)}, {"dw", Digest().add(dw).add(db)}});
}

template <class T>
void check_layer_norm(const LayerTable<T>& table, std::int64_t n, std::int64_t dim, Report& report) {
    const std::string name =
        std::string(type_name<T>()) + " layer_norm N" + std::to_string(n) + " D" + std::to_string(dim);
    Random random(13);
    const Array<T> x = Array<T>(n, dim).fill(random, 2), w = Array<T>(1, dim).fill(random, 1),
                   b = Array<T>(1, dim).fill(random, 1), dy = Array<T>(n, dim).fill(random, 1);
    Array<T> y(n, dim), mean(1, 2 * n), rstd(1, 2 * n), dx(n, dim), dw = Array<T>(1, dim).fill(random, 1),
                                                                    db = Array<T>(1, dim).fill(random, 1);
    Array<double> want_y(n, dim), want_dx(n, dim), want_dw = widened(dw), want_db = widened(db);
    constexpr double kEps = 0.25;  // large: a row of one element must not divide by nothing
    Team team(1);
    table.layer_norm_forward(n, dim, x.data(), w.data(), b.data(), kEps, y.data(), mean.data(), rstd.data(),
                             team);
    table.layer_norm_backward(n, dim, x.data(), w.data(), dy.data(), mean.data(), rstd.data(), dx.data(),
                              dw.data(), db.data(), team);
    const Array<double> x_ = widened(x), w_ = widened(w), b_ = widened(b), dy_ = widened(dy);
    for (std::int64_t i = 0; i < n; ++i) {
        double centre = 0, variance = 0, g_sum = 0, gx_sum = 0;
        const double count = static_cast<double>(dim), *row = x_.row(i), *d = dy_.row(i);
        for (std::int64_t k = 0; k < dim; ++k) centre += row[k] / count;
        for (std::int64_t k = 0; k < dim; ++k) variance += (row[k] - centre) * (row[k] - centre) / count;
        const double scale = 1 / std::sqrt(variance + kEps);
        for (std::int64_t k = 0; k < dim; ++k) {
            const double xhat = (row[k] - centre) * scale;
            want_y.row(i)[k] = xhat * w_.data()[k] + b_.data()[k];
            want_dw.data()[k] += d[k] * xhat;
            want_db.data()[k] += d[k];
            g_sum += d[k] * w_.data()[k];
            gx_sum += d[k] * w_.data()[k] * xhat;
        }
        for (std::int64_t k = 0; k < dim; ++k) {
            const double xhat = (row[k] - centre) * scale;
            want_dx.row(i)[k] = scale * (d[k] * w_.data()[k] - g_sum / count - xhat * gx_sum / count);
        }
    }
    report.compare(name, "y", y, want_y);
    if (dim > 1) report.compare(name, "dx", dx, want_dx);  // rounding noise around 0 for one element
    report.compare(name, "dweight", dw, want_dw);
    report.compare(name, "dbias", db, want_db);
    report.done(name, {{"y", Digest().add(y)}, {"dx", Digest().add(dx)}, {"dw", Digest().add(dw).add(db)}});
}

// A constant row is its own mean: y is the bias and dweight stays, exactly.
template <class T>
void check_constant_rows(const LayerTable<T>& table, std::int64_t dim, Report& report) {
    const std::string name =
        std::string(type_name<T>()) + " layer_norm of constant rows, D" + std::to_string(dim);
    const double largest = static_cast<double>(std::numeric_limits<T>::max());
    for (const double value : {1013.25, 6000001.0, 0.1, largest}) {
        const Array<T> x = Array<T>(1, dim).fill(static_cast<T>(value)), w = Array<T>(1, dim).fill(T(2)),
                       b = Array<T>(1, dim).fill(T(3)), dy = Array<T>(1, dim).fill(T(5));
        Array<T> y(1, dim), mean(1, 2), rstd(1, 2), dx(1, dim), dw = Array<T>(1, dim).fill(T(7)),
                                                                db = Array<T>(1, dim).fill(T(0));
        Team team(1);
        table.layer_norm_forward(1, dim, x.data(), w.data(), b.data(), 1e-5, y.data(), mean.data(),
                                 rstd.data(), team);
        table.layer_norm_backward(1, dim, x.data(), w.data(), dy.data(), mean.data(), rstd.data(), dx.data(),
                                  dw.data(), db.data(), team);
        for (std::int64_t k = 0; k < dim; ++k) {
            if (y.data()[k] != T(3)) report.fail(name, "y", static_cast<double>(y.data()[k]));
            if (dw.data()[k] != T(7)) report.fail(name, "dweight", static_cast<double>(dw.data()[k]));
            if (dx.data()[k] != T(0)) report.fail(name, "dx", static_cast<double>(dx.data()[k]));
        }
    }
}

template <class T>
void check_cross_entropy(const LayerTable<T>& table, std::int64_t n, std::int64_t classes, Report& report) {
    const std::string name =
        std::string(type_name<T>()) + " cross_entropy N" + std::to_string(n) + " C" + std::to_string(classes);
    Random random(17);
    const Array<T> logits = Array<T>(n, classes).fill(random, 4);
    Array<T> weight = Array<T>(1, classes).fill(random, 0.5), dx(n, classes);
    Array<double> losses(1, n);
    for (std::int64_t c = 0; c < classes; ++c) weight.data()[c] += T(1);
    std::vector<std::int64_t> targets;
    for (std::int64_t i = 0; i < n; ++i) targets.push_back(i == 1 ? -100 : random.below(classes));
    constexpr double kSmooth = 0.125;
    Team team(1);
    table.cross_entropy({n, classes, logits.data(), targets.data(), weight.data(), 1, -100, kSmooth,
                         losses.data(), dx.data()},
                        team);
    Array<double> want_loss = Array<double>(1, n).fill(0.0), want_dx = Array<double>(n, classes).fill(0.0);
    const Array<double> x = widened(logits), w = widened(weight);
    for (std::int64_t i = 0; i < n; ++i) {
        if (targets[i] < 0) continue;
        const double* row = x.row(i);
        const double most = *std::max_element(row, row + classes);
        double total = 0;
        for (std::int64_t c = 0; c < classes; ++c) total += std::exp(row[c] - most);
        for (std::int64_t c = 0; c < classes; ++c) {
            // The share of the target that falls on class c.
            const double share =
                w.data()[c] * (kSmooth / static_cast<double>(classes) + (c == targets[i] ? 1 - kSmooth : 0));
            want_loss.data()[i] -= share * (row[c] - most - std::log(total));
            want_dx.row(i)[c] -= share;
            for (std::int64_t k = 0; k < classes; ++k)
                want_dx.row(i)[k] += share * std::exp(row[k] - most) / total;
        }
    }
    Array<T> narrow_losses(1, n);
    std::copy_n(losses.data(), n, narrow_losses.data());
    report.compare(name, "loss", narrow_losses, want_loss);
    if (!losses.intact()) report.fail(name, "loss: written outside", 0);
    if (classes > 1) report.compare(name, "dlogits", dx, want_dx);
    report.done(name, {{"y", Digest().add(losses)}, {"dx", Digest().add(dx)}});
}

template <class T>
void check_embedding(const LayerTable<T>& table, std::int64_t dim, Report& report) {
    const std::string name = std::string(type_name<T>()) + " embedding D" + std::to_string(dim);
    constexpr std::int64_t kIndices[] = {2, 0, 2, 3, 2};
    Random random(19);
    const Array<T> table_rows = Array<T>(4, dim).fill(random, 1), dy = Array<T>(5, dim).fill(random, 1);
    Array<T> y(5, dim), dw = Array<T>(4, dim).fill(random, 1);
    Array<double> want_y(5, dim), want_dw = widened(dw);
    Team team(1);
    table.embedding_forward(5, dim, kIndices, table_rows.data(), y.data(), team);
    table.embedding_backward(5, dim, kIndices, dy.data(), dw.data(), team);
    for (std::int64_t i = 0; i < 5; ++i) {
        for (std::int64_t d = 0; d < dim; ++d) {
            want_y.row(i)[d] = static_cast<double>(table_rows.row(kIndices[i])[d]);
            want_dw.row(kIndices[i])[d] += static_cast<double>(dy.row(i)[d]);
        }
    }
    report.compare(name, "y", y, want_y);
    report.compare(name, "dweight", dw, want_dw);
    report.done(name, {{"y", Digest().add(y)}, {"dw", Digest().add(dw)}});
}

template <class T>
void check_optimisers(const LayerTable<T>& table, std::int64_t n, Report& report) {
    const std::string name = std::string(type_name<T>()) + " optimisers N" + std::to_string(n);
    Random random(23);
    const Array<T> grad = Array<T>(1, n).fill(random, 1);
    Array<T> sgd = Array<T>(1, n).fill(random, 1), buffer = Array<T>(1, n).fill(random, 1), adam = sgd,
             m = Array<T>(1, n).fill(random, 1), v = Array<T>(1, n).fill(random, 0.5);
    for (std::int64_t i = 0; i < n; ++i) v.data()[i] += T(0.5);
    const Array<double> g = widened(grad), start = widened(sgd);
    Array<double> want_sgd(1, n), want_adam(1, n), want_buffer = widened(buffer), want_m = widened(m),
                                                   want_v = widened(v);
    constexpr double kLr = 0.125, kMomentum = 0.75, kDecay = 0.25, kBeta1 = 0.875, kBeta2 = 0.96875;
    Team team(1);
    table.sgd_step(n, sgd.data(), grad.data(), buffer.data(), {kLr, kMomentum, 0, kDecay, true, false}, team);
    table.adam_step(n, adam.data(), grad.data(), m.data(), v.data(),
                    {kLr, kBeta1, kBeta2, 0.0625, kDecay, true, 3}, team);
    for (std::int64_t i = 0; i < n; ++i) {
        const double p = start.data()[i], g_i = g.data()[i], decayed = g_i + kDecay * p;
        double &b = want_buffer.data()[i], &m_i = want_m.data()[i], &v_i = want_v.data()[i];
        b = kMomentum * b + decayed;
        want_sgd.data()[i] = p - kLr * (decayed + kMomentum * b);
        m_i = kBeta1 * m_i + (1 - kBeta1) * g_i;
        v_i = kBeta2 * v_i + (1 - kBeta2) * g_i * g_i;
        const double m_hat = m_i / (1 - std::pow(kBeta1, 3)), v_hat = v_i / (1 - std::pow(kBeta2, 3));
        want_adam.data()[i] = p * (1 - kLr * kDecay) - kLr * m_hat / (std::sqrt(v_hat) + 0.0625);
    }
    report.compare(name, "sgd", sgd, want_sgd);
    report.compare(name, "momentum", buffer, want_buffer);
    report.compare(name, "adam", adam, want_adam);
    report.compare(name, "exp_avg", m, want_m);
    report.compare(name, "exp_avg_sq", v, want_v);
    report.done(name, {{"sgd", Digest().add(sgd).add(buffer)}, {"adam", Digest().add(adam).add(m).add(v)}});
}

// dropout, norm, scale and clamp: one array each.
template <class T>
void check_maps(const LayerTable<T>& table, std::int64_t n, Report& report) {
    const std::string name = std::string(type_name<T>()) + " maps N" + std::to_string(n);
    Random random(29);
    const Array<T> x = Array<T>(1, n).fill(random, 1);
    Array<T> dropped(1, n), scaled = x, clamped = x, partial(1, 1);
    Array<double> want_scaled = widened(x), want_clamped = widened(x);
    double squares = 0, cubes = 0, most = 0, part = 0;
    Team team(1);
    table.dropout(n, x.data(), dropped.data(), 0.25, 5, 9, team);
    table.scale(n, scaled.data(), 1.5, team);
    table.clamp(n, clamped.data(), -0.25, 0.5, team);
    const double norms[] = {table.norm(n, x.data(), 2, &part, team), table.norm(n, x.data(), 3, &part, team),
                            table.norm(n, x.data(), HUGE_VAL, &part, team)};
    std::int64_t kept = 0;
    for (std::int64_t i = 0; i < n; ++i) {
        const double value = static_cast<double>(x.data()[i]), size = std::abs(value);
        squares += size * size;
        cubes += size * size * size;
        most = std::max(most, size);
        want_scaled.data()[i] *= 1.5;
        want_clamped.data()[i] = std::min(0.5, std::max(-0.25, value));
        kept += dropped.data()[i] != 0;
        const double error = static_cast<double>(dropped.data()[i]) * 0.75 - value;
        if (dropped.data()[i] != 0 && !(std::abs(error) < 1e-6)) report.fail(name, "dropout", error);
    }
    const double share = static_cast<double>(kept) / static_cast<double>(n);
    if (n > 200 && std::abs(share - 0.75) > 0.1) report.fail(name, "share kept by dropout", share);
    const double want_norms[] = {std::sqrt(squares), std::cbrt(cubes), most};
    for (int k = 0; k < 3; ++k) {
        if (!(std::abs(norms[k] / want_norms[k] - 1) < 1e-12)) report.fail(name, "norm", norms[k]);
    }
    report.compare(name, "scale", scaled, want_scaled);
    report.compare(name, "clamp", clamped, want_clamped);
    if (!dropped.intact()) report.fail(name, "dropout: written outside", 0);
    report.done(name, {{"dropout", Digest().add(dropped)},
                       {"scale", Digest().add(scaled).add(clamped)},
                       {"norm", Digest().add(norms, sizeof norms)}});
}

}  // namespace

template <class T>
void check_layers(const KernelTable<T>& table, const LayerTable<T>& layers, Report& report) {
    for (const std::int64_t size : {1, 7, 8, 9, 17, 33, 259}) {
        for (const std::int64_t n : {1, 5, 41}) {
            if (report.next()) check_linear(table.dense, n, size, (size + n) % 40 + 1, report);
            if (report.next()) check_layer_norm(layers, n, size, report);
            if (report.next()) check_cross_entropy(layers, n, size, report);
        }
        check_constant_rows(layers, size, report);
        check_embedding(layers, size, report);
        check_optimisers(layers, size, report);
        check_maps(layers, size, report);
    }
}

template void check_layers<float>(const KernelTable<float>&, const LayerTable<float>&, Report&);
template void check_layers<double>(const KernelTable<double>&, const LayerTable<double>&, Report&);

}  // namespace kernel_check
