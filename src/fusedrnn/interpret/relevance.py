"""Layer-wise relevance propagation through LSTMs."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fusedrnn import _core
from fusedrnn.checks import check_number
from fusedrnn.interpret.attribution import Attribution, chosen
from fusedrnn.interpret.members import Floats, embedded, flattened, studied
from fusedrnn.interpret.records import CellRecord, cell_records
from fusedrnn.nn.layers import Dropout, Linear
from fusedrnn.nn.module import Module
from fusedrnn.nn.pool import Pool
from fusedrnn.nn.recurrent import LSTM


def lrp(
    model: Module,
    x: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    eps: float = 1e-3,
    bias_factor: float = 0.0,
) -> Attribution:
    """Share an output of an LSTM classifier out to its inputs, layer by layer from the output back.

    A sum passes relevance on to its terms by their share of it,

        R_i = sum over j of (z_ij + bias_factor (eps s_j + b_j) / N) / (z_j + eps s_j) R_j

    with z_ij = w_ij x_i, s_j the sign of z_j, and N terms; a product of a gate with a value to the value
    alone. `rest` is the relevance of the initial states, and `error` what biases and eps absorb: nothing with
    `bias_factor` 1. Padded sequences are not taken: explain them one by one.

    Args:
        model: a Sequential of an Embedding or none, LSTMs without proj_size and other options, `Pool("last")`
            and one Linear, with Dropout anywhere.
        x: floats (T, B, I) or (T, I), or tokens.
        target: which of the K outputs to explain, one number or (B,).
        eps: keeps denominators from 0, >= 0.
        bias_factor: in [0, 1].

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: another model, or an argument of the wrong shape or out of range.
        RuntimeError: the model is on a GPU.

    Paper: Arras, Montavon, Müller and Samek 2017, arXiv:1706.07206.
    """
    eps, share = check_number("eps", eps), check_number("bias_factor", bias_factor, 0.0, 1.0)
    copied, values = embedded(studied(model, "lrp"), x)
    members: list[Any] = [member for _, member in flattened(copied) if not isinstance(member, Dropout)]
    networks: list[Any] = members[:-2]
    pool, head = members[-2:] if networks else [Dropout()] * 2
    wanted = isinstance(head, Linear) and isinstance(pool, Pool) and pool.kind == "last"
    if not wanted or not all(isinstance(one, LSTM) and not one.batch_first for one in networks):
        raise ValueError(
            "model: expected a Sequential of LSTM, Pool('last') and Linear, time first, with an Embedding "
            f"before and Dropout anywhere, got {model!r}"
        )
    rule = Rule(eps, share)
    single = values.ndim == 2
    inputs, layers = (values[:, None] if single else values), []
    for network in networks:
        layers.append(cell_records(network, inputs))
        last = [record.values["h"] for record in layers[-1] if record.layer == network.num_layers - 1]
        inputs = np.concatenate(last, axis=-1)
    parts = [list(records) for records in _by_layer(layers)]
    weight, bias = (np.float64(head.state_dict().get(name, 0.0)) for name in ("weight", "bias"))
    logits = _core.linear_forward(inputs[-1], weight, None) + bias
    place = chosen(logits, target)
    output = logits[place]
    relevance = np.zeros_like(logits)
    relevance[place] = output
    at_last = rule.linear(
        inputs[-1], weight, bias + np.zeros(len(weight)), logits, relevance, weight.shape[1]
    )
    found, rest = np.zeros_like(inputs), np.zeros_like(output)
    found[-1] = at_last
    for records in reversed(parts):
        size = found.shape[-1] // len(records)
        halves = [found[..., i * size : (i + 1) * size] for i in range(len(records))]
        shared = [_through(rule, *pair) for pair in zip(records, halves, strict=True)]
        found = sum([values for values, _ in shared], np.float64(0.0))
        rest = rest + sum([initial for _, initial in shared])
    if single:
        return Attribution(found[:, 0], output[0], rest[0], (0, 1))
    return Attribution(found, output, rest, (0, 2))


def _by_layer(networks: list[list[CellRecord]]) -> list[list[CellRecord]]:
    """Return the records of each layer, of all networks."""
    found: list[list[CellRecord]] = []
    for records in networks:
        for number in sorted({record.layer for record in records}):
            found.append([record for record in records if record.layer == number])
    return found


class Rule:
    """How a sum passes relevance on."""

    def __init__(self, eps: float, bias_factor: float) -> None:
        self.eps, self.bias_factor = eps, bias_factor

    def linear(
        self, x: Floats, weight: Floats, bias: Floats, z: Floats, relevance: Floats, terms: int
    ) -> Floats:
        """Return the relevance (B, N) of x (B, N) in z = x W^T + bias + what others add; terms in all."""
        shift = self.eps * np.where(z >= 0.0, 1.0, -1.0)
        ratio = _divided(relevance, z + shift)
        spread = self.bias_factor / terms * ((bias + shift) * ratio).sum(axis=-1, keepdims=True)
        through: Any = _core.linear_backward(x, weight, ratio, None, None, True)  # ratio W
        found: Floats = x * through + spread
        return found

    def term(self, term: Floats, z: Floats, relevance: Floats) -> Floats:
        """Return the relevance of one of two terms, element by element."""
        shift = self.eps * np.where(z >= 0.0, 1.0, -1.0)
        return (term + 0.5 * self.bias_factor * shift) * _divided(relevance, z + shift)


def _divided(relevance: Floats, z: Floats) -> Floats:
    """Return relevance / z, 0 where nothing was added up."""
    found: Floats = np.divide(relevance, z, out=np.zeros_like(z), where=z != 0.0)
    return found


def _through(rule: Rule, record: CellRecord, relevance: Floats) -> tuple[Floats, Floats]:
    """Return the relevance of the inputs (T, B, I) and of the initial states (B,), from that of h."""
    part, values = record._part, record.values
    size = relevance.shape[-1]
    g = slice(2 * size, 3 * size)
    weight_ih, weight_hh = part.weights["weight_ih"][g], part.weights["weight_hh"][g]
    bias = sum(
        [part.weights[name][g] for name in ("bias_ih", "bias_hh") if name in part.weights], np.zeros(size)
    )
    found = np.zeros_like(part.x)
    of_h, of_c = np.zeros((2, *relevance.shape[1:]))
    terms = weight_ih.shape[1] + size
    order = range(len(found))[:: -1 if part.reverse else 1]
    for place in reversed(range(len(order))):
        t = order[place]
        before: Any = order[place - 1] if place else None
        h, c = (np.zeros_like(of_h) if before is None else values[name][before] for name in ("h", "c"))
        of_c = of_c + of_h + relevance[t]
        of_g = rule.term(values["i"][t] * values["g"][t], values["c"][t], of_c)
        of_c = rule.term(values["f"][t] * c, values["c"][t], of_c)
        z = _core.linear_forward(part.x[t], weight_ih, bias) + _core.linear_forward(h, weight_hh, None)
        found[t] = rule.linear(part.x[t], weight_ih, bias, z, of_g, terms)
        of_h = rule.linear(h, weight_hh, bias, z, of_g, terms)
    return found, (of_h + of_c).sum(axis=-1)
