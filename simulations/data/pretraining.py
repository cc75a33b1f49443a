"""From a scenario and its loaded corpora to the inputs and the plan of its folds."""

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from sottovoce.shared import seeding
from sottovoce.shared.atomic_files import replace_file
from sottovoce.shared.models.parameters import flatten_parameters
from sottovoce.shared.models.spec import build_network
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

_TRAINING_SETTINGS = (
    "user",
    "aggregation",
    "clip_norm",
    "steps",
    "sample_rate",
    "learning_rate",
    "momentum",
)
"""Settings of the training alone, which do not change pretraining."""


def build_fold_inputs(
    scenario: Scenario,
    loaded_corpus: LoadedCorpus,
    public: Sequence[PublicCorpus],
    folder: Path,
    on_message: OnMessage = lambda _line: None,
) -> FoldInputs:
    """Build the inputs that all folds share.

    Args:
        scenario: The settled scenario.
        loaded_corpus: The users' corpus and its features.
        public: The public corpora and theirs; none for models that need none.
        folder: Where speakers that the warm start has not seen are kept.
        on_message: Takes a line about public clips that cannot be used.
    """
    labels = loaded_corpus.protocol.corpus.emotions
    plan = run_plan.plan_without_noise(scenario, run="", labels=labels, inputs=1)
    if not public:
        return _pretrain_inputs(scenario, loaded_corpus, public, plan, folder)
    name = _result_key(scenario, loaded_corpus, public, plan)
    known = pretraining_cache.load_result(cache_folder(), name)
    if known is None:
        inputs = _pretrain_inputs(scenario, loaded_corpus, public, plan, folder)
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
    loaded, public = load_corpora(scenario, on_message, on_progress)
    with tempfile.TemporaryDirectory() as folder:
        build_fold_inputs(scenario, loaded, public, Path(folder), on_message)


def _result_key(
    scenario: Scenario, loaded_corpus: LoadedCorpus, public: Sequence[PublicCorpus], plan: Plan
) -> str:
    """The name of what pretraining on these public corpora gives a run."""
    recipe = scenario.recipe
    start = flatten_parameters(
        build_network(plan.model, seeding.derive_seed(scenario.seed, "model"))
    )
    facts = {
        "labels": plan.labels,
        "width": next(iter(loaded_corpus.feature_table.features.values())).shape[-1],
        "model": plan.model.to_dict(),
        "start": hashlib.sha256(start.numpy().tobytes()).hexdigest(),  # no seed where it is zeros
        "recipe": {
            name: value for name, value in asdict(recipe).items() if name not in _TRAINING_SETTINGS
        },
        "user_mean": plan.normaliser is not None,
        "warm": bool(scenario.public),
        "features": [features.fingerprint for _, features in public],
        "clips": [[(clip.clip_id, clip.speaker, clip.emotion) for clip in c] for c, _ in public],
    }
    return pretraining_cache.cache_key(facts, learned_by=FoldInputs.__module__, called_by=__name__)


def _pretrain_inputs(
    scenario: Scenario,
    loaded_corpus: LoadedCorpus,
    public: Sequence[PublicCorpus],
    plan: Plan,
    folder: Path,
) -> FoldInputs:
    """Pretrain on public speech now."""
    users = UserSpeech(
        labels=plan.labels,
        features=loaded_corpus.feature_table.features,
        clips=loaded_corpus.protocol.corpus.clips_by_speaker(),
    )
    settings = PretrainingSettings(
        spec=plan.model,
        recipe=scenario.recipe,
        user_mean=plan.normaliser is not None,
        use_warm_start=bool(scenario.public),
        seed=scenario.seed,
    )
    merged = merge_public_corpora(plan.labels, public) if public else None
    return pretrain(users, merged, settings, folder)


def _pretraining_result(
    fold_inputs: FoldInputs, public: Sequence[PublicCorpus]
) -> PretrainingResult:
    """The part of the inputs that pretraining gave."""
    return PretrainingResult(
        projection=fold_inputs.projection,
        speaker_statistics=fold_inputs.speaker_statistics,
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
        model_spec=replace(plan.model, inputs=result.projection.output_size),
        initial_weights=result.initial_weights,
        held_out_file=held_out,
    )


def build_plan(scenario: Scenario, fold_inputs: FoldInputs, run: str) -> Plan:
    """The plan that all folds have but for their names, with the noise that was promised."""
    inputs = fold_inputs.projection.output_size
    plan = run_plan.plan_without_noise(scenario, run=run, labels=fold_inputs.labels, inputs=inputs)
    plan = replace(plan, projection_hash=fold_inputs.projection.content_hash())
    if fold_inputs.held_out_file is None:  # nobody to compare users with
        plan = replace(plan, calibration=None)
    return run_plan.add_noise(plan, scenario)
