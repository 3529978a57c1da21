// Slow, obvious double-precision recurrent networks: one row and one step at a time, with the equations of
// tests/reference.py, whose cells generate_reference.py writes as C++ at build time.
#pragma once

#include "check.h"

namespace kernel_check {

using fusedrnn::kMaxStates;

using Vector = std::vector<double>;

// One layer and direction, as the reference sees it. Absent arrays are not given; x, y and their gradients
// are (T*B, n) with row t*B + b.
struct Problem {
    std::string cell;
    std::int64_t T, B, I, H, P, gates, states;
    bool reverse;
    fusedrnn::Compute compute;
    std::vector<std::int64_t> lengths;  // (B)
    std::vector<std::uint8_t> resets;   // (T*B)
    Array<double> x, w_ih, w_hh, b_ih, b_hh, w_hr;
    std::vector<Array<double>> units;                      // (values, H) of each per-unit parameter
    Array<double> initial[kMaxStates], reset[kMaxStates];  // reset: one row for all, or B
    Array<double> dy, dfinal[kMaxStates];

    std::int64_t width(std::int64_t state) const { return state == 0 ? P : H; }
};

// Gradients of parameters are added to what they hold.
template <class T>
struct Results {
    Array<T> y, final[kMaxStates], dx, dinitial[kMaxStates], dw_ih, dw_hh, db_ih, db_hh, dw_hr;
    std::vector<Array<T>> dunits;
};

// False if it knows no cell of that name.
bool reference(const Problem& problem, Results<double>& results);

}  // namespace kernel_check
