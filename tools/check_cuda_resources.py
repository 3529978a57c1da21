#!/usr/bin/env python3
"""Check the registers, stack and spills that the CUDA kernels of a build take.

BUILD_DIR was built with FUSEDRNN_CUDA=ON and FUSEDRNN_CUDA_REPORTS=ON: with these cmake runs nvcc through
this file (--keep), which keeps what the assembler says beside each object. --build brings BUILD_DIR up to
date first, or makes it. Fails on a spill, on a stack frame, on a kernel that needs more registers than
BUDGETS allows or that BUDGETS does not name, on a name in BUDGETS that no kernel has, on an object of the
build without a report on each of its architectures, and on a report whose object or sources have changed.

Prints one line for each kernel and form: the most that any cell and math mode takes, and with --full (or into
a file with --table) a line for each kernel. Shared memory is the static part; the launch adds the dynamic one
(cuda/kernels/table.h).

usage: check_cuda_resources.py BUILD_DIR [--build] [--only MATH] [--full] [--table FILE]
       check_cuda_resources.py --keep NVCC [ARGUMENT ...]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MATHS = ("ieee", "tf32", "tf32x3", "bf16", "fp16", "f64")
PLAIN_MATHS = ("ieee", "f64")

# The most registers a thread may have, by kernel and form: on the tensor cores, and with plain multiply-adds
# (0: there is no such kernel). Blocks have 256 threads: two of them share a multiprocessor up to 128
# registers, and 255 is all there is. Forms of a step: xN is the columns of the batch in a block, "any" is for
# rows of any alignment.
BUDGETS = {
    "step_forward x8": (128, 240),
    "step_forward x8 any": (208, 240),
    "step_forward x32": (216, 0),
    "step_backward x8": (128, 128),
    "step_backward x8 any": (128, 128),
    "step_backward x32": (128, 0),
    "step_project x8": (128, 128),
    "step_project x8 any": (128, 128),
    "step_project x32": (128, 0),
    "step_output_gradient x8": (128, 128),
    "step_output_gradient x8 any": (128, 128),
    "step_output_gradient x32": (128, 0),
    "gemm NT": (192, 255),
    "gemm NN": (224, 255),
    "gemm TN": (224, 255),
    "persistent_forward narrow": (255, 255),
    "persistent_forward wide": (255, 255),
    "persistent_backward narrow": (255, 255),
    "persistent_backward wide": (255, 255),
    "cluster_forward x8": (200, 0),
    "cluster_forward x16": (220, 0),
    "cluster_forward x32": (244, 0),
    "cluster_backward x8": (200, 0),
    "cluster_backward x32": (232, 0),
    "sum_slices NT": (64, 64),
    "sum_slices NN": (64, 64),
    "sum_slices TN": (64, 64),
    "column_sums": (72, 64),
    "sum_lookups": (64, 64),
    "look_up": (64, 64),
    "recompute_cells": (64, 96),
    "transpose": (64, 64),
    "gather_rows": (64, 64),
    "gather_hidden": (64, 64),
    "scatter_rows": (64, 64),
    "clear_padding": (64, 64),
    "final_state": (64, 64),
    "round_elements": (64, 0),
    "dropout": (64, 64),
    "program_forward": (72, 72),
    "program_backward": (128, 128),
    "normalise": (64, 64),
    "normalise_backward": (64, 64),
    "layer_norm_rows": (0, 128),
    "layer_norm_backward_rows": (0, 128),
    "layer_norm_columns_32": (0, 96),
    "cross_entropy_rows": (0, 128),
    "sgd_elements": (0, 64),
    "adam_elements": (0, 64),
}


@dataclass
class Kernel:
    """What the assembler says of one kernel; -1 where it says nothing."""

    math: str
    architecture: str
    name: str
    cell: str
    registers: int = -1
    stack: int = -1
    spills: int = -1
    shared: int = 0

    @property
    def budget(self) -> int:
        """The registers it may use; 0 where the table does not name it."""
        return BUDGETS.get(self.name, (0, 0))[self.math in PLAIN_MATHS]

    def problems(self) -> list[str]:
        """What is wrong with it."""
        found = []
        if self.budget == 0:
            found.append("expected a budget in BUDGETS, got none")
        elif not 0 <= self.registers <= self.budget:
            found.append(f"expected at most {self.budget} registers, got {self.registers}")
        if self.stack:
            found.append(f"a stack frame of {self.stack} bytes")
        if self.spills:
            found.append(f"{self.spills} bytes of spills")
        return found


# ---- while nvcc compiles -------------------------------------------------------------------------------


def keep(command: list[str]) -> int:
    """Run nvcc; write its assembler's report, the files it is of and their digest beside the object."""
    target = Path(command[command.index("-o") + 1])
    report = report_of(target)
    report.unlink(missing_ok=True)
    result = subprocess.run([*command, "-Xptxas", "-v"], stderr=subprocess.PIPE, text=True)
    said = result.stderr.splitlines(keepends=True)
    log = [line for line in said if re.match(r"ptxas info|    .*\bbytes stack frame\b", line)]
    sys.stderr.writelines(said if result.returncode else [line for line in said if line not in log])
    if result.returncode == 0:
        names = Path(command[command.index("-MF") + 1]).read_text().replace("\\\n", " ").split(":", 1)[1]
        sources = {Path(name).resolve() for name in shlex.split(names)}
        files = [str(target.resolve()), *sorted(str(path) for path in sources if ROOT in path.parents)]
        report.write_text(json.dumps({"files": files, "digest": digest(files), "log": "".join(log)}))
    return result.returncode


