// The structs that libraries exchange arrays through: DLPack, major version 1, and its unversioned form.
//
// Written from the specification (https://dmlc.github.io/dlpack/latest/c_api.html); the layout is an ABI. A
// producer wraps a managed tensor in a PyCapsule with the first name below; the consumer renames it to the
// "used" one, owns the tensor from then on and calls its deleter once. A capsule that dies under its first
// name calls the deleter itself.
#pragma once

#include <cstdint>

namespace fusedrnn::cuda::dlpack {

enum DeviceType : std::int32_t { kCpu = 1, kCuda = 2, kCudaHost = 3, kCudaManaged = 13 };

struct Device {
    std::int32_t type, id;
};

enum TypeCode : std::uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4, kComplex = 5, kBool = 6 };

struct Type {
    std::uint8_t code, bits;
    std::uint16_t lanes;
};

struct Tensor {
    void* data;
    Device device;
    std::int32_t ndim;
    Type dtype;
    std::int64_t* shape;
    std::int64_t* strides;  // in elements; null: C-contiguous
    std::uint64_t byte_offset;
};

struct Managed {
    Tensor tensor;
    void* context;
    void (*deleter)(Managed*);  // may be null
};

struct Version {
    std::uint32_t major, minor;
};

inline constexpr Version kVersion{1, 1};
inline constexpr std::uint64_t kReadOnly = 1, kCopied = 2;

struct VersionedManaged {
    Version version;
    void* context;
    void (*deleter)(VersionedManaged*);  // may be null
    std::uint64_t flags;
    Tensor tensor;
};

static_assert(sizeof(Type) == 4 && sizeof(Device) == 8);
static_assert(sizeof(void*) != 8 || (sizeof(Tensor) == 48 && sizeof(Managed) == 64));
static_assert(sizeof(void*) != 8 || sizeof(VersionedManaged) == 80);

inline constexpr char kCapsule[] = "dltensor", kUsedCapsule[] = "used_dltensor";
inline constexpr char kVersionedCapsule[] = "dltensor_versioned",
                      kUsedVersionedCapsule[] = "used_dltensor_versioned";

}  // namespace fusedrnn::cuda::dlpack
