"""Connectionist temporal classification: loss, best alignment and decoding."""

from __future__ import annotations

from typing import Literal, overload

import numpy as np
import numpy.typing as npt

from fusedrnn import _core
from fusedrnn.arrays import Array
from fusedrnn.checks import check_flag, check_size
from fusedrnn.sequence.ctc_stream import CTCStream, LanguageModel
from fusedrnn.sequence.host import host_array, integers, lengths_of, reduced
from fusedrnn.training.losses import Reduction, check_reduction


@overload
def ctc_loss(
    logits: Array,
    targets: npt.ArrayLike,
    input_lengths: npt.ArrayLike,
    target_lengths: npt.ArrayLike,
    blank: int = ...,
    reduction: Literal["mean", "sum"] = ...,
    zero_infinity: bool = ...,
) -> tuple[float, Array]: ...
@overload
def ctc_loss(
    logits: Array,
    targets: npt.ArrayLike,
    input_lengths: npt.ArrayLike,
    target_lengths: npt.ArrayLike,
    blank: int = ...,
    *,
    reduction: Literal["none"],
    zero_infinity: bool = ...,
) -> tuple[Array, Array]: ...
def ctc_loss(
    logits: Array,
    targets: npt.ArrayLike,
    input_lengths: npt.ArrayLike,
    target_lengths: npt.ArrayLike,
    blank: int = 0,
    reduction: Reduction = "mean",
    zero_infinity: bool = False,
) -> tuple[float | Array, Array]:
    """Return the CTC loss of softmax(logits) against label sequences, and the gradient of the logits.

    With p_t = softmax(logits[t, b]) and target l_0 .. l_(L-1), blanks between its labels where one likes and
    between equal ones always,

        loss_b = -log of the sum of prod_t p_t[path_t] over all paths that read the target when repeated
                 labels and then blanks are dropped
        dlogits[t, b, c] = p_t[c] - the probability that the path is at class c, given the target

    The reduction is PyTorch's: the mean divides each loss by its target's length, or by 1 if that is 0, and
    then takes the mean over the batch. Unlike PyTorch's function it takes logits: a log-softmax before it
    changes nothing.

    Args:
        logits: (T, B, V), float32 or float64.
        targets: (B, S), padded with anything, or (sum of target_lengths,), one after another; of an integer
            dtype, each in 0..V-1 and not the blank.
        input_lengths: (B,) of an integer dtype, each in 0..T.
        target_lengths: (B,) of an integer dtype, each in 0..S.
        blank: class that stands for no label.
        reduction: "mean", "sum" or "none".
        zero_infinity: whether a loss that is infinite, because no path is as short as its input, counts as 0
            with gradient 0.

    Returns:
        loss: float, or (B,) with reduction="none"; the mean over no sequences is NaN.
        dlogits: (T, B, V), the gradient of the loss, with reduction="none" of its sum; 0 past the input's
            end, NaN where the loss of the sequence is infinite or NaN.

    Raises:
        TypeError: an argument of the wrong kind or dtype.
        ValueError: an argument of the wrong shape or range: a target that is the blank or no class, a length
            past the end.
        RuntimeError: an array on a GPU.

    Paper: Graves et al. 2006, Connectionist Temporal Classification.
    """
    check_reduction(reduction)
    counts = integers("target_lengths", target_lengths)
    losses, dlogits = _core.ctc_loss(
        host_array("logits", logits),
        integers("targets", targets),
        integers("input_lengths", input_lengths),
        counts,
        check_size("blank", blank, 0),
        reduction == "mean",
        check_flag("zero_infinity", zero_infinity),
    )
    if reduction == "mean":
        losses /= np.maximum(counts, 1)
    return reduced(losses, reduction, dlogits.dtype), dlogits


