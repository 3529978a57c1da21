#include "reference.h"

namespace kernel_check {
namespace {

using States = std::vector<Vector>;  // of one row
using Units = std::vector<Vector>;   // of each per-unit parameter, values * H

struct Step {
    std::int64_t t;
    bool was_reset;
    States before;
    Vector a, b, raw;  // the shares of input and state in the pre-activations; h before the projection
};

// A step of one row: a, b (G*H), the states and the per-unit parameters give the next states; and the way back, from
// the gradients of the next states to those of a, b, the parameters and, apart from the matrix product, of the states.
struct Cell {
    const char* name;
    void (*step)(std::int64_t H, const Vector& a, const Vector& b, const States& s, const Units& units,
                 States& next);
    void (*pull)(std::int64_t H, const Vector& a, const Vector& b, const States& s, const Units& units,
                 const States& d_next, Vector& da, Vector& db, States& d, Units& dunits);
};

#include "reference_cells.h"  // kCells, from tests/reference.py

// m v + bias for m (rows, width).
Vector product(const Array<double>& m, const double* v, const Array<double>& bias, Compute compute) {
    Vector out(static_cast<std::size_t>(m.rows()));
    for (std::int64_t i = 0; i < m.rows(); ++i) {
        out[i] = bias.given() ? bias.data()[i] : 0;
        for (std::int64_t k = 0; k < m.width(); ++k) out[i] += term(m.row(i)[k], v[k], compute);
    }
    return out;
}
// v m.
Vector product_transposed(const Vector& v, const Array<double>& m, Compute compute) {
    Vector out(static_cast<std::size_t>(m.width()));
    for (std::int64_t i = 0; i < m.rows(); ++i) {
        for (std::int64_t k = 0; k < m.width(); ++k) out[k] += term(v[i], m.row(i)[k], compute);
    }
    return out;
}
void add_outer(const Vector& a, const double* b, Array<double>& to, Compute compute) {
    for (std::int64_t i = 0; i < to.rows(); ++i) {
        for (std::int64_t k = 0; k < to.width(); ++k) to.row(i)[k] += term(a[i], b[k], compute);
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

Units units_of(const Problem& p) {
    Units units;
    for (const Array<double>& a : p.units) units.emplace_back(a.data(), a.data() + a.rows() * a.width());
    return units;
}

// Whether step t of row b starts a segment in the direction of travel: resets[t] is a border between t - 1
// and t, and backwards a row's first step (its last in time) reads the initial state.
bool reads_reset(const Problem& p, std::int64_t t, std::int64_t b) {
    if (p.resets.empty()) return false;
    if (!p.reverse) return p.resets[t * p.B + b] != 0;
    return t + 1 < p.lengths[b] && p.resets[(t + 1) * p.B + b] != 0;
}

std::vector<Step> forward_row(const Problem& p, const Cell& cell, std::int64_t b, Results<double>& out) {
    States now;
    for (std::int64_t k = 0; k < p.states; ++k) now.push_back(row_or_zero(p.initial[k], b, p.width(k)));
    std::vector<Step> steps;
    for (std::int64_t i = 0; i < p.lengths[b]; ++i) {
        Step step{p.reverse ? p.lengths[b] - 1 - i : i, false, {}, {}, {}, {}};
        step.was_reset = reads_reset(p, step.t, b);
        for (std::int64_t k = 0; step.was_reset && k < p.states; ++k) {
            now[k] = row_or_zero(p.reset[k], b, p.width(k));
        }
        step.before = now;
        step.a = product(p.w_ih, p.x.row(step.t * p.B + b), p.b_ih, p.compute);
        step.b = product(p.w_hh, now[0].data(), p.b_hh, p.compute);
        States next(static_cast<std::size_t>(p.states), Vector(static_cast<std::size_t>(p.H)));
        cell.step(p.H, step.a, step.b, step.before, units_of(p), next);
        step.raw = next[0];
        if (p.w_hr.given()) next[0] = product(p.w_hr, step.raw.data(), {}, p.compute);
        now = next;
        std::copy(now[0].begin(), now[0].end(), out.y.row(step.t * p.B + b));
        steps.push_back(step);
    }
    for (std::int64_t k = 0; k < p.states; ++k) {
        std::copy(now[k].begin(), now[k].end(), out.final[k].row(b));
    }
    return steps;
}

void backward_row(const Problem& p, const Cell& cell, std::int64_t b, const std::vector<Step>& steps,
                  Results<double>& out) {
    States d;
    for (std::int64_t k = 0; k < p.states; ++k) d.push_back(row_or_zero(p.dfinal[k], b, p.width(k)));
    for (auto step = steps.rbegin(); step != steps.rend(); ++step) {
        const std::int64_t row = step->t * p.B + b;
        for (std::int64_t k = 0; p.dy.given() && k < p.P; ++k) d[0][k] += p.dy.row(row)[k];
        if (p.w_hr.given()) {
            add_outer(d[0], step->raw.data(), out.dw_hr, p.compute);
            d[0] = product_transposed(d[0], p.w_hr, p.compute);
        }
        Vector da(static_cast<std::size_t>(p.gates * p.H)), db = da;
        States before(static_cast<std::size_t>(p.states), Vector(static_cast<std::size_t>(p.H)));
        const Units units = units_of(p);
        Units dunits = units;
        cell.pull(p.H, step->a, step->b, step->before, units, d, da, db, before, dunits);
        for (std::size_t k = 0; k < units.size(); ++k) {
            Array<double>& sum = out.dunits[k];
            for (std::int64_t i = 0; i < sum.rows() * sum.width(); ++i) sum.data()[i] += dunits[k][i];
        }
        add_outer(da, p.x.row(row), out.dw_ih, p.compute);
        add_outer(db, step->before[0].data(), out.dw_hh, p.compute);
        add(da, out.db_ih);
        add(db, out.db_hh);
        const Vector dx = product_transposed(da, p.w_ih, p.compute),
                     dh = product_transposed(db, p.w_hh, p.compute);
        for (std::int64_t k = 0; k < p.I; ++k) out.dx.row(row)[k] += dx[k];
        before[0].resize(static_cast<std::size_t>(p.P));  // with a projection its pointwise part is zero
        for (std::int64_t k = 0; k < p.P; ++k) before[0][k] += dh[k];
        d = before;
        for (std::int64_t k = 0; step->was_reset && k < p.states; ++k) {
            d[k].assign(d[k].size(), 0.0);
        }
    }
    for (std::int64_t k = 0; k < p.states; ++k) std::copy(d[k].begin(), d[k].end(), out.dinitial[k].row(b));
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
