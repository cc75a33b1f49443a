"""From a scenario and its loaded corpora to the inputs and the plan of its folds."""

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from sottovoce.server.planning import noise_calibration
from sottovoce.shared import seeding
from sottovoce.shared.atomic_files import replace_file
from sottovoce.shared.models.parameters import flatten_parameters
from sottovoce.shared.models.spec import build_network
from sottovoce.shared.privacy.target import PrivacyTarget
from sottovoce.shared.protocol.training_plan import Plan
from sottovoce.simulations.data import pretraining_cache, run_plan
from sottovoce.simulations.data.fold_inputs import (
    HELD_OUT_FILE,
    FoldInputs,
    PretrainingSettings,
    UserSpeech,
    merge_public_corpora,
    pretrain,
)
from sottovoce.simulations.data.loading import (
    LoadedCorpus,
    OnMessage,
    OnProgress,
    PublicCorpus,
    cache_folder,
    exclusion_messages,
    load_corpora,
)
from sottovoce.simulations.data.pretraining_cache import PretrainingResult
from sottovoce.simulations.scenario.scenario import Scenario
from sottovoce.simulations.scenario.settings import PlanSettings

_TRAINING_SETTINGS = (
    "user",
    "targets",
    "curriculum",
    "aggregation",
    "clip_norm",
    "steps",
    "sample_rate",
    "learning_rate",
    "momentum",
)
"""Settings of the training alone, which do not change pretraining."""


def build_fold_inputs(
    settings: PlanSettings,
    loaded_corpus: LoadedCorpus,
    public: Sequence[PublicCorpus],
    folder: Path,
    on_message: OnMessage = lambda _line: None,
    *,
    seed: int,
    use_warm_start: bool,
) -> FoldInputs:
    """Build the inputs that all folds share.

    Args:
        settings: What the run's plan is made of.
        loaded_corpus: The users' corpus and its features.
        public: The public corpora and theirs; none for models that need none.
        folder: Where speakers that the warm start has not seen are kept.
        on_message: Takes a line about public clips that cannot be used.
        seed: The run's seed.
        use_warm_start: Whether corpora were declared public, whose emotions are fit to start from.
    """
    labels = loaded_corpus.protocol.corpus.emotions
    plan = run_plan.plan_without_noise(settings, run="", labels=labels, inputs=1)
    pretraining = PretrainingSettings(
        spec=plan.model,
        recipe=settings.recipe,
        user_mean=plan.normaliser is not None,
        use_warm_start=use_warm_start,
        seed=seed,
    )
    if not public:
        return _pretrain_inputs(pretraining, loaded_corpus, public, folder)
    name = _result_key(pretraining, loaded_corpus, public)
    known = pretraining_cache.load_result(cache_folder(), name)
    if known is None:
        inputs = _pretrain_inputs(pretraining, loaded_corpus, public, folder)
        pretraining_cache.store_result(cache_folder(), name, _pretraining_result(inputs, public))
        return inputs
    for line in known.exclusion_messages:
        on_message(line)
    return _restore_inputs(loaded_corpus, plan, known, folder)


def warm_cache(
    scenario: Scenario,
    on_message: OnMessage = lambda _line: None,
    on_progress: OnProgress = lambda _what, _done, _total: None,
) -> None:
    """Compute what a run and others like it find in the cache: features, pretraining results.

    Args:
        scenario: The settled scenario.
        on_message: Takes a line about what was found.
        on_progress: Takes (what, done, total).
    """
    torch.set_num_threads(1)
    data, run = scenario.data, scenario.run
    loaded, public = load_corpora(
        data, scenario.recipe, on_message, on_progress, workers=run.workers
    )
    with tempfile.TemporaryDirectory() as folder:
        build_fold_inputs(
            scenario.plan_settings,
            loaded,
            public,
            Path(folder),
            on_message,
            seed=run.seed,
            use_warm_start=bool(data.public),
        )


