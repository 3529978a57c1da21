// The host's side of CUDA on CUDA's runtime.
#include "runtime.h"

#include <cuda_runtime_api.h>

#include <map>
#include <mutex>

namespace fusedrnn::cuda {

namespace {

void check(cudaError_t error, const char* place) {
    if (error == cudaSuccess) return;
    cudaGetLastError();  // the next call shall not report it again
    if (error == cudaErrorMemoryAllocation) throw OutOfMemory();
    throw Error(error, cudaGetErrorName(error), cudaGetErrorString(error), place);
}

cudaStream_t native(Stream stream) { return static_cast<cudaStream_t>(stream); }

int attribute(cudaDeviceAttr which) {
    int device = 0, value = 0;
    check(cudaGetDevice(&device), "cudaGetDevice");
    check(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute");
    return value;
}

// More than 48 KB must be asked for, kernel by kernel.
void allow_shared_memory(const void* kernel, int bytes) {
    if (bytes <= 48 * 1024) return;
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
          "cudaFuncSetAttribute");
}

// A launch in clusters.
struct Configuration {
    Configuration(const void* kernel, const Shape& shape, Stream stream) {
        if (shape.cluster > 8) {
            check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
                  "cudaFuncSetAttribute");
        }
        value.gridDim = dim3(static_cast<unsigned>(shape.grid_x), static_cast<unsigned>(shape.grid_y),
                             static_cast<unsigned>(shape.grid_z));
        value.blockDim = dim3(static_cast<unsigned>(shape.block));
        value.dynamicSmemBytes = static_cast<std::size_t>(shape.shared_bytes);
        value.stream = native(stream);
        attributes[0].id = cudaLaunchAttributeClusterDimension;
        attributes[0].val.clusterDim.x = static_cast<unsigned>(shape.cluster);
        attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
        attributes[1].id = cudaLaunchAttributeCooperative;
        attributes[1].val.cooperative = 1;
        value.attrs = attributes;
        value.numAttrs = shape.cooperative ? 2 : 1;
    }
    Configuration(const Configuration&) = delete;

    cudaLaunchConfig_t value{};
    cudaLaunchAttribute attributes[2] = {};
};

}  // namespace

int device_count() {
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error == cudaErrorNoDevice || error == cudaErrorInsufficientDriver) {
        cudaGetLastError();
        return 0;
    }
    check(error, "cudaGetDeviceCount");
    return count;
}

void set_device(int index) { check(cudaSetDevice(index), "cudaSetDevice"); }

Device current_device() {
    int device = 0;
    check(cudaGetDevice(&device), "cudaGetDevice");
    // Asked once of each: the driver takes long to answer.
    static std::mutex mutex;
    static std::map<int, Device> known;
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = known.find(device);
    if (found != known.end()) return found->second;
    cudaDeviceProp properties;
    check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
    return known
        .emplace(device, Device{properties.name, properties.major * 10 + properties.minor,
                                properties.multiProcessorCount,
                                static_cast<int>(properties.sharedMemPerBlockOptin), device})
        .first->second;
}

void* allocate(std::size_t bytes, Stream stream) {
    void* p = nullptr;
    if (bytes > 0) check(cudaMallocAsync(&p, bytes, native(stream)), "cudaMallocAsync");
    return p;
}

void free(void* p, Stream stream) {
    if (p != nullptr) check(cudaFreeAsync(p, native(stream)), "cudaFreeAsync");
}

void copy(void* to, const void* from, std::size_t bytes, Stream stream) {
    if (bytes > 0)
        check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, native(stream)), "cudaMemcpyAsync");
}

void fill(void* p, int byte, std::size_t bytes, Stream stream) {
    if (bytes > 0) check(cudaMemsetAsync(p, byte, bytes, native(stream)), "cudaMemsetAsync");
}

void synchronize(Stream stream) { check(cudaStreamSynchronize(native(stream)), "cudaStreamSynchronize"); }

bool is_capturing(Stream stream) {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    const cudaError_t error = cudaStreamIsCapturing(native(stream), &status);
    if (error != cudaSuccess) cudaGetLastError();
    // An error: the default stream, which may not even be asked while a stream is captured that waits for it.
    return error != cudaSuccess || status != cudaStreamCaptureStatusNone;
}

// In a stream of its own, since the default stream cannot be captured.
Graph capture(const std::function<void(Stream)>& work) {
    const RelaxedCapture relaxed;
    cudaStream_t stream = nullptr;
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t ready = nullptr;
    bool whole = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess &&
                 cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed) == cudaSuccess;
    if (whole) {
        try {
            work(stream);
        } catch (const std::exception&) {
            whole = false;
        }
        whole = cudaStreamEndCapture(stream, &graph) == cudaSuccess && whole;
    }
    if (whole && cudaGraphInstantiate(&ready, graph, 0) != cudaSuccess) ready = nullptr;
    if (graph != nullptr) cudaGraphDestroy(graph);
    if (stream != nullptr) cudaStreamDestroy(stream);
    if (ready == nullptr) cudaGetLastError();
    return ready;
}

void launch_graph(Graph graph, Stream stream) {
    check(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), native(stream)), "cudaGraphLaunch");
}

void destroy_graph(Graph graph) {
    if (graph != nullptr) cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph));
}

RelaxedCapture::RelaxedCapture() {
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    check(cudaThreadExchangeStreamCaptureMode(&mode), "cudaThreadExchangeStreamCaptureMode");
    before_ = mode;
}

RelaxedCapture::~RelaxedCapture() {
    auto mode = static_cast<cudaStreamCaptureMode>(before_);
    cudaThreadExchangeStreamCaptureMode(&mode);
}

void launch_erased(const void* kernel, const Shape& shape, Stream stream, void** arguments) {
    allow_shared_memory(kernel, shape.shared_bytes);
    const dim3 grid(shape.grid_x, shape.grid_y, shape.grid_z), block(shape.block);
    const auto bytes = static_cast<std::size_t>(shape.shared_bytes);
    if (shape.cluster > 1) {
        Configuration configuration(kernel, shape, stream);
        check(cudaLaunchKernelExC(&configuration.value, kernel, arguments), "cudaLaunchKernelExC");
    } else if (shape.cooperative) {
        check(cudaLaunchCooperativeKernel(kernel, grid, block, arguments, bytes, native(stream)),
              "cudaLaunchCooperativeKernel");
    } else {
        check(cudaLaunchKernel(kernel, grid, block, arguments, bytes, native(stream)), "cudaLaunchKernel");
    }
}

int resident_blocks_erased(const void* kernel, const Shape& shape) {
    allow_shared_memory(kernel, shape.shared_bytes);
    if (shape.cluster > 1) {
        int clusters = 0;
        Configuration configuration(kernel, shape, nullptr);
        check(cudaOccupancyMaxActiveClusters(&clusters, kernel, &configuration.value),
              "cudaOccupancyMaxActiveClusters");
        return clusters * shape.cluster;
    }
    int blocks = 0;
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, shape.block,
                                                        static_cast<std::size_t>(shape.shared_bytes)),
          "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
    return blocks * attribute(cudaDevAttrMultiProcessorCount);
}

}  // namespace fusedrnn::cuda
