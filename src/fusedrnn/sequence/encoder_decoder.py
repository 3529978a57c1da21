"""EncoderDecoder: one sequence to another, trained with teacher forcing."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fusedrnn import decode
from fusedrnn.arrays import Array
from fusedrnn.checks import check_array, check_flag, check_size, kind_error
from fusedrnn.nn.containers import check_module
from fusedrnn.nn.embedding import Embedding
from fusedrnn.nn.members import BlockTape, backward_member, call_member, forward_member
from fusedrnn.nn.module import Module
from fusedrnn.nn.tape import check_tape
from fusedrnn.sequence.attention import AttentionDecoder
from fusedrnn.sequence.decoder_stream import State
from fusedrnn.sequence.host import integers
from fusedrnn.sequence.scheduled_sampling import ScheduledSampling

# Of a target that does not count, as in `cross_entropy`.
_IGNORED = -100


class Encoded(NamedTuple):
    """What a decoder looks at, and where it starts.

    Attributes:
        memory: (S, B, M), the outputs of the encoder.
        lengths: (B,), how many of them count, or None for all.
        state: h (num_layers, B, H), of an LSTM (h, c); None without a bridge, which is zero.
    """

    memory: Array
    lengths: npt.NDArray[np.int64] | None
    state: State | None


class EncoderDecoderTape(BlockTape):
    """Tape of an `EncoderDecoder`: those of its modules, which targets count, and the shape of y."""

    __slots__ = ("counted", "shape")

    def __init__(
        self, owner: Module, tapes: list[Any], counted: npt.NDArray[np.bool_], shape: tuple[int, ...]
    ) -> None:
        super().__init__(owner, tapes, counted.nbytes)
        self.counted, self.shape = counted, shape


class EncoderDecoder(Module):
    """A sequence to another one: an encoder, and a decoder that looks at what it gives.

        memory = encoder(x)                                              (S, B, M)
        h_0 = bridge(memory)                                             (B, H)
        h   = decoder(embedding([bos; targets without the last]), memory, h_0)
        y   = head(h)                                                    (B, L, V)

    In training the decoder reads the right answer, shifted by one (teacher forcing), which `Trainer` gives
    it; with `sampling` also what it said itself, in `forward` and training mode alone. y is the logits of the
    targets, to go to `cross_entropy`; `beam_search` finds answers.

    Args:
        encoder: any module from x to memory (S, B, M), say a `Sequential` of an `Embedding` and a network.
        embedding: `Embedding` of the V tokens of the answers.
        decoder: an `AttentionDecoder`.
        head: module from (N, H) to logits (N, V), say a `Linear`.
        bridge: module from memory to the first state (B, H), of an LSTM [h; c] (B, 2H), say
            `Sequential(Pool("mean"), Linear(M, H), Tanh())`; of several layers h is that of all of them side
            by side, and so is c; zeros if None.
        bos: token that the decoder reads first, in 0..V-1.
        eos: token that ends an answer, in 0..V-1.
        sampling: `ScheduledSampling` of the embedding and of the `Linear` in the head, or None. It may be set
            and changed at any time.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: a token out of range, or sizes that do not fit.

    Papers: Sutskever et al. 2014, arXiv:1409.3215; Bahdanau, Cho and Bengio 2014, arXiv:1409.0473.
    """

    _host_only = True

    def __init__(
        self,
        encoder: Module,
        embedding: Embedding,
        decoder: AttentionDecoder,
        head: Module,
        bridge: Module | None = None,
        *,
        bos: int,
        eos: int,
        sampling: ScheduledSampling | None = None,
    ) -> None:
        super().__init__()
        check_module("encoder", encoder)
        check_module("head", head)
        if bridge is not None:
            check_module("bridge", bridge)
        for name, module, kind in (
            ("embedding", embedding, Embedding),
            ("decoder", decoder, AttentionDecoder),
        ):
            if not isinstance(module, kind):
                raise TypeError(f"{name}: expected an {kind.__name__}, got {type(module).__name__}")
        if embedding.embedding_dim != decoder.input_size:
            raise ValueError(
                f"embedding: expected one of the decoder's input_size = {decoder.input_size}, "
                f"got {embedding.embedding_dim}"
            )
        most = embedding.num_embeddings - 1
        self.bos, self.eos = check_size("bos", bos, 0, most), check_size("eos", eos, 0, most)
        self.encoder, self.embedding, self.decoder = encoder, embedding, decoder
        self.head, self.bridge = head, bridge
        if sampling is not None and not isinstance(sampling, ScheduledSampling):
            raise kind_error("sampling", sampling, "a ScheduledSampling or None")
        self.sampling = sampling

    # The protocol of modules

    def __call__(self, x: Any, targets: npt.ArrayLike, lengths: npt.ArrayLike | None = None) -> Array:
        """Return y as `forward`, and keep no tape."""
        inputs, counted, answers = self._inputs(targets)
        memory, memory_lengths, state = self.encode(x, lengths)
        h = self.decoder(self.embedding(inputs), memory, memory_lengths, answers, state)[0]
        return _spread(self.head(_rows(h, counted)), counted, np.shape(targets)[1])

    def forward(
        self, x: Any, targets: npt.ArrayLike, lengths: npt.ArrayLike | None = None
    ) -> tuple[Array, EncoderDecoderTape]:
        """Return y and the tape.

        Args:
            x: input of the encoder: (S, B, I), or tokens (S, B).
            targets: (B, L) of an integer dtype: the answers with eos, each token in 0..V-1; past the end
                of one -100, which `cross_entropy` ignores.
            lengths: (B,) of an integer dtype, each in 0..S, of x; all S if None.

        Returns:
            y: (B, L, V), logits of the targets, 0 past the end of an answer.
            tape: for `backward`. It refers to x: do not write to it before.

        Raises:
            TypeError: an argument of the wrong kind or dtype.
            ValueError: an argument of the wrong shape or range; and what the modules raise.
        """
        inputs, counted, answers = self._inputs(targets)
        memory, encoder_tape = forward_member(self.encoder, x, lengths, None)
        state, memory_lengths, bridge_tape = None, self._memory_lengths(lengths), None
        if self.bridge is not None:
            first, bridge_tape = forward_member(self.bridge, memory, memory_lengths, None)
            state = self._state(first)
        tokens, embedding_tape = self.embedding.forward(inputs)
        sampling = self.sampling if self.training else None
        h, _, _, decoder_tape = self.decoder.forward(
            tokens, memory, memory_lengths, answers, state, sampling=sampling
        )
        rows, head_tape = self.head.forward(_rows(h, counted))
        y = _spread(rows, counted, np.shape(targets)[1])
        tapes = [encoder_tape, bridge_tape, embedding_tape, decoder_tape, head_tape]
        return y, EncoderDecoderTape(self, tapes, counted, y.shape)

    def backward(self, tape: EncoderDecoderTape, dy: Array, *, need_dx: bool = True) -> Any:
        """Add to the gradients of all modules; return dx, or None without need_dx or where x are tokens.

        Args:
            tape: from `forward`.
            dy: (B, L, V), the gradient of y.
            need_dx: whether to compute dx.

        Raises:
            TypeError: dy is not an array of the module's dtype.
            ValueError: dy has not the shape of y, or the tape is another module's.
        """
        tape = check_tape(tape, self, EncoderDecoderTape)
        check_flag("need_dx", need_dx)
        check_array("dy", dy, tape.shape, self.decoder.dtype, "(B, L, V)")
        encoder_tape, bridge_tape, embedding_tape, decoder_tape, head_tape = tape.tapes
        counted = tape.counted
        rows = self.head.backward(head_tape, np.ascontiguousarray(dy[:, : counted.shape[1]][counted]))
        dh = np.zeros((counted.shape[1], counted.shape[0], rows.shape[1]), rows.dtype)
        dh.swapaxes(0, 1)[counted] = rows
        dtokens, dmemory, dstate = self.decoder.backward(decoder_tape, dh)
        assert dtokens is not None
        self.embedding.backward(embedding_tape, dtokens)
        if self.bridge is not None:
            parts = dstate if isinstance(dstate, tuple) else (dstate,)
            dfirst = np.concatenate([layer for part in parts for layer in part], axis=1)
            dmemory = dmemory + backward_member(self.bridge, bridge_tape, dfirst, True)
        return backward_member(self.encoder, encoder_tape, dmemory, need_dx)

    # Answers

    def encode(self, x: Any, lengths: npt.ArrayLike | None = None) -> Encoded:
        """Return memory, its lengths and the first state, as `fusedrnn.decode` takes them.

        Args:
            x: input of the encoder: (S, B, I), or tokens (S, B).
            lengths: (B,) of an integer dtype, each in 0..S; all S if None.

        Raises:
            TypeError, ValueError: as the encoder and the bridge.
        """
        memory = call_member(self.encoder, x, lengths, None)
        counts = self._memory_lengths(lengths)
        bridge = self.bridge
        state = None if bridge is None else self._state(call_member(bridge, memory, counts, None))
        return Encoded(memory, counts, state)

    def beam_search(
        self, x: Any, lengths: npt.ArrayLike | None = None, beam: int = 5, max_len: int = 100, **options: Any
    ) -> decode.Decoded:
        """Return the best answers: tokens (B, n_best, L), their lengths and scores (B, n_best).

        Args:
            x, lengths: as `encode`.
            beam: hypotheses of a sequence that are kept; 1 is greedy.
            max_len: most tokens of an answer, eos among them.
            options: length_penalty, n_best and others of `fusedrnn.decode.beam_search`.

        Raises:
            TypeError, ValueError: as `encode` and `fusedrnn.decode.beam_search`.
        """
        memory, counts, state = self.encode(x, lengths)
        model = (self.embedding, self.decoder, self.head)
        return decode.beam_search(
            model, memory, self.bos, self.eos, beam, max_len, memory_lengths=counts, state=state, **options
        )

    def attention(self, x: Any, targets: npt.ArrayLike, lengths: npt.ArrayLike | None = None) -> Array:
        """Return alpha (B, L, S): how much each token of the answers looks at each row of the memory.

        Args:
            x, targets, lengths: as `forward`.

        Raises:
            TypeError, ValueError: as `forward`.
        """
        inputs, counted, answers = self._inputs(targets)
        memory, memory_lengths, state = self.encode(x, lengths)
        alpha = self.decoder(self.embedding(inputs), memory, memory_lengths, answers, state)[1]
        found = np.zeros((len(counted), np.shape(targets)[1], alpha.shape[2]), alpha.dtype)
        found[:, : len(alpha)] = alpha.swapaxes(0, 1)
        return found

    def _inputs(self, targets: Any) -> tuple[Array, npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
        """Return what the decoder reads (T, B), which of the targets count (B, T), and lengths (B,)."""
        answers = integers("targets", targets)
        if answers.ndim != 2 or not answers.shape[1]:
            raise ValueError(f"targets: expected shape (B, L), L >= 1, got {answers.shape}")
        real = answers != _IGNORED
        most = self.embedding.num_embeddings
        wrong = answers[real & ((answers < 0) | (answers >= most))]
        if wrong.size:
            raise ValueError(f"targets: expected each in 0..V-1 (V = {most}) or -100, got {wrong[0]}")
        steps = np.arange(1, answers.shape[1] + 1)
        lengths = (real * steps).max(axis=1)
        longest = max(1, int(lengths.max(initial=0)))
        counted = steps[:longest] <= lengths[:, None]
        inputs = np.full((longest, len(answers)), self.bos, np.int64)
        # What does not count in between is read as eos.
        inputs[1:] = np.where(real, answers, self.eos)[:, : longest - 1].T
        return inputs, counted, lengths.astype(np.int64)

    def _memory_lengths(self, lengths: Any) -> Any:
        if lengths is None:
            return None
        return self.encoder.output_steps(integers("lengths", lengths), None)[0]

    def _state(self, first: Any) -> State:
        """Return what the bridge gave as the decoder's state."""
        several, layers = 2 if self.decoder.cell == "lstm" else 1, self.decoder.num_layers
        hidden = self.decoder.hidden_size
        size = several * layers * hidden
        if not isinstance(first, np.ndarray):
            raise kind_error("bridge", first, "one that gives a numpy.ndarray")
        if first.ndim != 2 or first.shape[1] != size:
            raise ValueError(f"bridge: expected one that gives (B, {size}), got shape {first.shape}")
        states = first.reshape(len(first), several, layers, hidden).transpose(1, 2, 0, 3)
        parts = tuple(np.ascontiguousarray(part) for part in states)
        return parts if several > 1 else parts[0]

    def _extra_repr(self) -> str:
        return f"bos={self.bos}, eos={self.eos}"


def _spread(rows: Array, counted: npt.NDArray[np.bool_], length: int) -> Array:
    """Return what the head gave for the targets that count where they are: (B, L, V)."""
    y = np.zeros((len(counted), length, rows.shape[1]), rows.dtype)
    y[:, : counted.shape[1]][counted] = rows
    return y


def _rows(h: Array, counted: npt.NDArray[np.bool_]) -> Array:
    """Return h (T, B, H) of the targets that count, (N, H)."""
    found: Array = h.swapaxes(0, 1)[counted]
    return found
