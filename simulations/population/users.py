"""The users of a synthetic population and their devices, made on demand.

A device here runs the code of every device: its messages, its ledger, its refusals. What differs
is storage: the vault is in memory and its blobs are not sealed, and what must outlive a
process, and the ledger, are rows of one database.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch

from sottovoce.client.device.device import Device
from sottovoce.client.device.profile import DeviceProfile, LabelledFeatures
from sottovoce.client.federation import enrolment
from sottovoce.server.federation.training_job import Job
from sottovoce.shared import seeding
from sottovoce.shared.audio import Signal
from sottovoce.shared.errors import AudioError
from sottovoce.shared.models.examples import Examples
from sottovoce.shared.privacy.ledger import PrivacyBudget
from sottovoce.simulations.corpora.corpus import Clip
from sottovoce.simulations.corpora.speaker_splits import EnrolmentSplit, split_enrolment
from sottovoce.simulations.devices.database import DatabaseLedger, DeviceDatabase
from sottovoce.simulations.devices.in_memory import DatabaseVault
from sottovoce.simulations.population.voice_model import VoiceModel

_PERSISTENT: Final = frozenset({"answered", "head", "head-scores", "normaliser"})
"""Vault blobs that are stored; all others are made again."""


def user_name(index: int) -> str:
    """A user's pseudonym; names of rising indices rise, up to a billion."""
    return f"user-{index:09d}"


def user_index(name: str) -> int:
    """The index of a pseudonym that :func:`user_name` gave."""
    return int(name.rpartition("-")[2])


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureOnlyVoice:
    """A clip of which there are only features."""

    seed: int
    index: int
    number: int

    def render(self) -> Signal:
        """There is no sound.

        Raises:
            AudioError: Always.
        """
        raise AudioError(
            f"clip {self.number} of {user_name(self.index)} was drawn as features and has no sound"
        )

    def content_key(self) -> str:
        """SHA-256 of what decides the clip."""
        return hashlib.sha256(repr(self).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SyntheticPopulation:
    """Who the users are; all about one follows from the seed and an index.

    Attributes:
        users: How many contribute; users of higher indices are held out and only take models.
        voice_model: What they sound like.
        clips: How many clips a user has on average.
        labels: The classes.
        budgets: What a device may spend.
        seed: The run's.
        enrolment: Which unlabelled clips a held-out user enrols with: ``none``, ``neutral``,
            ``all``.
        neutral_clips: How many, where it is ``neutral``.
        labelled_clips_per_user: How many labelled ones.
    """

    users: int
    voice_model: VoiceModel
    clips: int
    labels: tuple[str, ...]
    budgets: tuple[PrivacyBudget, ...]
    seed: int
    enrolment: str
    neutral_clips: int
    labelled_clips_per_user: int

    def draw_clips(self, index: int) -> tuple[list[Clip], Examples]:
        """All clips of a user, and their features and classes."""
        features, labels = self.voice_model.draw_user(self.seed, index, self.clips)
        user, clips = user_name(index), []
        for number, label in enumerate(labels.tolist()):
            emotion = self.labels[label]
            clips.append(
                Clip(
                    clip_id=f"{user}/{number:03d}_{emotion}",
                    speaker=user,
                    emotion=emotion,
                    label=emotion,
                    voice=FeatureOnlyVoice(seed=self.seed, index=index, number=number),
                )
            )
        # One frame a clip: features are vectors.
        ones = torch.ones(len(labels), dtype=torch.int64)
        return clips, Examples(features=features, frames=ones, labels=labels)

    def split_clips(self, clips: Sequence[Clip]) -> EnrolmentSplit:
        """How a held-out user's clips are used; as in a run over few users."""
        neutral = self.neutral_clips if self.enrolment == "neutral" else 0
        seed = seeding.derive_seed(self.seed, "enrolment")
        return split_enrolment(
            clips, neutral=neutral, labelled=self.labelled_clips_per_user, seed=seed
        )

    def device_profile(self, index: int) -> DeviceProfile:
        """Build the profile of a user's device, with its owner's decisions."""
        return DeviceProfile(
            user=user_name(index),
            budgets=self.budgets,
            contributes=index < self.users,
            neutral_enrolment=index >= self.users and self.enrolment == "neutral",
            labels=self.labels,
            simulated_seed=self.seed,
        )

    def device_features(self, index: int) -> LabelledFeatures:
        """Features on a user's device: all clips of a contributor, enrolment of a held-out user."""
        if index >= self.users:
            return self._enrolment_features(index)
        features, labels = self.voice_model.draw_user(self.seed, index, self.clips)
        everyone = torch.ones(len(labels), dtype=torch.bool)
        examples = Examples(features=features, frames=everyone.long(), labels=labels)
        return LabelledFeatures(
            examples=examples, for_enrolment=everyone, for_head=~everyone, for_training=everyone
        )

    def _enrolment_features(self, index: int) -> LabelledFeatures:
        """Unlabelled clips first, then those the user labelled; see ``fold.FoldRun``."""
        clips, examples = self.draw_clips(index)
        split = self.split_clips(clips)
        unlabelled: Sequence[Clip] = ()
        if self.enrolment != "none":
            unlabelled = split.neutral if self.enrolment == "neutral" else clips
        row = {clip.clip_id: number for number, clip in enumerate(clips)}
        chosen = torch.tensor([row[clip.clip_id] for clip in (*unlabelled, *split.labelled)]).long()
        # A clip may be in both parts; as unlabelled speech it must not show its label.
        first = torch.arange(len(chosen)) < len(unlabelled)
        taken = examples.select(chosen)
        labels = torch.where(first, -1, taken.labels)
        return LabelledFeatures(
            examples=Examples(features=taken.features, frames=taken.frames, labels=labels),
            for_enrolment=first,
            for_head=~first,
            for_training=torch.zeros_like(first),
        )


def open_device(
    population: SyntheticPopulation, database: DeviceDatabase, job: Job, plan: str, index: int
) -> Device:
    """Open a user's device in its state after its last message.

    Args:
        population: Who the users are.
        database: What outlived the last message.
        job: The run's, for those who enrolled for it: what enrolment prepares from public facts
            and the user's clips is prepared again, not kept.
        plan: What ``in_memory.plan_hash`` makes of the job's plan, once for all devices.
        index: Which user, from 0.
    """
    user = user_name(index)
    vault = DatabaseVault(
        database,
        index,
        user=user,
        seed=population.seed,
        is_persistent=_PERSISTENT.__contains__,
        make_features=lambda: population.device_features(index),
    )
    ledger = DatabaseLedger(database, index, owner=user)
    device = Device(population.device_profile(index), vault, ledger)
    if vault.agreed_plan_hash == plan:
        enrolment.store_projected_features(device, job.plan, job.projection, job.speaker_statistics)
    return device
