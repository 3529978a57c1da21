// Cells that are data: their definitions checked once, made ready for the drivers, and kept until the process ends.
#include <pybind11/stl.h>

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/fork_safe_mutex.h"
#include "bindings/programs.h"
#include "bindings/recurrent.h"

namespace fusedrnn {
namespace {

constexpr int kMostGates = 32, kMostPerUnit = 16, kMostUnitValues = 64, kMostLinks = 64;

// What the programs of one cell have to agree on.
struct Shape {
    int gates, states, saved, units, links, first_gates, products, norms;
    bool split_gates, direct_hidden, hidden_product, bias;
};

CellPrograms numbered_values(const Shape& s) {
    CellPrograms p{};
    p.hidden_product = s.hidden_product;
    p.gates = s.gates;
    p.after = p.gates + s.gates;
    p.before = p.after + s.states;
    p.saved = p.before + s.states;
    p.units = p.saved + s.saved;
    p.before_gradients = p.units + s.units;
    p.unit_gradients = p.before_gradients + s.states;
    p.links = p.unit_gradients + s.units;
    p.operands = p.links + s.links;
    p.values = p.operands + s.products;
    p.staged = s.products + s.norms > 0;
    p.first_gates = s.first_gates;
    p.link_count = s.links;
    p.products = s.products;
    p.norms = s.norms;
    return p;
}

// A kind of inputs or outputs: "name.0" to "name.count-1" are the values from `first` on.
struct Kind {
    const char* name;
    int count, first;
    bool needed;           // as outputs: all of them
    bool optional = false;  // not even as outputs
};
using Kinds = std::vector<Kind>;

struct ProgramKinds {
    Kinds inputs, outputs;
};

void add_gates(Kinds& kinds, const Shape& s, const CellPrograms& p, const std::string& prefix) {
    const bool d = !prefix.empty();
    if (!s.split_gates) {
        kinds.push_back({d ? "da" : "a", s.gates, p.gates, true});
        return;
    }
    kinds.push_back({d ? "dx" : "x", s.gates, 0, true});
    kinds.push_back({d ? "dh" : "h", s.gates, p.gates, s.hidden_product});
}

ProgramKinds kinds_forward(const Shape& s, const CellPrograms& p, bool keeps) {
    ProgramKinds kinds{{{"s", s.states, p.before, true},
                        {"p", s.units, p.units, true},
                        {"link", s.links, p.links, true},
                        {"saved", keeps ? s.saved : 0, p.saved, true}},
                       {{"next", s.states, p.after, true}, {"link", s.links, p.links, true, true}}};
    add_gates(kinds.inputs, s, p, "");
    if (keeps) kinds.outputs.push_back({"saved", s.saved, p.saved, true});
    return kinds;
}

ProgramKinds kinds_backward(const Shape& s, const CellPrograms& p) {
    ProgramKinds kinds{{{"saved", s.saved, p.saved, true},
                        {"s", s.states, p.before, true},
                        {"p", s.units, p.units, true},
                        {"dnext", s.states, p.after, true},
                        {"link", s.links, p.links, true},
                        {"dp", p.staged ? s.units : 0, p.unit_gradients, true}},  // what they are added to
                       {{"ds", s.states, p.before_gradients, true},
                        {"dp", s.units, p.unit_gradients, true},
                        {"operand", s.products, p.operands, true},
                        {"link", s.links, p.links, true, true}}};
    add_gates(kinds.outputs, s, p, "d");
    return kinds;
}

// One program with the memory behind it.
class ReadProgram {
  public:
    ReadProgram(const std::string& which, const py::dict& given, const Shape& shape,
                const ProgramKinds& kinds)
        : which_(which), shape_(shape), constants_(list_of<double>(given, "constants")) {
        const auto inputs = list_of<std::string>(given, "inputs"),
                   outputs = list_of<std::string>(given, "outputs");
        const std::int64_t first_input = size_of(constants_), first_output = first_input + size_of(inputs);
        const std::int64_t first_temporary = first_output + size_of(outputs);
        const std::int64_t slots = integer(item(given, "slots"), "slots", 0, kMaxProgramSlots);
        if (first_temporary > slots) {
            throw error("slots: expected at least one for each constant, input and output, " +
                        std::to_string(first_temporary) + " together, got " + std::to_string(slots));
        }
        std::vector<Instruction> code = read_code(item(given, "code"), first_output, slots);
        values_of_.assign(static_cast<std::size_t>(slots), kNone);
        for (std::size_t i = 0; i < inputs.size(); ++i)
            values_of_[static_cast<std::size_t>(first_input) + i] = value(inputs[i], kinds.inputs, "input");
        std::vector<bool> wanted(static_cast<std::size_t>(slots), false);
        for (std::size_t i = 0; i < outputs.size(); ++i) {
            const std::size_t slot = static_cast<std::size_t>(first_output) + i;
            if (std::count(outputs.begin(), outputs.end(), outputs[i]) != 1)
                throw error("outputs: expected each once, got " + outputs[i] + " twice");
            values_of_[slot] = value(outputs[i], kinds.outputs, "output");
            wanted[slot] = values_of_[slot] != kNone;
        }
        inputs_.insert(inputs.begin(), inputs.end());
        outputs_.insert(outputs.begin(), outputs.end());
        check_order(code, static_cast<std::size_t>(first_output), outputs);
        keep_needed(code, wanted);
        renumber(static_cast<std::size_t>(first_input), static_cast<std::size_t>(first_output));
    }

