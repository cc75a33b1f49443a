"""Sums over users, and the noise that hides each user in them.

Where a plan hides users, nothing that the server computes on rests on less than a noised sum: it is
booked in the server's own ledger before the noise is drawn. Where devices noised what they sent,
their noise counts, and the server adds only what is missing.
"""

import secrets
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from sottovoce.server.aggregation.correlated_noise import (
    SeededCorrelatedNoise,
    StoredCorrelatedNoise,
)
from sottovoce.server.aggregation.released_sums import ReleasedSum, ReleasedSumStore
from sottovoce.server.aggregation.server_anchor import RECOVERY_HINT, ServerAnchor
from sottovoce.shared import seeding
from sottovoce.shared.errors import ModelError, PrivacyError
from sottovoce.shared.privacy import clipping
from sottovoce.shared.privacy.banded_noise import BandedNoise
from sottovoce.shared.privacy.gaussian_noise import (
    GaussianSampler,
    SeededGaussianSampler,
    SystemGaussianSampler,
)
from sottovoce.shared.privacy.ledger import Ledger, PrivacyBudget
from sottovoce.shared.privacy.release import Release, ReleaseKind, SumMechanism
from sottovoce.shared.privacy.scheme import SumKind
from sottovoce.shared.privacy.user_level import HEAD_STATISTICS_SUM
from sottovoce.shared.protocol.training_plan import Plan

LEDGER_FILE = "ledger.jsonl"
"""The server's ledger, in the job's folder."""

LEDGER_OWNER = "the server"
"""Owner of that ledger: the one server of a run."""


def sum_parts(parts: Sequence[Tensor]) -> Tensor:
    """Sum parts in float64, in their order, which callers make the order of users' names.

    Raises:
        ModelError: No parts.
    """
    if not parts:
        raise ModelError("a round without a single usable update; the model stays as it was")
    # float64, as the noise: they are added before anything is rounded.
    summed = torch.zeros_like(parts[0], dtype=torch.float64)
    for part in parts:
        summed += part
    return summed


def noise_std(plan: Plan, *, devices: float, denominator: float) -> float:
    """Standard deviation of the noise in the sum of one round's updates, in weights; 0 for none.

    Where noise is correlated across rounds, that of one independent draw; see
    :func:`cumulative_noise_factor`.

    Args:
        plan: For clips, noise and steps.
        devices: How many updates are summed.
        denominator: What a device divides a step's sum by.
    """
    return plan.scheme.sum_noise_std(plan, SumKind.UPDATE, devices=devices, denominator=denominator)


def cumulative_noise_factor(plan: Plan) -> float:
    """Factor from one :func:`noise_std` to the noise of all rounds' sums together."""
    return plan.participation.cumulative_noise_factor(plan.rounds)


