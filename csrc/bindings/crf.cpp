// The linear-chain CRF. Everything is checked before anything is written.
#include <cmath>
#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "bindings/run.h"
#include "bindings/sequence.h"
#include "layers/layer_table.h"

namespace fusedrnn {
namespace {

// What all functions of a CRF take; its weights in double.
struct CrfInput {
    Array emissions, start, transitions, end;
    std::vector<std::int64_t> lengths, tags;
    std::vector<double> weights;  // start, end, transitions

    CrfInput(const py::object& emissions_, const py::object& lengths_, const py::object& start_,
             const py::object& transitions_, const py::object& end_)
        : emissions(Array::floats(emissions_, "emissions").shape({{"T"}, {"B"}, {"K"}}).contiguous()) {
        const std::int64_t K = emissions.size(2);
        require(K > 0, "emissions", "shape (T, B, K) with K >= 1", 0);
        start = Array::parameter(start_, "start", emissions).shape({{"K", K}}).contiguous();
        transitions =
            Array::parameter(transitions_, "transitions", emissions).shape({{"K", K}, {"K", K}}).contiguous();
        end = Array::parameter(end_, "end", emissions).shape({{"K", K}}).contiguous();
        lengths = read_lengths(lengths_, "lengths", batch(), steps(), "T", kOptional);
        by_dtype(emissions.dtype(), [&]<class T>() {
            for (const Array* part : {&start, &end, &transitions}) {
                weights.insert(weights.end(), part->data<T>(), part->data<T>() + part->size());
            }
        });
    }

    std::int64_t steps() const { return emissions.size(0); }
    std::int64_t batch() const { return emissions.size(1); }
    std::int64_t K() const { return emissions.size(2); }
    const double* transition_weights() const { return weights.data() + 2 * K(); }

    void refuse_tag(const std::string& expected, std::int64_t tag, std::int64_t t, std::int64_t b) const {
        throw py::value_error("tags: expected " + expected + ", got " + std::to_string(tag) + " at step " +
                              std::to_string(t) + " of sequence " + std::to_string(b));
    }

    void read_tags(const py::object& tags_) {
        const Array given = Array::int64(tags_, "tags").shape({{"T", steps()}, {"B", batch()}}).contiguous();
        const auto* const data = given.data<std::int64_t>();
        tags.assign(data, data + given.size());
        const auto forbids = [](double weight) { return weight == -HUGE_VAL; };
        for (std::int64_t t = 0; t < steps(); ++t) {
            for (std::int64_t b = 0; b < batch(); ++b) {
                const auto length = lengths[static_cast<std::size_t>(b)];
                if (t >= length) continue;
                const std::int64_t tag = tags[static_cast<std::size_t>(t * batch() + b)];
                if (tag < 0 || tag >= K()) {
                    refuse_tag("values in [0, K) = [0, " + std::to_string(K()) + ")", tag, t, b);
                }
                if (t == 0 && forbids(weights[static_cast<std::size_t>(tag)])) {
                    refuse_tag("a first tag that the constraints allow", tag, t, b);
                }
                if (t > 0) {
                    const std::int64_t before = tags[static_cast<std::size_t>((t - 1) * batch() + b)];
                    if (forbids(transition_weights()[before * K() + tag])) {
                        refuse_tag("tags that the constraints allow after " + std::to_string(before), tag, t,
                                   b);
                    }
                }
                if (t == length - 1 && forbids(weights[static_cast<std::size_t>(K() + tag)])) {
                    refuse_tag("a last tag that the constraints allow", tag, t, b);
                }
            }
        }
    }

