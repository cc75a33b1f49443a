"""The command ``features``: a table of acoustic descriptors of recordings."""

import argparse
from pathlib import Path

from sottovoce.cli.options import Commands, add_command
from sottovoce.shared.printable import print_error, print_lines


def add_features_command(commands: Commands) -> None:
    """Add the command ``features``."""
    parser = add_command(
        commands,
        "features",
        run_features_command,
        "Write acoustic descriptors of recordings as a table: functionals, or frame by frame.",
        "sottovoce features hello.wav --out table.csv",
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="the table: .csv, or .parquet where pyarrow is installed",
    )
    parser.add_argument(
        "--frames", action="store_true", help="one row for every 10 ms in place of one a file"
    )


def run_features_command(arguments: argparse.Namespace) -> int:
    """Write the table; a file that cannot be read fails the command, after the others."""
    from sottovoce.shared.features.acoustic.table import (
        require_table_format,
        tabulate_descriptors,
        write_table,
    )

    require_table_format(arguments.out)
    table = tabulate_descriptors(arguments.files, frames=arguments.frames)
    for error in table.failures.values():
        print_error(error)
    if table.files:
        write_table(table, arguments.out)
        print_lines(f"{arguments.out}: {len(table.files)} rows, {len(table.names)} descriptors")
    return 1 if table.failures else 0
