"""Series, pairs, matches and caps: against brute force, and on the real OPERA dates."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cubes import runs
from cubes.types import CubeError

START = pd.Timestamp("2020-01-01T05:41:00")


def acquisitions(days: list[int], track: str = "37D", **columns: object) -> pd.DataFrame:
    times = [START + pd.Timedelta(days=d) for d in days]
    return pd.DataFrame({"time": pd.to_datetime(times), "track": track, **columns})


@settings(max_examples=80, deadline=None)
@given(
    days=st.lists(st.integers(0, 30), unique=True, max_size=14),
    dates=st.integers(1, 4),
    step=st.sampled_from([1, 2, 3]),
)
def test_series_equal_brute_force(days: list[int], dates: int, step: int) -> None:
    days = [6 * d for d in days]
    table = acquisitions(days)
    found = runs.runs(table, dates=dates, step=f"{6 * step}D")
    possible = [tuple(first + 6 * step * i for i in range(dates)) for first in days]
    expected = {chain for chain in possible if set(chain) <= set(days)}
    got = {tuple(int((t - START) / pd.Timedelta("1D")) for t in times) for times in found["times"]}
    assert got == expected
    assert len(found) == len(expected)
    shuffled = runs.runs(table.sample(frac=1, random_state=1), dates=dates, step=f"{6 * step}D")
    assert list(shuffled["times"]) == list(found["times"])


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 12), st.sampled_from("AB"), st.sampled_from(["t1", "t2"])),
        unique=True, max_size=12,
    )
)  # fmt: skip
def test_pairs_equal_brute_force(rows: list[tuple[int, str, str]]) -> None:
    table = pd.DataFrame(
        {"time": [START + pd.Timedelta(days=6 * d) for d, _, _ in rows],
         "place": [p for _, p, _ in rows], "track": [t for _, _, t in rows]}
    )  # fmt: skip
    table["time"] = pd.to_datetime(table["time"])
    expected = {
        (i, j, 6 * (b[0] - a[0]))
        for (i, a), (j, b) in itertools.permutations(enumerate(rows), 2)
        if a[1:] == b[1:] and b[0] - a[0] in (1, 2)
    }
    found = runs.pairs(table, baselines=(6, 12))
    got = set(zip(found["reference"], found["secondary"], found["temporal_baseline"], strict=True))
    assert got == expected
    assert (found["reference_time"] < found["secondary_time"]).all()


@settings(max_examples=60, deadline=None)
@given(
    radar=st.lists(st.integers(0, 60), max_size=8),
    optical=st.lists(st.integers(0, 60), max_size=8),
    gap=st.integers(0, 10),
)
def test_matches_equal_brute_force(radar: list[int], optical: list[int], gap: int) -> None:
    one, two = acquisitions(radar), acquisitions(optical)
    everything = runs.matches(one, two, max_gap=f"{gap}D", how="all")
    expected = {
        (i, j) for i, a in enumerate(radar) for j, b in enumerate(optical) if abs(a - b) <= gap
    }
    assert set(zip(everything["radar"], everything["optical"], strict=True)) == expected
    nearest = runs.matches(one, two, max_gap=f"{gap}D").set_index("radar")
    drawn = runs.matches(one, two, max_gap=f"{gap}D", how="random", seed=4)
    again = runs.matches(one, two, max_gap=f"{gap}D", how="random", seed=4)
    pd.testing.assert_frame_equal(drawn, again)
    for i, a in enumerate(radar):
        close = [b for b in optical if abs(a - b) <= gap]
        assert (i in nearest.index) == bool(close) == (i in set(drawn["radar"]))
        if close:
            assert abs(optical[nearest.loc[i, "optical"]] - a) == min(abs(b - a) for b in close)
    assert set(zip(drawn["radar"], drawn["optical"], strict=True)) <= expected


def test_random_matches_do_not_always_take_the_nearest() -> None:
    radar = acquisitions([100] * 40)
    optical = acquisitions([98, 99, 100, 101, 102])
    assert runs.matches(radar, optical, how="random")["optical"].nunique() == 5


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_draw_does_not_depend_on_other_rows(data: st.DataObject) -> None:
    """Rows may go, come in another order, or be numbered anew: the others keep their partners."""
    days = data.draw(st.lists(st.integers(0, 40), min_size=2, max_size=12))
    places = data.draw(st.lists(st.sampled_from("AB"), min_size=len(days), max_size=len(days)))
    radar = acquisitions(days, place=places)
    optical = pd.concat([acquisitions(list(range(0, 41, 2)), place=p) for p in "AB"])
    optical = optical.reset_index(drop=True)

    def drawn(one: pd.DataFrame, two: pd.DataFrame = optical) -> dict[tuple[object, ...], object]:
        found = runs.matches(one, two, how="random", max_gap="9D", seed=3)
        rows = one.loc[found["radar"]]
        mates = two.loc[found["optical"], "time"]
        # rows that agree in all they are cannot be told apart: their partners as a bag
        out: dict[tuple[object, ...], object] = {}
        for key, mate in zip(zip(rows["place"], rows["time"], strict=True), mates, strict=True):
            out[key] = (*out.get(key, ()), mate)  # type: ignore[misc]
        return {k: tuple(sorted(v)) for k, v in out.items()}  # type: ignore[call-overload]

    whole = drawn(radar)
    gone = data.draw(st.sets(st.sampled_from(list(zip(places, radar["time"], strict=True)))))
    left = radar[[k not in gone for k in zip(places, radar["time"], strict=True)]]
    assert drawn(left) == {k: v for k, v in whole.items() if k not in gone}
    assert drawn(left.reset_index(drop=True)) == drawn(left)
    assert drawn(radar.sample(frac=1, random_state=1)) == whole
    assert drawn(radar, optical.sample(frac=1, random_state=1)) == whole
    # an optical scene that was not drawn may go as well
    taken = {(p, t) for (p, _), mates in whole.items() for t in mates}
    kept = optical[[k in taken for k in zip(optical["place"], optical["time"], strict=True)]]
    assert drawn(radar, kept) == whole


def test_draws_differ_by_seed_and_are_even() -> None:
    radar, optical = acquisitions(list(range(0, 600, 2))), acquisitions(list(range(-3, 604)))
    gaps = [runs.matches(radar, optical, how="random", seed=s)["gap"] for s in (1, 2)]
    assert (gaps[0] != gaps[1]).mean() > 0.7
    counts = gaps[0].value_counts()
    assert len(counts) == 7
    assert counts.min() > 20, "43 of 300 are expected for each of 7 gaps"
    zoned = [t.assign(time=t["time"].dt.tz_localize("UTC")) for t in (radar, optical)]
    assert (runs.matches(*zoned, how="random", seed=1)["gap"] == gaps[0]).all()
    assert runs.matches(radar[:0], optical, how="random").empty


def test_matches_keep_all_that_is_known_of_the_two() -> None:
    """Gap, track, pass, platform, cloud, baseline, angles, items: not labels to look them up by."""
    radar = acquisitions([0, 12, 24], place=["A", "A", "B"], platform="sentinel-1a").assign(
        orbit_state="ascending", items=["r0", "r1", "r2"]
    )
    optical = acquisitions([1, 11, 25], place=["A", "A", "B"], platform="sentinel-2b").assign(
        cloud_cover=[3.0, 40.0, 7.0], baseline="05.09", sun_elevation=[40.0, 41.0, 42.0],
        items=["o0", "o1", "o2"],
    ).set_index(pd.Index([7, 7, 7]))  # fmt: skip
    found = runs.matches(radar, optical, max_gap="2D")
    assert found["place"].tolist() == ["A", "A", "B"]
    assert found["radar_items"].tolist() == ["r0", "r1", "r2"]
    assert found["optical_items"].tolist() == ["o0", "o1", "o2"]
    assert found["optical_cloud_cover"].tolist() == [3.0, 40.0, 7.0]
    assert found["optical_sun_elevation"].tolist() == [40.0, 41.0, 42.0]
    assert (found["optical_time"] - found["radar_time"] == found["gap"]).all()
    for column in ("radar_track", "radar_orbit_state", "radar_platform", "optical_baseline"):
        assert found[column].notna().all()
    none = runs.matches(radar, optical, max_gap="1h")
    assert none.empty
    assert list(none.columns) == list(found.columns)


def test_a_series_is_matched_against_its_newest_date() -> None:
    series = runs.runs(acquisitions([0, 12, 24, 36]))
    assert len(runs.matches(series, acquisitions([34]))) == 1
    assert runs.matches(series, acquisitions([1, 20])).empty


def test_every_date_needs_a_pair_that_ends_there() -> None:
    table = acquisitions([0, 12, 24, 36, 48])
    pairs = runs.pairs(table, baselines=(12,))
    # the first date has no pair that ends on it, so one series remains
    assert len(runs.runs(table)) == 2
    with_coherence = runs.runs(table, pairs=pairs)
    assert [t.day for t in with_coherence["times"].iloc[0]] == [13, 25, 6, 18]
    assert len(with_coherence) == 1
    # a 24-day pair does not stand in for a 12-day one
    assert runs.runs(table, pairs=pairs.assign(temporal_baseline=24)).empty


def test_platforms_can_be_kept_apart() -> None:
    table = acquisitions([0, 6, 12, 18, 24, 30], platform=["a", "b"] * 3)
    assert [len(c) for c in runs.chains(table, step="6D")] == [6]
    assert sorted(len(c) for c in runs.chains(table, step="12D", same_platform=True)) == [3, 3]


def test_seasons_and_caps() -> None:
    times = pd.Series(pd.to_datetime(["2020-12-01", "2020-02-29", "2020-03-01", "2020-08-31"]))
    assert runs.season(times).tolist() == ["winter", "winter", "spring", "summer"]
    table = pd.DataFrame({"tile": np.repeat(["a", "b"], 10), "n": range(20)})
    kept = runs.cap(table, 4, by=["tile"], seed=1)
    assert kept.groupby("tile").size().tolist() == [4, 4]
    assert kept["n"].is_monotonic_increasing
    assert not kept.equals(runs.cap(table, 4, by=["tile"], seed=2))


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda t: runs.runs(t, dates=0), "is none"),
        (lambda t: runs.runs(t, step="0D"), "must be positive"),
        (lambda t: runs.pairs(t, baselines=(0,)), "must be positive days"),
        (lambda t: runs.matches(t, t, how="best"), "not one of"),
        (lambda t: runs.matches(t, t, max_gap="-1D"), "negative"),
        (lambda t: runs.runs(t.drop(columns="track")), "needs a column 'track'"),
        (lambda t: runs.cap(t, 0, by=["track"]), "keeps nothing"),
    ],
)
def test_wrong_rules_are_refused(call, word: str) -> None:
    with pytest.raises(CubeError, match=word):
        call(acquisitions([0, 12]))


# ------------------------------------------------------------------- nothing is lost in silence


def test_rows_without_a_place_or_burst_are_a_group() -> None:
    table = acquisitions([0, 12, 24, 36], place=None)
    assert [len(c) for c in runs.chains(table)] == [4]
    assert len(runs.runs(table)) == 1
    assert len(runs.pairs(acquisitions([0, 12, 24, 36], burst=None))) == 3
    mixed = pd.concat([table, table.assign(place="a")], ignore_index=True)
    assert sorted(len(c) for c in runs.chains(mixed)) == [4, 4]
    assert len(runs.runs(mixed, pairs=runs.pairs(mixed), dates=3)) == 2
    # what is written NaN in one table is None in another
    assert len(runs.matches(table, table.assign(place=np.nan), max_gap="0D")) == 4
    kept = runs.cap(pd.DataFrame({"tile": ["a", "a", None, np.nan, None]}), 2, by=["tile"])
    assert kept["tile"].isna().sum() == 2
    assert len(kept) == 4


def test_one_platform_has_many_spellings() -> None:
    table = acquisitions([0, 12, 24, 36], platform=["S1A", "SENTINEL-1A", "sentinel-1a", "S1A"])
    assert [len(c) for c in runs.chains(table, same_platform=True)] == [4]


def test_times_without_a_zone_are_utc() -> None:
    plain = acquisitions([0, 12, 24, 36])
    zoned = plain.assign(time=plain["time"].dt.tz_localize("UTC"))
    east = zoned.assign(time=zoned["time"].dt.tz_convert("Asia/Tokyo"))
    mixed = pd.DataFrame({"time": [*plain["time"][:2], *east["time"][2:]], "track": "37D"})
    for other in (zoned, east, mixed):
        gaps = runs.matches(plain, other, max_gap="1h")["gap"]
        assert gaps.tolist() == [pd.Timedelta(0)] * 4
        assert [len(c) for c in runs.chains(other)] == [4]
        assert len(runs.runs(other, pairs=runs.pairs(plain), dates=3)) == 1


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda t: runs.runs(t.assign(time=[*t["time"][:3], pd.NaT])), "1 of 4 rows lack one"),
        (lambda t: runs.chains(t.assign(track=["1A", None, "1A", "1A"])), "track in every row"),
        (lambda t: runs.pairs(t.assign(time=[*t["time"][:3], pd.NaT])), "with index 3"),
        (lambda t: runs.chains(t.assign(platform=["S1A", None, "S1A", "S1A"]), same_platform=True),
         "one platform needs a platform in every row"),
        (lambda t: runs.chains(t, same_platform=True), "needs a column 'platform'"),
        (lambda t: runs.matches(t, t.assign(time=[*t["time"][:3], pd.NaT])), "time in every row"),
        (lambda t: runs.matches(t.assign(time=[*t["time"][:3], pd.NaT]), t), "time in every row"),
        (lambda t: runs.season(pd.Series([*t["time"], pd.NaT])), "1 of 5 rows"),
        (lambda t: runs.within(t.assign(cloud=[1, 2, None, 3]), {"cloud": 5}), "with index 2"),
        (lambda t: runs.within(t, {"cloud": 5}), "needs a column 'cloud'"),
        (lambda t: runs.within(t.assign(cloud=1.0), {"cloud": np.nan}), "leave it out"),
        (lambda t: runs.within(t, {}, unknown="drp"), "not one of"),
    ],
)  # fmt: skip
def test_rows_that_would_be_lost_are_named(call, word: str) -> None:
    with pytest.raises(CubeError, match=word):
        call(acquisitions([0, 12, 24, 36]))


# ----------------------------------------------------------------------- against brute force


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 10), st.sampled_from(["S1A", "sentinel-1a", "S1B"]),
                  st.sampled_from(["x", None])),
        unique_by=lambda r: (r[0], r[1] == "S1B", r[2]), max_size=14,
    )
)  # fmt: skip
def test_runs_on_one_platform_equal_brute_force(rows: list[tuple[int, str, str | None]]) -> None:
    table = acquisitions([6 * d for d, _, _ in rows])
    table = table.assign(
        platform=pd.Series([p for _, p, _ in rows], dtype=object),
        place=pd.Series([p for _, _, p in rows], dtype=object),
    )
    # brute force: join what lies 12 days apart on one platform at one place, until nothing changes
    own = [(d, p.upper().replace("SENTINEL-", "S"), place) for d, p, place in rows]
    group = list(range(len(own)))
    for _ in own:
        for i, a in enumerate(own):
            for j, b in enumerate(own):
                if a[1:] == b[1:] and abs(a[0] - b[0]) == 2:
                    group[i] = group[j] = min(group[i], group[j])
    expected = sorted(sorted(own[i][0] for i in range(len(own)) if group[i] == g)
                      for g in set(group))  # fmt: skip
    found = runs.chains(table, same_platform=True)
    got = sorted(((c["time"] - START) / pd.Timedelta("6D")).round().astype(int).tolist()
                 for c in found)  # fmt: skip
    assert got == expected


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 8), st.sampled_from(["x", "y", None])), unique=True, max_size=14
    ),
    kept=st.sets(st.integers(0, 8)),
    dates=st.integers(1, 3),
)
def test_series_with_coherence_equal_brute_force(
    rows: list[tuple[int, str | None]], kept: set[int], dates: int
) -> None:
    table = acquisitions([12 * d for d, _ in rows])
    table = table.assign(place=pd.Series([p for _, p in rows], dtype=object))
    pairs = runs.pairs(table, baselines=(12, 24))
    days = ((pd.to_datetime(pairs["secondary_time"]) - START) / pd.Timedelta("12D")).round()
    pairs = pairs[days.isin(kept)]
    have = set(rows)
    expected = {
        (place, first)
        for first, place in rows
        if all(
            (first + i, place) in have and (first + i - 1, place) in have and first + i in kept
            for i in range(dates)
        )
    }
    found = runs.runs(table, dates=dates, pairs=pairs)
    starts = ((pd.to_datetime(found["start"]) - START) / pd.Timedelta("12D")).round()
    places = [None if pd.isna(p) else p for p in found["place"]]
    assert set(zip(places, starts, strict=True)) == expected
    assert len(found) == len(expected)


@given(times=st.lists(st.datetimes(), min_size=1, max_size=20))
def test_seasons_equal_brute_force(times: list[datetime]) -> None:
    months = {"winter": (12, 1, 2), "spring": (3, 4, 5), "summer": (6, 7, 8)}
    wanted = {m: name for name, of in months.items() for m in of}
    series = pd.Series(np.array(times, "datetime64[us]"))
    assert runs.season(series).tolist() == [wanted.get(t.month, "autumn") for t in times]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.sampled_from(["a", "b", None]), st.sampled_from([1, 2])), max_size=20
    ),
    most=st.integers(1, 4), seed=st.integers(0, 5),
)  # fmt: skip
def test_caps_equal_brute_force(rows: list[tuple[str | None, int]], most: int, seed: int) -> None:
    table = pd.DataFrame({
        "tile": pd.Series([t for t, _ in rows], dtype=object),
        "season": pd.Series([s for _, s in rows], dtype=int), "n": range(len(rows)),
    }).set_index(pd.Index([0] * len(rows)))  # fmt: skip
    kept = runs.cap(table, most, by=["tile", "season"], seed=seed)
    have, left = Counter(rows), Counter(rows[n] for n in kept["n"])
    assert left == Counter({k: min(most, count) for k, count in have.items()})
    assert kept["n"].is_monotonic_increasing
    pd.testing.assert_frame_equal(kept, runs.cap(table, most, by=["tile", "season"], seed=seed))


def test_caps_draw_evenly() -> None:
    table = pd.DataFrame({"tile": "a", "n": range(8)})
    drawn = Counter(n for s in range(400) for n in runs.cap(table, 4, by=["tile"], seed=s)["n"])
    assert min(drawn.values()) > 150, "200 of 400 are expected for each of 8"


NUMBER = st.one_of(st.none(), st.integers(0, 6))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(NUMBER, NUMBER), max_size=12), cloud=st.integers(0, 6),
    invalid=st.integers(0, 6), unknown=st.sampled_from(["raise", "drop", "keep"]),
)  # fmt: skip
def test_limits_equal_brute_force(
    rows: list[tuple[int | None, int | None]], cloud: int, invalid: int, unknown: Any
) -> None:
    columns = ["cloud_cover", "invalid_s2"]
    table = pd.DataFrame(rows, columns=columns).astype(float)
    limits = {"cloud_cover": cloud, "invalid_s2": invalid}
    if unknown == "raise" and any(None in row for row in rows):
        with pytest.raises(CubeError, match="lack one"):
            runs.within(table, limits, unknown=unknown)
        return
    found = runs.within(table, limits, unknown=unknown).index.tolist()
    most = (cloud, invalid)
    assert found == [
        i for i, row in enumerate(rows)
        if all((unknown == "keep") if v is None else v <= m
               for v, m in zip(row, most, strict=True))
    ]  # fmt: skip


NAME = re.compile(r"RTC-S1_(T\d{3}-\d{6}-IW\d)_(\d{8}T\d{6})Z_\d{8}T\d{6}Z_(S1[A-Z])_30")


@pytest.mark.real
def test_real_opera_dates_give_the_known_series(real: Path, figure) -> None:
    rows = []
    for path in sorted((real / "opera-rtc" / "T137-292318-IW1").glob("*_VV.tif")):
        found = NAME.search(path.name)
        assert found, path.name
        rows.append({"place": found[1], "track": "137D", "time": found[2], "platform": found[3]})
    table = pd.DataFrame(rows)
    table["time"] = pd.to_datetime(table["time"], format="%Y%m%dT%H%M%S")
    assert len(table) == 21
    six = [len(c) for c in runs.chains(table, step="6D")]
    assert max(six) == 6
    longest = next(c for c in runs.chains(table, step="6D") if len(c) == 6)
    assert longest["time"].dt.year.unique().tolist() == [2021]
    assert longest["platform"].nunique() == 2
    twelve = sorted(len(c) for c in runs.chains(table, step="12D"))
    assert twelve[-4:] == [3, 3, 6, 8]
    series = runs.runs(table)
    figure("runs in the real OPERA dates", f"6 d {max(six)}, 12 d {twelve[-2:]}, series "
           f"{len(series)}", "6, [6, 8], 8")  # fmt: skip
    assert len(series) == 3 + 5
    assert (series["start"].dt.year > 2021).all()
