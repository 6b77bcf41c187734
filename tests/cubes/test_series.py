"""Duplicates, passes and tracks: rules on tables, against brute force and by hand."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cubes import names, series


def granule(name: str, time: str, **columns: object) -> dict[str, object]:
    row: dict[str, object] = {
        "id": name, "collection": "c", "time": pd.Timestamp(time), "bbox": (0.0, 0.0, 1.0, 1.0),
        "platform": "sentinel-2a", "relative_orbit": 51, "orbit_state": None,
        "absolute_orbit": None, "datatake": None, "tile": "31UFS", "baseline": None,
        "properties": {},
    }  # fmt: skip
    return {**row, **columns}


def strip(start: str, created: str, baseline: str) -> dict[str, str]:
    return {"s2:datastrip_id": f"S2A_OPER_MSI_L2A_DS_2BPS_{created}_S{start}_N{baseline}",
            "s2:processing_baseline": baseline}  # fmt: skip


def test_reprocessings_leave_the_newest_and_split_granules_stay() -> None:
    table = pd.DataFrame([
        granule("old", "2020-05-01T10:50:00", baseline="02.14",
                properties=strip("20200501T105501", "20200501T120000", "02.14")),
        granule("new", "2020-05-01T10:50:00", baseline="05.00",
                properties=strip("20200501T105501", "20230601T120000", "05.00")),
        granule("split", "2020-05-01T10:50:00", baseline="05.00",
                properties=strip("20200501T105533", "20230601T120000", "05.00")),
        granule("elsewhere", "2020-05-01T10:50:00", tile="32ULB", baseline="05.00",
                properties=strip("20200501T105501", "20230601T120000", "05.00")),
    ])  # fmt: skip
    kept = series.deduplicate(table)
    assert set(kept["id"]) == {"new", "split", "elsewhere"}
    assert kept.set_index("id").loc["new", "dropped"] == ("old",)
    shuffled = series.deduplicate(table.sample(frac=1, random_state=3))
    pd.testing.assert_frame_equal(kept, shuffled)


def test_slices_share_a_pass_and_passes_of_one_day_do_not_mix() -> None:
    radar = {"tile": None, "platform": "sentinel-1a"}
    table = pd.DataFrame([
        granule("a2", "2020-05-01T17:32:25", relative_orbit=88, orbit_state="ascending", **radar),
        granule("a1", "2020-05-01T17:32:00", relative_orbit=88, orbit_state="ascending", **radar),
        granule("d1", "2020-05-01T05:41:00", relative_orbit=37, orbit_state="descending", **radar),
        granule("b1", "2020-05-01T17:33:00", relative_orbit=88, orbit_state="ascending",
                tile=None, platform="sentinel-1c"),
        granule("a3", "2020-05-13T17:32:00", relative_orbit=88, orbit_state="ascending", **radar),
    ])  # fmt: skip
    steps = series.passes(table).groupby("step")["id"].apply(list).tolist()
    assert steps == [["d1"], ["a1", "a2"], ["b1"], ["a3"]]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 400), st.sampled_from([1, 2]), st.sampled_from(["A", "B"])),
        min_size=1, max_size=12,
    )
)  # fmt: skip
def test_passes_equal_brute_force(rows: list[tuple[int, int, str]]) -> None:
    table = pd.DataFrame([
        granule(f"{i:02d}", str(pd.Timestamp("2020-01-01") + pd.Timedelta(minutes=minutes)),
                relative_orbit=orbit, platform=platform)
        for i, (minutes, orbit, platform) in enumerate(rows)
    ])  # fmt: skip
    # brute force: join any two of one track closer than half an hour, until nothing changes
    group = list(range(len(rows)))
    for _ in rows:
        for i, a in enumerate(rows):
            for j, b in enumerate(rows):
                if a[1:] == b[1:] and abs(a[0] - b[0]) < 30:
                    low = min(group[i], group[j])
                    group[i] = group[j] = low
    expected = {frozenset(f"{i:02d}" for i, g in enumerate(group) if g == k) for k in set(group)}
    out = series.passes(table)
    assert {frozenset(v) for v in out.groupby("step")["id"] for v in [v[1]]} == expected
    starts = out.groupby("step")["time"].min()
    assert starts.is_monotonic_increasing
    assert list(starts.index) == list(range(len(expected)))


def test_labels_and_orbits_from_ids() -> None:
    assert series.track_label(132, "ascending") == "132A"
    assert series.track_label(None, None) == "0"
    name = "S1A_IW_GRDH_1SDV_20220518T054334_20220518T054359_043261_052A9D_rtc"
    table = pd.DataFrame([granule(name, "2022-05-18T05:43:34", relative_orbit=None)])
    assert series.with_tracks(table)["relative_orbit"].tolist() == [(43261 - 73) % 175 + 1]


def test_reprocessings_whose_boxes_differ_a_little_are_one() -> None:
    def burst(name: str, west: float, created: str) -> dict[str, object]:
        return granule(name, "2021-01-01T05:00:00", bbox=(west, 2.0, 3.0, 4.0), tile=None,
                       platform="sentinel-1a", properties={"created": created})  # fmt: skip

    # on either side of a rounding to 1e-3, and of no rounding at all
    for west in (1.00051, 1.0013):
        table = pd.DataFrame([burst("a", 1.00049, "2021"), burst("b", west, "2022")])
        kept = series.deduplicate(table)
        assert kept["id"].tolist() == ["b"]
        assert kept["dropped"].tolist() == [("a",)]
    table = pd.DataFrame([burst("a", 1.0, "2021"), burst("b", 1.002, "2022")])
    assert len(series.deduplicate(table)) == 2, "200 m away: a neighbour"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"baseline": "4.00"}, {"baseline": "05.09"}),
        ({"baseline": "05.09"}, {"baseline": "05.10"}),
        ({"properties": {"created": "2021-06-01T09:00:00+02:00"}},
         {"properties": {"created": "2021-06-01T08:30:00Z"}}),
        ({"properties": {"created": "2021-06-01T09:00:00Z"}},
         {"properties": {"created": "2021-06-01T09:00:00.5Z"}}),
    ],
)  # fmt: skip
def test_the_newest_is_newest_by_number_not_by_text(
    old: dict[str, object], new: dict[str, object]
) -> None:
    table = pd.DataFrame([granule("z", "2021-01-01", **old), granule("a", "2021-01-01", **new)])
    assert series.deduplicate(table)["id"].tolist() == ["a"]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0.0, 3.0, 6.0, 9.0, 20.0]), st.sampled_from(["31UFS", "32ULB", None]),
            st.sampled_from([1.0, 1.0008, 1.0016, 1.01]), st.sampled_from([7, 8]),
            st.sampled_from(["4.00", "05.09", None]),
        ),
        max_size=9,
    )
)  # fmt: skip
def test_deduplicate_equals_brute_force(
    rows: list[tuple[float, str | None, float, int, str | None]],
) -> None:
    start = pd.Timestamp("2021-01-01")
    table = pd.DataFrame([
        granule(f"{i}", str(start + pd.Timedelta(seconds=s)), tile=tile, absolute_orbit=orbit,
                baseline=baseline, bbox=(west, 0.0, west + 1, 1.0))
        for i, (s, tile, west, orbit, baseline) in enumerate(rows)
    ], columns=list(granule("x", "2021-01-01")))  # fmt: skip
    group = list(range(len(rows)))
    for _ in rows:
        for i, a in enumerate(rows):
            for j, b in enumerate(rows):
                near = a[1] is not None or abs(a[2] - b[2]) <= 1e-3
                if (a[1], a[3]) == (b[1], b[3]) and abs(a[0] - b[0]) <= 5 and near:
                    group[i] = group[j] = min(group[i], group[j])
    order = {None: 0, "4.00": 1, "05.09": 2}
    expected = {}
    for g in set(group):
        mine = [i for i in range(len(rows)) if group[i] == g]
        best = max(mine, key=lambda i: (order[rows[i][4]], str(i)))
        expected[str(best)] = {str(i) for i in mine} - {str(best)}
    kept = series.deduplicate(table)
    assert {i: set(d) for i, d in zip(kept["id"], kept["dropped"], strict=True)} == expected
    assert kept["time"].is_monotonic_increasing


RADAR: dict[str, object] = {
    "tile": None, "platform": "sentinel-1c", "relative_orbit": None, "orbit_state": "descending",
}  # fmt: skip


def test_tracks_of_every_platform_without_metadata() -> None:
    named = "S1C_IW_GRDH_1SDV_20250518T054334_20250518T054359_002261_004A9D_60B6"
    table = pd.DataFrame([
        granule(named, "2025-05-18T05:43:34", **RADAR),
        granule("x", "2025-05-18T05:43:34", **{**RADAR, "absolute_orbit": 2261}),
        granule("y", "2026-05-18T05:43:34", **{**RADAR, "platform": "SENTINEL-1D",
                                               "absolute_orbit": 2389.0}),
        granule("OPERA_L2_RTC-S1_T137-292318-IW1_20250102T015857Z_20250102T190143Z_S1A_30_v1.0",
                "2025-01-02T01:58:57", **RADAR),
        granule("z", "2025-05-18T05:43:34", **{**RADAR, "platform": "sentinel-1z",
                                               "absolute_orbit": 5}),
    ])  # fmt: skip
    found = series.with_tracks(table)["relative_orbit"].tolist()
    assert found == [(2261 - 172) % 175 + 1, 165, 73, 137, None]
    assert series.track_label(found[0], "descending") == "165D"


def test_tracks_from_the_time_of_a_known_pass() -> None:
    def radar(name: str, time: str, **columns: object) -> dict[str, object]:
        return granule(name, time, **{**RADAR, **columns})

    table = pd.DataFrame([
        radar("known", "2025-05-18T05:43:34", relative_orbit=165),
        radar("slice", "2025-05-18T05:43:59"),
        radar("cycle", "2025-06-11T05:43:36"),
        radar("before", "2024-05-11T05:43:30", platform="SENTINEL-1C", orbit_state=None),
        radar("other way", "2025-06-11T05:43:36", orbit_state="ascending"),
        radar("next track", "2025-05-18T07:22:20"),
        radar("half a cycle", "2025-05-24T05:43:34"),
        radar("another satellite", "2025-05-30T05:43:34", platform="sentinel-1a"),
        # after the manoeuvre of June 2026 the same time is another track
        radar("moved", "2026-07-12T05:43:34"),
        radar("known too", "2025-03-02T17:00:00", relative_orbit=20),
        radar("contrary", "2025-03-14T17:00:00", relative_orbit=21),
        radar("asked", "2025-03-26T17:00:00"),
    ])  # fmt: skip
    found = series.with_tracks(table).set_index("id")["relative_orbit"].to_dict()
    told = {k for k, v in found.items() if v == 165}
    assert told == {"known", "slice", "cycle", "before"}
    assert {k for k, v in found.items() if v is None} == {
        "other way", "next track", "half a cycle", "another satellite", "moved", "asked",
    }  # fmt: skip


@pytest.mark.real
def test_real_opera_passes_get_their_track_from_one_known(real: Path) -> None:
    rows = []
    for path in sorted((real / "opera-rtc" / "T137-292318-IW1").glob("*_VV.tif")):
        made = names.parse_opera(path.name)
        time = str(pd.to_datetime(made.time))
        rows.append(granule(str(len(rows)), time, **{**RADAR, "platform": made.platform}))
    for n, row in enumerate(rows):
        if row["platform"] not in [r["platform"] for r in rows[:n]]:
            row["relative_orbit"] = 137  # one of each satellite is known
    found = series.with_tracks(pd.DataFrame(rows))["relative_orbit"]
    assert found.tolist() == [137] * 21
