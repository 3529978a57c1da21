// Networks one step at a time.
#include <pybind11/stl.h>

#include "bindings/bindings.h"
#include "bindings/stream_layers.h"
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
    TypedStream(const RecurrentCell& cell, const std::vector<WeightArrays>& layers, std::int64_t batch,
                DType dtype)
        : cell_(cell), batch_(batch), dtype_(dtype), layers_(cell, sizes_of(layers), batch, dtype) {
        int threads = 1;
        for (std::size_t i = 0; i < layers_.count(); ++i)
            threads = std::max(threads, recurrent_threads(layers_.dims(i), cell_.gates, false));
        layers_.run_by(cell_.kernels<T>(), threads);
        pack(layers);
    }

    py::object call(py::handle x) override { return layers_.step(x); }

    py::list get_state() override {
        const auto use = layers_.use();
        py::list all;
        for (std::size_t i = 0; i < layers_.count(); ++i) {
            py::tuple states(cell_.states);
            for (int k = 0; k < cell_.states; ++k) {
                py::array copy = new_array(dtype_, {batch_, state_width(layers_.dims(i), k)});
                std::memcpy(copy.mutable_data(), layers_.state(i, k).data(),
                            static_cast<std::size_t>(copy.nbytes()));
                states[k] = copy;
            }
            all.append(states);
        }
        return all;
    }

    void set_state(py::handle state) override {
        const auto states = static_cast<std::size_t>(cell_.states);
        std::vector<Array> given;
        for (std::size_t i = 0; i < layers_.count(); ++i) {
            const py::object one = item_of(state, "state", static_cast<py::ssize_t>(layers_.count()),
                                           static_cast<py::ssize_t>(i));
            for (int k = 0; k < cell_.states; ++k) {
                given.push_back(read_state(HostPlace{}, item_of(one, "state", cell_.states, k), "state", k,
                                           layers_.dims(i), layers_.reference()));
            }
        }
        layers_.set_state([&](std::size_t i, int k) {
            return given[i * states + static_cast<std::size_t>(k)].template data<T>();
        });
    }

    void reset(py::handle rows) override { layers_.reset(rows); }

    void refresh(py::handle layers) override {
        std::vector<WeightArrays> read = read_layers(cell_, layers, dtype_);
        for (std::size_t i = 0; i < layers_.count(); ++i) {
            const Dims& d = layers_.dims(i);
            const bool same = read.size() == layers_.count() && read[i].dims.I == d.I &&
                              read[i].dims.H == d.H && read[i].dims.P == d.P;
            if (!same)
                throw py::value_error("layers: expected the sizes that the stream was made with, got others");
        }
        const auto use = layers_.use();
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
    static std::vector<Dims> sizes_of(const std::vector<WeightArrays>& layers) {
        std::vector<Dims> sizes;
        for (const WeightArrays& w : layers) sizes.push_back(w.dims);
        return sizes;
    }

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
        weights_ = std::move(packed);
        layers_.connect([&](std::size_t i) { return weights_[i]->packed; });
    }

    const RecurrentCell& cell_;
    std::int64_t batch_;
    DType dtype_;
    StreamLayers<T> layers_;
    std::vector<std::shared_ptr<const WeightBlock<T>>> weights_;
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