    Program view(const CellPrograms& values) const {
        std::uint32_t before = 0, after = 0;
        for (const std::uint16_t value : values_) {
            if (value >= values.after && value < values.before) after |= 1u << (value - values.after);
            if (value >= values.before && value < values.saved) before |= 1u << (value - values.before);
        }
        return {code_.data(),
                static_cast<std::int64_t>(code_.size()),
                constants_.data(),
                values_.data(),
                static_cast<int>(constants_.size()),
                static_cast<int>(values_.size()),
                temporaries_,
                before,
                after};
    }

    const std::set<std::string>& inputs() const { return inputs_; }
    const std::set<std::string>& outputs() const { return outputs_; }

    bool operator==(const ReadProgram& other) const {
        const auto same = [](const Instruction& a, const Instruction& b) {
            return a.operation == b.operation && a.to == b.to && a.a == b.a && a.b == b.b && a.c == b.c;
        };
        return constants_ == other.constants_ && values_ == other.values_ &&
               temporaries_ == other.temporaries_ &&
               std::equal(code_.begin(), code_.end(), other.code_.begin(), other.code_.end(), same);
    }

  private:
    static constexpr int kNone = -1;

    template <class C>
    static std::int64_t size_of(const C& c) {
        return static_cast<std::int64_t>(c.size());
    }
    py::value_error error(const std::string& what) const { return py::value_error(which_ + ": " + what); }
    py::object item(const py::dict& given, const char* name) const {
        if (!given.contains(name)) throw error(std::string("expected an entry '") + name + "', got none");
        return given[name];
    }
    template <class E>
    std::vector<E> list_of(const py::dict& given, const char* name) const {
        try {
            return item(given, name).cast<std::vector<E>>();
        } catch (const py::cast_error&) {
            throw py::type_error(which_ + ": " + name + ": expected a list of " +
                                 (sizeof(E) == sizeof(double) ? "numbers" : "names"));
        }
    }

    // The number of the value called so; kNone for a gradient that nothing takes.
    int value(const std::string& name, const Kinds& kinds, const char* what) const {
        for (const Kind& kind : kinds) {
            for (int k = 0; k < kind.count; ++k) {
                if (name != std::string(kind.name) + "." + std::to_string(k)) continue;
                if (name == "ds.0" && !shape_.direct_hidden) break;
                return kind.needed ? kind.first + k : kNone;
            }
        }
        throw error(std::string(what) + "s: expected names of the cell's values, got '" + name + "'");
    }

    // Nothing is read before it is written, and every output is written.
    void check_order(const std::vector<Instruction>& code, std::size_t first_output,
                     const std::vector<std::string>& outputs) const {
        std::vector<bool> there(values_of_.size(), false);
        std::fill_n(there.begin(), first_output, true);
        for (const Instruction& step : code) {
            const int arity = kProgramOperationList[step.operation].arity;
            const std::uint16_t operands[] = {step.a, step.b, step.c};
            for (int i = 0; i < arity; ++i) {
                if (!there[operands[i]])
                    throw error("code: expected slot " + std::to_string(operands[i]) +
                                " to be written before it is read, got the reverse");
            }
            there[step.to] = true;
        }
        for (std::size_t i = 0; i < outputs.size(); ++i) {
            if (!there[first_output + i])
                throw error("code: expected the output " + outputs[i] +
                            " to be written, got no instruction that does");
        }
    }

    // The instructions that what is wanted depends on.
    void keep_needed(const std::vector<Instruction>& code, std::vector<bool> wanted) {
        for (auto step = code.rbegin(); step != code.rend(); ++step) {
            if (!wanted[step->to]) continue;
            // A placed output is written once; whatever wrote to its slot earlier may have been read meanwhile.
            if (values_of_[step->to] == kNone) wanted[step->to] = false;
            const int arity = kProgramOperationList[step->operation].arity;
            wanted[step->a] = true;
            if (arity > 1) wanted[step->b] = true;
            if (arity > 2) wanted[step->c] = true;
            code_.push_back(*step);
        }
        std::reverse(code_.begin(), code_.end());
    }

