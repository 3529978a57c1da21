// One step of a prefix beam search over CTC outputs with a language model (Hannun et al. 2014, arXiv:1408.2873), in logarithms.
// Everything is checked before anything is written.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <tuple>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "bindings/sequence.h"

namespace fusedrnn {
namespace {

constexpr double kNever = -std::numeric_limits<double>::infinity();

double log_add(double a, double b) {
    const double most = std::max(a, b), least = std::min(a, b);
    return least == kNever ? most : most + std::log1p(std::exp(least - most));
}

struct Candidate {
    double score;
    std::int64_t from, label, order;  // label -1: the sequence as it is
};
// Of equals the one that came first.
bool before(const Candidate& a, const Candidate& b) {
    return a.score > b.score || (a.score == b.score && a.order < b.order);
}

using Step = std::tuple<py::array, py::array, py::array, py::array>;

// Of K sequences: log P of the paths that end in a blank and in the last label; the last label, -1 of none; the place of the
// sequence without it among the K, or -1; what is added to its score, and for each label more (V).
Step ctc_prefix_step(const py::object& logp_, const py::object& blanks_, const py::object& labels_,
                     const py::object& last_, const py::object& parents_, const py::object& bonus_,
                     const py::object& added_, const py::object& blank_, const py::object& beam_) {
    const auto doubles = [](const py::object& value, const char* name) {
        Array array = Array::floats(value, name);
        if (array.dtype() != DType::float64) {
            throw py::type_error(std::string(name) + ": expected a float64 numpy.ndarray, got float32");
        }
        return array;
    };
    const Array logp = doubles(logp_, "logp").shape({{"V"}}).contiguous();
    const std::int64_t V = logp.size(0);
    const Array blanks = doubles(blanks_, "blanks").shape({{"K"}}).contiguous();
    const std::int64_t K = blanks.size(0);
    const Array labels = doubles(labels_, "labels").shape({{"K", K}}).contiguous();
    const Array bonus = doubles(bonus_, "bonus").shape({{"K", K}}).contiguous();
    const Array added = doubles(added_, "added").shape({{"K", K}, {"V", V}}).contiguous();
    const std::int64_t blank = integer(blank_, "blank", 0, V - 1);
    const std::int64_t beam = integer(beam_, "beam", 1, INT32_MAX);
    const auto places = [&](const py::object& value, const char* name, std::int64_t most) {
        const Array array = Array::int64(value, name).shape({{"K", K}}).contiguous();
        for (std::int64_t k = 0; k < K; ++k) {
            const std::int64_t got = array.data<std::int64_t>()[k];
            require(got >= -1 && got < most, name, "places in range, or -1", static_cast<double>(got));
        }
        return array;
    };
    const Array last_array = places(last_, "last", V), parents_array = places(parents_, "parents", K);
    const auto *const last = last_array.data<std::int64_t>(), *const parents =
                                                                  parents_array.data<std::int64_t>();
    const auto *const p = logp.data<double>(), *const before_blank = blanks.data<double>(),
                      *const before_label = labels.data<double>(), *const more = bonus.data<double>();
    checked_product({K + 1, V + 1, sizeof(Candidate)});

    std::vector<double> both, label;
    std::vector<std::vector<std::int64_t>> merged(
        static_cast<std::size_t>(K));  // labels that grow into another
    for (std::int64_t k = 0; k < K; ++k) both.push_back(log_add(before_blank[k], before_label[k]));
    const auto grown = [&](std::int64_t k, std::int64_t c) {
        // A label that repeats is a new one behind a blank alone.
        return (c == last[k] ? before_blank[k] : both[static_cast<std::size_t>(k)]) + p[c];
    };
    for (std::int64_t k = 0; k < K; ++k) {
        double own = last[k] < 0 ? kNever : before_label[k] + p[last[k]];
        if (parents[k] >= 0 && last[k] >= 0) {
            own = log_add(own, grown(parents[k], last[k]));
            merged[static_cast<std::size_t>(parents[k])].push_back(last[k]);
        }
        label.push_back(own);
    }
    // The best of all, the worst of them first.
    std::vector<Candidate> best;
    const auto offer = [&](const Candidate& c) {
        if (!(c.score > kNever) ||
            (static_cast<std::int64_t>(best.size()) == beam && !before(c, best.front())))
            return;
        if (static_cast<std::int64_t>(best.size()) == beam) {
            std::pop_heap(best.begin(), best.end(), before);
            best.pop_back();
        }
        best.push_back(c);
        std::push_heap(best.begin(), best.end(), before);
    };
    std::vector<char> taken(static_cast<std::size_t>(V));
    for (std::int64_t k = 0; k < K; ++k) {
        const double stays =
            log_add(both[static_cast<std::size_t>(k)] + p[blank], label[static_cast<std::size_t>(k)]);
        offer({stays + more[k], k, -1, k});
    }
    for (std::int64_t k = 0; k < K; ++k) {
        const double* const row = added.data<double>() + k * V;
        const auto& elsewhere = merged[static_cast<std::size_t>(k)];
        for (const std::int64_t c : elsewhere) taken[static_cast<std::size_t>(c)] = 1;
        for (std::int64_t c = 0; c < V; ++c) {
            if (c == blank || taken[static_cast<std::size_t>(c)] != 0) continue;
            offer({grown(k, c) + more[k] + row[c], k, c, K + k * V + c});
        }
        for (const std::int64_t c : elsewhere) taken[static_cast<std::size_t>(c)] = 0;
    }
    std::sort(best.begin(), best.end(), [](const Candidate& a, const Candidate& b) {
        // Those that stay come first.
        return (a.label < 0) != (b.label < 0) ? a.label < 0 : before(a, b);
    });
    const auto n = static_cast<std::int64_t>(best.size());
    py::array sources = new_array(DType::int64, {n}), extensions = new_array(DType::int64, {n}),
              next_blanks = new_array(DType::float64, {n}), next_labels = new_array(DType::float64, {n});
    for (std::int64_t i = 0; i < n; ++i) {
        const Candidate& c = best[static_cast<std::size_t>(i)];
        values_of<std::int64_t>(sources)[i] = c.from;
        values_of<std::int64_t>(extensions)[i] = c.label;
        values_of<double>(next_blanks)[i] =
            c.label < 0 ? both[static_cast<std::size_t>(c.from)] + p[blank] : kNever;
        values_of<double>(next_labels)[i] =
            c.label < 0 ? label[static_cast<std::size_t>(c.from)] : grown(c.from, c.label);
    }
    return {sources, extensions, next_blanks, next_labels};
}

}  // namespace

void bind_ctc_prefix(py::module_& m) {
    using py::arg;
    m.def(
        "ctc_prefix_step", &ctc_prefix_step, arg("logp"), arg("blanks"), arg("labels"), arg("last"),
        arg("parents"), arg("bonus"), arg("added"), arg("blank"), arg("beam"),
        "Return which of K label sequences go on (N,), by which label or -1 for none, and the logarithms of "
        "their paths that end in a blank and in a label: those that stay first, each kind the best first.");
}

}  // namespace fusedrnn
