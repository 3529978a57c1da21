"""What calls on a GPU run with: the arithmetic of float32, and the kernel of recurrent layers."""

from types import TracebackType
from typing import ClassVar

from fusedrnn.checks import check_choice

FLOAT32_MODES = ("ieee", "tf32", "tf32x3")
KERNELS = ("cluster", "persistent", "step")


class _Setting:
    """A value of the process: making an object sets it, leaving its block restores the one before."""

    current: ClassVar[str | None] = None

    def __init__(self, value: str | None) -> None:
        self._before = self.current
        type(self).current = value

    def __enter__(self) -> "_Setting":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        type(self).current = self._before


class set_float32_mode(_Setting):
    """Choose the arithmetic of float32 arrays on a GPU, for the whole process.

    As torch.set_grad_enabled, a function that is also a context manager: `set_float32_mode("tf32")` holds
    from now on, `with set_float32_mode("tf32"):` until the end of the block. Backward uses the mode of its
    forward call.

    Args:
        mode: "ieee" (the default) multiplies in full float32; "tf32" on tensor cores, with factors rounded to
            11 significant bits; "tf32x3" on tensor cores, with factors as two such numbers each, almost as
            exact as "ieee". Sums, states and activations are float32 in all of them.

    Raises:
        ValueError: another mode.
    """

    current = "ieee"

    def __init__(self, mode: str) -> None:
        super().__init__(check_choice("mode", mode, FLOAT32_MODES))


class set_kernel(_Setting):
    """Name the kernel that runs recurrent layers on a GPU, for the whole process.

    A function that is also a context manager, as `set_float32_mode`. The kernel named is used, or the call is
    refused with the reason; backward uses the choice of its forward call. Results of different kernels agree
    within the accuracy of the mode, not bit for bit.

    Args:
        name: "cluster", "persistent" or "step", or None (the default) for what the environment variable
            FUSEDRNN_CUDA_KERNEL names, or else the first of the three that can run the call.

    Raises:
        ValueError: another name.
    """

    def __init__(self, name: str | None) -> None:
        super().__init__(check_choice("name", name, (*KERNELS, None)))


def get_float32_mode() -> str:
    """Return the arithmetic of float32 arrays on a GPU: "ieee", "tf32" or "tf32x3"."""
    return set_float32_mode.current


def get_kernel() -> str | None:
    """Return the kernel named with `set_kernel`, or None."""
    return set_kernel.current
