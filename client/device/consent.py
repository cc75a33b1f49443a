"""The user's consent, by purpose: one record in the device's vault, which is also its own log.

Consent is opt-in: what was never granted is refused, and a consent counts only for the text that
was shown. A device whose owner declared an intended use must have the record; without it nothing is
allowed. Devices of earlier releases, and simulated ones, have neither: there the profile alone
decides, until a first decision is recorded.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, TypedDict

from sottovoce.client.device import profile_seal
from sottovoce.client.device.profile import PROFILE_FILE
from sottovoce.client.device.vault import Vault
from sottovoce.shared import codec, validation
from sottovoce.shared.codec import Count, Name
from sottovoce.shared.errors import ConsentError, PrivacyError

BLOB_NAME: Final = "consent"
"""Under which name the record lies in the vault."""

_SCHEMA: Final = 1


class Purpose(StrEnum):
    """Purpose that a user consents to, each by itself."""

    RECOGNISE = "recognise"
    PERSONALISE = "personalise"
    CONTRIBUTE = "contribute"


@dataclass(frozen=True, kw_only=True, slots=True)
class ConsentText:
    """Text that a user is shown before consenting to a purpose.

    Attributes:
        version: Counts up with every change of meaning; consent to an older version counts no more.
        text: Plain words.
    """

    version: int
    text: str


CONSENT_TEXTS: Final = {
    Purpose.RECOGNISE: ConsentText(
        version=1,
        text="This device listens to the recordings that you hand to it, and a computer model "
        "estimates which emotion is in your voice. It is an estimate and can be wrong. It is made "
        "on this device: neither the recordings nor the estimates leave it, and the sound is not "
        "kept.",
    ),
    Purpose.PERSONALISE: ConsentText(
        version=1,
        text="This device keeps numbers computed from your recordings (not the sound), and what "
        "you say that the emotion was, to learn your voice. They are kept encrypted and do not "
        "leave the device. You can list, export, correct and forget each of them at any time.",
    ),
    Purpose.CONTRIBUTE: ConsentText(
        version=1,
        text="This device takes part in training a model that many people share, with the "
        "recordings that you enrolled and labelled. What leaves it are sums with random noise, "
        "within the privacy budget of this device, and each is entered in its ledger before it "
        "leaves. You can withdraw at any time: from then on nothing more is given. What has left "
        "cannot be taken out of models that were trained with it.",
    ),
}
"""By purpose, the text of today."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConsentDecision:
    """One decision of the user.

    Attributes:
        at: When, in UTC, such as ``2026-12-01T08:30:00+00:00``, by the device's clock.
        purpose: What it is about.
        is_granted: Whether it was granted; if not, it was withdrawn.
        text_version: Version of the text that was shown.
    """

    at: str
    purpose: Purpose
    is_granted: bool
    text_version: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ConsentRecord:
    """All decisions of a user, in their order; the last one of a purpose counts.

    Attributes:
        decisions: The log; none is ever removed.

    Example:
        >>> record = ConsentRecord().with_decision(Purpose.RECOGNISE, is_granted=True)
        >>> record.is_granted(Purpose.RECOGNISE), record.is_granted(Purpose.CONTRIBUTE)
        (True, False)
    """

    decisions: tuple[ConsentDecision, ...] = ()

    def find_last(self, purpose: Purpose) -> ConsentDecision | None:
        """Find the newest decision about a purpose; None where there is none."""
        return next((one for one in reversed(self.decisions) if one.purpose is purpose), None)

    def is_granted(self, purpose: Purpose) -> bool:
        """Whether a purpose is consented to, under the text of today."""
        last = self.find_last(purpose)
        if last is None or not last.is_granted:
            return False
        return last.text_version == CONSENT_TEXTS[purpose].version

    def with_decision(self, purpose: Purpose, *, is_granted: bool) -> "ConsentRecord":
        """Add a decision of now, under the text of today."""
        decision = ConsentDecision(
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            purpose=purpose,
            is_granted=is_granted,
            text_version=CONSENT_TEXTS[purpose].version,
        )
        return replace(self, decisions=(*self.decisions, decision))

    def to_dict(self) -> dict[str, Any]:
        """Convert to a JSON object."""
        return {"schema": _SCHEMA, "decisions": [asdict(one) for one in self.decisions]}


