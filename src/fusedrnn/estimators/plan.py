"""What a `Forecaster` was fitted for."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fusedrnn.checks import check_number, check_size
from fusedrnn.estimators.densities import DENSITIES


class Plan(NamedTuple):
    """What a network was fitted for, whatever the parameters were set to since."""

    context: int
    horizon: int
    season: int | None
    quantiles: list[float]
    covariates: int
    distribution: str | None

    @property
    def back(self) -> int:
        """How many steps ago the value is that a forecast starts from."""
        return self.season or 1

    @classmethod
    def of(cls, given: Any) -> Plan:
        """Return the plan of a Forecaster's parameters.

        Raises:
            TypeError: a parameter of the wrong kind.
            ValueError: one out of range.
        """
        context, horizon = check_size("context", given.context), check_size("horizon", given.horizon)
        if given.season is not None and check_size("season", given.season) > context:
            raise ValueError(f"season: expected at most context = {context} steps, got {given.season}")
        wanted = [0.5] if given.quantiles is None else given.quantiles
        if not np.iterable(wanted):
            raise TypeError(f"quantiles: expected a list of numbers in (0, 1) or None, got {wanted!r}")
        levels = [check_number(f"quantiles[{i}]", level, 0.0, 1.0) for i, level in enumerate(wanted)]
        if not levels or levels != sorted(set(levels)) or {0.0, 1.0} & set(levels):
            raise ValueError(f"quantiles: expected ascending numbers in (0, 1), got {given.quantiles!r}")
        named = given.distribution
        if named is not None and not (isinstance(named, str) and named in DENSITIES):
            names = ", ".join(map(repr, DENSITIES))
            raise ValueError(f"distribution: expected {names} or None, got {named!r}")
        if named is not None and given.bidirectional:
            raise ValueError(
                "bidirectional: expected False with a distribution, which reads forwards, got True"
            )
        covariates = check_size("covariates", given.covariates, 0)
        return cls(context, horizon, given.season, levels, covariates, named)
