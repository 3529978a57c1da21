// The operands of a sum over rows: outer.h.
#pragma once

#include <cstdint>

#include "cpu/layout.h"
#include "cpu/team.h"

namespace fusedrnn::FUSEDRNN_ISA {

template <class T>
struct OuterArgs {
    const T* a;  // panel j, row k, gate g, lane l at a + j * a_panel + k * row_gates * L + g * apart(j) + l
    std::int64_t a_panel, row_gates;
    std::int64_t gates, units;  // of row_gates the first
    const T* const* x;          // `rows` rows of `columns` values
    std::int64_t rows, columns;
    T* dw;       // (gates*H, columns)
    T* buffer;   // panel_depth(rows) vectors for each of the columns
    Team& team;  // ends early once it is cancelled
    int member;
    std::int64_t dw_stride = 0;  // of the rows of dw, `columns` where it is 0
    std::int64_t room = 0;       // of each gate for its units (unit_room); whole vectors where it is 0

    // Of panel j: how far apart its gates are.
    std::int64_t apart(std::int64_t j) const {
        constexpr std::int64_t L = Vec<T>::kLanes;
        return room == 0 ? L : smaller(L, room - j * L);
    }
};

// Goes through the values of a panel of A, gate after gate, and finds their rows of dW: null where there is no unit.
template <class T>
class SumRows {
  public:
    SumRows(const OuterArgs<T>& p, std::int64_t j, std::int64_t value)
        : p_(p),
          first_(j * Vec<T>::kLanes),
          apart_(p.apart(j)),
          stride_(p.dw_stride == 0 ? p.columns : p.dw_stride),
          gate_(apart_ == Vec<T>::kLanes ? value / Vec<T>::kLanes : value / apart_),
          unit_(value - gate_ * apart_) {}
    std::int64_t stride() const { return stride_; }
    T* next() {
        const bool found = gate_ < p_.gates && first_ + unit_ < p_.units;
        T* const row = found ? p_.dw + (gate_ * p_.units + first_ + unit_) * stride_ : nullptr;
        if (++unit_ == apart_) {
            unit_ = 0;
            ++gate_;
        }
        return row;
    }

  private:
    const OuterArgs<T>& p_;
    std::int64_t first_, apart_, stride_, gate_, unit_;
};

}  // namespace fusedrnn::FUSEDRNN_ISA
