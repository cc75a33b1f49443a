"""A real server that hides users and is killed at any moment: what it let out it lets out once."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from flwr.app import Message
from safetensors.torch import save_file
from torch import Tensor

from sottovoce.server import checkpoint, strategy
from sottovoce.server.job import Job
from sottovoce.server.sums import LEDGER, OWNER, Sums
from sottovoce.shared import crypto, wire
from sottovoce.shared.calibration import WIDTH, CalibrationRelease
from sottovoce.shared.errors import LedgerError
from sottovoce.shared.normaliser import EXACT_CENTRE, EXACT_MEAN
from sottovoce.shared.plan import Plan
from sottovoce.shared.privacy import accountant
from sottovoce.shared.privacy.ledger import Budget, Ledger
from sottovoce.shared.privacy.release import NoisedBy, Unit, UserNoise
from sottovoce.shared.privacy.users import SecureSums, UserPromise
from sottovoce.shared.secagg.arrangement import settings_for
from sottovoce.shared.training import NoPrivacy

GIVING, DELTA, INPUTS, CLASSES, PARAMS = ("ada", "ben", "cleo"), 1e-3, 4, 3, 15


class Killed(BaseException):
    """The operator pulled the plug."""


def promise(noised_by: NoisedBy) -> UserPromise:
    """Noise on every sum, from the server or in shares."""
    shares = noised_by is NoisedBy.SHARES
    noise = UserNoise(
        noise_multiplier=3.0, clip_norm=0.5, noised_by=noised_by, discrete=shares, fine=shares
    )
    root, arranged = math.sqrt(2), {"dropout": 0.0, "corruption": 0.0}
    secure = SecureSums(
        enrolment=settings_for(3, CLASSES + INPUTS, root, noise_multiplier=3 / root, **arranged),
        update=settings_for(3, PARAMS, 0.5, noise_multiplier=3.0, **arranged),
        dishonest=0,
        calibration=settings_for(3, WIDTH, 0.5, noise_multiplier=3.0, **arranged),
    )
    return UserPromise(
        counts=replace(noise, clip_norm=20.0),
        centre=noise,
        update=noise,
        calibration=noise,
        secure=secure if shares else None,
    )


@pytest.fixture(params=[NoisedBy.SERVER, NoisedBy.SHARES])
def world(make_world: Any, request: pytest.FixtureRequest) -> Any:
    """A real server's, whose budget holds each of the plan's sums once, and nothing more."""
    made = make_world("a", epsilon=1e6, unit=Unit.USER)
    generator = torch.Generator().manual_seed(3)
    public = {
        "features": torch.randn(60, INPUTS, generator=generator),
        "frames": torch.ones(60, dtype=torch.int64),
        "labels": torch.arange(60) % CLASSES,
        "speakers": torch.arange(60) // 20,
    }
    save_file(public, made.folder / "held_out.safetensors")
    folder = made.folder / "server"
    job = Job.load(folder)
    plan = replace(
        job.plan,
        training=replace(job.plan.training, steps=1, sample_rate=1.0),
        mechanism=NoPrivacy(),
        centre=EXACT_CENTRE,
        normaliser=EXACT_MEAN,
        count_noise=0.0,
        user=promise(request.param),
        calibration=CalibrationRelease(noise_multiplier=0.0, taken_back=0.5),
    )
    epsilon = accountant.epsilon(list(plan.releases()), DELTA, unit=Unit.USER)
    budgets = (Budget(epsilon=epsilon * (1 + 1e-9), delta=DELTA, unit=Unit.USER),)
    held_out = made.folder / "held_out.safetensors"
    replace(job, plan=plan, budgets=budgets, held_out=held_out).save(folder)
    devices = {user: made.device(user) for user in GIVING}
    roster = {user: crypto.identity_public(one.identity) for user, one in devices.items()}
    for one in devices.values():
        one.pin(roster)
    return made


def _ledger(world: Any) -> Ledger:
    """The server's own."""
    return Ledger(world.folder / "server" / LEDGER, owner=OWNER, read_only=True)


def _plan(world: Any) -> Plan:
    """The job's."""
    return Job.load(world.folder / "server").plan


def test_killed_before_each_message_and_behind_each_sum_a_run_ends_within_its_budget(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each life goes on from the last, lets out one sum more, and is killed behind it."""
    let_out: dict[str, list[Tensor]] = {}
    whole = Sums.keep

    def keep(self: Sums, name: str, *given: Any) -> Any:
        value = whole(self, name, *given)
        let_out.setdefault(name, []).append(value.total)
        raise Killed

    for _ in range(10):
        with monkeypatch.context() as patch:
            patch.setattr(Sums, "keep", keep)
            try:
                world.run()
                break
            except Killed:
                continue
    first = ["enrolment"] if _plan(world).user.secure else ["label-counts", "centre"]  # type: ignore[union-attr]
    assert list(let_out) == [*first, "round-1", "round-2", "round-3", "head-statistics"]
    assert all(len(each) == 1 for each in let_out.values())
    assert len(_ledger(world).releases) == len(list(_plan(world).releases()))
    assert world.released().isfinite().all()


def test_what_was_let_out_is_what_a_resumed_run_goes_on_with(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed behind a round's sum, before its checkpoint; that round is not asked again."""
    writes, write = iter(range(1, 9)), checkpoint.write

    def die(*given: Any, **how: Any) -> None:
        if next(writes) == 2:
            raise Killed
        write(*given, **how)

    enrolled: list[Any] = []
    enrol = strategy.Training._enrol

    def note(self: strategy.Training) -> Any:
        enrolled.append(enrol(self))
        return enrolled[-1]

    monkeypatch.setattr(strategy.Training, "_enrol", note)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write", die)
        with pytest.raises(Killed):
            world.run()
    asked: list[int] = []

    def hear(message: Message) -> bool:
        arrays = message.content.array_records
        if message.metadata.message_type in (wire.TRAIN, wire.SUM) and "class_weights" in (
            arrays.get("model") or ()
        ):
            asked.append(wire.TrainRequest.read(message.content).round)
        return False

    world.run(lost=hear)

    assert set(asked) == {3}
    before, after = enrolled
    assert torch.equal(before.counts, after.counts)
    assert torch.equal(before.sums, after.sums)
    assert (before.told, before.usual) == (after.told, after.usual)


def test_a_server_whose_ledger_was_cut_lets_nothing_more_out(world: Any) -> None:
    world.run()
    path = world.folder / "server" / LEDGER
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0])

    with pytest.raises(LedgerError, match="lines were dropped at its end"):
        world.run()
