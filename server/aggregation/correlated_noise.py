"""Noise correlated across rounds, on a server: repeated from a seed, or stored on disk.

Each round's noise depends on that of the rounds before. A server that lost it could neither go on
with fresh noise nor guess it; and one that released a round twice, with the same noise over other
updates, would betray their difference.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from sottovoce.shared.atomic_files import lock_file, replace_file
from sottovoce.shared.checksums import encode_tensors, read_tensors
from sottovoce.shared.errors import ModelError, PrivacyError
from sottovoce.shared.privacy.banded_noise import BandedNoise
from sottovoce.shared.privacy.gaussian_noise import (
    GaussianSampler,
    SystemGaussianSampler,
    round_to_lattice,
)

NOISE_FILE: Final = "noise.safetensors"
"""File in the job's folder where a real server stores it until the run ends."""


class SeededCorrelatedNoise:
    """A simulated server's noise: every round's draws come from a seed of their own.

    Args:
        banded_noise: How the noise of rounds is correlated.
        source: Where a round's draws come from, by its number.
    """

    def __init__(self, banded_noise: BandedNoise, source: Callable[[int], GaussianSampler]) -> None:
        self._banded_noise = banded_noise
        self._source = source
        self._past: list[Tensor] = []
        self._next = 1

    def get_released(
        self,
        number: int,  # noqa: ARG002
        booked_rounds: Sequence[int],  # noqa: ARG002
        newest_released: int = 0,  # noqa: ARG002
    ) -> Tensor | None:
        """Return None: nothing is stored, and the same noise is drawn again."""
        return None

    def prepare_round(self, number: int) -> None:
        """Do nothing: there is nothing to prepare."""

    def add_noise(self, number: int, summed: Tensor, noise_std: float) -> Tensor:
        """Add a round's noise to its sum, shape (n,), float64.

        Args:
            number: From 1; any order.
            summed: Shape (n,), float64.
            noise_std: Standard deviation of one independent draw.
        """
        if number < self._next:
            # Replayed from the first round: draws are seeded by round, so they are the same.
            self._past, self._next = [], 1
        noise = torch.zeros_like(summed)
        while self._next <= number:
            fresh = self._source(self._next).sample_noise(tuple(summed.shape), noise_std)
            noise = self._banded_noise.correlate_noise(fresh, self._past)
            self._past = self._banded_noise.required_history([*self._past, noise])
            self._next += 1
        return summed + noise


class StoredCorrelatedNoise:
    """A real server's noise: drawn from the operating system, stored until later rounds are made.

    The file holds the noise of as many rounds as later ones depend on, and the newest sum. It is as
    secret as the updates that devices sent: with it, their noise can be taken off.

    Guarantees:
        - A sum is released only once it is in the file, synced, with the noise behind it. So a
          round that is not there was never released, and may be made; one that is there is returned
          as it is, whatever devices say now.
        - Of two servers that make the same round, only the first releases it, where the system has
          ``flock``.
        - A missing, damaged, older or other run's file is refused: nothing more leaves this run.

    Args:
        banded_noise: How the noise of rounds is correlated.
        folder: The job's.
        plan_digest: SHA-256 of the plan.
        rounds: How many there are; after the last the noise is forgotten.
    """

    def __init__(
        self, banded_noise: BandedNoise, folder: Path, *, plan_digest: str, rounds: int
    ) -> None:
        self._banded_noise = banded_noise
        self._path = folder / NOISE_FILE
        self._plan = plan_digest
        self._rounds = rounds

    def get_released(
        self, number: int, booked_rounds: Sequence[int], newest_released: int = 0
    ) -> Tensor | None:
        """Read what was released of a round, or None where it may be made now.

        Args:
            number: From 1.
            booked_rounds: The rounds that the ledger holds, first ones of blocks.
            newest_released: The newest round that is known to have been released: with an older
                file it would be released again, with other noise, on the booking of its block.

        Raises:
            PrivacyError: Neither: the noise that it would depend on is gone.
        """
        if not self._path.exists():
            if number == 1 and not booked_rounds and not newest_released:
                return None
            raise self._lost_noise_error(f"{self._path} is missing")
        done, _, newest = self._read()
        if number not in (done, done + 1) or max(booked_rounds, default=0) > done + 1:
            raise self._lost_noise_error(
                f"round {number} is asked, {self._path} ends with round {done} and the ledger with "
                f"round {max(booked_rounds, default=0)}"
            )
        if newest_released > done:
            raise self._lost_noise_error(
                f"{self._path} ends with round {done}, and round {newest_released} was released"
            )
        return newest if number == done else None

    def prepare_round(self, number: int) -> None:
        """Make the file before anything is booked: later, a missing one is a lost one."""
        if number == 1 and not self._path.exists():
            self._write(0, [], torch.zeros(0, dtype=torch.float64))

    def add_noise(self, number: int, summed: Tensor, noise_std: float) -> Tensor:
        """Add a round's noise to its sum, stored before it is returned, shape (n,), float64.

        Args:
            number: The round after the one stored.
            summed: Shape (n,), float64.
            noise_std: Standard deviation of one independent draw.

        Raises:
            PrivacyError: Not that round.
        """
        with lock_file(self._path.with_suffix(".lock")):
            # Read inside the lock: of two servers, the slower one must find the round made.
            done, past, _ = self._read()
            if number != done + 1:
                raise self._lost_noise_error(
                    f"round {number} is due, {self._path} ends with round {done}"
                )
            fresh = SystemGaussianSampler().sample_noise(tuple(summed.shape), noise_std)
            noise = self._banded_noise.correlate_noise(fresh, past)
            newest = round_to_lattice(summed + noise, noise_std)
            past = (
                # Only the bands' reach is kept: older noise is a secret that no round needs.
                self._banded_noise.required_history([*past, noise]) if number < self._rounds else []
            )
            self._write(number, past, newest)
            return newest

    def _write(self, number: int, past: Sequence[Tensor], newest: Tensor) -> None:
        """Write a round, whole or not at all, for nobody else's eyes."""
        rows = torch.stack(list(past)) if past else torch.zeros(0, len(newest), dtype=newest.dtype)
        words = {"plan": self._plan, "round": str(number)}
        # One file for noise and sum: apart, a crash could leave one without the other.
        data = encode_tensors({"past": rows, "sum": newest}, words)
        replace_file(self._path, data, secret=True)

    def _read(self) -> tuple[int, list[Tensor], Tensor]:
        """Read the newest round, the noise that later ones need, and that round's sum."""
        try:
            tensors, words = read_tensors(self._path)
            number, plan = int(words["round"]), words["plan"]
            past, newest = list(tensors["past"]), tensors["sum"]
        except (ModelError, KeyError, ValueError) as error:
            raise self._lost_noise_error(f"{self._path} is damaged ({error})") from error
        if plan != self._plan:
            raise self._lost_noise_error(f"{self._path} belongs to another plan")
        # After the last round nothing depends on the noise, and keeping it could only betray sums.
        wanted = 0 if number == self._rounds else min(number, self._banded_noise.band_count - 1)
        if len(past) != wanted or not all(bool(row.isfinite().all()) for row in [*past, newest]):
            raise self._lost_noise_error(f"{self._path} lacks noise of rounds before {number}")
        return number, past, newest

    def _lost_noise_error(self, what: str) -> PrivacyError:
        """Error of noise that later rounds cannot be made from."""
        return PrivacyError(
            f"{what}: the noise of its rounds is correlated, and without that of the rounds "
            "before nothing more may be released from this run. Put the newest file back, or begin "
            "a new run"
        )
