"""Threads share what docs/README.md lets them share; run by test_fuzz.py, and under ThreadSanitizer.

Modules for calls, forward and backward, tapes, look-ups and quantized networks give each thread the bits that
one thread alone gets. A stream refuses all but one. Under the sanitizer, which knows the locks of Python too,
a data race ends the process.

Usage: share_objects.py [ROUNDS]
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

import fusedrnn as fr

THREADS = 4
X = np.random.default_rng(0).standard_normal((12, 8, 6)).astype(np.float32)
TOKENS = np.random.default_rng(1).integers(0, 5, (12, 8))


def together(work: Callable[[], None]) -> None:
    """Run it in several threads at once, and raise what one of them raised."""
    start, failures = threading.Barrier(THREADS), []

    def guarded() -> None:
        start.wait()
        try:
            work()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def equal(got: Any, want: Any) -> bool:
    if isinstance(want, (tuple, list)):
        return all(equal(mine, its) for mine, its in zip(got, want, strict=True))
    return want is None or np.array_equal(got, want)


def share_module(module: Any, x: Any, last: Callable[[tuple[Any, ...]], Any]) -> Callable[[], None]:
    """Calls, forward and backward of one module, and backward of one tape."""

    def round_of() -> None:
        weight = module.parameters[next(iter(module.parameters))]
        want = module(x)
        *results, tape = module.forward(x)
        flow = last(tuple(results))
        gradient = module.backward(tape, flow)
        module.zero_grad()
        # What is packed is of other weights: each thread finds that, and packs.
        weight *= np.float32(-1.0)
        module(x)
        weight *= np.float32(-1.0)

        def work() -> None:
            for _ in range(2):
                assert equal(module(x), want)
                own = module.forward(x)[-1]
                assert equal(module.backward(tape, flow), gradient)
                assert equal(module.backward(own, flow), gradient)

        together(work)

    return round_of


def ones(results: tuple[Any, ...]) -> Any:
    return np.ones_like(results[0])


def share_quantized(weights: str) -> Callable[[], None]:
    network = fr.GRU(6, 9, 2, seed=0, init="torch").quantize(weights)
    want = network(X)

    def work() -> None:
        assert equal(network(X), want)

    return lambda: together(work)


def share_functional() -> Callable[[], None]:
    rng = np.random.default_rng(2)
    params = [rng.standard_normal(shape).astype(np.float32) for shape in ((27, 6), (27, 9))]
    y, _, tape = fr.functional.forward("gru", X, params)
    want = fr.functional.backward(tape, np.ones_like(y))

    def work() -> None:
        assert equal(fr.functional.forward("gru", X, params)[0], y)
        assert equal(list(fr.functional.backward(tape, np.ones_like(y)))[:2], list(want)[:2])

    return lambda: together(work)


def share_stream(make: Callable[[], Any]) -> Callable[[], None]:
    """Not to be shared: whoever comes during another's use is refused, and reads nothing of it."""

    def round_of() -> None:
        stream = make()
        refusals: list[str] = []

        def work() -> None:
            for step in range(30):
                try:
                    # Results of some threads are overwritten by others: nobody looks at them.
                    stream(X[step % 12])
                    if step % 10 == 3:
                        stream.reset()
                    if step % 10 == 6:
                        stream.state = stream.state
                    if step % 10 == 9 and hasattr(stream, "refresh"):
                        stream.refresh()
                except RuntimeError as error:
                    refusals.append(str(error))

        together(work)
        assert all("one use at a time" in text for text in refusals), refusals

    return round_of


def share_settings(module: Any) -> Callable[[], None]:
    """The number of threads and the search for changes are set while others call."""

    def round_of() -> None:
        want = module(X)

        def work() -> None:
            for n in (1, 2, 4):
                fr.set_num_threads(n)
                fr.set_detect_changes(n == 2)
                assert equal(module(X), want)
                y, _, tape = module.forward(X)
                module.backward(tape, np.ones_like(y))
            fr.config()

        together(work)

    return round_of


def main(rounds: int) -> None:
    lstm, gru = fr.LSTM(6, 9, seed=0, init="torch"), fr.GRU(6, 9, 3, seed=0, init="torch")
    # Large enough that a thread packs while another calls.
    large = fr.LSTM(6, 128, bidirectional=True, seed=0, init="torch")
    table = fr.Embedding(5, 6, seed=0)
    blocks = fr.Sequential(
        fr.Conv1d(6, 4, 3, padding="same", seed=0),
        fr.BatchNorm(4),
        fr.Residual(fr.SelfAttention(4, 2, seed=0)),
        fr.Concat(fr.GELU(), fr.GRU(4, 3, seed=0, init="torch")),
        fr.Pool("attention", 7, seed=0),
    )
    scenarios = {
        "layer": share_module(lstm, X, ones),
        "stack": share_module(gru, X, ones),
        "directions": share_module(large, X, ones),
        "recompute": share_module(fr.RNN(6, 9, seed=0, init="torch", recompute=True), X, ones),
        "look-up": share_module(lstm, table.lookup(TOKENS), ones),
        "cell": share_module(fr.LSTMCell(6, 9, seed=0, init="torch"), X[0], lambda results: results[0]),
        "linear": share_module(fr.Linear(6, 40, seed=0), X, ones),
        "layer norm": share_module(fr.LayerNorm(6), X, ones),
        "embedding": share_module(table, TOKENS, ones),
        "blocks": share_module(blocks, X, ones),
        "functional": share_functional(),
        "int8": share_quantized("int8"),
        "bf16": share_quantized("bf16"),
        "stream": share_stream(lambda: lstm.stream(8)),
        "stream of int8": share_stream(lambda: lstm.quantize("int8").stream(8)),
        "settings": share_settings(gru),
    }
    for threads in (1, 3):
        for name, round_of in scenarios.items():
            fr.set_detect_changes(False)
            fr.set_num_threads(threads)
            print(threads, name, flush=True)
            for _ in range(rounds):
                round_of()
    print("done")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
