"""What is measured: each bench is made once and then called many times."""

import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import torch
from torch.nn import functional as F

from sottovoce.client.anchor import VaultAnchor
from sottovoce.client.calibrator import Calibrator
from sottovoce.client.training.trainer import local_update
from sottovoce.client.vault import Vault
from sottovoce.shared import heads
from sottovoce.shared.audio import Signal
from sottovoce.shared.examples import Examples
from sottovoce.shared.features.extract import extractor
from sottovoce.shared.heads import basis
from sottovoce.shared.models.flat import flatten
from sottovoce.shared.models.spec import ModelSpec, build
from sottovoce.shared.privacy import accountant
from sottovoce.shared.privacy.ledger import Ledger
from sottovoce.shared.privacy.noise import NoiseSource, SeededNoise, SystemNoise
from sottovoce.shared.privacy.release import Kind, Mechanism, Release
from sottovoce.shared.training import LocalTraining, NoPrivacy, UtteranceNoise
from sottovoce.simulations.benchmarks.secure_sums import secure_sums

Bench = Callable[[], object]
PLAIN, OWN = "step of PyTorch: ", "step without privacy: "
SIMULATED, PRIVATE = "step private, simulated: ", "step private: "
"""What names of steps start with. A simulation's noise is seeded; a device's comes from the
operating system's entropy, eight draws a weight, and costs as much as the gradients."""
UTTERANCES, FRAMES, BANDS, CLASSES = 60, 150, 64, 8
_MODELS = {
    "linear 128": ModelSpec(kind="linear", inputs=128, classes=CLASSES),
    "mlp 128": ModelSpec(kind="mlp", inputs=128, classes=CLASSES, hidden=128),
    "cnn-attention": ModelSpec(kind="cnn-attention", inputs=BANDS, classes=CLASSES),
    "tcn": ModelSpec(kind="tcn", inputs=BANDS, classes=CLASSES),
    "bilstm-attention": ModelSpec(kind="bilstm-attention", inputs=BANDS, classes=CLASSES),
}


def benches(folder: Path) -> Iterator[tuple[str, Bench]]:
    """Name and work of every bench, in the order in which they are shown."""
    yield from _steps()
    yield from _extractors()
    yield "ledger: one release booked and synced", _booking(folder)
    yield "ledger: the same, and anchored in a vault", _booking(folder, anchored=True)
    yield "accountant: 18 releases, discretisation 1e-4", _pricing
    yield "head: fitted on 50 labelled clips", _head()
    yield "head: the same, with the scores of sets, and kept in a vault", _kept_head(folder)
    yield "head: sealed for the server", _calibrator(folder).sealed
    yield from secure_sums()


def _steps() -> Iterator[tuple[str, Bench]]:
    """One local step over all of a user's clips: plain, private in a simulation and on a device.

    The limit is what anyone would write: forward, backward and ``torch.optim.SGD``. A device's step
    is a round's whole training, checks included.
    """
    private = UtteranceNoise(clip_norm=0.5, noise_multiplier=2.5)
    seeded = SeededNoise(torch.Generator().manual_seed(4))
    for name, spec in _MODELS.items():
        examples = _examples(spec)
        yield f"{PLAIN}{name}", _plain_step(spec, examples)
        yield f"{OWN}{name}", _step(spec, examples, NoPrivacy(), seeded)
        yield f"{SIMULATED}{name}", _step(spec, examples, private, seeded)
        yield f"{PRIVATE}{name}", _step(spec, examples, private, SystemNoise())


def _examples(spec: ModelSpec) -> Examples:
    """One user's clips, of noise."""
    random = torch.Generator().manual_seed(0)
    shape = (UTTERANCES, FRAMES, BANDS) if spec.reads_frames else (UTTERANCES, spec.inputs)
    return Examples(
        features=torch.randn(shape, generator=random),
        frames=torch.full((UTTERANCES,), FRAMES if spec.reads_frames else 1),
        labels=torch.randint(CLASSES, (UTTERANCES,), generator=random),
    )


