"""Many canaries on many devices: all seen without noise, few with it, and faults are caught."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from sottovoce.shared.errors import SettingError
from sottovoce.shared.models.parameters import flatten_parameters
from sottovoce.shared.models.spec import build_network
from sottovoce.simulations.audit import one_run
from sottovoce.simulations.audit.device_under_test import (
    Transcript,
    nearly_noiseless,
    run_trial,
)
from sottovoce.simulations.audit.orthogonal_canaries import design_canaries

DEVICES = 40


def _audit(transcript: Transcript, terms: Any, devices: int = DEVICES) -> one_run.OneRunAudit:
    return one_run.audit_one_run(transcript, canaries=12, devices=devices, seed=0, **terms)


def test_without_noise_every_canary_is_seen(make_transcript: Any, terms: Any) -> None:
    found = _audit(make_transcript(None), terms, 10)

    assert found.by_trade_off.correct == found.by_trade_off.guesses
    assert found.by_trade_off.epsilon == found.by_trade_off.ceiling > 2
    assert found.by_scores.epsilon_gaussian > 100


@pytest.mark.parametrize("epsilon", [1.0, 8.0])
def test_an_honest_device_stays_below_the_claim(
    make_transcript: Any, terms: Any, epsilon: float
) -> None:
    found = _audit(make_transcript(epsilon), terms)

    assert found.by_epsilon_delta.epsilon <= epsilon
    assert found.by_trade_off.epsilon <= epsilon
    assert found.epsilon_by_trade_off <= epsilon
    assert found.by_scores.epsilon_gaussian <= epsilon


def test_at_epsilon_eight_most_of_the_claim_is_seen(make_transcript: Any, terms: Any) -> None:
    found = _audit(make_transcript(8.0), terms)

    assert found.by_scores.epsilon_gaussian > 4, "half of the claim"
    assert found.by_trade_off.epsilon > 1


def test_half_of_the_noise_is_caught(make_transcript: Any, terms: Any) -> None:
    honest = make_transcript(8.0)
    mechanism = honest.plan.mechanism
    halved = replace(mechanism, noise_multiplier=mechanism.noise_multiplier / 2)

    found = _audit(replace(honest, plan=replace(honest.plan, mechanism=halved)), terms)

    assert found.by_scores.epsilon_gaussian > 8


def test_one_round_without_noise_is_caught(make_transcript: Any, terms: Any) -> None:
    """The rounds' mean would show next to nothing of it."""
    transcript, canaries = design_canaries(make_transcript(1.0), 12, 0)
    contributions = one_run.measure_contributions(transcript, canaries)
    coins = torch.Generator().manual_seed(1)
    scores, included = [], []
    for seed in range(20):
        inside = torch.rand(len(canaries), generator=coins) < 0.5
        sums, exact = (
            one_run.round_sums(one, run_trial(one, canaries.select(inside), seed))
            for one in (transcript, nearly_noiseless(transcript))
        )
        faulty = torch.cat([sums[:1], exact[1:]])
        scores.append(one_run.score_inclusion(contributions, faulty).numpy())
        included.append(inside.numpy())

    found = one_run.bound_epsilon(
        np.concatenate(scores), np.concatenate(included), devices=20, **terms
    )

    assert found.by_trade_off.epsilon == found.by_trade_off.ceiling > 1.0
    assert found.by_scores.epsilon_gaussian > 100


def _with_classes(transcript: Transcript, classes: int) -> Transcript:
    """The transcript of a model of so many classes."""
    plan = transcript.plan
    model = replace(plan.model, classes=classes)
    labels = tuple(f"emotion {number}" for number in range(classes))
    return replace(
        transcript,
        plan=replace(plan, model=model, labels=labels),
        class_weights=torch.ones(classes),
        weights=[flatten_parameters(build_network(model, 0))] * plan.rounds,
    )


@pytest.mark.parametrize(("classes", "number"), [(3, 12), (4, 24), (6, 24)])
def test_canaries_of_a_linear_model_do_not_hide_one_another(
    make_transcript: Any, classes: int, number: int
) -> None:
    honest = _with_classes(make_transcript(8.0), classes)
    transcript, canaries = design_canaries(honest, 100, 0)
    assert len(canaries) == len(canaries.features) == number

    each = one_run.measure_contributions(transcript, canaries)

    lengths = each.norm(dim=1)
    step = transcript.plan.training.learning_rate / transcript.denominator
    assert lengths.tolist() == pytest.approx([0.5 * step] * number, rel=1e-3), "at the clip norm"
    cosines = (each / lengths[:, None]) @ (each / lengths[:, None]).T - torch.eye(number)
    # What is left is the bias, which all of a class share.
    assert float(cosines.abs().max()) < 0.1


def test_one_run_needs_canaries(make_transcript: Any, terms: Any) -> None:
    with pytest.raises(SettingError, match="at least 8"):
        one_run.audit_one_run(make_transcript(1.0), canaries=4, devices=1, seed=0, **terms)


def test_the_same_seed_gives_the_same_scores(make_transcript: Any) -> None:
    one, other = (
        one_run.collect_scores(make_transcript(8.0), canaries=12, devices=2, seed=0)
        for _ in range(2)
    )

    assert np.array_equal(one[0], other[0])
    assert np.array_equal(one[1], other[1])