def report_of(target: Path) -> Path:
    """Where the report on an object is kept."""
    return target.with_name(target.name + ".resources.json")


def digest(files: list[str]) -> str:
    """Of what is in these files."""
    each = (Path(name).read_bytes() if Path(name).exists() else b"" for name in files)
    return hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in each)).hexdigest()


# ---- afterwards ----------------------------------------------------------------------------------------


def build(build_dir: Path) -> None:
    """Bring the kernels and their reports up to date."""
    options = ("CUDA=ON", "CUDA_REPORTS=ON", "ISAS=scalar")
    configure = ["cmake", "-S", str(ROOT), "-B", str(build_dir), f"-DPython_EXECUTABLE={sys.executable}"]
    subprocess.run([*configure, *(f"-DFUSEDRNN_{option}" for option in options)], check=True)
    subprocess.run(["cmake", "--build", str(build_dir), "--parallel", "--target", "cuda_kernels"], check=True)


def read_build(build_dir: Path, maths: list[str]) -> tuple[list[Kernel], list[str]]:
    """The kernels of a build by the reports on its objects, and what is wrong with these."""
    kernels, problems = [], []
    for entry in json.loads((build_dir / "compile_commands.json").read_text()):
        source = Path(entry["file"])
        if source.suffix != ".cu" or math_of(source) not in maths:
            continue
        words = shlex.split(entry["command"])
        path = report_of(Path(entry["directory"], words[words.index("-o") + 1]))
        if not path.exists():
            problems.append(f"{source.name}: expected {path}, got no such file")
            continue
        report = json.loads(path.read_text())
        if report["digest"] != digest(report["files"]):
            problems.append(f"{source.name}: changed since the report on it: build it again")
        found = parse(report["log"], math_of(source))
        have = {kernel.architecture for kernel in found}
        want = set(re.findall(r"\bsm_\w+", " ".join(words)))
        if have != want:
            problems.append(f"{source.name}: expected kernels for {sorted(want)}, got {sorted(have)}")
        kernels += found
    return kernels, problems


def math_of(instance: Path) -> str:
    """The math mode of a file of cuda/instances, as bf16 of persistent_bf16.cu."""
    return instance.stem.rsplit("_", 1)[-1]


def parse(log: str, math: str) -> list[Kernel]:
    """The kernels in the assembler's report."""
    kernels: list[Kernel] = []
    for line in log.splitlines():
        if entry := re.search(r"Compiling entry function '(\S+)' for '(\w+)'", line):
            kernels.append(Kernel(math, entry[2], *read_symbol(entry[1])))
        elif frame := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes", line):
            kernels[-1].stack = int(frame[1])
            kernels[-1].spills = int(frame[2]) + int(frame[3])
        elif used := re.search(r"Used (\d+) registers", line):
            kernels[-1].registers = int(used[1])
            shared = re.search(r"(\d+) bytes smem", line)
            kernels[-1].shared = int(shared[1]) if shared else 0
    return kernels


