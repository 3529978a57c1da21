// backward of one layer and direction: its checks, the arrays of the gradients, and one plain problem struct for the kernels.
#include "bindings/backward_call.h"

namespace fusedrnn {
template <class T>
class TypedBackwardCall final : public BackwardCall {
  public:
    TypedBackwardCall(std::shared_ptr<LayerTape> tape, Arrays&& arrays)
        : BackwardCall(std::move(tape), std::move(arrays)) {
        const auto& typed = static_cast<const TypedTape<T>&>(*tape_);
        const Arrays& a = arrays_;
        problem_.cell = &typed.cell;
        problem_.dims = typed.dims;
        problem_.schedule = typed.timetable->view(typed.arrays.resets.template data<std::uint8_t>());
        set_options<T>(problem_, typed.arrays);
        problem_.x = sequence<T>(typed.arrays.x);
        problem_.weights = typed.weights->packed;
        problem_.y = sequence<T>(typed.arrays.y);
        problem_.saved = typed.saved.template as<T>();
        problem_.moments = typed.moments.template as<T>();
        problem_.states = typed.states.template as<T>();
        problem_.hidden = typed.hidden.template as<T>();
        if (a.dy.given()) problem_.dy = sequence<T>(a.dy);
        if (a.dx.given()) problem_.dx = writable_sequence<T>(a.dx);
        problem_.accumulate_dx = a.accumulate_dx;
        for (int k = 0; k < typed.cell.states; ++k) {
            problem_.initial[k] = typed.arrays.initial[k].template data<T>();
            problem_.dfinal[k] = a.dfinal[k].data<T>();
            problem_.dinitial[k] = a.dinitial[k].mutable_data<T>();
            problem_.dreset[k] = a.dreset[k].mutable_data<T>();
            if (a.dsteps[k].given()) problem_.dsteps[k] = sequence<T>(a.dsteps[k]);
        }
        for (std::size_t i = 0; i < a.grads.size(); ++i) {
            problem_.dparams.of[i] = a.grads[i].mutable_data<T>();
        }
        const int hidden = hidden_weight(typed.cell);
        if (typed.weights->mask.kept == nullptr || problem_.dparams.of[hidden] == nullptr) return;
        hidden_sum_ = problem_.dparams.of[hidden];
        masked_ =
            AlignedBuffer(a.grads.at(static_cast<std::size_t>(hidden)).size() * std::int64_t{sizeof(T)});
    }

    CallCost cost() const override { return {problem_.dims, tape_->cell.gates, true}; }
    std::int64_t workspace(int threads) const override {
        return kernels().backward_workspace(tape_->cell, problem_.dims, problem_.saved == nullptr, threads);
    }
    void run(Team& team, void* workspace) override {
        if (hidden_sum_ == nullptr) return kernels().backward(problem_, team, workspace);
        // Where nothing has been added yet, as after zero_grad, the sum itself takes the gradient and is masked in the end.
        const auto bytes = static_cast<std::size_t>(masked_.bytes());
        const bool fresh = is_zero(hidden_sum_, bytes);
        T* const gradient = fresh ? hidden_sum_ : masked_.as<T>();
        if (!fresh) std::memset(gradient, 0, bytes);
        problem_.dparams.of[hidden_weight(tape_->cell)] = gradient;
        kernels().backward(problem_, team, workspace);
        if (team.was_cancelled()) {
            if (fresh) std::memset(gradient, 0, bytes);
            return;
        }
        const HiddenMask<T>& mask = static_cast<const TypedTape<T>&>(*tape_).weights->mask;
        layer_table<T>().add_masked(masked_.bytes() / std::int64_t{sizeof(T)}, mask.kept, mask.scale,
                                    fresh ? nullptr : gradient, hidden_sum_, team);
    }

    void leave_rows() override {
        const Dims& d = problem_.dims;
        const auto made = [&](std::int64_t width) {
            py::array array = new_array(tape_->dtype, {d.B, d.T, width});
            std::memset(array.mutable_data(), 0, static_cast<std::size_t>(array.nbytes()));
            arrays_.rows.append(array);
            return static_cast<T*>(array.mutable_data());
        };
        const std::int64_t gates = tape_->cell.gates * d.H;
        problem_.rows = {made(d.I), made(d.P), made(gates), nullptr};
        if (tape_->cell.split_gates) {
            problem_.rows.dgh = made(gates);
        } else {
            arrays_.rows.append(arrays_.rows[2]);
        }
        problem_.dparams = {};
        hidden_sum_ = nullptr;
    }

    void part() override {
        if (!problem_.accumulate_dx || problem_.dx.data == nullptr) return;
        const Dims& d = problem_.dims;
        addend_ = AlignedBuffer(checked_product({rows(), d.I, sizeof(T)}));
        sum_ = problem_.dx;
        problem_.dx = {addend_.as<T>(), d.V > 0 ? 0 : d.B * d.I, d.I};
        problem_.accumulate_dx = false;
    }

