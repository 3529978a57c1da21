"""Run by test_nan.py in a process of its own: all operands lie flush against protected pages.

An access outside an array ends the process with SIGSEGV. Usage: guard_pages.py DTYPE front|back
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from pathlib import Path
from typing import Any

import numpy as np

from fusedrnn import _core

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
PAGE = mmap.PAGESIZE
NONE, READ_WRITE = 0, mmap.PROT_READ | mmap.PROT_WRITE
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


class Guarded:
    """Arrays with a protected page on both sides, touching the one at `end`; `release` frees them."""

    def __init__(self, end: str) -> None:
        self.end = end
        self.regions: list[tuple[int, int]] = []

    def __call__(self, a: Any) -> Any:
        """A guarded copy; a tuple or list item by item; anything else as it is."""
        if isinstance(a, (tuple, list)):
            return type(a)(map(self, a))
        if not isinstance(a, np.ndarray):
            return a
        inner = max(PAGE, -(-a.nbytes // PAGE) * PAGE)
        start = libc.mmap(None, inner + 2 * PAGE, READ_WRITE, PRIVATE, -1, 0)
        if start in (None, ctypes.c_void_p(-1).value):
            raise MemoryError(f"mmap: errno {ctypes.get_errno()}")
        self.regions.append((start, inner + 2 * PAGE))
        for guard in (start, start + PAGE + inner):
            if libc.mprotect(guard, PAGE, NONE):
                raise OSError(ctypes.get_errno(), "mprotect")
        offset = 0 if self.end == "front" else inner - a.nbytes
        memory = (ctypes.c_char * a.nbytes).from_address(start + PAGE + offset)
        copy = np.frombuffer(memory, a.dtype, a.size).reshape(a.shape)
        copy[...] = a
        return copy

    def release(self) -> None:
        for start, size in self.regions:
            libc.munmap(start, size)
        self.regions.clear()


def check_guards_work(end: str) -> None:
    """The page next to an array is protected where the mapping says so."""
    guarded = Guarded(end)
    a = guarded(np.zeros(3))
    page = a.ctypes.data // PAGE * PAGE
    lines = Path("/proc/self/maps").read_text(encoding="ascii").splitlines()
    modes = {int(line.split("-")[0], 16): line.split()[1] for line in lines}
    if end == "back":
        assert (a.ctypes.data + a.nbytes) % PAGE == 0
        assert modes[page + PAGE].startswith("---"), modes[page + PAGE]
    else:
        assert a.ctypes.data == page
        assert any(low < page <= low + PAGE and mode.startswith("---") for low, mode in modes.items())
    guarded.release()


def recurrent(guarded: Guarded, cell: str, shape: tuple[int, int, int, int], proj: int, dtype: str) -> None:
    seq_len, batch, inputs, hidden = shape
    rng = np.random.default_rng([*shape, proj])
    rows, out = int(_core.cells[cell]["gates"]) * hidden, proj or hidden
    widths = (out, hidden)[: _core.cells[cell]["states"]]

    def draw(*size: int) -> Any:
        return guarded(rng.uniform(-0.5, 0.5, size).astype(dtype))

    params = (
        draw(rows, inputs),
        draw(rows, out),
        draw(rows),
        draw(rows),
        draw(proj, hidden) if proj else None,
    )
    states, dlast = (tuple(draw(batch, width) for width in widths) for _ in range(2))
    x, dy = draw(seq_len, batch, inputs), draw(seq_len, batch, out)
    for reverse in (False, True):
        for masked in (False, True):
            options: dict[str, Any] = {"reverse": reverse}
            if masked:
                options["lengths"] = guarded(rng.integers(0, seq_len + 1, batch))
                options["resets"] = guarded(rng.random((seq_len, batch)) < 0.3)
                options["reset_state"] = tuple(draw(width) for width in widths)
            targets = {
                "out": draw(seq_len, batch, out),
                "state_out": tuple(draw(batch, width) for width in widths),
            }
            _core.forward(cell, x, params, states, **options, **targets)
            tape = _core.forward(cell, x, params, states, save=True, **options, **targets)[2]
            dparams = tuple(None if p is None else draw(*p.shape) for p in params)
            _core.backward(tape, dy, dlast, dparams=dparams, dx=draw(seq_len, batch, inputs))
            _core.backward(
                tape, None, dlast, dparams=dparams, dx=draw(seq_len, batch, inputs), accumulate_dx=True
            )
    stream = _core.Stream(cell, [params], batch)
    for t in range(seq_len):
        stream(guarded(x[t]))
    stream.set_state([states])


def layers(guarded: Guarded, rows: int, inputs: int, outputs: int, dtype: str) -> None:
    rng = np.random.default_rng([rows, inputs, outputs])

    def draw(*size: int) -> Any:
        return guarded(rng.uniform(0.1, 0.9, size).astype(dtype))

    x, weight, dy = draw(rows, inputs), draw(outputs, inputs), draw(rows, outputs)
    for function in (_core.exp, _core.sigmoid, _core.tanh):
        function(x)
    _core.linear_forward(x, weight, draw(outputs), draw(rows, outputs))
    _core.linear_backward(x, weight, dy, draw(outputs, inputs), draw(outputs), True)
    indices = guarded(rng.integers(0, outputs, rows))
    _core.embedding_forward(indices, weight)
    _core.embedding_backward(indices, x, draw(outputs, inputs))
    _, mean, rstd = _core.layer_norm_forward(dy, draw(outputs), draw(outputs), 1e-5)
    _core.layer_norm_backward(
        dy, draw(outputs), draw(rows, outputs), guarded(mean), guarded(rstd), draw(outputs), draw(outputs)
    )
    _core.cross_entropy(dy, indices, draw(outputs), -100, 0.1, True)
    _core.dropout(x, 0.5, 1, 0)
    _core.spare_like(x).fill(1)
    _core.sgd_step(draw(rows), draw(rows), draw(rows), 0.1, 0.9, 0.0, 0.1, True, False)
    _core.adam_step(draw(rows), draw(rows), draw(rows), draw(rows), 0.1, 0.9, 0.99, 1e-8, 0.1, True, 1)
    for p in (1.0, 2.0, np.inf):
        _core.norm(x, p)
    _core.scale_(x, 0.5)
    _core.clamp_(x, -0.1, 0.1)


def sequences(guarded: Guarded, steps: int, batch: int, classes: int, labels: int, dtype: str) -> None:
    rng = np.random.default_rng([steps, batch, classes])

    def draw(*size: int) -> Any:
        return guarded(rng.normal(0, 1, size).astype(dtype))

    logits = draw(steps, batch, classes)
    lengths = guarded(rng.integers(0, steps + 1, batch))
    counts = guarded(rng.integers(0, labels + 1, batch))
    flat = guarded(rng.integers(0, max(classes - 1, 1), int(counts.sum())))
    if classes > 1:
        for scale in (1, 1000):
            x = guarded(logits * logits.dtype.type(scale))
            _core.ctc_loss(x, flat, lengths, counts, classes - 1, True, False)
        _core.ctc_align(logits, flat, lengths, counts, classes - 1)
    for beam in (1, 3):
        _core.ctc_decode(logits, lengths, beam, classes - 1)
    tags = guarded(rng.integers(0, classes, (steps, batch)))
    weights = draw(classes), draw(classes, classes), draw(classes)
    sums = draw(classes), draw(classes, classes), draw(classes)
    _core.crf_loss(logits, tags, lengths, *weights, *sums, True)
    _core.crf_loss(guarded(logits * logits.dtype.type(1e4)), tags, None, *weights, *sums, True)
    _core.crf_marginals(logits, lengths, *weights)
    _core.crf_decode(logits, lengths, *weights)


def main(dtype: str, end: str) -> None:
    check_guards_work(end)
    _core.set_num_threads(2)
    shapes = [
        (3, b, i, h)
        for h in (1, 7, 8, 9, 16, 17, 33, 64)
        for b, i in ((1, 1), (1, 8), (2, 5), (5, 33), (13, 3))
    ]
    for cell in _core.cells:
        for shape in shapes:
            for proj in (0, (shape[3] + 1) // 2) if cell == "lstm" and shape[3] > 1 else (0,):
                print(cell, shape, proj, flush=True)
                guarded = Guarded(end)
                recurrent(guarded, cell, shape, proj, dtype)
                guarded.release()
    for rows in (1, 2, 3, 5, 8, 13, 17, 64):
        for inputs, outputs in ((1, 1), (3, 7), (8, 8), (9, 17), (33, 5), (64, 65)):
            print("layers", rows, inputs, outputs, flush=True)
            guarded = Guarded(end)
            layers(guarded, rows, inputs, outputs, dtype)
            guarded.release()
    for steps in (1, 2, 7, 20):
        for batch, classes, labels in ((1, 1, 1), (3, 2, 2), (9, 5, 7), (2, 17, 8), (1, 33, 16)):
            print("sequences", steps, batch, classes, labels, flush=True)
            guarded = Guarded(end)
            sequences(guarded, steps, batch, classes, labels, dtype)
            guarded.release()
    print("done")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
