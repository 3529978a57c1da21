// Networks with weights of fewer bits, and the arguments that their sequence call and their stream share.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "bindings/buffer.h"
#include "bindings/recurrent.h"

namespace fusedrnn {

// One layer and direction.
struct QuantizedLayer {
    Dims dims{};
    AlignedBuffer memory;
    QuantizedWeights weights{};
};

// Immutable: calls and streams of any thread share it.
class Quantized {
  public:
    Quantized(const std::string& cell, py::handle layers, const std::string& weights);

    const RecurrentCell& cell() const { return cell_; }
    const QuantizedKernels& kernels() const { return quantized_kernels(cell_, format_); }
    // The layer's I, H and P; every layer and direction has the H and P of the first.
    const Dims& dims() const { return layers_.front().dims; }
    int directions() const { return directions_; }
    std::int64_t rows() const { return static_cast<std::int64_t>(layers_.size()); }
    const QuantizedLayer& layer(std::int64_t row) const { return layers_[static_cast<std::size_t>(row)]; }
    std::int64_t nbytes() const {
        std::int64_t bytes = 0;
        for (const QuantizedLayer& layer : layers_) bytes += layer.memory.bytes();
        return bytes;
    }

    py::tuple forward(py::handle x, py::handle out, py::handle state, py::handle lengths, py::handle resets,
                      py::handle reset_state) const;
    py::list weights() const;

  private:
    void add(py::handle params, std::int64_t inputs);

    const RecurrentCell& cell_;
    int format_, directions_ = 0;
    std::vector<QuantizedLayer> layers_;  // layer by layer, its directions side by side
};

// What gives float32 its name in errors.
inline Array float32_reference() { return Array::floats(new_array(DType::float32, {0}), "the weights"); }

// The states of all layers and directions, (rows, B, width) each or none; replacements also without the batch.
struct QuantizedStates {
    Array all[kMaxStates];

    static QuantizedStates read(py::handle value, const char* name, const Quantized& net, std::int64_t batch,
                                bool replacements);
    // What belongs to one layer and direction; null where not given.
    const float* part(int k, std::int64_t row) const {
        return all[k].given() ? all[k].data<float>() + row * (all[k].size() / all[k].size(0)) : nullptr;
    }
    bool has_batch(int k) const { return all[k].given() && all[k].ndim() == 3; }
};

}  // namespace fusedrnn
