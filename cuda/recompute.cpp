#include "recompute.h"

#include <algorithm>

namespace fusedrnn::cuda {

Recompute::Recompute(const BackwardProblem& problem, const Launcher& launcher, const ScheduleCopy& schedule,
                     const Inputs& inputs, Arena& arena)
    : p_(problem),
      launcher_(launcher),
      schedule_(schedule),
      inputs_(inputs),
      traits_(*problem.cell),
      gates_(traits_.gates * problem.dims.H),
      steps_(is_needed(problem) ? input_block_steps(problem.dims, gates_, problem.math) : 0) {
    const std::int64_t compute = compute_bytes(p_.math), block = steps_ * p_.dims.B * gates_ * compute;
    const DevicePrograms* const programs = problem.cell->programs;
    gx_ = arena.take(block);
    gh_ = arena.take(traits_.split_gates && programs == nullptr ? block : 0);
    saved_ = arena.take(steps_ > 0 ? schedule_.rows() * p_.dims.H * traits_.saved * compute : 0);
    moments_ = nullptr;
    if (programs == nullptr || steps_ == 0 || schedule_.rows() == 0) return;
    moments_ = arena.take(schedule_.rows() * programs->cell.norms * compute);
    again_.cell = p_.cell, again_.math = p_.math, again_.dims = p_.dims, again_.schedule = p_.schedule;
    again_.weights = p_.weights, again_.draws = p_.draws;
    again_.y = {const_cast<void*>(p_.y.data), p_.y.t_stride, p_.y.b_stride};
    for (int k = 0; k < kMaxStates; ++k) {
        again_.initial[k] = p_.initial[k], again_.reset[k] = p_.reset[k];
        again_.reset_stride[k] = p_.reset_stride[k];
    }
    again_.saved = saved_, again_.moments = moments_;
    again_.states = const_cast<void*>(p_.states);
    pass_ = std::make_unique<ForwardPass>(
        ForwardPass{again_, launcher_, schedule_, traits_, gates_, steps_, gx_, again_.states, nullptr});
    replay_ = program_replay_steps(*pass_, arena);
}

bool Recompute::is_needed(const BackwardProblem& problem) {
    return problem.saved == nullptr && problem.cell->saved > 0;
}

std::int64_t Recompute::partial_bytes() const {
    if (replay_ != nullptr) return std::max(inputs_.partial_bytes(steps_), replay_->partial_bytes());
    return std::max(inputs_.partial_bytes(steps_),
                    launcher_.partial_bytes(steps_ * p_.dims.B, gates_, p_.dims.P));
}

void Recompute::run(const void* hidden_before, void* partial) {
    const std::int64_t total = schedule_.longest();
    if (replay_ != nullptr) pass_->partial = partial;
    for (std::int64_t first = 0; first < total; first += steps_) {
        const std::int64_t count = std::min(steps_, total - first);
        if (replay_ == nullptr) {
            run_block(first, count, hidden_before, partial);
        } else {
            inputs_.project(first, count, gx_, partial);
            replay_->run(first, count);
        }
    }
}

void Recompute::run_block(std::int64_t first, std::int64_t count, const void* hidden_before,
                          void* partial) const {
    const Dims& d = p_.dims;
    const std::int64_t offset = schedule_.offset(first);
    const bool split = traits_.split_gates;
    inputs_.project(first, count, gx_, partial);
    Product product{};
    product.layout = Layout::kNT;
    product.m = schedule_.offset(first + count) - offset;
    product.n = gates_;
    product.k = d.P;
    product.a = {offset_bytes(hidden_before, offset * d.P * storage_bytes(p_.math)), d.P};
    product.b = {p_.weights.w_hh, d.P};
    product.c = split ? gh_ : gx_;
    product.c_stride = gates_;
    product.bias[0] = split ? p_.weights.b_hh : nullptr;
    product.accumulate = !split;
    launcher_.multiply(product, partial);
    RecomputeArgs args{};
    args.schedule = schedule_.device;
    args.first = first;
    args.source = state_source(p_);
    args.gx = gx_, args.gh = gh_;
    args.states = p_.states;
    args.saved = offset_bytes(saved_, offset * d.H * traits_.saved * compute_bytes(p_.math));
    launcher_.start(p_.cell->steps(p_.math).recompute, launcher_.rows_shape(count, d.B), args);
}

}  // namespace fusedrnn::cuda
