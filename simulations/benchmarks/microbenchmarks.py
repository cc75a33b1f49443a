"""Microbenchmarks: each is prepared once and then called many times."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.nn import functional as F

from sottovoce.client.device.vault import FileVault
from sottovoce.client.device.vault_anchor import VaultAnchor
from sottovoce.client.training.local_trainer import TrainingSettings, compute_local_update
from sottovoce.shared.audio import Signal
from sottovoce.shared.features.registry import create_extractor
from sottovoce.shared.models.examples import Examples
from sottovoce.shared.models.parameters import flatten_parameters
from sottovoce.shared.models.spec import ModelSpec, build_network
from sottovoce.shared.privacy import accounting
from sottovoce.shared.privacy.gaussian_noise import (
    GaussianSampler,
    SeededGaussianSampler,
    SystemGaussianSampler,
)
from sottovoce.shared.privacy.ledger import Ledger
from sottovoce.shared.privacy.release import Mechanism, Release, ReleaseKind
from sottovoce.shared.protocol.local_training import ExampleLevelMechanism, LocalTraining, NoPrivacy
from sottovoce.simulations.benchmarks.head_benchmarks import list_head_benchmarks
from sottovoce.simulations.benchmarks.secure_sums import list_secure_sum_benchmarks

Benchmark = Callable[[], object]
PYTORCH_STEP, NON_PRIVATE_STEP = "step of PyTorch: ", "step without privacy: "
SIMULATED_PRIVATE_STEP, DEVICE_PRIVATE_STEP = "step private, simulated: ", "step private: "
ISOLATED_PRIVATE_STEP = "step private, each clip by itself: "
"""Prefixes of the names of steps. A simulation's noise is seeded; a device's is rounded exactly,
from a key of the operating system's. A device also computes each clip's gradient by itself, so that
no clip rounds another's last bits."""
UTTERANCES, FRAMES, MEL_BANDS, CLASSES = 60, 150, 64, 8
_MODELS = {
    "linear 128": ModelSpec(kind="linear", inputs=128, classes=CLASSES),
    "mlp 128": ModelSpec(kind="mlp", inputs=128, classes=CLASSES, hidden=128),
    "cnn-attention": ModelSpec(kind="cnn-attention", inputs=MEL_BANDS, classes=CLASSES),
    "tcn": ModelSpec(kind="tcn", inputs=MEL_BANDS, classes=CLASSES),
    "bilstm-attention": ModelSpec(kind="bilstm-attention", inputs=MEL_BANDS, classes=CLASSES),
}


def list_benchmarks(folder: Path) -> Iterator[tuple[str, Benchmark]]:
    """Iterate over all benchmarks by name, in the order in which they are shown."""
    yield from _steps()
    yield from _extractors()
    yield "ledger: one release booked and synced", _book_release(folder)
    yield "ledger: the same, and anchored in a vault", _book_release(folder, anchored=True)
    yield "accountant: 18 releases, discretisation 1e-4", _compute_epsilon
    yield from list_head_benchmarks(folder)
    yield from list_secure_sum_benchmarks()


def _steps() -> Iterator[tuple[str, Benchmark]]:
    """One local step over all of a user's clips: plain, private in a simulation and on a device.

    The limit is what anyone would write: forward, backward and ``torch.optim.SGD``. A device's step
    is a round's whole training, checks included.
    """
    private = ExampleLevelMechanism(clip_norm=0.5, noise_multiplier=2.5)
    seeded = SeededGaussianSampler(torch.Generator().manual_seed(4))
    for name, spec in _MODELS.items():
        examples = _examples(spec)
        yield f"{PYTORCH_STEP}{name}", _plain_step(spec, examples)
        yield f"{NON_PRIVATE_STEP}{name}", _step(spec, examples, NoPrivacy(), seeded)
        yield f"{SIMULATED_PRIVATE_STEP}{name}", _step(spec, examples, private, seeded)
        system = SystemGaussianSampler()
        yield f"{DEVICE_PRIVATE_STEP}{name}", _step(spec, examples, private, system)
        yield f"{ISOLATED_PRIVATE_STEP}{name}", _step(spec, examples, private, system, alone=True)


def _examples(spec: ModelSpec) -> Examples:
    """One user's clips, of noise."""
    random = torch.Generator().manual_seed(0)
    shape = (UTTERANCES, FRAMES, MEL_BANDS) if spec.reads_frames else (UTTERANCES, spec.inputs)
    return Examples(
        features=torch.randn(shape, generator=random),
        frames=torch.full((UTTERANCES,), FRAMES if spec.reads_frames else 1),
        labels=torch.randint(CLASSES, (UTTERANCES,), generator=random),
    )


def _plain_step(spec: ModelSpec, examples: Examples) -> Benchmark:
    """One step of one model, and nothing of ours."""
    model = build_network(spec, 0)
    descent = torch.optim.SGD(model.parameters(), lr=0.1)

    def step() -> None:
        descent.zero_grad()
        F.cross_entropy(model(examples.features, examples.frames), examples.labels).backward()  # type: ignore[no-untyped-call]
        descent.step()

    return step


def _step(
    spec: ModelSpec,
    examples: Examples,
    mechanism: NoPrivacy | ExampleLevelMechanism,
    noise: GaussianSampler,
    *,
    alone: bool = False,
) -> Benchmark:
    """One step of one model; ``alone`` computes each clip by itself."""
    model = build_network(spec, 0)
    start = flatten_parameters(model)
    settings = TrainingSettings(
        local_training=LocalTraining(
            steps=1, sample_rate=1.0, learning_rate=0.1, denominator=float(len(examples))
        ),
        mechanism=mechanism,
        class_weights=torch.ones(spec.classes),
        isolate_examples=alone,
    )
    random = torch.Generator().manual_seed(1)
    return lambda: compute_local_update(
        model, examples, settings, noise, random, initial_weights=start
    )


def _extractors() -> Iterator[tuple[str, Benchmark]]:
    """One second of noise through each extractor that needs no download."""
    second = torch.randn(1, 16_000, generator=torch.Generator().manual_seed(2)) * 0.1
    signal = Signal(second, 16_000)
    for name in ("log-mel", "descriptors", "whisper-tiny-en"):
        chosen = create_extractor(name)
        # The default binds this extractor: a closure would see the loop's last one.
        yield f"features of 1 s: {name}", lambda chosen=chosen: chosen(signal)  # type: ignore[misc]


def _book_release(folder: Path, *, anchored: bool = False) -> Benchmark:
    """Book a release in a ledger that grows."""
    home = Path(tempfile.mkdtemp(dir=folder))
    store = None
    if anchored:
        store = VaultAnchor(FileVault.create(home / "vault", user="bench"), required=False)
    ledger = Ledger(home / "ledger.jsonl", owner="bench", anchor_store=store)
    release = Release(kind=ReleaseKind.GRADIENT, mechanism=Mechanism.NONE, run="bench", round=1)
    return lambda: ledger.book_release(f"bench/{len(ledger.releases)}", release, ())


_NOISE_STEPS = iter(range(1, 1_000_000))


def _compute_epsilon() -> float:
    """Compute an epsilon that was never computed before, so that no cache helps."""
    # Another noise each time, too little to change the work: the accountant caches its figures.
    noise = 2.5 + next(_NOISE_STEPS) * 1e-6
    release = Release(
        kind=ReleaseKind.GRADIENT,
        mechanism=Mechanism.GAUSSIAN,
        run="bench",
        round=1,
        noise_multiplier=noise,
        sensitivity=0.5,
    )
    return accounting.compute_epsilon([release] * 18, 1e-5)
