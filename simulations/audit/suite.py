"""All attacks on a run: once as it was run, and once with its privacy switched off."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Final

import torch

from sottovoce.shared import validation
from sottovoce.shared.errors import SettingError
from sottovoce.shared.models.examples import Examples
from sottovoce.shared.privacy.release import PrivacyUnit
from sottovoce.simulations.audit import (
    canary,
    gender_inference,
    gradient_inversion,
    membership_inference,
    one_run,
    speaker_identification,
)
from sottovoce.simulations.audit.adversary_view import threat_model
from sottovoce.simulations.audit.audited_fold import AuditedFold, open_audited_folds
from sottovoce.simulations.audit.device_under_test import Transcript, with_exact_normaliser
from sottovoce.simulations.reports import render_pages
from sottovoce.simulations.results.schema import (
    SCHEMA_VERSION,
    AuditRecord,
    Json,
    read_run,
    to_plain_json,
    validate_audit,
    write_json,
)

OnMessage = Callable[[str], None]
OnProgress = Callable[[str, int, int], None]

CONFIDENCE = 0.95
ASSUMPTION_FREE_ATTACKS: Final = (
    "many_run",
    "first_message",
    "last_message",
    "one_run",
    "one_run_f_dp",
    "many_run_user",
)
"""Attacks that bound epsilon without any assumption; they share the error probability."""

GAUSSIAN_ATTACKS: Final = (
    "many_run",
    "first_message",
    "last_message",
    "one_run_f_dp",
    "summed_scores",
    "many_run_user",
)
"""Attacks that bound it if the mechanism is a Gaussian one; as many, they share it likewise."""


MAX_TRIALS: Final = 1_000_000
"""Most trials with, and without, the canary; their scores are held in memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditSettings:
    """Sizes of the attacks: numbers of trials, canaries, users and folds.

    Attributes:
        trials: Trials with, and as many without, the canary; at least 20.
        noiseless_trials: The same without noise, and for the attack on an exact normaliser.
        first_message_trials: Trials that end with the first message.
        noiseless_first_message_trials: The same without noise.
        last_message_trials: Trials of which only the last message is used.
        canaries: Most canaries of one device in the one-run audit.
        canary_devices: How many devices hold them.
        noiseless_canary_devices: The same without noise.
        max_rounds: Most rounds of a trial with canaries or members.
        attacked_devices: Users whose utterances are attacked.
        shadow_trials: The attacker's own trials of each.
        membership_trials: Trials that it scores.
        shadow_trainings: The attacker's own trainings with half of the users.
        scored_trainings: Trainings that it scores.
        attribute_trials: Trials of each user whose gender or name is inferred.
        user_level_attribute_trials: The same where only noised sums are seen, which carry little
            information each.
        user_level_gender_trials: The same for gender: the noise is nearly all in the sums.
        sums_per_trial: How often each such trial goes into sums with fresh noise.
        max_public_speakers: Public speakers that the attacker trains on.
        max_gender_folds: Folds whose users' gender is inferred.
    """

    trials: int = 400
    noiseless_trials: int = 150
    first_message_trials: int = 10_000
    noiseless_first_message_trials: int = 150_000
    last_message_trials: int = 10_000
    canaries: int = 512
    canary_devices: int = 400
    noiseless_canary_devices: int = 40
    max_rounds: int = 10_000
    attacked_devices: int = 2
    shadow_trials: int = 32
    membership_trials: int = 16
    shadow_trainings: int = 16
    scored_trainings: int = 12
    attribute_trials: int = 3
    user_level_attribute_trials: int = 12
    user_level_gender_trials: int = 4
    sums_per_trial: int = 30
    max_public_speakers: int = 40
    max_gender_folds: int = 10

    def __post_init__(self) -> None:
        # With fewer, the threshold is fitted on a handful and no bound is above 0.
        validation.require_count(20, MAX_TRIALS, trials=self.trials)


def _noiseless_settings(settings: AuditSettings) -> AuditSettings:
    """Without noise few trials suffice; the first message alone needs very many."""
    return replace(
        settings,
        trials=min(settings.trials, settings.noiseless_trials),
        first_message_trials=settings.noiseless_first_message_trials,
        canary_devices=settings.noiseless_canary_devices,
    )


_LARGE_MODEL = 20_000
"""Number of weights from which a trial takes seconds."""


