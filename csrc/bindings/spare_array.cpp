#include "bindings/spare_array.h"

#include <memory>

#include "bindings/buffer.h"

namespace fusedrnn {

py::array spare_array(DType dtype, const std::vector<std::int64_t>& sizes) {
    const py::dtype type = dtype_object(dtype);
    std::int64_t bytes = type.itemsize();
    for (const std::int64_t size : sizes) bytes = checked_product({bytes, size});
    if (bytes < AlignedBuffer::kSmallestSpare) return new_array(dtype, sizes);
    auto memory = std::make_unique<AlignedBuffer>(bytes);
    const py::capsule owner(memory.get(), [](void* p) { delete static_cast<AlignedBuffer*>(p); });
    void* const data = memory.release()->data();
    return {type, std::vector<py::ssize_t>(sizes.begin(), sizes.end()), data, owner};
}

}  // namespace fusedrnn
