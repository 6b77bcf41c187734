"""What can be written as a cube, and where its stored numbers come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cubes import ledger
from cubes.build import Pixels, PlanPixels
from cubes.layout import ArrayLayout
from cubes.ledger import Build
from cubes.types import CubeError, Plan


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanSource:
    """A plan: its pixels come from assets, so any process can read them."""

    plan: Plan
    name: str = "plan"
    remote: bool = True

    def pixels(self, arrays: dict[str, ArrayLayout], client: Any) -> Pixels:
        """Return the reader of stored numbers."""
        return PlanPixels(plan=self.plan, arrays=arrays)


def source(what: Any) -> Any:
    """Return `what` as something that `cubes.store` can write."""
    if isinstance(what, Plan):
        return PlanSource(plan=what)
    if hasattr(what, "plan"):
        return PlanSource(plan=what.plan())
    raise CubeError(f"cannot write a {type(what).__name__}")


def again(build: Build, what: Any) -> Any:
    """Return the source that `build` was written from, to mend it."""
    return PlanSource(plan=ledger.build_plan(build))
