"""What the modules of PyTorch share whose forward is a loss over sequences of labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from torch import nn

from fusedrnn.interop.torch.host import as_array, check_tensor, on_host
from fusedrnn.interop.torch.kernels import Tensor
from fusedrnn.interop.torch.losses import losses_of
from fusedrnn.training.losses import Reduction, check_reduction


class LossModule(nn.Module, ABC):
    """A module whose parameters are torch's, and whose loss and gradients are those of a module of NumPy."""

    @abstractmethod
    def _new(self, dtype: Any, init: str | None, seed: int | None) -> Any:
        """Return a module of the kernels."""

    def _declare(self, device: Any, dtype: Any) -> None:
        host = self._new("float64", "default", int(torch.randint(2**62, ())))
        for name, array in host.state_dict().items():
            value = torch.from_numpy(array).to(device, dtype or torch.get_default_dtype())
            self.register_parameter(name, nn.Parameter(value))

    def _host(self, arrays: dict[str, Any] | None = None) -> Any:
        """Return a module of the kernels with a copy of these parameters, or of the module's own."""
        if arrays is None:
            arrays = {name: as_array(on_host(name, p)) for name, p in self.named_parameters()}
        host = self._new(next(iter(arrays.values())).dtype, None, None)
        host.load_state_dict(arrays)
        return host

    def _loss(
        self,
        tensors: dict[str, Tensor],
        given: dict[str, Any],
        axes: tuple[int, ...],
        reduction: Reduction,
        **options: Any,
    ) -> Tensor:
        """Return the loss.

        Args:
            tensors: the arguments that have gradients, by the names of the kernels' `loss`.
            given: labels and lengths by their names.
            axes: that of the sequences, of each of tensors and given.
            reduction: "mean", "sum" or "none".
            options: other arguments of the kernels' `loss`.
        """
        check_reduction(reduction)
        for name, tensor in tensors.items():
            check_tensor(name, tensor)
        others = [on_host(name, value) for name, value in given.items()]
        parameters, count = dict(self.named_parameters()), len(tensors)
        # The gradient of a parameter is the kernel's for one loss; of several it takes one call for each.
        each = reduction == "none" and any(p.requires_grad for p in parameters.values())

        def run(*arrays: Any) -> Any:
            inputs, rest = arrays[:count], arrays[count:]
            weights = dict(zip(parameters, rest, strict=False))
            host, arguments = self._host(weights), (*inputs, *rest[len(weights) :])
            losses, *flows = host.loss(*arguments, **options, reduction=reduction)
            sums = [host.grads[name] for name in parameters]
            if each:
                sums = _sums_of_each(host, arguments, axes, options)
            return np.asarray(losses, inputs[0].dtype), *flows, *sums

        kept: Any = ((None, True),) * (count + len(parameters))
        if reduction == "none":
            kept = *[(axis, True) for axis in axes[:count]], *((0, not each),) * len(parameters)
        return losses_of(run, kept, *tensors.values(), *parameters.values(), *others)

    def extra_repr(self) -> str:
        """Return what stands between the parentheses of the repr."""
        found: str = self._host()._extra_repr()
        return found


def _sums_of_each(host: Any, arguments: Any, axes: tuple[int, ...], options: Any) -> list[Any]:
    """Return for each parameter its gradients of the loss of each sequence, (B, *its shape)."""
    arrays: list[Any] = [None if a is None else np.asarray(a) for a in arguments]
    count = arrays[0].shape[axes[0]]
    found = [np.empty((count, *sums.shape), sums.dtype) for sums in host.grads.values()]
    for b in range(count):
        host.zero_grad()
        one = [None if a is None else a.take([b], axis) for a, axis in zip(arrays, axes, strict=True)]
        host.loss(*one, **options, reduction="sum")
        for rows, sums in zip(found, host.grads.values(), strict=True):
            rows[b] = sums
    return found