def _plain_step(spec: ModelSpec, examples: Examples) -> Bench:
    """One step of one model, and nothing of ours."""
    model = build(spec, 0)
    descent = torch.optim.SGD(model.parameters(), lr=0.1)

    def step() -> None:
        descent.zero_grad()
        F.cross_entropy(model(examples.features, examples.frames), examples.labels).backward()  # type: ignore[no-untyped-call]
        descent.step()

    return step


def _step(
    spec: ModelSpec,
    examples: Examples,
    mechanism: NoPrivacy | UtteranceNoise,
    noise: NoiseSource,
) -> Bench:
    """One step of one model."""
    model, weights = build(spec, 0), torch.ones(spec.classes)
    start = flatten(model)
    training = LocalTraining(
        steps=1, sample_rate=1.0, learning_rate=0.1, denominator=float(len(examples))
    )
    random = torch.Generator().manual_seed(1)
    return lambda: local_update(model, examples, weights, training, mechanism, noise, random, start)


def _extractors() -> Iterator[tuple[str, Bench]]:
    """One second of noise through each extractor that needs no download."""
    second = torch.randn(1, 16_000, generator=torch.Generator().manual_seed(2)) * 0.1
    signal = Signal(second, 16_000)
    for name in ("log-mel", "descriptors", "whisper-tiny-en"):
        chosen = extractor(name)
        yield f"features of 1 s: {name}", lambda chosen=chosen: chosen(signal)  # type: ignore[misc]


def _booking(folder: Path, *, anchored: bool = False) -> Bench:
    """Book a release in a ledger that grows."""
    place = Path(tempfile.mkdtemp(dir=folder))
    keeper = None
    if anchored:
        keeper = VaultAnchor(Vault.create(place / "vault", user="bench"), required=False)
    ledger = Ledger(place / "ledger.jsonl", owner="bench", keeper=keeper)
    release = Release(kind=Kind.GRADIENT, mechanism=Mechanism.NONE, run="bench", round=1)
    return lambda: ledger.book(f"bench/{len(ledger.releases)}", release, ())


_PRICED = iter(range(1, 1_000_000))


def _pricing() -> float:
    """Price a life that was never priced before, so that no cache helps."""
    noise = 2.5 + next(_PRICED) * 1e-6
    release = Release(
        kind=Kind.GRADIENT,
        mechanism=Mechanism.GAUSSIAN,
        run="bench",
        round=1,
        noise_multiplier=noise,
        sensitivity=0.5,
    )
    return accountant.epsilon([release] * 18, 1e-5)


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of what goes over the wire for one user's head."""
    return {"head on the wire, sealed": len(_calibrator(folder).sealed().blob)}


def _head() -> Bench:
    """Fit one user's head."""
    logits, labels, coordinates = _labelled()
    return lambda: heads.fit(logits, labels, _prior(), coordinates)


@cache
def _prior() -> heads.HeadPrior:
    """Where heads start, with all the directions that they may bend in."""
    voices = torch.randn(400, 128, generator=torch.Generator().manual_seed(5))
    return heads.HeadPrior(mean=heads.identity(CLASSES), basis=basis.learn(voices, CLASSES))


def _labelled() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Logits, labels and coordinates of 50 clips."""
    random = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(50, CLASSES, generator=random)
    labels = torch.randint(CLASSES, (50,), generator=random)
    return logits, labels, _prior().coordinates(torch.randn(50, 128, generator=random))


def _kept_head(folder: Path) -> Bench:
    """All that a device does with 50 labelled clips."""
    calibrator, labelled = _calibrator(folder), _labelled()
    return lambda: calibrator.fit(*labelled)


def _calibrator(folder: Path) -> Calibrator:
    """A device's calibrator that has fitted a head."""
    vault = Vault.create(Path(tempfile.mkdtemp(dir=folder)) / "vault", user="bench")
    calibrator = Calibrator(vault, model_hash="0" * 64, prior=_prior())
    calibrator.fit(*_labelled())
    return calibrator
