"""The JSON files of a run folder: what they must hold, as types, and how they are written.

A reader relies on the keys below; more keys may be there. A number may be null where nothing
could be measured: JSON has no NaN, and an epsilon of null says that there is no guarantee.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict, TypeVar, cast

import numpy as np
from msgspec import Meta

from sottovoce.shared.atomic_files import replace_text
from sottovoce.shared.codec import Count, Number, Share, build_json_schema, convert_record
from sottovoce.shared.errors import MessageError, SettingError, SottovoceError
from sottovoce.shared.printable import clean_json
from sottovoce.shared.privacy.schemes import unit_names

Record = TypeVar("Record")

SCHEMA_VERSION = 2
"""Schema 1 had other keys: ``worlds``, ``alike``, ``head_clips``, ``lives``."""
Json = dict[str, Any]
"""A table of whatever keys: what has no record of its own."""

Table = Mapping[str, Any]
"""A part of a record for readers that look keys up by variable names."""

Unit = str
"""Name of a unit of privacy; which ones there are is known when a record is read."""


class CorpusFacts(TypedDict):
    """Facts about the users' corpus."""

    name: str
    clips: Count
    speakers: Count
    emotions: Annotated[list[str], Meta(min_length=1)]


class ClipRange(TypedDict):
    """Fewest and most clips of one use that a test user had."""

    min: Count
    max: Count


class ProtocolFacts(TypedDict):
    """Evaluation protocol: how speakers are split, and what a user enrols with."""

    name: str
    folds: Count
    enrolment: str
    neutral_clips_used: NotRequired[ClipRange]


class ModelFacts(TypedDict):
    """The shared model and its features."""

    kind: str
    encoder: str
    shared_parameters: Count
    public_corpora: list[str]


class Rate(TypedDict):
    """Unweighted average recall of some clips, a speaker's or a group's."""

    uar: Share
    n: Count
    speakers: NotRequired[Count]


class Rates(TypedDict):
    """Unweighted average recall and weighted accuracy."""

    uar: Share
    wa: NotRequired[Share]


class FoldRate(TypedDict):
    """Accuracy of one fold."""

    fold: str
    uar: Share
    n: Count
    wa: NotRequired[Share]
    macro_f1: NotRequired[Share]


class CurvePoint(TypedDict):
    """Mean accuracy after a round, over the folds that were scored."""

    round: Count
    uar: Share
    per_fold: NotRequired[Mapping[str, Share]]


class Accuracy(TypedDict):
    """Accuracy of the shared model, without any label of the user.

    ``confusion`` has a row a true class and a column a predicted one.
    """

    uar: Share
    wa: Share
    macro_f1: Share
    per_emotion: Mapping[str, Share]
    confusion: list[list[Count]]
    per_fold: list[FoldRate]
    per_speaker: dict[str, Rate]
    uar_interval: NotRequired[Sequence[Share]]
    by_round: NotRequired[list[CurvePoint]]
    before_heads: NotRequired[Rates]


class CalibrationErrors(TypedDict):
    """Expected calibration error, negative log likelihood (nats) and Brier score."""

    ece: Share
    nll: Number
    brier: Number
    classwise_ece: NotRequired[Share]
    aurc: NotRequired[Number]


class Abstention(TypedDict):
    """Accuracy on the most confident share of clips; both lists have one length."""

    coverage: Sequence[Share]
    selective_accuracy: Sequence[Share]
    aurc: NotRequired[Number]
    aurc_before: NotRequired[Number]


class Bin(TypedDict):
    """A bin of the reliability diagram."""

    count: Count
    confidence: Share
    accuracy: Share


class Reliability(TypedDict):
    """Reliability diagrams before and after users' heads."""

    before: list[Bin]
    after: list[Bin]


class Intervals(TypedDict):
    """Bootstrap intervals over users: low, high."""

    before: Sequence[Number]
    after: Sequence[Number]
    difference: Sequence[Number]


class SpeakerCalibration(TypedDict):
    """Calibration errors of one speaker."""

    n: Count
    before: CalibrationErrors
    after: CalibrationErrors


class SpeakerSets(TypedDict):
    """Coverage and mean size of one speaker's prediction sets."""

    covered: Share
    size: Number


class PredictionSets(TypedDict):
    """Conformal prediction sets: coverage aimed at and reached, and mean size."""

    wanted: Share
    covered: Share
    interval: Sequence[Share]
    size: Number
    worst_tenth: Share
    gender: Mapping[str, Share]
    per_speaker: dict[str, SpeakerSets]


