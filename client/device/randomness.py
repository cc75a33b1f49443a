"""Randomness of one release: from a seed in a simulation, from the operating system elsewhere."""

import secrets

import torch

from sottovoce.client.device.profile import DeviceProfile
from sottovoce.shared import seeding
from sottovoce.shared.privacy.gaussian_noise import (
    GaussianSampler,
    SeededGaussianSampler,
    SystemGaussianSampler,
)
from sottovoce.shared.privacy.poisson_sampling import PoissonSampler, SystemPoissonSampler
from sottovoce.shared.secure_aggregation.discrete_gaussian import (
    RandomWords,
    SeededRandomWords,
    SystemRandomWords,
)


class Randomness:
    """Generators for one release: repeatable in a simulation, secret on a device."""

    def __init__(self, profile: DeviceProfile, name: str) -> None:
        self._profile = profile
        self._name = name

    @property
    def noise_source(self) -> GaussianSampler:
        """Source of Gaussian privacy noise."""
        seed = self._profile.simulated_seed
        if seed is None:
            return SystemGaussianSampler()
        return SeededGaussianSampler(
            seeding.torch_rng(seed, "noise", self._profile.user, self._name)
        )

    @property
    def random_words(self) -> RandomWords:
        """Source of the random words that discrete noise is made of."""
        seed = self._profile.simulated_seed
        if seed is None:
            return SystemRandomWords()
        return SeededRandomWords(seeding.numpy_rng(seed, "words", self._profile.user, self._name))

    @property
    def torch_generator(self) -> torch.Generator:
        """Generator of dropout masks, and of a simulation's batches."""
        seed = self._profile.simulated_seed
        if seed is None:
            # torch's generator takes 64 bits; a random seed that nobody knows is as good as secret
            # draws.
            return torch.Generator().manual_seed(secrets.randbits(63))
        return seeding.torch_rng(seed, "training", self._profile.user, self._name)

    @property
    def poisson_sampler(self) -> PoissonSampler | None:
        """Sampler of who joins a step; None leaves it to the generator, in a simulation."""
        return SystemPoissonSampler() if self._profile.simulated_seed is None else None
