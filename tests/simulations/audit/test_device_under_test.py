"""What is attacked is the product: a subject sends the very bytes that a device on disk sends."""

from pathlib import Path
from typing import Any

import torch
from builders import make_clips, make_device

from sottovoce.client.device.device import Device
from sottovoce.client.federation import enrolment, statistics_round, training_round
from sottovoce.shared.models.examples import Examples
from sottovoce.shared.privacy import accounting
from sottovoce.shared.protocol.messages import HeadStatisticsRequest, TrainRequest
from sottovoce.simulations.audit.device_under_test import (
    nearly_noiseless,
    run_trial,
    with_exact_normaliser,
)


def _on_disk(folder: Path, examples: Examples, labels: tuple[str, ...], seed: int) -> Device:
    clips = make_clips(examples)
    return make_device(folder, clips, user="subject", labels=labels, simulated_seed=seed)


def test_a_subject_sends_what_a_device_on_disk_sends(
    make_transcript: Any, people: Any, tmp_path: Path
) -> None:
    transcript, examples = make_transcript(8.0), people(1)["u00"].examples
    device = _on_disk(tmp_path, examples, transcript.plan.labels, 7)
    seen = run_trial(transcript, examples, 7)

    first = enrolment.enrol_device(
        device, transcript.plan, transcript.projection, transcript.speaker_statistics
    )
    sent = [
        training_round.train_round(
            device,
            TrainRequest(
                plan_hash=transcript.plan.content_hash(),
                round=number,
                weights=transcript.weights[number - 1],
                class_weights=transcript.class_weights,
                centre=transcript.centre,
                denominator=transcript.denominator,
            ),
        )
        for number in (1, 2)
    ]
    request = HeadStatisticsRequest(
        plan_hash=transcript.plan.content_hash(),
        weights=transcript.statistics_request.weights,
        centre=transcript.centre,
        query=transcript.statistics_request.query,
    )
    last = statistics_round.release_head_statistics(device, request)

    assert first is not None
    assert torch.equal(first, seen.enrolment)
    assert torch.equal(torch.stack(sent), seen.updates)
    assert torch.equal(last, seen.head_statistics)
    booked = sorted(map(repr, Device.open(tmp_path).ledger.releases))
    assert booked == sorted(map(repr, transcript.plan.all_releases())), (
        "and the device booked all of it"
    )


def test_trials_differ_by_their_noise_alone(make_transcript: Any, people: Any) -> None:
    transcript, examples = make_transcript(8.0), people(1)["u00"].examples

    assert torch.equal(
        run_trial(transcript, examples, 1).updates, run_trial(transcript, examples, 1).updates
    )
    assert not torch.equal(
        run_trial(transcript, examples, 1).updates, run_trial(transcript, examples, 2).updates
    )
    quiet = nearly_noiseless(transcript)
    first, second = run_trial(quiet, examples, 1).updates, run_trial(quiet, examples, 2).updates
    assert torch.allclose(first, second, atol=1e-6)


def test_without_privacy_there_is_no_noise_to_remove_and_no_normaliser_to_attack(
    make_transcript: Any,
) -> None:
    not_private = make_transcript(None)

    assert nearly_noiseless(not_private) is not_private
    assert with_exact_normaliser(not_private) is not_private


def test_an_exact_normaliser_is_counted_as_if_it_cost_nothing(make_transcript: Any) -> None:
    plan = with_exact_normaliser(make_transcript(8.0)).plan
    others = [one for one in plan.all_releases() if one.kind.value != "normaliser"]

    assert accounting.compute_epsilon(others, 1e-5) < 8.0
    assert plan.normaliser is not None
    assert plan.normaliser.noise_multiplier < 1e-9