    // Slots as the drivers take them: constants, placed values that are used, temporaries.
    void renumber(std::size_t first_input, std::size_t first_output) {
        std::vector<bool> used(values_of_.size(), false);
        for (const Instruction& step : code_) {
            const int arity = kProgramOperationList[step.operation].arity;
            used[step.to] = used[step.a] = true;
            if (arity > 1) used[step.b] = true;
            if (arity > 2) used[step.c] = true;
        }
        std::vector<std::uint16_t> to(values_of_.size(), 0);
        std::uint16_t next = 0;
        for (; next < first_input; ++next) to[next] = next;
        for (std::size_t i = first_input; i < to.size(); ++i) {
            if (!used[i]) continue;
            if (values_of_[i] != kNone) {
                to[i] = next++;
                values_.push_back(static_cast<std::uint16_t>(values_of_[i]));
            } else if (i < first_output) {
                throw error(
                    "inputs: expected h.* of a cell without a recurrent product not to be read, got a read");
            }
        }
        for (std::size_t i = first_output; i < to.size(); ++i) {
            if (!used[i] || values_of_[i] != kNone) continue;
            to[i] = next++;
            ++temporaries_;
        }
        for (Instruction& step : code_) {
            const int arity = kProgramOperationList[step.operation].arity;
            step.to = to[step.to];
            step.a = to[step.a];
            step.b = arity > 1 ? to[step.b] : step.a;
            step.c = arity > 2 ? to[step.c] : step.a;
        }
    }

