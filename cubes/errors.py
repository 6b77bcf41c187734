"""What users are told when something is wrong: the value, what is allowed, the remedy."""

from __future__ import annotations

from typing import Any


class CubeError(ValueError):
    """Says what was wrong with a user's input or data, what is allowed, and the remedy."""


class NothingFound(CubeError):
    """A search that was answered, with nothing in it."""


class AssetReadError(CubeError):
    """Names the item, asset, window, status and attempts of a read that failed for good.

    Built from plain strings and numbers, so that it survives pickling between dask processes.
    """

    def __init__(
        self, item: str, asset: str, *, reason: str, where: str = "", attempts: int = 1
    ) -> None:
        self.item, self.asset, self.reason = item, asset, reason
        self.where, self.attempts = where, attempts
        super().__init__(
            f"item {item!r}, asset {asset!r}{f', {where}' if where else ''}: {reason} "
            f"(after {attempts} attempt{'s' if attempts != 1 else ''})"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what rebuilds the error with its keyword arguments."""
        return (_asset_read_error, (self.item, self.asset, self.reason, self.where, self.attempts))


def _asset_read_error(
    item: str, asset: str, reason: str, where: str, attempts: int
) -> AssetReadError:
    return AssetReadError(item, asset, reason=reason, where=where, attempts=attempts)