    void join(int member, int members) override {
        if (addend_.data() == nullptr) return;
        const Dims& d = problem_.dims;
        const std::int64_t batch = d.V > 0 ? d.V : d.B;
        const Range mine = share(rows(), members, member);
        for (std::int64_t i = mine.begin; i < mine.end; ++i) {
            T* to = sum_.row(i / batch, i % batch);
            const T* from = addend_.as<T>() + i * d.I;
            for (std::int64_t k = 0; k < d.I; ++k) to[k] = from[k] + to[k];
        }
    }

  private:
    const RecurrentKernels<T>& kernels() const { return tape_->cell.template kernels<T>(); }
    // Whether all bits are: the first byte is, and each is the one before it.
    static bool is_zero(const T* data, std::size_t bytes) {
        const auto* const first = reinterpret_cast<const unsigned char*>(data);
        return bytes == 0 || (*first == 0 && std::memcmp(first, first + 1, bytes - 1) == 0);
    }
    // Of dx: of the sequence, or of the table.
    std::int64_t rows() const {
        const Dims& d = problem_.dims;
        return d.V > 0 ? d.V : d.T * d.B;
    }

    BackwardProblem<T> problem_{};
    // Of a W_hh with a mask: where its gradient goes, and room for that of what the mask makes of it.
    T* hidden_sum_ = nullptr;
    AlignedBuffer masked_;
    AlignedBuffer addend_;
    Sequence<T> sum_{};
};

py::tuple BackwardCall::result() const {
    py::tuple result = arrays_.result(tape_->cell.states);
    if (!arrays_.rows.empty()) result[2] = py::tuple(arrays_.rows);
    return result;
}

bool BackwardCall::independent(const LayerCall& call) const {
    const auto* other = dynamic_cast<const BackwardCall*>(&call);
    if (other == nullptr) return false;
    const auto writes_to = [](const BackwardCall& a, const BackwardCall& b) {
        const Arrays &mine = a.arrays_, &theirs = b.arrays_;
        std::vector<const Array*> written{&mine.dx};
        for (const Array& sum : mine.dreset) written.push_back(&sum);
        for (const Array& grad : mine.grads) written.push_back(&grad);
        for (const Array* array : written) {
            const CallArrays& saved = b.tape_->arrays;
            bool shared = array->shares_memory(theirs.dy) || array->shares_memory(saved.x) ||
                          array->shares_memory(saved.y) || array->shares_memory(saved.resets);
            for (int k = 0; k < kMaxStates; ++k) {
                shared = shared || array->shares_memory(theirs.dfinal[k]) ||
                         array->shares_memory(saved.initial[k]) || array->shares_memory(saved.reset[k]);
            }
            for (const Array& grad : theirs.grads) shared = shared || array->shares_memory(grad);
            if (shared) return true;
        }
        return mine.dx.shares_memory(theirs.dx) && !mine.accumulate_dx && !theirs.accumulate_dx;
    };
    return !writes_to(*this, *other) && !writes_to(*other, *this);
}

std::shared_ptr<BackwardCall> BackwardCall::make(const std::shared_ptr<LayerTape>& tape, py::handle dy,
                                                 py::handle dstate, py::handle dparams,
                                                 py::handle need_dx_flag, py::handle dx,
                                                 py::handle accumulate_flag, py::handle dreset,
                                                 py::handle dsteps) {
    const bool need_dx = flag(need_dx_flag, "need_dx"),
               accumulate_dx = flag(accumulate_flag, "accumulate_dx");
    if (tape == nullptr) throw py::type_error("tape: expected a LayerTape, got None");
    check_label(*tape);
    const Dims& d = tape->dims;
    const Array& x = tape->arrays.x;
    const int states = tape->cell.states;
    Arrays a{read_gradients(
                 HostPlace{}, {dy, dstate, dparams, dx, need_dx, accumulate_dx}, tape->cell,
                 [&](int i) { return tape->has_parameter[i]; }, tape->arrays, d),
             {},
             {},
             accumulate_dx,
             py::list()};
    for (const Array& grad : a.grads) {
        if (!dparams.is_none() || !grad.given()) continue;
        std::memset(grad.mutable_data<void>(), 0, static_cast<std::size_t>(grad.size() * grad.itemsize()));
    }
    for (int k = 0; k < states; ++k) {
        if (!dreset.is_none()) {
            a.dreset.at(k) = Array::like(item_of(dreset, "dreset", states, k), Name("dreset", k), x);
            a.dreset.at(k).shape({{"B", d.B}, {"H", state_width(d, k)}}).writable();
        }
        if (k > 0 && !dsteps.is_none()) {
            a.dsteps.at(k) =
                Array::like(item_of(dsteps, "dsteps", states, k), Name("dsteps", k), x, kOptional);
            a.dsteps.at(k).shape({{"T", d.T}, {"B", d.B}, {"H", d.H}}).made_rows();
        }
    }
    return by_dtype(tape->dtype, [&]<class T>() -> std::shared_ptr<BackwardCall> {
        return std::make_shared<TypedBackwardCall<T>>(tape, std::move(a));
    });
}

}  // namespace fusedrnn
