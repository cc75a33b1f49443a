"""A user's device: whose it is, its vault, its ledger, and its sources of randomness.

On disk a device is a folder::

    device.json    schema, user, budgets, what the owner allows, and a seed if it is simulated
    vault/         its sealed copy; features, normaliser, head, outbox, the ledger's anchor: sealed
    ledger.jsonl   every release, for the device's whole life
"""

import hashlib
import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from sottovoce.client.device import profile_seal, stored_clips, withdrawal
from sottovoce.client.device.consent import DeviceConsent, Purpose
from sottovoce.client.device.profile import (
    PROFILE_FILE,
    DeviceProfile,
    LabelledFeatures,
    read_profile,
    write_profile,
)
from sottovoce.client.device.randomness import Randomness
from sottovoce.client.device.sum_identity import SumIdentity
from sottovoce.client.device.vault import FileVault, Vault
from sottovoce.client.device.vault_anchor import VaultAnchor
from sottovoce.shared.errors import BudgetSpent, LedgerError, PrivacyError, SettingError
from sottovoce.shared.memo import LastValueCache
from sottovoce.shared.models.examples import Examples
from sottovoce.shared.privacy.ledger import Ledger
from sottovoce.shared.privacy.release import Release

_ANSWERED: Final = "answered"
_LEDGER: Final = "ledger.jsonl"


