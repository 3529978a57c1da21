"""Layout: which parameter lies where in the flat arrays of a module."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fusedrnn.arrays import Array
from fusedrnn.nn.buffers import named_views
from fusedrnn.nn.module import Module


class Layout(NamedTuple):
    """The parameters of a module in the order in which they lie in its flat arrays.

    Attributes:
        mark: an object of the module's that it replaces whenever the order may have changed.
        shapes: {dotted name: shape}.
        dtype: that of the parameters.
    """

    mark: object
    shapes: dict[str, tuple[int, ...]]
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, module: Module) -> Layout:
        """Return the layout that a module has now."""
        module._check_found()
        module._gather()
        shapes = {
            f"{prefix}.{name}" if prefix else name: shape
            for prefix, member in module.named_modules()
            for name, shape in member._shapes.items()
        }
        return cls(module._layout, shapes, module.dtype)

    def reorder(self, flat: Array, new: Layout) -> Array:
        """Return an array of this layout in another of the same names and shapes; itself if they agree."""
        if list(self.shapes) == list(new.shapes):
            return flat
        moved: Array = flat.copy()
        source = named_views(flat, self.shapes)
        for name, view in named_views(moved, new.shapes).items():
            view[...] = source[name]
        return moved

    def difference(self, new: Layout) -> str:
        """Say which parameters of another layout are not those of this one; empty if all are."""
        before, now = self.shapes, new.shapes
        kinds = {
            "missing": [name for name in before if name not in now],
            "unexpected": [name for name in now if name not in before],
            "of another shape": [name for name in before if now.get(name, before[name]) != before[name]],
        }
        if before and self.dtype != new.dtype:
            kinds["of another dtype"] = [str(new.dtype)]
        return "; ".join(f"{kind}: {', '.join(names)}" for kind, names in kinds.items() if names)
