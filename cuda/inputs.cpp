#include "inputs.h"

#include <algorithm>

namespace fusedrnn::cuda {

std::int64_t input_block_steps(const Dims& dims, std::int64_t gates, Math math) {
    const std::int64_t step_bytes = std::max<std::int64_t>(1, dims.B * gates * compute_bytes(math));
    return std::clamp<std::int64_t>(input_block_bytes / step_bytes, 1, std::max<std::int64_t>(1, dims.T));
}

Inputs::Inputs(const Part& part, std::int64_t steps, const Launcher& launcher, const ScheduleCopy& schedule,
               Arena& arena)
    : p_(part),
      launcher_(launcher),
      schedule_(schedule),
      traits_(launcher.entries().traits[part.cell]),
      item_(storage_bytes(part.math)),
      gates_(traits_.gates * part.dims.H),
      stride_(matrix_stride(schedule, part.x.t_stride, part.x.b_stride)),
      rows_(arena.take(stride_ != 0 ? 0 : steps * part.dims.B * part.dims.I * item_)) {}

std::int64_t Inputs::partial_bytes(std::int64_t steps) const {
    return launcher_.partial_bytes(steps * p_.dims.B, gates_, p_.dims.I);
}

Matrix Inputs::rows(std::int64_t first, std::int64_t count) const {
    const std::int64_t I = p_.dims.I;
    if (stride_ != 0) return {offset_bytes(p_.x.data, first * p_.x.t_stride * item_), stride_};
    RowsArgs args{};
    args.schedule = schedule_.device;
    args.first = first;
    args.from = p_.x;
    args.compact = rows_;
    args.n = I;
    launcher_.move_rows(launcher_.entries().gather_rows, args, count);
    return {rows_, I};
}

void Inputs::project(std::int64_t first, std::int64_t count, void* gx, void* partial) const {
    Product product{};
    product.layout = Layout::kNT;
    product.m = schedule_.offset(first + count) - schedule_.offset(first);
    product.n = gates_;
    product.k = p_.dims.I;
    product.a = rows(first, count);
    product.b = {p_.weights.w_ih, p_.dims.I};
    product.c = gx;
    product.c_stride = gates_;
    product.bias[0] = p_.weights.b_ih;
    if (!traits_.split_gates) product.bias[1] = p_.weights.b_hh;
    launcher_.multiply(product, partial);
}

}  // namespace fusedrnn::cuda