class BeforeAfter(TypedDict):
    """A figure before and after users' heads."""

    before: Share
    after: Share


class Calibration(TypedDict):
    """Calibration before and after users' heads."""

    before: CalibrationErrors
    after: CalibrationErrors
    abstention: Abstention
    reliability: NotRequired[Reliability]
    reliability_by_emotion: NotRequired[dict[str, Reliability]]
    intervals: NotRequired[dict[str, Intervals]]
    per_speaker: NotRequired[dict[str, SpeakerCalibration]]
    sets: NotRequired[PredictionSets]
    uar: NotRequired[BeforeAfter]
    labelled_clips_per_user: NotRequired[Count]
    labelled_clips_used: NotRequired[ClipRange]


class Groups(TypedDict):
    """Accuracy by group, and the gap between the best and the worst known one."""

    groups: dict[str, Rate]
    gap: Share


class SpeakerSpread(TypedDict):
    """How accuracy is spread over speakers."""

    worst: Share
    p10: Share
    gini: Number
    worst_speaker: NotRequired[str]
    median: NotRequired[Share]


class Fairness(TypedDict):
    """Accuracy by group and over speakers."""

    gender: Groups
    age: Groups
    language: Groups
    speaker: SpeakerSpread


class Spending(TypedDict):
    """Privacy loss of one client; an epsilon of null means no guarantee."""

    epsilon: Number
    remaining: Number
    rounds: Count


class UtterancePrivacy(TypedDict):
    """Privacy loss per utterance, over all clients."""

    epsilon_max: Number
    epsilon_median: Number
    per_client: dict[str, Spending]


class UserPrivacy(TypedDict):
    """Privacy loss for each user."""

    epsilon: Number
    delta: NotRequired[Number]
    epsilon_max: NotRequired[Number]
    epsilon_median: NotRequired[Number]
    per_client: NotRequired[dict[str, Spending]]


class AuditedPrivacy(TypedDict):
    """Lower bound on epsilon that an audit measured."""

    epsilon_lower: Number


class RunPrivacy(TypedDict):
    """Guarantee of a run and the privacy loss spent, from privacy.json."""

    unit: Unit
    epsilon: Number
    delta: Number
    neighbouring: NotRequired[str]
    sampling: NotRequired[str]
    accountant: NotRequired[str]
    noise_multiplier: NotRequired[Number]
    clip_norm: NotRequired[Number]
    releases: NotRequired[Count]
    utterance: NotRequired[UtterancePrivacy | None]
    user: NotRequired[UserPrivacy | None]
    audit: NotRequired[AuditedPrivacy | None]


class RoundOutcome(TypedDict):
    """Outcome of a round for the devices that were asked."""

    round: Count
    sampled: Count
    newcomers: Count
    unavailable: Count
    dropped: Count
    late: Count
    refused: Count
    used: Count
    rss_mb: Number
    seconds: Number


class PopulationFacts(TypedDict):
    """Facts about a simulated population and its rounds."""

    voices: str
    registered: Count
    cohort: Count
    asked: Count
    rounds: list[RoundOutcome]


class PredictionFacts(TypedDict):
    """The table of predictions beside run.json, from which its accuracy can be computed again."""

    file: str
    sha256: str
    rows: Count


class RunRecord(TypedDict):
    """Content of run.json: one run's accuracy, calibration, fairness, privacy and time.

    More keys may be there. A number is null where nothing could be measured.
    """

    schema: Count
    corpus: CorpusFacts
    protocol: ProtocolFacts
    seed: Count
    engine: str
    unit: Unit
    clients: Count
    rounds: Count
    model: ModelFacts
    accuracy: Accuracy
    predictions: NotRequired[PredictionFacts | None]
    baselines: NotRequired[dict[str, Rates] | None]
    calibration: Calibration
    fairness: Fairness
    privacy: RunPrivacy
    timing: Mapping[str, Number]
    exclusions: NotRequired[dict[str, Count] | None]
    population: NotRequired[PopulationFacts | None]


class ReleaseLine(TypedDict):
    """One release of a ledger, as it concerns one unit."""

    kind: str
    mechanism: NotRequired[str]
    round: Count
    noise_multiplier: Number
    sample_rate: Number
    steps: Count
    clip_norm: Number
    noised_by: NotRequired[str]
    bands: NotRequired[Count]
    spacing: NotRequired[Count]
    devices: NotRequired[Count]
    colluders: NotRequired[Count]
    epsilon_after: Number


