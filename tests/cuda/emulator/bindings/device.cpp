// The emulated build's device: this process's own memory, where what is asked for has happened on return.
#include "cuda/bindings/device.h"

#include <algorithm>
#include <mutex>
#include <set>
#include <utility>

#include "../config.h"
#include "cuda/bindings/bindings.h"
#include "runtime.h"

namespace fusedrnn::cuda {
namespace {

std::mutex one_call, one_order;
std::set<std::pair<StreamNumber, StreamNumber>> orders;

}  // namespace

std::string missing() { return ""; }

std::vector<DeviceInfo> devices() { return {{"emulated on the CPU", emulator::config().architecture}}; }

// Arrays that call themselves CUDA arrays are taken at their word, for producers that stand in for one.
int device_number(dlpack::Device device) {
    if (device.type == dlpack::kCpu) return 0;
    return device.type == dlpack::kCuda && device.id >= 0 ? device.id : -1;
}

const char* const kReadableArray = "in host memory";
const char* const kInterface = "__array_interface__";

dlpack::Device exported_device(int) { return {dlpack::kCpu, 0}; }

int device_of(const void*) { return 0; }

void order_streams(int, StreamNumber waiting, StreamNumber done) {
    const std::lock_guard<std::mutex> lock(one_order);
    if (waiting != done) orders.emplace(waiting, done);
}

CurrentDevice::CurrentDevice(int device) : before_(device) {}
CurrentDevice::~CurrentDevice() { static_cast<void>(before_); }

// Arrays may claim to be on other devices than the one there is. Views of one array overlap: their memory is
// merged first.
CallScope::CallScope(int device, std::vector<std::pair<std::uintptr_t, std::uintptr_t>> extents)
    : current_(device) {
    set_device(device);
    one_call.lock();
    std::sort(extents.begin(), extents.end());
    for (const auto& [low, high] : extents) {
        if (low == high) continue;
        if (!extents_.empty() && low < extents_.back().second) {
            extents_.back().second = std::max(extents_.back().second, high);
        } else {
            extents_.emplace_back(low, high);
        }
    }
    for (const auto& [low, high] : extents_) {
        emulator::register_memory(reinterpret_cast<const void*>(low), high - low);
    }
}

CallScope::~CallScope() {
    for (const auto& extent : extents_) {
        emulator::unregister_memory(reinterpret_cast<const void*>(extent.first));
    }
    one_call.unlock();
}

void bind_platform(pybind11::module_& m) {
    m.attr("targets") = "the emulator";
    m.attr("array_library") = "numpy";
    m.attr("device_types") = pybind11::make_tuple(int{dlpack::kCpu}, int{dlpack::kCuda});
    m.def(
        "emulate",
        [](int architecture, int processors) {
            const std::lock_guard<std::mutex> lock(one_call);
            emulator::Config config = emulator::config();
            config.architecture = architecture;
            config.resident_blocks = processors;
            emulator::set_config(config);
        },
        pybind11::arg("architecture") = emulator::Config().architecture,
        pybind11::arg("processors") = emulator::Config().resident_blocks,
        "Choose the device that later calls run on; without arguments, the one there was at first.");
    m.def(
        "take_streams",
        [] {
            const std::scoped_lock lock(one_call, one_order);
            pybind11::set used, ordered;
            for (const void* stream : emulator::take_streams()) {
                used.add(reinterpret_cast<StreamNumber>(stream));
            }
            for (const auto& [waiting, done] : std::exchange(orders, {})) {
                ordered.add(pybind11::make_tuple(waiting, done));
            }
            return pybind11::make_tuple(used, ordered);
        },
        "Return the streams that calls have worked in since the last question, and the pairs (waiting, done) "
        "that were ordered.");
}

}  // namespace fusedrnn::cuda
