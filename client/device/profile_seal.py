"""The sealed copy of the owner's decisions, under the vault's key.

``device.json`` is plain text, so that an owner can read it; whoever can write to the folder could
raise a budget in it, or make a real device repeat its noise. What counts is the copy in the vault:
a device opens only where both agree.
"""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final

from sottovoce.client.device.profile import DeviceProfile, read_profile
from sottovoce.client.device.vault import Vault
from sottovoce.client.device.vault_anchor import is_profile_sealed
from sottovoce.shared import codec
from sottovoce.shared.errors import PrivacyError, SettingError

_NAME: Final = "profile"
_FIXED: Final = ("user", "simulated_seed")
"""What a device is, which no owner can change later."""


def seal_profile(vault: Vault, profile: DeviceProfile) -> None:
    """Seal the owner's decisions, in place of earlier ones."""
    vault.put(_NAME, json.dumps(profile.to_dict()).encode())


def read_bound_profile(path: Path, vault: Vault) -> tuple[DeviceProfile, bool]:
    """Read ``device.json``, and compare it with the sealed copy.

    Args:
        path: The file.
        vault: The device's.

    Returns:
        The owner's decisions, and whether there is a sealed copy; devices of earlier releases have
        none.

    Guarantees:
        - Whoever lacks the vault's key can make a device refuse, or end its contributions or its
          consent, which the file alone may do; every other decision is as its owner sealed it.
        - A sealed copy that was removed is missed, wherever the ledger's anchor was written since.

    Raises:
        SettingError: There is no device.
        PrivacyError: The file is damaged, or does not agree with the copy.
    """
    profile = read_profile(path)
    sealed = _read_sealed_profile(vault, path)
    if sealed is None:
        return profile, False
    # To contribute nothing more, or to withdraw, needs no key: it only gives away less.
    accepted = replace(
        sealed,
        contributes=sealed.contributes and profile.contributes,
        withdrawn=sealed.withdrawn or profile.withdrawn,
    )
    # A consent that was cut off has sealed its number, and the file says "withdrawn" still.
    said = replace(profile, enrolment=sealed.enrolment) if profile.withdrawn else profile
    if said != accepted:
        raise PrivacyError(
            f"{path} is not what the device's owner sealed: {'; '.join(_changes(sealed, profile))}."
            " Put the old values back; if you are the owner and changed them, run `sottovoce device"
            f" confirm {path.parent}`"
        )
    return accepted, True


def confirm_profile(path: Path, vault: Vault) -> tuple[str, ...]:
    """Seal what stands in ``device.json`` now, as its owner asks.

    Args:
        path: The file.
        vault: The device's.

    Returns:
        What changes, one text a decision; all decisions where none was sealed yet.

    Raises:
        SettingError: There is no device, or the file names another user or another seed: that makes
            another device.
        PrivacyError: The file is damaged, or the disk refuses.
    """
    profile = read_profile(path)
    if vault.has_blob(_NAME):
        sealed = _read_sealed_profile(vault, path)
        changes = _changes(sealed, profile)
        _refuse_consent(path, sealed, profile)
        for name in _FIXED:
            if getattr(sealed, name) != getattr(profile, name):
                raise SettingError(
                    f"{name} in {path} is {getattr(profile, name)!r}, this device's is "
                    f"{getattr(sealed, name)!r}, for good; put it back, or make another device"
                )
    else:
        changes = [f"{name} is {value!r}" for name, value in profile.to_dict().items()]
    seal_profile(vault, profile)
    return tuple(changes)


def _refuse_consent(path: Path, sealed: DeviceProfile | None, profile: DeviceProfile) -> None:
    """Refuse a withdrawal that is taken back by hand: consent begins a new enrolment."""
    if sealed and (
        (sealed.withdrawn and not profile.withdrawn) or sealed.enrolment != profile.enrolment
    ):
        raise SettingError(
            f"withdrawn and enrolment in {path} are not for editing: put back what stood there. "
            f"`sottovoce device withdraw {path.parent}` withdraws, `sottovoce device consent "
            f"{path.parent} --grant contribute` enrols anew"
        )


def _read_sealed_profile(vault: Vault, path: Path) -> DeviceProfile | None:
    """Read the sealed copy; None where none was ever made."""
    name = f"the sealed copy of {path}"
    if vault.has_blob(_NAME):
        record = codec.decode_json(vault.get(_NAME), dict[str, Any], name=name, error=PrivacyError)
        return DeviceProfile.from_dict(record, name=name)
    if is_profile_sealed(vault):
        raise PrivacyError(
            f"{name} is gone from the vault; put the vault back from a backup. If you are the "
            "device's owner and the file says what you decided, run `sottovoce device confirm "
            f"{path.parent}`"
        )
    return None


def _changes(sealed: DeviceProfile | None, profile: DeviceProfile) -> list[str]:
    """Name what differs from the sealed copy."""
    return [
        f"{field.name} is {getattr(profile, field.name)!r}, sealed was "
        f"{getattr(sealed, field.name)!r}"
        for field in fields(profile)
        if getattr(sealed, field.name) != getattr(profile, field.name)
    ]
