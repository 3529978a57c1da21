"""Errors of commands as one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from fusedrnn.cli.errors import CliError, printable


@contextmanager
def reported() -> Iterator[None]:
    """Turn what a user can put right into one line on standard error and exit status 1."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("\ninterrupted", err=True)
        raise typer.Exit(130) from None
    except MemoryError:
        typer.echo("Error: not enough memory for this model or text", err=True)
    # The library's own complaints are ValueErrors that name the argument.
    except (CliError, ValueError, OverflowError) as error:
        typer.echo(f"Error: {printable(str(error))}", err=True)
    else:
        return
    raise typer.Exit(1)