class Budget(TypedDict):
    """Epsilon and delta of a budget."""

    epsilon: Number
    delta: Number


class Account(Spending):
    """Account of one ledger's spending and releases."""

    delta: Number
    budget: Budget
    composition: NotRequired[str]
    renyi_order: NotRequired[Number]
    ledger_sha256: str
    releases: list[ReleaseLine]
    devices_with_equal_ledgers: NotRequired[Count]


class FoldAccounts(TypedDict):
    """The accounts of one fold."""

    name: str
    clients: dict[str, Account]
    server: NotRequired[Account | None]
    registered: NotRequired[Count]


class Guarantee(TypedDict):
    """Guarantee for one unit, and its noise."""

    epsilon: Number
    delta: Number
    neighbouring: str
    noise_multiplier: Number
    clip_norm: Number
    composition: NotRequired[str]
    renyi_order: NotRequired[Number]


class Participation(TypedDict):
    """Participation groups and correlated noise."""

    rounds: Count
    spacing: Count
    most: Count
    bands: Count
    coefficients: Sequence[Number]


class SelectionCost(TypedDict):
    """Privacy cost of the best of a random number of runs, where nothing else is released.

    A unit that it cannot be computed for is left out, and ``refused`` says why.
    """

    distribution: str
    mean_runs: Count
    score: str
    against: str
    utterance: NotRequired[Number]
    user: NotRequired[Number]
    refused: NotRequired[str]


class TuningCost(TypedDict):
    """Total privacy cost of all runs that settings were chosen by."""

    runs: Count
    utterance: NotRequired[Number]
    user: NotRequired[Number]
    selection: NotRequired[SelectionCost]


class TradeOff(TypedDict):
    """Trade-off function: chances of a false alarm, and the least chance to overlook at each."""

    alpha: list[Share]
    beta: list[Share]


class GroupCost(TypedDict):
    """Epsilon of several units that are hidden together."""

    changes: Count
    epsilon: Number
    all_of_a_user: NotRequired[bool]


class CurveRecord(TypedDict):
    """Whole privacy curve of the ledger that spent most, for one unit."""

    epsilon: Number
    delta: Number
    mu: Number
    basis: str
    tradeoff: TradeOff
    groups: list[GroupCost]
    other_deltas: list[Budget]


class AdversaryRow(TypedDict):
    """Guarantee against one adversary, and its assumption."""

    adversary: str
    holds: str
    assumption: str


class PrivacyRecord(Guarantee):
    """Content of privacy.json: the promise, what it rests on, and every ledger's account."""

    schema: Count
    unit: Unit
    sampling: str
    participation: NotRequired[Participation | None]
    accountant: str
    statement: str
    assumptions: list[str]
    not_protected: list[str]
    user: NotRequired[Guarantee | None]
    tuned: NotRequired[TuningCost | None]
    adversaries: NotRequired[list[AdversaryRow] | None]
    curves: NotRequired[dict[str, CurveRecord] | None]
    folds: list[FoldAccounts]
    recompute: str


class EpsilonBound(TypedDict):
    """Lower bounds on epsilon that an attack measured."""

    epsilon: Number
    epsilon_gaussian: Number
    mu: Number
    ceiling: Number
    trials: Count


class OneRunBound(TypedDict):
    """Lower bound on epsilon from guesses about many canaries of one run."""

    epsilon: Number
    ceiling: NotRequired[Number | None]
    epsilon_gaussian: NotRequired[Number | None]
    mu: NotRequired[Number | None]
    canaries: Count
    devices: NotRequired[Count | None]
    guesses: Count
    correct: Count


class SummedScoresBound(TypedDict):
    """Lower bound on epsilon from the scores of many canaries, if the mechanism is Gaussian."""

    epsilon_gaussian: Number
    mu: Number
    canaries: Count


class MembershipInference(TypedDict):
    """How well training utterances are told from others."""

    auc: Share
    tpr: Share
    guesses: Count


class GenderTrials(TypedDict):
    """How much gender inference was tried."""

    folds: Count
    users: Count
    trials: Count


class Attacks(TypedDict):
    """Results of every attack on a run."""

    many_run: NotRequired[EpsilonBound | None]
    first_message: NotRequired[EpsilonBound | None]
    last_message: NotRequired[EpsilonBound | None]
    one_run: NotRequired[OneRunBound | None]
    one_run_f_dp: NotRequired[OneRunBound | None]
    summed_scores: NotRequired[SummedScoresBound | None]
    many_run_user: NotRequired[EpsilonBound | None]
    membership: dict[str, MembershipInference]
    speaker: Mapping[str, Mapping[str, Share]]
    gender: NotRequired[Mapping[str, Mapping[str, Share]] | None]
    gender_error: NotRequired[Mapping[str, Mapping[str, Share]] | None]
    gender_of: NotRequired[GenderTrials | None]
    inversion: Mapping[str, Number]


