"""The one exception that the command line turns into one line of text."""

from __future__ import annotations


class CliError(Exception):
    """Something that the person at the terminal can put right; its text is all that is shown."""
