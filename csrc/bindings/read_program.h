// A program of a cell that is data, checked: no index of it leads out of its slots.
#pragma once

#include <pybind11/stl.h>

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "bindings/checks.h"
#include "bindings/programs.h"
#include "cells/program_list.h"

namespace fusedrnn {

// What the programs of one cell have to agree on.
struct Shape {
    int gates, states, saved, units, links, first_gates, products, norms, masks;
    bool split_gates, direct_hidden, hidden_product, bias;
};

inline CellPrograms numbered_values(const Shape& s) {
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
    p.masks = p.operands + s.products;
    p.values = p.masks + s.masks;
    p.mask_count = s.masks;
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
    bool needed;            // as outputs: all of them
    bool optional = false;  // not even as outputs
};
using Kinds = std::vector<Kind>;

struct ProgramKinds {
    Kinds inputs, outputs;
};

inline void add_gates(Kinds& kinds, const Shape& s, const CellPrograms& p, const std::string& prefix) {
    const bool d = !prefix.empty();
    if (!s.split_gates) {
        kinds.push_back({d ? "da" : "a", s.gates, p.gates, true});
        return;
    }
    kinds.push_back({d ? "dx" : "x", s.gates, 0, true});
    kinds.push_back({d ? "dh" : "h", s.gates, p.gates, s.hidden_product});
}

inline ProgramKinds kinds_forward(const Shape& s, const CellPrograms& p, bool keeps) {
    ProgramKinds kinds{{{"s", s.states, p.before, true},
                        {"p", s.units, p.units, true},
                        {"mask", s.masks, p.masks, true},
                        {"link", s.links, p.links, true},
                        {"saved", keeps ? s.saved : 0, p.saved, true}},
                       {{"next", s.states, p.after, true}, {"link", s.links, p.links, true, true}}};
    add_gates(kinds.inputs, s, p, "");
    if (keeps) kinds.outputs.push_back({"saved", s.saved, p.saved, true});
    return kinds;
}

inline ProgramKinds kinds_backward(const Shape& s, const CellPrograms& p) {
    ProgramKinds kinds{{{"saved", s.saved, p.saved, true},
                        {"s", s.states, p.before, true},
                        {"p", s.units, p.units, true},
                        {"mask", s.masks, p.masks, true},
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
        std::uint32_t before = 0, after = 0, masks = 0;
        for (const std::uint16_t value : values_) {
            if (value >= values.after && value < values.before) after |= 1u << (value - values.after);
            if (value >= values.before && value < values.saved) before |= 1u << (value - values.before);
            if (value >= values.masks) masks |= 1u << (value - values.masks);
        }
        return {code_.data(),
                static_cast<std::int64_t>(code_.size()),
                constants_.data(),
                values_.data(),
                static_cast<int>(constants_.size()),
                static_cast<int>(values_.size()),
                temporaries_,
                inputs_placed_,
                before,
                after,
                masks};
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
                inputs_placed_ += i < first_output;
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
    int temporaries_ = 0, inputs_placed_ = 0;
    std::set<std::string> inputs_, outputs_;
};

}  // namespace fusedrnn
