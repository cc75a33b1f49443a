"""The users of a crowd and their devices, made when asked for.

A device here runs the code of every device: its messages, its ledger, its refusals. What differs
is where things lie: the vault is in memory and its blobs are not sealed, and what must outlive a
process, and the ledger, are rows of one database.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from sottovoce.client import participant
from sottovoce.client.device import Clips, Device, Facts
from sottovoce.client.vault import Vault
from sottovoce.server.job import Job
from sottovoce.shared import crypto, seeds
from sottovoce.shared.audio import Signal
from sottovoce.shared.errors import AudioError, PrivacyError
from sottovoce.shared.examples import Examples
from sottovoce.shared.privacy.ledger import Budget
from sottovoce.simulations.corpora.clips import Clip
from sottovoce.simulations.population.store import Store, StoredLedger
from sottovoce.simulations.population.voices import Voices
from sottovoce.simulations.protocols import Enrolment, enrolment_split

_PLAN: Final = "plan"
_OUTLIVES: Final = frozenset({"answered", "head", "head-scores", "normaliser"})
"""Names in a vault that cannot be made again; of the plan its hash is remembered."""


def name_of(place: int) -> str:
    """A user's pseudonym; names of rising places rise, up to a billion."""
    return f"user-{place:09d}"


def place_of(user: str) -> int:
    """The place of a pseudonym that :func:`name_of` gave."""
    return int(user.rpartition("-")[2])


