"""Folds of a finished run, rebuilt from its settled scenario, to attack.

The attacker is the server. It knows the plan, the models it sent and all that is public; the
harness also knows the users' clips, to run trials with and without what the attacker looks for.
"""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from sottovoce.server.planning.recipe import FROZEN_ENCODER_MODELS
from sottovoce.shared.errors import SettingError
from sottovoce.shared.models.examples import Examples
from sottovoce.shared.protocol.local_training import NoPrivacy
from sottovoce.shared.speaker.normalisation import EXACT_CENTRE, EXACT_MEAN
from sottovoce.simulations.audit.device_under_test import Transcript
from sottovoce.simulations.audit.server_transcript import rebuild_transcript
from sottovoce.simulations.corpora.corpus import Clip
from sottovoce.simulations.corpora.speaker_splits import Fold
from sottovoce.simulations.data.fold_inputs import FoldInputs
from sottovoce.simulations.data.loading import (
    OnProgress,
    PublicCorpus,
    load_corpora,
)
from sottovoce.simulations.data.pretraining import build_fold_inputs, build_plan
from sottovoce.simulations.results.path_names import folder_name
from sottovoce.simulations.scenario.loading import load_scenario
from sottovoce.simulations.scenario.scenario import Scenario

OnMessage = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SpeakerExamples:
    """Utterances of one speaker whose device may be attacked.

    Attributes:
        examples: Utterances as raw features.
        gender: As the corpus has it; empty where it has none.
    """

    examples: Examples
    gender: str


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AuditedFold:
    """A fold of a finished run, with everything that the attacks need.

    Attributes:
        scenario: The settled scenario.
        name: Name of the fold.
        transcript: The server's requests to every device.
        users: Training users, by name.
        public_speakers: Public speakers, by name; an attacker may train on them.
    """

    scenario: Scenario
    name: str
    transcript: Transcript
    users: Mapping[str, SpeakerExamples]
    public_speakers: Mapping[str, SpeakerExamples]

    def without_noise(self) -> "AuditedFold":
        """Copy the fold with its privacy off: nothing is clipped, noised or promised."""
        transcript = self.transcript
        # "and" keeps what the plan did not have: None stays None.
        plan = replace(
            transcript.plan,
            mechanism=NoPrivacy(),
            centre=transcript.plan.centre and EXACT_CENTRE,
            normaliser=transcript.plan.normaliser and EXACT_MEAN,
            count_noise=0.0,
            user=None,
            calibration=transcript.plan.calibration
            and replace(transcript.plan.calibration, noise_multiplier=0.0),
        )
        return replace(self, transcript=replace(transcript, plan=plan))


def open_audited_folds(
    run_folder: Path,
    on_message: OnMessage = lambda _line: None,
    on_progress: OnProgress = lambda _what, _done, _total: None,
    *,
    max_folds: int | None = None,
) -> list[AuditedFold]:
    """Rebuild a run's folds, in their order.

    Args:
        run_folder: The folder that ``simulate --out`` made, with its checkpoints.
        on_message: Takes a line about what was found.
        on_progress: Takes (what, done, total).
        max_folds: How many, from the first on; None rebuilds all.

    Raises:
        SettingError: No run there, or one that this version cannot attack.
        ModelError: The models that the server sent are gone.
        SottovoceError: Corpora that are not where they were, and the like.
    """
    scenario = _scenario(run_folder)
    # Before features are computed, which takes minutes.
    _check(scenario)
    corpus, public = load_corpora(
        scenario.data, scenario.recipe, on_message, on_progress, workers=scenario.run.workers
    )
    cases = []
    with tempfile.TemporaryDirectory() as folder:  # nothing is written into the run
        fold_inputs = build_fold_inputs(
            scenario.plan_settings,
            corpus,
            public,
            Path(folder),
            on_message,
            seed=scenario.run.seed,
            use_warm_start=bool(scenario.data.public),
        )
        plan = build_plan(scenario.plan_settings, scenario.privacy, fold_inputs, "audit")
        public_speakers = _public_speakers(fold_inputs, public)
        folds = corpus.protocol.folds[:max_folds]
        for place, fold in enumerate(folds):
            on_progress("folds rebuilt from their checkpoints", place, len(folds))
            users = {
                name: _speaker_examples(fold_inputs, fold_inputs.clips[name]) for name in fold.train
            }
            transcript = rebuild_transcript(
                scenario.recipe,
                plan,
                fold_inputs,
                [user.examples.labels for user in users.values()],
                _server_folder(run_folder, fold),
            )
            cases.append(
                AuditedFold(
                    scenario=scenario,
                    name=fold.name,
                    transcript=transcript,
                    users=users,
                    public_speakers=public_speakers,
                )
            )
        on_progress("folds rebuilt from their checkpoints", len(folds), len(folds))
    return cases


def _scenario(run_folder: Path) -> Scenario:
    """The settled scenario of a run."""
    path = run_folder / "config.toml"
    if not path.is_file():
        raise SettingError(f"there is no {path}; name the folder that --out made")
    return load_scenario(str(path))


def _check(scenario: Scenario) -> None:
    """Refuse what cannot be attacked yet, before anything is computed."""
    recipe = scenario.recipe
    if recipe.model not in FROZEN_ENCODER_MODELS or recipe.pooling != "none":
        raise SettingError(
            f"the run's model is {recipe.model} with pooling {recipe.pooling}, which reads frames; "
            f"this version attacks {' and '.join(FROZEN_ENCODER_MODELS)} on one vector an utterance"
        )


def _server_folder(run_folder: Path, fold: Fold) -> Path:
    """Where the fold's server stored its models."""
    return run_folder / "checkpoints" / folder_name(fold.name) / "server"


def _speaker_examples(fold_inputs: FoldInputs, clips: tuple[Clip, ...]) -> SpeakerExamples:
    """A user of the run."""
    return SpeakerExamples(examples=fold_inputs.build_examples(clips), gender=clips[0].gender or "")


def _public_speakers(
    fold_inputs: FoldInputs, public: list[PublicCorpus]
) -> dict[str, SpeakerExamples]:
    """Public speakers with the emotions that the run knows, and a known gender."""
    found: dict[str, SpeakerExamples] = {}
    for number, (clips, features) in enumerate(public):
        spoken: dict[str, list[Clip]] = {}
        for clip in clips:
            # The run's labels only, and a known gender, or there is nothing to learn from the
            # speaker.
            if clip.clip_id in features and clip.emotion in fold_inputs.labels and clip.gender:
                spoken.setdefault(clip.speaker, []).append(clip)
        for speaker, own in spoken.items():
            examples = replace(fold_inputs, features=features).build_examples(own)
            found[f"{number}/{speaker}"] = SpeakerExamples(
                examples=examples, gender=own[0].gender or ""
            )
    return found
