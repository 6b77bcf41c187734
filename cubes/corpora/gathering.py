"""The predecessors' whole recipes on any catalogue: patches, dates by rule, one cube a patch.

SEN12TS covers an area with cells and keeps the dates of its series; DeepSentinel draws points and
keeps one pair each. What is found, and why a patch has nothing, stands in a table.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import traceback
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from cubes import grid, places, registry, runs, sen12ts
from cubes.corpora.recipes import RECIPES, Recipe, recipe, there
from cubes.cube import open_plan
from cubes.errors import NothingFound
from cubes.request import Request
from cubes.stac import search
from cubes.steps import picked
from cubes.store import verbs as store
from cubes.times import time_range
from cubes.types import AOI, Catalog, CubeError, Grid, Plan, Progress

MATCHED, UNMATCHED, FAILED = "matched", "unmatched", "failed"


def lacking(made: Recipe, catalog: Catalog, area: AOI | None = None) -> dict[str, str]:
    """Return the layers that a catalogue cannot deliver for an area, each with why.

    A catalogue that has rows for all of them is asked for one item of each collection there;
    without an area it is not asked.
    """
    rows = [row for row in map(registry.layer, made.layers) if not row.derived_from]
    out = {
        r.name: "the catalogue has no such layer" for r in rows if r.name not in catalog.products
    }
    if out or area is None:
        return out
    asked: dict[tuple[str, bool], bool] = {}
    for row in rows:
        collection = catalog.products[row.name].collection
        timed = row.stack_dim in ("time", "pair")
        if (collection, timed) not in asked:
            time = made.time if timed else None
            asked[collection, timed] = search.holds(catalog, collection, area, time)
        if not asked[collection, timed]:
            when = f" in {' .. '.join(made.time)}" if timed else ""
            out[row.name] = f"collection {collection!r} has nothing there{when}"
    return out


def fits(made: Recipe, catalog: Catalog, area: Any = None) -> tuple[Recipe, AOI | None]:
    """Return a recipe as it is for an area, and that area; asks no catalogue.

    Raises
    ------
    CubeError
        No area where the recipe covers one; layers that the catalogue has no row for, all named.
    """
    if area is None and made.where == "cover":
        raise CubeError(f"recipe {made.name!r} covers an area: name one, such as 'california'")
    where = None if area is None else grid.as_aoi(area)
    made = there(made, where)
    _refuse(lacking(made, catalog), made, catalog, where)
    return made, where


def _refuse(lost: Mapping[str, str], made: Recipe, catalog: Catalog, area: AOI | None) -> None:
    if lost:
        said = "; ".join(f"{layer}: {why}" for layer, why in lost.items())
        raise CubeError(
            f"recipe {made.name!r} needs layers that catalogue {catalog.name!r} cannot deliver for "
            f"{area.name if area else 'all land'}: {said}. Name a catalogue that has them; "
            "labels, terrain and geometry may be left out (without=)"
        )


def gather(
    name: str | Recipe,
    area: Any,
    out: str | Path,
    *,
    catalog: str | Path | Catalog,
    limit: int | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Return one row per patch of a recipe, after writing the cube of each that has a match.

    Safe to run again: patches that an earlier run of the same recipe finished are taken as they
    are, without a search; those that failed or had no match are tried anew.

    Parameters
    ----------
    name : str or Recipe
        See `RECIPES`, and `recipe` for other periods, seeds, or fewer layers.
    area : anything `cubes.aoi` takes, or None
        None: all land (recipes that draw points only).
    out : path
        Folder: ``cubes/NAME.zarr``, and ``patches.csv``, the returned table, brought up to date
        after every patch.
    catalog : str, Path or Catalog
        Where to search.
    limit : int, optional
        Most patches tried (cells), or matched (points): the first ones of a run without it (of
        points the first of each window of time).
    progress : callable, optional
        Told after every patch.

    Returns
    -------
    pandas.DataFrame
        ``name``, ``state`` (``matched``, or ``unmatched`` with its ``reason``), ``store``,
        ``s1``, ``s2``, ``pairs`` (dates kept), ``series`` (triplets, by the series rule) or
        ``gap_hours``, ``track``, ``platform``, ``cloud_cover`` of the one pair. ``traceback`` of
        failures that are faults of the program.

    Raises
    ------
    CubeError
        Unknown names; layers that the catalogue lacks there, all named, before anything is
        written; an area where the recipe needs one; after all others, patches that failed, and
        fewer matched points than asked for.
    """
    source = registry.catalog(catalog)
    made, where = fits(recipe(name), source, area)
    _refuse(lacking(made, source, where), made, source, where)
    gathering = _Gathering(recipe=made, catalog=source, folder=Path(out))
    tried = gathering.cover(where, limit) if where is not None and made.where == "cover" else (
        gathering.draw(where, made.points if limit is None else limit)
    )  # fmt: skip
    rows: list[dict[str, Any]] = []
    for row, done, total in tried:
        rows.append(row)
        table = gathering.keep(rows)
        if [r["state"] for r in rows[-HOPELESS:]] == [FAILED] * HOPELESS:
            break  # a catalogue that is down fails all of them, each after its retries
        if progress is not None:
            progress(done, total, f"{row['name']} {row['state']}")
    if not rows:
        raise CubeError(f"no cell covers {where.name if where else 'all land'}: nothing to gather")
    _refuse_if_short(table, made, limit, gathering.patches)
    return table