    template <class T>
    CrfArgs<T> args() const {
        return {steps(),
                batch(),
                K(),
                emissions.data<T>(),
                lengths.data(),
                tags.empty() ? nullptr : tags.data(),
                weights.data(),
                transition_weights(),
                weights.data() + K(),
                1.0,
                nullptr,
                nullptr,
                nullptr};
    }
    int members() const {
        const double tag_count = static_cast<double>(K());
        const int wanted = threads_for(static_cast<double>(steps()) * static_cast<double>(batch()) *
                                       (tag_count * tag_count / 2 + 8 * tag_count));
        return static_cast<int>(std::min<std::int64_t>(wanted, std::max<std::int64_t>(batch(), 1)));
    }
    template <class T>
    AlignedBuffer workspace(const Team& team) const {
        // Beyond any memory before the sizes are multiplied.
        checked_product({K() + 16, K() + 16, batch() + team.size() + 8, 64});
        checked_product({steps() + 1, K() + 16, team.size(), 64});
        return AlignedBuffer(layer_table<T>().sequence->crf_workspace(steps(), batch(), K(), team.size()));
    }
};

std::tuple<py::array, py::array> crf_loss(const py::object& emissions_, const py::object& tags_,
                                          const py::object& lengths_, const py::object& start_,
                                          const py::object& transitions_, const py::object& end_,
                                          const py::object& dstart_, const py::object& dtransitions_,
                                          const py::object& dend_, const py::object& mean_) {
    CrfInput in(emissions_, lengths_, start_, transitions_, end_);
    const std::int64_t K = in.K();
    Array dstart = Array::like(dstart_, "dstart", in.emissions).shape({{"K", K}}).writable();
    Array dtransitions =
        Array::like(dtransitions_, "dtransitions", in.emissions).shape({{"K", K}, {"K", K}}).writable();
    Array dend = Array::like(dend_, "dend", in.emissions).shape({{"K", K}}).writable();
    for (Array* target : {&dstart, &dtransitions, &dend}) {
        for (const Array* source : {&in.emissions, &in.start, &in.transitions, &in.end}) {
            target->apart_from(*source);
        }
    }
    dtransitions.apart_from(dstart);
    dend.apart_from(dstart).apart_from(dtransitions);
    const bool mean = flag(mean_, "mean");
    in.read_tags(tags_);
    py::array losses = new_array(DType::float64, {in.batch()});
    py::array demissions = new_array(in.emissions.dtype(), in.emissions.sizes());
    by_dtype(in.emissions.dtype(), [&]<class T>() {
        if (in.tags.empty()) {
            std::fill_n(values_of<double>(losses), in.batch(), 0.0);
            return;
        }
        std::vector<double> dweights(in.weights.size());
        CrfArgs<T> args = in.args<T>();
        args.factor = mean ? 1 / static_cast<double>(in.batch()) : 1;
        args.losses = values_of<double>(losses);
        args.demissions = values_of<T>(demissions);
        args.dweights = dweights.data();
        {
            Team team(in.members());
            const AlignedBuffer workspace = in.workspace<T>(team);
            run_released(team, [&] { layer_table<T>().sequence->crf(args, team, workspace.data()); });
        }
        const double* sum = dweights.data();
        for (const Array* part : {&dstart, &dend, &dtransitions}) {
            T* const d = part->mutable_data<T>();
            for (std::int64_t i = 0; i < part->size(); ++i) d[i] += static_cast<T>(*sum++);
        }
    });
    return {losses, demissions};
}

std::tuple<py::array, py::array> crf_marginals(const py::object& emissions_, const py::object& lengths_,
                                               const py::object& start_, const py::object& transitions_,
                                               const py::object& end_) {
    const CrfInput in(emissions_, lengths_, start_, transitions_, end_);
    py::array sums = new_array(DType::float64, {in.batch()});
    py::array marginals = new_array(in.emissions.dtype(), in.emissions.sizes());
    by_dtype(in.emissions.dtype(), [&]<class T>() {
        if (in.batch() == 0) return;
        CrfArgs<T> args = in.args<T>();
        args.losses = values_of<double>(sums);
        args.demissions = values_of<T>(marginals);
        Team team(in.members());
        const AlignedBuffer workspace = in.workspace<T>(team);
        run_released(team, [&] { layer_table<T>().sequence->crf(args, team, workspace.data()); });
    });
    return {marginals, sums};
}

std::tuple<py::array, py::array> crf_decode(const py::object& emissions_, const py::object& lengths_,
                                            const py::object& start_, const py::object& transitions_,
                                            const py::object& end_) {
    const CrfInput in(emissions_, lengths_, start_, transitions_, end_);
    py::array tags = new_array(DType::int64, {in.steps(), in.batch()});
    py::array scores = new_array(DType::float64, {in.batch()});
    by_dtype(in.emissions.dtype(), [&]<class T>() {
        if (in.batch() == 0) return;
        Team team(in.members());
        const AlignedBuffer workspace = in.workspace<T>(team);
        auto* const tag = values_of<std::int64_t>(tags);
        auto* const score = values_of<double>(scores);
        run_released(team, [&] {
            layer_table<T>().sequence->crf_viterbi(in.args<T>(), tag, score, team, workspace.data());
        });
    });
    return {tags, scores};
}

std::tuple<py::array, py::array> crf_nbest(const py::object& emissions_, const py::object& lengths_,
                                           const py::object& start_, const py::object& transitions_,
                                           const py::object& end_, const py::object& count_) {
    const CrfInput in(emissions_, lengths_, start_, transitions_, end_);
    // Places among tags and ranks are of 32 bits.
    const std::int64_t n = integer(count_, "n_best", 1, INT32_MAX / in.K());
    py::array tags = new_array(DType::int64, {n, in.steps(), in.batch()});
    py::array scores = new_array(DType::float64, {n, in.batch()});
    by_dtype(in.emissions.dtype(), [&]<class T>() {
        if (in.batch() == 0) return;
        const SequenceKernels<T>& kernels = *layer_table<T>().sequence;
        Team team(in.members());
        const AlignedBuffer workspace(kernels.crf_nbest_workspace(in.steps(), in.K(), n, team.size()));
        auto* const tag = values_of<std::int64_t>(tags);
        auto* const score = values_of<double>(scores);
        run_released(team, [&] { kernels.crf_nbest(in.args<T>(), n, tag, score, team, workspace.data()); });
    });
    return {tags, scores};
}

}  // namespace

void bind_crf(py::module_& m) {
    using py::arg;
    m.def(
        "crf_loss", &crf_loss, arg("emissions"), arg("tags"), arg("lengths"), arg("start"),
        arg("transitions"), arg("end"), arg("dstart"), arg("dtransitions"), arg("dend"), arg("mean"),
        "Return losses (B,) in float64 and the gradient of their sum or mean (T, B, K); dstart, dtransitions "
        "and dend are added to.");
    m.def("crf_marginals", &crf_marginals, arg("emissions"), arg("lengths"), arg("start"), arg("transitions"),
          arg("end"),
          "Return the probability of each tag (T, B, K) and the logarithm of the sum over all paths (B,).");
    m.def("crf_decode", &crf_decode, arg("emissions"), arg("lengths"), arg("start"), arg("transitions"),
          arg("end"), "Return the best tags (T, B), -1 past the end, and their scores (B,) in float64.");
    m.def("crf_nbest", &crf_nbest, arg("emissions"), arg("lengths"), arg("start"), arg("transitions"),
          arg("end"), arg("n_best"), "Return the best tags (N, T, B) and their scores (N, B) in float64.");
}

}  // namespace fusedrnn
