// The structs that libraries exchange arrays through: DLPack, major version 1, its unversioned form, and its
// functions for C.
//
// Written from the specification (https://dmlc.github.io/dlpack/latest/c_api.html); the layout is an ABI. A
// producer wraps a managed tensor in a PyCapsule with the first name below; the consumer renames it to the
// "used" one, owns the tensor from then on and calls its deleter once. A capsule that dies under its first
// name calls the deleter itself.
#pragma once

#include <cstdint>

namespace fusedrnn::dlpack {

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

// What a library offers to C: the functions behind a type whose attribute `kExchangeAttribute` is a capsule
// `kExchangeCapsule` of this table (DLPack 1.3). None of them orders streams, and all but `allocate` leave a
// Python exception where they fail.
struct ExchangeHeader {
    Version version;
    const ExchangeHeader* previous;  // the table of an older major version, or null
};

struct Exchange {
    ExchangeHeader header;
    // A new tensor with the dtype, shape and device of another; says what failed to `report`.
    int (*allocate)(Tensor* like, VersionedManaged** made, void* context,
                    void (*report)(void* context, const char* kind, const char* message));
    int (*export_object)(void* object, VersionedManaged** made);
    int (*import_tensor)(VersionedManaged* tensor, void** object);
    int (*borrow_object)(void* object, Tensor* borrowed);  // or null; good while the object is not changed
    int (*current_stream)(std::int32_t device_type, std::int32_t device, void** stream);
};

inline constexpr char kExchangeAttribute[] = "__dlpack_c_exchange_api__";
inline constexpr char kExchangeCapsule[] = "dlpack_exchange_api";

static_assert(sizeof(Type) == 4 && sizeof(Device) == 8);
static_assert(sizeof(void*) != 8 || (sizeof(Tensor) == 48 && sizeof(Managed) == 64));
static_assert(sizeof(void*) != 8 || sizeof(VersionedManaged) == 80);

inline constexpr char kCapsule[] = "dltensor", kUsedCapsule[] = "used_dltensor";
inline constexpr char kVersionedCapsule[] = "dltensor_versioned",
                      kUsedVersionedCapsule[] = "used_dltensor_versioned";

}  // namespace fusedrnn::dlpack
