// Devices and streams as the bindings need them beyond runtime.h. device.cpp asks the CUDA runtime; in the
// emulated build device_emulated.cpp stands in for it, whose one device is this process's own memory.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "cuda/bindings/dlpack.h"

namespace fusedrnn::cuda {

// A cudaStream_t as the array protocols write it: 1 is the legacy default stream, 2 the per-thread one.
using StreamNumber = std::uintptr_t;
inline constexpr StreamNumber kLegacyStream = 1;
inline void* native_stream(StreamNumber stream) { return reinterpret_cast<void*>(stream); }

#ifdef FUSEDRNN_CUDA_EMULATOR
inline constexpr bool kEmulated = true;
#else
inline constexpr bool kEmulated = false;
#endif

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

// The memory of a call's arrays, first and one past the last byte of each. The emulator, whose calls come one
// after the other, then refuses accesses to any other.
class CallMemory {
  public:
    explicit CallMemory(std::vector<std::pair<std::uintptr_t, std::uintptr_t>> extents);
    ~CallMemory();
    CallMemory(const CallMemory&) = delete;
    CallMemory& operator=(const CallMemory&) = delete;

  private:
    std::vector<std::pair<std::uintptr_t, std::uintptr_t>> extents_;
};

}  // namespace fusedrnn::cuda
