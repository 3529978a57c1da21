// One step at a time: everything a step needs is prepared when the stream is made, so that a call allocates nothing.
#include "bindings/stream.h"

#include <pybind11/stl.h>

#include "bindings/bindings.h"
#include "bindings/recurrent.h"
#include "bindings/run.h"
#include "cpu/partition.h"

namespace fusedrnn {
namespace {

class Stream {
  public:
    static std::shared_ptr<Stream> make(const std::string& cell, py::handle layers, std::int64_t batch_size);
    virtual ~Stream() = default;
    virtual py::object call(py::handle x) = 0;
    virtual py::list get_state() = 0;
    virtual void set_state(py::handle state) = 0;
    virtual void reset(py::handle rows) = 0;
    virtual void refresh(py::handle layers) = 0;
};

template <class T>
class TypedStream : public Stream {
  public:
    TypedStream(const RecurrentCell& cell, std::vector<WeightArrays>&& layers, std::int64_t batch,
                DType dtype)
        : cell_(cell),
          kernels_(cell.kernels<T>()),
          batch_(batch),
          dtype_(dtype),
          reference_(Array::floats(new_array(dtype, {0}), "the weights")),
          timetable_(1, batch, nullptr, false) {
        for (const WeightArrays& w : layers) {
            Layer layer;
            layer.dims = w.dims;
            layer.dims.T = 1;
            layer.dims.B = batch;
            threads_ = std::max(threads_, recurrent_threads(layer.dims, cell_.gates, false));
            for (int parity = 0; parity < 2; ++parity) {
                for (int k = 0; k < cell_.states; ++k) {
                    const std::int64_t n =
                        checked_product({batch, state_width(layer.dims, k), std::int64_t{sizeof(T)}});
                    layer.state[parity][k] = AlignedBuffer(n);
                    std::memset(layer.state[parity][k].data(), 0, static_cast<std::size_t>(n));
                }
            }
            layers_.push_back(std::move(layer));
        }
        std::int64_t bytes = 0;  // the team may turn out to be the caller alone
        for (const Layer& layer : layers_) {
            for (const int n : {1, threads_})
                bytes = std::max(bytes, kernels_.forward_workspace(cell_, layer.dims, n));
        }
        workspace_ = AlignedBuffer(bytes);
        output_ = StepOutput(dtype, batch, layers_.back().dims.P);
        pack(layers);
    }

    py::object call(py::handle x) override {
        const SingleUser::Use use(user_);
        Layer& first = layers_.front();
        const std::int64_t inputs = first.dims.I;
        const StepInput<T> input(x, reference_, output_.dtype(), batch_, inputs);
        first.problem[parity_].x = {input.data(), batch_ * inputs, inputs};
        Team team(threads_);
        run_released(team, [&] {
            for (Layer& layer : layers_) kernels_.forward(layer.problem[parity_], team, workspace_.data());
        });
        parity_ ^= 1;
        return output_.set(layers_.back().state[parity_][0].data(), input.single());
    }

    py::list get_state() override {
        const SingleUser::Use use(user_);
        py::list all;
        for (const Layer& layer : layers_) {
            py::tuple states(cell_.states);
            for (int k = 0; k < cell_.states; ++k) {
                py::array copy = new_array(dtype_, {batch_, state_width(layer.dims, k)});
                std::memcpy(copy.mutable_data(), layer.state[parity_][k].data(),
                            static_cast<std::size_t>(copy.nbytes()));
                states[k] = copy;
            }
            all.append(states);
        }
        return all;
    }

    void set_state(py::handle state) override {
        const int states = cell_.states;
        std::vector<Array> given;
        for (std::size_t i = 0; i < layers_.size(); ++i) {
            const py::object one = item_of(state, "state", static_cast<py::ssize_t>(layers_.size()),
                                           static_cast<py::ssize_t>(i));
            for (int k = 0; k < states; ++k) {
                given.push_back(read_state(HostPlace{}, item_of(one, "state", states, k), "state", k,
                                           layers_[i].dims, reference_));
            }
        }
        const SingleUser::Use use(user_);
        for (std::size_t i = 0; i < layers_.size(); ++i) {
            for (int k = 0; k < states; ++k) {
                const Array& from = given[i * static_cast<std::size_t>(states) + static_cast<std::size_t>(k)];
                const AlignedBuffer& to = layers_[i].state[parity_][k];
                if (from.given()) {
                    std::memcpy(to.data(), from.template data<T>(), static_cast<std::size_t>(to.bytes()));
                } else {
                    std::memset(to.data(), 0, static_cast<std::size_t>(to.bytes()));
                }
            }
        }
    }

    void reset(py::handle rows) override {
        std::vector<std::int64_t> chosen(static_cast<std::size_t>(batch_));
        if (rows.is_none()) {
            for (std::size_t b = 0; b < chosen.size(); ++b) chosen[b] = static_cast<std::int64_t>(b);
        } else {
            Array array = Array::int64(rows, "rows");
            array.shape({{"n"}}).made_contiguous();
            chosen = checked_indices(array, batch_, "B");
        }
        const SingleUser::Use use(user_);
        for (Layer& layer : layers_) {
            for (int k = 0; k < cell_.states; ++k) {
                const std::int64_t width = state_width(layer.dims, k);
                T* state = layer.state[parity_][k].template as<T>();
                for (const std::int64_t b : chosen) std::fill_n(state + b * width, width, T(0));
            }
        }
    }

