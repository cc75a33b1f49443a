"""The command ``device consent``."""

import argparse
from typing import TYPE_CHECKING

from sottovoce.cli.devices.opening import add_folder, open_to_look
from sottovoce.cli.options import Commands, add_command, print_json
from sottovoce.shared.printable import print_lines

if TYPE_CHECKING:
    from sottovoce.client.device.consent import ConsentDecision, Purpose

_EXAMPLE = "sottovoce device consent my-device --grant recognise --grant personalise"


def add_consent_command(group: Commands) -> None:
    """Add the command ``device consent``."""
    parser = add_command(
        group,
        "consent",
        run_consent_command,
        "Show what the user consents to, purpose by purpose, or change that.",
        _EXAMPLE,
    )
    add_folder(parser)
    add = parser.add_argument
    for option, text in (("--grant", "consent"), ("--withdraw", "withdraw consent")):
        add(
            option,
            action="append",
            default=[],
            metavar="PURPOSE",
            help=f"{text} to recognise, personalise or contribute; may be repeated",
        )
    add("--json", action="store_true", help="print JSON")


def run_consent_command(arguments: argparse.Namespace) -> int:
    """Record decisions, and show each purpose with its text and the log."""
    from sottovoce.client.device.consent import CONSENT_TEXTS, Purpose, parse_purpose
    from sottovoce.shared.errors import SettingError

    granted, withdrawn = (
        [parse_purpose(name) for name in dict.fromkeys(names)]
        for names in (arguments.grant, arguments.withdraw)
    )
    if both := set(granted) & set(withdrawn):
        raise SettingError(f"{min(both).value} is both granted and withdrawn; say one of them")
    device, _ = open_to_look(arguments.folder)
    consent = device.consent
    if withdrawn:  # first: if this is cut short, less is allowed
        consent.withdraw(*withdrawn)
    if granted:
        consent.grant(*granted)
    if Purpose.CONTRIBUTE in granted and device.profile.withdrawn:
        device.enrol_anew()
    record = consent.read()
    if arguments.json:
        purposes = {
            purpose.value: {
                "allowed": consent.allows(purpose),
                "text_version": CONSENT_TEXTS[purpose].version,
                "text": CONSENT_TEXTS[purpose].text,
            }
            for purpose in Purpose
        }
        facts = {"user": device.profile.user, "enrolment": device.profile.enrolment}
        print_json(facts | {"purposes": purposes, "log": record.to_dict()})
        return 0
    for purpose in Purpose:
        allowed = "allowed" if consent.allows(purpose) else "not allowed"
        print_lines(f"{purpose.value}: {allowed}", f"  {CONSENT_TEXTS[purpose].text}")
    print_lines(*map(_format_decision, record.decisions))
    if device.profile.withdrawn:
        print_lines(f"withdrawn: enrolment {device.profile.enrolment} has ended, whatever is above")
    elif device.profile.enrolment > 1:
        print_lines(f"enrolment {device.profile.enrolment}; what was spent before counts on")
    return 0


def _format_decision(decision: "ConsentDecision") -> str:
    """One line of the log."""
    purpose: Purpose = decision.purpose
    what = "granted" if decision.is_granted else "withdrawn"
    return f"{decision.at}: {purpose.value} {what} (text version {decision.text_version})"
