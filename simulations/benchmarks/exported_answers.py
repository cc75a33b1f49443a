"""Answers of exported models beside torch's, on clips of people that training never saw."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sottovoce.shared import audio
from sottovoce.shared.audio import voice_activity
from sottovoce.shared.calibration import HeadPrior, identity_head
from sottovoce.shared.exported.export import describe_export
from sottovoce.shared.exported.exported_model import FRAME_HOP, ExportedModel, count_frames
from sottovoce.shared.exported.graph_writer import WeightType
from sottovoce.shared.exported.model_graph import EXTRACTOR, build_graph
from sottovoce.shared.features import whisper
from sottovoce.shared.models.model_package import ModelPackage
from sottovoce.shared.models.projection import PublicProjection
from sottovoce.shared.models.spec import ModelSpec
from sottovoce.shared.speaker.normalisation import default_statistics
from sottovoce.simulations.corpora import open_corpus
from sottovoce.simulations.corpora.corpus import Clip
from sottovoce.simulations.evaluation import metrics

_INPUTS = 128
_EVERY = 4
"""One speaker in so many tests."""
_WEIGHT_DECAY = 1e-3

Rows = NDArray[np.float64]


def compare_answers(corpus: str, folder: Path, *, tested: int, trained: int) -> dict[str, Any]:
    """Train a linear model on some clips of a corpus, and compare its exports on other speakers'.

    Args:
        corpus: Name of the corpus.
        folder: Where it lies.
        tested: Clips that are compared, spread over every fourth speaker.
        trained: Clips that the model is fitted on, spread over the others.

    Returns:
        UAR by torch; and for each type of weights size, UAR, and the largest difference of a
        probability from torch's.
    """
    clips = open_corpus(corpus, str(folder)).clips
    speakers = sorted({clip.speaker for clip in clips})
    testing = set(speakers[::_EVERY])
    test = _spread([clip for clip in clips if clip.speaker in testing], tested)
    labels = tuple(sorted({clip.emotion for clip in clips}))
    others = [clip for clip in clips if clip.speaker not in testing]
    package = _fit(_spread(others, trained), labels)
    models = {kind: _open(package, kind) for kind in WeightType}
    found: dict[str, list[Rows]] = {name: [] for name in ("torch", *models)}
    for clip in test:
        cut = voice_activity.cut_to_speech(audio.resample(clip.load_signal(), audio.SAMPLE_RATE))
        samples = cut.signal.waveform
        spoken = cut.mask_frames(count_frames(len(samples)), FRAME_HOP)
        outputs = whisper.load_encoder()(cut.signal)
        features = whisper.pool_statistics(outputs, torch.from_numpy(spoken))
        found["torch"].append(_by_torch(package, features))
        for kind, (model, _) in models.items():
            output = model.run(samples, spoken, model.centre)
            found[kind].append(model.head.compute_probabilities(output.logits))
    truth = np.array([labels.index(clip.emotion) for clip in test])
    rows = {name: np.stack(several) for name, several in found.items()}
    return {
        "clips": len(test),
        "speakers": len({clip.speaker for clip in test}),
        "emotions": len(labels),
        "uar": _uar(truth, rows["torch"]),
        "exports": {
            kind.value: {
                "bytes": size,
                "uar": _uar(truth, rows[kind]),
                "largest_difference": float(np.abs(rows[kind] - rows["torch"]).max()),
                "same_emotion": float((rows[kind].argmax(1) == rows["torch"].argmax(1)).mean()),
            }
            for kind, (_, size) in models.items()
        },
    }


def _spread(clips: Sequence[Clip], count: int) -> list[Clip]:
    """So many clips, spread evenly."""
    places = np.linspace(0, len(clips), min(count, len(clips)), endpoint=False)
    return [clips[int(place)] for place in places]


def _fit(clips: Sequence[Clip], labels: tuple[str, ...]) -> ModelPackage:
    """A linear model on the principal directions of standardised features."""
    extractor = whisper.WhisperStatistics()
    features = torch.stack(
        [extractor(audio.resample(clip.load_signal(), audio.SAMPLE_RATE)) for clip in clips]
    )
    mean, scale = features.mean(0), features.std(0).clamp(min=1e-3)
    _, _, directions = torch.linalg.svd((features - mean) / scale, full_matrices=False)
    matrix = directions[:_INPUTS].T / scale[:, None]
    projection = PublicProjection(mean=mean, matrix=matrix.contiguous(), row_norm=1.0)
    inputs = matrix.shape[1]
    centre = torch.zeros(inputs)
    rows = projection.prepare_inputs(features, centre, torch.ones(len(features)))
    truth = torch.tensor([labels.index(clip.emotion) for clip in clips])
    return ModelPackage(
        labels=labels,
        extractor=EXTRACTOR,
        spec=ModelSpec(kind="linear", inputs=inputs, classes=len(labels)),
        weights=_fit_linear(rows, truth, len(labels)),
        projection=projection,
        centre=centre,
        speaker_statistics=default_statistics(inputs),
        prior=HeadPrior(mean=identity_head(len(labels))),
        subtracts_user_mean=False,
        model_hash="0" * 64,
    )


def _fit_linear(rows: Tensor, truth: Tensor, classes: int) -> Tensor:
    """Weights of a multinomial logistic regression, then its biases, as one vector."""
    weights = torch.zeros(classes, rows.shape[1] + 1, requires_grad=True)
    solver = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        logits = rows @ weights[:, :-1].T + weights[:, -1]
        decay = _WEIGHT_DECAY * weights[:, :-1].square().sum()
        total: Tensor = torch.nn.functional.cross_entropy(logits, truth) + decay
        total.backward()  # type: ignore[no-untyped-call]
        return total

    solver.step(loss)  # type: ignore[no-untyped-call]
    fitted = weights.detach()
    return torch.cat([fitted[:, :-1].flatten(), fitted[:, -1]])


def _open(package: ModelPackage, kind: WeightType) -> tuple[ExportedModel, int]:
    graph = build_graph(package, whisper.load_encoder(), kind)
    return ExportedModel(describe_export(package, kind), graph), len(graph)


def _by_torch(package: ModelPackage, features: Tensor) -> Rows:
    one = torch.ones(1, dtype=torch.int64)
    logits = package.compute_logits(features[None], one, package.centre)[0]
    return torch.softmax(logits.double(), 0).numpy()


def _uar(truth: NDArray[np.int64], rows: Rows) -> float:
    return metrics.uar(metrics.confusion_matrix(truth, rows.argmax(1), rows.shape[1]))
