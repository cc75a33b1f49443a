"""A user's device on disk: whose it is, its vault, its ledger, and its sources of randomness.

A device is a folder::

    device.json    schema, user, budgets, what the owner allows, and a seed if it is simulated
    vault/         features, normaliser, head, outbox, the ledger's anchor: sealed
    ledger.jsonl   every release, for the device's whole life
"""

import hashlib
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from sottovoce.client.anchor import VaultAnchor
from sottovoce.client.owner import UNKNOWN, Clips, Facts
from sottovoce.client.vault import Vault, write_file
from sottovoce.shared import crypto, normaliser, seeds
from sottovoce.shared.errors import BudgetSpent, LedgerError, PrivacyError, SettingError
from sottovoce.shared.examples import Examples
from sottovoce.shared.newest import Newest
from sottovoce.shared.privacy.coins import Coins, SystemCoins
from sottovoce.shared.privacy.ledger import Ledger
from sottovoce.shared.privacy.noise import NoiseSource, SeededNoise, SystemNoise
from sottovoce.shared.privacy.release import Release
from sottovoce.shared.secagg.discrete import RandomWords, SeededWords, SystemWords

_SCHEMA: Final = 2
_FACTS: Final = "device.json"
_IDENTITY: Final = "identity"
_ROSTER: Final = "roster"
_ANSWERED: Final = "answered"
_LEDGER: Final = "ledger.jsonl"


