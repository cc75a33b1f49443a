"""What is attacked is the product: a subject sends the very bytes that a device on disk sends."""

from pathlib import Path
from typing import Any

import torch

from sottovoce.client import calibration, enrolment, participant
from sottovoce.client.device import Device
from sottovoce.client.owner import Clips, Facts
from sottovoce.shared.examples import Examples
from sottovoce.shared.privacy import accountant
from sottovoce.shared.wire import CalibrateRequest
from sottovoce.simulations.audit.subject import exactly, hushed, live


def _on_disk(folder: Path, examples: Examples, labels: tuple[str, ...], seed: int) -> Device:
    everyone = torch.ones(len(examples), dtype=torch.bool)
    facts = Facts(user="subject", budgets=(), labels=labels, simulated_seed=seed)
    clips = Clips(examples=examples, enrols=everyone, calibrates=~everyone, trains=everyone)
    return Device.create(folder, facts, clips)


def test_a_subject_sends_what_a_device_on_disk_sends(
    course: Any, people: Any, tmp_path: Path
) -> None:
    asked, examples = course(8.0), people(1)["u00"].examples
    device = _on_disk(tmp_path, examples, asked.plan.labels, 7)
    seen = live(asked, examples, 7)

    first = enrolment.enrol(device, asked.plan, asked.front, asked.population)
    sent = [
        participant.train(
            device,
            plan=asked.plan.digest(),
            number=number,
            weights=asked.weights[number - 1],
            class_weights=asked.class_weights,
            centre=asked.centre,
            denominator=asked.denominator,
        )
        for number in (1, 2)
    ]
    request = CalibrateRequest(
        plan=asked.plan.digest(),
        weights=asked.asked.weights,
        centre=asked.centre,
        question=asked.asked.question,
    )
    last = calibration.calibrate(device, request)

    assert first is not None
    assert torch.equal(first, seen.enrolment)
    assert torch.equal(torch.stack(sent), seen.updates)
    assert torch.equal(last, seen.answer)
    booked = sorted(map(repr, Device(tmp_path).ledger.releases))
    assert booked == sorted(map(repr, asked.plan.releases())), "and the device booked all of it"


def test_lives_differ_by_their_noise_alone(course: Any, people: Any) -> None:
    asked, examples = course(8.0), people(1)["u00"].examples

    assert torch.equal(live(asked, examples, 1).updates, live(asked, examples, 1).updates)
    assert not torch.equal(live(asked, examples, 1).updates, live(asked, examples, 2).updates)
    quiet = hushed(asked)
    first, second = live(quiet, examples, 1).updates, live(quiet, examples, 2).updates
    assert torch.allclose(first, second, atol=1e-6)


def test_without_privacy_there_is_nothing_to_hush_and_no_trap(course: Any) -> None:
    open_course = course(None)

    assert hushed(open_course) is open_course
    assert exactly(open_course) is open_course


def test_the_trap_is_priced_as_if_the_mean_cost_nothing(course: Any) -> None:
    asked = course(8.0)
    trap = exactly(asked).plan
    others = [one for one in trap.releases() if one.kind.value != "normaliser"]

    assert accountant.epsilon(others, 1e-5) < 8.0
    assert trap.normaliser is not None
    assert trap.normaliser.noise_multiplier < 1e-9
