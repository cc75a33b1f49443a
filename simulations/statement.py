"""From ledgers back to privacy.json: what was promised, by what noise, and what was spent."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from sottovoce.shared.plan import Plan
from sottovoce.shared.privacy import accountant
from sottovoce.shared.privacy.ledger import Budget, Ledger
from sottovoce.shared.privacy.release import Kind, Release, Unit, UserNoise
from sottovoce.shared.training import Mechanism as Protection
from sottovoce.simulations.promise import budgets, user_budget
from sottovoce.simulations.runfile import Json
from sottovoce.simulations.scenario import Scenario

ASSUMPTIONS = (
    "Each device runs this code unchanged and its ledger covers its whole life.",
    (
        "In this simulation noise comes from a seed so that the run can be repeated; devices draw "
        "it from the operating system."
    ),
    "Public corpora hold no utterance of any user.",
    "Each fold is a world of its own: a real device would live through one of them.",
)
NOT_PROTECTED = (
    "That a user takes part, and when.",
    "What is true of the whole population, whoever takes part.",
    "What the user's own screen shows, and the device itself.",
)


_DEVICES_NOISE = (
    "Devices bound and noise what they send as agreed; the server adds what their noise lacks, and "
    "lets out nothing but what is computed from the noised sums."
)
_SERVER_NOISES = (
    "The server bounds every update, adds the noise that it booked, lets out nothing but what is "
    "computed from the noised sums, and keeps what devices sent to itself."
)
_TURNS_HOLD = (
    "The server keeps the noise of the last rounds secret while the run lasts, and uses it once; "
    "devices refuse rounds nearer than the spacing."
)
_COMMON = "What all of a user's utterances have in common"


def privacy_file(
    scenario: Scenario,
    plan: Plan,
    worlds: Mapping[str, Mapping[str, Ledger]],
    servers: Mapping[str, Ledger],
) -> Json:
    """Content of privacy.json.

    Args:
        scenario: The settled scenario.
        plan: A plan of the run, for its clip and noise.
        worlds: For every fold, every contributing user's ledger.
        servers: For every fold, the ledger of its sums; none where no sum hides a user.
    """
    first = next(iter(budgets(scenario)), None)
    user = user_budget(scenario)
    account = partial(_account, delta=scenario.delta)
    return {
        "schema": 1,
        "unit": scenario.unit,
        **_terms(plan, first),
        "sampling": _sampling(plan),
        **_turns(plan),
        "accountant": accountant.DISCRETE_NAME if scenario.secure else accountant.NAME,
        "statement": _statement(scenario, plan),
        "assumptions": [*ASSUMPTIONS, _tuning(scenario), *_user_assumptions(plan)],
        "not_protected": [*_unprotected(plan), *NOT_PROTECTED],
        **({"user": _terms(plan, user)} if scenario.unit == "both" else {}),
        **_tuned(scenario, worlds, servers),
        "worlds": [
            {
                "name": name,
                "clients": {client: account(kept[client], first) for client in sorted(kept)},
                **({"server": account(servers[name], user)} if name in servers else {}),
            }
            for name, kept in worlds.items()
        ],
        "recompute": "sottovoce budget RUN",
    }


def _tuning(scenario: Scenario) -> str:
    """What choosing settings by looking at results adds."""
    if scenario.tuned_over == 1:
        return "Choosing settings by looking at results would cost more; it is not counted here."
    return (
        f"Settings were chosen by {scenario.tuned_over} runs, each like this one; what all of them "
        "cost together is told beside the price of this one."
    )


def _tuned(
    scenario: Scenario,
    worlds: Mapping[str, Mapping[str, Ledger]],
    servers: Mapping[str, Ledger],
) -> Json:
    """What all runs that settings were chosen by cost together, if each was like this one.

    Plain composition: it holds however the best was chosen, and for a number fixed beforehand
    (Papernot & Steinke 2022 need a random one).
    """
    if scenario.tuned_over == 1 or not scenario.private:
        return {}
    found: Json = {"runs": scenario.tuned_over}
    for budget in budgets(scenario):
        kept = [ledger for clients in worlds.values() for ledger in clients.values()]
        if budget.unit is Unit.USER:
            kept = list(servers.values())
        found[budget.unit.value] = max(
            accountant.epsilon(
                _repeated(ledger.releases, scenario.tuned_over), budget.delta, unit=budget.unit
            )
            for ledger in kept
        )
    return {"tuned": found}


def _repeated(releases: Sequence[Release], times: int) -> list[Release]:
    """What so many runs let out, each with noise of its own."""
    return [replace(one, run=f"{one.run}/{number}") for number in range(times) for one in releases]


def _terms(plan: Plan, budget: Budget | None) -> Json:
    """What one unit is promised, and by what noise."""
    unit = budget.unit if budget else Unit.UTTERANCE
    noise: UserNoise | Protection | None = plan.mechanism if budget else None
    if unit is Unit.USER and plan.user:
        noise = plan.user.update
    return {
        "epsilon": budget.epsilon if budget else None,
        "delta": budget.delta if budget else None,
        "neighbouring": accountant.NEIGHBOURING[unit],
        "noise_multiplier": noise.noise_multiplier if noise else None,
        "clip_norm": noise.clip_norm if noise else None,
    }


def _turns(plan: Plan) -> Json:
    """How users take turns and noise hangs together, for programs; nothing where they do not."""
    if plan.bands is None:
        return {}
    return {
        "participation": {
            "rounds": plan.rounds,
            "spacing": plan.bands.spacing,
            "most": plan.bands.most(plan.rounds),
            "bands": plan.bands.count,
            "coefficients": list(plan.bands.coefficients),
        }
    }


def _account(ledger: Ledger, budget: Budget | None, delta: float) -> Json:
    """One ledger's line, priced for the budget's unit."""
    delta = budget.delta if budget else delta
    unit = budget.unit if budget else Unit.UTTERANCE
    releases: list[Json] = []
    so_far: list[Release] = []
    for release in ledger.releases:
        so_far.append(release)
        spent = accountant.epsilon(so_far, delta, unit=unit, fast=True)
        releases.append(_line(release, unit, spent))
    spent = ledger.epsilon(delta, unit)
    limit = budget.epsilon if budget and math.isfinite(spent) else None
    return {
        "epsilon": spent if limit else None,
        "delta": delta,
        "budget": {"epsilon": limit, "delta": delta},
        "remaining": max(limit - spent, 0.0) if limit else None,
        "rounds": sum(release.kind is Kind.GRADIENT for release in ledger.releases),
        "ledger_sha256": ledger.head,
        "releases": releases,
    }


def _line(release: Release, unit: Unit, spent: float) -> Json:
    """One release, as it concerns one unit."""
    user = release.user if unit is Unit.USER else None
    return {
        "kind": release.kind.value,
        "mechanism": release.mechanism.value,
        "round": release.round,
        "noise_multiplier": user.noise_multiplier if user else release.noise_multiplier,
        "sample_rate": user.sample_rate if user else release.sample_rate,
        "steps": user.sums if user else release.steps,
        "clip_norm": user.clip_norm if user else release.sensitivity,
        **({"noised_by": user.noised_by.value} if user else {}),
        **_apart(user),
        "epsilon_after": spent if math.isfinite(spent) else None,
    }


def _apart(user: UserNoise | None) -> Json:
    """What makes rounds under noise that hangs together add up."""
    if user is None or user.bands is None:
        return {}
    return {"bands": user.bands.count, "spacing": user.bands.spacing}


def _sampling(plan: Plan) -> str:
    """How utterances come into a step and users into a round, in words."""
    users = "every device in every round"
    if plan.user and plan.sampled:
        users = f"Poisson, each device with rate {plan.user.update.sample_rate:g} in every round"
    if plan.bands:
        users = (
            f"users take turns, each device in one of {plan.bands.spacing} rounds and in at most "
            f"{plan.bands.most(plan.rounds)} of {plan.rounds}"
        )
    if plan.training.sample_rate == 1.0:
        return f"every utterance in every step (rate 1); {users}"
    return f"Poisson, each utterance with rate {plan.training.sample_rate:g} in every step; {users}"


def _statement(scenario: Scenario, plan: Plan) -> str:
    """The promise in words."""
    if not scenario.private:
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
            f"{_answers(plan)}."
        )
    if scenario.hides_users:
        parts.append(
            "Whatever the server let out of this run, all models included, changes by a factor of "
            f"at most e^{scenario.epsilon:g} in probability (but for a chance of "
            f"{scenario.user_delta:g}) when everything that one user has is added or removed. "
            f"Unit: user. This holds {_against(plan)}. It covers the sums of label counts, of the "
            f"centre and of {plan.rounds} rounds of updates{_answers(plan)}.{_hanging(plan)}"
        )
    return " ".join(parts)


def _hanging(plan: Plan) -> str:
    """The mechanism of the rounds, where users take turns."""
    if plan.bands is None:
        return ""
    bands, most = plan.bands, plan.bands.most(plan.rounds)
    noise = f"hangs together over {bands.count} rounds (banded matrix factorisation)"
    if bands.count == 1:
        noise = "is each round's own"
    return (
        f" Users take turns: each trains in at most {most} of the rounds, at least {bands.spacing} "
        f"apart, and the noise {noise}; all rounds are one Gaussian mechanism, which a user's "
        f"{most} rounds move along coordinates of their own."
    )


def _answers(plan: Plan) -> str:
    """What is told after the last round, where anything is."""
    return ", and what is told of heads and scores" if plan.calibration else ""


def _against(plan: Plan) -> str:
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
    if plan.private:
        return (_DEVICES_NOISE,)
    if plan.bands:
        return (_SERVER_NOISES, _TURNS_HOLD)
    return (_SERVER_NOISES,)


def _unprotected(plan: Plan) -> tuple[str, ...]:
    """What this plan's units leave open, beside what no plan protects."""
    if plan.user and plan.user.secure:
        return ()
    if plan.unit == "user":
        return ("Each user's own update, against the server that noises the sum.",)
    if plan.user is None:
        return (f"{_COMMON}: the promise is for one utterance at a time.",)
    return (f"{_COMMON}, against the server: its promise is for one utterance at a time.",)
