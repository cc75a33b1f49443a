"""Content of run.json, from a finished run's corpus, folds and figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sottovoce.shared.models.parameters import count_parameters
from sottovoce.shared.models.spec import build_network
from sottovoce.simulations.data.loading import LoadedCorpus
from sottovoce.simulations.evaluation.fairness.run_section import measure_fairness
from sottovoce.simulations.evaluation.fold_result import FoldResult
from sottovoce.simulations.evaluation.predictions import concatenate_predictions
from sottovoce.simulations.results import prediction_table, run_record
from sottovoce.simulations.results.schema import (
    SCHEMA_VERSION,
    ClipRange,
    PrivacyRecord,
    ProtocolFacts,
    Rates,
    RunRecord,
)
from sottovoce.simulations.runs.fold_spec import FoldSpec
from sottovoce.simulations.scenario.settings import DataSettings, RunSettings


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FinishedRun:
    """A run whose folds have all ended.

    Attributes:
        data: Corpora, features and enrolment.
        settings: Rounds, seed and engine.
        unit: What is protected.
        corpus: The users' corpus.
        folds: Each fold and its result, at least one.
        privacy: Content of privacy.json.
        timing: Seconds and rates, by name.
        baselines: UAR of each baseline, by name.
        audited_epsilon: Lower bound on epsilon that an audit measured; None without an audit.
    """

    data: DataSettings
    settings: RunSettings
    unit: str
    corpus: LoadedCorpus
    folds: Sequence[tuple[FoldSpec, FoldResult]]
    privacy: PrivacyRecord
    timing: Mapping[str, float | None]
    baselines: Mapping[str, Rates] = field(default_factory=dict)
    audited_epsilon: float | None = None

    def encode_predictions(self) -> bytes:
        """Encode the table of all folds' predictions, whose hash run.json has."""
        # The name before the slash is the run's, the rest the fold's.
        run, _, _ = self.folds[0][0].plan.run.partition("/")
        return prediction_table.encode_predictions([result for _, result in self.folds], run=run)


def describe_run(finished: FinishedRun, predictions: bytes) -> RunRecord:
    """Make the content of run.json.

    Args:
        finished: The run.
        predictions: Table of its predictions, whose hash is recorded.

    Raises:
        MessageError: A section that breaks the schema.
    """
    data, settings, protocol = finished.data, finished.settings, finished.corpus.protocol
    enrolment = data.enrolment
    corpus = protocol.corpus
    specs, results = zip(*finished.folds, strict=True)
    everything = concatenate_predictions([result.predictions for result in results])
    personal = [result.personalised for result in results if result.personalised is not None]
    behind_heads = concatenate_predictions(personal) if personal else everything
    curve = run_record.learning_curve(
        {spec.fold.name: result.learning_curve for spec, result in finished.folds}
    )
    calibration = run_record.calibration_section(behind_heads, seed=settings.seed)
    calibration["uar"] = run_record.uar_before_after(behind_heads)
    calibration["labelled_clips_per_user"] = enrolment.labelled_clips_per_user
    # What was asked for is not always there: what was used is what the figures rest on.
    splits = [spec.split_clips(user) for spec in specs for user in spec.fold.test]
    calibration["labelled_clips_used"] = _clip_range([len(split.labelled) for split in splits])
    facts: ProtocolFacts = {
        "name": protocol.name,
        "folds": len(protocol.folds),
        "enrolment": enrolment.enrolment,
    }
    if enrolment.neutral_clips:
        facts["neutral_clips_used"] = _clip_range([len(split.neutral) for split in splits])
    return run_record.assemble_run_record(
        {
            "schema": SCHEMA_VERSION,
            "corpus": {
                "name": corpus.name,
                "clips": len(corpus.clips),
                "speakers": len(corpus.speakers),
                "emotions": list(corpus.emotions),
            },
            "protocol": facts,
            "seed": settings.seed,
            "engine": settings.engine,
            "unit": finished.unit,
            "clients": len({user for spec in specs for user in spec.fold.train}),
            "rounds": settings.rounds,
            "model": {
                "kind": specs[0].inputs.model_spec.kind,
                "encoder": data.encoder,
                "shared_parameters": count_parameters(build_network(specs[0].inputs.model_spec, 0)),
                "public_corpora": [name for name, _ in data.public],
            },
            "accuracy": run_record.accuracy_section(everything, seed=settings.seed, curve=curve),
            "predictions": prediction_table.describe_predictions(predictions),
            "baselines": dict(finished.baselines),
            "calibration": calibration,
            "fairness": measure_fairness(everything),
            "privacy": run_record.privacy_section(finished.privacy, audit=finished.audited_epsilon),
            "timing": finished.timing,
            "exclusions": dict(finished.corpus.exclusion_counts),
        }
    )


def _clip_range(counts: Sequence[int]) -> ClipRange:
    """Fewest and most of some numbers of clips."""
    return {"min": min(counts), "max": max(counts)}
