// Programs of cells that are data, over the units of the rows of a step.
//
// Each thread has the program's slots to itself, a column of shared memory: their numbers are known at run time only, so
// that they cannot be registers. All threads take the same branches.
#pragma once

#include "cells/program_functions.h"
#include "kernels/program_arguments.h"
#include "kernels/source.h"
#include "philox.h"

namespace fusedrnn::cuda {

// Where the values of a row's unit are that forward and backward both know.
template <class T, class C>
class ProgramValues {
  public:
    FUSEDRNN_DEVICE ProgramValues(const ProgramArgs& args, int p, std::int64_t u)
        : a_(args), p_(p), u_(u), b_(row_at(args.order, p)), H_(args.source.H) {}

    FUSEDRNN_DEVICE C load_value(ValueKind kind, int i) const {
        switch (kind) {
            case ValueKind::kBefore:
                return state(i);
            case ValueKind::kSaved:
                return load(static_cast<const C*>(a_.saved) + saved(i));
            case ValueKind::kUnit:
                return widen(load_constant(static_cast<const T*>(a_.units[i]) + u_));
            case ValueKind::kLink:
                return load(static_cast<const C*>(a_.links) + at(a_.link_count, i));
            case ValueKind::kOperand:
                return widen(load(static_cast<const T*>(a_.operands) + operand(i)));
            default:
                return mask(a_.masks[i], i);
        }
    }
    FUSEDRNN_DEVICE void store_value(ValueKind kind, int i, C value) const {
        switch (kind) {
            case ValueKind::kSaved:
                return store(static_cast<C*>(a_.saved) + saved(i), value);
            case ValueKind::kLink:
                return store(static_cast<C*>(a_.links) + at(a_.link_count, i), value);
            default:
                return store(static_cast<T*>(a_.operands) + operand(i), narrow<T>(value));
        }
    }

  protected:
    // Of value i of `count` in [position][count][H].
    FUSEDRNN_DEVICE std::int64_t at(int count, int i) const {
        return (static_cast<std::int64_t>(p_) * count + i) * H_ + u_;
    }

    const ProgramArgs& a_;
    const int p_;
    const std::int64_t u_, b_, H_;

  private:
    FUSEDRNN_DEVICE std::int64_t saved(int i) const {
        return (static_cast<std::int64_t>(p_) * H_ + u_) * a_.saved_count + i;
    }
    FUSEDRNN_DEVICE std::int64_t operand(int i) const {
        return i * a_.operand_size + static_cast<std::int64_t>(p_) * H_ + u_;
    }
    FUSEDRNN_DEVICE C state(int i) const {
        if (i == 0) {
            const T* const h = hidden_before<T>(a_.source, a_.now, p_, b_);
            return h == nullptr ? C(0) : widen(load_constant(h + u_));
        }
        const C* const s =
            state_before(a_.source, a_.now, p_, b_, i, static_cast<const C*>(a_.states_before), a_.states);
        return s == nullptr ? C(0) : load(s + u_);
    }
    // As csrc/cpu/masks.h draws it.
    FUSEDRNN_DEVICE C mask(const MaskArgs& mask, int i) const {
        if (!a_.draws.drawn) return static_cast<C>(mask.expected);
        const std::int64_t row = mask.each_step ? a_.now.t * a_.source.B + b_ : b_;
        std::uint32_t words[4];
        philox(static_cast<std::uint64_t>(row * ((H_ + 3) / 4) + u_ / 4),
               a_.draws.offset + static_cast<std::uint64_t>(i), a_.draws.seed, words);
        const int w = static_cast<int>(u_ % 4);
        const std::uint32_t word = w == 0 ? words[0] : w == 1 ? words[1] : w == 2 ? words[2] : words[3];
        return static_cast<C>(word <= mask.rule.last ? mask.rule.drawn : mask.rule.other);
    }
};

template <class T, class C>
class ForwardValues : public ProgramValues<T, C> {
  public:
    FUSEDRNN_DEVICE ForwardValues(const ProgramForwardArgs& args, int p, std::int64_t u)
        : ProgramValues<T, C>(args, p, u), f_(args) {}

