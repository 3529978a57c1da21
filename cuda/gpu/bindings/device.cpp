// Devices and streams on CUDA's runtime.
#include "cuda/bindings/device.h"

#include <cuda_runtime_api.h>

#include "cuda/bindings/bindings.h"
#include "runtime.h"

namespace fusedrnn::cuda {
namespace {

void check(cudaError_t error, const char* place) {
    if (error == cudaSuccess) return;
    cudaGetLastError();  // the next call shall not report it again
    throw Error(error, cudaGetErrorName(error), cudaGetErrorString(error), place);
}

cudaStream_t native(StreamNumber stream) { return reinterpret_cast<cudaStream_t>(stream); }

std::string version_text(int version) {
    return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

}  // namespace

std::string missing() {
    int count = 0, driver = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    cudaGetLastError();
    if (error == cudaSuccess && count > 0) return "";
    if (error == cudaErrorNoDevice || (error == cudaSuccess && count == 0)) {
        return "no device: the driver sees none (CUDA_VISIBLE_DEVICES may hide it)";
    }
    cudaDriverGetVersion(&driver);
    const std::string needed = "CUDA " + version_text(CUDART_VERSION) + " or compatible";
    if (error == cudaErrorInsufficientDriver) {
        return driver == 0
                   ? "no driver: expected one for " + needed + ", found none"
                   : "no usable driver: expected one for " + needed + ", got CUDA " + version_text(driver);
    }
    return std::string("no usable device: ") + cudaGetErrorString(error) + " (" + cudaGetErrorName(error) +
           ", " + std::to_string(error) + ")";
}

std::vector<DeviceInfo> devices() {
    std::vector<DeviceInfo> found;
    for (int i = 0; i < device_count(); ++i) {
        cudaDeviceProp properties;
        check(cudaGetDeviceProperties(&properties, i), "cudaGetDeviceProperties");
        found.push_back({properties.name, properties.major * 10 + properties.minor});
    }
    return found;
}

int device_number(dlpack::Device device) {
    return device.type == dlpack::kCuda || device.type == dlpack::kCudaManaged ? device.id : -1;
}

const char* const kReadableArray = "on a CUDA device";
const char* const kInterface = "__cuda_array_interface__";

dlpack::Device exported_device(int device) { return {dlpack::kCuda, device}; }

int device_of(const void* address) {
    cudaPointerAttributes found;
    check(cudaPointerGetAttributes(&found, address), "cudaPointerGetAttributes");
    return found.type == cudaMemoryTypeDevice || found.type == cudaMemoryTypeManaged ? found.device : -1;
}

void order_streams(int device, StreamNumber waiting, StreamNumber done) {
    if (waiting == done) return;
    const CurrentDevice current(device);
    cudaEvent_t event = nullptr;
    check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreateWithFlags");
    cudaError_t error = cudaEventRecord(event, native(done));
    if (error == cudaSuccess) error = cudaStreamWaitEvent(native(waiting), event, 0);
    cudaEventDestroy(event);  // freed once the streams are past it
    check(error, "cudaStreamWaitEvent");
}

CurrentDevice::CurrentDevice(int device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    if (device != before_) check(cudaSetDevice(device), "cudaSetDevice");
}

CurrentDevice::~CurrentDevice() { cudaSetDevice(before_); }

CallScope::CallScope(int device, std::vector<std::pair<std::uintptr_t, std::uintptr_t>>) : current_(device) {}
CallScope::~CallScope() = default;

void bind_platform(pybind11::module_& m) {
    m.attr("targets") = FUSEDRNN_CUDA_TARGETS;
    m.attr("array_library") = "cupy";
    m.attr("device_types") = pybind11::make_tuple(int{dlpack::kCuda}, int{dlpack::kCudaManaged});
}

}  // namespace fusedrnn::cuda
