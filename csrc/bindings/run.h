// Calling the kernels: without the GIL, and with Ctrl-C turned into its exception.
#pragma once

#include <pybind11/pybind11.h>
#include <unistd.h>

#include <algorithm>
#include <exception>
#include <stdexcept>

#include "cpu/team.h"

namespace fusedrnn {

// Takes the GIL back. While the interpreter shuts down, Python before 3.14 ends a daemon thread that asks for the GIL by
// unwinding its stack: destructors would then drop references without the GIL. Such a thread sleeps here instead until the
// process is gone, as it does in later versions.
inline void take_gil(PyThreadState* state) {
    try {
        PyEval_RestoreThread(state);
    } catch (...) {
        for (;;) ::pause();
    }
}

// While it lives, signals to this thread wait: for calls of a moment that must not end halfway.
struct SignalsWait {
    SignalsWait() { waiting = true; }
    ~SignalsWait() { waiting = false; }
    SignalsWait(const SignalsWait&) = delete;
    SignalsWait& operator=(const SignalsWait&) = delete;
    inline static thread_local bool waiting = false;
};

// The kernels' work: f() without the GIL, in the kernels' floating-point state; and if it was interrupted, what the
// signal handler raised.
template <class F>
void run_released(Team& team, F&& f) {
    PyThreadState* const state = PyEval_SaveThread();
    try {
        const Team::KernelFloats floats(team);
        f();
    } catch (const std::exception&) {
        take_gil(state);
        throw;
    }
    take_gil(state);
    if (!team.was_cancelled()) return;
    if (PyErr_Occurred() != nullptr) throw pybind11::error_already_set();
    throw std::runtime_error(
        "fork: expected a call to end in the process that began it, got one on several threads that goes on "
        "in a "
        "forked child, which has none of the others; its results are lost");
}

// Threads worth starting for so many elementary operations. A double: the product of sizes may be past any integer.
inline int threads_for(double operations) {
    constexpr double kPerThread = 65536;
    return static_cast<int>(std::min<double>(get_num_threads(), 1 + operations / kPerThread));
}

}  // namespace fusedrnn
