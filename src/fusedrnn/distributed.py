"""Training on several processes or machines: parameters and gradients as one flat array each.

    with fusedrnn.distributed.launched() as group:          # under torchrun or mpirun; alone without them
        broadcast_parameters(model, group=group)
        for x, target in batches(group.rank, group.size):
            ...
            all_reduce_grads(model, group=group)
            optimizer.step()

A group is torch.distributed's (gloo or another backend for the CPU), a communicator of mpi4py, or the process
alone. Neither library is imported before it is asked for. Gradients have the same bits on every rank, and so
have parameters if the optimisers begin alike; `check_same` makes sure.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from fusedrnn.nn.module import Module

__all__ = [
    "Alone",
    "Group",
    "LostProcessError",
    "MPIGroup",
    "TorchGroup",
    "all_reduce_grads",
    "broadcast_parameters",
    "check_same",
    "group_of",
    "launched",
]

Array = npt.NDArray[Any]


class LostProcessError(RuntimeError):
    """Another process of a group has ended or cannot be reached."""


@runtime_checkable
class Group(Protocol):
    """Processes that work together.

    Attributes:
        rank: number of this process, from 0.
        size: how many there are.
    """

    rank: int
    size: int

    def sum_(self, array: Array) -> None:
        """Put into a C-contiguous float or int64 array the sum over all ranks, the same bits on each."""

    def broadcast_(self, array: Array, root: int = 0) -> None:
        """Put into a C-contiguous array what it holds on rank `root`."""


class Alone:
    """One process."""

    rank, size = 0, 1

    def sum_(self, array: Array) -> None:
        """Leave the array as it is."""

    def broadcast_(self, array: Array, root: int = 0) -> None:
        """Leave the array as it is."""


class TorchGroup:
    """A process group of torch.distributed that takes tensors of the CPU; the default group without one.

    Raises:
        RuntimeError: torch.distributed has no default group.
    """

    def __init__(self, group: Any = None) -> None:
        torch = importlib.import_module("torch")
        distributed = importlib.import_module("torch.distributed")
        if group is None and not distributed.is_initialized():
            raise RuntimeError(
                "group: expected torch.distributed.init_process_group to have been called, or use launched()"
            )
        self._group, self._torch = group, torch
        self.rank: int = distributed.get_rank(group)
        self.size: int = distributed.get_world_size(group)

    def sum_(self, array: Array) -> None:
        """See `Group`; of one tensor that shares the array's memory."""
        with _others_live():
            self._torch.distributed.all_reduce(self._torch.from_numpy(array), group=self._group)

    def broadcast_(self, array: Array, root: int = 0) -> None:
        """See `Group`."""
        with _others_live():
            tensor = self._torch.from_numpy(array.reshape(-1).view(np.uint8))
            self._torch.distributed.broadcast(tensor, group=self._group, group_src=root)


class MPIGroup:
    """A communicator of mpi4py."""

    def __init__(self, communicator: Any) -> None:
        self._communicator = communicator
        self.rank, self.size = communicator.Get_rank(), communicator.Get_size()

    def sum_(self, array: Array) -> None:
        """See `Group`; by the reduction to rank 0 and a broadcast, as MPI promises equal bits of no other."""
        result = np.empty_like(array)
        self._communicator.Reduce(array, result, root=0)
        self._communicator.Bcast(result, 0)
        array[...] = result

    def broadcast_(self, array: Array, root: int = 0) -> None:
        """See `Group`."""
        self._communicator.Bcast(array.reshape(-1).view(np.uint8), root)


@contextmanager
def _others_live() -> Iterator[None]:
    """Name what torch reports as a closed connection."""
    try:
        yield
    except RuntimeError as error:
        # Between the place in gloo's sources and its advice.
        reason = str(error).split("] ", 1)[-1].split(". This is", 1)[0]
        raise LostProcessError(
            f"another process of this run has ended or cannot be reached ({reason})"
        ) from None


