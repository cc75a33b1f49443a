"""Noise that hangs together over rounds, on a server: repeated from a seed, or kept on disk.

Each round's noise depends on that of the rounds before. A server that lost it could neither go on
with fresh noise nor guess it; and one that let a round out twice, with the same noise over other
updates, would betray their difference.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from sottovoce.server.files import alone, replace_file
from sottovoce.shared.errors import PrivacyError
from sottovoce.shared.privacy.bands import Bands
from sottovoce.shared.privacy.noise import NoiseSource, SystemNoise

FILE: Final = "noise.safetensors"
"""Where a real server keeps it, in the job's folder, until the run ends."""


class RepeatedNoise:
    """A simulated server's: every round's draws come from a seed of their own.

    Args:
        bands: How it hangs together.
        source: Where a round's draws come from, by its number.
    """

    def __init__(self, bands: Bands, source: Callable[[int], NoiseSource]) -> None:
        self._bands = bands
        self._source = source
        self._past: list[Tensor] = []
        self._next = 1

    def made(
        self,
        number: int,  # noqa: ARG002
        booked: Sequence[int],  # noqa: ARG002
        let_out: int = 0,  # noqa: ARG002
    ) -> Tensor | None:
        """Nothing is kept: the same noise is drawn again."""
        return None

    def begin(self, number: int) -> None:
        """Nothing to prepare."""

    def add(self, number: int, summed: Tensor, spread: float) -> Tensor:
        """A round's sum with its noise, shape (n,), float64.

        Args:
            number: From 1; any order.
            summed: Shape (n,), float64.
            spread: Standard deviation of one independent draw.
        """
        if number < self._next:
            self._past, self._next = [], 1
        noise = torch.zeros_like(summed)
        while self._next <= number:
            fresh = self._source(self._next).normal(tuple(summed.shape), spread)
            noise = self._bands.correlated(fresh, self._past)
            self._past = self._bands.needed([*self._past, noise])
            self._next += 1
        return summed + noise


class KeptNoise:
    """A real server's: drawn from the operating system, kept until later rounds are made.

    The file holds the noise of as many rounds as later ones depend on, and the newest sum. It is as
    secret as the updates that devices sent: with it, their noise can be taken off.

    Guarantees:
        - A sum is let out only once it lies in the file, synced, with the noise behind it. So a
          round that is not there was never let out, and may be made; one that is there is given as
          it is, whatever devices say now.
        - Of two servers that make the same round, only the first lets it out, where the system has
          ``flock``.
        - A missing, damaged, older or other run's file is refused: nothing more leaves this run.

    Args:
        bands: How it hangs together.
        folder: The job's.
        plan: SHA-256 of the plan.
        rounds: How many there are; after the last the noise is forgotten.
    """

    def __init__(self, bands: Bands, folder: Path, *, plan: str, rounds: int) -> None:
        self._bands = bands
        self._path = folder / FILE
        self._plan = plan
        self._rounds = rounds

    def made(self, number: int, booked: Sequence[int], let_out: int = 0) -> Tensor | None:
        """What was let out of a round, or None where it may be made now.

        Args:
            number: From 1.
            booked: The rounds that the ledger holds, first ones of blocks.
            let_out: The newest round that is known to have been let out: with an older file it
                would be let out again, with other noise, on the booking of its block.

        Raises:
            PrivacyError: Neither: the noise that it would hang on is gone.
        """
        if not self._path.exists():
            if number == 1 and not booked and not let_out:
                return None
            raise self._lost(f"{self._path} is missing")
        done, _, newest = self._read()
        if number not in (done, done + 1) or max(booked, default=0) > done + 1:
            raise self._lost(
                f"round {number} is asked, {self._path} ends with round {done} and the ledger with "
                f"round {max(booked, default=0)}"
            )
        if let_out > done:
            raise self._lost(
                f"{self._path} ends with round {done}, and round {let_out} was let out"
            )
        return newest if number == done else None

    def begin(self, number: int) -> None:
        """Make the file before anything is booked: later, a missing one is a lost one."""
        if number == 1 and not self._path.exists():
            self._write(0, [], torch.zeros(0, dtype=torch.float64))

    def add(self, number: int, summed: Tensor, spread: float) -> Tensor:
        """A round's sum with its noise, kept before it is returned, shape (n,), float64.

        Args:
            number: The round after the one kept.
            summed: Shape (n,), float64.
            spread: Standard deviation of one independent draw.

        Raises:
            PrivacyError: Not that round.
        """
        with alone(self._path.with_suffix(".lock")):
            done, past, _ = self._read()
            if number != done + 1:
                raise self._lost(f"round {number} is due, {self._path} ends with round {done}")
            fresh = SystemNoise().normal(tuple(summed.shape), spread)
            noise = self._bands.correlated(fresh, past)
            newest = summed + noise
            past = self._bands.needed([*past, noise]) if number < self._rounds else []
            self._write(number, past, newest)
            return newest

    def _write(self, number: int, past: Sequence[Tensor], newest: Tensor) -> None:
        """Keep a round, whole or not at all, for nobody else's eyes."""
        rows = torch.stack(list(past)) if past else torch.zeros(0, len(newest), dtype=newest.dtype)
        words = {"plan": self._plan, "round": str(number)}
        data = save({"past": rows, "sum": newest.contiguous()}, words)
        replace_file(self._path, data, secret=True)

    def _read(self) -> tuple[int, list[Tensor], Tensor]:
        """The newest round, the noise that later ones need, and that round's sum."""
        try:
            tensors = load_file(self._path)
            with safe_open(self._path, framework="pt") as file:
                words = dict(file.metadata() or {})
            number, plan = int(words["round"]), words["plan"]
            past, newest = list(tensors["past"]), tensors["sum"]
        except (SafetensorError, KeyError, ValueError, OSError) as error:
            raise self._lost(f"{self._path} is damaged ({error})") from error
        if plan != self._plan:
            raise self._lost(f"{self._path} belongs to another plan")
        wanted = 0 if number == self._rounds else min(number, self._bands.count - 1)
        if len(past) != wanted or not all(bool(row.isfinite().all()) for row in [*past, newest]):
            raise self._lost(f"{self._path} lacks noise of rounds before {number}")
        return number, past, newest

    def _lost(self, what: str) -> PrivacyError:
        """The error of noise that cannot be gone on from."""
        return PrivacyError(
            f"{what}: the noise of its rounds hangs together, and without that of the rounds "
            "before nothing more may be let out of this run. Put the newest file back, or begin a "
            "new run"
        )
