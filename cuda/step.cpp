// The steps launched one by one: the family that can run everything.
#include <algorithm>

#include "cells.h"
#include "steps.h"

namespace fusedrnn::cuda {

namespace {

class StepForward final : public ForwardSteps {
  public:
    StepForward(const ForwardPass& pass, Arena& arena) : pass_(pass), p_(pass.problem) {
        const Dims& d = p_.dims;
        by_library_ = pass.launcher.multiplies_steps(d, pass.gates, p_.schedule);
        product_ = arena.take(by_library_ ? d.B * pass.gates * compute_bytes(p_.math) : 0);
        hidden_ = arena.take(d.projected && p_.hidden == nullptr ? d.B * d.H * storage_bytes(p_.math) : 0);
    }

    std::int64_t partial_bytes() const override {
        const Dims& d = p_.dims;
        return by_library_ ? pass_.launcher.partial_bytes(d.B, pass_.gates, d.P) : 0;
    }

    void run(std::int64_t first, std::int64_t count) const override {
        for (std::int64_t i = 0; i < count; ++i) {
            run_step(first, p_.schedule.reverse ? first + count - 1 - i : first + i);
        }
    }

  private:
    // The states beyond h after step t.
    void* states_after(std::int64_t t) const {
        if (p_.states == nullptr) return pass_.states;
        const std::int64_t beyond = pass_.traits.states - 1;
        return offset_bytes(p_.states,
                            pass_.schedule.offset(t) * beyond * p_.dims.H * compute_bytes(p_.math));
    }

    // Whether all rows that the recurrent product may read are fit for loads of 16 bytes.
    bool is_vector() const {
        const std::int64_t P = p_.dims.P;
        return pass_.launcher.is_vector(p_.weights.w_hh, P, P) &&
               pass_.launcher.is_vector(p_.y.data, P, p_.y.t_stride, p_.y.b_stride) &&
               pass_.launcher.is_vector(p_.initial[0], P, P) &&
               pass_.launcher.is_vector(p_.reset[0], P, p_.reset_stride[0]);
    }

    // W_hh h after step t, or of the initial state; null where that is zero.
    const void* multiply_step(std::int64_t t) const {
        const Dims& d = p_.dims;
        const std::int64_t item = storage_bytes(p_.math);
        Product product{};
        product.layout = Layout::kNT;
        product.m = d.B, product.n = pass_.gates, product.k = d.P;
        product.a = {p_.initial[0], d.P};
        if (t >= 0 && t < d.T) product.a = {offset_bytes(p_.y.data, t * p_.y.t_stride * item), p_.y.b_stride};
        if (product.a.data == nullptr) return nullptr;
        product.b = {p_.weights.w_hh, d.P};
        product.c = product_, product.c_stride = pass_.gates;
        pass_.launcher.multiply(product, pass_.partial);
        return product_;
    }

    void run_step(std::int64_t block_first, std::int64_t t) const {
        const Dims& d = p_.dims;
        const std::int64_t item = storage_bytes(p_.math), compute = compute_bytes(p_.math),
                           offset = pass_.schedule.offset(t);
        const std::int64_t before = p_.schedule.reverse ? t + 1 : t - 1;
        void* const y = offset_bytes(p_.y.data, t * p_.y.t_stride * item);
        StepForwardArgs args{};
        args.w_hh = p_.weights.w_hh;
        args.b_hh = p_.weights.b_hh;
        args.gx =
            offset_bytes(pass_.gx, (offset - pass_.schedule.offset(block_first)) * pass_.gates * compute);
        args.source = state_source(p_);
        args.now = pass_.schedule.time_step(t);
        args.states_before = before >= 0 && before < d.T ? states_after(before) : nullptr;
        args.order = pass_.schedule.device.order;
        args.hidden = y;
        args.hidden_stride = p_.y.b_stride;
        if (d.projected) {
            args.hidden = p_.hidden == nullptr ? hidden_ : offset_bytes(p_.hidden, offset * d.H * item);
            args.hidden_stride = d.H;
            args.hidden_by_position = true;
        }
        args.states = states_after(t);
        args.saved = offset_bytes(p_.saved, offset * d.H * pass_.traits.saved * compute);
        args.rows = static_cast<int>(pass_.schedule.active(t));
        if (by_library_) args.product = multiply_step(before);
        pass_.launcher.step(p_.cell->steps(p_.math).forward, args, is_vector(), args.rows, d.H, d.P);
        if (d.projected) pass_.launcher.project(p_, args.hidden, t, args.order, args.rows);
    }

    const ForwardPass& pass_;
    const ForwardProblem& p_;
    bool by_library_;  // whether cuBLAS makes the recurrent products
    void *product_, *hidden_;
};

class StepBackward final : public BackwardSteps {
  public:
    StepBackward(const BackwardPass& pass, Arena& arena)
        : pass_(pass), p_(pass.problem), item_(storage_bytes(p_.math)), compute_(compute_bytes(p_.math)) {
        const Dims& d = p_.dims;
        w_hh_t_ = arena.take(pass.gates * d.P * item_);
        w_hr_t_ = arena.take(d.projected ? d.P * d.H * item_ : 0);
        carry_ = arena.take(d.B * pass.traits.states * d.H * compute_);
        by_library_ = pass.launcher.multiplies_steps(d, pass.gates, p_.schedule);
        product_ = arena.take(by_library_ ? d.B * d.H * compute_ : 0);
    }

