"""The users of a crowd and their devices, made when asked for.

A device here runs the code of every device: its messages, its ledger, its refusals. What differs
is where things lie: the vault is in memory and its blobs are not sealed, and what must outlive a
process, and the ledger, are rows of one database.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch

from sottovoce.client import enrolment
from sottovoce.client.owner import Clips, Facts
from sottovoce.server.job import Job
from sottovoce.shared import seeds
from sottovoce.shared.audio import Signal
from sottovoce.shared.errors import AudioError
from sottovoce.shared.examples import Examples
from sottovoce.shared.privacy.ledger import Budget
from sottovoce.simulations.corpora.clips import Clip
from sottovoce.simulations.devices.kept import KeptDevice, KeptVault
from sottovoce.simulations.devices.store import Store, StoredLedger
from sottovoce.simulations.population.voices import Voices
from sottovoce.simulations.protocols import Enrolment, enrolment_split

_OUTLIVES: Final = frozenset({"answered", "head", "head-scores", "normaliser"})
"""What a crowd's devices keep; the rest of what they have is made again."""


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


def device(crowd: Crowd, store: Store, job: Job, plan: str, place: int) -> KeptDevice:
    """A user's device as its last message left it.

    Args:
        crowd: Who the users are.
        store: What outlived the last message.
        job: The run's, for those who enrolled for it: what enrolment prepares from public facts
            and the user's clips is prepared again, not kept.
        plan: What ``kept.agreement`` makes of the job's plan, once for all devices.
        place: Which user, from 0.
    """
    user = name_of(place)
    vault = KeptVault(store, place, user=user, seed=crowd.seed, outlives=_OUTLIVES.__contains__)
    made = KeptDevice(
        facts=crowd.facts(place),
        vault=vault,
        ledger=StoredLedger(store, place, owner=user),
        clips=lambda: crowd.held(place),
    )
    if made.agreed == plan:
        enrolment.prepare(made, job.plan, job.front, job.population)
    return made
