// Decoders with attention: the steps over a memory prepared for them, and their backward. Everything is checked before
// anything is written.
#include "bindings/decoder.h"

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/checks.h"
#include "bindings/run.h"
#include "bindings/sequence.h"
#include "bindings/spare_array.h"

namespace fusedrnn {
namespace {

constexpr int kPast = 4;  // what a step knows of the one before, besides the cell's states

py::tuple decoder_forward(const std::shared_ptr<Prepared>& prepared, const py::object& x_,
                          const py::object& lengths_, const py::object& state_, const py::object& rows_,
                          bool keep, const DecoderSampler* sampling, const py::object& places_) {
    if (prepared == nullptr) throw py::type_error("prepared: expected a DecoderMemory, got None");
    const Prepared& p = *prepared;
    DecoderSizes sizes = p.sizes;
    // Of the parameters' dtype; where tokens stand for inputs, they are projected already.
    Array x = p.decoder->params.of[kDecoderWeightIh];
    std::vector<std::int64_t> tokens;
    if (sizes.table > 0) {
        const Array given = Array::int64(x_, "x").shape({{"T"}, {"B"}}).contiguous();
        tokens = checked_indices(given, sizes.table, "V");
        sizes.T = given.size(0), sizes.B = given.size(1);
    } else {
        x = Array::floats(x_, "x").shape({{"T"}, {"B"}, {"I", sizes.I}}).contiguous();
        if (x.dtype() != p.decoder->dtype) {
            throw py::type_error(
                "x: expected the dtype of the memory, got another; use x.astype(memory.dtype)");
        }
        sizes.T = x.size(0), sizes.B = x.size(1);
    }
    if (keep && sizes.table > 0) {
        throw py::value_error("keep: expected False with a memory for a search, got True");
    }
    if (sampling != nullptr) {
        if (!keep) throw py::value_error("sampling: expected None where no tape is kept, got one");
        check_sampler("sampling", *sampling, p);
        sizes.classes = sampling->classes;
    }
    std::vector<std::int64_t> owner;
    if (rows_.is_none()) {
        if (sizes.B != p.batch) {
            throw py::value_error("x: expected shape (T, B, I) with B = " + std::to_string(p.batch) +
                                  " as the memory, got B = " + std::to_string(sizes.B));
        }
    } else {
        if (keep) throw py::value_error("rows: expected None where a tape is kept, got rows");
        owner =
            checked_indices(Array::int64(rows_, "rows").shape({{"B", sizes.B}}).contiguous(), p.batch, "B");
    }
    const RecurrentCell& cell = *p.decoder->cell;
    check_sizes(sizes, cell.gates);
    const auto lengths = read_lengths(lengths_, "lengths", sizes.B, sizes.T, "T", kOptional);
    // Of the cell; the output, the attention, the coverage and the windows' centres of the step before.
    Array initial[kMaxStates + kPast];
    std::int64_t before = sizes.B;  // rows of them
    for (int k = 0; k < cell.states + kPast && !state_.is_none(); ++k) {
        const Axis width = k <= cell.states      ? Axis{"H", sizes.H}
                           : k < cell.states + 3 ? Axis{"S", sizes.S}
                                                 : Axis{"K", sizes.windows()};
        initial[k] = Array::like(item_of(state_, "state", cell.states + kPast, k), {"state", k}, x, kOptional)
                         .shape({places_.is_none() ? Axis{"B", before} : Axis{"N"}, width})
                         .contiguous();
    }
    std::vector<std::int64_t> places;
    if (!places_.is_none()) {
        if (keep) throw py::value_error("places: expected None where a tape is kept, got places");
        if (sizes.T != 1) {
            throw py::value_error("places: expected None with more than one step, got places and T = " +
                                  std::to_string(sizes.T));
        }
        before = 0;
        for (const Array& part : initial) before = part.given() ? part.size(0) : before;
        for (int k = 0; k < cell.states + kPast; ++k) {
            if (initial[k].given()) initial[k].shape({{"N", before}, {"H"}});
        }
        places = checked_indices(Array::int64(places_, "places").shape({{"B", sizes.B}}).contiguous(), before,
                                 "N");
    }
    auto tape = std::make_unique<DecoderTape>(DecoderTape{
        prepared, Timetable(sizes.T, sizes.B, lengths.data(), false), sizes, {}, {}, x, false, {}});
    tape->sizes.rows = keep ? tape->timetable.rows() : 2 * sizes.B;
    const Schedule schedule = tape->timetable.view(nullptr);
    for (std::int64_t i = 0; i < sizes.B; ++i) {
        const std::int64_t b =
            owner.empty() ? schedule.order[i] : owner[static_cast<std::size_t>(schedule.order[i])];
        tape->memory_first.push_back(p.first[static_cast<std::size_t>(b)]);
        tape->memory_lengths.push_back(p.lengths[static_cast<std::size_t>(b)]);
    }
    py::array y = spare_array(p.decoder->dtype, {sizes.T, sizes.B, sizes.H}),
              alpha = spare_array(p.decoder->dtype, {sizes.T, sizes.B, sizes.S});
    py::tuple state(cell.states + (sizes.windows() > 0));
    py::object drawn = py::none();
    if (sampling != nullptr) {
        const py::array copy = py::reinterpret_borrow<py::array>(x.object()).attr("copy")();
        tape->x = Array::floats(copy, "x"), tape->own_x = true;
        drawn = new_array(DType::int64, {sizes.T, sizes.B});
    }
    by_dtype(p.decoder->dtype, [&]<class T>() {
        const DecoderKernels<T>& kernels = p.decoder->kernels<T>();
        tape->tape = AlignedBuffer(kernels.tape_bytes(tape->sizes, keep));
        DecoderArgs<T> args = tape->args<T>();
        args.keeps = keep;
        args.tokens = sizes.table > 0 ? tokens.data() : nullptr;
        args.places = places.empty() ? nullptr : places.data();
        args.y = values_of<T>(y), args.alpha = values_of<T>(alpha);
        if (sampling != nullptr) {
            auto* const into = static_cast<std::int64_t*>(py::array(drawn).mutable_data());
            std::fill_n(into, sizes.T * sizes.B, -1);
            args.sampling = {sampling->head.data(),
                             sampling->table.template data<T>(),
                             sampling->probability,
                             sampling->seed,
                             sampling->stream,
                             tape->x.template mutable_data<T>(),
                             into};
        }
        if (sizes.windows() > 0) {
            py::array centres = new_array(p.decoder->dtype, {sizes.B, sizes.windows()});
            args.final_centres = values_of<T>(centres);
            state[static_cast<std::size_t>(cell.states)] = centres;
        }
        for (int k = 0; k < cell.states; ++k) {
            py::array final_state = new_array(p.decoder->dtype, {sizes.B, sizes.H});
            args.final[k] = values_of<T>(final_state);
            args.initial[k] = initial[k].given() ? initial[k].data<T>() : nullptr;
            state[static_cast<std::size_t>(k)] = final_state;
        }
        const Array* const more = initial + cell.states;
        args.feed = more[0].given() ? more[0].data<T>() : nullptr;
        args.attention = more[1].given() ? more[1].data<T>() : nullptr;
        args.covered = more[2].given() ? more[2].data<T>() : nullptr;
        args.centres = more[3].given() ? more[3].data<T>() : nullptr;
        Team team(members_for(p.step_work() * static_cast<double>(tape->timetable.rows()), sizes.B));
        const AlignedBuffer workspace(kernels.workspace(tape->sizes, team.size()));
        run_released(team, [&] { kernels.forward(args, team, workspace.data()); });
    });
    return py::make_tuple(y, alpha, state, keep ? py::cast(std::move(tape)) : py::none(), drawn);
}

py::tuple decoder_backward(const DecoderTape& tape, const py::object& dy_, const py::object& dalpha_,
                           const py::object& dstate_, const py::object& grads_, bool need_dx) {
    const Prepared& p = *tape.prepared;
    const DecoderSizes& d = tape.sizes;
    const Array dy =
        Array::like(dy_, "dy", tape.x, kOptional).shape({{"T", d.T}, {"B", d.B}, {"H", d.H}}).contiguous();
    const Array dalpha = Array::like(dalpha_, "dalpha", tape.x, kOptional)
                             .shape({{"T", d.T}, {"B", d.B}, {"S", d.S}})
                             .contiguous();
    Array dfinal[kMaxStates];
    for (int k = 0; k < p.decoder->cell->states && !dstate_.is_none(); ++k) {
        dfinal[k] = Array::like(item_of(dstate_, "dstate", p.decoder->cell->states, k), {"dstate", k}, tape.x,
                                kOptional)
                        .shape({{"B", d.B}, {"H", d.H}})
                        .contiguous();
    }
    ParamArrays grads;
    for (int i = 0; i < kDecoderParams && !grads_.is_none(); ++i) {
        const Array& parameter = p.decoder->params.of[i];
        const py::object value = item_of(grads_, "grads", kDecoderParams, i);
        if (!parameter.given() && value.is_none()) continue;
        grads.of[i] = Array::like(value, {"grads", i}, tape.x).shape_of(parameter).writable();
        grads.of[i].apart_from(dy).apart_from(dalpha).apart_from(tape.x).apart_from(parameter);
        for (int j = 0; j < i; ++j) grads.of[i].apart_from(grads.of[j]);
    }
    std::vector<std::int64_t> owner, step;
    for (std::int64_t b = 0; b < p.batch; ++b) {
        for (std::int64_t s = 0; s < p.lengths[static_cast<std::size_t>(b)]; ++s)
            owner.push_back(b), step.push_back(s);
    }
    py::array dx = spare_array(p.decoder->dtype, {need_dx ? d.T : 0, d.B, d.I}),
              dmemory = spare_array(p.decoder->dtype, {d.S, d.B, d.M});
    py::tuple dstate(p.decoder->cell->states);
    by_dtype(p.decoder->dtype, [&]<class T>() {
        const DecoderKernels<T>& kernels = p.decoder->kernels<T>();
        DecoderBackwardArgs<T> args{};
        args.forward = tape.args<T>();
        args.memory_owner = owner.data(), args.memory_step = step.data();
        args.dy = dy.given() ? dy.data<T>() : nullptr;
        args.dalpha = dalpha.given() ? dalpha.data<T>() : nullptr;
        for (int k = 0; k < p.decoder->cell->states; ++k) {
            args.dfinal[k] = dfinal[k].given() ? dfinal[k].data<T>() : nullptr;
            py::array dinitial = new_array(p.decoder->dtype, {d.B, d.H});
            args.dinitial[k] = values_of<T>(dinitial);
            dstate[static_cast<std::size_t>(k)] = dinitial;
        }
        args.dx = need_dx ? values_of<T>(dx) : nullptr;
        args.dmemory = values_of<T>(dmemory);
        std::fill_n(args.dmemory, dmemory.size(), T(0));
        args.dparams = grads.view<T>();
        // Under the interpreter's lock; two backwards at the same time both make them.
        std::shared_ptr<AlignedBuffer> columns = p.decoder->columns;
        if (columns == nullptr) {
            columns = std::make_shared<AlignedBuffer>(kernels.column_bytes(d));
            Team packers(members_for(static_cast<double>(columns->bytes()), d.H));
            run_released(packers, [&] { kernels.pack_columns(args.forward, columns->data(), packers); });
            p.decoder->columns = columns;
        }
        args.columns = columns->data();
        Team team(members_for(2 * p.step_work() * static_cast<double>(d.rows), d.B));
        const AlignedBuffer workspace(kernels.backward_workspace(d, team.size()));
        run_released(team, [&] { kernels.backward(args, team, workspace.data()); });
    });
    return py::make_tuple(need_dx ? py::object(dx) : py::none(), dmemory, dstate);
}

}  // namespace

void bind_decoder(py::module_& m) {
    using py::arg;
    bind_decoder_prepare(m);
    bind_decoder_search(m);
    py::class_<DecoderTape>(m, "DecoderTape", "What the steps of a decoder keep for backward.")
        .def_property_readonly("nbytes", &DecoderTape::nbytes);
    m.def("decoder_forward", &decoder_forward, arg("prepared"), arg("x"), arg("lengths"), arg("state"),
          arg("rows"), arg("keep"), arg("sampling"), arg("places"),
          "Return y (T, B, H), alpha (T, B, S), the state, the tape and the tokens (T, B) that a sampling "
          "drew, "
          "-1 elsewhere; rows (B,) says which row of the memory each of x attends to, places (B,) which row "
          "of the state it goes on from, "
          "of a single step; x are tokens (T, B) where the memory has a table.");
    m.def("decoder_backward", &decoder_backward, arg("tape"), arg("dy"), arg("dalpha"), arg("dstate"),
          arg("grads"), arg("need_dx"), "Return dx, dmemory and dstate; grads are added to.");
}

}  // namespace fusedrnn