def _refuse_if_short(table: pd.DataFrame, made: Recipe, limit: int | None, told: Path) -> None:
    """Raise if patches failed, or fewer points were matched than asked for."""
    failed = table[table["state"] == FAILED]
    if len(failed):
        one = failed.iloc[0]
        faults = (
            failed["traceback"].dropna() if "traceback" in failed else failed["reason"].iloc[:0]
        )
        shown = (
            f"\n{len(faults)} by a fault of the program:\n{faults.iloc[0]}" if len(faults) else ""
        )
        raise CubeError(
            f"{len(failed)} of {len(table)} patches failed, the first ({one['name']}) with: "
            f"{one['reason']}. The others stay; run again to try these anew (reasons in {told})"
            + shown
        )
    wanted = made.points if limit is None else limit
    matched = int((table["state"] == MATCHED).sum())
    if made.where == "points" and matched < wanted:
        raise CubeError(
            f"{matched} of {wanted} points have a match after {len(table)} draws (reasons in "
            f"{told}); what was found stays"
        )


HOPELESS = 8
"""Patches in a row whose failure ends a run."""

BLOCK = 8
"""Cells along the edge of what is searched at once: one search per collection for 64 cells."""
ROUNDS = 5
"""Draws of points: those without a match are drawn anew so often."""


