#!/usr/bin/env python3
"""Check that a build cannot die with SIGILL on an old CPU, from its object files (x86-64, objdump and nm).

1. No VEX or EVEX instruction (AVX and everything after it) outside of the kernels of that ISA.
2. No function that the linker may merge is defined for two ISAs, or for an ISA and the baseline: it would
   keep either copy for both.
3. The modules, _core and where the build has it _cuda, export their init functions and nothing else.

usage: check_baseline_isa.py BUILD_DIR
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from pathlib import Path

OBJECT_DIR = re.compile(r"CMakeFiles/(_core|_cuda|cuda_\w+|fusedrnn_(?P<isa>\w+))\.dir/")
BASELINE = ("baseline", "scalar")  # groups of objects that must run on every CPU
LEGACY_PREFIXES = {0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3}
VECTOR_PREFIXES = {0x62, 0xC4, 0xC5}  # EVEX, three-byte VEX, two-byte VEX; no other meaning in 64-bit code


def objects_by_group(build_dir: Path) -> dict[str, list[Path]]:
    """The object files of each kernel ISA, and of "baseline"."""
    groups: dict[str, list[Path]] = {}
    for path in sorted(build_dir.rglob("*.o")):
        if found := OBJECT_DIR.search(path.as_posix()):
            groups.setdefault(found["isa"] or "baseline", []).append(path)
    return groups


def is_vector(code: bytes) -> bool:
    """Whether an instruction is VEX- or EVEX-encoded."""
    for byte in code:
        if byte not in LEGACY_PREFIXES:
            return byte in VECTOR_PREFIXES
    return False


def vector_instructions(path: Path) -> list[str]:
    """The disassembled lines of a file that hold a VEX or EVEX instruction, each with its function."""
    command = ["objdump", "--disassemble", "--wide", "--demangle", "--insn-width=16", str(path)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    function, found = "?", []
    for line in text.splitlines():
        if line.endswith(">:"):
            function = line.split(" ", 1)[1]
        fields = line.split("\t")
        if len(fields) >= 3 and is_vector(bytes.fromhex(fields[1])):
            found.append(f"{function} {fields[2].strip()}")
    return found


def mergeable_functions(path: Path) -> set[str]:
    """The weak functions that an object file defines (weak data, V and u, holds no instructions)."""
    command = ["nm", "--defined-only", "--format=posix", str(path)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rows = (line.split() for line in text.splitlines())
    return {row[0] for row in rows if len(row) >= 2 and row[1] == "W"}


def check_instructions(groups: dict[str, list[Path]]) -> list[str]:
    """One message for each object of the baseline that holds vector instructions."""
    messages = []
    for group in BASELINE:
        for path in groups[group]:
            if found := vector_instructions(path):
                shown = "\n    ".join(found[:5])
                messages.append(f"{path}: {len(found)} VEX or EVEX instructions in {group} code\n    {shown}")
    return messages


def check_functions(groups: dict[str, list[Path]]) -> list[str]:
    """One message for each mergeable function that two groups define, unless both are baseline code."""
    owners: dict[str, set[str]] = {}
    for group, paths in groups.items():
        for path in paths:
            for symbol in mergeable_functions(path):
                owners.setdefault(symbol, set()).add("baseline" if group in BASELINE else group)
    return [f"{symbol}: defined by {sorted(who)}" for symbol, who in sorted(owners.items()) if len(who) > 1]


def check_exports(module: Path) -> list[str]:
    """One message for each symbol that a module exports beside its init function."""
    command = ["nm", "--dynamic", "--defined-only", "--format=posix", str(module)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    names = {line.split()[0] for line in text.splitlines() if line.strip()}
    init = "PyInit_" + module.name.partition(".")[0]
    messages = [f"{module.name}: exports {name}" for name in sorted(names - {init})]
    return messages if init in names else [*messages, f"{module.name}: lacks {init}"]


def main() -> int:
    """Print what is wrong; the exit status is 0 only if nothing is."""
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    build_dir = Path(sys.argv[1])
    groups = objects_by_group(build_dir)
    modules = sorted([*build_dir.glob("_core.*.so"), *build_dir.glob("_cuda.*.so")])
    names = [module.name.partition(".")[0] for module in modules]
    missing = [group for group in BASELINE if group not in groups]
    has_cuda = any("/_cuda.dir/" in path.as_posix() for path in groups.get("baseline", []))
    if missing or names != ["_core", "_cuda"][: 1 + has_cuda]:
        print(f"{build_dir}: no objects of {missing}, modules {names}: not a finished build")
        return 2
    messages = [message for module in modules for message in check_exports(module)]
    if platform.machine() in ("x86_64", "AMD64"):
        messages += check_instructions(groups) + check_functions(groups)
    for message in messages:
        print(message)
    counts = ", ".join(f"{len(paths)} {group}" for group, paths in sorted(groups.items()))
    print(f"{counts} objects and {' and '.join(names)} checked, {len(messages)} problems")
    return 1 if messages else 0


if __name__ == "__main__":
    sys.exit(main())
