#pragma once

#include "bindings/layer_call.h"

namespace fusedrnn {

class ForwardCall : public LayerCall {
  public:
    static std::shared_ptr<ForwardCall> make(const std::string& cell, py::handle x, py::handle params,
                                             py::handle state, py::handle indices, py::handle lengths,
                                             py::handle resets, py::handle reset_state, py::handle reverse,
                                             py::handle save, py::handle recompute, WeightCache* cache,
                                             py::handle version, py::handle out, py::handle state_out,
                                             py::handle tape_out, py::handle hidden_drop);

    // Before it runs: masks of the cell are drawn, by the streams from `offset` on.
    virtual void draw_masks(std::uint64_t seed, std::uint64_t offset) = 0;

    bool independent(const LayerCall& other) const override;
    bool follows(const LayerCall& before) const override;

  protected:
    CallArrays in_;
    Array y_;
    StateArrays<Array> final_;
    std::shared_ptr<const Timetable> timetable_;
    Progress progress_;
};

// The tape of an earlier call, which has returned `y` and written `memory`, its tape_out.
std::shared_ptr<LayerTape> tape_from_arrays(const std::string& cell, py::handle x, py::handle params,
                                            py::handle y, py::handle memory, py::handle state,
                                            py::handle lengths, py::handle resets, py::handle reset_state,
                                            py::handle reverse, py::handle recompute);

}  // namespace fusedrnn