    void refresh(py::handle layers) override {
        std::vector<WeightArrays> read = read_layers(cell_, layers, dtype_);
        for (std::size_t i = 0; i < layers_.size(); ++i) {
            const bool same = read.size() == layers_.size() && read[i].dims.I == layers_[i].dims.I &&
                              read[i].dims.H == layers_[i].dims.H && read[i].dims.P == layers_[i].dims.P;
            if (!same)
                throw py::value_error("layers: expected the sizes that the stream was made with, got others");
        }
        const SingleUser::Use use(user_);
        pack(read);
    }

    // The checked weights of stacked layers: each layer's input is the output of the one below.
    static std::vector<WeightArrays> read_layers(const RecurrentCell& cell, py::handle layers, DType dtype) {
        if (!py::isinstance<py::list>(layers) && !py::isinstance<py::tuple>(layers)) {
            throw py::type_error("layers: expected a list of parameter tuples, got " +
                                 std::string(Py_TYPE(layers.ptr())->tp_name));
        }
        const py::ssize_t count = PySequence_Size(layers.ptr());
        if (count == 0) throw py::value_error("layers: expected at least one layer, got none");
        std::vector<WeightArrays> read;
        for (py::ssize_t i = 0; i < count; ++i) {
            const py::object params = item_of(layers, "layers", count, i);
            const std::int64_t inputs =
                i > 0 ? read.back().dims.P : WeightArrays::input_weight(cell, params).size(1);
            read.push_back(
                WeightArrays::read(cell, params, Array::floats(new_array(dtype, {0, inputs}), "the input")));
        }
        return read;
    }

  private:
    struct Layer {
        Dims dims;
        std::shared_ptr<const WeightBlock<T>> weights;
        AlignedBuffer state[2][kMaxStates];  // the step reads one and writes the other
        ForwardProblem<T> problem[2];        // from state[i] to state[1 - i]
    };

    // Changes nothing where memory runs out: the problems point into the weights.
    void pack(const std::vector<WeightArrays>& arrays) {
        std::vector<std::shared_ptr<const WeightBlock<T>>> packed;
        Team team(1);
        run_released(team, [&] {
            for (const WeightArrays& w : arrays) {
                packed.push_back(
                    pack_weights<T>(cell_, w.dims, w.template pointers<T>(), false, Identity{}, team));
            }
        });
        for (std::size_t i = 0; i < layers_.size(); ++i) layers_[i].weights = std::move(packed[i]);
        for (int from = 0; from < 2; ++from) {
            const int to = 1 - from;
            for (std::size_t i = 0; i < layers_.size(); ++i) {
                Layer& layer = layers_[i];
                Sequence<const T> x{};  // of the first layer: the call's
                if (i > 0) x = {layers_[i - 1].state[to][0].template as<T>(), 0, layer.dims.I};
                layer.problem[from] =
                    forward_problem<T>(cell_, layer.dims, timetable_.view(nullptr), layer.weights->packed, x,
                                       {layer.state[to][0].template as<T>(), 0, layer.dims.P}, [&](int k) {
                                           return StateRows<T>{layer.state[from][k].template as<T>(),
                                                               layer.state[to][k].template as<T>()};
                                       });
                layer.problem[from].backwards = from == 1;
            }
        }
    }

    const RecurrentCell& cell_;
    const RecurrentKernels<T>& kernels_;
    std::int64_t batch_;
    DType dtype_;
    Array reference_;
    Timetable timetable_;
    int threads_ = 1;
    std::vector<Layer> layers_;
    AlignedBuffer workspace_;
    StepOutput output_;
    SingleUser user_;
    int parity_ = 0;
};

std::shared_ptr<Stream> Stream::make(const std::string& cell_name, py::handle layers,
                                     std::int64_t batch_size) {
    const RecurrentCell& cell = cell_by_name(cell_name);
    if (batch_size < 1)
        throw py::value_error("batch_size: expected at least 1, got " + std::to_string(batch_size));
    require_memory(checked_product({batch_size, kTimetableBytes}));
    DType dtype = DType::float32;
    if ((py::isinstance<py::list>(layers) || py::isinstance<py::tuple>(layers)) &&
        PySequence_Size(layers.ptr()) > 0) {
        const py::object first = item_of(layers, "layers", PySequence_Size(layers.ptr()), 0);
        dtype = WeightArrays::input_weight(cell, first).dtype();
    }
    return by_dtype(dtype, [&]<class T>() -> std::shared_ptr<Stream> {
        return std::make_shared<TypedStream<T>>(cell, TypedStream<T>::read_layers(cell, layers, dtype),
                                                batch_size, dtype);
    });
}

}  // namespace

void bind_stream(py::module_& m) {
    py::class_<Stream, std::shared_ptr<Stream>>(m, "Stream")
        .def(py::init(&Stream::make), py::arg("cell"), py::arg("layers"), py::arg("batch_size"))
        .def("__call__", &Stream::call, py::arg("x"))
        .def("get_state", &Stream::get_state)
        .def("set_state", &Stream::set_state, py::arg("state"))
        .def("reset", &Stream::reset, py::arg("rows") = py::none())
        .def("refresh", &Stream::refresh, py::arg("layers"));
}

}  // namespace fusedrnn