def _large_model_settings(settings: AuditSettings) -> AuditSettings:
    """The same for large models, whose trials take long."""
    return replace(
        settings,
        trials=min(settings.trials, 60),
        noiseless_trials=60,
        canaries=64,
        canary_devices=20,
        noiseless_canary_devices=20,
        max_rounds=4,
        attacked_devices=1,
        shadow_trainings=8,
        scored_trainings=6,
        attribute_trials=1,
        user_level_attribute_trials=1,
        user_level_gender_trials=1,
        max_public_speakers=20,
        max_gender_folds=1,
    )


def audit_run(
    run_folder: Path,
    *,
    seed: int = 0,
    settings: AuditSettings = AuditSettings(),
    on_message: OnMessage = lambda _line: None,
    on_progress: OnProgress = lambda _what, _done, _total: None,
) -> AuditRecord:
    """Attack a run, write the audit and render the pages again.

    Writes ``audit.json``, adds the lower bound to ``run.json`` and renders both pages.

    Args:
        run_folder: The folder that ``simulate --out`` made.
        seed: Decides canaries, membership and noise; the same seed gives the same figures.
        settings: Sizes of the attacks; the more trials, the tighter the bounds.
        on_message: Takes a line about what was found.
        on_progress: Takes (what, done, total).

    Returns:
        Content of audit.json.

    Raises:
        SettingError: No run there, or one that cannot be attacked.
        SottovoceError: Corpora or models that are gone; each with its way out.
    """
    torch.set_num_threads(1)  # a second thread changes the order of sums, and with it the result
    validation.require_non_negative(seed=seed)
    run = read_run(run_folder)
    if "population" in run:
        raise SettingError(
            f"{run_folder} is a run over a population; audits attack runs over a corpus's "
            "speakers: run the same unit and recipe without a population, and audit that"
        )
    cases = open_audited_folds(
        run_folder, on_message, on_progress, max_folds=settings.max_gender_folds
    )
    found = audit_folds(cases, settings, seed=seed, on_message=on_message, on_progress=on_progress)
    # Validated before anything is written: a faulty audit leaves the run as it was.
    content = validate_audit(to_plain_json(found))
    write_json(run_folder / "audit.json", content)
    run["privacy"]["audit"] = {"epsilon_lower": content["epsilon_lower"]}
    write_json(run_folder / "run.json", run)
    render_pages(run_folder)
    return content


def audit_folds(
    audited_folds: Sequence[AuditedFold],
    settings: AuditSettings,
    *,
    seed: int,
    on_message: OnMessage = lambda _line: None,
    on_progress: OnProgress = lambda _what, _done, _total: None,
) -> Json:
    """Attack a run's folds and build the content of audit.json; only gender uses all folds.

    Args:
        audited_folds: At least one; the first is attacked in every way.
        settings: Sizes of the attacks.
        seed: Decides canaries, membership and noise.
        on_message: Takes a line with the expected duration, and one at each stage.
        on_progress: Takes (what, done, total).
    """
    case, size = audited_folds[0], _settings_for_model(audited_folds[0], settings)
    target, transcript = case.scenario.privacy, case.transcript
    scheme = case.scenario.privacy_scheme
    attacks_normaliser = bool(scheme.has_private_messages and transcript.plan.normaliser)
    stages = _Stages(_count_stages(case, size) + attacks_normaliser, on_message, on_progress)
    minutes = _estimate_minutes(audited_folds, size, seed)
    on_message(f"{stages.total} stages, in all about {minutes} min on this machine")
    attacks = {
        way: _run_attacks(one, one_size, seed, stages.named(_WAYS[way]))
        for way, one, one_size in _variants(case, size)
    }
    content = {
        "schema": SCHEMA_VERSION,
        "unit": target.unit,
        "delta": target.delta_for(scheme.account_unit),
        "seed": seed,
        "confidence": CONFIDENCE,
        "fold": case.name,
        "users": len(case.users),
        "rounds": len(transcript.weights),
        "threat_model": threat_model(scheme),
        **_verdict(attacks["as_run"], target.epsilon if scheme.promised else None),
        "attacks": {
            way: found | _inferred_genders(audited_folds, way, size, seed, stages.named(_WAYS[way]))
            for way, found in attacks.items()
        },
    }
    if attacks_normaliser:
        stages.named(_WAYS["as_run"])
        content["exact_normaliser_attack"] = _exact_normaliser_attack(case, size, seed, stages)
    return content


