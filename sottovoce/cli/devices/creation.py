"""The command ``device create``."""

import argparse
import os
import sys
from getpass import getpass
from pathlib import Path

from sottovoce.cli.options import Commands, add_command
from sottovoce.shared.errors import SettingError
from sottovoce.shared.printable import print_lines

_EXAMPLE = 'sottovoce device create my-device --user ada --use "self-reflection: a mood diary"'


def add_create_command(group: Commands) -> None:
    """Add the command ``device create``."""
    parser = add_command(
        group, "create", run_create_command, "Make a device for one user.", _EXAMPLE
    )
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="the device's folder; made if missing")
    add("--user", required=True, metavar="NAME", help="a pseudonym")
    add(
        "--use",
        required=True,
        metavar="PURPOSE[: WORDS]",
        help="what the device is for: self-reflection, companion, accessibility, entertainment, "
        "research, health or safety, and your own words behind a colon; emotions of people at work "
        "or in education may not be inferred (EU AI Act, Article 5)",
    )
    add(
        "--labels",
        metavar="EMOTION,...",
        help="emotions that recordings can be labelled with (default: those of common corpora)",
    )
    add(
        "--passphrase",
        action="store_true",
        help="ask for a passphrase that seals the device's key; without it, and without "
        "SOTTOVOCE_PASSPHRASE, the key lies in a file beside the vault",
    )
    add = parser.add_argument_group("privacy").add_argument
    add("--epsilon", type=float, default=8.0, help="most that the device may spend in its life (8)")
    add("--unit", default="utterance", help="what is promised: utterance (default), user or both")
    add("--delta", type=float, default=1e-5, help="delta of the promise to an utterance (1e-5)")
    add("--user-delta", type=float, default=1e-3, help="delta of the promise to a user (1e-3)")


def run_create_command(arguments: argparse.Namespace) -> int:
    """Make the device, without recordings, and say what comes next."""
    from sottovoce.client.user_data.creation import create_device
    from sottovoce.shared.privacy.target import PrivacyTarget

    folder = arguments.folder
    target = PrivacyTarget(
        unit=arguments.unit,
        epsilon=arguments.epsilon,
        delta=arguments.delta,
        user_delta=arguments.user_delta,
    )
    device = create_device(
        folder,
        user=arguments.user,
        use=arguments.use,
        target=target,
        labels=tuple((arguments.labels or "").split(",")),
        passphrase=_read_new_passphrase(asks=arguments.passphrase),
    )
    budgets = (
        f"epsilon {one.epsilon:g} for one {one.unit.value} at delta {one.delta:g}"
        for one in device.profile.budgets
    )
    print_lines(
        f"made the device of {device.profile.user} in {folder}",
        f"for {device.profile.intended_use}; may spend, in its life, {' and '.join(budgets)}",
        f"next: sottovoce device consent {folder}   (nothing is allowed before)",
    )
    return 0


def _read_new_passphrase(*, asks: bool) -> str | None:
    """Read the passphrase of a new device, from the environment or twice from the terminal."""
    from sottovoce.client.device.vault import PASSPHRASE_VARIABLE

    phrase = os.environ.get(PASSPHRASE_VARIABLE)
    if phrase or not asks:
        return phrase or None
    if not sys.stdin.isatty():
        raise SettingError(
            f"--passphrase asks on a terminal, and there is none; set {PASSPHRASE_VARIABLE}"
        )
    phrase = getpass("passphrase: ")
    if getpass("again: ") != phrase:
        raise SettingError("the two passphrases differ; nothing was made")
    return phrase