    FUSEDRNN_DEVICE C load_value(ValueKind kind, int i) const {
        if (kind == ValueKind::kInputGate) return load(static_cast<const C*>(f_.gx) + this->at(f_.gates, i));
        if (kind == ValueKind::kGate) return load(static_cast<const C*>(f_.sums) + this->at(f_.gates, i));
        return ProgramValues<T, C>::load_value(kind, i);
    }
    FUSEDRNN_DEVICE void store_value(ValueKind kind, int i, C value) const {
        if (kind != ValueKind::kAfter) return ProgramValues<T, C>::store_value(kind, i, value);
        if (i > 0) {
            if (f_.after != nullptr) store(static_cast<C*>(f_.after) + this->at(f_.states - 1, i - 1), value);
        } else if (f_.hidden != nullptr) {
            const std::int64_t row = f_.hidden_by_position ? this->p_ : this->b_;
            store(static_cast<T*>(f_.hidden) + row * f_.hidden_stride + this->u_, narrow<T>(value));
        }
    }

  private:
    const ProgramForwardArgs& f_;
};

template <class T, class C>
class BackwardValues : public ProgramValues<T, C> {
  public:
    FUSEDRNN_DEVICE BackwardValues(const ProgramBackwardArgs& args, int p, std::int64_t u)
        : ProgramValues<T, C>(args, p, u), f_(args) {}

    FUSEDRNN_DEVICE C load_value(ValueKind kind, int i) const {
        if (kind == ValueKind::kAfter) return gradient(i);
        if (kind == ValueKind::kUnitGradient) return widen(load(unit_gradient(i)));
        return ProgramValues<T, C>::load_value(kind, i);
    }
    FUSEDRNN_DEVICE void store_value(ValueKind kind, int i, C value) const {
        const std::int64_t gate = this->at(f_.gates, i);
        switch (kind) {
            case ValueKind::kInputGate:
                return store(static_cast<T*>(f_.dgx) + gate, narrow<T>(value));
            case ValueKind::kGate:
                return store(static_cast<T*>(f_.dgh) + gate, narrow<T>(value));
            case ValueKind::kBeforeGradient:
                return store(static_cast<C*>(f_.carry) + this->at(f_.states, i), value);
            case ValueKind::kUnitGradient:
                return store(unit_gradient(i), narrow<T>(value));
            default:
                return ProgramValues<T, C>::store_value(kind, i, value);
        }
    }
    FUSEDRNN_DEVICE void store_initial() const {
        const std::int64_t to = this->b_ * this->H_ + this->u_;
        for (int k = 0; k < f_.states; ++k) {
            if (f_.dinitial[k] == nullptr || (k == 0 && f_.projected)) continue;
            if (k == 0) {
                store(static_cast<T*>(f_.dinitial[0]) + to, narrow<T>(gradient(0)));
            } else {
                store(static_cast<C*>(f_.dinitial[k]) + to, gradient(k));
            }
        }
    }

  private:
    FUSEDRNN_DEVICE T* unit_gradient(int i) const {
        return static_cast<T*>(f_.unit_gradients) + this->at(f_.unit_count, i);
    }
    // What reaches state k after the step: from the later step or, at a row's last one, from the final state; and from the
    // output. With a projection the gradient of h is what came through it.
    FUSEDRNN_DEVICE C gradient(int k) const {
        const std::int64_t u = this->u_, b = this->b_, H = this->H_;
        const int p = this->p_;
        if (k == 0 && f_.projected) return load_constant(static_cast<const C*>(f_.product) + this->at(1, 0));
        C d = 0;
        if (p < f_.later_rows && !is_cut(f_.source, f_.later, p, b)) {
            if (k > 0 || f_.direct_hidden) d = load(static_cast<const C*>(f_.carry) + this->at(f_.states, k));
            if (k == 0 && f_.product != nullptr) {
                d += load_constant(static_cast<const C*>(f_.product) + this->at(1, 0));
            }
        }
        if (p >= f_.later_rows && f_.dfinal[k] != nullptr) {
            d += k == 0 ? C(widen(load_constant(static_cast<const T*>(f_.dfinal[0]) + b * H + u)))
                        : load_constant(static_cast<const C*>(f_.dfinal[k]) + b * H + u);
        }
        if (k == 0 && p < f_.rows && f_.dy != nullptr) {
            d += widen(load_constant(static_cast<const T*>(f_.dy) + b * f_.dy_stride + u));
        }
        return d;
    }