_WAYS = {"as_run": "this run", "noise_off": "privacy off"}


class _Stages:
    """The stages of an audit, each announced when it begins.

    Args:
        total: How many there are.
        on_message: Takes a line for each.
        on_progress: Takes (what, done, total) within one.
    """

    def __init__(self, total: int, on_message: OnMessage, on_progress: OnProgress) -> None:
        self.total = total
        self._on_message, self._on_progress = on_message, on_progress
        self._begun = 0
        self._whose = ""

    def named(self, whose: str) -> "_Stages":
        """Say in the next stages which variant they attack."""
        self._whose = f" ({whose})"
        return self

    def begin(self, what: str) -> OnProgress:
        """Announce a stage; what is returned reports the progress within it."""
        self._begun += 1
        place = f"stage {self._begun} of {self.total}"
        self._on_message(f"{place}: {what}{self._whose}")
        return lambda task, done, total: self._on_progress(f"{place}, {task}", done, total)


_STAGES_BY_UNIT = {PrivacyUnit.UTTERANCE: 5, PrivacyUnit.USER: 1}
"""Four bounds and the membership of utterances; the bound on a user."""

_COMMON_STAGES = 4
"""Membership of users, names, features and gender."""


def _count_stages(case: AuditedFold, settings: AuditSettings) -> int:
    """How many stages the attacks on all variants have."""
    return sum(
        _COMMON_STAGES
        + sum(_STAGES_BY_UNIT[unit] for unit in one.transcript.plan.scheme.audited_units)
        for _, one, _ in _variants(case, settings)
    )


def _estimate_minutes(cases: Sequence[AuditedFold], settings: AuditSettings, seed: int) -> int:
    """Expected duration in minutes, at least 1, from one trial: nearly all of it is trials."""
    case, started = cases[0], monotonic()
    canary.collect_statistics(case.transcript, _first_examples(case), trials=1, seed=seed)
    trial_s = (monotonic() - started) / 2
    users = len(case.users)
    trials = 0.0
    for _, one, own in _variants(case, settings):
        trials += 2 * own.trials
        if PrivacyUnit.UTTERANCE in one.transcript.plan.scheme.audited_units:
            trials += own.canary_devices
        trials += own.attacked_devices * (own.shadow_trials + own.membership_trials)
        trials += (own.shadow_trainings + own.scored_trainings) * users / 2
        trials += own.attribute_trials * users
        trials += own.attribute_trials * len(cases) * (users + own.max_public_speakers)
    return max(1, round(trials * trial_s / 60))


def _settings_for_model(case: AuditedFold, settings: AuditSettings) -> AuditSettings:
    """What is tried on a model of this size."""
    return (
        settings
        if len(case.transcript.weights[0]) < _LARGE_MODEL
        else _large_model_settings(settings)
    )


def _variants(
    case: AuditedFold, settings: AuditSettings
) -> Iterator[tuple[str, AuditedFold, AuditSettings]]:
    """As it was run, and with its privacy switched off where it has any."""
    private = case.scenario.privacy_scheme.promised
    yield "as_run", case, settings if private else _noiseless_settings(settings)
    if private:
        yield "noise_off", case.without_noise(), _noiseless_settings(settings)


def repeat_gender_inference(
    run_folder: Path,
    audit: AuditRecord,
    *,
    settings: AuditSettings = AuditSettings(),
    on_message: OnMessage = lambda _line: None,
    on_progress: OnProgress = lambda _what, _done, _total: None,
) -> AuditRecord:
    """Repeat the gender inference on the run as it was; all else of the audit stays.

    Args:
        run_folder: The run that was attacked.
        audit: Content of its audit.json; its seed is used again.
        settings: Sizes of the attacks.
        on_message: Takes a line about what was found.
        on_progress: Takes (what, done, total).

    Raises:
        SettingError: No run there.
        SottovoceError: Corpora or models that are gone; each with its way out.
    """
    # As in audit_run: sums in another order would give other figures.
    torch.set_num_threads(1)
    cases = open_audited_folds(
        run_folder, on_message, on_progress, max_folds=settings.max_gender_folds
    )
    size, seed = _settings_for_model(cases[0], settings), int(audit["seed"])
    stages = _Stages(1, on_message, on_progress)
    found = _inferred_genders(cases, "as_run", size, seed, stages)
    attacks = audit["attacks"] | {"as_run": audit["attacks"]["as_run"] | found}
    return validate_audit(to_plain_json({**audit, "attacks": attacks}))


