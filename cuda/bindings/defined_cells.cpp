#include "cuda/bindings/defined_cells.h"

#include <memory>

#include "bindings/checks.h"
#include "bindings/registry.h"

namespace fusedrnn::cuda {
namespace {

struct DefinedCell {
    explicit DefinedCell(const CellDefinition& definition)
        : programs(*definition.programs), cell{*definition.traits, {}, {}, {}, &programs} {}
    const DevicePrograms programs;
    const DeviceCell cell;
};

using DefinedCells = Registry<DefinedCell>;

}  // namespace

const DeviceCell& cell_of_call(const std::string& name) {
    for (const DeviceCell& cell : device_cells()) {
        if (name == cell.name) return cell;
    }
    DefinedCells& defined = DefinedCells::instance();
    if (const DefinedCell* const known = defined.find(name)) return known->cell;
    // Both modules are of one version, which the loader has seen to.
    const py::object given = py::module_::import("fusedrnn._core").attr("cell_definition")(name);
    if (given.is_none()) return cell_among(device_cells(), name);
    void* const pointer = PyCapsule_GetPointer(given.ptr(), kCellDefinition);
    if (pointer == nullptr) throw py::error_already_set();
    auto made = std::make_unique<const DefinedCell>(*static_cast<const CellDefinition*>(pointer));
    return defined.add(name, made).cell;
}

Draws read_draws(py::handle draws) {
    if (draws.is_none()) return {};
    const auto part = [&](py::ssize_t i) { return item_of(draws, "draws", 2, i); };
    return {true, unsigned_integer(part(0), "seed"), unsigned_integer(part(1), "offset")};
}

}  // namespace fusedrnn::cuda
