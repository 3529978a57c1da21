"""The `fusedrnn` command: train a character-level language model, generate text from it, show the build."""

from __future__ import annotations

import importlib.util
import io
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
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a narrow encoding is no reason to stop in mid-sentence
    try:
        from fusedrnn.cli.app import app
    except KeyboardInterrupt:  # from here on, the commands see to it
        raise SystemExit(130) from None
    app()
