"""The command ``device withdraw``."""

import argparse

from sottovoce.cli.devices.opening import add_folder
from sottovoce.cli.options import Commands, add_command
from sottovoce.shared.printable import print_lines


def add_withdraw_command(group: Commands) -> None:
    """Add the command ``device withdraw``."""
    parser = add_command(
        group,
        "withdraw",
        run_withdraw_command,
        "End a device's enrolment: nothing is trained or sent, and servers delete what they hold.",
        "sottovoce device withdraw my-device",
    )
    add_folder(parser)


def run_withdraw_command(arguments: argparse.Namespace) -> int:
    """Withdraw the device, and say what follows."""
    from sottovoce.client.device.device import Device
    from sottovoce.client.device.vault import open_from_environment

    folder = arguments.folder
    device = Device.open(folder, vault=open_from_environment(folder / "vault"))
    device.withdraw()
    print_lines(
        f"withdrawn: enrolment {device.profile.enrolment} has ended; nothing is trained or sent",
        "a server that asks this device is told so, deletes what it holds of its user and confirms "
        "it; so keep its node running until `sottovoce device privacy` shows the confirmation",
        "what was released before cannot be taken back; the epsilon spent bounds what anybody can "
        "learn from it",
    )
    return 0
