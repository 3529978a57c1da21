// The parameters of a cell as its header lists them. Everything else follows the list: what Python has to give, checks,
// digests, packing, gradients and byte counts.
#pragma once

#include <cstdint>

namespace fusedrnn {

enum class Role : int {
    kInputWeight,   // times x
    kHiddenWeight,  // times h
    kInputBias,     // added to the first product,
    kHiddenBias,    // and to the second
    kProjection,    // times the cell's h, which gives the output
    kPerUnit,       // handed to the cell: values of each unit
};

// kRefused: it has its place in the list, where only None may stand.
enum class Need : int { kRequired, kOptional, kRefused };

// An axis: `times` of 1, I, H or P.
enum class Size : int { kOne, kInputs, kHidden, kOutputs };
struct Extent {
    int times;
    Size size;
};

struct Parameter {
    const char* name;
    Role role;
    Need need;
    Extent rows, columns;  // columns of one: a vector
};

inline constexpr int kMaxStates = 8;
inline constexpr int kMaxParameters = 21;
inline constexpr int kMaxUnitParameters = 16, kMaxUnitValues = 64;  // of the parameters per unit

template <int kCount>
struct Schema {
    static_assert(kCount <= kMaxParameters);
    Parameter list[kCount];
};

inline constexpr Extent kVector{1, Size::kOne};

// values x H, required.
consteval Parameter per_unit(const char* name, int values) {
    return {name, Role::kPerUnit, Need::kRequired, {values, Size::kHidden}, kVector};
}

// What a cell has whose gates are W_ih x + b_ih + W_hh h + b_hh, and then what it has besides.
template <class... More>
consteval Schema<5 + sizeof...(More)> dense_parameters(int gates, Need projection, More... more) {
    const Extent rows{gates, Size::kHidden};
    return {{{"weight_ih", Role::kInputWeight, Need::kRequired, rows, {1, Size::kInputs}},
             {"weight_hh", Role::kHiddenWeight, Need::kRequired, rows, {1, Size::kOutputs}},
             {"bias_ih", Role::kInputBias, Need::kOptional, rows, kVector},
             {"bias_hh", Role::kHiddenBias, Need::kOptional, rows, kVector},
             {"weight_hr", Role::kProjection, projection, {1, Size::kOutputs}, {1, Size::kHidden}},
             more...}};
}

// The place of the parameter of a role, of which there is one at most; -1 where there is none.
template <int kCount>
consteval int place_of(const Schema<kCount>& schema, Role role) {
    for (int i = 0; i < kCount; ++i) {
        if (schema.list[i].role == role) return i;
    }
    return -1;
}

// Values that each unit has, of all parameters before place `end`.
template <int kCount>
consteval int per_unit_values(const Schema<kCount>& schema, int end = kCount) {
    int values = 0;
    for (int i = 0; i < end; ++i) {
        if (schema.list[i].role == Role::kPerUnit) values += schema.list[i].rows.times;
    }
    return values;
}

// What the hosts know of a cell: see list.h.
struct CellTraits {
    const char* name;
    int gates, states, saved, per_unit;
    bool split_gates, direct_hidden;
    const Parameter* parameters;
    int parameter_count;

    // Of the parameter with this role, -1 where there is none.
    int place(Role role) const {
        for (int i = 0; i < parameter_count; ++i) {
            if (parameters[i].role == role) return i;
        }
        return -1;
    }
};

}  // namespace fusedrnn
