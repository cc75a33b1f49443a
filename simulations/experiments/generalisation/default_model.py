"""Experiment that makes the model in the package and tries it on strangers.

    sottovoce reproduce default-model --corpora ../shared/corpora

Writes ``shared/models/default_model/`` and docs/results/default-model.md. The model learns from
CREMA-D alone (ODbL); RAVDESS and EMO-DB judge it, and nothing is chosen by them.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from sottovoce.client.recognition.onnx_recogniser import OnnxRecogniser
from sottovoce.server.planning.public_pretraining import ProjectionSettings
from sottovoce.server.planning.recipe import Recipe
from sottovoce.shared import seeding
from sottovoce.shared.atomic_files import replace_text
from sottovoce.shared.exported.export import export_model
from sottovoce.shared.exported.graph_writer import WeightType
from sottovoce.shared.models.default_model import DEFAULT_MODEL
from sottovoce.simulations.corpora import open_corpus
from sottovoce.simulations.corpora.corpus import Clip
from sottovoce.simulations.data import public_model
from sottovoce.simulations.data.channels import ChannelClip
from sottovoce.simulations.evaluation import metrics
from sottovoce.simulations.experiments.commands import build_parser, extract_vectors

LABELS: Final = ("neutral", "happy", "sad", "angry", "fearful", "disgust")
ENCODER: Final = "whisper-tiny-en"
STRANGERS: Final = ("ravdess", "emodb")
LEARNED: Final = (0, 10)
"""Unlabelled utterances of a voice that the recogniser got used to first."""

RECIPE: Final = Recipe(projection=ProjectionSettings(dims=256), pretraining_weight_decay=1e-4)
Json = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """Answer of the recogniser about one clip.

    Attributes:
        truth: The emotion's index.
        probabilities: Of each emotion; empty where the recording was refused.
        named: Whether an emotion was named.
        members: Indices in the prediction set.
    """

    truth: int
    probabilities: tuple[float, ...]
    named: bool
    members: frozenset[int]

    @property
    def is_right(self) -> bool:
        """Whether the likeliest emotion is the true one."""
        return bool(self.probabilities) and int(np.argmax(self.probabilities)) == self.truth


def main(argv: Sequence[str] | None = None) -> int:
    """Make the model, unless only the page is asked for, and measure its answers."""
    parser = build_parser("default-model", __doc__)
    parser.add_argument("--corpora", type=Path, default=Path("../shared/corpora"))
    parser.add_argument("--keep-model", action="store_true", help="try the model that is there")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    path = arguments.out / "default-model.json"
    if not arguments.table:
        found = json.loads(path.read_text()) if path.is_file() else {}
        if not arguments.keep_model:
            found = make_model(arguments.corpora)
        for name in STRANGERS:
            found[name] = try_on_strangers(arguments.corpora, name)
        replace_text(path, json.dumps(found, indent=1) + "\n")
    replace_text(arguments.out / "default-model.md", format_page(json.loads(path.read_text())))
    return 0


def make_model(corpora: Path) -> dict[str, Any]:
    """Train the model on CREMA-D, and export its graph into the package.

    Args:
        corpora: The folder in which the corpora lie under their names.

    Returns:
        Facts of the model and of its export.
    """
    corpus = open_corpus("cremad", corpora / "cremad")
    speech = public_model.LabelledSpeech(
        clips=corpus.clips, features=extract_vectors(corpus.clips, ENCODER)
    )
    held_out = public_model.held_out_speakers(corpus.clips)
    strange = [
        # One channel a speaker: a stranger keeps to a microphone.
        ChannelClip(clip=clip, seed=held_out.index(clip.speaker))
        for clip in corpus.clips
        if clip.speaker in held_out
    ]
    package = public_model.train_public_model(
        speech,
        extract_vectors(strange, ENCODER),
        labels=LABELS,
        extractor=ENCODER,
        recipe=RECIPE,
    )
    card = CARD.format(
        clips=len(speech.features),
        speakers=len({clip.speaker for clip in corpus.clips}),
        held_out=len(held_out),
        emotions=", ".join(LABELS),
    )
    report = export_model(package, DEFAULT_MODEL, weights=WeightType.INT8, card=card.encode())
    return {
        "clips": len(speech.features),
        "held_out_speakers": len(held_out),
        "unknown_voice_temperature": package.unknown_voice_temperature,
        "graph_bytes": report.graph_bytes,
        "largest_difference": round(report.largest_difference, 4),
        "digest": report.digest,
    }


def try_on_strangers(corpora: Path, name: str) -> list[dict[str, Any]]:
    """Try the model in the package on a corpus that it never saw.

    Args:
        corpora: The folder in which the corpora lie under their names.
        name: Of the corpus; clips of emotions that the model does not know are left out.

    Returns:
        Figures before anything was learned of a voice, and after ten utterances of any of its
        emotions, which are then not scored.
    """
    corpus = open_corpus(name, corpora / name)
    lines = []
    for learned in LEARNED:
        answers = [
            answer for own in corpus.clips_by_speaker().values() for answer in _ask(own, learned)
        ]
        lines.append({"recordings": learned} | summarise_answers(answers))
    return lines


def _ask(clips: Sequence[Clip], learned: int) -> Iterator[Answer]:
    """Ask a recogniser that learned some clips of one speaker about the others."""
    recogniser = OnnxRecogniser.open(DEFAULT_MODEL)
    order = sorted(clips, key=lambda clip: seeding.derive_seed(0, "heard", clip.clip_id))
    for clip in order[:learned]:
        recogniser.learn_voice(clip.load_signal())
    # What was learned from is not scored: a device is asked about what comes next.
    for clip in order[learned:]:
        if clip.emotion not in LABELS:
            continue
        said = recogniser.predict(clip.load_signal())
        yield Answer(
            truth=LABELS.index(clip.emotion),
            probabilities=tuple(said.probabilities.values()),
            named=said.emotion is not None,
            members=frozenset(LABELS.index(emotion) for emotion in said.prediction_set),
        )


def summarise_answers(answers: Sequence[Answer]) -> dict[str, Any]:
    """Summarise answers in the figures of the page.

    Returns:
        Clips; the share answered, and how much of that is right; UAR of the likeliest emotion
        whether named or not; expected calibration error; coverage and size of prediction sets.

    Example:
        >>> one = Answer(truth=0, probabilities=(0.8, 0.2), named=True, members=frozenset({0}))
        >>> summarise_answers([one])["right"]
        1.0
    """
    named = [one for one in answers if one.named]
    # A recording that the gate refused has no probabilities to be judged by.
    judged = [one for one in answers if one.probabilities]
    chances = np.array([one.probabilities for one in judged])
    truth = np.array([one.truth for one in judged])
    matrix = metrics.confusion_matrix(truth, chances.argmax(1), chances.shape[1])
    return {
        "clips": len(answers),
        "answered": round(len(named) / len(answers), 4),
        "right": round(sum(one.is_right for one in named) / max(len(named), 1), 4),
        "uar": round(metrics.uar(matrix), 4),
        "ece": round(metrics.reliability_bins(chances, truth).calibration_error, 4),
        "covered": round(sum(one.truth in one.members for one in judged) / len(judged), 4),
        "set_size": round(sum(len(one.members) for one in judged) / len(judged), 3),
    }


CARD = """# Model card: the model that comes with Sottovoce

