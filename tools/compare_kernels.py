#!/usr/bin/env python3
"""Compare what kernel_check printed on several instruction sets: the same bits wherever docs/isa.md says so.

usage: compare_kernels.py REFERENCE OTHER...

Each file is the output of one run; OTHER may hold fewer cases than REFERENCE.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

# Gates whose gradients alternate in the sum behind dx; 1 where a cell is not named.
GATES = {"lstm": 4, "gru": 3}
# One operation, rounded once, for each element: the same on every instruction set.
ROUNDED_ALIKE = {"embedding", "optimisers", "maps"}
# Sums that keep one partial sum a lane.
SUMMED_BY_LANES = {
    *("layer_norm", "cross_entropy", "ctc", "ctc_decode", "crf", "transducer", "decoder", "beam_step"),
}


@dataclass
class Run:
    """One output of kernel_check: by case, the digest of each group of results."""

    name: str
    isa: str
    lanes: dict[str, int]
    cases: dict[str, dict[str, str]]


def read(path: Path) -> Run:
    """Parse a file; it has to end with a summary of no failures."""
    first, *lines, last = path.read_text().splitlines()
    header = re.fullmatch(r"isa (\w+), lanes (\d+) (\d+)", first)
    count = re.fullmatch(r"(\d+) cases, 0 failures", last)
    if header is None or count is None:
        raise SystemExit(f"{path}: expected a run of kernel_check without failures, got {last!r}")
    cases = {}
    for line in lines:
        case, digests = line.rsplit(": ", 1)
        cases[case] = dict(pair.split("=") for pair in digests.split())
    if len(cases) != int(count[1]):
        raise SystemExit(f"{path}: expected {count[1]} cases with different names, got {len(cases)}")
    isa, *lanes = header.groups()
    return Run(path.stem, isa, {"f32": int(lanes[0]), "f64": int(lanes[1])}, cases)


def same_bits(case: str, group: str, a: Run, b: Run) -> bool:
    """Whether two instruction sets promise the same bits for a group of a case's results."""
    dtype, kind, *words = case.split(" ")
    if a.isa == b.isa or kind in ROUNDED_ALIKE:
        return True
    if "scalar" in (a.isa, b.isa) or kind in SUMMED_BY_LANES:
        return False
    sizes = {word[0]: int(word[1:]) for word in words if re.fullmatch(r"[A-Z]\d+", word)}
    if kind not in GATES or group == "y":
        return True
    # The sum goes panel by panel and, in a panel, gate by gate: with one panel the order of all is the same.
    if sizes["H"] <= min(a.lanes[dtype], b.lanes[dtype]):
        return True
    return group == "dw" and sizes["T"] == 1


def compare(a: Run, b: Run) -> int:
    """Print how many digests are equal; return the number of promises that do not hold."""
    unknown = b.cases.keys() - a.cases.keys()
    if unknown or not b.cases:
        raise SystemExit(f"{b.name}: expected cases of {a.name}, got {sorted(unknown)[:3]}")
    held: Counter[bool] = Counter()
    others: Counter[bool] = Counter()
    for case, groups in b.cases.items():
        for group, digest in groups.items():
            equal = digest == a.cases[case][group]
            promised = same_bits(case, group, a, b)
            (held if promised else others)[equal] += 1
            if promised and not equal:
                print(f"DIFFERENT {a.name} and {b.name}: {case}: {group}")
    print(
        f"{a.name} and {b.name}: {held[True]} of {held.total()} promised to be equal are, "
        f"and {others[True]} of {others.total()} others"
    )
    return held[False]


def main() -> int:
    """Compare the first run with each of the others."""
    if len(sys.argv) < 3:
        print(__doc__, file=sys.stderr)
        return 2
    first, *others = (read(Path(name)) for name in sys.argv[1:])
    return 1 if sum(compare(first, other) for other in others) else 0


if __name__ == "__main__":
    sys.exit(main())
