"""What mutation tests change: one thing a line, that a program could notice."""

from pathlib import Path

import pytest
from changes import Mutant, find_mutants

SOURCE = '''"""Documentation, and "strings" in it."""

from typing import Final

LIMIT: Final[int] = 3


def spend(asked: int, lock: "Lock", note: dict[str, int]) -> int:
    """Take ``asked`` if that is within the limit."""
    if asked > LIMIT:
        raise ValueError(f"{asked} is more than {LIMIT}")
    lock.acquire()
    note["asked"] = asked + 1
    way_out = "ask for less"
    return asked
'''


def _mutants(folder: Path, seed: int) -> list[Mutant]:
    (folder / "module.py").write_text(SOURCE)
    return find_mutants(folder, "module.py", seed)


def test_each_mutant_is_one_change_of_one_line_that_compiles(tmp_path: Path) -> None:
    for seed in range(5):
        found = _mutants(tmp_path, seed)
        assert len({one.lines[0] for one in found}) == len(found) == len({one.key for one in found})
        for one in found:
            changed = one.apply(SOURCE.encode()).decode()
            compile(changed, "module.py", "exec")
            pairs = zip(SOURCE.splitlines(), changed.splitlines(), strict=True)
            (number,) = (n for n, (old, new) in enumerate(pairs, start=1) if old != new)
            assert one.lines == (number, number)
            assert one.before == " ".join(SOURCE.splitlines()[number - 1].split())


@pytest.mark.parametrize(
    "after",
    [
        "if False:",
        "if asked >= LIMIT:",
        "pass",
        "LIMIT: Final[int] = 4",
        'note["ASKED"] = asked + 1',
        'note["asked"] = asked - 1',
    ],
)
def test_refusals_calls_limits_and_names_are_changed(tmp_path: Path, after: str) -> None:
    assert any(one.after == after for seed in range(40) for one in _mutants(tmp_path, seed))


def test_texts_for_people_annotations_and_documentation_are_not(tmp_path: Path) -> None:
    found = [one for seed in range(40) for one in _mutants(tmp_path, seed)]

    assert not any("XX" in one.after and "asked" not in one.after for one in found)
    assert not any(one.before.startswith(('"""', "raise", "from", "def")) for one in found)


def test_a_key_stays_where_lines_above_it_move(tmp_path: Path) -> None:
    keys = {one.key for one in _mutants(tmp_path, 0)}
    (tmp_path / "module.py").write_text("# A line more.\n" + SOURCE)

    assert {one.key for one in find_mutants(tmp_path, "module.py", 0)} == keys
