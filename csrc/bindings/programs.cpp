// Programs of pointwise operations (csrc/cells/program.h), run over arrays: how they are tested.
#include "bindings/programs.h"

#include <algorithm>
#include <cstdint>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "bindings/buffer.h"
#include "bindings/run.h"
#include "cpu/kernels.h"
#include "layers/layer_table.h"

namespace fusedrnn {

std::vector<Instruction> read_code(py::handle code_, std::int64_t first_written, std::int64_t slots) {
    const Array code = Array::int64(code_, "code").shape({{"N"}, {"5", 5}}).contiguous();
    const std::vector<std::int64_t> numbers(code.data<std::int64_t>(),
                                            code.data<std::int64_t>() + code.size());
    std::vector<Instruction> read;
    for (std::size_t i = 0; i < numbers.size(); i += 5) {
        for (std::size_t k = 0; k < 5; ++k) {
            const std::int64_t low = k == 1 ? first_written : 0;
            const std::int64_t high = (k == 0 ? std::int64_t{kProgramOperations} : slots) - 1;
            if (numbers[i + k] < low || numbers[i + k] > high) {
                throw py::value_error("code: expected numbers in [" + std::to_string(low) + ", " +
                                      std::to_string(high) + "] in column " + std::to_string(k) + ", got " +
                                      std::to_string(numbers[i + k]));
            }
        }
        const auto number = [&](std::size_t k) { return static_cast<std::uint16_t>(numbers[i + k]); };
        read.push_back({number(0), number(1), number(2), number(3), number(4)});
    }
    return read;
}

namespace {

// Rows of a tile: few enough that the slots of a long program stay in the L1 cache.
constexpr std::int64_t kTileRows = 8;

py::array run_program(const py::object& code_, const py::object& constants_, const py::object& inputs_,
                      const py::object& outputs_, const py::object& temporaries_) {
    const Array inputs = Array::floats(inputs_, "inputs").shape({{"I"}, {"N"}}).contiguous();
    const Array constants = Array::like(constants_, "constants", inputs).shape({{"C"}}).contiguous();
    const std::int64_t n = inputs.size(1);
    const std::int64_t outputs = integer(outputs_, "outputs", 1, kMaxProgramSlots);
    const std::int64_t temporaries = integer(temporaries_, "temporaries", 0, kMaxProgramSlots);
    const std::int64_t first_input = constants.size(), first_output = first_input + inputs.size(0);
    const std::int64_t slots = first_output + outputs + temporaries;
    if (slots > kMaxProgramSlots) {
        throw py::value_error("constants, inputs, outputs, temporaries: expected at most " +
                              std::to_string(kMaxProgramSlots) + " together, got " + std::to_string(slots));
    }
    const std::vector<Instruction> code = read_code(code_, first_output, slots);
    py::array result = new_array(inputs.dtype(), {outputs, n});
    by_dtype(inputs.dtype(), [&]<class T>() {
        const std::int64_t lanes = kernel_table<T>().lanes, tile = kTileRows * lanes;
        const AlignedBuffer memory(slots * tile * static_cast<std::int64_t>(sizeof(T)));
        T* const at = static_cast<T*>(memory.data());
        T* const y = static_cast<T*>(result.mutable_data());
        std::fill_n(at, slots * tile, T(0));
        std::vector<Slot<T>> places;
        for (std::int64_t i = 0; i < slots; ++i)
            places.push_back({at + i * tile, i < first_input ? 0 : lanes});
        for (std::int64_t i = 0; i < first_input; ++i)
            std::fill_n(places[static_cast<std::size_t>(i)].at, lanes, constants.data<T>()[i]);
        Team team(1);
        run_released(team, [&] {
            for (std::int64_t begin = 0; begin < n && !team.cancelled(0, slots * tile); begin += tile) {
                const std::int64_t count = std::min(tile, n - begin);
                for (std::int64_t i = 0; i < inputs.size(0); ++i)
                    std::copy_n(inputs.data<T>() + i * n + begin, count, at + (first_input + i) * tile);
                layer_table<T>().run_program(code.data(), static_cast<std::int64_t>(code.size()),
                                             (count + lanes - 1) / lanes, places.data());
                for (std::int64_t i = 0; i < outputs; ++i)
                    std::copy_n(at + (first_output + i) * tile, count, y + i * n + begin);
            }
        });
    });
    return result;
}

}  // namespace

void bind_programs(py::module_& m) {
    using py::arg;
    py::dict operations;
    for (const auto& operation : kProgramOperationList) operations[operation.name] = operation.arity;
    m.attr("program_operations") = operations;
    m.def("run_program", &run_program, arg("code"), arg("constants"), arg("inputs"), arg("outputs"),
          arg("temporaries"),
          "Return the outputs (O, N) of a program: code (n, 5) has an operation, a slot to write and three "
          "to read.");
}

}  // namespace fusedrnn
