"""The commands ``device privacy``, ``forget``, ``retire`` and ``confirm``."""

import argparse
from pathlib import Path

from sottovoce.cli.devices.opening import add_folder, open_to_look
from sottovoce.cli.options import Commands, add_command, print_json
from sottovoce.shared.errors import SettingError
from sottovoce.shared.printable import print_lines


def add_upkeep_commands(group: Commands) -> None:
    """Add ``device privacy``, ``forget``, ``retire`` and ``confirm``."""
    example = "sottovoce device privacy DIR"
    privacy = add_command(
        group,
        "privacy",
        run_device_privacy_command,
        "Show how much privacy a device has spent, and what is left.",
        example,
    )
    add_folder(privacy)
    privacy.add_argument("--json", action="store_true", help="print JSON")
    forget = add_command(
        group,
        "forget",
        run_device_forget_command,
        "Forget recordings that were enrolled, labelled or learned from.",
        "sottovoce device forget my-device NAME",
    )
    add_folder(forget)
    forget.add_argument(
        "names", nargs="+", metavar="NAME", help="what predict or device list printed"
    )
    forget.add_argument(
        "--model",
        type=Path,
        metavar="RUN",
        help="for labelled recordings: whose head is fitted again at once, not when next opened",
    )
    retire = add_command(
        group,
        "retire",
        run_device_retire_command,
        "End the training of a device whose ledger is refused: it only receives models, for good.",
        "sottovoce device retire DIR",
    )
    add_folder(retire)
    confirm = add_command(
        group,
        "confirm",
        run_device_confirm_command,
        "Seal what its owner has changed in a device's device.json.",
        "sottovoce device confirm DIR",
    )
    add_folder(confirm)


def run_device_forget_command(arguments: argparse.Namespace) -> int:
    """Forget recordings by name, and their influence on the user's mean and head."""
    from sottovoce.client.recognition.recogniser import Recogniser
    from sottovoce.client.user_data.recordings import forget_recording, list_recordings

    folder, model = arguments.folder, arguments.model
    device, vault = open_to_look(folder)
    recogniser = Recogniser.open(model, folder, vault=vault) if model else None
    before = {one.name for one in list_recordings(device)}
    names = list(dict.fromkeys(arguments.names))
    unknown = [name for name in names if name not in before]
    head_removed = False
    for name in names:
        if recogniser and name in before:
            recogniser.forget_recording(name)
        elif not recogniser:
            head_removed |= forget_recording(device, vault, name)
    left = {one.name for one in list_recordings(device)}
    print_lines(f"forgotten: {len(names) - len(unknown)}; still kept: {len(left)}")
    if head_removed:
        print_lines(
            "the user's head is let go: the next predict fits it again, on what is still kept"
        )
    if unknown:  # said last: a command that was cut short is finished by being repeated
        known = ", ".join(sorted(left)) or "none"
        raise SettingError(f"{folder} keeps no recording {', '.join(unknown)}; it keeps {known}")
    return 0


def run_device_retire_command(arguments: argparse.Namespace) -> int:
    """Put a spent ledger in place of the refused one."""
    from sottovoce.client.device.device import Device
    from sottovoce.client.device.vault import open_from_environment

    folder = arguments.folder
    aside = Device.retire(folder, vault=open_from_environment(folder / "vault"))
    where = f"; the refused ledger is kept as {aside}" if aside else ""
    print_lines(f"retired: the device gives nothing more and goes on receiving models{where}")
    return 0


def run_device_confirm_command(arguments: argparse.Namespace) -> int:
    """Seal the owner's decisions as they stand now, and show what changes."""
    from sottovoce.client.device.device import Device
    from sottovoce.client.device.vault import open_from_environment

    folder = arguments.folder
    changes = Device.confirm_profile(folder, vault=open_from_environment(folder / "vault"))
    print_lines(*(changes or ["nothing has changed"]), "sealed")
    return 0


def run_device_privacy_command(arguments: argparse.Namespace) -> int:
    """Verify the ledger and show its epsilon."""
    from sottovoce.client.device.privacy_report import build_report
    from sottovoce.client.device.vault import open_from_environment

    folder = arguments.folder
    report = build_report(folder, vault=open_from_environment(folder / "vault"))
    if arguments.json:
        print_json(report.to_dict())
    else:
        print_lines(*report.format_lines())
    return 0
