"""`fusedrnn demo`: the examples, which come with the package."""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path
from typing import Annotated

import typer

import fusedrnn
from fusedrnn.cli.errors import CliError
from fusedrnn.cli.reported import reported


def examples() -> dict[str, Path]:
    """Return the examples by name: those installed with the package, or those of a clone."""
    package = Path(fusedrnn.__file__).parent
    for folder in (package / "examples", package.parents[1] / "examples"):
        if found := sorted(folder.glob("*.py")):
            return {path.stem: path for path in found}
    raise CliError("no examples are installed with this package; its sources have them, in examples")


def demo(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Which to run; without it, a list.")
    ] = None,
    arguments: Annotated[list[str] | None, typer.Argument(help="What the example takes, as --quick.")] = None,
) -> None:
    """List the examples, or run one: fusedrnn demo NAME.

    What an example needs, its line in the list says.
    """
    with reported():
        found = examples()
        if name is None:
            width = max(map(len, found))
            for each, path in found.items():
                about = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
                typer.echo(f"{each:<{width}}  {about.splitlines()[0] if about else ''}")
            typer.echo("\nrun one: fusedrnn demo NAME; its source: fusedrnn demo NAME --source")
            return
        if name not in found:
            raise CliError(f"NAME: expected one of {', '.join(found)}, got {name!r}")
        if arguments == ["--source"]:
            typer.echo(found[name].read_text(encoding="utf-8"), nl=False)
            return
        sys.argv = [str(found[name]), *(arguments or [])]
        try:
            runpy.run_path(str(found[name]), run_name="__main__")
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            raise CliError(
                f"{name}: expected {package} to be installed; its line in `fusedrnn demo` says how"
            ) from None
