#include "bindings/tape_memory.h"

#include <cstring>
#include <string>
#include <string_view>

namespace fusedrnn {
namespace {

// Goes up whenever the kernels lay out a tape in another way.
constexpr std::int64_t kVersion = 1;
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

struct Field {
    const char* name;
    bool is_digest;
};
constexpr Field kFields[] = {{"mark", true},   {"version", false}, {"itemsize", false}, {"lanes", false},
                             {"cell", true},   {"T", false},       {"B", false},        {"I", false},
                             {"H", false},     {"P", false},       {"reverse", false},  {"recompute", false},
                             {"lengths", true}};

}  // namespace

TapeLabel tape_label(const RecurrentCell& cell, const Dims& dims, std::int64_t itemsize, int lanes,
                     const Timetable& timetable, bool recompute) {
    return {kMark,
            kVersion,
            itemsize,
            lanes,
            digest_of(cell.name),
            dims.T,
            dims.B,
            dims.I,
            dims.H,
            dims.projected ? dims.P : 0,
            timetable.reverse() ? 1 : 0,
            recompute ? 1 : 0,
            digest_of(timetable, dims.B)};
}

void write_label(const Array& memory, const TapeLabel& label) {
    std::memcpy(memory.mutable_data<char>(), label.data(), sizeof label);
}

void clear_label(const Array& memory) { std::memset(memory.mutable_data<char>(), 0, sizeof(TapeLabel)); }

void check_label(const Array& memory, const TapeLabel& label) {
    TapeLabel found;
    std::memcpy(found.data(), memory.data<char>(), sizeof found);
    for (std::size_t i = 0; i < std::size(kFields); ++i) {
        if (found[i] == label[i]) continue;
        const std::string start = memory.name() + ": expected the tape of ";
        if (i == 0) throw py::value_error(start + "a call that has ended, got memory without one");
        const std::string name = kFields[i].name;
        if (kFields[i].is_digest)
            throw py::value_error(start + "a call of the same " + name + ", got another");
        throw py::value_error(start + name + "=" + std::to_string(label[i]) + ", got one of " +
                              std::to_string(found[i]));
    }
}

}  // namespace fusedrnn
