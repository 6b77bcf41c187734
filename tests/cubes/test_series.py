"""Duplicates, passes and tracks: rules on tables, against brute force and by hand."""

from __future__ import annotations

import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from cubes import series


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
