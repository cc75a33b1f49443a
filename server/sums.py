"""Sums over users, and the noise that hides each user in them.

Where a plan hides users, nothing that the server computes on rests on less than a noised sum: it is
booked in the server's own ledger before the noise is drawn. Where devices noised what they sent,
their noise counts, and the server adds only what is missing.
"""

import math
import secrets
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sottovoce.server.anchor import WAY_OUT, ServerAnchor
from sottovoce.server.kept import KeptSums, LetOut
from sottovoce.server.turns import KeptNoise, RepeatedNoise
from sottovoce.shared import seeds
from sottovoce.shared.calibration import SENSITIVITY
from sottovoce.shared.errors import ModelError, PrivacyError
from sottovoce.shared.plan import Plan
from sottovoce.shared.privacy import bound
from sottovoce.shared.privacy.ledger import Budget, Ledger
from sottovoce.shared.privacy.noise import NoiseSource, SeededNoise, SystemNoise
from sottovoce.shared.privacy.release import Kind, Release, UserNoise
from sottovoce.shared.privacy.users import CALIBRATION

LEDGER = "ledger.jsonl"
"""Where, in the job's folder."""

OWNER = "the server"
"""Whose it is: of the one server of a run."""


def total(parts: Sequence[Tensor]) -> Tensor:
    """Their sum, float64, in the order given, which callers make the order of users' names.

    Raises:
        ModelError: No parts.
    """
    if not parts:
        raise ModelError("a round without a single usable update; the model stays as it was")
    summed = torch.zeros_like(parts[0], dtype=torch.float64)
    for part in parts:
        summed += part
    return summed


def spread(plan: Plan, *, devices: float, denominator: float) -> float:
    """Standard deviation of the noise in the sum of one round's updates, in weights; 0 for none.

    Where noise hangs together over rounds, that of one independent draw; see :func:`growth`.

    Args:
        plan: For clips, noise and steps.
        devices: How many updates are summed.
        denominator: What a device divides a step's sum by.
    """
    own = _spread_of_devices(plan, devices, denominator)
    if plan.user is None:
        return own
    if plan.user.secure:  # more than is promised: those who drop out or lie are not counted on
        settings = plan.user.secure.update
        return settings.noise * settings.granularity * math.sqrt(devices)
    return max(own, _user_spread(plan.user.update, _unit(plan, denominator)))


def growth(plan: Plan) -> float:
    """How much more noise all rounds' sums have together than one :func:`spread`."""
    return plan.bands.growth(plan.rounds) if plan.bands else math.sqrt(plan.rounds)


def calibration_spread(plan: Plan, devices: int) -> float:
    """Standard deviation of the noise in each number of the summed answers of all clips."""
    own = _own_answers(plan, devices)
    if plan.user is None or plan.user.calibration is None:
        return own
    if plan.user.secure and (settings := plan.user.secure.calibration):
        return settings.noise * settings.granularity * math.sqrt(devices)
    return max(own, _user_spread(plan.user.calibration, 1.0))


def weight_spread(plan: Plan, devices: int, *, classes: int) -> float:
    """Standard deviation of the noise in how many clips label counts say there are; 0 of users."""
    if plan.unit == "user":
        return 0.0
    own = plan.count_noise * math.sqrt(devices)
    hiding = _user_spread(plan.user.counts, 1.0) if plan.user else 0.0
    return max(own, hiding) * math.sqrt(classes)


def _own_answers(plan: Plan, devices: int) -> float:
    """What the devices' own noise comes to in the summed answers of all clips."""
    if plan.calibration is None:
        return 0.0
    return SENSITIVITY * plan.calibration.noise_multiplier * math.sqrt(devices)


def _unit(plan: Plan, denominator: float) -> float:
    """How many weights one unit of the update's user bound is."""
    return plan.training.learning_rate / denominator if plan.private else 1.0


def _user_spread(user: UserNoise, unit: float) -> float:
    """Standard deviation that hides a user, in weights."""
    return user.spread * unit


def _spread_of_devices(plan: Plan, devices: float, denominator: float) -> float:
    """What the devices' own noise comes to in the sum of a round's updates, in weights."""
    if not plan.private:
        return 0.0
    one = plan.mechanism.clip_norm * plan.mechanism.noise_multiplier
    return one * _unit(plan, denominator) * math.sqrt(devices * plan.training.steps)