    std::string which_;
    const Shape& shape_;
    std::vector<double> constants_;
    std::vector<int> values_of_;  // by the slots that were given: which value, kNone for none
    std::vector<Instruction> code_;
    std::vector<std::uint16_t> values_;
    int temporaries_ = 0;
    std::set<std::string> inputs_, outputs_;
};

// The operations on rows of a cell, a list for each: kind, of what (gates of x, of h, or links), the first, how many, link,
// number, saved value.
std::vector<RowOperation> read_operations(const py::handle& given, const Shape& s, const CellPrograms& p) {
    const Array listed = Array::int64(given, "operations").shape({{"N"}, {"7", 7}}).contiguous();
    std::vector<RowOperation> all;
    int next_gate = s.first_gates, products = 0, norms = 0;
    for (std::int64_t i = 0; i < listed.size(0); ++i) {
        const std::int64_t* row = listed.data<std::int64_t>() + 7 * i;
        const auto within = [&](int k, std::int64_t low, std::int64_t high) {
            if (row[k] < low || row[k] > high) {
                throw py::value_error("operations: expected numbers in [" + std::to_string(low) + ", " +
                                      std::to_string(high) + "] in column " + std::to_string(k) + ", got " +
                                      std::to_string(row[k]));
            }
            return static_cast<int>(row[k]);
        };
        const bool normalises = within(0, 0, 1) == 1;
        const int of = within(1, normalises ? 0 : 1, normalises ? 2 : 1);
        RowOperation o{normalises ? RowKind::kNormalise : RowKind::kProduct, 0, 0, 0, 0, 0, 0};
        if (!normalises) {
            o.first_gate = within(2, next_gate, next_gate);
            o.count = within(3, 1, s.gates - next_gate);
            next_gate += o.count;
            o.value = p.gates + o.first_gate;
            o.link = within(4, 0, s.links - 1);
            o.number = within(5, products, products);
            ++products;
        } else {
            const int first = within(2, 0, of == 2 ? s.links - 1 : 0);
            o.count = within(3, of == 2 ? 1 : s.gates, of == 2 ? s.links - first : s.gates);
            o.value = (of == 0 ? 0 : of == 1 ? p.gates : p.links) + first;
            o.link = of == 2 ? first : -1;
            o.number = within(5, norms, norms);
            o.saved = within(6, 0, s.saved - o.count);
            ++norms;
        }
        all.push_back(o);
    }
    return all;
}

// The stages of one direction of a step, with the memory behind them.
class ReadStages {
  public:
    ReadStages(const std::string& which, const py::list& given, const Shape& shape, const CellPrograms& values,
               const ProgramKinds& kinds, const std::vector<RowOperation>& operations, bool backward) {
        std::set<std::string> written;
        std::vector<bool> done(operations.size(), false);
        const auto expect = [&](const std::string& name) {
            if (written.count(name) == 0)
                throw py::value_error(which + ": expected " + name + " to be written before it is read");
        };
        for (const py::handle& each : given) {
            const py::dict stage = each.cast<py::dict>();
            std::vector<RowOperation> before;
            for (const py::handle& number : stage["operations"]) {
                const auto i = static_cast<std::size_t>(
                    integer(number, "operations", 0, static_cast<std::int64_t>(operations.size()) - 1));
                if (done[i]) throw py::value_error(which + ": operations: expected each once");
                done[i] = true;
                const RowOperation& o = operations[i];
                if (o.kind == RowKind::kNormalise) {
                    for (int k = 0; k < o.count && o.link >= 0; ++k)
                        expect("link." + std::to_string(o.link + k));
                    for (int k = 0; k < o.count && !backward; ++k)
                        written.insert("saved." + std::to_string(o.saved + k));
                } else if (!backward) {
                    expect("link." + std::to_string(o.link));
                } else {
                    written.insert("link." + std::to_string(o.link));
                }
                before.push_back(o);
            }
            operations_.push_back(std::make_unique<const std::vector<RowOperation>>(std::move(before)));
            programs_.push_back(std::make_unique<const ReadProgram>(which, stage, shape, kinds));
            for (const std::string& name : programs_.back()->inputs()) {
                if (name.rfind("link.", 0) == 0 || (!backward && name.rfind("saved.", 0) == 0)) expect(name);
            }
            written.insert(programs_.back()->outputs().begin(), programs_.back()->outputs().end());
        }
        if (std::count(done.begin(), done.end(), false) != 0 || programs_.empty())
            throw py::value_error(which + ": expected at least one stage, and all operations in its stages");
        for (const Kind& kind : kinds.outputs) {
            for (int k = 0; k < kind.count && kind.needed && !kind.optional; ++k) {
                const std::string name = std::string(kind.name) + "." + std::to_string(k);
                if (name == "ds.0" && !shape.direct_hidden) continue;
                if (written.count(name) == 0)
                    throw py::value_error(which + ": outputs: expected " + name + " among them, got none");
            }
        }
        for (std::size_t i = 0; i < programs_.size(); ++i) {
            stages_.push_back({programs_[i]->view(values), operations_[i]->data(),
                               static_cast<int>(operations_[i]->size())});
        }
    }
    StagedProgram view() const {
        StagedProgram all{stages_.data(), static_cast<int>(stages_.size()), 0, 0};
        for (const ProgramStage& stage : stages_) {
            all.reads_before |= stage.program.reads_before;
            all.reads_after |= stage.program.reads_after;
        }
        return all;
    }
    bool operator==(const ReadStages& other) const {
        const auto same = [](const auto& a, const auto& b) { return *a == *b; };
        const auto same_operations = [](const auto& a, const auto& b) {
            return std::equal(a->begin(), a->end(), b->begin(), b->end(),
                              [](const RowOperation& o, const RowOperation& q) {
                                  return o.kind == q.kind && o.value == q.value && o.count == q.count &&
                                         o.link == q.link && o.saved == q.saved;
                              });
        };
        return std::equal(programs_.begin(), programs_.end(), other.programs_.begin(), other.programs_.end(),
                          same) &&
               std::equal(operations_.begin(), operations_.end(), other.operations_.begin(),
                          other.operations_.end(), same_operations);
    }

  private:
    std::vector<std::unique_ptr<const ReadProgram>> programs_;
    std::vector<std::unique_ptr<const std::vector<RowOperation>>> operations_;
    std::vector<ProgramStage> stages_;
};

class DefinedCell {
  public:
    DefinedCell(std::string key, const Shape& shape, std::vector<std::string> per_unit,
                const std::vector<int>& per_unit_values, const py::handle& operations, const py::list& forward, const py::list& inference,
                const py::list& backward)
        : key_(std::move(key)),
          per_unit_(std::move(per_unit)),
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
        const Extent rows{shape.gates, Size::kHidden}, units{1, Size::kHidden};
        const Extent inputs{1, Size::kInputs}, outputs{1, Size::kOutputs};
        parameters_.push_back({"weight_ih", Role::kInputWeight, Need::kRequired, rows, inputs});
        if (shape.hidden_product)
            parameters_.push_back({"weight_hh", Role::kHiddenWeight, Need::kRequired, rows, outputs});
        if (shape.bias)
            parameters_.push_back({"bias_ih", Role::kInputBias, Need::kOptional, rows, kVector});
        if (shape.bias && shape.hidden_product)
            parameters_.push_back({"bias_hh", Role::kHiddenBias, Need::kOptional, rows, kVector});
        parameters_.push_back({"weight_hr", Role::kProjection, Need::kRefused, outputs, units});
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
    }
    DefinedCell(const DefinedCell&) = delete;
    DefinedCell& operator=(const DefinedCell&) = delete;

