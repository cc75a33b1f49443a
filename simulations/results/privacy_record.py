"""From ledgers back to privacy.json: what was promised, by what noise, and what was spent."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from sottovoce.server.planning.noise_calibration import device_budgets, user_budget
from sottovoce.shared.privacy import accountant
from sottovoce.shared.privacy.ledger import Ledger, PrivacyBudget
from sottovoce.shared.privacy.release import PrivacyUnit, Release, ReleaseKind, SumMechanism
from sottovoce.shared.protocol.local_training import GradientMechanism
from sottovoce.shared.protocol.training_plan import Plan
from sottovoce.simulations.results.schema import (
    SCHEMA_VERSION,
    Guarantee,
    Json,
    PrivacyRecord,
    validate_privacy,
)
from sottovoce.simulations.scenario.scenario import Scenario

ASSUMPTIONS = (
    "Each device runs this code unchanged and its ledger covers its whole life.",
    (
        "In this simulation noise comes from a seed so that the run can be repeated; devices draw "
        "it from the operating system."
    ),
    "Public corpora hold no utterance of any user.",
    "Each fold is an experiment of its own: a real device would take part in one of them.",
)
NOT_PROTECTED = (
    "That a user takes part, and when.",
    "What is true of the whole population, whoever takes part.",
    "What the user's own screen shows, and the device itself.",
)


_DEVICE_NOISE_CLAIM = (
    "Devices bound and noise what they send as agreed; the server adds what their noise lacks, and "
    "releases nothing but what is computed from the noised sums."
)
_SERVER_NOISE_CLAIM = (
    "The server bounds every update, adds the noise that it booked, releases nothing but what is "
    "computed from the noised sums, and keeps what devices sent to itself."
)
_CORRELATED_NOISE_CLAIM = (
    "The server keeps the noise of the last rounds secret while the run lasts, and uses it once; "
    "devices refuse rounds nearer to each other than the minimum separation."
)
_COMMON = "What all of a user's utterances have in common"


def build_privacy_record(
    scenario: Scenario,
    plan: Plan,
    user_ledgers: Mapping[str, Mapping[str, Ledger]],
    server_ledgers: Mapping[str, Ledger],
) -> PrivacyRecord:
    """Content of privacy.json.

    Args:
        scenario: The settled scenario.
        plan: A plan of the run, for its clip and noise.
        user_ledgers: For every fold, every contributing user's ledger.
        server_ledgers: For every fold, the ledger of its sums; none where no sum hides a user.
    """
    first = next(iter(device_budgets(scenario)), None)
    user = user_budget(scenario)
    account = partial(_account, delta=scenario.delta)
    content = {
        "schema": SCHEMA_VERSION,
        "unit": scenario.unit,
        **_guarantee(plan, first),
        "sampling": _sampling(plan),
        **_participation(plan),
        "accountant": accountant.DISCRETE_ACCOUNTANT_NAME
        if scenario.secure
        else accountant.ACCOUNTANT_NAME,
        "statement": _statement(scenario, plan),
        "assumptions": [*ASSUMPTIONS, _tuning_note(scenario), *_user_assumptions(plan)],
        "not_protected": [*_unprotected(plan), *NOT_PROTECTED],
        **({"user": _guarantee(plan, user)} if scenario.unit == "both" else {}),
        **_tuning_cost(scenario, user_ledgers, server_ledgers),
        "folds": [
            {
                "name": name,
                "clients": {client: account(ledgers[client], first) for client in sorted(ledgers)},
                **(
                    {"server": account(server_ledgers[name], user)}
                    if name in server_ledgers
                    else {}
                ),
            }
            for name, ledgers in user_ledgers.items()
        ],
        "recompute": "sottovoce verify RUN",
    }
    return validate_privacy(content)


def _tuning_note(scenario: Scenario) -> str:
    """What choosing settings by looking at results adds."""
    if scenario.tuning_runs == 1:
        return "Choosing settings by looking at results would cost more; it is not counted here."
    return (
        f"Settings were chosen by {scenario.tuning_runs} runs, each like this one; what all of "
        "them cost together is given beside the cost of this one."
    )


def _tuning_cost(
    scenario: Scenario,
    user_ledgers: Mapping[str, Mapping[str, Ledger]],
    server_ledgers: Mapping[str, Ledger],
) -> Json:
    """What all runs that settings were chosen by cost together, if each was like this one.

    Plain composition: it holds however the best was chosen, and for a number fixed beforehand
    (Papernot & Steinke 2022 need a random one).
    """
    if scenario.tuning_runs == 1 or not scenario.is_private:
        return {}
    found: Json = {"runs": scenario.tuning_runs}
    for budget in device_budgets(scenario):
        ledgers = [ledger for clients in user_ledgers.values() for ledger in clients.values()]
        if budget.unit is PrivacyUnit.USER:
            ledgers = list(server_ledgers.values())
        found[budget.unit.value] = max(
            accountant.compute_epsilon(
                _repeat_releases(ledger.releases, scenario.tuning_runs),
                budget.delta,
                unit=budget.unit,
            )
            for ledger in ledgers
        )
    return {"tuned": found}


def _repeat_releases(releases: Sequence[Release], times: int) -> list[Release]:
    """The releases of so many runs, each with independent noise."""
    return [replace(one, run=f"{one.run}/{number}") for number in range(times) for one in releases]


def _guarantee(plan: Plan, budget: PrivacyBudget | None) -> Guarantee:
    """What one unit is promised, and by what noise."""
    unit = budget.unit if budget else PrivacyUnit.UTTERANCE
    noise: SumMechanism | GradientMechanism | None = plan.mechanism if budget else None
    if unit is PrivacyUnit.USER and plan.user:
        noise = plan.user.update
    return {
        "epsilon": budget.epsilon if budget else None,
        "delta": budget.delta if budget else None,
        "neighbouring": accountant.NEIGHBOURING_RELATIONS[unit],
        "noise_multiplier": noise.noise_multiplier if noise else None,
        "clip_norm": noise.clip_norm if noise else None,
    }


def _participation(plan: Plan) -> Json:
    """Participation groups and correlated noise, for programs; nothing where there are none."""
    if plan.banded_noise is None:
        return {}
    return {
        "participation": {
            "rounds": plan.rounds,
            "spacing": plan.banded_noise.min_separation,
            "most": plan.banded_noise.max_participations(plan.rounds),
            "bands": plan.banded_noise.band_count,
            "coefficients": list(plan.banded_noise.coefficients),
        }
    }


def _account(ledger: Ledger, budget: PrivacyBudget | None, delta: float) -> Json:
    """One ledger's account, with its epsilon for the budget's unit."""
    delta = budget.delta if budget else delta
    unit = budget.unit if budget else PrivacyUnit.UTTERANCE
    releases: list[Json] = []
    so_far: list[Release] = []
    for release in ledger.releases:
        so_far.append(release)
        spent = accountant.compute_epsilon(so_far, delta, unit=unit, fast=True)
        releases.append(_line(release, unit, spent))
    spent = ledger.epsilon_spent(delta, unit)
    limit = budget.epsilon if budget and math.isfinite(spent) else None
    return {
        "epsilon": spent if limit else None,
        "delta": delta,
        "budget": {"epsilon": limit, "delta": delta},
        "remaining": max(limit - spent, 0.0) if limit else None,
        "rounds": sum(release.kind is ReleaseKind.GRADIENT for release in ledger.releases),
        "ledger_sha256": ledger.head_hash,
        "releases": releases,
    }


def _line(release: Release, unit: PrivacyUnit, spent: float) -> Json:
    """One release, as it concerns one unit."""
    user = release.user if unit is PrivacyUnit.USER else None
    return {
        "kind": release.kind.value,
        "mechanism": release.mechanism.value,
        "round": release.round,
        "noise_multiplier": user.noise_multiplier if user else release.noise_multiplier,
        "sample_rate": user.sample_rate if user else release.sample_rate,
        "steps": user.sums if user else release.steps,
        "clip_norm": user.clip_norm if user else release.sensitivity,
        **({"noised_by": user.noised_by.value} if user else {}),
        **_correlation_fields(user),
        "epsilon_after": spent if math.isfinite(spent) else None,
    }


def _correlation_fields(user: SumMechanism | None) -> Json:
    """What the composition of rounds under correlated noise depends on."""
    if user is None or user.bands is None:
        return {}
    return {"bands": user.bands.band_count, "spacing": user.bands.min_separation}


def _sampling(plan: Plan) -> str:
    """How utterances come into a step and users into a round, in words."""
    users = "every device in every round"
    if plan.user and plan.samples_users:
        users = f"Poisson, each device with rate {plan.user.update.sample_rate:g} in every round"
    if plan.banded_noise:
        users = (
            "participation groups, each device in one of "
            f"{plan.banded_noise.min_separation} rounds and in at most "
            f"{plan.banded_noise.max_participations(plan.rounds)} of {plan.rounds}"
        )
    if plan.training.sample_rate == 1.0:
        return f"every utterance in every step (rate 1); {users}"
    return f"Poisson, each utterance with rate {plan.training.sample_rate:g} in every step; {users}"


def _statement(scenario: Scenario, plan: Plan) -> str:
    """The promise in words."""
    if not scenario.is_private:
        return (
            "No privacy guarantee: this run was asked to protect nothing, and every release is "
            "booked as unprotected."
        )
    parts = []
    if scenario.hides_utterances:
        parts.append(
            "Whatever a device sent in this run changes by a factor of at most "
            f"e^{scenario.epsilon:g} in probability (but for a chance of {scenario.delta:g}) when "
            "one utterance of its user is added or removed. Unit: utterance. This holds against "
            "anyone who sees what the device sends, the server included. It covers label counts, "
            f"centre, the normaliser that training uses, {plan.rounds} rounds of gradients"
            f"{_calibration_note(plan)}."
        )
    if scenario.hides_users:
        parts.append(
            "Whatever the server released of this run, all models included, changes by a factor of "
            f"at most e^{scenario.epsilon:g} in probability (but for a chance of "
            f"{scenario.user_delta:g}) when everything that one user has is added or removed. "
            f"Unit: user. This holds {_adversary(plan)}. It covers the sums of label counts, of "
            f"the centre and of {plan.rounds} rounds of updates{_calibration_note(plan)}."
            f"{_correlated_mechanism(plan)}"
        )
    return " ".join(parts)


def _correlated_mechanism(plan: Plan) -> str:
    """The mechanism of the rounds, where there are participation groups."""
    if plan.banded_noise is None:
        return ""
    bands, most = plan.banded_noise, plan.banded_noise.max_participations(plan.rounds)
    noise = f"correlated over {bands.band_count} rounds (banded matrix factorisation)"
    if bands.band_count == 1:
        noise = "independent in each round"
    return (
        f" Each user trains in at most {most} of the rounds, at least {bands.min_separation} "
        f"rounds from one to the next, and the noise is {noise}; all rounds are one Gaussian "
        f"mechanism, in which the contributions of a user's {most} rounds are orthogonal."
    )


def _calibration_note(plan: Plan) -> str:
    """What is released after the last round, where anything is."""
    return ", and the head statistics" if plan.calibration else ""


def _adversary(plan: Plan) -> str:
    """Whom the promise to users holds against."""
    if plan.user and plan.user.secure:
        return (
            "against anyone who sees the models or what the devices send, the server included: "
            "sums are made by secure aggregation, with every device's share of the noise in them"
        )
    return (
        "against those who see the models, not against the server, which sees each device's own "
        "reply"
    )


def _user_assumptions(plan: Plan) -> tuple[str, ...]:
    """What the promise to users rests on besides."""
    if plan.user is None:
        return ()
    if plan.user.secure:
        who = (
            f"In a sum of at least {plan.user.secure.update.quorum} devices, at most "
            f"{plan.user.secure.dishonest} side with the server; identities that devices pinned "
            "are the users' own; the server follows the protocol of secure aggregation, and "
            "remembers all that it sees."
        )
        return (who,)
    if plan.utterance_level:
        return (_DEVICE_NOISE_CLAIM,)
    if plan.banded_noise:
        return (_SERVER_NOISE_CLAIM, _CORRELATED_NOISE_CLAIM)
    return (_SERVER_NOISE_CLAIM,)


def _unprotected(plan: Plan) -> tuple[str, ...]:
    """What this plan's units leave open, beside what no plan protects."""
    if plan.user and plan.user.secure:
        return ()
    if plan.privacy_unit == "user":
        return ("Each user's own update, against the server that noises the sum.",)
    if plan.user is None:
        return (f"{_COMMON}: the promise is for one utterance at a time.",)
    return (f"{_COMMON}, against the server: its promise is for one utterance at a time.",)