def _verdict(found: Json, claim: float | None) -> Json:
    """The tightest lower bounds, and whether the claim holds against them."""
    lower = max(found[name]["epsilon"] for name in ASSUMPTION_FREE_ATTACKS if name in found)
    gaussian = max(found[name]["epsilon_gaussian"] for name in GAUSSIAN_ATTACKS if name in found)
    return {
        "epsilon": claim,
        "epsilon_lower": lower,
        "epsilon_lower_gaussian": gaussian,
        # The claim is that of a Gaussian mechanism: one that passes it as such is not what it says.
        "holds": claim is None or max(lower, gaussian) <= claim,
    }


def _split_confidence(share: int) -> float:
    """Confidence of one of several bounds that hold together at ``CONFIDENCE``."""
    # Bonferroni: the errors of all bounds add up to the whole.
    return 1 - (1 - CONFIDENCE) / share


def _run_attacks(case: AuditedFold, settings: AuditSettings, seed: int, stages: _Stages) -> Json:
    """Every attack on one case."""
    return {
        **_epsilon_bounds(case, settings, seed, stages),
        "membership": _membership(case, settings, seed, stages),
        **_identified_speakers(case, settings, seed, stages),
        "inversion": _inverted_gradients(case, seed, stages),
    }


def _epsilon_bounds(case: AuditedFold, settings: AuditSettings, seed: int, stages: _Stages) -> Json:
    """Lower bounds on every epsilon that the plan promises; on an utterance's where on none."""
    transcript = _first_rounds(case.transcript, settings)
    found: Json = {}
    for unit in case.transcript.plan.scheme.audited_units:
        found |= _BOUNDS[unit](case, transcript, settings, seed, stages)
    return found


def _user_bounds(
    case: AuditedFold,
    transcript: Transcript,
    settings: AuditSettings,
    seed: int,
    stages: _Stages,
) -> Json:
    """A bound on a user's epsilon, from the sums that the device goes into."""
    statistics = canary.collect_statistics(
        transcript,
        _first_examples(case),
        trials=settings.trials,
        seed=seed,
        user_level=True,
        on_progress=stages.begin("epsilon of a user, by canaries"),
    )
    bound = canary.bound_epsilon(
        statistics[0],
        statistics[1],
        delta=case.scenario.privacy.user_delta,
        confidence=_split_confidence(len(ASSUMPTION_FREE_ATTACKS)),
    )
    return {"many_run_user": asdict(bound)}


def _utterance_bounds(
    case: AuditedFold,
    transcript: Transcript,
    settings: AuditSettings,
    seed: int,
    stages: _Stages,
) -> Json:
    """Every way to bound an utterance's epsilon; the server sees all that the device sends."""
    own = _first_examples(case)
    how = {
        "delta": case.scenario.privacy.delta,
        "confidence": _split_confidence(len(ASSUMPTION_FREE_ATTACKS)),
    }
    statistics = canary.collect_statistics(
        transcript,
        own,
        trials=settings.trials,
        seed=seed,
        on_progress=stages.begin("epsilon of an utterance, by canaries"),
    )
    stages.begin("epsilon of the first message")
    first = canary.bound_first_message(
        transcript, trials=settings.first_message_trials, seed=seed, **how
    )
    stages.begin("epsilon of the last message")
    last = canary.bound_last_message(
        transcript, trials=settings.last_message_trials, seed=seed, **how
    )
    one = one_run.audit_one_run(
        transcript,
        canaries=settings.canaries,
        devices=settings.canary_devices,
        seed=seed,
        on_progress=stages.begin("epsilon from one run with many canaries"),
        **how,
    )
    return {
        "many_run": asdict(canary.bound_epsilon(statistics[0], statistics[1], **how)),
        "first_message": asdict(first),
        **({"last_message": asdict(last)} if last else {}),
        **one.to_records(),
    }


_BOUNDS = {PrivacyUnit.UTTERANCE: _utterance_bounds, PrivacyUnit.USER: _user_bounds}


