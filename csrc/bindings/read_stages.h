// The stages of a cell that is data, checked: programs, and the operations on rows between them.
#pragma once

#include <memory>

#include "bindings/read_program.h"

namespace fusedrnn {

// The operations on rows of a cell, a list for each: kind, of what (gates of x, of h, or links), the first, how many, link,
// number, saved value.
inline std::vector<RowOperation> read_operations(const py::handle& given, const Shape& s,
                                                 const CellPrograms& p) {
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
    ReadStages(const std::string& which, const py::list& given, const Shape& shape,
               const CellPrograms& values, const ProgramKinds& kinds,
               const std::vector<RowOperation>& operations, bool backward) {
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
        StagedProgram all{stages_.data(), static_cast<int>(stages_.size()), 0, 0, 0};
        for (const ProgramStage& stage : stages_) {
            all.reads_before |= stage.program.reads_before;
            all.reads_after |= stage.program.reads_after;
            all.reads_masks |= stage.program.reads_masks;
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

}  // namespace fusedrnn
