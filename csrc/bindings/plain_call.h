// The call that a loop over small inputs makes: one layer and direction, arrays as the kernels want them, no options.
// Everything that does not change between such calls is prepared beforehand.
#pragma once

#include <memory>
#include <string>

#include "bindings/recurrent.h"

namespace fusedrnn {

class PlainCall {
  public:
    PlainCall(const std::string& cell, py::handle params, std::shared_ptr<WeightCache> cache);

    // (y, final state, tape or None), or None for arguments that only the general call takes or refuses. With batch_first,
    // x and y are (B, T, .).
    py::object call(py::handle x, py::handle state, std::int64_t version, bool save, bool recompute,
                    bool batch_first = false);

  private:
    template <class T>
    py::object call_typed(py::handle x, py::handle state, std::int64_t version, bool save, bool recompute,
                          bool batch_first);
    // The last one again if the sizes are the same.
    std::shared_ptr<const Timetable> timetable_of(std::int64_t seq_len, std::int64_t batch);
    // `value` as a (., ., .) array of the layer's dtype that needs no copy, else null.
    const py::array* plain(const py::handle& value) const;
    // h, or the tuple (h, c), each (1, B, width).
    template <class T>
    bool read_state(py::handle state, const Dims& d, const T* (&initial)[kMaxStates]) const;

    const RecurrentCell& cell_;
    std::shared_ptr<WeightCache> cache_;
    WeightArrays weights_;
    DType dtype_;
    py::object dtype_object_;
    std::shared_ptr<const Timetable> timetable_;
    std::int64_t seq_len_ = -1, batch_ = -1;
};

}  // namespace fusedrnn