    std::int64_t partial_bytes() const override {
        const Dims& d = p_.dims;
        return by_library_ ? pass_.launcher.partial_bytes(d.B, d.H, pass_.gates) : 0;
    }

    void run() const override {
        const Dims& d = p_.dims;
        if (pass_.schedule.longest() == 0) return;
        pass_.launcher.transpose(p_.weights.w_hh, pass_.gates, d.P, w_hh_t_);
        if (d.projected) pass_.launcher.transpose(p_.weights.w_hr, d.P, d.H, w_hr_t_);
        pass_.sweep([this](std::int64_t t, std::int64_t later) { run_step(t, later); });
    }

  private:
    // Step t after step `later` of the sweep; -1: none. Without a t only the initial state's gradients are
    // left.
    void run_step(std::int64_t t, std::int64_t later) const {
        const Dims& d = p_.dims;
        StepBackwardArgs args{};
        args.source = state_source(p_);
        args.order = pass_.schedule.device.order;
        args.rows = t < 0 ? 0 : static_cast<int>(pass_.schedule.active(t));
        args.later_rows = later < 0 ? 0 : static_cast<int>(pass_.schedule.active(later));
        if (t >= 0) args.now = pass_.schedule.time_step(t);
        if (later >= 0) args.later = pass_.schedule.time_step(later);
        if (t >= 0) args.dy = offset_bytes(p_.dy.data, t * p_.dy.t_stride * item_);
        args.dy_stride = p_.dy.b_stride;
        std::copy_n(p_.dfinal, kMaxStates, args.dfinal);
        std::copy_n(p_.dinitial, kMaxStates, args.dinitial);
        args.product_w = w_hh_t_;
        args.product_rows = later < 0 ? nullptr : pass_.gate_gradients(later);
        args.k = static_cast<int>(pass_.gates);
        args.carry = carry_;
        if (t >= 0) set_tape(args, t);
        if (d.projected) {  // what is left of the step is a product with W_hr
            args.product_rows = pass_.output_gradient(args, w_hh_t_, args.k, t, later);
            args.projected = true;
            args.product_w = w_hr_t_;
            args.k = static_cast<int>(d.P);
        }
        if (by_library_ && later >= 0) args.product = multiply_step(later);
        const bool vector = pass_.launcher.is_vector(args.product_w, args.k, args.k) &&
                            pass_.launcher.is_vector(args.product_rows, args.k, args.k);
        pass_.launcher.step(p_.cell->steps(p_.math).backward, args, vector,
                            std::max(args.rows, args.later_rows), d.H, args.k);
    }

    // The gate gradients of step t times W_hh.
    const void* multiply_step(std::int64_t t) const {
        const Dims& d = p_.dims;
        Product product{};
        product.layout = Layout::kNT;
        product.m = d.B, product.n = d.H, product.k = pass_.gates;
        product.a = {pass_.gate_gradients(t), pass_.gates};
        product.b = {w_hh_t_, pass_.gates};
        product.c = product_, product.c_stride = d.H;
        pass_.launcher.multiply(product, pass_.partial);
        return product_;
    }

    void set_tape(StepBackwardArgs& args, std::int64_t t) const {
        const std::int64_t H = p_.dims.H, offset = pass_.schedule.offset(t), beyond = pass_.traits.states - 1;
        const std::int64_t before = p_.schedule.reverse ? t + 1 : t - 1;
        if (before >= 0 && before < p_.dims.T) {
            args.states_before =
                offset_bytes(p_.states, pass_.schedule.offset(before) * beyond * H * compute_);
        }
        args.saved = offset_bytes(pass_.saved, offset * H * pass_.traits.saved * compute_);
        args.dgh = offset_bytes(pass_.dgh, offset * pass_.gates * item_);
        args.dgx = offset_bytes(pass_.dgx, offset * pass_.gates * item_);
    }

    const BackwardPass& pass_;
    const BackwardProblem& p_;
    const std::int64_t item_, compute_;
    bool by_library_;
    void *w_hh_t_, *w_hr_t_, *carry_, *product_;
};

}  // namespace

std::unique_ptr<ForwardSteps> step_forward_steps(const ForwardPass& pass, Arena& arena) {
    if (pass.problem.cell->programs != nullptr) return program_forward_steps(pass, arena);
    return std::make_unique<StepForward>(pass, arena);
}
std::unique_ptr<BackwardSteps> step_backward_steps(const BackwardPass& pass, Arena& arena) {
    if (pass.problem.cell->programs != nullptr) return program_backward_steps(pass, arena);
    return std::make_unique<StepBackward>(pass, arena);
}

}  // namespace fusedrnn::cuda
