"""Withdrawal of a device: its record, what proves it to a server, and what servers confirmed.

Where ``consent`` says which purposes a user allows, a withdrawal ends the whole enrolment, towards
every server. Its record is the profile: ``device.json``, and the sealed copy in the vault. A
withdrawal is written to the file first, where it counts without any key, then sealed; only then is
anything removed. So a device that dies in between is withdrawn, and opening it does the rest.
"""

import json
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from sottovoce.client.device import profile_seal
from sottovoce.client.device.consent import DeviceConsent, Purpose
from sottovoce.client.device.profile import DeviceProfile, read_profile, write_profile
from sottovoce.client.device.vault import Vault
from sottovoce.shared import codec
from sottovoce.shared.errors import ConsentWithdrawn, PrivacyError, SettingError
from sottovoce.shared.privacy.release import ReleaseKind
from sottovoce.shared.protocol.consent import ConsentStatement
from sottovoce.shared.protocol.messages import WithdrawalConfirmation

_CONFIRMATIONS: Final = "withdrawal-confirmations"
_MAX_CONFIRMATIONS: Final = 100
_FOR_THE_SERVER: Final = (
    "plan",
    "secure-sum",
    "secure-enrolment",
    *(f"outbox-{kind.value}" for kind in ReleaseKind),
)
"""Blobs of the vault that serve nothing but answers: the plan enrolled for, and what left or was
about to. Those that forbid a second answer stay, as the ledger does."""


def withdraw_device(path: Path, vault: Vault, profile: DeviceProfile) -> DeviceProfile:
    """Withdraw a device from every run and every server.

    Args:
        path: The device's ``device.json``.
        vault: The device's.
        profile: The owner's decisions.

    Returns:
        The decisions now.

    Guarantees:
        - The record of the withdrawal is on the disk, synced, before anything else changes. From
          there on :func:`require_not_withdrawn` refuses, in every program.
        - Withdrawn twice is withdrawn once.

    Raises:
        PrivacyError: The disk refuses. If ``device.json`` was written, the device is withdrawn.
    """
    profile = replace(profile, withdrawn=True)
    write_profile(path, profile)
    seal_withdrawal(vault, profile)
    return profile


def seal_withdrawal(vault: Vault, profile: DeviceProfile) -> None:
    """Seal a withdrawal that is on the disk, remove what would answer a server, and log both."""
    profile_seal.seal_profile(vault, profile)
    for name in _FOR_THE_SERVER:
        if vault.has_blob(name):
            vault.delete(name)
    consent = DeviceConsent(vault, required=profile.intended_use is not None)
    with suppress(PrivacyError):  # a record that is gone allows nothing anyway
        if consent.allows(Purpose.CONTRIBUTE):
            consent.withdraw(Purpose.CONTRIBUTE)


def enrol_anew(path: Path, vault: Vault, profile: DeviceProfile) -> DeviceProfile:
    """Begin the next enrolment after a withdrawal; arguments as for :func:`withdraw_device`.

    Guarantees:
        - Ledger and budgets stay: what was spent before counts on.
        - A crash in between leaves the device withdrawn.

    Raises:
        SettingError: The device was not withdrawn.
        PrivacyError: The disk refuses.
    """
    if not profile.withdrawn:
        raise SettingError(
            f"{path.parent} was not withdrawn (enrolment {profile.enrolment} goes on); there is "
            "nothing to enrol anew"
        )
    profile = replace(profile, withdrawn=False, enrolment=profile.enrolment + 1)
    # Sealed first: while the file says "withdrawn", the device is.
    profile_seal.seal_profile(vault, profile)
    write_profile(path, profile)
    return profile


def require_not_withdrawn(profile: DeviceProfile, path: Path | None) -> None:
    """Refuse to go on with a withdrawn device, in this program or in another since.

    Args:
        profile: The decisions as this program read them.
        path: The device's ``device.json``, read again; None for a device in memory.

    Raises:
        ConsentWithdrawn: It was.
        PrivacyError: The file cannot be read: what it says is unknown, so nothing goes on.
        SettingError: The file is gone.
    """
    if profile.withdrawn or (path is not None and read_profile(path).withdrawn):
        raise ConsentWithdrawn(
            f"the device of {profile.user} was withdrawn: nothing is trained or sent. Its owner "
            "can enrol anew, by `sottovoce device consent FOLDER --grant contribute`"
        )


def sign_consent(vault: Vault, profile: DeviceProfile, plan_hash: str) -> ConsentStatement:
    """Sign that the owner's enrolment takes part in a plan."""
    return ConsentStatement.sign_consent(
        vault.derive_consent_key(),
        user=profile.user,
        enrolment=profile.enrolment,
        plan_hash=plan_hash,
    )


def prove_withdrawal(vault: Vault, profile: DeviceProfile, challenge: bytes) -> ConsentStatement:
    """Sign that the owner's enrolment has ended, for one server's challenge.

    Raises:
        PrivacyError: It has not.
    """
    if not profile.withdrawn:
        raise PrivacyError("this device was not withdrawn; there is nothing to prove")
    return ConsentStatement.sign_withdrawal(
        vault.derive_consent_key(),
        user=profile.user,
        enrolment=profile.enrolment,
        challenge=challenge,
    )


def keep_confirmation(
    vault: Vault, profile: DeviceProfile, confirmation: WithdrawalConfirmation
) -> None:
    """Keep a server's word on what it deleted; the newest hundred are kept.

    Raises:
        PrivacyError: The device was not withdrawn, or another enrolment is confirmed.
    """
    if not profile.withdrawn or confirmation.enrolment != profile.enrolment:
        raise PrivacyError(
            f"a withdrawal of enrolment {confirmation.enrolment} was confirmed, which this device "
            "did not ask for; nothing was kept"
        )
    record = {
        "run": confirmation.run,
        "enrolment": confirmation.enrolment,
        "deleted": list(confirmation.deleted),
    }
    kept = [
        one
        for one in list_confirmations(vault)
        if (one["run"], one["enrolment"]) != (confirmation.run, confirmation.enrolment)
    ]
    record["received"] = datetime.now(UTC).isoformat(timespec="seconds")
    data = json.dumps([*kept, record][-_MAX_CONFIRMATIONS:]).encode()
    vault.put(_CONFIRMATIONS, data)


def list_confirmations(vault: Vault) -> list[dict[str, Any]]:
    """List what servers said they deleted: ``run``, ``enrolment``, ``deleted``, ``received``.

    Raises:
        PrivacyError: The list is damaged.
    """
    if not vault.has_blob(_CONFIRMATIONS):
        return []
    data = vault.get(_CONFIRMATIONS)
    return codec.decode_json(
        data, list[dict[str, Any]], name="the list of confirmations", error=PrivacyError
    )
