// forward of one layer and direction: its checks, its outputs and tape, and one plain problem struct for the kernels.
#include "bindings/forward_call.h"

#include <limits>
#include <optional>
#include <utility>

#include "bindings/run.h"

namespace fusedrnn {
namespace {

// A checked call, before its element type is known.
struct Request {
    const RecurrentCell& cell;
    WeightArrays weights;
    CallArrays in;
    Outputs<Array> out;
    std::shared_ptr<const Timetable> timetable;
    bool save, recompute;
    WeightCache* cache;
    std::int64_t version;
    Array tape_memory;
    std::optional<Drop> hidden_drop;
};

// (p, seed, offset) of the mask on W_hh, checked.
std::optional<Drop> read_hidden_drop(py::handle value, const RecurrentCell& cell) {
    if (value.is_none()) return std::nullopt;
    if (hidden_weight(cell) < 0) {
        throw py::value_error("hidden_drop: expected None, since the cell has no weight_hh");
    }
    const auto part = [&](int i) { return item_of(value, "hidden_drop", 3, i); };
    const double p = finite_number(part(0), "p");
    require(p >= 0 && p <= 1, "p", "a number in [0, 1]", p);
    return Drop{p, unsigned_integer(part(1), "seed"), unsigned_integer(part(2), "offset")};
}

template <class T>
TapeLabel label_of(const LayerTape& tape, bool recompute) {
    return tape_label(tape, sizeof(T), kernel_table<T>().lanes, recompute);
}

template <class T>
class TypedForwardCall final : public ForwardCall {
  public:
    explicit TypedForwardCall(Request&& r) : cell_(r.cell), recompute_(r.recompute) {
        const Dims& dims = r.weights.dims;
        const Params<const T> params = r.weights.pointers<T>();
        const T* w_hh = nullptr;
        Params<const T> rest = params;
        if (r.hidden_drop) std::swap(w_hh, rest.of[hidden_weight(cell_)]);
        Team team(1);
        run_released(team, [&] {
            weights_ = r.cache != nullptr ? r.cache->get<T>(cell_, dims, rest, r.save, r.version, team)
                                          : pack_weights<T>(cell_, dims, rest, r.save, Identity{}, team);
            if (!r.hidden_drop || team.was_cancelled()) return;
            weights_ = drop_hidden<T>(weights_, w_hh, *r.hidden_drop, r.save, team);
        });
        in_ = std::move(r.in);
        y_ = std::move(r.out.y);
        timetable_ = std::move(r.timetable);
        final_ = std::move(r.out.final);
        problem_ = forward_problem<T>(
            cell_, dims, timetable_->view(in_.resets.data<std::uint8_t>()), weights_->packed,
            sequence<T>(in_.x), writable_sequence<T>(y_), [&](int k) {
                return StateRows<T>{in_.initial[k].template data<T>(), final_[k].template mutable_data<T>()};
            });
        set_options<T>(problem_, in_);
        problem_.backwards = r.cache != nullptr && r.cache->backwards(dims.T);
        if (!r.save) return;
        tape_ = make_tape<T>(in_.x.dtype(), timetable_, params, r.recompute, problem_, r.tape_memory);
        tape_->weights = weights_;
        tape_->arrays = in_;
        tape_->arrays.y = y_;
    }

    CallCost cost() const override { return {problem_.dims, cell_.gates, false}; }
    std::int64_t workspace(int threads) const override {
        return kernels().forward_workspace(cell_, problem_.dims, threads);
    }
    void run(Team& team, void* workspace) override {
        const bool labels = tape_ != nullptr && tape_->memory.given();
        if (labels) clear_label(*tape_);
        kernels().forward(problem_, team, workspace);
        if (labels && !team.was_cancelled()) write_label(*tape_, label_of<T>(*tape_, recompute_));
    }

    void draw_masks(std::uint64_t seed, std::uint64_t offset) override {
        problem_.draws = {true, seed, offset};
        if (tape_ != nullptr) tape_->arrays.draws = problem_.draws;
    }

    void follow(LayerCall& before) override {
        auto& producer = static_cast<TypedForwardCall&>(before);
        problem_.input_progress = producer.problem_.output_progress = &producer.progress_;
    }

    py::tuple result() const override {
        if (tape_ != nullptr) tape_->remember();
        return py::make_tuple(y_.object(), objects_of(final_, cell_.states),
                              tape_ ? py::cast(std::static_pointer_cast<LayerTape>(tape_)) : py::none());
    }

  private:
    const RecurrentKernels<T>& kernels() const { return cell_.kernels<T>(); }

