"""Tables of acoustic descriptors: one row a recording or one a frame, as CSV or Parquet."""

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sottovoce.shared.atomic_files import replace_file
from sottovoce.shared.audio import load_signal
from sottovoce.shared.errors import SettingError, SottovoceError
from sottovoce.shared.features.acoustic.analysis import describe_speech
from sottovoce.shared.features.acoustic.catalogue import FRAME_NAMES, FUNCTIONAL_NAMES
from sottovoce.shared.features.acoustic.framing import FRAME_RATE, Array

TABLE_FORMATS: Final = (".csv", ".parquet")
"""Endings of the files that tables are written to."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DescriptorTable:
    """Descriptors of recordings, a row each, or a row a frame.

    Attributes:
        names: Names of the columns of ``values``.
        files: The recording of each row, as it was given.
        times_s: Centre of each row's frame in seconds, shape (rows,); None for a row a recording.
        values: Shape (rows, descriptors), float32; NaN where a descriptor is not defined.
        failures: Why recordings are missing, by their path; the error's text names it.
    """

    names: tuple[str, ...]
    files: tuple[str, ...]
    times_s: NDArray[np.float64] | None
    values: Array
    failures: dict[str, SottovoceError]


def tabulate_descriptors(files: Iterable[str | Path], *, frames: bool = False) -> DescriptorTable:
    """Compute the acoustic descriptors of recordings, in one table.

    Args:
        files: Recordings, in the order of the rows.
        frames: Whether to return a row for every 10 ms in place of functionals.

    Returns:
        The table. A recording that cannot be read has no row; ``failures`` says why.

    Example:
        >>> table = tabulate_descriptors(["nowhere.wav"])
        >>> table.values.shape, list(table.failures)
        ((0, 384), ['nowhere.wav'])
    """
    names = FRAME_NAMES if frames else FUNCTIONAL_NAMES
    rows: list[Array] = [np.empty((0, len(names)), dtype=np.float32)]
    owners: list[str] = []
    times: list[NDArray[np.float64]] = [np.empty(0)]
    failures: dict[str, SottovoceError] = {}
    for file in map(str, files):
        try:
            found = describe_speech(load_signal(file))
        except SottovoceError as error:
            failures[file] = error
            continue
        part = found.frames if frames else found.compute_functionals()[None]
        rows.append(part)
        owners += [file] * len(part)
        times.append(np.arange(len(part)) / FRAME_RATE)
    return DescriptorTable(
        names=names,
        files=tuple(owners),
        times_s=np.concatenate(times) if frames else None,
        values=np.concatenate(rows),
        failures=failures,
    )


def write_table(table: DescriptorTable, out: Path) -> None:
    """Write a table as CSV or Parquet, as the file's ending says.

    Undefined values are empty cells in CSV, and null in Parquet.

    Args:
        table: What :func:`tabulate_descriptors` gave.
        out: The file, ending in ``.csv`` or ``.parquet``; it is replaced whole.

    Raises:
        SettingError: Another ending, or Parquet without pyarrow.
    """
    require_table_format(out)
    encode = _encode_parquet if out.suffix.lower() == ".parquet" else _encode_csv
    replace_file(out, encode(table))


def require_table_format(out: Path) -> None:
    """Refuse a file that no table can be written to, before anything is computed.

    Raises:
        SettingError: Another ending than .csv and .parquet, or Parquet without pyarrow.

    Example:
        >>> require_table_format(Path("table.csv"))
    """
    if out.suffix.lower() not in TABLE_FORMATS:
        raise SettingError(
            f"--out is {str(out)!r:.200}; it must end in {' or '.join(TABLE_FORMATS)}"
        )
    if out.suffix.lower() == ".parquet" and find_spec("pyarrow") is None:
        raise SettingError(
            f"{out} needs pyarrow, which is not installed: write .csv, or "
            "pip install 'sottovoce[parquet]'"
        )


def _facts(table: DescriptorTable) -> list[str]:
    """Columns before the descriptors."""
    return ["file"] if table.times_s is None else ["file", "time_s"]


def _encode_csv(table: DescriptorTable) -> bytes:
    """Encode as CSV, UTF-8; seven digits hold what float32 holds of speech."""
    text = io.StringIO(newline="")
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow([*_facts(table), *table.names])
    for index, (file, row) in enumerate(zip(table.files, table.values.tolist(), strict=True)):
        time = [] if table.times_s is None else [f"{table.times_s[index]:.2f}"]
        cells = ("" if value != value else f"{value:.7g}" for value in row)
        lines.writerow([file, *time, *cells])
    # A path that is no UTF-8 keeps its bytes.
    return text.getvalue().encode("utf-8", "surrogateescape")


def _encode_parquet(table: DescriptorTable) -> bytes:
    """Encode as Parquet, float32 columns."""
    import pyarrow
    from pyarrow import parquet

    columns = {"file": pyarrow.array(table.files, pyarrow.string())}
    if table.times_s is not None:
        columns["time_s"] = pyarrow.array(table.times_s)
    for name, values in zip(table.names, table.values.T, strict=True):
        columns[name] = pyarrow.array(np.ascontiguousarray(values), from_pandas=True)
    stream = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.table(columns), stream)
    encoded: bytes = stream.getvalue().to_pybytes()
    return encoded
