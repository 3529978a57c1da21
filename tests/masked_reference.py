"""The options of networks in float64, a row and a step at a time, with masks from a Philox of its own.

The masks of a network's call are drawn for each layer and direction in turn, that on h first and then one for
each state whose zoneout is positive, each from the next stream of the network's seed. Unit u of a row takes
word u % 4 of block u // 4 of the row, rows being those of the batch, or of (T, B) for zoneout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import reference
from reference import Array, State
from support import layer_params, states_of


def philox(block: Array, stream: int, seed: int) -> Array:
    """The four words of each block, (n, 4): Philox4x32-10."""
    low, high = np.uint64(0xFFFFFFFF), np.uint64(32)
    block = np.asarray(block, np.uint64)
    c = [
        block & low,
        block >> high,
        *(np.full_like(block, stream >> shift & 0xFFFFFFFF) for shift in (0, 32)),
    ]
    k = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [(p1 >> high) ^ c[1] ^ np.uint64(k[0]), p1 & low, (p0 >> high) ^ c[3] ^ np.uint64(k[1]), p0 & low]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return np.stack(c, axis=1)


def drawn(rows: int, hidden: int, p: float, stream: int, seed: int) -> Array:
    """(rows, hidden) bool, true with probability p."""
    blocks = -(-hidden // 4)
    words = philox(np.arange(rows * blocks), stream, seed).reshape(rows, blocks * 4)
    return np.asarray(words[:, :hidden] < round(p * 2**32))


@dataclass
class Masks:
    """Of one layer and direction: the factor of h (B, H), and how much of each state stays (T, B, H)."""

    hidden: Array
    stays: tuple[Array, ...]


def locked_factors(net: Any, noise: tuple[int, int], batch: int, inputs: int) -> list[Array]:
    """Of x (B, I) and of y (B, n), drawn first."""
    seed, stream = noise
    found = []
    for p, width in zip(net.locked_dropout, (inputs, net._network.out_size), strict=True):
        found.append(np.ones((batch, width)))
        if p and net.training:
            found[-1] = dropout((batch, width), p, stream, seed)
            stream += 1
    return found


def dropout(shape: tuple[int, ...], p: float, stream: int, seed: int) -> Array:
    """The factors of an array's elements, in their order."""
    count = int(np.prod(shape))
    words = philox(np.arange(-(-count // 4)), stream, seed).ravel()[:count]
    return (words.reshape(shape) >= round(p * 2**32)) / (1.0 - p)


def masks_of(net: Any, noise: tuple[int, int], seq_len: int, batch: int) -> list[Masks]:
    """Those of a call that began with this (seed, offset)."""
    return draws_of(net, noise, seq_len, batch)[0]


def draws_of(net: Any, noise: tuple[int, int], seq_len: int, batch: int) -> tuple[list[Masks], list[Array]]:
    """The masks of each layer and direction, and the factors of each layer's output but the last's."""
    seed, stream = noise
    stream += sum(p > 0 for p in net.locked_dropout) if net.training else 0
    p, directions = net.recurrent_dropout, 2 if net.bidirectional else 1
    found: list[Masks] = []
    between: list[Array] = []
    for layer, hidden in (
        (k, widths[0]) for k, widths in enumerate(net._network.layers) for _ in range(directions)
    ):
        if len(found) == directions * layer > 0:
            shape = (seq_len, batch, net._network.outs[layer - 1])
            between.append(np.ones(shape))
            if net.dropout and net.training:
                between[-1] = dropout(shape, net.dropout, stream, seed)
                stream += 1
        factor = np.ones((batch, hidden))
        if p and net.training:
            factor = np.where(drawn(batch, hidden, p, stream, seed), 0.0, 1.0 / (1.0 - p))
            stream += 1
        stays = []
        for zoneout in net.zoneout:
            stays.append(np.full((seq_len, batch, hidden), zoneout))
            if zoneout and net.training:
                stays[-1] = 1.0 * drawn(seq_len * batch, hidden, zoneout, stream, seed).reshape(
                    stays[-1].shape
                )
                stream += 1
        found.append(Masks(factor, tuple(stays)))
    return found, between


@dataclass
class Step:
    t: int
    before: State
    was_reset: bool
    a: Array
    b: Array


def forward(
    cell: str,
    x: Array,
    params: Any,
    masks: Masks,
    state: State,
    lengths: Array,
    resets: Any,
    reset_state: Any,
    reverse: bool,
) -> tuple[Array, State, list[list[Step]]]:
    """One layer and direction."""
    spec = reference.cell_of(cell)
    w, u, bias_ih, bias_hh, _ = params
    y = np.zeros((*x.shape[:2], u.shape[1]))
    final = tuple(np.zeros(part.shape) for part in state)
    rows = []
    for row, length in enumerate(lengths):
        now: State = tuple(part[row] for part in state)
        steps = []
        for t in range(length - 1, -1, -1) if reverse else range(length):
            was_reset = reference._reads_reset(resets, row, t, length, reverse)
            if was_reset:
                now = tuple(reference._row_of(reset_state, k, row, u.shape[1]) for k in range(len(now)))
            a = w @ x[t, row] + bias_ih
            b = u @ (masks.hidden[row] * now[0]) + bias_hh
            steps.append(Step(t, now, was_reset, a, b))
            after = spec.step(a, b, now)
            now = tuple(
                m[t, row] * old + (1 - m[t, row]) * new
                for m, old, new in zip(masks.stays, now, after, strict=True)
            )
            y[t, row] = now[0]
        for k, part in enumerate(now):
            final[k][row] = part
        rows.append(steps)
    return y, final, rows


def backward(
    cell: str, x: Array, params: Any, masks: Masks, rows: list[list[Step]], dy: Array, dstate: State
) -> tuple[Array, State, list[Array]]:
    """dx, the initial states' gradient, and those of weight_ih, weight_hh, bias_ih and bias_hh."""
    spec = reference.cell_of(cell)
    w, u = params[:2]
    dx, grads = np.zeros_like(x), [np.zeros_like(part) for part in params[:4]]
    dstart = tuple(np.zeros(part.shape) for part in dstate)
    for row, steps in enumerate(rows):
        d: State = tuple(part[row] for part in dstate)
        for step in reversed(steps):
            t = step.t
            d = (d[0] + dy[t, row], *d[1:])
            old = tuple(m[t, row] * part for m, part in zip(masks.stays, d, strict=True))
            new = tuple((1 - m[t, row]) * part for m, part in zip(masks.stays, d, strict=True))
            da, db, pointwise = spec.pull(step.a, step.b, step.before, new)
            read = masks.hidden[row] * step.before[0]
            for total, part in zip(grads, (np.outer(da, x[t, row]), np.outer(db, read), da, db), strict=True):
                total += part
            dx[t, row] = da @ w
            through = (masks.hidden[row] * (db @ u), *(0.0 for _ in d[1:]))
            d = tuple(a + b + c for a, b, c in zip(old, pointwise, through, strict=True))
            if step.was_reset:
                d = tuple(np.zeros_like(part) for part in d)
        for k, part in enumerate(d):
            dstart[k][row] = part
    return dx, dstart, grads


@dataclass
class Results:
    y: Array
    final: State
    dx: Array
    dstate: State
    grads: dict[str, Array]


def run(cell: str, net: Any, noise: tuple[int, int], call: dict[str, Any], dy: Array, dstate: Any) -> Results:
    """All that a network's forward and backward give; call: x, state, lengths, resets and reset_state."""
    x = call["x"].astype(np.float64)
    seq_len, batch = x.shape[:2]
    lengths = np.full(batch, seq_len) if call["lengths"] is None else call["lengths"]
    masks, between = draws_of(net, noise, seq_len, batch)
    layers = [
        [tuple(None if a is None else a.astype(np.float64) for a in part) for part in layer]
        for layer in layer_params(net)
    ]
    given, ends = call["state"], states_of(dstate)
    if given is None and net.learned_state:
        given = tuple(net.parameters[name].repeat(batch, axis=1) for name in ("h0", "c0")[: len(ends)])
    state = tuple(np.zeros(end.shape) for end in ends) if given is None else states_of(given)
    replacement = None if call["reset_state"] is None else states_of(call["reset_state"])
    directions = len(layers[0])
    at_input, at_output = locked_factors(net, noise, batch, x.shape[2])
    finals: list[State] = []
    kept: list[Any] = []
    steps = x * at_input
    for k, layer in enumerate(layers):
        made = []
        for d, params in enumerate(layer):
            at = k * directions + d
            size = params[1].shape[1]
            place = None if replacement is None else tuple(part[at, ..., :size] for part in replacement)
            start = tuple(part[at, :, :size].astype(np.float64) for part in state)
            made.append(
                forward(cell, steps, params, masks[at], start, lengths, call["resets"], place, d == 1)
            )
        finals += [final for _, final, _ in made]
        kept.append((steps, made))
        merged = merge(net.merge, [y for y, _, _ in made])
        adds = net.residual and k > 0 and merged.shape == steps.shape
        kept[-1] = (*kept[-1], adds)
        steps = merged + steps if adds else merged
        if k + 1 < len(layers):
            steps = steps * between[k]
    starts: list[State] = [()] * len(finals)
    grads: dict[str, Array] = {}
    flow = dy.astype(np.float64) * at_output
    for k in range(len(layers) - 1, -1, -1):
        inputs, made, adds = kept[k]
        total = flow.copy() if adds else np.zeros_like(inputs)
        for d, part in enumerate(unmerge(net.merge, [y for y, _, _ in made], flow)):
            at = k * directions + d
            last = tuple(end[at, :, : part.shape[2]].astype(np.float64) for end in ends)
            dx, starts[at], found = backward(cell, inputs, layers[k][d], masks[at], made[d][2], part, last)
            total += dx
            names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            grads |= {n + net._suffixes(k)[d]: g for n, g in zip(names, found, strict=True)}
        flow = total * between[k - 1] if k else total

    def stacked(parts: Any) -> State:
        """As wide as the widest, with zeros behind."""
        width = max(part[0].shape[-1] for part in parts)
        return tuple(
            np.stack([np.pad(part, [(0, 0), (0, width - part.shape[-1])]) for part in each])
            for each in zip(*parts, strict=True)
        )

    dstart = stacked(starts)
    if net.learned_state:
        used = call["state"] is None
        grads |= {f"{n}0": used * d.sum(axis=1, keepdims=True) for n, d in zip("hc", dstart, strict=False)}
    return Results(steps * at_output, stacked(finals), flow * at_input, dstart, grads)


def merge(how: str, outputs: list[Array]) -> Array:
    if how == "concat":
        return np.concatenate(outputs, axis=2)
    total = outputs[0] * outputs[1] if how == "mul" else outputs[0] + outputs[1]
    return total / 2 if how == "mean" else total


def unmerge(how: str, outputs: list[Array], flow: Array) -> list[Array]:
    """The gradient of each of the outputs for that of what they make."""
    if how == "concat":
        return np.split(flow, len(outputs), axis=2)
    if how == "mul":
        return [flow * outputs[1], flow * outputs[0]]
    return [flow / 2 if how == "mean" else flow] * 2
