#!/usr/bin/env python3
"""Check the machine code of the hot loops, the tiles of csrc/cpu/gemm.h and outer.h (x86-64, objdump).

For every tile in the objects of avx2 and avx512, float and double, the innermost loop has to

1. touch no stack and write no memory: accumulators that do not stay in registers cost most of the speed;
2. multiply and add vectors of the tile's lanes as often as it has accumulators, or a multiple of it;
3. take the operands of every multiply-add from registers: loads folded into them are done again for each.

usage: check_hot_loops.py BUILD_DIR
"""

from __future__ import annotations

import math
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

TILES = re.compile(r"fusedrnn::(?P<isa>\w+)::(?P<name>micro_kernel|outer_tile)<(?P<arguments>[\w, ]+)>\(")
# How many different tiles each instruction set has at least (some are inlined where they are used): a renamed
# function is not a passed check.
LEAST_TILES = 40
FULL_BYTES = {"avx2": 32, "avx512": 64}
REGISTERS = {32: "%ymm", 64: "%zmm"}
SUFFIX = {"float": "ps", "double": "pd"}


@dataclass
class Instruction:
    """One instruction of a function; target is the address a jump goes to."""

    address: int
    text: str
    target: int | None


def functions(path: Path) -> dict[str, list[Instruction]]:
    """The disassembled tiles of an object file, by demangled name."""
    command = ["objdump", "--disassemble", "--wide", "--demangle", "--no-show-raw-insn", str(path)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, list[Instruction]] = {}
    body: list[Instruction] | None = None
    for line in text.splitlines():
        if line.endswith(">:"):
            name = line.split(" ", 1)[1].strip("<>:")
            body = found.setdefault(name, []) if TILES.search(name) else None
        elif body is not None and (parts := re.match(r"\s*([0-9a-f]+):\t(.+)", line)):
            jump = re.match(r"j\w+\s+([0-9a-f]+)", parts[2])
            target = int(jump[1], 16) if jump else None
            body.append(Instruction(int(parts[1], 16), parts[2].split("<")[0].strip(), target))
    return found


def innermost_loops(body: list[Instruction]) -> list[list[Instruction]]:
    """The instructions of every backward jump's range that holds no other such range."""
    ranges = [(i.target, i.address) for i in body if i.target is not None and i.target <= i.address]
    ranges = [range_ for range_ in ranges if range_[0] >= body[0].address]
    inner = [
        (first, last)
        for first, last in ranges
        if not any((a, b) != (first, last) and first <= a and b <= last for a, b in ranges)
    ]
    return [[i for i in body if first <= i.address <= last] for first, last in inner]


def stack_operands(loop: list[Instruction], frame_pointer: bool) -> list[str]:
    """The instructions that read or write the stack, or write any memory."""
    base = r"\(%r[sb]p" if frame_pointer else r"\(%rsp"
    stack = re.compile(rf"(push|pop|call|ret)|.*{base}|v?mov\w* .*\)$")
    return [i.text for i in loop if stack.match(i.text)]


def check_tile(name: str, body: list[Instruction]) -> list[str]:
    """What is wrong with one tile."""
    tile = TILES.search(name)
    assert tile is not None
    dtype, *numbers = tile["arguments"].split(", ")
    sizes = [int(number) for number in numbers if number not in ("false", "true")]  # looking ahead or not
    width = FULL_BYTES[tile["isa"]]
    accumulators = math.prod(sizes)
    if tile["name"] == "micro_kernel":
        rows, panels, gates, lanes, last = sizes
        width = lanes * (4 if dtype == "float" else 8)
        accumulators = rows * (panels * gates + last)
    multiply_add = re.compile(rf"vfn?m(add|sub)\d+{SUFFIX[dtype]} .*{REGISTERS[width]}")
    frame_pointer = any(re.match(r"mov\s+%rsp,%rbp", i.text) for i in body)
    loops = [loop for loop in innermost_loops(body) if any("vfm" in i.text for i in loop)]
    if len(loops) != 1:
        stack = [text for loop in loops for text in stack_operands(loop, frame_pointer)]
        return [
            f"{name}: expected one innermost loop with multiply-adds, got {len(loops)}, "
            f"with {len(stack)} uses of the stack"
        ]
    (loop,) = loops
    messages = []
    if stack := stack_operands(loop, frame_pointer):
        messages.append(f"{name}: {len(stack)} uses of the stack in the loop: {'; '.join(stack[:3])}")
    found = [i.text for i in loop if multiply_add.match(i.text)]
    if not found or len(found) % accumulators:
        messages.append(f"{name}: expected a multiple of {accumulators} multiply-adds, got {len(found)}")
    if folded := [text for text in found if "(" in text]:
        messages.append(f"{name}: {len(folded)} multiply-adds from memory: {folded[0]}")
    return messages


def main() -> int:
    """Print what is wrong; the exit status is 0 only if nothing is."""
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    messages = []
    for isa in FULL_BYTES:
        tiles: dict[str, list[Instruction]] = {}
        for path in sorted(Path(sys.argv[1]).rglob(f"fusedrnn_{isa}.dir/**/*.o")):
            tiles.update(functions(path))
        if len(tiles) < LEAST_TILES:
            messages.append(f"{isa}: expected at least {LEAST_TILES} tiles, got {len(tiles)}")
        wrong = [message for name, body in sorted(tiles.items()) for message in check_tile(name, body)]
        print(f"{len(tiles)} tiles of {isa} checked, {len(wrong)} problems")
        messages += wrong
    for message in messages:
        print(re.sub(r">\(.*?\)(?=:)", ">", message))
    return 1 if messages else 0


if __name__ == "__main__":
    sys.exit(main())