class PrivateAggregator:
    """Releases sums over users, noised and booked.

    Args:
        plan: The run's public facts.
        folder: Where the ledger is stored.
        budgets: What one user may be charged for all sums.
        seed: Of a simulated server; None draws noise from the operating system.
    """

    def __init__(
        self, plan: Plan, folder: Path, *, budgets: Sequence[PrivacyBudget], seed: int | None
    ) -> None:
        self._plan = plan
        self._budgets = budgets
        self._seed = seed
        self._anchor: ServerAnchor | None = None
        self._released_sums: ReleasedSumStore | None = None
        # Also where devices noised them, for each costs the devices' budgets.
        if plan.scheme.hides_in_sums and seed is None:
            self._anchor = ServerAnchor(folder, ledger=LEDGER_FILE)
            self._released_sums = ReleasedSumStore(
                folder, plan_digest=plan.content_hash(), anchor=self._anchor
            )
        path = folder / LEDGER_FILE
        self.ledger = Ledger(
            path,
            owner=LEDGER_OWNER,
            anchor_store=self._anchor,
            way_out=RECOVERY_HINT,
            # All that it books is of the job's plan, which its hash fixes before the first sum.
            plan_is_fixed=True,
        )
        self._correlated_noise = plan.participation.match_noise(
            independent=lambda: None, correlated=partial(self._open_correlated_noise, folder)
        )

    def _open_correlated_noise(
        self, folder: Path, banded_noise: BandedNoise
    ) -> StoredCorrelatedNoise | SeededCorrelatedNoise | None:
        """Open the source of noise that is correlated across rounds."""
        if self._seed is not None:
            return SeededCorrelatedNoise(banded_noise, self._round_noise)
        return StoredCorrelatedNoise(
            banded_noise, folder, plan_digest=self._plan.content_hash(), rounds=self._plan.rounds
        )

    def release_label_counts(self, parts: Sequence[Tensor]) -> Tensor:
        """Release the sum of label counts, (classes,), float64; see :meth:`_release_noised`."""
        release = self._plan.counts_release()
        return self._release_noised("label-counts", release, SumKind.LABEL_COUNTS, parts)

    def release_centre(self, parts: Sequence[Tensor]) -> Tensor:
        """Release the sum of the devices' shares of the centre, shape (inputs,), float64."""
        release = self._plan.centre_release()
        if release is None:
            return sum_parts(parts)
        return self._release_noised("centre", release, SumKind.CENTRE, parts)

    def release_head_statistics(self, parts: Sequence[Tensor]) -> Tensor:
        """Release the sum of head statistics, shape (STATISTICS_SIZE,), float64.

        Raises:
            ModelError: No parts, or a plan that asks for none.
        """
        release = self._plan.calibration_release()
        if release is None:
            raise ModelError("the plan asks for no head statistics")
        return self._release_noised(HEAD_STATISTICS_SUM, release, SumKind.HEAD_STATISTICS, parts)

    def release_updates(
        self,
        number: int,
        parts: Sequence[Tensor],
        *,
        denominator: float,
        norms: Sequence[float] | None = None,
    ) -> Tensor:
        """Release the sum of one round's updates, shape (params,), float64.

        Args:
            number: The round, from 1.
            parts: What the devices sent.
            denominator: What a device divides a step's sum by.
            norms: L2 norm of each part by ``clipping.l2_norm``, where it was computed already.
        """
        mechanism = self._plan.scheme.sum_mechanism(self._plan, SumKind.UPDATE)
        if mechanism and mechanism.bands and self._correlated_noise:
            return self._release_correlated(number, parts, mechanism, mechanism.bands)
        release = self._plan.gradient_release(number)
        return self._release_noised(
            f"round-{number}",
            release,
            SumKind.UPDATE,
            parts,
            denominator=denominator,
            norms=norms,
        )

    def get_released_round(self, number: int) -> ReleasedSum | None:
        """Read what was released of a round already, where it is stored.

        Raises:
            PrivacyError: The noise that the round would depend on is gone.
        """
        if self._correlated_noise is None:
            return self.get_released_sum(f"round-{number}")
        total = self._correlated_noise.get_released(
            number, self._booked_rounds(), self._newest_released_round()
        )
        # Separated rounds are divided by a fixed group size, so who came is not stored.
        return None if total is None else ReleasedSum(total=total, devices=0)

    def get_released_sum(self, name: str) -> ReleasedSum | None:
        """Read what was released under a name before this server was interrupted.

        None where nothing hides users, and in a simulation, which makes the same again.
        """
        return self._released_sums.get(name) if self._released_sums else None

    def store_released_sum(
        self, name: str, bookings: Sequence[str], value: ReleasedSum
    ) -> ReleasedSum:
        """Store a sum that is about to be released, where a real server hides users.

        Args:
            name: What it is within the run.
            bookings: What paid for it, as :meth:`book_release` said.
            value: The sum.
        """
        if self._released_sums:
            self._released_sums.put(name, bookings, value)
        return value

    def _release_correlated(
        self,
        number: int,
        parts: Sequence[Tensor],
        mechanism: SumMechanism,
        banded_noise: BandedNoise,
    ) -> Tensor:
        """Release the sum of a round in which one group of users trains.

        Guarantees:
            - Each user is charged once for each ``min_separation`` rounds, in which they train
              once; the record is on disk before noise of any of them is drawn.
            - A round is released once. Asked again, a simulated server repeats its noise; a real
              one returns the same sum, whatever the devices say now, or refuses.

        Raises:
            BudgetSpent: The budget would be passed; nothing was booked.
            PrivacyError: The noise of earlier rounds is gone.
            ModelError: No parts.
        """
        if self._correlated_noise is None:
            raise PrivacyError("the plan's noise is not correlated across rounds")
        released = self.get_released_round(number)
        if released is not None:
            return released.total
        # Before the booking: with it booked and no file, a restart would take the noise for lost.
        self._correlated_noise.prepare_round(number)
        start = banded_noise.block_start(number)
        booking = f"{self._plan.run}/round-{start}"
        if not self.ledger.is_booked(booking):
            self.ledger.book_release(booking, self._plan.gradient_release(start), self._budgets)
        # Clipped here, whatever devices did: the bound that noise is scaled to is this server's.
        summed = sum_parts([clipping.clip_to_norm(part, mechanism.clip_norm) for part in parts])
        noised = self._correlated_noise.add_noise(number, summed, mechanism.noise_std)
        if self._anchor:  # or an older file would release the round again, within its block
            self._anchor.record_release(f"{self._plan.run}/round-{number}")
        return noised

    def _booked_rounds(self) -> list[int]:
        """First rounds of the blocks that were booked, in this run."""
        rounds = [one for one in self.ledger.releases if one.kind is ReleaseKind.GRADIENT]
        return [one.round for one in rounds if one.run == self._plan.run]

    def _newest_released_round(self) -> int:
        """Newest round that is known to have been released; 0 for none, or in a simulation."""
        start = f"{self._plan.run}/round-"
        names = self._anchor.released_bookings if self._anchor else []
        return max(
            (int(one.removeprefix(start)) for one in names if one.startswith(start)), default=0
        )

    def _round_noise(self, number: int) -> GaussianSampler:
        """Source of a simulated round's own draws."""
        return self._noise(f"round-{number}")

    def _release_noised(
        self,
        name: str,
        release: Release,
        kind: SumKind,
        parts: Sequence[Tensor],
        *,
        denominator: float = 1.0,
        norms: Sequence[float] | None = None,
    ) -> Tensor:
        """Release one sum, noised so that it hides any one user, where the plan hides users.

        Args:
            name: What it is within the run.
            release: What the ledger says of it.
            kind: Which sum it is.
            parts: What the devices sent. Without noise of their own, they are clipped here again.
            denominator: What a device divides a step's sum by.
            norms: L2 norm of each part by ``clipping.l2_norm``, where it was computed already.

        Guarantees:
            - The record is on disk before noise is drawn.
            - The sum's noise has at least the promised standard deviation, the devices' own
              included; where utterances are hidden too, bound and noise are the devices', and only
              as good as they are honest.
            - Asked again, a server returns the same sum and books nothing more: a simulated one
              makes it again, a real one stored it before it was released. Where that is lost, it
              books and draws anew.

        Raises:
            BudgetSpent: The budget would be passed; nothing was booked.
            ModelError: No parts.
        """
        plan, scheme = self._plan, self._plan.scheme
        mechanism = scheme.sum_mechanism(plan, kind)
        if mechanism is None:
            return sum_parts(parts)
        released = self.get_released_sum(name)
        if released is not None:
            return released.total
        booking = self.book_release(name, release)
        known: Sequence[float | None] = norms or [None] * len(parts)
        clipped = [
            scheme.clip_part(plan, kind, part, one) for part, one in zip(parts, known, strict=True)
        ]
        summed = sum_parts(clipped)
        missing = scheme.server_noise_std(plan, kind, devices=len(parts), denominator=denominator)
        noised = self._noise(name).add_noise(summed, missing)
        return self.store_released_sum(
            name, [booking], ReleasedSum(total=noised, devices=len(parts))
        ).total

    def book_release(self, name: str, release: Release, *, may_be_observed: bool = False) -> str:
        """Book a sum that is about to be released; the booking's name in the ledger.

        A booking pays for one sum. One whose sum was never released, because this server was
        interrupted before that, pays for the next try.

        Args:
            name: What it is within the run.
            release: What the ledger says of it.
            may_be_observed: Whether whoever runs this server may know a sum that was not released:
                one that devices noised.

        Raises:
            BudgetSpent: The budget would be passed; nothing was booked.
        """
        booking = f"{self._plan.run}/{name}"
        if self.ledger.is_booked(booking):
            if self._released_sums is None or not (
                may_be_observed or self._released_sums.was_released(booking)
            ):
                return booking
            # A fresh name, for the first booking paid for a sum that somebody may have seen.
            booking = f"{booking}/{secrets.token_hex(8)}"
        self.ledger.book_release(booking, release, self._budgets)
        return booking

    def _noise(self, name: str) -> GaussianSampler:
        """Source of a sum's noise, by the sum's name within the run."""
        if self._seed is None:
            return SystemGaussianSampler()
        return SeededGaussianSampler(seeding.torch_rng(self._seed, "server noise", name))
