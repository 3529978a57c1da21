#!/usr/bin/env python3
"""Time fusedrnn against its peers, after checking that all of them compute the same.

Run from anywhere with fusedrnn installed: `python bench/run.py --suite quick`.
cpu is all that follows, on one and on two threads, and says at the end which targets are met. Its parts: grid
and odd are single layers over many shapes; model is the training step of two models; features is streaming,
call overhead, padding, memory and quantized weights. sequence is CTC and CRF; cells is every cell and option
beside loops in PyTorch; precision is bfloat16 and int8; quick is a few of the grid; cuda is the grid on a
GPU.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--suite",
        choices=(
            "quick",
            "cpu",
            "grid",
            "odd",
            "model",
            "features",
            "sequence",
            "cells",
            "precision",
            "cuda",
        ),
        default="quick",
        help="default: %(default)s",
    )
    parser.add_argument(
        "--threads", type=int, help="cores and threads for all; default: 1, of suite cpu 1 and then 2"
    )
    parser.add_argument("--cells", nargs="+", choices=("lstm", "gru", "rnn_tanh"), help="default: all")
    parser.add_argument(
        "--modes", nargs="+", choices=("forward", "training", "stream"), help="default: all of the suite"
    )
    parser.add_argument("--compile", action="store_true", help="suite cells: also loops by torch.compile")
    parser.add_argument("--peers", nargs="+", help="default: all that are installed")
    parser.add_argument("--rounds", type=int, default=6, help="samples of each peer; default: %(default)s")
    parser.add_argument("--sample-ms", type=float, help="least time of a sample; default: 20, cuda 3")
    parser.add_argument(
        "--budget-s", type=float, help="fewer rounds (3 at least) past this time; default: 3, cuda 0.4"
    )
    parser.add_argument(
        "--device", choices=("gpu", "emulated"), default="gpu", help="of suite cuda; default: %(default)s"
    )
    parser.add_argument(
        "--total-s", type=float, default=420.0, help="time of suite cuda as a whole; default: %(default)s"
    )
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results", help="default: bench/results"
    )
    arguments = parser.parse_args()
    on_gpu = arguments.suite == "cuda"
    arguments.budget_s = arguments.budget_s or (0.4 if on_gpu else 3.0)
    arguments.sample_ms = arguments.sample_ms or (3.0 if on_gpu else 20.0)
    if arguments.suite != "cpu" and arguments.threads is None:
        arguments.threads = 1
    return arguments


def pin(threads: int) -> None:
    """Keep this process on `threads` cores and every library on as many threads; before they are imported."""
    cores = sorted(os.sched_getaffinity(0))
    if not 1 <= threads <= len(cores):
        raise SystemExit(f"--threads: expected 1 to {len(cores)}, got {threads}")
    os.sched_setaffinity(0, cores[:threads])
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "FUSEDRNN_NUM_THREADS"):
        os.environ[name] = str(threads)
    # Idle threads of NumPy's OpenBLAS spin for 2^26 cycles by default, through the turns of the other peers.
    os.environ["OPENBLAS_THREAD_TIMEOUT"] = "20"


def main() -> None:
    """Run one suite; print its table and targets and save both beside the JSON."""
    arguments = parse_arguments()
    if arguments.suite == "cuda":
        import cuda_suite

        cuda_suite.run(arguments)
        return
    if arguments.suite == "cpu":
        import cpu_suite

        names = ("rounds", "sample_ms", "budget_s")
        options = [(f"--{name.replace('_', '-')}", str(getattr(arguments, name))) for name in names]
        cpu_suite.run(arguments.threads, [word for pair in options for word in pair], arguments.out)
        return
    pin(arguments.threads)

    # These import NumPy and the peers, which read the affinity and the variables set above.
    import features
    import harness
    import problems
    import report
    import targets

    plan = harness.Plan(arguments.rounds, arguments.sample_ms * 1e-3, arguments.budget_s)
    if arguments.suite == "sequence":
        import sequence_suite

        sequence_suite.run(arguments.threads, plan, arguments.out)
        return
    if arguments.suite == "precision":
        import precision_suite

        precision_suite.run(arguments.threads, plan, arguments.out)
        return
    if arguments.suite == "cells":
        import cells_suite

        cells_suite.run(arguments.threads, plan, arguments.out, arguments.compile)
        return
    peers = harness.usable_peers(arguments.peers, arguments.threads)
    limits = harness.measure_limits(arguments.threads)
    prepared = (
        harness.prepare(peers, problem, mode, arguments.peers is not None, arguments.threads)
        for problem in problems.suite(arguments.suite, arguments.cells)
        for mode in problem.modes
        if not arguments.modes or mode in arguments.modes
    )
    rows = []
    comparisons = [comparison for comparison in prepared if comparison is not None]
    print(report.header(), flush=True)
    for visit in range(harness.VISITS):
        for comparison in comparisons:
            comparison.visit(plan.visit(), visit)
            if visit == harness.VISITS - 1:
                rows += comparison.rows(limits)
                for row in rows[-len(comparison.calls) :]:
                    print(report.line(row), flush=True)
    result = {
        "suite": arguments.suite,
        "machine": report.machine(arguments.threads, peers),
        "limits": limits,
        "results": rows,
        "features": features.measure(peers, arguments.threads, plan) if arguments.suite == "features" else {},
    }
    result["targets"] = targets.evaluate(result)
    report.save(result, arguments.out / f"{arguments.suite}-{arguments.threads}")


if __name__ == "__main__":
    main()
