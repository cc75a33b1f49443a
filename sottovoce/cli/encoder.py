"""The command ``encoder``: which pretrained encoders this machine's owner trusts."""

import argparse
from pathlib import Path

from sottovoce.cli.options import Commands, add_command, add_command_group, print_json
from sottovoce.shared.printable import print_lines


def add_encoder_commands(commands: Commands) -> None:
    """Add ``encoder add`` and ``encoder list``."""
    example = "sottovoce encoder list"
    group = add_command_group(
        commands, "encoder", "Install pretrained encoders; nothing else downloads one.", example
    )
    parser = add_command(
        group,
        "add",
        run_encoder_add_command,
        "Install an encoder: download it by its hash, or take a file that is here.",
        "sottovoce encoder add wav2vec2-base --sha256 HEX",
    )
    parser.add_argument("name", metavar="NAME", help="such as wav2vec2-base, or pipeline:FILE")
    parser.add_argument(
        "--file", type=Path, metavar="FILE", help="its checkpoint; without it, it is downloaded"
    )
    parser.add_argument(
        "--sha256",
        default="",
        metavar="HEX",
        help="hash of the checkpoint, as its publisher names it; a download must have it",
    )
    listing = add_command(
        group, "list", run_encoder_list_command, "List what is installed.", example
    )
    listing.add_argument("--json", action="store_true", help="print JSON")


def run_encoder_add_command(arguments: argparse.Namespace) -> int:
    """Install one encoder and print the hash that is compared from now on."""
    from sottovoce.shared.features.pretrained import install_encoder

    digest = install_encoder(
        arguments.name, file=arguments.file, sha256=arguments.sha256.strip().lower()
    )
    print_lines(f"added {arguments.name}: sha256 {digest}")
    return 0


def run_encoder_list_command(arguments: argparse.Namespace) -> int:
    """Print installed encoders and their hashes."""
    from sottovoce.shared.features.encoder_store import encoder_folder, read_pins

    pins = dict(read_pins())
    if arguments.json:
        print_json(pins)
    else:
        none = [f"none is installed in {encoder_folder()}"]
        print_lines(*([f"{digest}  {name}" for name, digest in sorted(pins.items())] or none))
    return 0
