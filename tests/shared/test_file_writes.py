"""Every file is written through ``shared/atomic_files.py``."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

HOUSE = Path(__file__).resolve().parents[2]
FOLDERS = ("client", "server", "shared", "simulations", "sottovoce")
WRITER = "shared/atomic_files.py"
ALLOWED = {
    # An uploaded recording, in a file that has no name and is on no disk.
    ("client/service/uploads.py", "os.fdopen"),
    # Sets a damaged database aside, with the journal beside it: nothing is written.
    ("shared/features/cache.py", "os.replace"),
    # Child processes write their logs straight into these.
    ("simulations/engines/deployed.py", "open for writing"),
}
CALLS = {
    "os": {"replace", "rename", "fsync", "truncate", "write", "fdopen"},
    "fcntl": {"flock", "lockf"},
    "tempfile": {"mkstemp", "NamedTemporaryFile"},
    "shutil": {"move"},
}


def find_writes(source: str) -> Iterator[str]:
    """Calls that write, rename, sync or lock a file, by name."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        if isinstance(called, ast.Name) and called.id == "open" and _mode_writes(node, 1):
            yield "open for writing"
        if not isinstance(called, ast.Attribute):
            continue
        owner = called.value.id if isinstance(called.value, ast.Name) else ""
        if called.attr in CALLS.get(owner, ()):
            yield f"{owner}.{called.attr}"
        elif called.attr in ("write_text", "write_bytes"):
            yield called.attr
        elif called.attr == "open" and owner != "os" and _mode_writes(node, 0):
            yield "open for writing"
        # str.replace takes two, dataclasses.replace names its fields: only a path's takes one.
        elif called.attr in ("replace", "rename") and len(node.args) == 1 and not node.keywords:
            yield f"path.{called.attr}"


def _mode_writes(call: ast.Call, position: int) -> bool:
    modes = [one.value for one in call.keywords if one.arg == "mode"] + call.args[position:][:1]
    return any(isinstance(one, ast.Constant) and set(str(one.value)) & set("wax+") for one in modes)


def test_every_file_is_written_by_one_module() -> None:
    found = {
        (path.relative_to(HOUSE).as_posix(), name)
        for folder in FOLDERS
        for path in sorted((HOUSE / folder).rglob("*.py"))
        for name in find_writes(path.read_text(encoding="utf-8"))
    }

    assert {one for one in found if one[0] != WRITER} == ALLOWED
    assert (WRITER, "os.fsync") in found
    assert (WRITER, "path.replace") in found


@pytest.mark.parametrize(
    "line",
    [
        "path.write_text('x')",
        "(folder / 'a').write_bytes(b'')",
        "path.open('w')",
        "path.open(mode='ab')",
        "open(path, 'x')",
        "fresh.replace(path)",
        "os.replace(a, b)",
        "tempfile.mkstemp()",
        "fcntl.flock(handle, fcntl.LOCK_EX)",
    ],
)
def test_a_write_is_seen(line: str) -> None:
    assert len(list(find_writes(line))) == 1


@pytest.mark.parametrize(
    "line",
    [
        "text.replace('a', 'b')",
        "dataclasses.replace(plan, rounds=3)",
        "replace(plan, rounds=3)",
        "path.open()",
        "path.open('rb')",
        "open(path)",
        "replace_file(path, data)",
    ],
)
def test_what_writes_nothing_is_not_seen(line: str) -> None:
    assert not list(find_writes(line))
