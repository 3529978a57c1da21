"""The arithmetic of float32 on a GPU."""

from types import TracebackType

FLOAT32_MODES = ("ieee", "tf32", "tf32x3")

_current = "ieee"


def get_float32_mode() -> str:
    """Return the arithmetic of float32 arrays on a GPU: "ieee", "tf32" or "tf32x3"."""
    return _current


class set_float32_mode:
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

    def __init__(self, mode: str) -> None:
        global _current
        if mode not in FLOAT32_MODES:
            raise ValueError(f"mode: expected one of {', '.join(FLOAT32_MODES)}, got {mode!r}")
        self._before = _current
        _current = mode

    def __enter__(self) -> "set_float32_mode":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        global _current
        _current = self._before
