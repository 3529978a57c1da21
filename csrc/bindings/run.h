// Calling the kernels: without the GIL, and with Ctrl-C turned into its exception.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>

#include "cpu/team.h"

namespace fusedrnn {

// Calls f() without the GIL; if the team's work was interrupted, raises what the signal handler raised.
template <class F>
void run_released(Team& team, F&& f) {
    {
        pybind11::gil_scoped_release released;
        f();
    }
    if (team.was_cancelled()) throw pybind11::error_already_set();
}

// Threads worth starting for so many elementary operations. A double: the product of sizes may be past any integer.
inline int threads_for(double operations) {
    constexpr double kPerThread = 65536;
    return static_cast<int>(std::min<double>(get_num_threads(), 1 + operations / kPerThread));
}

}  // namespace fusedrnn