class DeviceConsent:
    """A device's consent: read from its vault whenever it is asked for.

    So a withdrawal counts at once, for programs that are running, too.

    Args:
        vault: The device's.
        required: Whether there must be a record, as on every device with a declared use.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from sottovoce.client.device.vault import FileVault
        >>> vault = FileVault.create(Path(tempfile.mkdtemp()) / "vault", user="ada")
        >>> consent = DeviceConsent(vault, required=False)
        >>> consent.withdraw(Purpose.CONTRIBUTE)
        >>> consent.allows(Purpose.CONTRIBUTE)
        False
    """

    def __init__(self, vault: Vault, *, required: bool) -> None:
        self._vault: Final = vault
        self._required: Final = required

    def read(self) -> ConsentRecord:
        """Read the record; empty where nothing was ever decided.

        Raises:
            PrivacyError: It is damaged, or gone from a device that must have one.
        """
        if not self._vault.has_blob(BLOB_NAME):
            if self._required:
                raise PrivacyError(
                    f"the consent of {self._vault.user!r} is gone from the vault, so nothing is "
                    "allowed; put the vault back from a backup, or erase the device"
                )
            return ConsentRecord()
        return _parse_record(self._vault.get(BLOB_NAME))

    def allows(self, purpose: Purpose | str) -> bool:
        """Whether the user allows a purpose.

        Args:
            purpose: As such, or by name.

        Guarantees:
            - What was never decided is not allowed, but on a device without a declared use, which
              asks by other means.
            - Consent to a text of another version is none.

        Raises:
            SettingError: There is no such purpose.
            PrivacyError: As for :meth:`read`.
        """
        purpose, record = parse_purpose(purpose), self.read()
        if not self._required and record.find_last(purpose) is None:
            return True
        return record.is_granted(purpose)

    def require(self, purpose: Purpose | str) -> None:
        """Refuse what the user does not allow.

        Args:
            purpose: As such, or by name.

        Raises:
            ConsentError: It is not allowed; the message says how to ask.
            PrivacyError: As for :meth:`read`.
        """
        purpose = parse_purpose(purpose)
        if self.allows(purpose):
            return
        last = self.read().find_last(purpose)
        if last is None:
            state = "has not consented"
        elif last.is_granted:
            state = f"consented to an earlier text (version {last.text_version})"
        else:
            state = f"withdrew consent on {last.at[:10]}"
        raise ConsentError(
            f"{self._vault.user} {state}, purpose {purpose.value!r}: nothing was done. Show the "
            f"text and ask, by `sottovoce device consent FOLDER --grant {purpose.value}`"
        )

    def grant(self, *purposes: Purpose | str) -> None:
        """Record that the user, shown today's texts, consents; see :meth:`withdraw`."""
        self._record(purposes, is_granted=True)

    def withdraw(self, *purposes: Purpose | str) -> None:
        """Record that the user withdraws consent; it counts from when this returns.

        Args:
            purposes: What it is about, as such or by name.

        Raises:
            SettingError: There is no such purpose; nothing was recorded.
            PrivacyError: The vault cannot be read or written; nothing was recorded.
        """
        self._record(purposes, is_granted=False)

    def create(self) -> None:
        """Begin the record of a new device, on which nothing is decided yet."""
        self._write(ConsentRecord())

    def _record(self, purposes: Iterable[Purpose | str], *, is_granted: bool) -> None:
        """Add decisions, all of them or none."""
        decided = [parse_purpose(purpose) for purpose in purposes]
        with self._vault.lock_blob(BLOB_NAME):
            record = self.read()
            for purpose in decided:
                record = record.with_decision(purpose, is_granted=is_granted)
            self._write(record)

    def _write(self, record: ConsentRecord) -> None:
        self._vault.put(BLOB_NAME, json.dumps(record.to_dict()).encode())


def load_consent(folder: Path, vault: Vault) -> DeviceConsent:
    """Load the consent of a device that is not opened, for what never touches its ledger.

    Args:
        folder: An existing device.
        vault: The device's.

    Raises:
        PrivacyError: Its profile is damaged, or is not what its owner sealed.
    """
    profile, _ = profile_seal.read_bound_profile(folder / PROFILE_FILE, vault)
    return DeviceConsent(vault, required=profile.intended_use is not None)


def parse_purpose(name: str) -> Purpose:
    """Read a purpose by its name.

    Raises:
        SettingError: There is no such purpose.

    Example:
        >>> parse_purpose("contribute").name
        'CONTRIBUTE'
    """
    validation.require_one_of([purpose.value for purpose in Purpose], purpose=name)
    return Purpose(name)


class _DecisionRecord(TypedDict):
    at: Name
    purpose: Purpose
    is_granted: bool
    text_version: Count


class _ConsentFile(TypedDict):
    schema: Count
    decisions: list[_DecisionRecord]


def _parse_record(data: bytes) -> ConsentRecord:
    """Parse a record; a damaged one, or one of a newer release, allows nothing."""
    name = "the consent record in the vault"
    content = codec.decode_json(data, _ConsentFile, name=name, error=PrivacyError)
    if content["schema"] != _SCHEMA:
        raise PrivacyError(
            f"{name} has schema {content['schema']}, this release reads {_SCHEMA}; update the app"
        )
    return ConsentRecord(
        decisions=tuple(ConsentDecision(**decision) for decision in content["decisions"])
    )
