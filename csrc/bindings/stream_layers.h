// The layers of a stream: their states, which a step reads and writes in turn, and the problems of its calls. Everything that
// a step needs is made here, so that it allocates nothing.
#pragma once

#include "bindings/recurrent.h"
#include "bindings/run.h"
#include "bindings/stream.h"

namespace fusedrnn {

template <class T>
class StreamLayers {
  public:
    // `sizes`: I, H and P of each layer.
    StreamLayers(const RecurrentCell& cell, const std::vector<Dims>& sizes, std::int64_t batch, DType dtype)
        : cell_(cell),
          batch_(batch),
          reference_(Array::floats(new_array(dtype, {0}), "the weights")),
          timetable_(1, batch, nullptr, false) {
        for (const Dims& dims : sizes) {
            Layer layer;
            layer.dims = dims;
            layer.dims.T = 1;
            layer.dims.B = batch;
            for (auto& side : layer.state) {
                for (int k = 0; k < cell.states; ++k) {
                    side[k] = AlignedBuffer(
                        checked_product({batch, state_width(dims, k), std::int64_t{sizeof(T)}}));
                    clear(side[k]);
                }
            }
            layers_.push_back(std::move(layer));
        }
        output_ = StepOutput(dtype, batch, sizes.back().P);
    }

    std::size_t count() const { return layers_.size(); }
    const Dims& dims(std::size_t i) const { return layers_[i].dims; }
    // What gives the dtype its name in errors.
    const Array& reference() const { return reference_; }
    // State k of layer i after the last step.
    const AlignedBuffer& state(std::size_t i, int k) const { return layers_[i].state[parity_][k]; }
    SingleUser::Use use() { return SingleUser::Use(user_); }

    // `weights(i)` gives the packed weights of layer i.
    template <class Weights>
    void connect(const Weights& weights) {
        for (std::size_t i = 0; i < layers_.size(); ++i) {
            Layer& layer = layers_[i];
            for (int from = 0; from < 2; ++from) {
                const int to = 1 - from;
                Sequence<const T> x{};  // of the first layer: the call's
                if (i > 0) x = {layers_[i - 1].state[to][0].template as<T>(), 0, layer.dims.I};
                layer.problem[from] =
                    forward_problem<T>(cell_, layer.dims, timetable_.view(nullptr), weights(i), x,
                                       {layer.state[to][0].template as<T>(), 0, layer.dims.P}, [&](int k) {
                                           return StateRows<T>{layer.state[from][k].template as<T>(),
                                                               layer.state[to][k].template as<T>()};
                                       });
                layer.problem[from].backwards = from == 1;
            }
        }
    }

    // What step runs, by a team of so many threads, which may turn out to be the caller alone.
    template <class Kernels>
    void run_by(const Kernels& kernels, int threads) {
        forward_ = kernels.forward;
        threads_ = threads;
        std::int64_t bytes = 0;
        for (const Layer& layer : layers_) {
            for (const int n : {1, threads})
                bytes = std::max(bytes, kernels.forward_workspace(cell_, layer.dims, n));
        }
        workspace_ = AlignedBuffer(bytes);
    }

    py::object step(py::handle x) {
        const SingleUser::Use use(user_);
        Layer& first = layers_.front();
        const std::int64_t inputs = first.dims.I;
        const StepInput<T> input(x, reference_, output_.dtype(), batch_, inputs);
        first.problem[parity_].x = {input.data(), batch_ * inputs, inputs};
        Team team(threads_);
        run_released(team, [&] {
            for (const Layer& layer : layers_) forward_(layer.problem[parity_], team, workspace_.data());
        });
        parity_ ^= 1;
        return output_.set(layers_.back().state[parity_][0].data(), input.single());
    }

    // `from(i, k)` gives state k of layer i, null for zero.
    template <class From>
    void set_state(const From& from) {
        const SingleUser::Use use(user_);
        for (std::size_t i = 0; i < layers_.size(); ++i) {
            for (int k = 0; k < cell_.states; ++k) {
                const AlignedBuffer& to = state(i, k);
                const T* const given = from(i, k);
                if (given == nullptr) {
                    clear(to);
                } else {
                    std::memcpy(to.data(), given, static_cast<std::size_t>(to.bytes()));
                }
            }
        }
    }

    // Sets the states of some rows to zero, of all for None.
    void reset(py::handle rows) {
        if (rows.is_none()) return set_state([](std::size_t, int) -> const T* { return nullptr; });
        Array array = Array::int64(rows, "rows");
        array.shape({{"n"}}).made_contiguous();
        const std::vector<std::int64_t> chosen = checked_indices(array, batch_, "B");
        const SingleUser::Use use(user_);
        for (std::size_t i = 0; i < layers_.size(); ++i) {
            for (int k = 0; k < cell_.states; ++k) {
                const std::int64_t width = state_width(layers_[i].dims, k);
                for (const std::int64_t b : chosen)
                    std::fill_n(state(i, k).template as<T>() + b * width, width, T(0));
            }
        }
    }

  private:
    struct Layer {
        Dims dims;
        AlignedBuffer state[2][kMaxStates];  // the step reads one and writes the other
        ForwardProblem<T> problem[2]{};      // from state[i] to state[1 - i]
    };

    static void clear(const AlignedBuffer& buffer) {
        std::memset(buffer.data(), 0, static_cast<std::size_t>(buffer.bytes()));
    }

    const RecurrentCell& cell_;
    std::int64_t batch_;
    Array reference_;
    Timetable timetable_;
    std::vector<Layer> layers_;
    StepOutput output_;
    SingleUser user_;
    void (*forward_)(const ForwardProblem<T>&, Team&, void* workspace) = nullptr;
    int threads_ = 1, parity_ = 0;
    AlignedBuffer workspace_;
};

}  // namespace fusedrnn