    const RecurrentCell& cell() const { return *cell_; }
    bool operator==(const DefinedCell& other) const {
        const Shape &a = shape_, &b = other.shape_;
        return a.gates == b.gates && a.states == b.states && a.saved == b.saved &&
               a.split_gates == b.split_gates && a.direct_hidden == b.direct_hidden &&
               a.hidden_product == b.hidden_product && a.bias == b.bias && a.units == b.units && per_unit_ == other.per_unit_ &&
               forward_ == other.forward_ && inference_ == other.inference_ && backward_ == other.backward_;
    }

  private:
    const std::string key_;
    const std::vector<std::string> per_unit_;
    const Shape shape_;
    CellPrograms programs_;
    const std::vector<RowOperation> operations_;
    const ReadStages forward_, inference_, backward_;
    std::vector<Parameter> parameters_;
    std::unique_ptr<RecurrentCell> cell_;
};

using Registry = std::map<std::string, std::unique_ptr<const DefinedCell>>;

// Never destroyed: tapes may outlive the module.
Registry& registry() {
    static auto* const cells = new Registry;
    return *cells;
}

const DefinedCell* find(const std::string& key) {
    const Registry& cells = registry();
    const std::lock_guard<std::mutex> lock(fork_safe_mutex(&cells));
    const auto found = cells.find(key);
    return found == cells.end() ? nullptr : found->second.get();
}

py::dict define_program(const std::string& key, py::handle gates, py::handle states, py::handle saved,
                        py::handle links, py::handle split_gates, py::handle direct_hidden,
                        py::handle hidden_product, py::handle bias, std::vector<std::string> per_unit,
                        const std::vector<std::int64_t>& per_unit_values, py::handle operations, const py::list& forward, const py::list& inference,
                        const py::list& backward) {
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
    if (per_unit.size() > kMostPerUnit) {
        throw py::value_error("per_unit: expected at most " + std::to_string(kMostPerUnit) + " names, got " +
                              std::to_string(per_unit.size()));
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
    if (shape.units > kMostUnitValues)
        throw py::value_error("per_unit_values: expected at most " + std::to_string(kMostUnitValues) +
                              " together, got " + std::to_string(shape.units));
    shape.bias = flag(bias, "bias");
    shape.first_gates = shape.gates;
    const Array listed = Array::int64(operations, "operations").shape({{"N"}, {"7", 7}}).contiguous();
    for (std::int64_t i = 0; i < listed.size(0); ++i) {
        const std::int64_t* row = listed.data<std::int64_t>() + 7 * i;
        const bool product = row[0] == 0;
        ++(product ? shape.products : shape.norms);
        if (product) shape.first_gates = static_cast<int>(std::clamp<std::int64_t>(row[2], 0, shape.first_gates));
    }
    if (shape.products > 0 && !shape.hidden_product)
        throw py::value_error("operations: expected no products of a cell without hidden_product, got some");
    for (const RecurrentCell& compiled : kernels().cells) {
        if (key == compiled.name)
            throw py::value_error("key: expected none of a compiled cell, got '" + key + "'");
    }
    auto defined =
        std::make_unique<const DefinedCell>(key, shape, std::move(per_unit), unit_values, operations, forward,
                                            inference, backward);
    const DefinedCell* known;
    {
        Registry& cells = registry();
        const std::lock_guard<std::mutex> lock(fork_safe_mutex(&cells));
        auto& place = cells[key];
        if (place == nullptr) place.swap(defined);
        known = place.get();
    }
    if (defined != nullptr && !(*defined == *known))
        throw py::value_error("key: expected one of its own for each definition, got '" + key +
                              "' for a second");
    return cell_description(known->cell());
}

}  // namespace

const RecurrentCell* defined_cell(const std::string& key) {
    const DefinedCell* const found = find(key);
    return found == nullptr ? nullptr : &found->cell();
}

void bind_define_program(py::module_& m) {
    using py::arg;
    m.def("define_program", &define_program, arg("key"), arg("gates"), arg("states"), arg("saved"),
          arg("links"), arg("split_gates"), arg("direct_hidden"), arg("hidden_product"), arg("bias"),
          arg("per_unit"), arg("per_unit_values"), arg("operations"), arg("forward"), arg("inference"), arg("backward"),
          "Make a cell known by `key` and return its constants, as in `cells`.");
}

}  // namespace fusedrnn
