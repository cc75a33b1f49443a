"""Making a device for one user: declared, within a budget, without recordings."""

from pathlib import Path

from sottovoce.client.device.device import Device
from sottovoce.client.device.intended_use import parse_intended_use
from sottovoce.client.device.profile import DeviceProfile, LabelledFeatures
from sottovoce.shared.errors import SettingError
from sottovoce.shared.identity import tidy_name
from sottovoce.shared.privacy.schemes import scheme_for
from sottovoce.shared.privacy.target import PrivacyTarget
from sottovoce.shared.speaker.emotions import CANONICAL_EMOTIONS


def create_device(
    folder: Path,
    *,
    user: str,
    use: str,
    target: PrivacyTarget,
    labels: tuple[str, ...] = (),
    passphrase: str | None = None,
) -> Device:
    """Make a device, on which nothing is allowed until its user consents.

    Args:
        folder: Made if missing.
        user: A pseudonym.
        use: What the device is for, as ``parse_intended_use`` reads it.
        target: What the device may spend in its life, and whom that protects.
        labels: Emotions that recordings can be labelled with; without any, those of common corpora.
        passphrase: Seals the vault's key on the disk; without one it lies in a file.

    Raises:
        SettingError: A use that is forbidden or unknown, a unit that promises nothing, a short
            passphrase, or a name without a visible character; nothing was made.
        PrivacyError: There is one already, or the disk refuses.
    """
    scheme = scheme_for(target.unit)
    if not scheme.promised:
        raise SettingError(
            f"unit is {target.unit!r}, which promises nothing; a device promises utterance, user or"
            " both"
        )
    named = tuple(dict.fromkeys(filter(None, map(tidy_name, labels))))
    profile = DeviceProfile(
        user=user,
        budgets=scheme.budgets(target),
        labels=named or CANONICAL_EMOTIONS,
        intended_use=parse_intended_use(use),
    )
    # Of whatever width: what the first clips bring decides it.
    recordings = LabelledFeatures.without_recordings(width=1)
    return Device.create(folder, profile, recordings, passphrase=passphrase)
