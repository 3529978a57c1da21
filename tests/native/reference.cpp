#include "reference.h"

namespace kernel_check {
namespace {

double sigmoid(double z) { return 0.5 + 0.5 * std::tanh(0.5 * z); }
double tanh_slope(double z) {
    const double c = std::cosh(z);
    return 1 / (c * c);
}
double sigmoid_slope(double z) { return 0.25 * tanh_slope(0.5 * z); }

// The states of one row, and what a step read.
struct State {
    Vector s[2];
};
struct Step {
    std::int64_t t;
    bool was_reset;
    State before;
    Vector a, b, raw;  // the shares of input and state in the pre-activations; h before the projection
};

// A step of one row: a, b (G*H) and the state give the next state; and the way back, from the gradients of
// the next state to those of a, b and, apart from the matrix product, of the state.
struct Cell {
    const char* name;
    void (*step)(std::int64_t H, const Vector& a, const Vector& b, const State& s, State& next);
    void (*pull)(std::int64_t H, const Vector& a, const Vector& b, const State& s, const State& d_next,
                 Vector& da, Vector& db, State& d);
};

void lstm_step(std::int64_t H, const Vector& a, const Vector& b, const State& s, State& next) {
    for (std::int64_t u = 0; u < H; ++u) {
        const double i = a[u] + b[u], f = a[H + u] + b[H + u], g = a[2 * H + u] + b[2 * H + u],
                     o = a[3 * H + u] + b[3 * H + u];
        next.s[1][u] = sigmoid(f) * s.s[1][u] + sigmoid(i) * std::tanh(g);
        next.s[0][u] = sigmoid(o) * std::tanh(next.s[1][u]);
    }
}
void lstm_pull(std::int64_t H, const Vector& a, const Vector& b, const State& s, const State& d_next,
               Vector& da, Vector& db, State& d) {
    for (std::int64_t u = 0; u < H; ++u) {
        const double i = a[u] + b[u], f = a[H + u] + b[H + u], g = a[2 * H + u] + b[2 * H + u],
                     o = a[3 * H + u] + b[3 * H + u], c = s.s[1][u];
        const double c_next = sigmoid(f) * c + sigmoid(i) * std::tanh(g);
        const double dc = d_next.s[1][u] + d_next.s[0][u] * sigmoid(o) * tanh_slope(c_next);
        da[u] = dc * std::tanh(g) * sigmoid_slope(i);
        da[H + u] = dc * c * sigmoid_slope(f);
        da[2 * H + u] = dc * sigmoid(i) * tanh_slope(g);
        da[3 * H + u] = d_next.s[0][u] * std::tanh(c_next) * sigmoid_slope(o);
        d.s[1][u] = dc * sigmoid(f);
    }
    db = da;
}

void gru_step(std::int64_t H, const Vector& a, const Vector& b, const State& s, State& next) {
    for (std::int64_t u = 0; u < H; ++u) {
        const double r = sigmoid(a[u] + b[u]), z = sigmoid(a[H + u] + b[H + u]);
        const double n = std::tanh(a[2 * H + u] + r * b[2 * H + u]);
        next.s[0][u] = (1 - z) * n + z * s.s[0][u];
    }
}
void gru_pull(std::int64_t H, const Vector& a, const Vector& b, const State& s, const State& d_next,
              Vector& da, Vector& db, State& d) {
    for (std::int64_t u = 0; u < H; ++u) {
        const double zr = a[u] + b[u], zz = a[H + u] + b[H + u], bn = b[2 * H + u];
        const double zn = a[2 * H + u] + sigmoid(zr) * bn, dh = d_next.s[0][u];
        const double dn = dh * sigmoid(-zz) * tanh_slope(zn);
        da[u] = db[u] = dn * bn * sigmoid_slope(zr);
        da[H + u] = db[H + u] = dh * (s.s[0][u] - std::tanh(zn)) * sigmoid_slope(zz);
        da[2 * H + u] = dn;
        db[2 * H + u] = dn * sigmoid(zr);
        d.s[0][u] = dh * sigmoid(zz);
    }
}

void tanh_step(std::int64_t H, const Vector& a, const Vector& b, const State&, State& next) {
    for (std::int64_t u = 0; u < H; ++u) next.s[0][u] = std::tanh(a[u] + b[u]);
}
void tanh_pull(std::int64_t H, const Vector& a, const Vector& b, const State&, const State& d_next,
               Vector& da, Vector& db, State&) {
    for (std::int64_t u = 0; u < H; ++u) da[u] = db[u] = d_next.s[0][u] * tanh_slope(a[u] + b[u]);
}

void relu_step(std::int64_t H, const Vector& a, const Vector& b, const State&, State& next) {
    for (std::int64_t u = 0; u < H; ++u) next.s[0][u] = std::max(0.0, a[u] + b[u]);
}
void relu_pull(std::int64_t H, const Vector& a, const Vector& b, const State&, const State& d_next,
               Vector& da, Vector& db, State&) {
    for (std::int64_t u = 0; u < H; ++u) da[u] = db[u] = a[u] + b[u] > 0 ? d_next.s[0][u] : 0;
}

constexpr Cell kCells[] = {{"lstm", lstm_step, lstm_pull},
                           {"gru", gru_step, gru_pull},
                           {"rnn_tanh", tanh_step, tanh_pull},
                           {"rnn_relu", relu_step, relu_pull}};

// m v + bias for m (rows, width).
Vector product(const Array<double>& m, const double* v, const Array<double>& bias) {
    Vector out(static_cast<std::size_t>(m.rows()));
    for (std::int64_t i = 0; i < m.rows(); ++i) {
        out[i] = bias.given() ? bias.data()[i] : 0;
        for (std::int64_t k = 0; k < m.width(); ++k) out[i] += m.row(i)[k] * v[k];
    }
    return out;
}
// v m.
Vector product_transposed(const Vector& v, const Array<double>& m) {
    Vector out(static_cast<std::size_t>(m.width()));
    for (std::int64_t i = 0; i < m.rows(); ++i) {
        for (std::int64_t k = 0; k < m.width(); ++k) out[k] += v[i] * m.row(i)[k];
    }
    return out;
}
void add_outer(const Vector& a, const double* b, Array<double>& to) {
    for (std::int64_t i = 0; i < to.rows(); ++i) {
        for (std::int64_t k = 0; k < to.width(); ++k) to.row(i)[k] += a[i] * b[k];
    }
}
void add(const Vector& a, Array<double>& to) {
    for (std::int64_t k = 0; to.given() && k < to.width(); ++k) to.data()[k] += a[k];
}

Vector row_or_zero(const Array<double>& a, std::int64_t row, std::int64_t width) {
    if (!a.given()) return Vector(static_cast<std::size_t>(width));
    const double* from = a.row(a.rows() == 1 ? 0 : row);
    return Vector(from, from + width);
}

// Whether step t of row b starts a segment in the direction of travel: resets[t] is a border between t - 1
// and t, and backwards a row's first step (its last in time) reads the initial state.
bool reads_reset(const Problem& p, std::int64_t t, std::int64_t b) {
    if (p.resets.empty()) return false;
    if (!p.reverse) return p.resets[t * p.B + b] != 0;
    return t + 1 < p.lengths[b] && p.resets[(t + 1) * p.B + b] != 0;
}

std::vector<Step> forward_row(const Problem& p, const Cell& cell, std::int64_t b, Results<double>& out) {
    State now;
    for (std::int64_t k = 0; k < p.states; ++k) now.s[k] = row_or_zero(p.initial[k], b, p.width(k));
    std::vector<Step> steps;
    for (std::int64_t i = 0; i < p.lengths[b]; ++i) {
        Step step{p.reverse ? p.lengths[b] - 1 - i : i, false, {}, {}, {}, {}};
        step.was_reset = reads_reset(p, step.t, b);
        for (std::int64_t k = 0; step.was_reset && k < p.states; ++k) {
            now.s[k] = row_or_zero(p.reset[k], b, p.width(k));
        }
        step.before = now;
        step.a = product(p.w_ih, p.x.row(step.t * p.B + b), p.b_ih);
        step.b = product(p.w_hh, now.s[0].data(), p.b_hh);
        State next;
        for (std::int64_t k = 0; k < p.states; ++k) next.s[k].resize(static_cast<std::size_t>(p.H));
        cell.step(p.H, step.a, step.b, step.before, next);
        step.raw = next.s[0];
        if (p.w_hr.given()) next.s[0] = product(p.w_hr, step.raw.data(), {});
        now = next;
        std::copy(now.s[0].begin(), now.s[0].end(), out.y.row(step.t * p.B + b));
        steps.push_back(step);
    }
    for (std::int64_t k = 0; k < p.states; ++k) {
        std::copy(now.s[k].begin(), now.s[k].end(), out.final[k].row(b));
    }
    return steps;
}

void backward_row(const Problem& p, const Cell& cell, std::int64_t b, const std::vector<Step>& steps,
                  Results<double>& out) {
    State d;
    for (std::int64_t k = 0; k < p.states; ++k) d.s[k] = row_or_zero(p.dfinal[k], b, p.width(k));
    for (auto step = steps.rbegin(); step != steps.rend(); ++step) {
        const std::int64_t row = step->t * p.B + b;
        for (std::int64_t k = 0; p.dy.given() && k < p.P; ++k) d.s[0][k] += p.dy.row(row)[k];
        if (p.w_hr.given()) {
            add_outer(d.s[0], step->raw.data(), out.dw_hr);
            d.s[0] = product_transposed(d.s[0], p.w_hr);
        }
        Vector da(static_cast<std::size_t>(p.gates * p.H)), db = da;
        State before;
        for (Vector& s : before.s) s.resize(static_cast<std::size_t>(p.H));
        cell.pull(p.H, step->a, step->b, step->before, d, da, db, before);
        add_outer(da, p.x.row(row), out.dw_ih);
        add_outer(db, step->before.s[0].data(), out.dw_hh);
        add(da, out.db_ih);
        add(db, out.db_hh);
        const Vector dx = product_transposed(da, p.w_ih), dh = product_transposed(db, p.w_hh);
        for (std::int64_t k = 0; k < p.I; ++k) out.dx.row(row)[k] += dx[k];
        before.s[0].resize(static_cast<std::size_t>(p.P));  // with a projection its pointwise part is zero
        for (std::int64_t k = 0; k < p.P; ++k) before.s[0][k] += dh[k];
        d = before;
        for (std::int64_t k = 0; step->was_reset && k < p.states; ++k) {
            d.s[k].assign(d.s[k].size(), 0.0);
        }
    }
    for (std::int64_t k = 0; k < p.states; ++k)
        std::copy(d.s[k].begin(), d.s[k].end(), out.dinitial[k].row(b));
}

}  // namespace

bool reference(const Problem& problem, Results<double>& results) {
    const Cell* cell = nullptr;
    for (const Cell& known : kCells) {
        if (problem.cell == known.name) cell = &known;
    }
    if (cell == nullptr) return false;
    for (std::int64_t b = 0; b < problem.B; ++b) {
        const std::vector<Step> steps = forward_row(problem, *cell, b, results);
        backward_row(problem, *cell, b, steps, results);
    }
    return true;
}

}  // namespace kernel_check
