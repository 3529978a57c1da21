#include "bindings/tape_memory.h"

#include <chrono>
#include <cstring>
#include <string>
#include <string_view>

#include "bindings/tape.h"

namespace fusedrnn {
namespace {

// Goes up whenever the kernels lay out a tape in another way.
constexpr std::int64_t kVersion = 2;
constexpr std::int64_t kMark = 0x65706174'6e6e7266;  // "frnntape"

// FNV-1a, by words.
std::int64_t mixed(std::uint64_t digest, std::int64_t value) {
    return static_cast<std::int64_t>((digest ^ static_cast<std::uint64_t>(value)) * 0x100000001b3u);
}

std::int64_t digest_of(std::string_view text) {
    std::int64_t digest = 0;
    for (const char letter : text) digest = mixed(static_cast<std::uint64_t>(digest), letter);
    return digest;
}

std::int64_t digest_of(const Timetable& timetable, std::int64_t batch) {
    const Schedule schedule = timetable.view(nullptr);
    std::int64_t digest = 0;
    for (std::int64_t p = 0; p < batch; ++p) {
        digest = mixed(static_cast<std::uint64_t>(digest), schedule.order[p]);
        digest = mixed(static_cast<std::uint64_t>(digest), schedule.length[p]);
    }
    return digest;
}

// Which of the arguments that may be left out there were.
std::int64_t digest_of_given(const LayerTape& tape) {
    std::int64_t digest = tape.arrays.resets.given() ? 1 : 0;
    const auto add = [&](bool given) { digest = mixed(static_cast<std::uint64_t>(digest), given ? 1 : 0); };
    for (int k = 0; k < tape.cell.states; ++k) {
        add(tape.arrays.initial[k].given());
        add(tape.arrays.reset[k].given());
    }
    for (int i = 0; i < tape.cell.parameter_count; ++i) add(tape.has_parameter[i]);
    return digest;
}

struct Field {
    const char* name;
    bool is_digest;
};
constexpr Field kFields[] = {
    {"mark", true},     {"version", false},   {"itemsize", false}, {"lanes", false},    {"cell", true},
    {"T", false},       {"B", false},         {"I", false},        {"H", false},        {"P", false},
    {"reverse", false}, {"recompute", false}, {"lengths", true},   {"arguments", true}, {"compute", true}};

}  // namespace

TapeLabel tape_label(const LayerTape& tape, std::int64_t itemsize, int lanes, bool recompute) {
    const Dims& dims = tape.dims;
    const Timetable& timetable = *tape.timetable;
    return {kMark,
            kVersion,
            itemsize,
            lanes,
            digest_of(tape.cell.name),
            dims.T,
            dims.B,
            dims.I,
            dims.H,
            dims.projected ? dims.P : 0,
            timetable.reverse() ? 1 : 0,
            recompute ? 1 : 0,
            digest_of(timetable, dims.B),
            digest_of_given(tape),
            static_cast<std::int64_t>(tape.cell.compute)};
}

void write_label(LayerTape& tape, const TapeLabel& label) {
    tape.label = label;
    // What no other call has, in this process or in one that shares the memory.
    tape.label.back() = std::chrono::steady_clock::now().time_since_epoch().count();
    std::memcpy(tape.memory.mutable_data<char>(), tape.label.data(), sizeof label);
}

void clear_label(const LayerTape& tape) {
    std::memset(tape.memory.mutable_data<char>(), 0, sizeof(TapeLabel));
}

void take_label(LayerTape& tape, const TapeLabel& label) {
    TapeLabel& found = tape.label;
    std::memcpy(found.data(), tape.memory.data<char>(), sizeof found);
    for (std::size_t i = 0; i < std::size(kFields); ++i) {
        if (found[i] == label[i]) continue;
        const std::string start = tape.memory.name() + ": expected the tape of ";
        if (i == 0) throw py::value_error(start + "a call that has ended, got memory without one");
        const std::string name = kFields[i].name;
        if (kFields[i].is_digest)
            throw py::value_error(start + "a call of the same " + name + ", got another");
        throw py::value_error(start + name + "=" + std::to_string(label[i]) + ", got one of " +
                              std::to_string(found[i]));
    }
}

void check_label(const LayerTape& tape) {
    if (!tape.memory.given()) return;
    if (std::memcmp(tape.memory.data<char>(), tape.label.data(), sizeof tape.label) == 0) return;
    throw std::runtime_error("tape: expected " + tape.memory.name() +
                             " as it was after forward, got memory that has been written to; each tape needs "
                             "its own until backward "
                             "was called");
}

}  // namespace fusedrnn
