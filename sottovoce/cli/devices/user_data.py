"""The commands ``device enrol``, ``list``, ``export`` and ``erase``."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sottovoce.cli.devices.opening import add_folder, open_to_look
from sottovoce.cli.model import add_trusted_key, read_trusted_key
from sottovoce.cli.options import Commands, add_command, print_json
from sottovoce.shared.errors import SettingError, SottovoceError
from sottovoce.shared.printable import print_error, print_lines

if TYPE_CHECKING:
    from sottovoce.client.recognition.recording_features import FeatureReader

_MAX_TABLE_BYTES = 1 << 24


def add_user_data_commands(group: Commands) -> None:
    """Add ``device enrol``, ``list``, ``export`` and ``erase``."""
    _add_enrol(group)
    listing = add_command(
        group,
        "list",
        run_list_command,
        "List the recordings that a device keeps, by name.",
        "sottovoce device list my-device",
    )
    add_folder(listing)
    listing.add_argument("--json", action="store_true", help="print JSON")
    export = add_command(
        group,
        "export",
        run_export_command,
        "Export everything that a device holds of its user, readable, as a ZIP archive.",
        "sottovoce device export my-device --out my-data.zip",
    )
    add_folder(export)
    export.add_argument("--out", type=Path, required=True, metavar="FILE", help="a new file")
    erase = add_command(
        group,
        "erase",
        run_erase_command,
        "Erase a device for good, the key of its vault first.",
        "sottovoce device erase my-device --yes",
    )
    add_folder(erase)
    erase.add_argument("--yes", action="store_true", help="do it: nothing can bring it back")


def _add_enrol(group: Commands) -> None:
    parser = add_command(
        group,
        "enrol",
        run_enrol_command,
        "Enrol recordings of the user: their voice and, with an emotion, head and training.",
        "sottovoce device enrol my-device *.wav --model runs/demo --neutral",
    )
    add_folder(parser)
    add = parser.add_argument
    add(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="recordings, or tables of them: .csv with the columns path and emotion",
    )
    add("--emotion", default="", help="what each FILE is, where no table says it")
    add("--neutral", action="store_true", help="all are known to be neutral speech")
    add("--model", type=Path, metavar="RUN", help="the model whose features are computed")
    add("--extractor", metavar="NAME", help="or the extractor, such as whisper-tiny-en")
    add_trusted_key(parser)


def run_enrol_command(arguments: argparse.Namespace) -> int:
    """Enrol all recordings that can be used; a bad one fails the command, after the others."""
    from sottovoce.client.device.consent import Purpose
    from sottovoce.client.user_data.enrolment import NEUTRAL, Clip, enrol_clips, find_label
    from sottovoce.shared.audio import load_signal

    if arguments.neutral and arguments.emotion:
        raise SettingError("--neutral says what the recordings are; leave --emotion out")
    emotion = NEUTRAL if arguments.neutral else arguments.emotion
    found: dict[Path, str] = {}
    for file in arguments.files:
        found |= _read_table(file, emotion) if file.suffix.lower() == ".csv" else {file: emotion}
    device, vault = open_to_look(arguments.folder)
    device.consent.require(Purpose.PERSONALISE)
    for one in dict.fromkeys(found.values()):  # before minutes are spent on features
        find_label(device, one)
    extractor, reader = _open_reader(arguments)
    clips, failed = {}, 0
    for path, label in found.items():
        try:
            clips[path] = Clip(
                features=reader.require_features(load_signal(path)),
                emotion=label,
                is_neutral=arguments.neutral,
            )
        except SottovoceError as error:
            failed += 1
            print_error(f"{path}: {error}")
    if clips or not failed:  # without any recording it says so
        names = enrol_clips(device, vault, list(clips.values()), extractor=extractor)
        for path, name in zip(clips, names, strict=True):
            print_lines(f"{path}: enrolled as {name}")
    return 1 if failed else 0


def _open_reader(arguments: argparse.Namespace) -> "tuple[str, FeatureReader]":
    """Open the extractor of a model, or the one that is named."""
    from sottovoce.client.recognition.recording_features import FeatureReader
    from sottovoce.shared.exported.package_reader import open_package

    if (arguments.model is None) == (arguments.extractor is None):
        raise SettingError("name the model that will read the features (--model), or --extractor")
    if arguments.model is None:
        return arguments.extractor, FeatureReader(arguments.extractor)
    key = read_trusted_key(arguments)
    package = open_package(arguments.model, trusted_key=key)
    return package.extractor, FeatureReader(package.extractor, version=package.feature_version)


def _read_table(path: Path, default: str) -> Mapping[Path, str]:
    """Read a table of recordings; paths are relative to the folder of the table."""
    import csv

    from sottovoce.shared.bounded_files import read_bounded_file

    try:
        data = read_bounded_file(path, max_bytes=_MAX_TABLE_BYTES, error=SettingError)
        rows = csv.DictReader(data.decode("utf-8-sig").splitlines())
        if "path" not in (rows.fieldnames or ()):
            raise SettingError(f"{path} has no column path; its columns must be path, emotion")
        return {
            path.parent / row["path"]: (row.get("emotion") or default).strip()
            for row in rows
            if row["path"]
        }
    except FileNotFoundError:
        raise SettingError(f"{path} is missing; name a table that is there") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise SettingError(f"{path} is no table in UTF-8 ({error}); save it as CSV") from error


def run_list_command(arguments: argparse.Namespace) -> int:
    """List recordings with what was said of each, and what each serves."""
    from sottovoce.client.user_data.recordings import list_recordings

    device, _ = open_to_look(arguments.folder)
    found = list_recordings(device)
    if arguments.json:
        print_json([one.to_dict() for one in found])
        return 0
    lines = (f"{one.name}  {one.emotion or '-':10}  {', '.join(one.uses)}" for one in found)
    print_lines(*(lines if found else ["no recordings"]))
    return 0


def run_export_command(arguments: argparse.Namespace) -> int:
    """Write everything to a new file that only its owner may read."""
    from sottovoce.client.user_data.data_export import write_export

    device, vault = open_to_look(arguments.folder)
    write_export(device, vault, arguments.out)
    print_lines(f"wrote {arguments.out}; it is not encrypted")
    return 0


def run_erase_command(arguments: argparse.Namespace) -> int:
    """Erase a device, whether or not it can be opened."""
    from sottovoce.client.user_data.device_erasure import erase_device

    folder = arguments.folder
    if not arguments.yes:
        raise SettingError(
            f"this would erase {folder} for good, with all that was learned and the account of what"
            " was sent; export it first if you want to keep a copy, then add --yes"
        )
    left = erase_device(folder)
    print_lines(f"erased the device in {folder}, its key first")
    if left:
        print_lines(f"left, since they are none of the device's: {', '.join(map(str, left))}")
    return 0
