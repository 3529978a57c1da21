"""The one exception that the command line turns into one line of text, and text that is safe to show."""

from __future__ import annotations


class CliError(Exception):
    """Something that the person at the terminal can put right; its text is all that is shown."""


def printable(text: str) -> str:
    """Return text with every character that is not printable as its escape.

    Text that comes out of a file must not move the cursor, rename the window, or look like two lines.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
