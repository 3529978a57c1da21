"""Libraries that only parts of the package need: what is said where one is not installed."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needed(part: str, library: str, package: str = "") -> Iterator[None]:
    """Say what to install where an import of the block does not find a library.

    Args:
        part: what needs it, as users call it.
        library: the name that is imported.
        package: the name that pip knows, if it is another one.

    Raises:
        ModuleNotFoundError: the library is not installed. Other errors pass through, as those of a library
            that is there but broken.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != library:
            raise
        package = package or library
        raise ModuleNotFoundError(
            f"{part} needs {package}; run: pip install {package}", name=error.name
        ) from None