def group_of(group: Any = None) -> Group:
    """Return what is given as a `Group`.

    Args:
        group: a `Group`, a group of torch.distributed, or a communicator of mpi4py; None for the default
            group of torch.distributed if it has one, else for this process alone.

    Raises:
        TypeError: none of these.
    """
    if isinstance(group, Group):
        return group
    if group is None:
        torch = sys.modules.get("torch.distributed")
        known = torch is not None and torch.is_available() and torch.is_initialized()
        return TorchGroup() if known else Alone()
    kinds = {base.__module__.split(".")[0] for base in type(group).__mro__}
    if "mpi4py" in kinds:
        return MPIGroup(group)
    if "torch" in kinds:
        return TorchGroup(group)
    raise TypeError(
        "group: expected a fusedrnn.distributed.Group, a process group of torch.distributed, a communicator "
        f"of mpi4py or None, got {type(group).__name__}"
    )


@contextmanager
def launched(backend: str = "gloo") -> Iterator[Group]:
    """Give the group that torchrun or mpirun started this process in, or this process alone.

    Args:
        backend: of torch.distributed.

    Raises:
        ModuleNotFoundError: the library of the launcher is not installed.
    """
    if int(os.environ.get("OMPI_COMM_WORLD_SIZE") or os.environ.get("PMI_SIZE") or 1) > 1:
        yield MPIGroup(importlib.import_module("mpi4py.MPI").COMM_WORLD)
    elif int(os.environ.get("WORLD_SIZE") or 1) > 1:
        distributed = importlib.import_module("torch.distributed")
        distributed.init_process_group(backend)
        try:
            yield TorchGroup()
        finally:
            distributed.destroy_process_group()
    else:
        yield Alone()


def broadcast_parameters(module: Module, root: int = 0, group: Any = None) -> None:
    """Give every rank the parameters and buffers of rank `root`: once, before training.

    Args:
        module: a module on the CPU, the same on every rank.
        root: a rank.
        group: see `group_of`.

    Raises:
        TypeError: not a module, or not a group.
        ValueError: there is no such rank.
        RuntimeError: the module is on a GPU, or (LostProcessError) another process has ended.
    """
    processes = _checked(module, group)
    if not 0 <= root < processes.size:
        raise ValueError(f"root: expected a rank in 0..{processes.size - 1}, got {root}")
    state = module.state_dict()
    for array in state.values():
        processes.broadcast_(array, root)
    module.load_state_dict(state)


def all_reduce_grads(module: Module, group: Any = None, *, weight: float | None = None) -> None:
    """Replace the gradients of the whole tree by their mean over all ranks, or by a weighted sum.

    One all-reduce of `module.flat_grads`. With losses that are means over each rank's rows, the mean is the
    gradient of the joined batch if all ranks have as many rows; else give the share that each has.

    Args:
        module: a module on the CPU, the same on every rank.
        group: see `group_of`.
        weight: what this rank's gradients are multiplied by; 1/size if None.

    Raises:
        TypeError: not a module, or not a group.
        RuntimeError: the module is on a GPU, or (LostProcessError) another process has ended.
    """
    processes = _checked(module, group)
    grads = module.flat_grads
    share = 1.0 / processes.size if weight is None else float(weight)
    if share != 1.0:
        grads *= grads.dtype.type(share)
    processes.sum_(grads)


def check_same(module: Module, group: Any = None) -> None:
    """Make sure that the parameters have the same bits on every rank.

    Raises:
        RuntimeError: they differ.
    """
    processes = _checked(module, group)
    digests = np.zeros(processes.size, np.int64)
    content = b"".join(array.tobytes() for array in module.state_dict().values())
    # Not hash(), which differs from process to process.
    digests[processes.rank] = int.from_bytes(hashlib.blake2b(content, digest_size=7).digest(), "little")
    processes.sum_(digests)
    others = np.flatnonzero(digests != digests[0]).tolist()
    if others:
        raise RuntimeError(
            f"module: expected the same parameters on every rank, got others than rank 0's on {others}"
        )


def _checked(module: Module, group: Any) -> Group:
    if not isinstance(module, Module):
        raise TypeError(f"module: expected a fusedrnn.Module, got {type(module).__name__}")
    module._require_cpu("distributed")
    return group_of(group)