class Device:
    """One user's device.

    Args:
        folder: An existing device, made by :meth:`create`.
        read_only: Whether it is only looked at: nothing is booked or written.
        vault: Its vault, opened; None opens it, which a passphrase forbids.

    Attributes:
        training: The clips as the newest round read them, for the next one.

    Raises:
        SettingError: No device there.
        PrivacyError: A damaged one.
        LedgerError: Its ledger is broken, another user's, or lacks lines that were written.
    """

    def __init__(
        self, folder: Path, *, read_only: bool = False, vault: Vault | None = None
    ) -> None:
        self.folder = folder
        self.training = Newest[Examples]()
        self.facts = _read_facts(folder / _FACTS)
        self.vault = vault or Vault.open(folder / "vault")
        self.ledger = Ledger(
            folder / _LEDGER,
            owner=self.facts.user,
            keeper=VaultAnchor(self.vault, required=True),
            read_only=read_only,
        )

    @classmethod
    def create(
        cls,
        folder: Path,
        facts: Facts,
        clips: Clips,
        *,
        key: bytes | None = None,
        passphrase: str | None = None,
    ) -> "Device":
        """Make a device and seal its clips.

        Args:
            folder: Made if missing.
            facts: What the owner decided.
            clips: The user's recordings as features.
            key: The key of the user's other or earlier device, see ``vault.unwrap_key``, so that
                the head that the server keeps opens here; without one a new key is drawn.
            passphrase: Seals the vault's key on the disk; without one it lies in a file.

        Raises:
            PrivacyError: There is one already, or the disk refuses.
            SettingError: A short passphrase.
        """
        vault = Vault.create(folder / "vault", user=facts.user, key=key, passphrase=passphrase)
        vault.put_tensors("clips", clips.tensors())
        if facts.simulated_seed is None:  # a simulation must repeat, ledgers included
            Ledger.begin(folder / _LEDGER, facts.user)
        keeper = VaultAnchor(vault, required=False)
        Ledger(folder / _LEDGER, owner=facts.user, keeper=keeper)  # and its first anchor
        # Written last: a device is there once its facts are.
        _write_facts(folder / _FACTS, facts)
        return cls(folder, vault=vault)

    @classmethod
    def retire(cls, folder: Path, *, vault: Vault | None = None) -> Path | None:
        """End a device's training for good, where its ledger is refused: it only receives models.

        What it has spent is unknown, so all counts as spent. Heads and predictions go on.

        Args:
            folder: The device's.
            vault: As in the constructor.

        Returns:
            Where the refused ledger was set aside, None where there was none.

        Guarantees:
            - No budget ever pays for a release of this device again: its new ledger begins with one
              of infinite epsilon, and the device is marked as one that does not contribute, first.
            - A crash in between leaves a device that is refused, or one that is retired.

        Raises:
            SettingError: No device there, or one whose ledger is in order.
            PrivacyError: Its facts or its vault are damaged, or the disk refuses.
        """
        facts = _read_facts(folder / _FACTS)
        vault = vault or Vault.open(folder / "vault")
        try:
            cls(folder, read_only=True, vault=vault)
        except LedgerError:
            pass
        else:
            raise SettingError(
                f"the ledger of {folder} is in order, so there is nothing to recover from; a "
                'device that shall give nothing more says "contributes": false in device.json'
            )
        _write_facts(folder / _FACTS, replace(facts, contributes=False))
        keeper = VaultAnchor(vault, required=False)
        opened = facts.simulated_seed is None
        return Ledger.retire(folder / _LEDGER, facts.user, keeper, opened=opened)

    @staticmethod
    def exists(folder: Path) -> bool:
        """Whether a folder holds a device."""
        return (folder / _FACTS).is_file()

    def clips(self) -> Clips:
        """The device's recordings as features."""
        return Clips.of(self.vault.get_tensors("clips"))

    def release(
        self, name: str, content: str, release: Release, make: Callable[["Randomness"], Tensor]
    ) -> Tensor:
        """Book a release, make it, keep it, and give it out.

        Args:
            name: What it is within its run, such as ``round-3``.
            content: SHA-256 of the request that it answers.
            release: What the ledger says of it.
            make: Computes it, noise included.

        Returns:
            The released vector.

        Guarantees:
            - The record is on disk, and the ledger's anchor written, before ``make`` is called.
            - The same request again gets the same bytes and costs nothing more: from the outbox,
              or, if the device died in between and is simulated, from the same seed. A real device
              that died in between books a second release, with fresh noise.
            - Another request of the same name is another release, with its own noise.

        Raises:
            BudgetSpent: The budget would be passed; nothing was booked or computed.
        """
        booked = _booked(name, content, release)
        slot = f"outbox-{release.kind.value}"  # the newest of each kind is enough
        if self.ledger.holds(booked):
            kept = self._outbox(slot, booked)
            if kept is not None:
                return kept
        return self._put_out(slot, booked, make(self.book(name, content, release)))

    def kept(self, pending: "Pending") -> Tensor | None:
        """What was released for this very request, if it is kept still."""
        booked = _booked(pending.name, pending.content, pending.release)
        return self._outbox(f"outbox-{pending.release.kind.value}", booked)

    def holds(self, pending: "Pending") -> bool:
        """Whether a release for this very request was booked."""
        return self.ledger.holds(_booked(pending.name, pending.content, pending.release))

    def _put_out(self, slot: str, booked: str, value: Tensor) -> Tensor:
        """Keep what leaves, so that the same request gets the same bytes."""
        stamp = torch.frombuffer(bytearray(_stamp(booked)), dtype=torch.uint8)
        # Lost in a power cut, it costs a second booking; never a release that was not booked.
        self.vault.put_tensors(slot, {"value": value, "stamp": stamp}, durable=False)
        return value

    def book(self, name: str, content: str, release: Release) -> "Randomness":
        """Book a release that is about to be made; arguments as for :meth:`release`.

        Returns:
            Where its noise comes from.

        Guarantees:
            - The record is on disk, and the ledger's anchor written, before this returns.
            - Booked again under the same name, a simulated device pays once and repeats its noise;
              a real one pays again.

        Raises:
            BudgetSpent: The budget would be passed; nothing was booked.
        """
        self._check_gives()
        booked = _booked(name, content, release)
        if not self.ledger.holds(booked):
            self.ledger.book(booked, release, self.facts.budgets)
        elif self.facts.simulated_seed is None:
            self.ledger.book(f"{booked}/{secrets.token_hex(8)}", release, self.facts.budgets)
        self.ledger.settle()  # where the anchor could not be written when this was booked
        return Randomness(self.facts, self._purpose(name, booked))

    def _purpose(self, name: str, booked: str) -> str:
        """What a simulated device's draws for a release are derived from.

        Its name alone: neither the run's name nor the request decides them, so a run whose settings
        are spelled in another way repeats them. A second release of that name, for another request
        or in another run, has draws of its own.
        """
        if self.facts.simulated_seed is None:
            return name
        same = [one for one in self.ledger.names if one.split("/")[-2:-1] == [name]]
        earlier = same.index(booked)
        return f"{name}/{earlier}" if earlier else name

    def _check_gives(self) -> None:
        """Refuse new releases of a device that only receives models."""
        if not self.facts.contributes:
            raise BudgetSpent(
                "this device only receives models: its owner has ended its training, or has "
                "retired it because its ledger was refused"
            )

    def prepay(self, name: str, content: str, release: Release) -> None:
        """Book what later answers will be covered by, once; arguments as for :meth:`release`.

        Raises:
            BudgetSpent: The budget would be passed; nothing was booked.
        """
        self._check_gives()
        booked = _booked(name, content, release)
        if not self.ledger.holds(booked):
            self.ledger.book(booked, release, self.facts.budgets)
        self.ledger.settle()

    def check_paid(self, name: str, content: str, release: Release) -> None:
        """Refuse to go on with what :meth:`prepay` has not booked.

        Raises:
            BudgetSpent: Nothing was paid, as where enrolment was refused.
        """
        if not self.ledger.holds(_booked(name, content, release)):
            raise BudgetSpent(
                f"{release.run}: its {name} was never paid for; the device gives nothing to this "
                "run until an enrolment fits its budget"
            )

    @property
    def apart(self) -> bool:
        """Whether each utterance is computed by itself, so that none rounds another's last bits.

        A simulation's server sends nothing that could make use of them.
        """
        return self.facts.simulated_seed is None

    def answer(self, pending: "Pending") -> Tensor:
        """Make what was paid for in advance, once.

        Guarantees:
            - One request of each name is answered. The same again gets the same bytes, or, where
              they were lost, an answer made anew: the noise that hides it is the server's.

        Raises:
            PrivacyError: Another request of that name was answered already.
        """
        self._check_gives()
        booked = _booked(pending.name, pending.content, pending.release)
        slot = f"outbox-{pending.release.kind.value}"
        kept = self._outbox(slot, booked)
        if kept is not None:
            return kept
        key = f"{pending.release.run}/{pending.name}"
        given = json.loads(self.vault.get(_ANSWERED)) if self.vault.has(_ANSWERED) else {}
        if given.setdefault(key, pending.content) != pending.content:
            raise PrivacyError(
                f"{pending.name} was answered already, for another request; what was paid for "
                "covers one answer to each round"
            )
        durable = self.facts.simulated_seed is None
        self.vault.put(_ANSWERED, json.dumps(given).encode(), durable=durable)
        return self._put_out(slot, booked, pending.make(Randomness(self.facts, pending.name)))

    @property
    def identity(self) -> bytes:
        """The user's private identity key (Ed25519), 32 bytes; made when first asked for."""
        if not self.vault.has(_IDENTITY):
            self.vault.put(_IDENTITY, self._new_identity())
        return self.vault.get(_IDENTITY)

    def pin(self, roster: Mapping[str, bytes]) -> None:
        """Keep whom this device makes secure sums with.

        Args:
            roster: From users' names to their public identity keys, 32 bytes each. Where it comes
                from decides what it is worth: a server that wrote it can be everybody.
        """
        named = {user: key.hex() for user, key in sorted(roster.items())}
        self.vault.put(_ROSTER, json.dumps(named).encode())

    @property
    def roster(self) -> dict[str, bytes]:
        """Whom this device makes secure sums with; see :meth:`pin`.

        Raises:
            PrivacyError: Nobody was pinned.
        """
        if not self.vault.has(_ROSTER):
            raise PrivacyError(
                "no roster is pinned on this device, so it cannot tell users from a server that "
                "plays them; pin one before it takes part in secure sums"
            )
        named = json.loads(self.vault.get(_ROSTER))
        return {user: bytes.fromhex(key) for user, key in named.items()}

    def _new_identity(self) -> bytes:
        """A fresh key; a simulated one is the same in every run."""
        seed = self.facts.simulated_seed
        if seed is None:
            return crypto.new_key()
        return seeds.numpy_rng(seed, "identity", self.facts.user).bytes(crypto.KEY_BYTES)

    def _outbox(self, slot: str, booked: str) -> Tensor | None:
        """What was released under this name, if it is kept still."""
        if not self.vault.has(slot):
            return None
        try:
            kept = self.vault.get_tensors(slot)
        except PrivacyError:  # cut off by a power cut: as good as lost
            return None
        if bytes(kept["stamp"].tolist()) != _stamp(booked):
            return None
        return kept["value"]