def _exact_normaliser_attack(
    case: AuditedFold, settings: AuditSettings, seed: int, stages: _Stages
) -> Json:
    """Lower bound where training uses the user's exact mean, which no ledger booked."""
    transcript = with_exact_normaliser(_first_rounds(case.transcript, settings))
    statistics = canary.collect_statistics(
        transcript,
        _first_examples(case),
        trials=settings.noiseless_trials,
        seed=seed,
        on_progress=stages.begin("an exact normaliser, by canaries"),
    )
    how = {"delta": case.scenario.privacy.delta, "confidence": CONFIDENCE}
    return asdict(canary.bound_epsilon(statistics[0], statistics[1], **how))


def _membership(case: AuditedFold, settings: AuditSettings, seed: int, stages: _Stages) -> Json:
    """Membership of utterances on devices, and of users in trainings."""
    people = [person.examples for person in case.users.values()]
    # Under user-level privacy the server sees no single device: utterances cannot be attacked
    # there.
    found: Json = {}
    if PrivacyUnit.UTTERANCE in case.transcript.plan.scheme.audited_units:
        utterances = membership_inference.attack_utterances(
            _first_rounds(case.transcript, settings),
            people[: settings.attacked_devices],
            shadows=settings.shadow_trials,
            trials=settings.membership_trials,
            seed=seed,
            on_progress=stages.begin("membership of utterances"),
        )
        found["utterance"] = asdict(utterances)
    users = membership_inference.attack_users(
        case.transcript,
        people,
        case.scenario.recipe.aggregation,
        shadows=settings.shadow_trainings,
        trials=settings.scored_trainings,
        seed=seed,
        on_progress=stages.begin("membership of users"),
    )
    return found | {"user": asdict(users)}


def _identified_speakers(
    case: AuditedFold, settings: AuditSettings, seed: int, stages: _Stages
) -> Json:
    """Who is named behind a device."""
    stages.begin("names of speakers")
    rounds = _observed_rounds(len(case.transcript.weights))
    repeats = (
        settings.user_level_attribute_trials
        if case.transcript.plan.scheme.has_private_sums
        else settings.attribute_trials
    )
    named = speaker_identification.identify_speakers(
        case.transcript, case.users, rounds, repeats=repeats, seed=seed
    )
    return {"speaker": _by_round(named)}


def _inferred_genders(
    audited_folds: Sequence[AuditedFold],
    way: str,
    settings: AuditSettings,
    seed: int,
    stages: _Stages,
) -> Json:
    """Gender over all folds, where the corpus knows two of their users."""
    on_progress = stages.begin("gender, over all folds")
    chosen = [
        one for case in audited_folds for name, one, _ in _variants(case, settings) if name == way
    ]
    return gender_inference.infer_genders(
        chosen,
        _observed_rounds(len(audited_folds[0].transcript.weights)),
        trials=settings.user_level_gender_trials
        if chosen[0].transcript.plan.scheme.has_private_sums
        else settings.attribute_trials,
        sums_per_trial=settings.sums_per_trial,
        max_public_speakers=settings.max_public_speakers,
        seed=seed,
        on_progress=on_progress,
    )


def _observed_rounds(rounds: int) -> list[int]:
    """After how many rounds the attacker looks: the first, ten, all."""
    return sorted({1, min(10, rounds), rounds})


def _by_round(found: dict[int, dict[str, float]]) -> Json:
    """Rounds as JSON's keys."""
    return {str(number): value for number, value in found.items()}


def _inverted_gradients(case: AuditedFold, seed: int, stages: _Stages) -> Json:
    """Cosine between features and what is read off an update, by batch."""
    stages.begin("features from updates")
    people = [person.examples for person in case.users.values()]
    linear = case.transcript.plan.model.kind == "linear"
    batches = (1, gradient_inversion.SMALL_BATCH) if linear else (1,)
    return {
        str(batch): gradient_inversion.invert_gradients(
            case.transcript, people, batch=batch, seed=seed, rounds=rounds
        )
        for rounds in (min(16, len(case.transcript.weights)),)
        for batch in batches
    }


def _first_examples(case: AuditedFold) -> Examples:
    """The utterances of the device that is looked at."""
    for person in case.users.values():
        return person.examples
    raise SettingError(f"{case.name} has no user who trained; nothing can be attacked")


def _first_rounds(transcript: Transcript, settings: AuditSettings) -> Transcript:
    """The first rounds of a transcript."""
    return replace(transcript, weights=list(transcript.weights)[: settings.max_rounds])
