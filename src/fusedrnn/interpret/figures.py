"""Figures without windows and global state."""

from __future__ import annotations

from typing import Any


def new_figure(width: float = 8.0, height: float = 3.5) -> Any:
    """Return a matplotlib Figure, which `savefig` writes and notebooks show.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    try:
        # Imported here because it is slow.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "figure: expected matplotlib to be installed; pip install matplotlib", name=error.name
        ) from None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
