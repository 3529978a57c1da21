// Beam searches with a decoder, of all sequences of a memory. Everything is checked before anything is written.
#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/checks.h"
#include "bindings/decoder.h"
#include "bindings/run.h"
#include "bindings/sequence.h"

namespace fusedrnn {
namespace {

py::tuple decoder_search(const std::shared_ptr<Prepared>& prepared, const DecoderSampler* head,
                         const py::object& state_, const py::object& bos_, const py::object& eos_,
                         const py::object& beam_, const py::object& divisors_, const py::object& best_) {
    if (prepared == nullptr) throw py::type_error("prepared: expected a DecoderMemory, got None");
    if (head == nullptr) throw py::type_error("head: expected a DecoderSampling, got None");
    const Prepared& p = *prepared;
    DecoderSizes sizes = p.sizes;
    check_sampler("head", *head, p);
    if (sizes.features() > 0 || sizes.windows() > 0) {
        throw py::value_error(
            "prepared: expected a decoder whose attention is a matter of its state alone, got another");
    }
    if (sizes.table > 0 && sizes.table != head->classes) {
        throw py::value_error("head: expected V = " + std::to_string(sizes.table) +
                              " as the table of the memory, got V = " + std::to_string(head->classes));
    }
    sizes.T = 1, sizes.classes = head->classes;
    const std::int64_t bos = integer(bos_, "bos", 0, sizes.classes - 1);
    const std::int64_t eos = integer(eos_, "eos", 0, sizes.classes - 1);
    const std::int64_t beam = integer(beam_, "beam", 1, kSearchBeam),
                       best = integer(best_, "n_best", 1, beam);
    const Array divisors = Array::floats(divisors_, "divisors").shape({{"max_len"}}).contiguous();
    const std::int64_t most = divisors.size(0);
    if (divisors.dtype() != DType::float64)
        throw py::type_error("divisors: expected a float64 numpy.ndarray, got float32");
    require(most >= 1 && most <= kSearchNodes / beam, "divisors", "1 <= max_len <= 2^18 / beam",
            static_cast<double>(most));
    require(checked_product({beam, sizes.classes}) <= INT32_MAX, "head",
            "fewer continuations of a sequence than 2^31",
            static_cast<double>(beam) * static_cast<double>(sizes.classes));
    const RecurrentCell& cell = *p.decoder->cell;
    Array initial[kMaxStates];
    for (int k = 0; k < cell.states && !state_.is_none(); ++k) {
        initial[k] = Array::like(item_of(state_, "state", cell.states, k), {"state", k},
                                 p.decoder->params.of[kDecoderWeightIh], kOptional)
                         .shape({{"B", p.batch}, {"H", sizes.H}})
                         .contiguous();
    }
    check_sizes(sizes, cell.gates);
    checked_product({p.batch + 256, best, most, 8});
    py::array lengths = new_array(DType::int64, {p.batch, best}),
              scores = new_array(DType::float64, {p.batch, best}),
              failed = new_array(DType::int64, {p.batch});
    // As long as they may be, of which what is not written takes no memory.
    const AlignedBuffer found(checked_product({p.batch, best, most, sizeof(std::int64_t)}));
    std::vector<std::int64_t> longest(static_cast<std::size_t>(p.batch));
    by_dtype(p.decoder->dtype, [&]<class T>() {
        if (p.batch == 0) return;
        const DecoderKernels<T>& kernels = p.decoder->kernels<T>();
        DecoderSearchArgs<T> args{};
        args.decoder = p.decoder->args<T>(sizes);
        args.decoder.keys = p.keys.data();
        args.decoder.projections = p.projections.data();
        for (int k = 0; k < cell.states; ++k)
            args.decoder.initial[k] = initial[k].given() ? initial[k].data<T>() : nullptr;
        args.head = head->head.data(), args.table = head->table.template data<T>();
        args.sequences = p.batch, args.beam = beam, args.most = most, args.best = best;
        args.bos = bos, args.eos = eos;
        args.memory_first = p.first.data(), args.memory_lengths = p.lengths.data();
        args.divisors = divisors.data<double>();
        args.tokens = found.as<std::int64_t>(), args.lengths = values_of<std::int64_t>(lengths);
        args.scores = values_of<double>(scores);
        args.longest = longest.data(), args.failed = values_of<std::int64_t>(failed);
        const double steps = static_cast<double>(p.batch * beam) * static_cast<double>(most);
        Team team(members_for(p.step_work() * steps, p.batch));
        const AlignedBuffer workspace(kernels.search_workspace(args, team.size()));
        run_released(team, [&] { kernels.search(args, team, workspace.data()); });
    });
    const std::int64_t size = largest(longest);
    py::array tokens = new_array(DType::int64, {p.batch, best, size});
    auto* const to = values_of<std::int64_t>(tokens);
    std::fill_n(to, tokens.size(), eos);
    for (std::int64_t i = 0; i < p.batch * best; ++i)
        std::copy_n(found.as<std::int64_t>() + i * most, values_of<std::int64_t>(lengths)[i], to + i * size);
    return py::make_tuple(tokens, lengths, scores, failed);
}

}  // namespace

void bind_decoder_search(py::module_& m) {
    using py::arg;
    m.attr("SEARCH_BEAM") = kSearchBeam;
    m.attr("SEARCH_NODES") = kSearchNodes;
    m.def("decoder_search", &decoder_search, arg("prepared"), arg("head"), arg("state"), arg("bos"),
          arg("eos"), arg("beam"), arg("divisors"), arg("n_best"),
          "Return what decode.beam_search finds without coverage: tokens (B, n_best, L), lengths and scores, "
          "and the step of each sequence's first logit that is NaN or inf, else -1; divisors (max_len,) are "
          "those of the scores, by the number of tokens.");
}

}  // namespace fusedrnn
