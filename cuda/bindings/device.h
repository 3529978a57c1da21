// Devices and streams as the bindings need them beyond runtime.h; bindings/device.cpp of the platform implements it.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "bindings/dlpack.h"

namespace fusedrnn::cuda {

// A cudaStream_t as the array protocols write it: 1 is the legacy default stream, 2 the per-thread one.
using StreamNumber = std::uintptr_t;
inline constexpr StreamNumber kLegacyStream = 1;
inline void* native_stream(StreamNumber stream) { return reinterpret_cast<void*>(stream); }

struct DeviceInfo {
    std::string name;
    int architecture;
};

// What is missing for a call to run ("no driver: ..."), empty if nothing is.
std::string missing();
std::vector<DeviceInfo> devices();

// The device of this DLPack number, or -1 if the kernels cannot read its memory.
int device_number(dlpack::Device device);
dlpack::Device exported_device(int device);
// How errors call the arrays that kernels can read, and the attribute by which others read ours.
extern const char* const kReadableArray;
extern const char* const kInterface;
// The device whose memory this address is in, or -1.
int device_of(const void* address);

// Makes `waiting` wait for what `done` has been given so far.
void order_streams(int device, StreamNumber waiting, StreamNumber done);

// Makes a device the current one of this thread for a while.
class CurrentDevice {
  public:
    explicit CurrentDevice(int device);
    ~CurrentDevice();
    CurrentDevice(const CurrentDevice&) = delete;
    CurrentDevice& operator=(const CurrentDevice&) = delete;

  private:
    int before_;
};

// What surrounds a driver: its device, and the memory of the call's arrays, first and one past the last byte of
// each. A platform that can may refuse accesses to any other.
class CallScope {
  public:
    CallScope(int device, std::vector<std::pair<std::uintptr_t, std::uintptr_t>> extents);
    ~CallScope();
    CallScope(const CallScope&) = delete;
    CallScope& operator=(const CallScope&) = delete;

  private:
    CurrentDevice current_;
    std::vector<std::pair<std::uintptr_t, std::uintptr_t>> extents_;
};

}  // namespace fusedrnn::cuda