@dataclass(frozen=True, kw_only=True)
class _Gathering:
    recipe: Recipe
    catalog: Catalog
    folder: Path

    @property
    def patches(self) -> Path:
        return self.folder / "patches.csv"

    @property
    def same(self) -> str:
        """What must be equal for a patch of an earlier run to count: recipe and catalogue."""
        body = json.dumps([asdict(self.recipe), self.catalog.name], sort_keys=True, default=str)
        return hashlib.sha256(body.encode()).hexdigest()

    @cached_property
    def before(self) -> dict[str, dict[str, Any]]:
        """Rows of an earlier run of the same recipe, by name."""
        note = self.patches.with_suffix(".json")
        if not note.is_file():
            return {}
        try:
            body = json.loads(note.read_text(encoding="utf-8"))
            return dict(body["rows"]) if body["same"] == self.same else {}
        except (ValueError, KeyError, TypeError):
            return {}  # torn: patches are asked for again

    def keep(self, rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
        """Return the rows as a table, also put where a person can follow a long run.

        Rows of an earlier run stand there until their patch is reached again.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        every = {**self.before, **{str(row["name"]): dict(row) for row in rows}}
        note = json.dumps({"same": self.same, "rows": every}, default=_plain)
        for path, text in (
            (self.patches, pd.DataFrame(every.values()).to_csv(index=False)),
            (self.patches.with_suffix(".json"), note),
        ):
            unfinished = path.with_suffix(".part")
            unfinished.write_text(text, encoding="utf-8")
            unfinished.replace(path)
        return pd.DataFrame(rows)

    def cover(self, area: AOI, limit: int | None) -> Iterator[tuple[dict[str, Any], int, int]]:
        """Yield a row per cell, and how far that is. Each zone's part has cells of that zone."""
        import shapely

        cells = places.patches([area.geometry], size=self.recipe.edge)
        cells = cells[cells["share"] >= self.recipe.min_share].iloc[:limit]
        side = BLOCK * self.recipe.edge
        done = 0
        for _, block in cells.groupby(["crs", cells["y"] // side, cells["x"] // side], sort=False):
            # the cells' own searches are for the boxes around their pixels: a little wider
            where = shapely.union_all([aoi.geometry.envelope for aoi in block["aoi"]]).envelope
            wide = shapely.clip_by_rect(where.buffer(0.05, join_style="mitre"), -180, -90, 180, 90)
            with contextlib.ExitStack() as inside:
                why: Exception | None = None
                if any(self.kept(aoi.name) is None for aoi in block["aoi"]):
                    try:
                        inside.enter_context(
                            search.searched(self.catalog, self._collections(), wide, self._period())
                        )
                    except Exception as error:
                        why = error
                for aoi, box in zip(block["aoi"], block["grid"], strict=True):
                    done += 1
                    row = _lost(aoi, why) if why else self.row(aoi, box, self.recipe.time)
                    yield row, done, len(cells)

    def kept(self, name: str) -> dict[str, Any] | None:
        """Return the row of a patch that an earlier run finished, its cube still sealed."""
        row = self.before.get(name)
        if row is None or row["state"] != MATCHED:
            return None
        return row if (Path(row["store"]) / "__cubes__" / "sealed.json").is_file() else None

    def _collections(self) -> list[tuple[str, bool, Mapping[str, Any]]]:
        """Return what the recipe's layers are searched in: collection, whether by time, query."""
        out: dict[str, tuple[str, bool, Mapping[str, Any]]] = {}
        for layer in map(registry.layer, self.recipe.layers):
            if not layer.derived_from:
                product = self.catalog.products[layer.name]
                timed = layer.stack_dim in ("time", "pair")
                asked = (product.collection, timed, product.query)
                out.setdefault(repr(asked), asked)
        return list(out.values())

    def _period(self) -> tuple[str, str]:
        return time_range(self.recipe.time)

    def draw(self, area: AOI | None, n: int) -> Iterator[tuple[dict[str, Any], int, int]]:
        """Yield a row per point tried until `n` are matched, equally many per window of time."""
        import shapely

        within = None if area is None else shapely.from_wkt(area.wkt)
        spans = places.windows(self.recipe.time)
        found = 0
        for number, span in enumerate(spans):
            # as many as the whole recipe draws: fewer are the first of the same
            wanted, whole = (
                m // len(spans) + (number < m % len(spans)) for m in (n, max(n, self.recipe.points))
            )
            for turn in range(ROUNDS):
                if not wanted:
                    break
                seed = (self.recipe.seed * 1_000 + number) * ROUNDS + turn
                drawn = places.points(whole, seed=seed, within=within, size=self.recipe.edge)
                for aoi in drawn["aoi"]:
                    if not wanted:
                        break
                    one = (span[0].isoformat(), (span[1] - pd.Timedelta("1us")).isoformat())
                    row = self.row(aoi, Grid(shape=(self._pixels, self._pixels)), one)
                    wanted -= row["state"] == MATCHED
                    whole -= row["state"] == MATCHED
                    found += row["state"] == MATCHED
                    yield row, found, n

    @property
    def _pixels(self) -> int:
        return round(self.recipe.edge / 10)

    def row(self, aoi: AOI, box: Any, time: tuple[str, str]) -> dict[str, Any]:
        """Return what one patch gave, its cube written if there is anything to keep.

        A patch that cannot be had stops no other, whatever the reason.
        """
        if (known := self.kept(aoi.name)) is not None:
            return known
        try:
            return self._tried(aoi, box, time)
        except NothingFound as error:
            return {"name": aoi.name, "state": UNMATCHED, "reason": str(error)}
        except Exception as error:
            return _lost(aoi, error)

    def _tried(self, aoi: AOI, box: Any, time: tuple[str, str]) -> dict[str, Any]:
        request = Request.of(
            aoi, time, self.recipe.layers, catalog=self.catalog, grid=box,
            bands=self.recipe.bands, on_missing="mask",
        )  # fmt: skip
        plan = request.plan()
        kept = self._series(plan) if self.recipe.rule else self._pair(plan)
        if isinstance(kept, str):
            return {"name": aoi.name, "state": UNMATCHED, "reason": kept}
        steps, told = kept
        path = self.folder / "cubes" / f"{aoi.name}.zarr"
        path.parent.mkdir(parents=True, exist_ok=True)
        report = store.write(picked(plan, steps), path)
        if report.state != "sealed":
            why = next(iter(report.failed.values()), str(report))
            return {"name": aoi.name, "state": FAILED, "reason": why, "store": str(path)}
        row = {"name": aoi.name, "state": MATCHED, "reason": "", "store": str(path)}
        names = {"s1": "s1", "s2": "s2", "insar": "pairs"}
        counts = {names[group]: len(set(where)) for (group, _), where in steps.items()}
        if self.recipe.rule:
            rule = replace(self.recipe.rule, seed=self.recipe.seed)
            told["series"] = len(sen12ts.series(path, rule)) if self._complete else 0
        return {**row, **counts, **told}

    @property
    def _complete(self) -> bool:
        return set(RECIPES["sen12ts"].layers) <= set(self.recipe.layers)

    def _series(self, plan: Plan) -> tuple[dict[tuple[str, str], list[int]], dict[str, Any]] | str:
        """Return the steps of every series that may qualify by its dates, or why none does."""
        assert self.recipe.rule is not None
        found = sen12ts.candidates(open_plan(plan), self.recipe.rule)
        if found.empty:
            return (
                "no series of four dates 12 days apart on one track, each with a 12-day pair, that "
                f"ends within {self.recipe.rule.max_gap} days of a Sentinel-2 scene of at most "
                f"{self.recipe.rule.max_cloud} % cloud"
            )
        steps = {
            ("s1", "time"): [i for row in found["s1"] for i in row],
            ("insar", "pair"): [i for row in found["pairs"] for i in row],
            ("s2", "time"): list(found["s2"]),
        }
        return steps, {"track": ",".join(sorted(set(found["track"])))}

    def _pair(self, plan: Plan) -> tuple[dict[tuple[str, str], list[int]], dict[str, Any]] | str:
        """Return the steps of one pair drawn at random, or why there is none."""
        radar, optical = (
            pd.DataFrame({"time": pd.to_datetime(list(axis.coords["time"]))})
            for axis in (_axis(plan, "s1"), _axis(plan, "s2"))
        )
        every = runs.matches(radar, optical, max_gap=self.recipe.max_gap, how="all")
        if every.empty:
            return f"no Sentinel-1 and Sentinel-2 dates within {self.recipe.max_gap}"
        # its place decides with the seed: one draw for all would be the n-th pair of every patch
        own = zlib.crc32(f"{self.recipe.seed} {plan.attrs['aoi_wkt']}".encode())
        one = every.sample(1, random_state=own).iloc[0]
        i, j = int(one["radar"]), int(one["optical"])
        s1, s2 = _axis(plan, "s1").coords, _axis(plan, "s2").coords
        told = {
            "gap_hours": round(one["gap"] / pd.Timedelta("1h"), 2),
            "track": s1["relative_orbit"][i],
            "orbit_state": s1["orbit_state"][i],
            "platform": f"{s1['platform'][i]}, {s2['platform'][j]}",
            "cloud_cover": s2.get("cloud_cover", {j: None})[j],
            "items": f"{s1['items'][i]}, {s2['items'][j]}",
        }
        return {("s1", "time"): [i], ("s2", "time"): [j]}, told


def _lost(aoi: AOI, error: Exception) -> dict[str, Any]:
    """Return the row of a patch that failed, with the traceback of what nothing here foresees."""
    row = {"name": aoi.name, "state": FAILED, "reason": f"{type(error).__name__}: {error}"}
    if not isinstance(error, CubeError | OSError):
        row["traceback"] = "".join(traceback.format_exception(error))
    return row


def _plain(value: Any) -> Any:
    """Return a number of numpy as one of Python, anything else as text."""
    return value.item() if hasattr(value, "item") else str(value)


def _axis(plan: Plan, group: str) -> Any:
    return next(a for a in plan.axes if (a.group, a.dim) == (group, "time"))
