"""The command line: what it accepts, what it says when something is wrong, and with which code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from deepsentinel import cli

COMMANDS = (
    "demo", "search", "build", "info", "stats", "train", "evaluate", "embed", "report",
)  # fmt: skip


def test_commands_are_those_documented(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert [name for name in COMMANDS if name not in said] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    assert end.value.code == 0
    assert command in capsys.readouterr().out


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom deepsentinel import cli\n"
        "try:\n    cli.main(['train', '--help'])\nexcept SystemExit:\n    pass\n"
        "bad = [m for m in ('torch', 'numpy', 'xarray', 'rasterio') if m in sys.modules]\n"
        "sys.exit(str(bad) if bad else 0)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["search", "--area", "nowhere", "--time", "2020"], "unknown aoi 'nowhere'"),
        (["search", "--area=1,2,3,4", "--time", "2021/2020"], "reversed"),
        (
            ["search", "--area=1,2,3,4", "--time", "2020", "--layers", "s1/backscater"],
            "s1/backscatter",
        ),
        (
            ["search", "--area=1,2,3,4", "--time", "2020", "--catalog", "planetary"],
            "planetary-computer",
        ),
        (["info", "no-such-store.zarr"], "no-such-store.zarr"),
        (["build", "x.zarr", "--area=3,2,1,4", "--time", "2020"], "antimeridian"),
    ],
)
def test_a_users_mistake_is_one_line_and_code_2(
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert captured.err.startswith(f"deepsentinel {arguments[0]}: ")
    assert "Traceback" not in captured.err


def test_our_own_mistakes_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(options: object) -> None:
        raise TypeError("a bug")

    monkeypatch.setattr(cli, "_info", broken)
    with pytest.raises(TypeError, match="a bug"):
        cli.main(["info", "x.zarr"])


def test_a_reader_that_goes_away_is_no_error() -> None:
    run = subprocess.run(
        f"{sys.executable} -m deepsentinel.cli search --help | head -n 1",
        check=False, shell=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert run.stderr == ""
    assert "usage" in run.stdout
