// Threads, the environment, and what this build and this machine have.
#include <pybind11/stl.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "bindings/run.h"
#include "cpu/dispatch.h"
#include "cpu/kernels.h"
#include "cpu/team.h"

#if defined(__linux__)
#include <sys/syscall.h>
#else
#include <pthread.h>
#endif

#ifndef FUSEDRNN_COMPILER
#define FUSEDRNN_COMPILER __VERSION__
#endif
#ifndef FUSEDRNN_BUILD_TYPE
#define FUSEDRNN_BUILD_TYPE "unknown"
#endif

namespace fusedrnn {
namespace {

bool on_main_thread() {
#if defined(__linux__)
    return syscall(SYS_gettid) == getpid();
#else
    return pthread_main_np() != 0;
#endif
}

// Only the main thread runs signal handlers: others need not wait for the GIL to learn that.
bool interrupted() {
    if (SignalsWait::waiting || !on_main_thread()) return false;
    const py::gil_scoped_acquire acquired;
    return PyErr_CheckSignals() != 0;
}

std::string cpu_name() {
    std::ifstream info("/proc/cpuinfo");
    for (std::string line; std::getline(info, line);) {
        const std::size_t colon = line.find(": ");
        if (line.rfind("model name", 0) == 0 && colon != std::string::npos) return line.substr(colon + 2);
    }
    utsname system{};
    return uname(&system) == 0 ? system.machine : "unknown";
}

py::dict config() {
    std::vector<std::string> built, supported;
    for (const IsaStatus& isa : isa_status()) {
        if (isa.built) built.emplace_back(isa.name);
        if (isa.supported) supported.emplace_back(isa.name);
    }
    py::dict result;
    result["version"] = FUSEDRNN_VERSION;
    result["isa"] = kernels().isa;
    result["bf16_isa"] = bf16_kernels(Compute::kBf16).isa;
    result["bf16x3_isa"] = bf16_kernels(Compute::kBf16x3).isa;
    result["isas_built"] = built;
    result["isas_supported"] = supported;
    result["num_threads"] = get_num_threads();
    result["available_threads"] = available_threads();
    result["cpu"] = cpu_name();
    result["compiler"] = FUSEDRNN_COMPILER;
    result["build_type"] = FUSEDRNN_BUILD_TYPE;
    return result;
}

}  // namespace

void configure() {
    kernels();
    const char* text = std::getenv("FUSEDRNN_NUM_THREADS");
    if (text == nullptr || *text == '\0') return;
    const std::string value = text;
    const bool digits = value.find_first_not_of("0123456789") == std::string::npos && value.size() <= 9;
    const int n = digits ? std::stoi(value) : 0;
    if (n < 1 || n > kMaxThreads) {
        throw std::runtime_error("FUSEDRNN_NUM_THREADS: expected an integer from 1 to " +
                                 std::to_string(kMaxThreads) + ", got '" + value + "'");
    }
    set_num_threads(n);
}

void bind_config(py::module_& m) {
    set_interrupt_check(interrupted);
    m.def("get_num_threads", &get_num_threads, "Return how many threads the kernels use.");
    m.def(
        "set_num_threads",
        [](const py::object& n) { set_num_threads(static_cast<int>(integer(n, "n", 1, kMaxThreads))); },
        py::arg("n"), "Set how many threads the kernels use.");
    m.def("config", &config, "Return version, instruction sets, threads, CPU and compiler.");
}

}  // namespace fusedrnn
