"""The command ``sottovoce corpora``: list known corpora, or check one."""

import argparse

from sottovoce.cli.options import Commands, add_command, print_json
from sottovoce.shared.errors import SettingError


def add_corpora_command(commands: Commands) -> None:
    """Add ``corpora``."""
    parser = add_command(
        commands,
        "corpora",
        run_corpora_command,
        "List known corpora, or check one.",
        "sottovoce corpora check cremad --data DIR",
    )
    parser.add_argument("action", choices=("list", "check"))
    parser.add_argument("name", nargs="?", help="the corpus to check")
    parser.add_argument("--data", help="its folder")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run_corpora_command(arguments: argparse.Namespace) -> int:
    """List the known corpora, or check one."""
    from sottovoce.simulations.corpora import TITLES, inspect_corpus, open_corpus

    if arguments.action == "list":
        if arguments.json:
            print_json(dict(TITLES))
        else:
            width = max(map(len, TITLES))
            print("\n".join(f"{name:<{width}}  {title}" for name, title in TITLES.items()))
        return 0
    if arguments.name is None:
        raise SettingError("which corpus? sottovoce corpora check NAME --data DIR")
    report = inspect_corpus(open_corpus(arguments.name, arguments.data))
    print_json(report.to_dict()) if arguments.json else print("\n".join(report.format_lines()))
    return 0