def read_symbol(symbol: str) -> tuple[str, str]:
    """The name and form of a kernel of fusedrnn::cuda, and its cell where it has one."""
    text = symbol.removeprefix("_ZN8fusedrnn4cuda")
    length = re.match(r"\d+", text)
    if length is None or text == symbol:
        return symbol, ""
    start, end = length.end(), length.end() + int(length[0])
    words, rest = [text[start:end]], text[end:]
    if layout := re.search(r"S\d_6LayoutE(\d)E", rest):
        words.append(("NT", "NN", "TN")[int(layout[1])])
    elif cells := re.search(r"Li\d+ELi(\d)E", rest):
        if words[0].startswith("cluster_"):
            return f"{words[0]} x{8 * int(cells[1])}", cell_of(rest)
        words.append("narrow" if cells[1] == "1" else "wide")
    elif columns := re.search(r"Li(\d+)ELb(\d)E", rest):
        words.append(f"x{8 * int(columns[1])}")
        if columns[2] == "0":
            words.append("any")
    return " ".join(words), cell_of(rest)


def cell_of(arguments: str) -> str:
    """The cell that begins the mangled template arguments of a kernel, or nothing."""
    cell = re.match(r"INS\d_(\d+)([A-Z]\w*)", arguments)
    return cell[2][: int(cell[1])] if cell else ""


def table(kernels: list[Kernel]) -> list[str]:
    """One line for each kernel."""
    lines = [f"{'kernel':29}{'cell':9}{'math':8}{'target':8}registers  budget  stack  spills  shared"]
    for k in kernels:
        numbers = f"{k.registers:9}{k.budget:8}{k.stack:7}{k.spills:8}{k.shared:8}"
        lines.append(f"{k.name:29}{k.cell:9}{k.math:8}{k.architecture:8}{numbers}")
    return lines


def summary(kernels: list[Kernel]) -> list[str]:
    """One line for each kernel and form on tensor cores ("mma") and with plain multiply-adds ("fma")."""
    lines = [f"{'kernel':29}{'units':7}kernels  registers  budget  stack  spills  shared"]
    groups: dict[tuple[str, str], list[Kernel]] = {}
    for kernel in kernels:
        units = "fma" if kernel.math in PLAIN_MATHS else "mma"
        groups.setdefault((kernel.name, units), []).append(kernel)
    for (name, units), members in groups.items():
        registers, stack, spills, shared = (
            max(values)
            for values in zip(*((k.registers, k.stack, k.spills, k.shared) for k in members), strict=True)
        )
        numbers = f"{registers:11}{members[0].budget:8}{stack:7}{spills:8}{shared:8}"
        lines.append(f"{name:29}{units:7}{len(members):7}{numbers}")
    return lines


def main() -> int:
    """Print the table, and say what is wrong."""
    parser = argparse.ArgumentParser(
        description="Check the registers, stack and spills of every CUDA kernel."
    )
    parser.add_argument("build_dir", type=Path, help="built with FUSEDRNN_CUDA=ON, FUSEDRNN_CUDA_REPORTS=ON")
    parser.add_argument("--build", action="store_true", help="bring it up to date first")
    parser.add_argument("--only", choices=MATHS, action="append", help="math modes to look at")
    parser.add_argument("--full", action="store_true", help="a line for each kernel")
    parser.add_argument("--table", type=Path, help="a file for a line for each kernel")
    options = parser.parse_args()
    if options.build:
        build(options.build_dir)
    kernels, messages = read_build(options.build_dir, options.only or list(MATHS))
    if not kernels and not messages:
        print(f"{options.build_dir}: no commands for CUDA: not configured with FUSEDRNN_CUDA=ON")
        return 2
    order = {name: place for place, name in enumerate(BUDGETS)}
    kernels.sort(key=lambda k: (order.get(k.name, -1), k.cell, MATHS.index(k.math), k.architecture))
    print("\n".join(table(kernels) if options.full else summary(kernels)))
    if options.table is not None:
        options.table.write_text("\n".join([*table(kernels), ""]))
    messages += [
        f"{kernel.name} {kernel.cell} {kernel.math} {kernel.architecture}: {problem}"
        for kernel in kernels
        for problem in kernel.problems()
    ]
    missing = set(BUDGETS) - {kernel.name for kernel in kernels}
    messages += [f"{name}: expected such a kernel, got none" for name in sorted(missing)]
    for message in messages:
        print(message)
    targets = ", ".join(sorted({kernel.architecture for kernel in kernels}))
    print(f"{len(kernels)} kernels for {targets}, {len(messages)} problems")
    return 1 if messages else 0


if __name__ == "__main__":
    sys.exit(keep(sys.argv[2:]) if sys.argv[1:2] == ["--keep"] else main())