    const ProgramBackwardArgs& f_;
};

// An operation of a vector of one lane.
template <class C>
FUSEDRNN_DEVICE C operate(int operation, C x, C y, C z) {
    using V = Vec<C>;
    [[maybe_unused]] const V a{x}, b{y}, c{z};
    switch (operation) {
#define FUSEDRNN_PROGRAM_CASE(name, arity, expression) \
    case kProgram_##name:                              \
        return V(expression).v;
        FUSEDRNN_PROGRAM_OPERATIONS(FUSEDRNN_PROGRAM_CASE)
#undef FUSEDRNN_PROGRAM_CASE
    }
    return x;
}

template <class C, class Values>
FUSEDRNN_DEVICE void run_program(const ProgramArgs& args, const Values& values) {
    const int stride = block_threads(), constants = args.constant_count;
    C* const slots = shared_memory<C>() + thread_index();
    const auto value = [&](int i, auto&& visit) {
        const int packed = load_constant(args.values + i);
        visit(static_cast<ValueKind>(packed >> kKindShift), packed & ((1 << kKindShift) - 1),
              slots[(constants + i) * stride]);
    };
    for (int i = 0; i < constants; ++i) slots[i * stride] = static_cast<C>(load_constant(args.constants + i));
    for (int i = 0; i < args.inputs; ++i) {
        value(i, [&](ValueKind kind, int k, C& slot) { slot = values.load_value(kind, k); });
    }
    for (int i = 0; i < args.length; ++i) {
        const std::uint16_t* const step = reinterpret_cast<const std::uint16_t*>(args.code + i);
        const C a = slots[load_constant(step + 2) * stride], b = slots[load_constant(step + 3) * stride],
                c = slots[load_constant(step + 4) * stride];
        slots[load_constant(step + 1) * stride] = operate<C>(load_constant(step), a, b, c);
    }
    for (int i = args.inputs; i < args.placed; ++i) {
        value(i, [&](ValueKind kind, int k, C& slot) { values.store_value(kind, k, slot); });
    }
}

// Calls visit(position, unit) for this thread's unit of `rows` rows, if it has one.
template <class Visit>
FUSEDRNN_DEVICE void for_unit(int rows, std::int64_t H, Visit visit) {
    const std::int64_t i = std::int64_t{block_index().x} * block_threads() + thread_index();
    if (i < rows * H) visit(static_cast<int>(i / H), i % H);
}

template <class T, class C>
FUSEDRNN_KERNEL void program_forward(ProgramForwardArgs args) {
    for_unit(args.rows, args.source.H,
             [&](int p, std::int64_t u) { run_program<C>(args, ForwardValues<T, C>(args, p, u)); });
}

template <class T, class C>
FUSEDRNN_KERNEL void program_backward(ProgramBackwardArgs args) {
    const int rows = args.stores_initial && args.later_rows > args.rows ? args.later_rows : args.rows;
    for_unit(rows, args.source.H, [&](int p, std::int64_t u) {
        const BackwardValues<T, C> values(args, p, u);
        if (p < args.rows) {
            run_program<C>(args, values);
        } else {
            values.store_initial();
        }
    });
}

}  // namespace fusedrnn::cuda