def _result_key(
    settings: PretrainingSettings, loaded_corpus: LoadedCorpus, public: Sequence[PublicCorpus]
) -> str:
    """The name of what pretraining on these public corpora gives a run."""
    start = flatten_parameters(
        build_network(settings.spec, seeding.derive_seed(settings.seed, "model"))
    )
    facts = {
        "labels": loaded_corpus.protocol.corpus.emotions,
        "width": next(iter(loaded_corpus.feature_table.features.values())).shape[-1],
        "model": settings.spec.to_dict(),
        "start": hashlib.sha256(start.numpy().tobytes()).hexdigest(),  # no seed where it is zeros
        "recipe": {
            name: value
            for name, value in asdict(settings.recipe).items()
            if name not in _TRAINING_SETTINGS
        },
        "user_mean": settings.user_mean,
        "warm": settings.use_warm_start,
        "features": [features.fingerprint for _, features in public],
        "clips": [[(clip.clip_id, clip.speaker, clip.emotion) for clip in c] for c, _ in public],
    }
    return pretraining_cache.cache_key(facts, learned_by=FoldInputs.__module__, called_by=__name__)


def _pretrain_inputs(
    settings: PretrainingSettings,
    loaded_corpus: LoadedCorpus,
    public: Sequence[PublicCorpus],
    folder: Path,
) -> FoldInputs:
    """Pretrain on public speech now."""
    labels = loaded_corpus.protocol.corpus.emotions
    users = UserSpeech(
        labels=labels,
        features=loaded_corpus.feature_table.features,
        clips=loaded_corpus.protocol.corpus.clips_by_speaker(),
    )
    merged = merge_public_corpora(labels, public) if public else None
    return pretrain(users, merged, settings, folder)


def _pretraining_result(
    fold_inputs: FoldInputs, public: Sequence[PublicCorpus]
) -> PretrainingResult:
    """The part of the inputs that pretraining gave."""
    return PretrainingResult(
        projection=fold_inputs.projection,
        speaker_statistics=fold_inputs.speaker_statistics,
        familiar_speech=fold_inputs.familiar_speech,
        initial_weights=fold_inputs.initial_weights,
        held_out=fold_inputs.held_out_file.read_bytes() if fold_inputs.held_out_file else None,
        exclusion_messages=[
            line for _, features in public for line in exclusion_messages(features.feature_table)
        ],
    )


def _restore_inputs(
    loaded_corpus: LoadedCorpus, plan: Plan, result: PretrainingResult, folder: Path
) -> FoldInputs:
    """The inputs, of a cached pretraining result."""
    held_out = None
    if result.held_out is not None:
        held_out = folder / HELD_OUT_FILE
        replace_file(held_out, result.held_out)
    return FoldInputs(
        labels=plan.labels,
        features=loaded_corpus.feature_table.features,
        clips=loaded_corpus.protocol.corpus.clips_by_speaker(),
        projection=result.projection,
        speaker_statistics=result.speaker_statistics,
        familiar_speech=result.familiar_speech,
        model_spec=replace(plan.model, inputs=result.projection.output_size),
        initial_weights=result.initial_weights,
        held_out_file=held_out,
        reads_votes=plan.training.reads_votes,
    )


def build_plan(
    settings: PlanSettings, target: PrivacyTarget, fold_inputs: FoldInputs, run: str
) -> Plan:
    """Build the plan that all folds have but for their names, with the noise that was promised.

    Args:
        settings: What the plan is made of.
        target: What is promised.
        fold_inputs: What all folds share.
        run: Name of the run.

    Raises:
        SettingError: The budget is too small for these releases.
    """
    inputs = fold_inputs.projection.output_size
    plan = run_plan.plan_without_noise(settings, run=run, labels=fold_inputs.labels, inputs=inputs)
    plan = replace(plan, projection_hash=fold_inputs.projection.content_hash())
    if fold_inputs.held_out_file is None:  # nobody to compare users with
        plan = replace(plan, calibration=None)
    return noise_calibration.add_noise(plan, target, settings.recipe.bounds)