def enrolment(folder: Path, vault: Vault) -> tuple[Tensor, bool]:
    """Features of the clips that enrol a user, and whether they are known to be neutral.

    Args:
        folder: An existing device; its ledger is not touched.
        vault: The device's.

    Returns:
        Shape (utterances, features), one row an utterance; of frames, their mean.
    """
    kept = vault.get_tensors("clips")
    features, frames = kept["features"][kept["enrols"]], kept["frames"][kept["enrols"]]
    rows = normaliser.summarise(features.float(), frames)
    return rows, _read_facts(folder / _FACTS).neutral_enrolment


def labelled(folder: Path, vault: Vault, labels: Sequence[str]) -> Examples:
    """The clips that a head is fitted on, as a device was set up with them.

    Args:
        folder: An existing device; its ledger is not touched.
        vault: The device's.
        labels: A model's emotions, in the order of its classes; clips of others are left out.
    """
    clips, own = Clips.of(vault.get_tensors("clips")), _read_facts(folder / _FACTS).labels
    numbered = clips.relabelled(own, labels).examples
    return numbered.take(clips.calibrates & (numbered.labels != UNKNOWN))


class Randomness:
    """Generators for one release: repeatable in a simulation, secret on a device."""

    def __init__(self, facts: Facts, name: str) -> None:
        self._facts = facts
        self._name = name

    @property
    def noise(self) -> NoiseSource:
        """Where privacy noise comes from."""
        seed = self._facts.simulated_seed
        if seed is None:
            return SystemNoise()
        return SeededNoise(seeds.torch_rng(seed, "noise", self._facts.user, self._name))

    @property
    def words(self) -> RandomWords:
        """Where discrete noise comes from."""
        seed = self._facts.simulated_seed
        if seed is None:
            return SystemWords()
        return SeededWords(seeds.numpy_rng(seed, "words", self._facts.user, self._name))

    @property
    def generator(self) -> torch.Generator:
        """Where dropout comes from, and a simulation's batches."""
        seed = self._facts.simulated_seed
        if seed is None:
            return torch.Generator().manual_seed(secrets.randbits(63))
        return seeds.torch_rng(seed, "training", self._facts.user, self._name)

    @property
    def coins(self) -> Coins | None:
        """Who joins a step; None leaves it to the generator, in a simulation."""
        return SystemCoins() if self._facts.simulated_seed is None else None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Pending:
    """A release that is not booked yet.

    Attributes:
        name: What it is within its run, such as ``round-3``.
        content: SHA-256 of the request that it answers.
        release: What the ledger will say of it.
        make: Computes it.
    """

    name: str
    content: str
    release: Release
    make: Callable[[Randomness], Tensor]


def _booked(name: str, content: str, release: Release) -> str:
    """The name under which the ledger knows a release."""
    return f"{release.run}/{name}/{content[:32]}"


def _stamp(booked: str) -> bytes:
    """SHA-256 of a release's name."""
    return hashlib.sha256(booked.encode()).digest()


def _write_facts(path: Path, facts: Facts) -> None:
    """Keep the owner's decisions."""
    record = {"schema": _SCHEMA, **facts.as_dict()}
    write_file(path, (json.dumps(record, indent=1) + "\n").encode())


def _read_facts(path: Path) -> Facts:
    """The owner's decisions."""
    try:
        record: dict[str, Any] = json.loads(path.read_text())
        if (schema := record.pop("schema")) != _SCHEMA:
            raise PrivacyError(
                f"{path} has schema {schema}, this version reads {_SCHEMA}; update the app, or "
                "make the device anew"
            )
        return Facts.from_dict(record)
    except FileNotFoundError:
        raise SettingError(f"{path.parent} holds no device; make one first") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PrivacyError(f"{path} is damaged ({error}); restore it from a backup") from error
