// What XLA's compiled programs hand to a custom call: the plain C structures of its foreign functions, version 0.1, which later
// ones only add to. Nothing of XLA is needed to build this.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fusedrnn::xla {

struct Error;  // XLA's own

struct Extension {
    std::size_t struct_size;
    int type;
    Extension* next;
};
constexpr int kMetadata = 1;

struct Version {
    std::size_t struct_size;
    Extension* extension;
    int major, minor;
};

struct Metadata {
    std::size_t struct_size;
    Version version;
    std::uint32_t traits;
};

struct MetadataExtension {
    Extension base;
    Metadata* metadata;
};

struct ErrorArguments {
    std::size_t struct_size;
    Extension* extension;
    const char* message;
    int code;
};
constexpr int kInvalidArgument = 3;

struct Api {
    std::size_t struct_size;
    Extension* extension;
    Version version;
    const void* internal;
    Error* (*create_error)(ErrorArguments*);
};

struct Buffer {
    std::size_t struct_size;
    Extension* extension;
    int dtype;
    void* data;
    std::int64_t rank;
    std::int64_t* dims;
};

struct Buffers {
    std::size_t struct_size;
    Extension* extension;
    std::int64_t size;
    int* types;
    void** of;
};

struct Span {
    const char* data;
    std::size_t size;
};

struct Attributes {
    std::size_t struct_size;
    Extension* extension;
    std::int64_t size;
    int* types;
    Span** names;
    void** of;
};
constexpr int kString = 4;

struct Frame {
    std::size_t struct_size;
    Extension* extension;
    const Api* api;
    void* context;
    int stage;
    Buffers arguments, results;
    Attributes attributes;
};
constexpr int kExecute = 3;

// Numbers of dtypes.
constexpr int kBool = 1, kInt32 = 4, kInt64 = 5, kUint32 = 8, kUint64 = 9, kFloat32 = 11, kFloat64 = 12;

inline const Buffer& buffer(const Buffers& buffers, std::int64_t i) {
    return *static_cast<const Buffer*>(buffers.of[i]);
}

}  // namespace fusedrnn::xla
