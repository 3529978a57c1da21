#pragma once

#include "bindings/layer_call.h"

namespace fusedrnn {

class BackwardCall : public LayerCall {
  public:
    static std::shared_ptr<BackwardCall> make(const std::shared_ptr<LayerTape>& tape, py::handle dy,
                                              py::handle dstate, py::handle dparams, py::handle need_dx,
                                              py::handle dx, py::handle accumulate_dx, py::handle dreset,
                                              py::handle dsteps);

    py::tuple result() const override;
    bool independent(const LayerCall& other) const override;
    // Before it runs: that the results are (dx, dstate, (x, h, dgx, dgh)) in place of the parameters' gradients, what these
    // are made of for each row of the batch, (B, T, ...); dgh is dgx where they are one.
    virtual void leave_rows() = 0;

  protected:
    struct Arrays : GradientArrays<Array> {
        StateArrays<Array> dreset, dsteps;
        bool accumulate_dx;
        py::list rows;
    };

    BackwardCall(std::shared_ptr<LayerTape> tape, Arrays&& arrays)
        : tape_(std::move(tape)), arrays_(std::move(arrays)) {}

    std::shared_ptr<LayerTape> tape_;
    Arrays arrays_;
};

}  // namespace fusedrnn