class AttacksByVariant(TypedDict):
    """Attacks on the run as it was, and with its noise switched off."""

    as_run: Attacks
    noise_off: NotRequired[Attacks | None]


class AuditRecord(TypedDict):
    """Content of audit.json: lower bounds on epsilon, and what attacks found out."""

    schema: Count
    unit: Unit
    epsilon: Number
    delta: Number
    seed: Count
    confidence: Share
    fold: str
    users: Count
    rounds: Count
    threat_model: NotRequired[str | None]
    epsilon_lower: Number
    epsilon_lower_gaussian: Number
    holds: bool
    attacks: AttacksByVariant
    exact_normaliser_attack: NotRequired[EpsilonBound | None]


class Spread(TypedDict):
    """A figure over the seeds of a sweep; ``sd`` is that of a sample, null for a single seed."""

    mean: Number
    sd: Number
    min: Number
    max: Number


class SweepTiming(TypedDict):
    """How long a sweep took this time, and how many of its runs were computed."""

    wall_s: Number
    runs: Count
    computed: Count


class SweepRow(TypedDict):
    """One run of a sweep: its settings and figures, null where it has none."""

    name: str
    folder: str
    settings: dict[str, str | int | float | bool | None]
    unit: Unit
    rounds: Count
    model: str
    epsilon: Number
    noise_multiplier: Number
    uar: Number
    wa: Number
    macro_f1: Number
    worst_speaker: Number
    p10_speaker: Number
    ece_before: Number
    ece_after: Number
    nll_before: Number
    nll_after: Number
    epsilon_spent_utterance: Number
    epsilon_spent_user: Number
    wall_s: Number


class SweepPoint(TypedDict):
    """Runs of a sweep that differ in their seed alone, as one."""

    seeds: Count
    settings: dict[str, str | int | float | bool | None]
    unit: Unit
    rounds: Count
    model: str
    epsilon: Number
    noise_multiplier: Number
    uar: Spread | None
    wa: Spread | None
    macro_f1: Spread | None
    worst_speaker: Spread | None
    p10_speaker: Spread | None
    ece_before: Spread | None
    ece_after: Spread | None
    nll_before: Spread | None
    nll_after: Spread | None
    epsilon_spent_utterance: Spread | None
    epsilon_spent_user: Spread | None
    wall_s: Spread | None


class SweepRecord(TypedDict):
    """Content of sweep.json: every run's figures, and their spread over seeds."""

    schema: Count
    base: Json
    axes: dict[str, list[Any]]
    corpus: CorpusFacts
    protocol: str
    chance: Share
    runs: list[SweepRow]
    points: list[SweepPoint]
    timing: SweepTiming


RECORDS: Mapping[str, type] = {
    "run": RunRecord,
    "privacy": PrivacyRecord,
    "audit": AuditRecord,
    "sweep": SweepRecord,
}
"""Records of the files of a run folder and of a sweep's, by the file's name without ``.json``."""


def build_schemas() -> dict[str, Json]:
    """The JSON Schemas of all result files, by the file's name without ``.json``.

    Example:
        >>> sorted(build_schemas())
        ['audit', 'privacy', 'run', 'sweep']
    """
    return {
        name: _with_units(build_json_schema(record, title=f"Sottovoce {name}.json"))
        for name, record in RECORDS.items()
    }


def _with_units(schema: Json) -> Json:
    """Restrict every unit to those of this version, and those that were registered."""
    for definition in schema["$defs"].values():
        unit = definition.get("properties", {}).get("unit")
        if unit is not None:
            unit["enum"] = list(unit_names())
    return schema


def validate_run(run: object, *, name: str = "run.json") -> RunRecord:
    """Check that what was read is a run of this schema.

    Args:
        run: What ``json.loads`` gave, whatever it is.
        name: What to call the file in messages.

    Returns:
        The same object, now known to be a run.

    Raises:
        MessageError: A foreign or damaged file, or one of another schema; says where and what.
    """
    checked = _validate(run, RunRecord, name)
    size = len(checked["corpus"]["emotions"])
    confusion = checked["accuracy"]["confusion"]
    if len(confusion) != size or any(len(row) != size for row in confusion):
        raise MessageError(f"{name} is damaged: accuracy.confusion is not {size} by {size}")
    curve = checked["calibration"]["abstention"]
    if len(curve["coverage"]) != len(curve["selective_accuracy"]):
        raise MessageError(f"{name} is damaged: calibration.abstention has unequal columns")
    return checked


