"""Prints a line of hashes for each of several hundred public calls: did a change of structure keep every bit?

    FUSEDRNN_ISA=avx2 python tools/hash_results.py >before     # with the package as it was
    FUSEDRNN_ISA=avx2 python tools/hash_results.py >after      # as it is
    python tools/hash_results.py --cuda >after                 # CUDA kernels, in a build with the emulator
    python tools/hash_results.py --compare before after        # 1 if they differ

Inputs and weights come from here alone, so that another initialisation changes nothing. What stands behind a
name are 32 bits of a digest of the array's dtype, shape and bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import hash_calls as calls
import numpy as np

import fusedrnn as fr

DTYPES = ("float32", "float64")

Case = tuple[str, Callable[[], calls.Results]]

TRAITS = (
    "",
    "nobias nostate",
    "h_only",
    "lengths",
    "resets",
    "reset_row lengths",
    "reset_each reverse",
    "reverse lengths resets",
    "recompute",
    "recompute lengths resets reverse",
    "lookup",
    "lookup recompute reset_row lengths",
    "wide_lookup lengths",
    "strided",
    "strided lengths reset_each",
    "nody nodx",
    "nodstate twice",
)
PROJECTED = (
    "proj",
    "proj lengths reset_each",
    "proj recompute reverse",
    "proj lookup strided nobias",
    "proj resets twice",
)
SHAPES = (
    *((0, 2, 3, 4), (3, 0, 3, 4), (3, 2, 0, 4), (1, 1, 1, 1), (5, 1, 4, 7), (4, 3, 5, 8), (6, 13, 8, 9)),
    *((2, 17, 33, 17), (3, 1, 64, 64), (5, 6, 7, 33), (9, 32, 16, 40), (2, 3, 130, 128)),
)
NETWORKS = (
    "",
    "one",
    "one lengths resets recompute",
    "one single resets",
    "bidirectional lengths resets",
    "bidirectional batch_first dropout lookup",
    "batch_first recompute nobias lengths",
    "dropout",
    "lookup lengths",
)
KINDS = ("lstm", "lstm_proj", "gru", "rnn_tanh", "rnn_relu")


def cpu_cases() -> Iterator[Case]:
    def case(run: Callable[..., calls.Results], *arguments: Any, **options: Any) -> Case:
        words = [str(word) for word in (*arguments, *[f"{k}={v}" for k, v in options.items()]) if word != ""]
        name = f"{run.__name__} {' '.join(words)}"
        # The same arrays whatever the number of threads, so that their results can be compared, too.
        seed = name.partition(" threads=")[0]
        return name, lambda: run(seed, *arguments, **options)

    middle, large = (6, 5, 7, 19), (12, 33, 40, 72)
    for cell, dtype in itertools.product(calls.CELLS, DTYPES):
        projected = PROJECTED if cell == "lstm" else ()
        yield from (case(calls.functional, cell, dtype, middle, traits) for traits in (*TRAITS, *projected))
        yield from (case(calls.functional, cell, dtype, shape) for shape in SHAPES)
        for traits, threads in itertools.product(("", "lengths resets recompute lookup"), (1, 2, 3)):
            yield case(calls.functional, cell, dtype, large, traits, threads=threads)
    for kind, dtype in itertools.product(KINDS, DTYPES):
        yield from (case(calls.network, kind, dtype, traits) for traits in NETWORKS)
        yield from (case(calls.network, kind, dtype, "bidirectional", threads=n) for n in (1, 2, 3))
    for kind, weights in itertools.product(KINDS, ("bf16", "int8")):
        for traits in ("", "lengths", "bidirectional lengths", "batch_first wide"):
            yield case(calls.quantized, kind, weights, traits)
    yield from (
        case(calls.one_step, cell, dtype, single)
        for cell in calls.CELLS
        for dtype in DTYPES
        for single in (0, 1)
    )
    layers = ("linear", "linear_nobias", "layer_norm", "layer_norm_plain", "embedding", "dropout")
    yield from (case(calls.layer, kind, dtype) for kind in layers for dtype in DTYPES)
    for dtype, reduction, smoothing in itertools.product(DTYPES, ("mean", "sum", "none"), (0.0, 0.1)):
        yield case(calls.loss, dtype, reduction, smoothing)
    yield from (case(calls.optimiser, kind, dtype) for kind in calls.OPTIMISERS for dtype in DTYPES)
    yield from (case(calls.training, dtype, threads=n) for dtype in DTYPES for n in (1, 2, 3))


def cuda_cases() -> Iterator[Case]:
    from fusedrnn import _cuda

    if not hasattr(_cuda, "emulate"):
        raise SystemExit("--cuda: expected a build with FUSEDRNN_CUDA=EMULATED")

    def case(kernel: str | None, mode: str, cell: str, dtype: str, *rest: Any) -> Case:
        name = " ".join(map(str, ("cuda", kernel or "any", mode, cell, dtype, *rest)))

        def run() -> calls.Results:
            # Before 9.0 devices have no clusters.
            _cuda.emulate(**({"architecture": 90} if kernel == "cluster" else {}))
            try:
                with fr.cuda.set_kernel(kernel), fr.cuda.set_float32_mode(mode):
                    return calls.functional(name, cell, dtype, *rest, convert=calls.foreign)
            finally:
                _cuda.emulate()

        return name, run

    def module_case(run: Callable[..., calls.Results], *arguments: Any) -> Case:
        name = f"cuda {run.__name__} {' '.join(map(str, arguments))}"
        return name, lambda: run(name, *arguments, device="cuda")

    small, middle = (3, 4, 5, 9), (4, 5, 6, 40)
    for cell in calls.CELLS:
        for dtype in (*DTYPES, "float16"):
            for traits in (*TRAITS, *(PROJECTED if cell == "lstm" else ())):
                yield case(None, "ieee", cell, dtype, small, traits)
        for kernel, mode in itertools.product(("step", "persistent", "cluster"), ("ieee", "tf32", "tf32x3")):
            if (kernel, mode) in (("cluster", "ieee"), ("cluster", "tf32x3")):
                continue
            for traits in ("", "lengths resets", "recompute reset_each reverse"):
                yield case(kernel, mode, cell, "float32", middle, traits)
        for kernel in ("step", "persistent", "cluster"):
            yield case(kernel, "ieee", cell, "float16", middle, "lengths resets")
        yield from (case(None, "ieee", cell, "float32", shape) for shape in SHAPES[:7])
    for kind, traits in itertools.product(KINDS, NETWORKS):
        yield module_case(calls.network, kind, "float32", traits, 1)
    yield from (module_case(calls.one_step, cell, "float32", 0) for cell in calls.CELLS)
    for kind in ("linear", "layer_norm", "embedding"):
        yield module_case(calls.layer, kind, "float32")
    yield from (module_case(calls.optimiser, kind, "float32") for kind in calls.OPTIMISERS)


def arrays_in(value: Any) -> Iterator[Any]:
    """The arrays in tuples and lists, those that are None left out."""
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from arrays_in(item)
    elif value is not None:
        yield np.asarray(value)


def digest(value: Any) -> str:
    found = hashlib.blake2b(digest_size=4)
    for array in arrays_in(value):
        found.update(f"{array.dtype.str}{array.shape}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def compare(before: str, after: str) -> int:
    """Say which lines differ and in which arrays; 1 if any do."""
    both = []
    for path in (before, after):
        with open(path) as file:
            both.append(dict(line.rstrip("\n").split("\t", 1) for line in file if "\t" in line))
    old, new = both
    different = [name for name in old if name in new and old[name] != new[name]]
    for name in different:
        pairs = zip(old[name].split(), new[name].split(), strict=False)
        print(f"{name}: {' '.join(one.partition('=')[0] for one, other in pairs if one != other)}")
    for path, names in ((after, old.keys() - new.keys()), (before, new.keys() - old.keys())):
        print(*(f"{name}: not in {path}" for name in sorted(names)), sep="\n", end="\n" if names else "")
    print(f"{len(old)} and {len(new)} cases, {len(different)} of {len(old.keys() & new.keys())} differ")
    return int(bool(different) or old.keys() != new.keys() or not old)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cuda", action="store_true", help="the CUDA kernels on the emulator")
    parser.add_argument("--compare", nargs=2, metavar=("BEFORE", "AFTER"))
    given = parser.parse_args()
    if given.compare:
        return compare(*given.compare)
    print(f"isa {fr.config()['isa']}, {fr.config()['cuda']}", file=sys.stderr)
    seen = set()
    for name, run in cuda_cases() if given.cuda else cpu_cases():
        assert name not in seen, name
        seen.add(name)
        try:
            results = {part: digest(value) for part, value in run().items()}
        except Exception as error:
            results = {"error": type(error).__name__}
            print(f"{name}: {error}", file=sys.stderr)
        print(name, " ".join(f"{part}={value}" for part, value in results.items()), sep="\t")
    return 0


if __name__ == "__main__":
    sys.exit(main())