@dataclass(frozen=True, kw_only=True, slots=True)
class Unheard:
    """A clip of which there are only features."""

    seed: int
    place: int
    number: int

    def render(self) -> Signal:
        """There is no sound.

        Raises:
            AudioError: Always.
        """
        raise AudioError(
            f"clip {self.number} of {name_of(self.place)} was drawn as features and has no sound"
        )

    def key(self) -> str:
        """SHA-256 of what decides the clip."""
        return hashlib.sha256(repr(self).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Crowd:
    """Who the users are; all about one follows from the seed and a place.

    Attributes:
        users: How many contribute; users of higher places are held out and only take models.
        voices: What they sound like.
        clips: How many clips a user has on average.
        labels: The classes.
        budgets: What a device may spend.
        seed: The run's.
        enrolment: Which unlabelled clips a held-out user has given: ``none``, ``neutral``, ``all``.
        neutral: How many, where it is ``neutral``.
        head_clips: How many labelled ones.
    """

    users: int
    voices: Voices
    clips: int
    labels: tuple[str, ...]
    budgets: tuple[Budget, ...]
    seed: int
    enrolment: str
    neutral: int
    head_clips: int

    def spoken(self, place: int) -> tuple[list[Clip], Examples]:
        """All clips of a user, and their features and classes."""
        features, labels = self.voices.user(self.seed, place, self.clips)
        user, clips = name_of(place), []
        for number, label in enumerate(labels.tolist()):
            emotion = self.labels[label]
            clips.append(
                Clip(
                    clip_id=f"{user}/{number:03d}_{emotion}",
                    speaker=user,
                    emotion=emotion,
                    label=emotion,
                    voice=Unheard(seed=self.seed, place=place, number=number),
                )
            )
        ones = torch.ones(len(labels), dtype=torch.int64)
        return clips, Examples(features=features, frames=ones, labels=labels)

    def split(self, clips: Sequence[Clip]) -> Enrolment:
        """How a held-out user's clips are used; as in a world of few users."""
        neutral = self.neutral if self.enrolment == "neutral" else 0
        seed = seeds.derive(self.seed, "enrolment")
        return enrolment_split(clips, neutral=neutral, labelled=self.head_clips, seed=seed)

    def facts(self, place: int) -> Facts:
        """What a user's owner decided."""
        return Facts(
            user=name_of(place),
            budgets=self.budgets,
            contributes=place < self.users,
            neutral_enrolment=place >= self.users and self.enrolment == "neutral",
            labels=self.labels,
            simulated_seed=self.seed,
        )

    def held(self, place: int) -> Clips:
        """What a user's device holds: all clips of a contributor, enrolment of a held-out user."""
        if place >= self.users:
            return self._enrolled(place)
        features, labels = self.voices.user(self.seed, place, self.clips)
        everyone = torch.ones(len(labels), dtype=torch.bool)
        examples = Examples(features=features, frames=everyone.long(), labels=labels)
        return Clips(examples=examples, enrols=everyone, calibrates=~everyone, trains=everyone)

    def _enrolled(self, place: int) -> Clips:
        """Unlabelled clips first, then those the user labelled; see ``world.World``."""
        clips, examples = self.spoken(place)
        split = self.split(clips)
        given: Sequence[Clip] = ()
        if self.enrolment != "none":
            given = split.neutral if self.enrolment == "neutral" else clips
        row = {clip.clip_id: number for number, clip in enumerate(clips)}
        chosen = torch.tensor([row[clip.clip_id] for clip in (*given, *split.labelled)]).long()
        first = torch.arange(len(chosen)) < len(given)
        taken = examples.take(chosen)
        labels = torch.where(first, -1, taken.labels)
        return Clips(
            examples=Examples(features=taken.features, frames=taken.frames, labels=labels),
            enrols=first,
            calibrates=~first,
            trains=torch.zeros_like(first),
        )


class KeptVault(Vault):
    """A simulated device's vault in memory; what outlives it goes to the database.

    Blobs are not sealed here: the key would lie in the same database. What leaves sealed, a head,
    is sealed as ever, under a key from the seed.

    Args:
        store: Where it is kept.
        place: Whose.
        seed: The run's.
    """

    def __init__(self, store: Store, place: int, seed: int) -> None:
        key = seeds.numpy_rng(seed, "vault", place).bytes(crypto.KEY_BYTES)
        super().__init__(store.path.parent, key, user=name_of(place))
        self._store, self._place = store, place
        self._blobs = store.kept(place)
        self._tensors: dict[str, dict[str, Tensor]] = {}

    @property
    def agreed(self) -> bytes:
        """SHA-256 of the plan that the device enrolled for; empty before."""
        return self._blobs.get("agreed", b"")

    def put(self, name: str, data: bytes, *, durable: bool = True) -> None:  # noqa: ARG002
        """See ``Vault``."""
        self._blobs[name] = data
        if name in _OUTLIVES:
            self._store.keep(self._place, name, data)
        if name == _PLAN and self.agreed != _hash(data):
            self._blobs["agreed"] = _hash(data)
            self._store.keep(self._place, "agreed", _hash(data))

    def overwrite(self, name: str, data: bytes) -> None:
        """See ``Vault``."""
        self.put(name, data)

    def get(self, name: str) -> bytes:
        """See ``Vault``."""
        if name not in self._blobs:
            raise PrivacyError(f"the vault of {self.user!r} holds no {name!r}")
        return self._blobs[name]

    def put_tensors(
        self, name: str, tensors: Mapping[str, Tensor], *, durable: bool = True
    ) -> None:
        """See ``Vault``."""
        if name in _OUTLIVES:
            super().put_tensors(name, tensors, durable=durable)
        else:
            self._tensors[name] = dict(tensors)

    def get_tensors(self, name: str) -> dict[str, Tensor]:
        """See ``Vault``."""
        return dict(self._tensors[name]) if name in self._tensors else super().get_tensors(name)

    def has(self, name: str) -> bool:
        """See ``Vault``."""
        return name in self._blobs or name in self._tensors

    def names(self) -> list[str]:
        """See ``Vault``."""
        return sorted({*self._blobs, *self._tensors})

    def delete(self, name: str) -> None:
        """A crowd's device forgets nothing that it may not forget.

        Raises:
            PrivacyError: Always; nothing in a run asks for it.
        """
        raise PrivacyError(f"{name!r} cannot be deleted from the vault of a simulated crowd")


class MadeDevice(Device):
    """A device made for one message.

    Args:
        facts: What its owner decided.
        vault: What it keeps.
        ledger: What it let out.
        clips: Makes its clips.
    """

    def __init__(
        self, facts: Facts, vault: Vault, ledger: StoredLedger, clips: Callable[[], Clips]
    ) -> None:
        self.facts, self.vault, self.ledger = facts, vault, ledger
        self.folder = vault.folder
        self._made = clips

    def clips(self) -> Clips:
        """See ``Device``."""
        return self._made()


def device(crowd: Crowd, store: Store, job: Job, plan: bytes, place: int) -> MadeDevice:
    """A user's device as its last message left it.

    Args:
        crowd: Who the users are.
        store: What outlived the last message.
        job: The run's, for those who enrolled for it: what enrolment prepares from public facts
            and the user's clips is prepared again, not kept.
        plan: What :func:`agreement` makes of the job's plan, once for all devices.
        place: Which user, from 0.
    """
    vault = KeptVault(store, place, crowd.seed)
    made = MadeDevice(
        facts=crowd.facts(place),
        vault=vault,
        ledger=StoredLedger(store, place, owner=name_of(place)),
        clips=lambda: crowd.held(place),
    )
    if vault.agreed == plan:
        participant.prepare(made, job.plan, job.front, job.population)
    return made


def agreement(job: Job) -> bytes:
    """What a vault remembers of the job's plan."""
    return _hash(job.plan.to_json().encode())


def _hash(data: bytes) -> bytes:
    """SHA-256."""
    return hashlib.sha256(data).digest()
