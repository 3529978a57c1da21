#include "ops.h"

#include <algorithm>

#include "launches.h"
#include "layers/optimiser.h"

namespace fusedrnn::cuda {

const OpEntries& op_entries_ieee();
const OpEntries& op_entries_f64();
const OpEntries& op_entries(Math math) { return math == Math::f64 ? op_entries_f64() : op_entries_ieee(); }

namespace {

constexpr std::int64_t kMostBlocks = 0x7fffffff;  // along x
constexpr std::int64_t kElementBlocks = 65535;

template <class Args>
void start(Math math, const Entry<Args>& entry, std::int64_t blocks, std::int64_t most, const Args& args,
           Stream stream) {
    if (blocks == 0) return;
    Shape shape;
    shape.grid_x = static_cast<int>(std::min(blocks, most));
    shape.block = kOpThreads;
    Launcher(math, stream).start(entry, shape, args);
}

std::int64_t blocks_of(std::int64_t n, std::int64_t size) { return (n + size - 1) / size; }

}  // namespace

void layer_norm_forward(Math math, const LayerNormArgs& args, Stream stream) {
    if (args.dim == 0) return;
    start(math, op_entries(math).layer_norm, args.n, kMostBlocks, args, stream);
}

void layer_norm_backward(Math math, const LayerNormBackwardArgs& args, Stream stream) {
    if (args.dim == 0) return;
    const OpEntries& entries = op_entries(math);
    start(math, entries.layer_norm_backward, args.n, kMostBlocks, args, stream);
    if (args.n == 0 || (args.dw == nullptr && args.db == nullptr)) return;
    start(math, entries.layer_norm_columns, blocks_of(args.dim, 32), kMostBlocks, args, stream);
}

void cross_entropy(Math math, const CrossEntropyRowsArgs& args, Stream stream) {
    if (args.rows.classes == 0) return;
    start(math, op_entries(math).cross_entropy, args.rows.n, kMostBlocks, args, stream);
}

void sgd_step(Math math, const SgdArgs& args, Stream stream) {
    start(math, op_entries(math).sgd, blocks_of(args.n, kOpThreads), kElementBlocks, args, stream);
}

void adam_step(Math math, AdamArgs args, Stream stream) {
    const AdamBias bias = adam_bias(args.options);
    args.first_bias = bias.first, args.second_bias = bias.second;
    start(math, op_entries(math).adam, blocks_of(args.n, kOpThreads), kElementBlocks, args, stream);
}

}  // namespace fusedrnn::cuda