class Device:
    """One user's device: what it releases, booked before it exists.

    Made of its parts, so that a simulation can keep them in memory; a user's machine opens the
    folder of one with :meth:`open`.

    Args:
        profile: What the owner decided.
        vault: Holds features, normaliser, head and outbox.
        ledger: Books every release.
        folder: Where the device lies; None where it lies in none.

    Raises:
        PrivacyError: A seed of a simulation beside the ledger of a real device.

    Attributes:
        training_cache: The training examples as the newest round read them, for the next one.

    >>> profile = DeviceProfile(user="ada", budgets=(), labels=("angry", "sad"), contributes=False)
    >>> recordings = LabelledFeatures.without_recordings(width=2304)
    >>> device = Device.create("my-device", profile, recordings)
    >>> Device.open("my-device").ledger.releases
    ()
    """

    def __init__(
        self, profile: DeviceProfile, vault: Vault, ledger: Ledger, *, folder: Path | None = None
    ) -> None:
        if profile.simulated_seed is not None and ledger.has_opening:
            raise PrivacyError(
                f"the device of {profile.user} has a real device's ledger and simulated_seed "
                f"{profile.simulated_seed}: noise from a seed protects nobody. Set simulated_seed "
                "to null, or make another device for a simulation"
            )
        self.profile = profile
        self.vault = vault
        self.ledger = ledger
        self.training_cache = LastValueCache[Examples]()
        self._folder = folder

    @classmethod
    def open(
        cls, folder: str | Path, *, read_only: bool = False, vault: FileVault | None = None
    ) -> "Device":
        """Open the device of a folder.

        Args:
            folder: An existing device, made by :meth:`create`.
            read_only: Whether it is only looked at: nothing is booked or written.
            vault: Its vault, opened; None opens it, which a passphrase forbids.

        Raises:
            SettingError: No device there.
            PrivacyError: A damaged one, or a profile that is not what its owner sealed (see
                ``profile_seal``). One of an earlier release, which is not sealed, is sealed now if
                nothing was ever released; else its owner has to confirm it.
            LedgerError: Its ledger is broken, another user's, or lacks lines that were written.
        """
        folder = Path(folder)
        opened = vault or FileVault.open(_require_device(folder) / "vault")
        profile, is_sealed = profile_seal.read_bound_profile(folder / PROFILE_FILE, opened)
        anchor_store = VaultAnchor(opened, required=True)

        def open_ledger(*, read_only: bool) -> Ledger:
            return Ledger(
                folder / _LEDGER,
                owner=profile.user,
                anchor_store=anchor_store,
                read_only=read_only,
            )

        if not is_sealed and open_ledger(read_only=True).releases:
            # What was spent under which budget is unknown to anybody but the owner.
            raise PrivacyError(
                f"{folder / PROFILE_FILE} is of an earlier release and was never sealed, so "
                "anybody can have changed it. If you are the device's owner, read it, and run "
                f"`sottovoce device confirm {folder}`"
            )
        device = cls(profile, opened, open_ledger(read_only=read_only), folder=folder)
        # A device that contributes nothing more stays so until its owner confirms otherwise.
        if not read_only and profile.withdrawn:
            withdrawal.seal_withdrawal(opened, profile)
        elif not read_only and not (is_sealed and profile.contributes):
            profile_seal.seal_profile(opened, profile)
        return device

    @classmethod
    def confirm_profile(cls, folder: Path, *, vault: FileVault | None = None) -> tuple[str, ...]:
        """Seal what an owner has changed in ``device.json``.

        Args:
            folder: The device's.
            vault: As in :meth:`open`.

        Returns:
            What changes, one text a decision; all decisions where none was sealed yet.

        Raises:
            SettingError: No device there, or the file names another user or seed.
            PrivacyError: Its profile or its vault is damaged, or the disk refuses.
        """
        vault = vault or FileVault.open(_require_device(folder) / "vault")
        return profile_seal.confirm_profile(folder / PROFILE_FILE, vault)

    @property
    def folder(self) -> Path:
        """Where the device lies.

        Raises:
            SettingError: In no folder, as a simulated one in memory.
        """
        if self._folder is None:
            raise SettingError(f"the device of {self.profile.user} is in memory, in no folder")
        return self._folder

    @classmethod
    def create(
        cls,
        folder: str | Path,
        profile: DeviceProfile,
        features: LabelledFeatures,
        *,
        key: bytes | None = None,
        passphrase: str | None = None,
    ) -> "Device":
        """Make a device and seal its clips.

        Args:
            folder: Made if missing.
            profile: What the owner decided.
            features: The user's recordings as features.
            key: The key of the user's other or earlier device, see ``vault.unwrap_key``, so that
                the head that the server keeps opens here; without one a new key is drawn.
            passphrase: Seals the vault's key on the disk; without one it lies in a file.

        Raises:
            PrivacyError: There is one already, or the disk refuses.
            SettingError: A short passphrase, or a name without a visible character.
        """
        folder = Path(folder)
        # One form of a name: its vault, its ledger and the server must not disagree.
        profile = profile.with_tidy_user()
        vault = FileVault.create(
            folder / "vault", user=profile.user, key=key, passphrase=passphrase
        )
        vault.put_tensors("clips", features.to_tensors())
        if profile.intended_use is not None:
            DeviceConsent(vault, required=False).create()  # nothing is consented to yet
        profile_seal.seal_profile(vault, profile)  # before the anchor, which says that it is there
        if profile.simulated_seed is None:  # a simulation must repeat, ledgers included
            Ledger.create(folder / _LEDGER, profile.user)
        anchor_store = VaultAnchor(vault, required=False)
        Ledger(
            folder / _LEDGER, owner=profile.user, anchor_store=anchor_store
        )  # and its first anchor
        # Written last: a device is there once its profile is.
        write_profile(folder / PROFILE_FILE, profile)
        return cls.open(folder, vault=vault)

    @classmethod
    def retire(cls, folder: Path, *, vault: FileVault | None = None) -> Path | None:
        """End a device's training for good, where its ledger is refused: it only receives models.

        What it has spent is unknown, so all counts as spent. Heads and predictions go on.

        Args:
            folder: The device's.
            vault: As in :meth:`open`.

        Returns:
            Where the refused ledger was set aside, None where there was none.

        Guarantees:
            - No budget ever pays for a release of this device again: its new ledger begins with one
              of infinite epsilon, and the device is marked as one that does not contribute, first.
            - A crash in between leaves a device that is refused, or one that is retired.

        Raises:
            SettingError: No device there, or one whose ledger is in order.
            PrivacyError: Its profile or its vault is damaged, or the disk refuses.
        """
        profile = read_profile(folder / PROFILE_FILE)
        vault = vault or FileVault.open(folder / "vault")
        try:
            # Opening verifies ledger and anchor: only a refusal is a reason to retire.
            cls.open(folder, read_only=True, vault=vault)
        except LedgerError:
            pass
        else:
            raise SettingError(
                f"the ledger of {folder} is in order, so there is nothing to recover from; a "
                'device that shall give nothing more says "contributes": false in device.json'
            )
        # First the profile: from here on no crash leaves a device that contributes with a new
        # ledger.
        profile = replace(profile, contributes=False)
        write_profile(folder / PROFILE_FILE, profile)
        profile_seal.seal_profile(vault, profile)
        # The old anchor, brought back by a power cut, would have the new ledger refused.
        anchor_store = VaultAnchor(vault, required=False, durable=True)
        with_opening = profile.simulated_seed is None
        return Ledger.replace_with_spent(
            folder / _LEDGER, profile.user, anchor_store, with_opening=with_opening
        )

    def withdraw(self) -> None:
        """End the owner's enrolment: from now on nothing is trained or sent, for any run.

        Servers that ask the device are told so, delete what they hold of the user, and confirm it;
        see :attr:`confirmed_deletions`. Predictions and the user's own head go on.

        Guarantees:
            - See ``withdrawal.withdraw_device``. Other programs that have this device open notice
              before their next booking and before their next answer.

        Raises:
            SettingError: The device is in memory, in no folder.
            PrivacyError: The disk refuses.

        >>> profile = DeviceProfile(user="eve", budgets=(), labels=("angry", "sad"))
        >>> recordings = LabelledFeatures.without_recordings(width=2304)
        >>> device = Device.create("eves-device", profile, recordings)
        >>> device.withdraw()
        >>> Device.open("eves-device").profile.withdrawn
        True
        """
        path = self.folder / PROFILE_FILE
        self.profile = withdrawal.withdraw_device(path, self.vault, self.profile)

    def enrol_anew(self) -> None:
        """Begin the owner's next enrolment after :meth:`withdraw`, of the same user.

        The device contributes once its user consents to that anew, see :attr:`consent`.

        Guarantees:
            - Ledger and budgets are those of the device's whole life: nothing is reset.

        Raises:
            SettingError: The device was not withdrawn, or is in no folder.
            PrivacyError: The disk refuses.
        """
        path = self.folder / PROFILE_FILE
        self.profile = withdrawal.enrol_anew(path, self.vault, self.profile)

    def require_not_withdrawn(self) -> None:
        """Refuse to go on with a device that its owner has withdrawn; see ``withdrawal``.

        Raises:
            ConsentWithdrawn: The owner has, in this program or in another.
        """
        withdrawal.require_not_withdrawn(self.profile, self._folder and self._folder / PROFILE_FILE)

    @property
    def confirmed_deletions(self) -> list[dict[str, Any]]:
        """List what servers confirmed to have deleted; see ``withdrawal.list_confirmations``."""
        return withdrawal.list_confirmations(self.vault)

    @staticmethod
    def exists(folder: Path) -> bool:
        """Whether a folder holds a device."""
        return (folder / PROFILE_FILE).is_file()

    def load_features(self) -> LabelledFeatures:
        """Read the device's recordings as features."""
        return stored_clips.load_clips(self.vault)

    def book_and_release(
        self,
        name: str,
        request_digest: str,
        release: Release,
        compute: Callable[[Randomness], Tensor],
    ) -> Tensor:
        """Book a release, make it, keep it, and give it out.

        Args:
            name: What it is within its run, such as ``round-3``.
            request_digest: SHA-256 of the request that it answers.
            release: What the ledger says of it.
            compute: Computes it, noise included.

        Returns:
            The released vector.

        Guarantees:
            - The record is on disk, and the ledger's anchor written, before ``compute`` is called.
            - The same request again gets the same bytes and costs nothing more: from the outbox,
              or, if the device died in between and is simulated, from the same seed. A real device
              that died in between books a second release, with fresh noise.
            - Another request of the same name is another release, with its own noise.

        Raises:
            BudgetSpent: The budget would be passed; nothing was booked or computed.
        """
        self._require_contributing()  # what was not delivered yet is not given either
        ledger_key = _ledger_key(name, request_digest, release)
        slot = f"outbox-{release.kind.value}"  # the newest of each kind is enough
        if self.ledger.is_booked(ledger_key):
            stored = self._read_outbox(slot, ledger_key)
            if stored is not None:
                return stored
        return self._store_released(
            slot, ledger_key, compute(self.book_release(name, request_digest, release))
        )

    def find_released(self, prepared: "PreparedRelease") -> Tensor | None:
        """Find the value released for this very request; None if the outbox no longer has one.

        Raises:
            ConsentWithdrawn: The owner has withdrawn consent.
        """
        self.require_not_withdrawn()
        ledger_key = _ledger_key(prepared.name, prepared.request_digest, prepared.release)
        return self._read_outbox(f"outbox-{prepared.release.kind.value}", ledger_key)

    def has_booked(self, prepared: "PreparedRelease") -> bool:
        """Whether a release for this very request was booked."""
        return self.ledger.is_booked(
            _ledger_key(prepared.name, prepared.request_digest, prepared.release)
        )

    def _store_released(self, slot: str, ledger_key: str, value: Tensor) -> Tensor:
        """Keep what leaves, so that the same request gets the same bytes."""
        # Withdrawn while this was computed: it was paid for, and stays here all the same.
        self.require_not_withdrawn()
        stamp = torch.frombuffer(bytearray(_stamp(ledger_key)), dtype=torch.uint8)
        # Lost in a power cut, it costs a second booking; never a release that was not booked.
        self.vault.put_tensors(slot, {"value": value, "stamp": stamp}, durable=False)
        return value

    def book_release(self, name: str, request_digest: str, release: Release) -> Randomness:
        """Book a release that is about to be made; arguments as for :meth:`book_and_release`.

        Returns:
            Where its noise comes from.

        Guarantees:
            - The record is on disk, and the ledger's anchor written, before this returns.
            - Booked again under the same name, a simulated device pays once and repeats its noise;
              a real one pays again.

        Raises:
            BudgetSpent: The budget would be passed; nothing was booked.
        """
        self._require_contributing()
        ledger_key = _ledger_key(name, request_digest, release)
        if not self.ledger.is_booked(ledger_key):
            self.ledger.book_release(ledger_key, release, self.profile.budgets)
        elif self.profile.simulated_seed is None:
            self.ledger.book_release(
                f"{ledger_key}/{secrets.token_hex(8)}", release, self.profile.budgets
            )
        self.ledger.sync_anchor()  # where the anchor could not be written when this was booked
        return Randomness(self.profile, self._purpose(name, ledger_key))

    def _purpose(self, name: str, ledger_key: str) -> str:
        """Seed purpose of a simulated device's draws for a release.

        Its name alone: neither the run's name nor the request decides them, so a run whose settings
        are spelled in another way repeats them. A second release of that name, for another request
        or in another run, has draws of its own.
        """
        if self.profile.simulated_seed is None:
            return name
        same = [one for one in self.ledger.release_names if one.split("/")[-2:-1] == [name]]
        # The first release has the plain name: most runs have no second, and old seeds stay valid.
        earlier = same.index(ledger_key)
        return f"{name}/{earlier}" if earlier else name

    @property
    def consent(self) -> DeviceConsent:
        """Consent of the device's user, by purpose."""
        return DeviceConsent(self.vault, required=self.profile.intended_use is not None)

    @property
    def contributes(self) -> bool:
        """Whether the device takes part in training: its owner and its user both agree.

        Raises:
            PrivacyError: The record of consent is damaged or gone.
        """
        return self.profile.contributes and self.consent.allows(Purpose.CONTRIBUTE)

    @property
    def personalises(self) -> bool:
        """Whether the device learns from its user; raises as :attr:`contributes`."""
        return self.consent.allows(Purpose.PERSONALISE)

    def _require_contributing(self) -> None:
        """Refuse new releases of a device that only receives models, or was withdrawn."""
        self.require_not_withdrawn()
        if not self.contributes:
            raise BudgetSpent(
                "this device only receives models: its user does not consent to contribute, its "
                "owner has ended its training, or has retired it because its ledger was refused"
            )

    def book_in_advance(self, name: str, request_digest: str, release: Release) -> None:
        """Book what covers later answers, once; arguments as for :meth:`book_and_release`.

        Raises:
            BudgetSpent: The budget would be passed; nothing was booked.
        """
        self._require_contributing()
        ledger_key = _ledger_key(name, request_digest, release)
        if not self.ledger.is_booked(ledger_key):
            self.ledger.book_release(ledger_key, release, self.profile.budgets)
        self.ledger.sync_anchor()

    def require_booked(self, name: str, request_digest: str, release: Release) -> None:
        """Refuse to go on with what :meth:`book_in_advance` has not booked.

        Raises:
            BudgetSpent: Nothing was paid, as where enrolment was refused.
        """
        if not self.ledger.is_booked(_ledger_key(name, request_digest, release)):
            raise BudgetSpent(
                f"{release.run}: its {name} was never paid for; the device gives nothing to this "
                "run until an enrolment fits its budget"
            )

    @property
    def isolate_examples(self) -> bool:
        """Whether each utterance is computed by itself, so that none rounds another's last bits.

        A simulation's server sends nothing that could make use of them.
        """
        return self.profile.simulated_seed is None

    def answer_once(self, prepared: "PreparedRelease") -> Tensor:
        """Make what was paid for in advance, once.

        Guarantees:
            - One request of each name is answered. The same again gets the same bytes, or, where
              they were lost, an answer made anew: the noise that hides it is the server's.

        Raises:
            PrivacyError: Another request of that name was answered already.
        """
        self._require_contributing()
        ledger_key = _ledger_key(prepared.name, prepared.request_digest, prepared.release)
        slot = f"outbox-{prepared.release.kind.value}"
        stored = self._read_outbox(slot, ledger_key)
        if stored is not None:
            return stored
        key = f"{prepared.release.run}/{prepared.name}"
        answered = json.loads(self.vault.get(_ANSWERED)) if self.vault.has_blob(_ANSWERED) else {}
        # A second request of a round would reveal more than was paid for.
        if answered.setdefault(key, prepared.request_digest) != prepared.request_digest:
            raise PrivacyError(
                f"{prepared.name} was answered already, for another request; what was paid for "
                "covers one answer to each round"
            )
        durable = self.profile.simulated_seed is None
        self.vault.put(_ANSWERED, json.dumps(answered).encode(), durable=durable)
        return self._store_released(slot, ledger_key, prepared.compute_as(self.profile))

    @property
    def identity_key(self) -> bytes:
        """Private identity key of the user; see :meth:`SumIdentity.read_key`."""
        return SumIdentity(self.vault, self.profile).read_key()

    def pin_roster(self, roster: Mapping[str, bytes]) -> None:
        """Keep whom this device makes secure sums with; see :meth:`SumIdentity.pin_roster`."""
        SumIdentity(self.vault, self.profile).pin_roster(roster)

    @property
    def pinned_roster(self) -> dict[str, bytes]:
        """Whom this device makes secure sums with; see :meth:`SumIdentity.read_roster`."""
        return SumIdentity(self.vault, self.profile).read_roster()

    def _read_outbox(self, slot: str, ledger_key: str) -> Tensor | None:
        """Read what was released under this name, if it is still there."""
        if not self.vault.has_blob(slot):
            return None
        try:
            stored = self.vault.get_tensors(slot)
        except PrivacyError:  # cut off by a power cut: as good as lost
            return None
        if bytes(stored["stamp"].tolist()) != _stamp(ledger_key):
            return None
        return stored["value"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PreparedRelease:
    """A release that is not booked yet.

    Attributes:
        name: What it is within its run, such as ``round-3``.
        request_digest: SHA-256 of the request that it answers.
        release: What the ledger will say of it.
        compute: Computes it.
    """

    name: str
    request_digest: str
    release: Release
    compute: Callable[[Randomness], Tensor]

    def compute_as(self, profile: DeviceProfile) -> Tensor:
        """Compute the release with the randomness that a device has for its name.

        Args:
            profile: The device's; its seed decides all draws, or the operating system without one.
        """
        return self.compute(Randomness(profile, self.name))


def _require_device(folder: Path) -> Path:
    """Refuse a folder without a device, before its vault is missed."""
    if not (folder / PROFILE_FILE).exists():
        raise SettingError(f"{folder} holds no device; make one by `sottovoce device create`")
    return folder


def _ledger_key(name: str, request_digest: str, release: Release) -> str:
    """Name under which the ledger knows a release."""
    return f"{release.run}/{name}/{request_digest[:32]}"


def _stamp(ledger_key: str) -> bytes:
    """SHA-256 of a release's name."""
    return hashlib.sha256(ledger_key.encode()).digest()
