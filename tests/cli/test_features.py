"""The command ``features``."""

import csv
from pathlib import Path
from typing import Any

import pytest

from sottovoce.cli.main import main
from sottovoce.shared.features.acoustic.catalogue import FRAME_NAMES, FUNCTIONAL_NAMES


@pytest.fixture
def hums(tmp_path: Path, write_wav: Any) -> list[str]:
    paths = [tmp_path / "low.wav", tmp_path / "high.wav"]
    for path, hertz in zip(paths, (110.0, 220.0), strict=True):
        write_wav(path, hertz=hertz, seconds=1.0)
    return [str(path) for path in paths]


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_table_has_a_row_for_each_file(hums: list[str], tmp_path: Path) -> None:
    out = tmp_path / "table.csv"

    assert main(["features", *hums, "--out", str(out)]) == 0

    rows = read(out)
    assert [row["file"] for row in rows] == hums
    assert list(rows[0]) == ["file", *FUNCTIONAL_NAMES]
    assert float(rows[1]["f0_p50"]) == pytest.approx(220, rel=0.01)


def test_a_table_of_frames_has_a_row_every_10_ms(hums: list[str], tmp_path: Path) -> None:
    out = tmp_path / "table.csv"

    assert main(["features", *hums, "--frames", "--out", str(out)]) == 0

    rows = read(out)
    assert list(rows[0]) == ["file", "time_s", *FRAME_NAMES]
    assert len(rows) == 2 * 101
    assert rows[101]["file"] == hums[1]
    assert rows[51]["time_s"] == "0.51"


@pytest.mark.parametrize("frames", [False, True])
def test_parquet_holds_the_same_as_csv(hums: list[str], tmp_path: Path, frames: bool) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    option = ["--frames"] if frames else []
    for name in ("table.csv", "table.parquet"):
        assert main(["features", *hums, *option, "--out", str(tmp_path / name)]) == 0

    table = parquet.read_table(tmp_path / "table.parquet").to_pylist()
    for row, line in zip(table, read(tmp_path / "table.csv"), strict=True):
        assert row.keys() == line.keys()
        for name, cell in line.items():
            if name == "file":
                assert row[name] == cell
            elif cell == "":
                assert row[name] is None
            else:
                assert row[name] == pytest.approx(float(cell), rel=1e-5)


def test_a_file_that_cannot_be_read_is_named_and_the_others_go_out(
    hums: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, out = tmp_path / "bad.wav", tmp_path / "table.csv"
    bad.write_bytes(b"no sound")

    assert main(["features", hums[0], str(bad), hums[1], "--out", str(out)]) == 1

    assert "bad.wav" in capsys.readouterr().err
    assert [row["file"] for row in read(out)] == hums


def test_without_any_readable_file_nothing_is_written(tmp_path: Path) -> None:
    out = tmp_path / "table.csv"

    assert main(["features", str(tmp_path / "none.wav"), "--out", str(out)]) == 1

    assert not out.exists()


def test_an_ending_that_is_no_table_is_refused_first(
    hums: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["features", *hums, "--out", "table.xlsx"]) == 2

    assert ".csv or .parquet" in capsys.readouterr().err
