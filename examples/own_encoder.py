"""Bring your own encoder: an extractor is a class of four members, registered by name.

``python examples/own_encoder.py`` trains on embedded voices with it and predicts one of them. A
neural encoder looks the same; it would load its weights when it is first called.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from sottovoce import Recogniser, simulate
from sottovoce.shared.audio import Signal
from sottovoce.shared.features.registry import register_extractor
from sottovoce.simulations.corpora.synthetic.sample_recordings import write_sample
from sottovoce.simulations.scenario.loading import parse_scenario

BANDS = 24

SCENARIO = """
corpus = "synthetic"
data = "speakers=4,clips=12"
encoder = "band-energies"
protocol = "holdout"
rounds = 2

[[public]]
name = "synthetic"
data = "speakers=6,clips=12,seed=90210"

[recipe.projection]
dims = 16
"""


class BandEnergies:
    """Mean and standard deviation over time of the log energy in a few frequency bands."""

    name = "band-energies"
    is_framewise = False  # one vector an utterance; True for (frames, features)
    # The cache of features goes by it: change it with the code, the settings or the weights.
    fingerprint = f"band-energies-1-{BANDS}"

    def __call__(self, signal: Signal) -> Tensor:
        """Compute the features of a signal, shape (2 x BANDS,), float32, from mono at 16 kHz."""
        spectrum = torch.stft(
            signal.samples[0], n_fft=512, window=torch.hann_window(512), return_complex=True
        )
        bands = spectrum.abs().square().tensor_split(BANDS)
        energies = torch.stack([band.mean(0) for band in bands]).clamp(min=1e-10).log()
        return torch.cat([energies.mean(1), energies.std(1)])


if __name__ == "__main__":
    register_extractor(BandEnergies.name, BandEnergies)
    with TemporaryDirectory() as home:
        scenario = parse_scenario(SCENARIO, source="this example")
        run = simulate(scenario, out=f"{home}/run")
        print(f"UAR with {run['model']['encoder']}: {run['accuracy']['uar']:.3f}")

        write_sample(Path(home) / "hello.wav", emotion="angry", seed=1)
        print(Recogniser.open(f"{home}/run").predict(f"{home}/hello.wav"))
