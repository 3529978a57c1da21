"""Devices: from an array or the name of a device to the backend there."""

from types import ModuleType

import numpy as np

from fusedrnn import host_layer
from fusedrnn.backend import CPU, Backend
from fusedrnn.cuda import layer as cuda_layer
from fusedrnn.cuda.libraries import is_device_array, library_of


def backend_of(x: object) -> Backend:
    """Return the backend of the GPU that an array is on; the CPU for everything else."""
    if isinstance(x, np.ndarray) or not is_device_array(x):
        return CPU
    return find_backend(f"cuda:{library_of(x).device}")


def layers_on(x: object) -> ModuleType:
    """Return `forward` and `backward` of one layer where an array is."""
    on_gpu = not isinstance(x, np.ndarray) and is_device_array(x)
    return cuda_layer if on_gpu else host_layer


def find_backend(device: object) -> Backend:
    """Return the backend of "cpu", "cuda" (the first GPU) or "cuda:N".

    Raises:
        TypeError: not a string.
        ValueError: another string, or a GPU that is not there.
        RuntimeError: CUDA or CuPy is not there; the message says which.
    """
    if not isinstance(device, str):
        raise TypeError(f"device: expected a string, got {type(device).__name__}")
    kind, colon, number = device.partition(":")
    if device == "cpu":
        return CPU
    if kind != "cuda" or (colon and not (number.isascii() and number.isdigit())):
        raise ValueError(f"device: expected 'cpu', 'cuda' or 'cuda:N', got {device!r}")
    from fusedrnn.cuda.backend import cuda_backend

    return cuda_backend(int(number or 0))