def ctc_align(
    logits: Array,
    targets: npt.ArrayLike,
    input_lengths: npt.ArrayLike,
    target_lengths: npt.ArrayLike,
    blank: int = 0,
) -> tuple[npt.NDArray[np.int64], Array]:
    """Return the best CTC path of each target, by the Viterbi algorithm.

    Args:
        logits: (T, B, V), float32 or float64.
        targets: (B, S) or (sum of target_lengths,), as in `ctc_loss`.
        input_lengths: (B,) of an integer dtype, each in 0..T.
        target_lengths: (B,) of an integer dtype, each in 0..S.
        blank: class that stands for no label.

    Returns:
        alignment: (T, B) int64: the place in the target of the label that the step emits, or -1 for a blank;
            -1 past the input's end, and everywhere if the input is too short for its target.
        scores: (B,) log probability of the path, -inf where there is none.

    Raises:
        TypeError, ValueError, RuntimeError: as `ctc_loss`.
    """
    x = host_array("logits", logits)
    alignment, scores = _core.ctc_align(
        x,
        integers("targets", targets),
        integers("input_lengths", input_lengths),
        integers("target_lengths", target_lengths),
        check_size("blank", blank, 0),
    )
    return alignment, scores.astype(x.dtype, copy=False)


def ctc_decode(
    logits: Array,
    lengths: npt.ArrayLike | None = None,
    beam: int = 1,
    blank: int = 0,
    *,
    lm: LanguageModel | None = None,
    alpha: float = 0.5,
    beta: float = 0.0,
) -> tuple[list[npt.NDArray[np.int64]], Array]:
    """Return the labels that CTC outputs stand for: of the best path, or by a prefix beam search.

    A beam of 1 takes the best class of each step, drops repeats and then blanks. A wider one keeps so many
    label sequences, each with the probability of all of its paths that went through the beam, and returns the
    most probable. With a language model it is the one of most log P_ctc + alpha log P_lm + beta L, for L
    labels; `CTCStream` does the same for outputs that come piece by piece.

    Args:
        logits: (T, B, V), float32 or float64.
        lengths: (B,) of an integer dtype, each in 0..T; all T if None.
        beam: sequences kept from step to step, >= 1.
        blank: class that stands for no label.
        lm: function lm(labels (n,)) that returns log probabilities (V,), of each label to come after these;
            for a beam of 2 or more. Searched sequence by sequence, in Python.
        alpha: weight of the language model, >= 0.
        beta: what every label adds to the score, with a language model.

    Returns:
        labels: B arrays of int64, without blanks.
        scores: (B,) log probability, of the best path if beam is 1, else of the labels by the paths of the
            beam; with a language model what is ranked by.

    Raises:
        TypeError: an argument of the wrong kind or dtype.
        ValueError: an argument of the wrong shape or range.
        RuntimeError: an array on a GPU.

    Paper: Hannun et al. 2014, arXiv:1408.2873v2.
    """
    x = host_array("logits", logits)
    if lm is not None:
        return _decode_with(CTCStream(beam, blank, lm=lm, alpha=alpha, beta=beta), x, lengths)
    labels, counts, scores = _core.ctc_decode(
        x,
        None if lengths is None else integers("lengths", lengths),
        check_size("beam", beam),
        check_size("blank", blank, 0),
    )
    found = [row[:count].copy() for row, count in zip(labels, counts, strict=True)]
    return found, scores.astype(x.dtype, copy=False)


def _decode_with(
    stream: CTCStream, x: Array, lengths: npt.ArrayLike | None
) -> tuple[list[npt.NDArray[np.int64]], Array]:
    if x.ndim != 3:
        raise ValueError(f"logits: expected shape (T, B, V), got {x.shape}")
    if stream.beam == 1:
        raise ValueError("beam: expected an int >= 2 with a language model, got 1")
    steps, batch = x.shape[:2]
    counts = np.full(batch, steps) if lengths is None else lengths_of("lengths", lengths, batch, "T", steps)
    found, scores = [], np.empty(batch)
    for b, count in enumerate(counts.tolist()):
        stream.reset()
        labels, scores[b] = stream(x[:count, b])
        found.append(labels)
    return found, scores.astype(x.dtype, copy=False)
