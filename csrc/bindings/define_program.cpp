// Cells that are data: their definitions checked once, made ready for the drivers, and kept until the process ends.
#include <algorithm>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/read_stages.h"
#include "bindings/recurrent.h"
#include "bindings/registry.h"

namespace fusedrnn {
namespace {

constexpr int kMostGates = 32, kMostLinks = 64;

class DefinedCell {
  public:
    DefinedCell(std::string key, const Shape& shape, std::vector<std::string> per_unit,
                const std::vector<int>& per_unit_values, std::vector<Mask> masks,
                const py::handle& operations, const py::list& forward, const py::list& inference,
                const py::list& backward)
        : key_(std::move(key)),
          per_unit_(std::move(per_unit)),
          masks_(std::move(masks)),
          shape_(shape),
          programs_(numbered_values(shape_)),
          operations_(read_operations(operations, shape_, programs_)),
          forward_("forward", forward, shape_, programs_, kinds_forward(shape_, programs_, true), operations_,
                   false),
          inference_("inference", inference, shape_, programs_, kinds_forward(shape_, programs_, false),
                     operations_, false),
          backward_("backward", backward, shape_, programs_, kinds_backward(shape_, programs_), operations_,
                    true) {
        programs_.forward = forward_.view();
        programs_.inference = inference_.view();
        programs_.backward = backward_.view();
        programs_.mask_list = masks_.data();
        const Extent rows{shape.gates, Size::kHidden}, units{1, Size::kHidden};
        const Extent inputs{1, Size::kInputs}, outputs{1, Size::kOutputs};
        parameters_.push_back({"weight_ih", Role::kInputWeight, Need::kRequired, rows, inputs});
        if (shape.hidden_product)
            parameters_.push_back({"weight_hh", Role::kHiddenWeight, Need::kRequired, rows, outputs});
        if (shape.bias) parameters_.push_back({"bias_ih", Role::kInputBias, Need::kOptional, rows, kVector});
        if (shape.bias && shape.hidden_product)
            parameters_.push_back({"bias_hh", Role::kHiddenBias, Need::kOptional, rows, kVector});
        // A step that reads h of its own unit has none where h is a projection of all units; nor are units of a step's own
        // as many as those that weight_hh multiplies then.
        const bool unit_by_unit = shape.direct_hidden || shape.products > 0;
        const Need projection = unit_by_unit ? Need::kRefused : Need::kOptional;
        parameters_.push_back({"weight_hr", Role::kProjection, projection, outputs, units});
        for (std::size_t i = 0; i < per_unit_.size(); ++i) {
            const std::string& name = per_unit_[i];
            const Extent values{per_unit_values[i], Size::kHidden};
            for (const Parameter& other : parameters_) {
                if (name == other.name)
                    throw py::value_error("per_unit: expected names of their own, got '" + name + "' twice");
            }
            parameters_.push_back({name.c_str(), Role::kPerUnit, Need::kRequired, values, kVector});
        }
        cell_ = std::make_unique<RecurrentCell>(program_cell(
            {key_.c_str(), shape.gates, shape.states, shape.saved, shape.units, shape.split_gates,
             shape.direct_hidden, parameters_.data(), static_cast<int>(parameters_.size())},
            programs_));
        definition_ = {cell_.get(), &programs_};
    }
    DefinedCell(const DefinedCell&) = delete;
    DefinedCell& operator=(const DefinedCell&) = delete;

    const RecurrentCell& cell() const { return *cell_; }
    const CellDefinition& definition() const { return definition_; }
    bool operator==(const DefinedCell& other) const {
        const Shape &a = shape_, &b = other.shape_;
        return a.gates == b.gates && a.states == b.states && a.saved == b.saved &&
               a.split_gates == b.split_gates && a.direct_hidden == b.direct_hidden &&
               a.hidden_product == b.hidden_product && a.bias == b.bias && a.units == b.units &&
               per_unit_ == other.per_unit_ && masks_ == other.masks_ && forward_ == other.forward_ &&
               inference_ == other.inference_ && backward_ == other.backward_;
    }

