"""The group of commands ``device``."""

from sottovoce.cli.devices.consent import add_consent_command
from sottovoce.cli.devices.creation import add_create_command
from sottovoce.cli.devices.serve import add_serve_commands
from sottovoce.cli.devices.upkeep import add_upkeep_commands
from sottovoce.cli.devices.user_data import add_user_data_commands
from sottovoce.cli.devices.withdrawal import add_withdraw_command
from sottovoce.cli.options import Commands, add_command_group


def add_device_group(commands: Commands) -> None:
    """Add the group ``device`` and all commands of the group."""
    example = "sottovoce device privacy DIR"
    group = add_command_group(commands, "device", "Make and look after a user's device.", example)
    add_create_command(group)
    add_consent_command(group)
    add_user_data_commands(group)
    add_serve_commands(group)
    add_withdraw_command(group)
    add_upkeep_commands(group)
