#include "programs.h"

#include <cstring>
#include <utility>

namespace fusedrnn::cuda {
namespace {

std::vector<RowOperation> products_of(const CellPrograms& cell) {
    std::vector<RowOperation> products(static_cast<std::size_t>(cell.products));
    for (int i = 0; i < cell.forward.count; ++i) {
        const ProgramStage& stage = cell.forward.stages[i];
        for (int k = 0; k < stage.operation_count; ++k) {
            const RowOperation& o = stage.operations[k];
            if (o.kind == RowKind::kProduct) products[static_cast<std::size_t>(o.number)] = o;
        }
    }
    return products;
}

class Numbers {
  public:
    Numbers(const CellPrograms& cell, const std::vector<RowOperation>& products, bool backward)
        : cell_(cell), products_(products), backward_(backward) {}

    // The kind of a value and which it is of that.
    std::uint16_t packed(int value) const {
        const std::pair<ValueKind, int> kinds[] = {
            {ValueKind::kMask, cell_.masks},
            {ValueKind::kOperand, cell_.operands},
            {ValueKind::kLink, cell_.links},
            {ValueKind::kUnitGradient, cell_.unit_gradients},
            {ValueKind::kBeforeGradient, cell_.before_gradients},
            {ValueKind::kUnit, cell_.units},
            {ValueKind::kSaved, cell_.saved},
            {ValueKind::kBefore, cell_.before},
            {ValueKind::kAfter, cell_.after},
            {ValueKind::kGate, cell_.gates},
            {ValueKind::kInputGate, 0},
        };
        for (const auto& [kind, first] : kinds) {
            if (value < first) continue;
            if (kind != ValueKind::kLink || backward_) return number(kind, value - first);
            // Forward a product's operand goes to where the product takes it.
            for (const RowOperation& product : products_) {
                if (product.link == value - first) return number(ValueKind::kOperand, product.number);
            }
            return number(kind, value - first);
        }
        return 0;  // no value is below 0
    }

  private:
    static std::uint16_t number(ValueKind kind, int i) {
        return static_cast<std::uint16_t>(static_cast<int>(kind) << kKindShift | i);
    }
    const CellPrograms& cell_;
    const std::vector<RowOperation>& products_;
    const bool backward_;
};

template <class E>
std::int64_t append(std::vector<unsigned char>& memory, const E* from, std::int64_t count) {
    const auto at = memory.size(), bytes = static_cast<std::size_t>(count) * sizeof(E);
    memory.resize(at + bytes);
    if (bytes > 0) std::memcpy(memory.data() + at, from, bytes);
    return static_cast<std::int64_t>(at);
}

DeviceProgram device_program(const StagedProgram& staged, const Numbers& numbers) {
    DeviceProgram made;
    for (int i = 0; i < staged.count; ++i) {
        const Program& p = staged.stages[i].program;
        std::vector<std::uint16_t> values;
        for (int k = 0; k < p.placed; ++k) values.push_back(numbers.packed(p.values[k]));
        made.memory.resize((made.memory.size() + 7) / 8 * 8);  // as constants are aligned
        DeviceStage stage{};
        stage.constants = append(made.memory, p.constants, p.constant_count);
        stage.code = append(made.memory, p.code, p.length);
        stage.values = append(made.memory, values.data(), p.placed);
        stage.length = static_cast<int>(p.length);
        stage.constant_count = p.constant_count;
        stage.inputs = p.inputs, stage.placed = p.placed;
        stage.slots = p.slots();
        stage.operations = staged.stages[i].operations;
        stage.operation_count = staged.stages[i].operation_count;
        made.stages.push_back(stage);
    }
    return made;
}

}  // namespace

DevicePrograms::DevicePrograms(const CellPrograms& programs)
    : cell(programs),
      products(products_of(programs)),
      forward(device_program(programs.forward, {programs, products, false})),
      inference(device_program(programs.inference, {programs, products, false})),
      backward(device_program(programs.backward, {programs, products, true})) {}

const ProgramEntries& program_entries_ieee();
const ProgramEntries& program_entries_f64();
const ProgramEntries& program_entries_bf16();
const ProgramEntries& program_entries_fp16();

const ProgramEntries& program_entries(Math math) {
    switch (math) {
        case Math::bf16:
            return program_entries_bf16();
        case Math::fp16:
            return program_entries_fp16();
        case Math::f64:
            return program_entries_f64();
        default:
            return program_entries_ieee();
    }
}

}  // namespace fusedrnn::cuda
