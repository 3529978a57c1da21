"""The `fusedrnn` command: train a character-level language model, generate text from it, show the build."""

from __future__ import annotations

import importlib.util
import io
import os
import sys

_NEEDED = ("typer", "rich", "safetensors", "matplotlib")


def main() -> None:
    """Run the command line; without the optional packages, say how to get them and exit with status 1."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f'fusedrnn: the command line needs {", ".join(missing)}; run: pip install "fusedrnn[cli]"',
            file=sys.stderr,
        )
        raise SystemExit(1)
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # closed by whoever started us
            setattr(sys, stream, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a narrow encoding is no reason to stop in mid-sentence
    try:
        from fusedrnn.cli.app import app
    except KeyboardInterrupt:  # from here on, the commands see to it
        raise SystemExit(130) from None
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except OSError as error:  # the commands turn those of files into errors of their own
        # What is still in the buffers goes nowhere, or leaving would fail once more.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        try:
            what = error if error.filename else f"standard output: {error.strerror}"
            print(f"Error: {what}", file=sys.stderr, flush=True)
        except OSError:
            os.dup2(nowhere, 2)
        raise SystemExit(1) from None
