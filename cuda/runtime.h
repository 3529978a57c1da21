// The host's side of CUDA, as thin as it can be. A platform implements it (runtime.cpp and platform/launch.h of
// cuda/gpu, on CUDA's runtime, or of tests/cuda/emulator, in this process); nothing else knows which one it is.
#pragma once

#include <cstddef>
#include <functional>
#include <new>
#include <stdexcept>
#include <string>

namespace fusedrnn::cuda {

// A call that failed: CUDA's code of the error, its name, and which call it was.
class Error : public std::runtime_error {
  public:
    Error(int code, const std::string& name, const std::string& text, const std::string& place)
        : std::runtime_error(place + ": " + text + " (" + name + ")"),
          code_(code),
          name_(name),
          place_(place) {}
    int code() const noexcept { return code_; }
    const std::string& name() const noexcept { return name_; }
    const std::string& place() const noexcept { return place_; }

  private:
    int code_;
    std::string name_, place_;
};

// The device has no room for what was asked.
class OutOfMemory : public std::bad_alloc {
  public:
    const char* what() const noexcept override { return "the CUDA device is out of memory"; }
};

using Stream = void*;  // cudaStream_t; null is the default stream

struct Shape {
    int grid_x = 1, grid_y = 1, grid_z = 1;
    int block = 32;            // threads, a multiple of 32
    int shared_bytes = 0;      // dynamic shared memory of a block
    bool cooperative = false;  // refused unless all blocks are resident at the same time
    int cluster = 1;           // blocks of a cluster, along x
};

struct Device {
    std::string name;
    int architecture;  // 80 for compute capability 8.0
    int processors;    // multiprocessors
    int shared_bytes;  // the most that a block may ask for
    int index;
};

int device_count();
void set_device(int index);
Device current_device();

// Memory of the current device, aligned to 256 bytes, in the order of the stream. Null for 0 bytes.
void* allocate(std::size_t bytes, Stream stream);
void free(void* p, Stream stream);
// Between any two of host and device. Host memory must stay as it is until the stream has come past the copy.
void copy(void* to, const void* from, std::size_t bytes, Stream stream);
void fill(void* p, int byte, std::size_t bytes, Stream stream);
// Waits, and throws what went wrong on the device until now.
void synchronize(Stream stream);

// What a stream was given while it was captured: launches, copies, fills, with the arguments they had.
using Graph = void*;
bool is_capturing(Stream stream);
// Of all that `work` gives to the stream it is called with, none of which runs. Null where this is impossible.
Graph capture(const std::function<void(Stream)>& work);
void launch_graph(Graph graph, Stream stream);
// Runs of it that are under way come to their end.
void destroy_graph(Graph graph);

// While it lives, this thread may do what would spoil a capture of another stream, such as to allocate.
class RelaxedCapture {
  public:
    RelaxedCapture();
    ~RelaxedCapture();
    RelaxedCapture(const RelaxedCapture&) = delete;
    RelaxedCapture& operator=(const RelaxedCapture&) = delete;

  private:
    int before_;
};

}  // namespace fusedrnn::cuda

// With, of the kernels and libraries of this platform,
//   launch(kernel, shape, stream, arguments...)
//   resident_blocks(kernel, shape)   blocks of a kernel that are resident on the whole device at the same time
//   call_library(stream, call)       a call of another library that gives its own launches to the stream
//   kFindsLibraries                  whether libraries that nobody named work on this memory
#include "platform/launch.h"
