// Networks with weights of fewer bits, one step at a time.
#include <pybind11/stl.h>

#include "bindings/bindings.h"
#include "bindings/quantized.h"
#include "bindings/run.h"
#include "bindings/stream.h"

namespace fusedrnn {
namespace {

// One step at a time: everything a step needs is prepared here, so that a call allocates nothing.
class QuantizedStream {
  public:
    QuantizedStream(std::shared_ptr<const Quantized> net, std::int64_t batch_size)
        : net_(std::move(net)),
          batch_(batch_size),
          timetable_(1, checked_batch(*net_, batch_size), nullptr, false) {
        const int states = net_->cell().states;
        layers_.resize(static_cast<std::size_t>(net_->rows()));
        std::int64_t bytes = 0;
        for (std::size_t i = 0; i < layers_.size(); ++i) {
            Dims dims = net_->layer(static_cast<std::int64_t>(i)).dims;
            dims.T = 1;
            dims.B = batch_;
            for (auto& side : layers_[i].state) {
                for (int k = 0; k < states; ++k) {
                    side[k] = AlignedBuffer(
                        checked_product({batch_, state_width(dims, k), std::int64_t{sizeof(float)}}));
                    std::memset(side[k].data(), 0, static_cast<std::size_t>(side[k].bytes()));
                }
            }
            for (int from = 0; from < 2; ++from) {
                const int to = 1 - from;
                const auto& state = layers_[i].state;
                Sequence<const float> x{};  // of the first layer: the call's
                if (i > 0) x = {layers_[i - 1].state[to][0].as<float>(), 0, dims.I};
                layers_[i].problem[from] = forward_problem<float>(
                    net_->cell(), dims, timetable_.view(nullptr), {}, x,
                    {state[to][0].as<float>(), 0, dims.P}, [&](int k) {
                        return StateRows<float>{state[from][k].as<float>(), state[to][k].as<float>()};
                    });
            }
            bytes = std::max(bytes, net_->kernels().workspace(net_->cell(), dims));
        }
        workspace_ = AlignedBuffer(bytes);
        output_ = StepOutput(DType::float32, batch_, net_->dims().P);
    }

    py::object call(py::handle x) {
        const SingleUser::Use use(user_);
        const std::int64_t inputs = net_->dims().I;
        const StepInput<float> input(x, reference_, output_.dtype(), batch_, inputs);
        layers_.front().problem[parity_].x = {input.data(), batch_ * inputs, inputs};
        const QuantizedKernels& kernels = net_->kernels();
        Team team(1);
        run_released(team, [&] {
            for (std::size_t i = 0; i < layers_.size(); ++i) {
                kernels.forward(layers_[i].problem[parity_],
                                net_->layer(static_cast<std::int64_t>(i)).weights, team, workspace_.data());
            }
        });
        parity_ ^= 1;
        return output_.set(layers_.back().state[parity_][0].data(), input.single());
    }

    py::tuple get_state() {
        const SingleUser::Use use(user_);
        py::tuple all(net_->cell().states);
        for (int k = 0; k < net_->cell().states; ++k) {
            py::array copy = new_array(DType::float32, {net_->rows(), batch_, state_width(net_->dims(), k)});
            auto* to = static_cast<char*>(copy.mutable_data());
            for (const Layer& layer : layers_) {
                const AlignedBuffer& from = layer.state[parity_][k];
                std::memcpy(to, from.data(), static_cast<std::size_t>(from.bytes()));
                to += from.bytes();
            }
            all[k] = copy;
        }
        return all;
    }

    void set_state(py::handle state) {
        const QuantizedStates given = QuantizedStates::read(state, "state", *net_, batch_, false);
        const SingleUser::Use use(user_);
        for (std::size_t i = 0; i < layers_.size(); ++i) {
            for (int k = 0; k < net_->cell().states; ++k) {
                const AlignedBuffer& to = layers_[i].state[parity_][k];
                const float* from = given.part(k, static_cast<std::int64_t>(i));
                if (from != nullptr) {
                    std::memcpy(to.data(), from, static_cast<std::size_t>(to.bytes()));
                } else {
                    std::memset(to.data(), 0, static_cast<std::size_t>(to.bytes()));
                }
            }
        }
    }

    void reset(py::handle rows) {
        if (rows.is_none()) return set_state(py::none());
        Array array = Array::int64(rows, "rows");
        array.shape({{"n"}}).made_contiguous();
        const std::vector<std::int64_t> chosen = checked_indices(array, batch_, "B");
        const SingleUser::Use use(user_);
        for (const std::int64_t b : chosen) {
            for (Layer& layer : layers_) {
                for (int k = 0; k < net_->cell().states; ++k) {
                    const std::int64_t width = state_width(net_->dims(), k);
                    std::fill_n(layer.state[parity_][k].as<float>() + b * width, width, 0.0f);
                }
            }
        }
    }

  private:
    struct Layer {
        AlignedBuffer state[2][kMaxStates];  // the step reads one and writes the other
        ForwardProblem<float> problem[2]{};  // from state[i] to state[1 - i]
    };

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

    std::shared_ptr<const Quantized> net_;
    std::int64_t batch_;
    Timetable timetable_;
    std::vector<Layer> layers_;
    AlignedBuffer workspace_;
    StepOutput output_;
    SingleUser user_;
    Array reference_ = float32_reference();
    int parity_ = 0;
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
