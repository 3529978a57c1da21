"""Of sequence_suite.py: transducers, beam search, and gradients of each example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import fusedrnn as fr

Call = Callable[[], dict[str, Any]]
Row = tuple[dict[str, Call], float, float]
BYTES_PER_NS = 16  # what one thread moves, where nothing of it is in a cache


def transducer(batch: int, steps: int, labels: int, classes: int, library: bool) -> Row:
    """A transducer's loss with gradients, beside torchaudio, or a loop over the steps in torch."""
    import torch

    rng = np.random.default_rng(0)
    logits = rng.standard_normal((batch, steps, labels + 1, classes), dtype=np.float32)
    targets = rng.integers(0, classes - 1, (batch, labels))
    lengths, counts = np.full(batch, steps), np.full(batch, labels)
    x = torch.tensor(logits, requires_grad=True)
    numbers = [torch.tensor(array, dtype=torch.int32) for array in (targets, lengths, counts)]
    index = torch.tensor(targets)[:, None, :, None].expand(batch, steps, labels, 1)

    def ours() -> dict[str, Any]:
        loss, dlogits = fr.transducer_loss(logits, targets, lengths, counts)
        return {"loss": np.array(loss), "gradient": dlogits}

    def by_library() -> Any:
        from torchaudio.functional import rnnt_loss

        return rnnt_loss(x, *numbers)

    def by_loop() -> Any:
        logp = x.log_softmax(-1)
        blank, label = logp[..., -1], torch.gather(logp[:, :, :labels], 3, index)[..., 0]
        # Along the labels of a step a sum of sums: log-cumulative-sum-exp.
        ahead = torch.cat([torch.zeros(batch, steps, 1), label.cumsum(2)], 2)
        row = ahead[:, 0]
        for t in range(1, steps):
            row = ahead[:, t] + torch.logcumsumexp(row + blank[:, t - 1] - ahead[:, t], 1)
        return -(row[:, labels] + blank[:, steps - 1, labels]).mean()

    def theirs() -> dict[str, Any]:
        x.grad = None
        loss = by_library() if library else by_loop()
        loss.backward()
        return {"loss": loss.detach().numpy(), "gradient": x.grad.numpy()}

    values = batch * steps * (labels + 1) * classes
    # Two exponentials, in vectors of 8; logits are read twice, and their gradients written.
    floor = values * (2 / 8 + 12 / BYTES_PER_NS)
    return {"fusedrnn": ours, "torchaudio" if library else "torch": theirs}, 0, floor


def beam_search(batch: int, source: int, size: int, classes: int, steps: int, alone: bool) -> Row:
    """A beam search of 5 with a GRU and attention, beside one in torch: of the batch, or one by one."""
    import torch

    width, bos, eos = 5, 1, 2
    rng = np.random.default_rng(0)
    embedding, head = fr.Embedding(classes, size, seed=1), fr.Linear(size, classes, seed=3)
    decoder = fr.AttentionDecoder("gru", size, size, size, seed=2)
    head.parameters["weight"] *= 4
    head.parameters["bias"][eos] -= 6
    memory = rng.standard_normal((source, batch, size), dtype=np.float32)
    weights = {name: torch.tensor(array) for name, array in decoder.state_dict().items()}
    table, out, bias = (
        torch.tensor(array) for array in (embedding.parameters["weight"], *head.parameters.values())
    )
    cell, linear = torch.nn.GRUCell(2 * size, size), torch.nn.functional.linear
    for name, parameter in cell.named_parameters():
        parameter.data = weights[f"{name}_l0"]

    def ours() -> dict[str, Any]:
        found = fr.decode.beam_search((embedding, decoder, head), memory, bos, eos, width, steps)
        return {"score": found.scores[:, 0].astype(np.float32)}

    def search(part: Any) -> list[float]:
        rows = part.transpose(0, 1).repeat_interleave(width, 0)
        keys = linear(rows, weights["weight_memory"], weights["bias_memory"])
        count = part.shape[1]
        h, tokens = torch.zeros(count * width, size), torch.full((count * width,), bos)
        scores = torch.full((count, width), -torch.inf)
        scores[:, 0] = 0
        prefixes = torch.empty(count, width, 0, dtype=torch.long)
        complete: list[list[float]] = [[] for _ in range(count)]
        base = torch.arange(count)[:, None] * width
        for step in range(steps):
            energies = (
                torch.tanh(keys + linear(h, weights["weight_query"])[:, None]) @ weights["weight_energy"]
            )
            context = torch.bmm(torch.softmax(energies, 1)[:, None], rows)[:, 0]
            h = cell(torch.cat([table[tokens], context], 1), h)
            logp = torch.log_softmax(linear(h, out, bias), 1).view(count, width, classes) + scores[:, :, None]
            best, place = logp.view(count, -1).topk(2 * width, 1)
            parents, chosen = place // classes, place % classes
            ended = chosen == eos
            for b, k in torch.nonzero(ended[:, :width]).tolist():
                complete[b].append(float(best[b, k]) / ((6 + step) / 6) ** 0.6)
            scores, order = best.masked_fill(ended, -torch.inf).topk(width, 1)
            scores[torch.tensor([len(found) >= width for found in complete])] = -torch.inf
            parents, next_tokens = parents.gather(1, order), chosen.gather(1, order)
            before = prefixes.gather(1, parents[:, :, None].expand(-1, -1, step))
            prefixes = torch.cat([before, next_tokens[:, :, None]], 2)
            h, tokens = h[(base + parents).view(-1)], next_tokens.view(-1)
        for b, found in enumerate(complete):
            found += [score / ((5 + steps) / 6) ** 0.6 for score in scores[b].tolist()]
        return [max(found) for found in complete]

    def theirs() -> dict[str, Any]:
        with torch.no_grad():
            whole = torch.tensor(memory)
            parts = [whole[:, b : b + 1] for b in range(batch)] if alone else [whole]
            return {"score": np.array([score for part in parts for score in search(part)], np.float32)}

    each = size * (10 * size + source + classes)
    hypotheses = batch * width * steps
    # Products are of float, at twice the rate of double.
    return {"fusedrnn": ours, "torch": theirs}, hypotheses * each / 2, hypotheses * source * size / 8


def norms(steps: int, batch: int, size: int) -> Row:
    """The norm of each example's gradients of an LSTM, beside a backward for each of them."""
    rng = np.random.default_rng(0)
    lstm = fr.LSTM(size, size, seed=0)
    y, _, tape = lstm.forward(rng.standard_normal((steps, batch, size), dtype=np.float32))
    dy = rng.standard_normal(y.shape, dtype=np.float32)

    def ours() -> dict[str, Any]:
        return {"norms": fr.per_example.norms(tape, dy).astype(np.float32)}

    def one_by_one() -> dict[str, Any]:
        found = []
        for b in range(batch):
            alone = np.zeros_like(dy)
            alone[:, b] = dy[:, b]
            lstm.zero_grad()
            lstm.backward(tape, alone)
            found.append(sum(float((grad**2).sum()) for grad in lstm.grads.values()) ** 0.5)
        return {"norms": np.array(found, np.float32)}

    products = steps * batch * 8 * size * size + batch * steps * steps * 6 * size
    return {"fusedrnn": ours, "one by one": one_by_one}, products / 2, 0
