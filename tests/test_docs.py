"""Every Python block of README.md and docs/ is run, in order, file by file, without a network.

A block's fence is one of

* ``python``: run in the file's one namespace, in a folder of its own that holds ``world/``, the
  simulated world ``tiny``, as ``cubes.worlds.publish`` wrote it;
* ``python not-run="why"``: not run, for a reason that is given;
* ``toml file=NAME`` (or json): written to NAME before the next Python block runs.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import shutil
import socket
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)
FILES = [
    ROOT / "README.md",
    *sorted(p for p in (ROOT / "docs").rglob("*.md") if "```python" in p.read_text()),
]
LEARN = importlib.util.find_spec("torch") is not None


@dataclass(frozen=True)
class Block:
    """A fenced block: what its fence says, its text, and the line it starts on."""

    info: str
    text: str
    line: int


def blocks(path: Path) -> list[Block]:
    """Return the fenced blocks of a Markdown file."""
    text = path.read_text(encoding="utf-8")
    return [
        Block(m[1].strip(), m[2], text.count("\n", 0, m.start()) + 2) for m in FENCE.finditer(text)
    ]


def plan(path: Path) -> list[tuple[str, Block]]:
    """Return what to do with each block: ``run``, ``write NAME`` or ``skip``.

    Raises
    ------
    AssertionError
        A Python block is neither plain nor not run for a reason.
    """
    actions = []
    for block in blocks(path):
        language, _, rest = block.info.partition(" ")
        where = f"{path.name}:{block.line}"
        if language in ("python", "py", "pycon", "python3"):
            reason = re.fullmatch(r'not-run="([^"]{8,})"', rest.strip())
            assert language == "python", f"{where}: call the fence `python`, not {language!r}"
            assert not rest or reason, f'{where}: a block is run, or says not-run="why": {rest!r}'
            actions.append(("skip" if reason else "run", block))
        elif name := re.fullmatch(r"file=([\w.-]+)", rest.strip()):
            actions.append((f"write {name[1]}", block))
    return actions


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a published `tiny` world."""
    from cubes import worlds

    out = tmp_path_factory.mktemp("docs") / "world"
    worlds.publish(worlds.simulate(worlds.load_params("tiny"), 7), out)
    return out


def _no_network(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError(f"documentation reached for the network: {args[:1]}")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_blocks_run(
    path: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not LEARN and "deepsentinel" in path.read_text():
        pytest.skip("its blocks need the extra `learn` (torch)")
    # Relative hrefs of the world stay true in a copy; hard links cost nothing.
    shutil.copytree(world, tmp_path / "world", copy_function=_link)
    monkeypatch.chdir(tmp_path)
    real_connect = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        host = address[0] if isinstance(address, tuple) else "unix"
        if host not in ("127.0.0.1", "::1", "localhost", "unix"):
            _no_network(address)
        real_connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    names: dict[str, Any] = {"__name__": "__docs__"}
    ran = 0
    for action, block in plan(path):
        if action.startswith("write "):
            (tmp_path / action[6:]).write_text(block.text, encoding="utf-8")
        elif action == "run":
            _run(path, block, names)
            ran += 1
    assert ran, f"no block of {path.name} runs: then it is no documentation by example"


def _link(source: str, target: str) -> None:
    Path(target).hardlink_to(source)


def _run(path: Path, block: Block, names: dict[str, Any]) -> None:
    # Line numbers of the traceback are those of the Markdown file.
    source = "\n" * (block.line - 1) + block.text
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(source, str(path), "exec"), names)
    except Exception:
        pytest.fail(f"{path.name}, block at line {block.line}:\n{traceback.format_exc(limit=-6)}")


def test_a_block_cannot_opt_out_silently(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text('```python not-run=""\nx = 1\n```\n')
    with pytest.raises(AssertionError, match=r"page\.md:2"):
        plan(page)
    page.write_text("```py\nx = 1\n```\n")
    with pytest.raises(AssertionError, match="call the fence"):
        plan(page)
    page.write_text('```python not-run="needs an account"\nx = 1\n```\n')
    assert [action for action, _ in plan(page)] == ["skip"]


@pytest.mark.parametrize(
    "path",
    [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted(ROOT.glob("C*.md"))],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_links_lead_somewhere(path: Path) -> None:
    """Every relative link of the documentation names a file of the project."""
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" in target:
            continue
        assert (path.parent / target).exists(), f"{path.name} links to {target}"
