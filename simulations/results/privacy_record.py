"""From ledgers back to privacy.json: what was promised, by what noise, and what was spent."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial

from sottovoce.shared.errors import SettingError
from sottovoce.shared.privacy import accounting
from sottovoce.shared.privacy.accounting import CompositionRule
from sottovoce.shared.privacy.guarantees.privacy_curve import GROUP_SIZES, compute_privacy_curve
from sottovoce.shared.privacy.ledger import Ledger, PrivacyBudget
from sottovoce.shared.privacy.release import (
    NoiseSource,
    PrivacyUnit,
    Release,
    ReleaseKind,
    SumMechanism,
)
from sottovoce.shared.privacy.schemes import scheme_for
from sottovoce.shared.privacy.target import PrivacyTarget
from sottovoce.shared.protocol.training_plan import Plan
from sottovoce.simulations.results.schema import (
    SCHEMA_VERSION,
    Guarantee,
    Json,
    PrivacyRecord,
    validate_privacy,
)

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


def build_privacy_record(
    target: PrivacyTarget,
    plan: Plan,
    user_ledgers: Mapping[str, Mapping[str, Ledger]],
    server_ledgers: Mapping[str, Ledger],
    *,
    most_utterances: int | None = None,
) -> PrivacyRecord:
    """Build the content of privacy.json.

    Args:
        target: What was to be promised.
        plan: A plan of the run, for its clip and noise.
        user_ledgers: For every fold, every contributing user's ledger.
        server_ledgers: For every fold, the ledger of its sums; none where no sum hides a user.
        most_utterances: Most utterances that a contributing user has; None where it is not known.
    """
    scheme = scheme_for(target.unit, secure=target.secure)
    # What the devices' profiles have: the filter of a plan follows from the plan.
    budgets = scheme.budgets(target, plan.all_releases())
    first = next(iter(budgets), None)
    of_sums = next(iter(scheme.sum_budgets(target)), None)
    account = partial(_account, unit=scheme.account_unit, delta=target.delta)
    rule = first.filter if first else accounting.FIXED_PLAN
    content = {
        "schema": SCHEMA_VERSION,
        "unit": target.unit,
        **_guarantee(plan, scheme.account_unit, first),
        "sampling": _sampling(plan),
        **plan.participation.to_record(plan.rounds),
        "accountant": scheme.accountant_name + _filter_clause(budgets),
        "statement": scheme.statement(plan, target) + _filter_sentence(budgets),
        "assumptions": [*ASSUMPTIONS, _tuning_note(target), *scheme.assumptions(plan)],
        "not_protected": [*scheme.not_protected(plan), *NOT_PROTECTED],
        **{budget.unit.value: _guarantee(plan, budget.unit, budget) for budget in budgets[1:]},
        **_tuning_cost(target, budgets, user_ledgers, server_ledgers),
        "adversaries": [one.to_record() for one in scheme.adversaries()],
        "curves": _curves(budgets, user_ledgers, server_ledgers, most_utterances),
        "folds": [
            {
                "name": name,
                "clients": {
                    client: account(ledgers[client], first, rule) for client in sorted(ledgers)
                },
                **(
                    {"server": account(server_ledgers[name], of_sums, accounting.FIXED_PLAN)}
                    if name in server_ledgers
                    else {}
                ),
            }
            for name, ledgers in user_ledgers.items()
        ],
        "recompute": "sottovoce verify RUN",
    }
    return validate_privacy(content)


def _filter_clause(budgets: Sequence[PrivacyBudget]) -> str:
    """By what devices count, where it is neither a closed form nor a PLD."""
    by = [f"{one.filter.name} on devices" for one in budgets if one.renyi_order is not None]
    return "".join(f"; {one}" for one in by)


def _filter_sentence(budgets: Sequence[PrivacyBudget]) -> str:
    """By which theorems devices add up what they release, where steps are sampled."""
    filters = [
        f"for one {one.unit.value} by the {one.filter.name}"
        for one in budgets
        if one.renyi_order is not None
    ]
    if not filters:
        return ""
    return (
        f" Devices add up what they release {' and '.join(filters)}, which holds whatever they are "
        "asked next; the order was fixed before the first release."
    )


def _tuning_note(target: PrivacyTarget) -> str:
    """What choosing settings by looking at results adds."""
    if target.tuning_runs == 1:
        return "Choosing settings by looking at results would cost more; it is not counted here."
    return (
        f"Settings were chosen by {target.tuning_runs} runs, each like this one; what all of "
        "them cost together is given beside the cost of this one. The best of a random number of "
        f"runs, {target.tuning_runs} on average, costs less if that number is drawn beforehand "
        "and nobody sees anything of the other runs; then "
        f"{accounting.SELECTION_SCORE}, and {accounting.SELECTION_SCOPE}."
    )


def _tuning_cost(
    target: PrivacyTarget,
    budgets: Sequence[PrivacyBudget],
    user_ledgers: Mapping[str, Mapping[str, Ledger]],
    server_ledgers: Mapping[str, Ledger],
) -> Json:
    """What all runs that settings were chosen by cost together, if each was like this one.

    Plain composition: it holds however the best was chosen, and for a number fixed beforehand.
    Beside it, what the best of a random number costs (Papernot & Steinke 2022).
    """
    if target.tuning_runs == 1 or not budgets:
        return {}
    charged = _charged_ledgers(user_ledgers, server_ledgers)
    found: Json = {"runs": target.tuning_runs}
    for budget in budgets:
        found[budget.unit.value] = max(
            accounting.compute_epsilon(
                _repeat_releases(ledger.releases, target.tuning_runs),
                budget.delta,
                unit=budget.unit,
            )
            for ledger in charged[budget.unit]
        )
    return {"tuned": found | {"selection": _selection_cost(target, budgets, charged)}}


def _selection_cost(
    target: PrivacyTarget,
    budgets: Sequence[PrivacyBudget],
    charged: Mapping[PrivacyUnit, Sequence[Ledger]],
) -> Json:
    """What the best of a random number of runs costs, if nothing else is released of them."""
    stopping = accounting.RandomStopping(mean_runs=target.tuning_runs)
    found: Json = {
        "distribution": stopping.name,
        "mean_runs": target.tuning_runs,
        "score": accounting.SELECTION_SCORE,
        "against": accounting.SELECTION_SCOPE,
    }
    for budget in budgets:
        try:
            found[budget.unit.value] = max(
                accounting.compute_selection_epsilon(
                    ledger.releases,
                    budget.delta,
                    stopping,
                    unit=budget.unit,
                    # Without an order, all steps of a run are of a plan that was fixed for it.
                    rule=accounting.filter_of_order(budget.renyi_order),
                )
                for ledger in charged[budget.unit]
            )
        except SettingError as error:
            found["refused"] = str(error)
    return found


def _charged_ledgers(
    user_ledgers: Mapping[str, Mapping[str, Ledger]], server_ledgers: Mapping[str, Ledger]
) -> Mapping[PrivacyUnit, list[Ledger]]:
    """A user pays for the sums, which the server books; an utterance for what its device sends."""
    return {
        PrivacyUnit.UTTERANCE: [one for fold in user_ledgers.values() for one in fold.values()],
        PrivacyUnit.USER: list(server_ledgers.values()),
    }


def _curves(
    budgets: Sequence[PrivacyBudget],
    user_ledgers: Mapping[str, Mapping[str, Ledger]],
    server_ledgers: Mapping[str, Ledger],
    most_utterances: int | None,
) -> Json:
    """The whole privacy curve of each promised unit, of the ledger that spent most."""
    charged = _charged_ledgers(user_ledgers, server_ledgers)
    all_of_a_user = {PrivacyUnit.UTTERANCE: most_utterances, PrivacyUnit.USER: None}
    found: Json = {}
    for budget in budgets:
        unit = budget.unit
        whole = all_of_a_user[unit]
        most = max(
            charged[unit],
            key=lambda one: one.epsilon_spent(budget.delta, budget.unit),
            default=None,
        )
        curve = most and compute_privacy_curve(
            most.releases,
            budget.delta,
            unit=unit,
            group_sizes=sorted({*GROUP_SIZES, *([whole] if whole else [])}),
        )
        if not curve:
            continue
        found[unit.value] = curve.to_record()
        for group in found[unit.value]["groups"]:
            if group["changes"] == whole:
                group["all_of_a_user"] = True
    return found


def _repeat_releases(releases: Sequence[Release], times: int) -> list[Release]:
    """The releases of so many runs, each with independent noise."""
    return [replace(one, run=f"{one.run}/{number}") for number in range(times) for one in releases]


def _guarantee(plan: Plan, unit: PrivacyUnit, budget: PrivacyBudget | None) -> Guarantee:
    """What one unit is promised, and by what noise."""
    noise = plan.scheme.round_mechanism(plan, unit)
    guarantee: Guarantee = {
        "epsilon": budget.epsilon if budget else None,
        "delta": budget.delta if budget else None,
        "neighbouring": accounting.NEIGHBOURING_RELATIONS[unit],
        "noise_multiplier": noise.noise_multiplier if noise else None,
        "clip_norm": noise.clip_norm if noise else None,
    }
    if budget:
        guarantee["composition"] = budget.filter.kind
        if budget.renyi_order is not None:
            guarantee["renyi_order"] = budget.renyi_order
    return guarantee


def _account(
    ledger: Ledger,
    budget: PrivacyBudget | None,
    rule: CompositionRule,
    *,
    unit: PrivacyUnit,
    delta: float,
) -> Json:
    """One ledger's account, with its epsilon for the budget's unit; for ``unit`` without one."""
    if budget:
        unit, delta = budget.unit, budget.delta
    releases: list[Json] = []
    so_far: list[Release] = []
    for release in ledger.releases:
        so_far.append(release)
        # Coarse, but an upper bound still: it is asked once for every release.
        spent = rule.compute_epsilon(so_far, delta, unit=unit, fast=True)
        releases.append(_line(release, unit, spent))
    spent = rule.compute_epsilon(ledger.releases, delta, unit=unit)
    # JSON has no infinity: an unprotected release shows as null, never as a large number.
    limit = budget.epsilon if budget and math.isfinite(spent) else None
    return {
        "epsilon": spent if limit else None,
        "delta": delta,
        "budget": {"epsilon": limit, "delta": delta},
        **(rule.to_record() if budget else {}),
        "remaining": max(limit - spent, 0.0) if limit else None,
        "rounds": sum(release.kind is ReleaseKind.GRADIENT for release in ledger.releases),
        "ledger_sha256": ledger.head_hash,
        "releases": releases,
    }


def _line(release: Release, unit: PrivacyUnit, spent: float) -> Json:
    """One release, as it concerns one unit."""
    user = release.mechanism_for(unit)
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
        **_share_fields(release, unit),
        "epsilon_after": spent if math.isfinite(spent) else None,
    }


def _correlation_fields(user: SumMechanism | None) -> Json:
    """What the composition of rounds under correlated noise depends on."""
    if user is None or user.bands is None:
        return {}
    return {"bands": user.bands.band_count, "spacing": user.bands.min_separation}


def _share_fields(release: Release, unit: PrivacyUnit) -> Json:
    """Who is trusted with how much of the noise, where a secure sum hides an utterance."""
    shares = {PrivacyUnit.UTTERANCE: release.shares, PrivacyUnit.USER: None}[unit]
    if shares is None:
        return {}
    return {"noised_by": NoiseSource.DISTRIBUTED.value, **asdict(shares)}


def _sampling(plan: Plan) -> str:
    """How utterances come into a step and users into a round, in words."""
    users = plan.participation.describe(plan.rounds)
    if plan.training.sample_rate == 1.0:
        return f"every utterance in every step (rate 1); {users}"
    return f"Poisson, each utterance with rate {plan.training.sample_rate:g} in every step; {users}"
