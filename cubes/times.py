"""Times as a person writes them: what the ends of a range mean, and what is near to a day."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cubes.types import CubeError


def time_range(time: Any) -> tuple[str, str]:
    """Return first and last moment as ISO 8601 (UTC, no suffix) of a range in any usual form.

    Parameters
    ----------
    time : str, tuple, slice or one moment
        ``"2020-03/2020-10"``, ``("2020-03-01", "2020-10-31")``, ``"2020"``, dates, datetimes,
        Timestamps. Without a zone it is UTC. The last day, month or year is included whole; a
        datetime at midnight stands for its day, a text with a time of day for that moment.

    Raises
    ------
    CubeError
        Not a time, reversed, or open at an end.
    """
    if isinstance(time, slice):
        time = (time.start, time.stop)
    if isinstance(time, str):
        time = tuple(time.split("/")) if "/" in time else (time, time)
    elif time is not None and not isinstance(time, Sequence):
        time = (time, time)
    try:
        first, last = time
        if None in (first, last) or ".." in (first, last) or "" in (first, last):
            raise ValueError("an open end would make another cube every day: name the last day")
        start, stop = _moment(first, end=False), _moment(last, end=True)
    except (TypeError, ValueError) as error:
        raise CubeError(
            f"cannot read {time!r} as a time range ({error}); give for example "
            '"2020-03/2020-10" or ("2020-03-01", "2020-10-31")'
        ) from None
    if start > stop:
        raise CubeError(f"the time range is reversed: {first} is after {last}; swap them")
    return start.isoformat(), stop.floor("us").isoformat()


def _moment(value: Any, *, end: bool) -> pd.Timestamp:
    """Return a moment in UTC without a zone: of a day or longer its first or its last."""
    if isinstance(value, bool | int | float):
        raise ValueError(f"{value!r} is a number")
    if isinstance(value, str) and ":" not in value:  # no time of day: a day or longer, whole
        text = value.strip()
        # eight digits are a day, which pandas takes for one only as a Timestamp
        period = pd.Period(pd.Timestamp(text), "D") if len(text) == 8 and text.isdigit() else (
            pd.Period(text)
        )  # fmt: skip
        return period.end_time if end else period.start_time
    if isinstance(value, np.datetime64) and (unit := np.datetime_data(value)[0]) in ("Y", "M", "D"):
        period = pd.Period(str(value), unit)
        return period.end_time if end else period.start_time
    moment = pd.Timestamp(value)
    if pd.isna(moment):
        raise ValueError(f"{value!r} is no time")
    if moment.tzinfo is not None:
        moment = moment.tz_convert(None)
    if end and not isinstance(value, str) and moment == moment.normalize():
        return moment + pd.Timedelta("1D") - pd.Timedelta("1ns")
    return moment


def read_as(kind: Any, value: Any, example: str) -> Any:
    """Return a value as `kind` (Timestamp or Timedelta).

    Raises
    ------
    CubeError
        It is none.
    """
    try:
        found = kind(value)
    except (TypeError, ValueError):
        found = pd.NaT
    if pd.isna(found):
        raise CubeError(f"cannot read {value!r} as a {kind.__name__}; give one such as {example}")
    return found


def days_from(moments: pd.Index[Any], date: Any) -> tuple[pd.Timestamp, npt.NDArray[np.float64]]:
    """Return what `date` means, UTC without a zone, and the days from it to each moment.

    A day means all of it: every moment of that day is at distance 0, and others are whole days
    away by the calendar. With a time of day the distance is exact. As in `time_range` a datetime at
    midnight stands for its day, a text with a time of day for that moment.

    Parameters
    ----------
    moments : Index
        Times, UTC without a zone.
    date : date, datetime, Timestamp or str
        The day or moment.

    Raises
    ------
    CubeError
        It is no date.
    """
    aim = read_as(pd.Timestamp, date, "'2021-06-15'")
    aim = aim if aim.tzinfo is None else aim.tz_convert(None)
    timed = ":" in date if isinstance(date, str) else aim != aim.normalize()
    given = pd.DatetimeIndex(moments)
    away = (given if timed else given.normalize()) - aim
    return aim, np.asarray(away / pd.Timedelta("1D"), np.float64)