A linear model on Whisper tiny.en statistics, for one of {emotions}. What it recognises is **how a
voice sounds** to listeners, not what a person feels, means or intends.

## Use

For trying, and for apps in which a person turns it on for their own voice, sees what it says and
can turn it off. Not for work, education, police, borders, courts, health or credit; not for
children; not for anybody who did not agree. Regulation (EU) 2024/1689, Article 5(1)(f), forbids
inferring emotions at work and in education, and Article 50(3) asks that people be told.

It knows English sentences read by actors in one studio. Of a voice and a microphone that it does
not know it mostly says that it is not sure; ten recordings of the voice, of any emotion and
without labels, make it useful. Figures: docs/results/default-model.md.

## Data

{clips} clips of {speakers} speakers of CREMA-D (Cao, Cooper, Keutmann, Gur, Nenkova and Verma,
2014), made available under the Open Database License; {held_out} of the speakers gave no weights,
but the priors and the doubt about unknown voices, behind simulated channels. No other corpus was
used. Speakers consented to research on their recordings; no privacy is promised to them. Whisper
tiny.en, whose layers the graph holds, is OpenAI's, under the MIT licence.

## Training

`sottovoce reproduce default-model` makes the folder again.
"""

HEAD = """# The model in the package

Made by `sottovoce reproduce default-model`. A linear model from CREMA-D alone ({clips} clips;
{held_out_speakers} speakers held out for priors), exported in 8 bits ({megabytes:.1f} MB). Of
voices that it does not know log probabilities are divided by {unknown_voice_temperature:g}, and it
answers from a confidence of one half: the temperature follows from CREMA-D behind simulated rooms,
microphones and lines. RAVDESS and EMO-DB were not used for anything but this table. Clips of
emotions that it does not know are left out; *learned* are other recordings of the same voice, drawn
by a seed, of any emotion and without labels. Calibration error and UAR count every clip that has
probabilities, whether an emotion was named or not.

| corpus | learned | clips | answered | right of them | UAR | ECE | in the 90 % set | its size |
|---|---|---|---|---|---|---|---|---|
"""


def format_page(found: Json) -> str:
    """Format the page from the figures."""
    head = HEAD.format(megabytes=found["graph_bytes"] / 1e6, **found)
    rows = [
        f"| {name} | {line['recordings']} | {line['clips']} | {line['answered']:.3f} | "
        f"{line['right']:.3f} | {line['uar']:.3f} | {line['ece']:.3f} | {line['covered']:.3f} | "
        f"{line['set_size']:.2f} |\n"
        for name in STRANGERS
        for line in found.get(name, ())
    ]
    return head + "".join(rows)