    const RecurrentCell& cell_;
    const bool recompute_;
    std::shared_ptr<const WeightBlock<T>> weights_;
    std::shared_ptr<TypedTape<T>> tape_;
    ForwardProblem<T> problem_{};
};

}  // namespace

bool ForwardCall::independent(const LayerCall& call) const {
    const auto* other = dynamic_cast<const ForwardCall*>(&call);
    if (other == nullptr) return false;
    const auto writes_to = [](const ForwardCall& a, const ForwardCall& b) {
        const auto is_shared = [&b](const Array& written) {
            bool shared = written.shares_memory(b.in_.x) || written.shares_memory(b.in_.resets) ||
                          written.shares_memory(b.y_);
            for (int k = 0; k < kMaxStates; ++k) {
                shared = shared || written.shares_memory(b.in_.initial[k]) ||
                         written.shares_memory(b.in_.reset[k]) || written.shares_memory(b.final_[k]);
            }
            return shared;
        };
        if (is_shared(a.y_)) return true;
        for (const Array& state : a.final_) {
            if (is_shared(state)) return true;
        }
        return false;
    };
    return !writes_to(*this, *other) && !writes_to(*other, *this);
}

bool ForwardCall::follows(const LayerCall& call) const {
    const auto* before = dynamic_cast<const ForwardCall*>(&call);
    if (before == nullptr || timetable_->reverse() || before->timetable_->reverse()) return false;
    const Array &x = in_.x, &y = before->y_;
    return in_.index == nullptr && x.dtype() == y.dtype() && x.data<void>() == y.data<void>() &&
           x.sizes() == y.sizes() && x.stride(0) == y.stride(0) && x.stride(1) == y.stride(1);
}

std::shared_ptr<ForwardCall> ForwardCall::make(
    const std::string& cell_name, py::handle x, py::handle params, py::handle state, py::handle indices,
    py::handle lengths, py::handle resets, py::handle reset_state, py::handle reverse_flag,
    py::handle save_flag, py::handle recompute_flag, WeightCache* cache, py::handle version_number,
    py::handle out, py::handle state_out, py::handle tape_out, py::handle hidden_drop) {
    const std::int64_t version = version_number.is_none() ? -1
                                                          : integer(version_number, "version", 0,
                                                                    std::numeric_limits<std::int64_t>::max());
    const bool reverse = flag(reverse_flag, "reverse"), save = flag(save_flag, "save"),
               recompute = flag(recompute_flag, "recompute");
    const RecurrentCell& cell = cell_by_name(cell_name);
    const HostPlace place;
    CallArrays in;
    in.x = Array::floats(x, "x");
    check_input(in.x, indices);
    WeightArrays w = WeightArrays::read(cell, params, in.x);
    auto timetable =
        read_sequence(place, {state, indices, lengths, resets, reset_state, reverse}, cell, in, w.dims);
    Outputs<Array> outputs = make_outputs(place, out, state_out, cell.states, in, w.dims);
    const DType dtype = in.x.dtype();
    Array memory = Array::like(tape_out, "tape_out", in.x, kOptional);
    if (memory.given()) {
        if (!save) throw py::value_error("tape_out: expected None with save=False, got an array");
        memory.shape({{"n"}}).writable();
        memory.apart_from(in.x).apart_from(in.resets).apart_from(outputs.y);
        for (const StateArrays<Array>* states : {&in.initial, &in.reset, &outputs.final}) {
            for (const Array& state : *states) memory.apart_from(state);
        }
        for (const Array& parameter : w.of) memory.apart_from(parameter);
    }
    Request request{cell,
                    std::move(w),
                    std::move(in),
                    std::move(outputs),
                    std::move(timetable),
                    save,
                    recompute,
                    cache,
                    version,
                    std::move(memory),
                    read_hidden_drop(hidden_drop, cell)};
    return by_dtype(dtype, [&]<class T>() -> std::shared_ptr<ForwardCall> {
        return std::make_shared<TypedForwardCall<T>>(std::move(request));
    });
}

std::shared_ptr<LayerTape> tape_from_arrays(const std::string& cell_name, py::handle x, py::handle params,
                                            py::handle y, py::handle memory, py::handle state,
                                            py::handle lengths, py::handle resets, py::handle reset_state,
                                            py::handle reverse, py::handle recompute_flag) {
    const bool recompute = flag(recompute_flag, "recompute");
    const RecurrentCell& cell = cell_by_name(cell_name);
    CallArrays in;
    in.x = Array::floats(x, "x");
    check_input(in.x, py::none());
    const WeightArrays w = WeightArrays::read(cell, params, in.x);
    Dims d = w.dims;
    const SequenceOptions options{state, py::none(), lengths, resets, reset_state, flag(reverse, "reverse")};
    const auto timetable = read_sequence(HostPlace{}, options, cell, in, d);
    in.y = Array::like(y, "y", in.x);
    in.y.shape({{"T", d.T}, {"B", d.B}, state_axis(d, 0)}).made_rows();
    Array kept = Array::like(memory, "tape", in.x);
    kept.shape({{"n"}}).contiguous();
    return by_dtype(in.x.dtype(), [&]<class T>() -> std::shared_ptr<LayerTape> {
        const Params<const T> params_of = w.pointers<T>();
        ForwardProblem<T> problem{};  // for the sizes
        problem.cell = &cell;
        problem.dims = d;
        auto tape = make_tape<T>(in.x.dtype(), timetable, params_of, recompute, problem, kept);
        tape->arrays = std::move(in);
        take_label(*tape, label_of<T>(*tape, recompute));
        Team team(1);
        run_released(team,
                     [&] { tape->weights = pack_weights<T>(cell, d, params_of, true, Identity{}, team); });
        tape->remember();
        return tape;
    });
}

}  // namespace fusedrnn
