"""How much each input counts for an output: gradients, and gradients integrated along a path."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fusedrnn.checks import check_size
from fusedrnn.interpret.figures import new_figure
from fusedrnn.interpret.members import Floats, as_floats, embedded, studied
from fusedrnn.listing import Listed
from fusedrnn.nn.members import backward_member, forward_member
from fusedrnn.nn.module import Module


class Attribution(Listed):
    """What each input counts for the output that was asked for.

    Attributes:
        values: float64 in the shape of x, of tokens of their vectors (..., E).
        output: (B,) float64: the outputs explained, or () for one sequence.
        rest: as `output`: what does not come from the inputs, for `integrated_gradients` the output of the
            baseline, for `lrp` the relevance of initial states; NaN for `saliency`, which shares out nothing.
        error: as `output`: output - rest - sum of the values.
    """

    def __init__(self, values: Floats, output: Floats, rest: Floats, axes: tuple[int, ...]) -> None:
        self.values, self.output, self.rest = values, output, rest
        self.error = output - rest - values.sum(axis=axes)

    @property
    def steps(self) -> Floats:
        """The values of each step, added up over the features: (T, B), or as x is laid out."""
        total: Floats = self.values.sum(axis=-1)
        return total

    def figure(self, labels: Any = None) -> Any:
        """Return a matplotlib Figure of the values of one sequence, features by steps.

        Args:
            labels: T words, characters or numbers to write below the steps, or None.

        Raises:
            ValueError: there are several sequences, or labels are not as many as steps.
            ModuleNotFoundError: matplotlib is not installed.
        """
        values = (
            np.squeeze(self.values, 1) if self.values.ndim == 3 and self.values.shape[1] == 1 else self.values
        )
        if values.ndim != 2:
            raise ValueError(f"values: expected one sequence, (T, I), for a figure, got {values.shape}")
        if labels is not None and len(labels) != len(values):
            raise ValueError(f"labels: expected T = {len(values)} of them, got {len(labels)}")
        figure = new_figure(8.0, 3.5)
        axes, total = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        top = np.abs(values).max() or 1.0
        image = axes.imshow(values.T, aspect="auto", cmap="RdBu_r", vmin=-top, vmax=top, interpolation="none")
        figure.colorbar(image, ax=axes)
        axes.set_ylabel("feature")
        total.bar(np.arange(len(values)), values.sum(axis=1))
        total.axhline(0.0, color="gray", linewidth=0.8)
        total.set(xlabel="step", ylabel="sum")
        if labels is not None:
            total.set_xticks(np.arange(len(values)), labels)
        return figure

    def __repr__(self) -> str:
        worst = float(np.abs(self.error).max(initial=0.0))
        return f"Attribution(values={self.values.shape}, largest error={worst:.1e})"


def saliency(
    model: Module, x: npt.ArrayLike, target: npt.ArrayLike, lengths: npt.ArrayLike | None = None
) -> Attribution:
    """Return the gradient of an output with respect to the inputs: where a small change matters most.

    Args:
        model: a module whose output is (B, K) for x (T, B, ...), or (K,) for one sequence; whatever its dtype
            and mode, a copy in float64 and evaluation mode is asked.
        x: floats, or tokens where the model is a Sequential that begins with an Embedding.
        target: which of the K outputs to explain, one number or (B,).
        lengths: (B,) of an integer dtype, each in 0..T, or None.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an output of another shape, or a target out of range.
        RuntimeError: the model is on a GPU.

    Paper: Simonyan, Vedaldi and Zisserman 2013, arXiv:1312.6034.
    """
    copied, values = embedded(studied(model, "interpret"), x)
    output, gradient = _output_and_gradient(copied, values, target, lengths)
    return Attribution(gradient, output, np.full_like(output, np.nan), _shared(values, output))


def integrated_gradients(
    model: Module,
    x: npt.ArrayLike,
    target: npt.ArrayLike,
    baseline: npt.ArrayLike = 0.0,
    steps: int = 32,
    lengths: npt.ArrayLike | None = None,
) -> Attribution:
    """Share the difference between an output and that of a baseline out to the inputs.

        values = (x - baseline) * mean over a in [0, 1] of the gradient at baseline + a (x - baseline)

    Their sum is the difference of the two outputs, to the `error` of the integral, which falls with `steps`
    (of Gauss and Legendre's rule).

    Args:
        model, x, target, lengths: as `saliency`.
        baseline: an input without what is to be explained; of tokens, their vectors.
        steps: places along the path, >= 1.

    Raises:
        TypeError, ValueError, RuntimeError: as `saliency`.

    Paper: Sundararajan, Taly and Yan 2017, arXiv:1703.01365.
    """
    places, shares = np.polynomial.legendre.leggauss(check_size("steps", steps))
    copied, values = embedded(studied(model, "interpret"), x)
    try:
        start = np.broadcast_to(as_floats(baseline), values.shape).astype(np.float64)
    except ValueError:
        raise ValueError(
            f"baseline: expected a shape that fits x {values.shape}, got {np.shape(baseline)}"
        ) from None
    gradient = np.zeros_like(values)
    for place, share in zip(places, shares, strict=True):
        at = start + (0.5 + 0.5 * place) * (values - start)
        gradient += 0.5 * share * _output_and_gradient(copied, at, target, lengths)[1]
    output = _output_and_gradient(copied, values, target, lengths)[0]
    rest = _output_and_gradient(copied, start, target, lengths)[0]
    return Attribution(gradient * (values - start), output, rest, _shared(values, output))


def _shared(x: Floats, output: Floats) -> tuple[int, ...]:
    """Return the axes of x that belong to one output."""
    return tuple(range(x.ndim)) if output.ndim == 0 else (0, *range(2, x.ndim))


def _output_and_gradient(model: Module, x: Floats, target: Any, lengths: Any) -> tuple[Floats, Floats]:
    output, tape = forward_member(model, x, lengths, None)
    place = chosen(output, target)
    dy = np.zeros_like(output)
    dy[place] = 1.0
    found: Floats = output[place]
    return np.array(found), backward_member(model, tape, dy, True)


def chosen(output: Any, target: Any) -> Any:
    """Return the index of the outputs to explain, in (B, K) or (K,).

    Raises:
        TypeError: target is not of integers.
        ValueError: an output of another shape, or a target out of range.
    """
    if output.ndim not in (1, 2):
        raise ValueError(f"model: expected outputs (B, K) or (K,), got {output.shape}; see Pool")
    classes = np.asarray(target)
    if classes.dtype.kind not in "iu":
        raise TypeError(f"target: expected integers, got {classes.dtype}")
    if classes.shape not in ((), output.shape[:-1]):
        raise ValueError(f"target: expected one number or shape {output.shape[:-1]}, got {classes.shape}")
    if classes.size and not 0 <= classes.min() <= classes.max() < output.shape[-1]:
        raise ValueError(f"target: expected 0..{output.shape[-1] - 1}, got {classes.min()}..{classes.max()}")
    return classes if output.ndim == 1 else (np.arange(len(output)), classes)