class Sums:
    """What a server lets out about its users together.

    Args:
        plan: The run's public facts.
        folder: Where the ledger is kept.
        budgets: What one user may be charged for all sums.
        seed: Of a simulated server; None draws noise from the operating system.
    """

    def __init__(
        self, plan: Plan, folder: Path, *, budgets: Sequence[Budget], seed: int | None
    ) -> None:
        self._plan = plan
        self._budgets = budgets
        self._seed = seed
        self._anchor: ServerAnchor | None = None
        self._kept: KeptSums | None = None
        if plan.user and seed is None:
            self._anchor = ServerAnchor(folder, ledger=LEDGER)
            self._kept = KeptSums(folder, plan=plan.digest(), anchor=self._anchor)
        path = folder / LEDGER
        self.ledger = Ledger(path, owner=OWNER, keeper=self._anchor, way_out=WAY_OUT)
        self._turns: KeptNoise | RepeatedNoise | None = None
        if plan.bands and seed is None:
            self._turns = KeptNoise(plan.bands, folder, plan=plan.digest(), rounds=plan.rounds)
        elif plan.bands:
            self._turns = RepeatedNoise(plan.bands, self._noise_of_round)

    def counts(self, parts: Sequence[Tensor]) -> Tensor:
        """The sum of label counts, shape (classes,), float64; see :meth:`_release`."""
        user = self._plan.user.counts if self._plan.user else None
        own = self._plan.count_noise * math.sqrt(len(parts))
        return self._release("label-counts", self._plan.counts_release(), user, parts, own)

    def centre(self, parts: Sequence[Tensor]) -> Tensor:
        """The sum of the devices' shares of the centre, shape (inputs,), float64."""
        settings, release = self._plan.centre, self._plan.centre_release()
        if settings is None or release is None:
            return total(parts)
        user = self._plan.user.centre if self._plan.user else None
        one = settings.radius * settings.noise_multiplier if self._plan.private else 0.0
        return self._release("centre", release, user, parts, one * math.sqrt(len(parts)))

    def calibration(self, parts: Sequence[Tensor]) -> Tensor:
        """The sum of what clips answered, shape (WIDTH,), float64.

        Raises:
            ModelError: No parts, or a plan that asks nothing.
        """
        release = self._plan.calibration_release()
        if release is None:
            raise ModelError("the plan asks nothing of calibration")
        user = self._plan.user.calibration if self._plan.user else None
        own = _own_answers(self._plan, len(parts))
        return self._release(CALIBRATION, release, user, parts, own)

    def updates(
        self,
        number: int,
        parts: Sequence[Tensor],
        *,
        denominator: float,
        lengths: Sequence[float] | None = None,
    ) -> Tensor:
        """The sum of one round's updates, shape (params,), float64.

        Args:
            number: The round, from 1.
            parts: What the devices sent.
            denominator: What a device divides a step's sum by.
            lengths: What ``bound.length`` says of each part, where this server asked already.
        """
        user = self._plan.user.update if self._plan.user else None
        if user and user.bands and self._turns:
            return self._by_turns(number, parts, user)
        own = _spread_of_devices(self._plan, len(parts), denominator)
        unit = _unit(self._plan, denominator)
        release = self._plan.gradient_release(number)
        return self._release(f"round-{number}", release, user, parts, own, unit, lengths)

    def made(self, number: int) -> LetOut | None:
        """What was let out of a round already, where it is kept.

        Raises:
            PrivacyError: The noise that the round would hang on is gone.
        """
        if self._turns is None:
            return self.kept(f"round-{number}")
        made = self._turns.made(number, self._booked_rounds(), self._newest_let_out())
        return None if made is None else LetOut(total=made, devices=0)

    def kept(self, name: str) -> LetOut | None:
        """What was let out under a name before this server was interrupted, where it is kept.

        Nothing is, where nothing hides users, nor in a simulation, which makes the same again.
        """
        return self._kept.get(name) if self._kept else None

    def keep(self, name: str, booked: Sequence[str], value: LetOut) -> LetOut:
        """Keep a sum that is about to be let out, where a real server hides users; the same sum.

        Args:
            name: What it is within the run.
            booked: What paid for it, as :meth:`book` said.
            value: The sum.
        """
        if self._kept:
            self._kept.put(name, booked, value)
        return value

    def _by_turns(self, number: int, parts: Sequence[Tensor], user: UserNoise) -> Tensor:
        """The sum of a round in which one group of users trains.

        Guarantees:
            - Each user is charged once for each ``spacing`` rounds, in which they train once; the
              record is on disk before noise of any of them is drawn.
            - A round is let out once. Asked again, a simulated server repeats its noise; a real one
              gives the same sum, whatever the devices say now, or refuses.

        Raises:
            BudgetSpent: The budget would be passed; nothing was booked.
            PrivacyError: The noise of earlier rounds is gone.
            ModelError: No parts.
        """
        if self._turns is None or user.bands is None:
            raise PrivacyError("the plan's users do not take turns")
        made = self.made(number)
        if made is not None:
            return made.total
        self._turns.begin(number)
        start = user.bands.block(number)
        booked = f"{self._plan.run}/round-{start}"
        if not self.ledger.holds(booked):
            self.ledger.book(booked, self._plan.gradient_release(start), self._budgets)
        summed = total([bound.project(part, user.clip_norm) for part in parts])
        noised = self._turns.add(number, summed, user.spread)
        if self._anchor:  # or an older file would let the round out again, within its block
            self._anchor.note(f"{self._plan.run}/round-{number}")
        return noised

    def _booked_rounds(self) -> list[int]:
        """The first rounds of the blocks that were paid for, in this run."""
        rounds = [one for one in self.ledger.releases if one.kind is Kind.GRADIENT]
        return [one.round for one in rounds if one.run == self._plan.run]

    def _newest_let_out(self) -> int:
        """The newest round that is known to have been let out; 0 for none, or in a simulation."""
        start = f"{self._plan.run}/round-"
        names = self._anchor.let_out if self._anchor else []
        return max(
            (int(one.removeprefix(start)) for one in names if one.startswith(start)), default=0
        )

    def _noise_of_round(self, number: int) -> NoiseSource:
        """Where a simulated round's own draws come from."""
        return self._noise(f"round-{number}")

    def _release(
        self,
        name: str,
        release: Release,
        user: UserNoise | None,
        parts: Sequence[Tensor],
        own: float,
        unit: float = 1.0,
        lengths: Sequence[float] | None = None,
    ) -> Tensor:
        """One sum, noised so that it hides any one user.

        Args:
            name: What it is within the run.
            release: What the ledger says of it.
            user: The noise promised to users; None promises nothing, and the sum goes as it is.
            parts: What the devices sent. Without noise of their own, they are bounded here again.
            own: Standard deviation of all devices' own noise in the sum.
            unit: What ``user.clip_norm`` is measured in.
            lengths: What ``bound.length`` says of each part, where this server asked already.

        Guarantees:
            - The record is on disk before noise is drawn.
            - The sum's noise has at least the promised standard deviation, the devices' own
              included; where utterances are hidden too, bound and noise are the devices', and only
              as good as they are honest.
            - Asked again, a server gives the same sum and books nothing more: a simulated one makes
              it again, a real one kept it before it was let out. Where that is lost, it books and
              draws anew.

        Raises:
            BudgetSpent: The budget would be passed; nothing was booked.
            ModelError: No parts.
        """
        if user is None:
            return total(parts)
        kept = self.kept(name)
        if kept is not None:
            return kept.total
        booked = self.book(name, release)
        if not self._plan.private:  # a device's word for its bound is not taken
            known: Sequence[float | None] = lengths or [None] * len(parts)
            parts = [
                bound.project(part, user.clip_norm, known=one)
                for part, one in zip(parts, known, strict=True)
            ]
        summed = total(parts)
        missing = math.sqrt(max(0.0, _user_spread(user, unit) ** 2 - own**2))
        noised = summed + self._noise(name).normal(tuple(summed.shape), missing)
        return self.keep(name, [booked], LetOut(total=noised, devices=len(parts))).total

    def book(self, name: str, release: Release, *, seen: bool = False) -> str:
        """Book a sum that is about to be let out; what paid for it, in the ledger's words.

        A booking pays for one sum. One whose sum was never let out, because this server was
        interrupted before that, pays for the next try.

        Args:
            name: What it is within the run.
            release: What the ledger says of it.
            seen: Whether whoever runs this server may know a sum that was not let out: one that
                devices noised.

        Raises:
            BudgetSpent: The budget would be passed; nothing was booked.
        """
        booked = f"{self._plan.run}/{name}"
        if self.ledger.holds(booked):
            if self._kept is None or not (seen or self._kept.was_let_out(booked)):
                return booked
            booked = f"{booked}/{secrets.token_hex(8)}"
        self.ledger.book(booked, release, self._budgets)
        return booked

    def _noise(self, name: str) -> NoiseSource:
        """Where a sum's noise comes from, by the sum's name within the run."""
        if self._seed is None:
            return SystemNoise()
        return SeededNoise(seeds.torch_rng(self._seed, "server noise", name))
