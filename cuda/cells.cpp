#include "cells.h"

#include <stdexcept>
#include <vector>

namespace fusedrnn::cuda {
namespace {

template <class Cell>
const Cell* find(const std::vector<Cell>& cells, const std::string& name) {
    for (const Cell& cell : cells) {
        if (name == cell.name) return &cell;
    }
    return nullptr;
}

std::vector<DeviceCell> compiled_cells() {
    std::vector<DeviceCell> cells;
    for (const StepCell& step : kernel_entries(Math::ieee).cells) {
        DeviceCell cell{step.traits, {}, {}, {}, nullptr};
        for (int m = 0; m < kMathCount; ++m) {
            const Math math = static_cast<Math>(m);
            cell.step[m] = find(kernel_entries(math).cells, cell.name);
            if (const auto* entries = persistent_entries(math)) {
                cell.persistent[m] = find(entries->cells, cell.name);
            }
            if (const auto* entries = cluster_entries(math)) cell.cluster[m] = find(*entries, cell.name);
        }
        cells.push_back(cell);
    }
    return cells;
}

}  // namespace

DeviceCells device_cells() {
    static const std::vector<DeviceCell> cells = compiled_cells();
    return {cells.data(), static_cast<int>(cells.size())};
}

const DeviceCell& device_cell(const std::string& name) {
    for (const DeviceCell& cell : device_cells()) {
        if (name == cell.name) return cell;
    }
    throw std::invalid_argument("cell: there is no " + name);
}

}  // namespace fusedrnn::cuda
