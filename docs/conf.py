"""The documentation site: `sphinx-build -W docs build/site` (extra `docs`)."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

import fusedrnn

project = "fusedrnn"
author = "The fusedrnn authors"
release = fusedrnn.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["measured"]
root_doc = "index"

myst_heading_anchors = 3
suppress_warnings = ["myst.header"]

html_theme = "furo"
html_title = f"fusedrnn {release}"
html_show_copyright = False
html_copy_source = False
html_show_sourcelink = False
pygments_style = "friendly"
pygments_dark_style = "monokai"
highlight_language = "none"  # indented blocks are equations

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_default_options["exclude-members"] = ", ".join(  # what scikit-learn adds
    f"set_{method}_request" for method in ("fit", "partial_fit", "predict", "score")
)
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_class_signature = "mixed"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Results", "params_style")]  # what is returned, by names

SECTION = re.compile(r"(Args|Returns|Results|Raises|Yields|Attributes):$")


def restructured(lines: list[str]) -> list[str]:
    """A docstring of ours, which is meant to be read as it is, in the markup that Sphinx reads.

    `code` gets its second backticks, a block that stands further in becomes a literal one, and what would be
    markup elsewhere is escaped.
    """
    found: list[str] = []
    section = block = False
    if "Returns:" in lines and re.match(r"    \w+: ", lines[lines.index("Returns:") + 1]):
        lines[lines.index("Returns:")] = "Results:"
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if not line.strip():
            found.append(line)
            continue
        if indent == 0:
            section, block = bool(SECTION.match(line)), False
        if not section and indent and not block:
            block = True
            found += ["::", ""]
        found.append(line if block else escaped(line))
    return found


def escaped(line: str) -> str:
    found = ""
    for part in re.split(r"(`[^`]+`)", line):
        code = part.startswith("`") and len(part) > 2
        if found and part and not (found[-1].isspace() or part[0].isspace()):
            found += "\\ "  # nothing to be seen: what ends a literal where text follows at once
        found += f"`{part}`" if code else re.sub(r"([*_|\\`])", r"\\\1", part)
    return found


# What stands on which page of the reference, by where it is made; the last takes what is left.
PAGES = {
    "networks": ("nn.recurrent", "nn.networks", "nn.rnn_cells", "symbolic", "cell_spec", "inference"),
    "modules": ("nn.", "sequence.", "losses."),
    "functions": ("",),
}


def names_on(page: str) -> list[str]:
    """The public classes and functions, in the order of where they are made."""
    found: dict[str, list[tuple[int, str]]] = {page: [] for page in PAGES}
    for name in fusedrnn.__all__:
        value = getattr(fusedrnn, name)
        home = getattr(value, "__module__", "").removeprefix("fusedrnn.")
        if inspect.isclass(value):
            homes = next(
                (one, i) for one, all in PAGES.items() for i, h in enumerate(all) if home.startswith(h)
            )
            found[homes[0]].append((homes[1], name))
        elif callable(value):
            found["functions"].append((len(PAGES), name))
    return [name for _, name in sorted(found[page])]


def packages() -> list[str]:
    """The public modules, but for those whose libraries are not here."""
    found = {name for name in fusedrnn.__all__ if inspect.ismodule(getattr(fusedrnn, name))}
    for name in fusedrnn._INTEROP:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(f"fusedrnn.{name}")
            found.add(name)
    return sorted(found)


class Public(SphinxDirective):
    """The public names of a page of the reference, so that a new one needs no entry anywhere."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        if self.arguments == ["packages"]:
            found = [
                f"## fusedrnn.{name}\n\n{directive('module', f'fusedrnn.{name}')}" for name in packages()
            ]
        else:
            found = [
                directive("class" if name[0].isupper() else "function", f"fusedrnn.{name}")
                for name in names_on(self.arguments[0])
            ]
        return self.parse_text_to_nodes("\n\n".join(found), allow_section_headings=True)


def directive(of: str, name: str) -> str:
    return f"```{{eval-rst}}\n.. auto{of}:: {name}\n```"


def process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    # Of a property's text napoleon takes what is before a colon for a type: let its first line be a comment.
    lines[:] = [*((".. ", "") if what == "property" else ()), *restructured(lines)]


def signature(app: Any, what: str, name: str, obj: Any, *rest: Any) -> tuple[str, None] | None:
    """What is asked of whoever makes an object is asked by `__init__`, whatever `__new__` takes."""
    if what != "class":
        return None
    try:
        found = inspect.signature(obj)
    except ValueError:  # of a class like dict
        return None
    bare = [one.replace(annotation=one.empty) for one in found.parameters.values()]
    return str(found.replace(parameters=bare, return_annotation=found.empty)), None


def without_empty(app: Any, page: str, source: list[str]) -> None:
    """Leave out of the contents what has no pages yet: a pattern without any is a warning."""
    if page == root_doc:
        here = Path(__file__).parent
        empty = (line for line in re.findall(r"^\S+\*$", source[0], re.M) if not any(here.glob(f"{line}.md")))
        for line in empty:
            source[0] = source[0].replace(f"\n{line}\n", "\n")


def setup(app: Any) -> None:
    app.connect("source-read", without_empty)
    app.connect("autodoc-process-signature", signature)
    app.add_directive("public", Public)
    app.connect("autodoc-process-docstring", process, priority=100)  # before napoleon
