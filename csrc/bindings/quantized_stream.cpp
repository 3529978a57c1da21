// Networks with weights of fewer bits, one step at a time.
#include <pybind11/stl.h>

#include "bindings/bindings.h"
#include "bindings/quantized.h"
#include "bindings/stream_layers.h"

namespace fusedrnn {
namespace {

class QuantizedStream {
  public:
    QuantizedStream(std::shared_ptr<const Quantized> net, std::int64_t batch_size)
        : net_(std::move(net)),
          batch_(checked_batch(*net_, batch_size)),
          layers_(net_->cell(), sizes_of(*net_), batch_, DType::float32) {
        layers_.run_by(net_->kernels(), 1);
        layers_.connect(
            [&](std::size_t i) { return net_->layer(static_cast<std::int64_t>(i)).weights.packed(); });
    }

    py::object call(py::handle x) { return layers_.step(x); }

    py::tuple get_state() {
        const auto use = layers_.use();
        py::tuple all(net_->cell().states);
        for (int k = 0; k < net_->cell().states; ++k) {
            py::array copy = new_array(DType::float32, {net_->rows(), batch_, state_width(net_->dims(), k)});
            auto* to = static_cast<char*>(copy.mutable_data());
            for (std::size_t i = 0; i < layers_.count(); ++i) {
                const AlignedBuffer& from = layers_.state(i, k);
                std::memcpy(to, from.data(), static_cast<std::size_t>(from.bytes()));
                to += from.bytes();
            }
            all[k] = copy;
        }
        return all;
    }

    void set_state(py::handle state) {
        const QuantizedStates given = QuantizedStates::read(state, "state", *net_, batch_, false);
        layers_.set_state([&](std::size_t i, int k) { return given.part(k, static_cast<std::int64_t>(i)); });
    }

    void reset(py::handle rows) { layers_.reset(rows); }

  private:
    static std::int64_t checked_batch(const Quantized& net, std::int64_t batch_size) {
        if (net.directions() != 1) {
            throw py::value_error(
                "network: expected one direction, got 2: the reverse direction starts from the end");
        }
        if (batch_size < 1) {
            throw py::value_error("batch_size: expected at least 1, got " + std::to_string(batch_size));
        }
        require_memory(checked_product({batch_size, kTimetableBytes}));
        return batch_size;
    }

    static std::vector<Dims> sizes_of(const Quantized& net) {
        std::vector<Dims> sizes;
        for (std::int64_t i = 0; i < net.rows(); ++i) sizes.push_back(net.layer(i).dims);
        return sizes;
    }

    std::shared_ptr<const Quantized> net_;
    std::int64_t batch_;
    StreamLayers<float> layers_;
};

}  // namespace

void bind_quantized_stream(py::module_& m) {
    py::class_<QuantizedStream, std::shared_ptr<QuantizedStream>>(m, "QuantizedStream")
        .def(py::init([](const std::shared_ptr<Quantized>& network, std::int64_t batch_size) {
                 if (network == nullptr) throw py::type_error("network: expected a Quantized, got None");
                 return std::make_shared<QuantizedStream>(network, batch_size);
             }),
             py::arg("network"), py::arg("batch_size"))
        .def("__call__", &QuantizedStream::call, py::arg("x"))
        .def("get_state", &QuantizedStream::get_state)
        .def("set_state", &QuantizedStream::set_state, py::arg("state"))
        .def("reset", &QuantizedStream::reset, py::arg("rows"));
}

}  // namespace fusedrnn