def validate_privacy(privacy: object, *, name: str = "privacy.json") -> PrivacyRecord:
    """Check that what was read is a privacy record of this schema; see :func:`validate_run`."""
    return _validate(privacy, PrivacyRecord, name)


def validate_audit(audit: object, *, name: str = "audit.json") -> AuditRecord:
    """Check that what was read is an audit of this schema; see :func:`validate_run`."""
    return _validate(audit, AuditRecord, name)


def validate_sweep(sweep: object, *, name: str = "sweep.json") -> SweepRecord:
    """Check that what was read is a sweep of this schema; see :func:`validate_run`."""
    return _validate(sweep, SweepRecord, name)


def read_audit(folder: Path) -> AuditRecord | None:
    """The checked audit.json of a run folder, None where there is none."""
    if not (folder / "audit.json").exists():
        return None
    return validate_audit(_read(folder, "audit.json"), name=str(folder / "audit.json"))


def read_run(folder: Path) -> RunRecord:
    """The checked run.json of a run folder; errors as in :func:`validate_run`."""
    return validate_run(_read(folder, "run.json"), name=str(folder / "run.json"))


def read_privacy(folder: Path) -> PrivacyRecord:
    """The checked privacy.json of a run folder; errors as in :func:`validate_privacy`."""
    return validate_privacy(_read(folder, "privacy.json"), name=str(folder / "privacy.json"))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file that is either whole or not there.

    Raises:
        StorageError: The disk refuses; nothing has changed.
    """
    replace_text(path, dump_json(content))


def dump_json(content: Mapping[str, Any]) -> str:
    r"""JSON with stable numbers: 10 significant digits; NaN and infinity become null.

    Example:
        >>> dump_json({"uar": 0.1 + 0.2, "gap": float("nan")})
        '{\n "uar": 0.3,\n "gap": null\n}\n'
    """
    text = json.dumps(to_plain_json(content), ensure_ascii=False, indent=1, allow_nan=False)
    return clean_json(text) + "\n"


def to_plain_json(value: Any) -> Any:  # noqa: ANN401  (whatever a run may hold)
    """The same in JSON's own types: arrays as lists, 10 digits, NaN and infinity as None."""
    if isinstance(value, Mapping):
        return {str(key): to_plain_json(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return to_plain_json(value.tolist())
    if isinstance(value, list | tuple):
        return [to_plain_json(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.10g}") if math.isfinite(value) else None
    return value


def _read(folder: Path, name: str) -> object:
    """What a file of the run folder holds, unchecked."""
    path = folder / name
    try:
        content: object = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise SettingError(f"there is no {path}; name the folder that --out made") from None
    except OSError as error:
        raise SottovoceError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise MessageError(f"{path} is damaged: {error}; run the simulation again") from None
    return content


def _require_known_units(content: Json, name: str) -> None:
    """Refuse a unit that no scheme has, at the top or in a run's privacy section."""
    section = content.get("privacy")
    units = {"unit": content.get("unit")}
    if isinstance(section, dict):
        units["privacy.unit"] = section.get("unit")
    for path, unit in units.items():
        if unit is not None and unit not in unit_names():
            raise MessageError(
                f"{name} is damaged: at {path}: expected one of {', '.join(unit_names())}, found "
                f"{unit!r}"
            )


def _validate(content: object, record: type[Record], name: str) -> Record:
    """Schema first, then every key."""
    if not isinstance(content, dict) or "schema" not in content:
        raise MessageError(f'{name} is no file of Sottovoce: it holds no "schema"')
    schema = content["schema"]
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise MessageError(f"{name} is damaged: schema is {schema!r}, not a whole number from 1")
    if schema > SCHEMA_VERSION:
        raise MessageError(
            f"{name} has schema {schema}; this Sottovoce reads {SCHEMA_VERSION}: install a newer "
            "one"
        )
    if schema < SCHEMA_VERSION:
        raise MessageError(
            f"{name} has schema {schema}, of an earlier release; this Sottovoce reads "
            f"{SCHEMA_VERSION}: run the simulation again, or read it with the release that wrote it"
        )
    convert_record(content, record, name=name)
    _require_known_units(content, name)
    # What was read, and not what it was converted to: readers may look for keys of their own.
    return cast(Record, content)