  private:
    const std::string key_;
    const std::vector<std::string> per_unit_;
    const std::vector<Mask> masks_;
    const Shape shape_;
    CellPrograms programs_;
    const std::vector<RowOperation> operations_;
    const ReadStages forward_, inference_, backward_;
    std::vector<Parameter> parameters_;
    std::unique_ptr<RecurrentCell> cell_;
    CellDefinition definition_{};
};

using DefinedCells = Registry<DefinedCell>;

py::dict define_program(const std::string& key, py::handle gates, py::handle states, py::handle saved,
                        py::handle links, py::handle split_gates, py::handle direct_hidden,
                        py::handle hidden_product, py::handle bias, std::vector<std::string> per_unit,
                        const std::vector<std::int64_t>& per_unit_values, py::handle operations,
                        const py::list& forward, const py::list& inference, const py::list& backward,
                        const std::vector<std::tuple<double, double, double, double, bool>>& masks) {
    const auto count = [](py::handle n, const char* name, std::int64_t low, std::int64_t high) {
        return static_cast<int>(integer(n, name, low, high));
    };
    Shape shape{};
    shape.gates = count(gates, "gates", 1, kMostGates);
    shape.states = count(states, "states", 1, kMaxStates);
    shape.saved = count(saved, "saved", 0, kMaxProgramSlots);
    shape.links = count(links, "links", 0, kMostLinks);
    shape.split_gates = flag(split_gates, "split_gates");
    shape.direct_hidden = flag(direct_hidden, "direct_hidden");
    shape.hidden_product = flag(hidden_product, "hidden_product");
    if (per_unit.size() > kMaxUnitParameters) {
        throw py::value_error("per_unit: expected at most " + std::to_string(kMaxUnitParameters) +
                              " names, got " + std::to_string(per_unit.size()));
    }
    if (per_unit_values.size() != per_unit.size())
        throw py::value_error("per_unit_values: expected one for each of per_unit");
    std::vector<int> unit_values;
    for (const std::int64_t values : per_unit_values) {
        if (values != 1 && values != shape.gates)
            throw py::value_error("per_unit_values: expected 1 or the number of gates, got " +
                                  std::to_string(values));
        unit_values.push_back(static_cast<int>(values));
        shape.units += unit_values.back();
    }
    if (shape.units > kMaxUnitValues)
        throw py::value_error("per_unit_values: expected at most " + std::to_string(kMaxUnitValues) +
                              " together, got " + std::to_string(shape.units));
    shape.bias = flag(bias, "bias");
    if (masks.size() > kMaxMasks) {
        throw py::value_error("masks: expected at most " + std::to_string(kMaxMasks) + ", got " +
                              std::to_string(masks.size()));
    }
    shape.masks = static_cast<int>(masks.size());
    std::vector<Mask> drawn;
    for (const auto& [p, value, other, expected, each_step] : masks) {
        if (!(p >= 0 && p <= 1))
            throw py::value_error("masks: expected probabilities in [0, 1], got " + std::to_string(p));
        drawn.push_back({p, value, other, expected, each_step});
    }
    shape.first_gates = shape.gates;
    const Array listed = Array::int64(operations, "operations").shape({{"N"}, {"7", 7}}).contiguous();
    for (std::int64_t i = 0; i < listed.size(0); ++i) {
        const std::int64_t* row = listed.data<std::int64_t>() + 7 * i;
        const bool product = row[0] == 0;
        ++(product ? shape.products : shape.norms);
        if (product)
            shape.first_gates = static_cast<int>(std::clamp<std::int64_t>(row[2], 0, shape.first_gates));
    }
    if (shape.products > 0 && !shape.hidden_product)
        throw py::value_error("operations: expected no products of a cell without hidden_product, got some");
    for (const RecurrentCell& compiled : kernels().cells) {
        if (key == compiled.name)
            throw py::value_error("key: expected none of a compiled cell, got '" + key + "'");
    }
    auto defined =
        std::make_unique<const DefinedCell>(key, shape, std::move(per_unit), unit_values, std::move(drawn),
                                            operations, forward, inference, backward);
    const DefinedCell& known = DefinedCells::instance().add(key, defined);
    if (defined != nullptr && !(*defined == known))
        throw py::value_error("key: expected one of its own for each definition, got '" + key +
                              "' for a second");
    return cell_description(known.cell());
}

}  // namespace

const RecurrentCell* defined_cell(const std::string& key) {
    const DefinedCell* const found = DefinedCells::instance().find(key);
    return found == nullptr ? nullptr : &found->cell();
}

void bind_define_program(py::module_& m) {
    using py::arg;
    m.def("define_program", &define_program, arg("key"), arg("gates"), arg("states"), arg("saved"),
          arg("links"), arg("split_gates"), arg("direct_hidden"), arg("hidden_product"), arg("bias"),
          arg("per_unit"), arg("per_unit_values"), arg("operations"), arg("forward"), arg("inference"),
          arg("backward"), arg("masks") = py::list(),
          "Make a cell known by `key` and return its constants, as in `cells`.");
    m.def(
        "cell_definition",
        [](const std::string& key) -> py::object {
            const DefinedCell* const found = DefinedCells::instance().find(key);
            if (found == nullptr) return py::none();
            return py::capsule(&found->definition(), kCellDefinition);
        },
        arg("key"),
        "Return a capsule of the cell's programs, for the module of a GPU; None for another key.");
}

}  // namespace fusedrnn
