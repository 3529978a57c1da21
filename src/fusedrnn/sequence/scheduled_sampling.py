"""What a decoder reads in training in place of the right answer."""

from __future__ import annotations

from fusedrnn import _core
from fusedrnn.checks import check_number
from fusedrnn.init import Noise, Seed, make_rng
from fusedrnn.nn.embedding import Embedding
from fusedrnn.nn.layers import Linear
from fusedrnn.nn.module import Module


class ScheduledSampling(Module):
    """Scheduled sampling: some of a decoder's inputs are tokens drawn from its own outputs.

    With the probability p, for each step but the first and each sequence apart, x_t is replaced by

        table[v]   v drawn from softmax(W y_(t-1) + b)

    inside the loop over the steps: `decoder.forward(x, memory, sampling=sampling)`. `decoder.backward` takes
    what was drawn as a constant, adds its part of the gradient to that of the embedding, and returns 0 as dx
    there. Each call draws anew, the same tokens for any number of threads; `probability` may be changed at
    any time, say from one epoch to the next.

    Args:
        embedding: `Embedding` (V, I), from which the inputs are.
        head: `Linear` from H to V, which makes the logits of the outputs.
        probability: p, in [0, 1].
        seed: int, numpy.random.Generator or None.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: a probability out of range, or sizes that do not fit.

    Paper: Bengio et al. 2015, arXiv:1506.03099.
    """

    _host_only = True
    _noise: Noise

    def __init__(self, embedding: Embedding, head: Linear, probability: float, *, seed: Seed = None) -> None:
        super().__init__()
        for name, module, kind in (("embedding", embedding, Embedding), ("head", head, Linear)):
            if not isinstance(module, kind):
                raise TypeError(f"{name}: expected a fusedrnn.{kind.__name__}, got {type(module).__name__}")
        if head.out_features != embedding.num_embeddings:
            raise ValueError(
                f"head: expected one to the embedding's V = {embedding.num_embeddings}, "
                f"got one to {head.out_features}"
            )
        self.embedding, self.head = embedding, head
        self.probability = probability
        self._noise = Noise(make_rng(seed))

    @property
    def probability(self) -> float:
        """p."""
        return self._probability

    @probability.setter
    def probability(self, probability: float) -> None:
        self._probability = check_number("probability", probability, 0.0, 1.0)

    def _draws(self, compute: str) -> _core.DecoderSampling:
        """Return what draws for one call, with products computed as the decoder's."""
        head, table = self.head._kept_parameters(), self.embedding._kept_parameters()["weight"]
        return _core.decoder_sampling(
            head["weight"], head.get("bias"), table, *self._noise.take(self._probability), compute
        )
