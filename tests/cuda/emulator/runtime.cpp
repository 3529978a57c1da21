// The host's side of CUDA on the emulator: the device's memory is the host's, streams wait for nothing.
#include "runtime.h"

#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "config.h"
#include "memory.h"

namespace fusedrnn::cuda {

namespace {

constexpr int kErrorInvalidValue = 1;  // CUDA's cudaErrorInvalidValue
constexpr int kErrorInvalidDevice = 101;
constexpr int kErrorStreamCaptureUnsupported = 900;

// A stream that is captured is the address of what it was given.
using Works = std::vector<std::function<void()>>;
thread_local Works* captured = nullptr;

void refuse_capture(Stream stream, const char* place) {
    if (is_capturing(stream)) {
        throw Error(kErrorStreamCaptureUnsupported, "emulator", "not while the stream is captured", place);
    }
}

std::set<const void*> streams;

}  // namespace

int device_count() { return 1; }

void set_device(int index) {
    if (index != 0) throw Error(kErrorInvalidDevice, "emulator", "there is one device, 0", "set_device");
}

Device current_device() {
    const emulator::Config& config = emulator::config();
    return {"emulator", config.architecture, config.resident_blocks,
            (config.architecture >= 90 ? 227 : 163) * 1024, 0};
}

void* allocate(std::size_t bytes, Stream stream) {
    refuse_capture(stream, "allocate");
    if (bytes == 0) return nullptr;
    void* p = nullptr;
    if (bytes > SIZE_MAX / 2 || posix_memalign(&p, 256, bytes) != 0) throw OutOfMemory();
    std::memset(p, emulator::config().poison ? 0xFF : 0, bytes);
    emulator::add_allocation(p, bytes);
    return p;
}

void free(void* p, Stream) {
    if (p == nullptr) return;
    if (!emulator::remove_allocation(p)) {
        throw Error(kErrorInvalidValue, "emulator", "this memory was not allocated or is already free",
                    "free");
    }
    std::free(p);
}

void copy(void* to, const void* from, std::size_t bytes, Stream stream) {
    if (bytes > 0) emulator::submit(stream, [=] { std::memmove(to, from, bytes); });
}

void fill(void* p, int byte, std::size_t bytes, Stream stream) {
    if (bytes > 0) emulator::submit(stream, [=] { std::memset(p, byte, bytes); });
}

void synchronize(Stream stream) { refuse_capture(stream, "synchronize"); }

bool is_capturing(Stream stream) { return stream != nullptr && stream == captured; }

Graph capture(const std::function<void(Stream)>& work) {
    Works* const outer = captured;
    auto works = std::make_unique<Works>();
    captured = works.get();
    bool whole = true;
    try {
        work(works.get());
    } catch (const std::exception&) {
        whole = false;
    }
    captured = outer;
    return whole ? works.release() : nullptr;
}

void launch_graph(Graph graph, Stream stream) {
    for (const auto& work : *static_cast<Works*>(graph)) emulator::submit(stream, work);
}

void destroy_graph(Graph graph) { delete static_cast<Works*>(graph); }

RelaxedCapture::RelaxedCapture() : before_(0) {}
RelaxedCapture::~RelaxedCapture() { static_cast<void>(before_); }

namespace emulator {

std::set<const void*> take_streams() { return std::exchange(streams, {}); }
void note_stream(const void* stream) { streams.insert(stream); }

void submit(void* stream, std::function<void()> work) {
    if (!is_capturing(stream)) {
        note_stream(stream);
        return work();
    }
    captured->push_back(std::move(work));
}

void register_memory(const void* p, std::size_t bytes) { add_allocation(p, bytes); }
void unregister_memory(const void* p) { remove_allocation(p); }

}  // namespace emulator

}  // namespace fusedrnn::cuda
