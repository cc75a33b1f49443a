"""A device: whole or not there; a release is booked first, and the same one costs once."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sottovoce.client.device.device import Device
from sottovoce.client.device.profile import DeviceProfile, LabelledFeatures, read_profile
from sottovoce.client.device.randomness import Randomness
from sottovoce.shared.errors import BudgetSpent, LedgerError, PrivacyError, SettingError
from sottovoce.shared.models.examples import Examples
from sottovoce.shared.privacy import accounting
from sottovoce.shared.privacy.gaussian_noise import SeededGaussianSampler, SystemGaussianSampler
from sottovoce.shared.privacy.ledger import PrivacyBudget
from sottovoce.shared.privacy.release import Mechanism, PrivacyUnit, Release, ReleaseKind

DELTA = 1e-5
SIMULATED = DeviceProfile(
    user="ada",
    budgets=(PrivacyBudget(epsilon=8.0, delta=DELTA),),
    labels=("angry", "sad"),
    simulated_seed=7,
)
REAL = replace(SIMULATED, simulated_seed=None)
MakeDevice = Callable[[DeviceProfile], Device]


def clips(count: int = 4) -> LabelledFeatures:
    """A few recordings as features."""
    everyone = torch.ones(count, dtype=torch.bool)
    examples = Examples(
        features=torch.randn(count, 3),
        frames=torch.ones(count, dtype=torch.int64),
        labels=torch.arange(count) % 2,
    )
    return LabelledFeatures(
        examples=examples, for_enrolment=everyone, for_head=~everyone, for_training=everyone
    )


def release(number: int = 1, *, noise: float = 3.0) -> Release:
    """One round's gradients."""
    return Release(
        kind=ReleaseKind.GRADIENT,
        mechanism=Mechanism.GAUSSIAN,
        run="run",
        round=number,
        noise_multiplier=noise,
        sensitivity=1.0,
    )


class Maker:
    """Makes a release of pure noise, and counts how often it was asked."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.calls = 0
        self.booked_before: list[int] = []

    def __call__(self, random: Randomness) -> Tensor:
        self.calls += 1
        self.booked_before.append(len(self.device.ledger.releases))
        return random.noise_source.sample_noise((5,), 1.0).float()


@pytest.fixture
def make(tmp_path: Path) -> MakeDevice:
    """Makes a device of these facts."""
    return lambda facts: Device.create(tmp_path / "device", facts, clips())


# --- releases ---------------------------------------------------------------------------------


@pytest.mark.parametrize("facts", [SIMULATED, REAL])
def test_the_same_request_gets_the_same_bytes_and_costs_once(
    make: MakeDevice, facts: DeviceProfile
) -> None:
    device = make(facts)
    maker = Maker(device)

    first = device.book_and_release("round-1", "a" * 64, release(), maker)
    again = device.book_and_release("round-1", "a" * 64, release(), maker)
    after_restart = Device.open(device.folder).book_and_release(
        "round-1", "a" * 64, release(), maker
    )

    assert torch.equal(first, again)
    assert torch.equal(first, after_restart)
    assert maker.calls == 1
    assert len(Device.open(device.folder).ledger.releases) == 1


@pytest.mark.parametrize("facts", [SIMULATED, REAL])
def test_another_request_of_the_same_name_is_another_release(
    make: MakeDevice, facts: DeviceProfile
) -> None:
    """Whoever changes the weights of a round and asks again pays again, and gets other noise."""
    device = make(facts)
    maker = Maker(device)

    first = device.book_and_release("round-1", "a" * 64, release(), maker)
    other = device.book_and_release("round-1", "b" * 64, release(), maker)

    assert not torch.equal(first, other)
    assert len(device.ledger.releases) == 2


@pytest.mark.parametrize("facts", [SIMULATED, REAL])
def test_a_release_is_booked_before_it_is_made(make: MakeDevice, facts: DeviceProfile) -> None:
    device = make(facts)
    maker = Maker(device)

    for number in (1, 2):
        device.book_and_release(f"round-{number}", "a" * 64, release(number), maker)

    assert maker.booked_before == [1, 2]


def test_a_device_that_dies_while_it_computes_has_paid(make: MakeDevice) -> None:
    device = make(SIMULATED)

    def die(_: Randomness) -> Tensor:
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        device.book_and_release("round-1", "a" * 64, release(), die)

    assert len(Device.open(device.folder).ledger.releases) == 1


def test_after_a_death_a_simulation_repeats_and_a_real_device_pays_again(tmp_path: Path) -> None:
    booked = {}
    for name, facts in (("simulated", SIMULATED), ("real", REAL)):
        device = Device.create(tmp_path / name, facts, clips())
        first = device.book_and_release("round-1", "a" * 64, release(), Maker(device))
        device.vault.delete("outbox-gradient")  # it died before the outbox was written

        again = Device.open(device.folder)
        second = again.book_and_release("round-1", "a" * 64, release(), Maker(again))

        booked[name] = len(again.ledger.releases)
        assert torch.equal(first, second) == (name == "simulated")
    assert booked == {"simulated": 1, "real": 2}


def test_a_damaged_outbox_is_as_good_as_none(make: MakeDevice) -> None:
    device = make(SIMULATED)
    first = device.book_and_release("round-1", "a" * 64, release(), Maker(device))
    (device.folder / "vault" / "outbox-gradient.sealed").write_bytes(b"junk")

    assert torch.equal(
        first, device.book_and_release("round-1", "a" * 64, release(), Maker(device))
    )


def test_over_the_budget_nothing_is_booked_or_computed(make: MakeDevice) -> None:
    two = accounting.compute_epsilon([release()] * 2, DELTA)
    device = make(replace(SIMULATED, budgets=(PrivacyBudget(epsilon=two, delta=DELTA),)))
    maker = Maker(device)
    for number in (1, 2):
        device.book_and_release(f"round-{number}", "a" * 64, release(number), maker)
    ledger = device.ledger.path.read_bytes()

    with pytest.raises(BudgetSpent):
        device.book_and_release("round-3", "a" * 64, release(3), maker)

    assert maker.calls == 2
    assert device.ledger.path.read_bytes() == ledger
    # What was released before is still given out: it costs nothing more.
    device.book_and_release("round-2", "a" * 64, release(2), maker)
    assert maker.calls == 2


def test_a_ledger_that_cannot_be_written_stops_the_release(
    make: MakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = make(SIMULATED)
    maker = Maker(device)

    def refuse(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("sottovoce.shared.atomic_files.os.write", refuse)
        with pytest.raises(LedgerError):
            device.book_and_release("round-1", "a" * 64, release(), maker)
    assert maker.calls == 0


def test_only_the_owner_of_no_budget_lets_unprotected_releases_pass(tmp_path: Path) -> None:
    unprotected = Release(kind=ReleaseKind.GRADIENT, mechanism=Mechanism.NONE, run="run", round=1)
    careful = Device.create(tmp_path / "careful", SIMULATED, clips())
    with pytest.raises(BudgetSpent):
        careful.book_and_release("round-1", "a" * 64, unprotected, Maker(careful))

    careless = Device.create(tmp_path / "careless", replace(SIMULATED, budgets=()), clips())
    careless.book_and_release("round-1", "a" * 64, unprotected, Maker(careless))
    assert careless.ledger.epsilon_spent(DELTA) == math.inf


# --- randomness -------------------------------------------------------------------------------


def test_a_real_devices_noise_comes_from_the_system_and_never_twice() -> None:
    random = Randomness(REAL, "run/round-1")
    assert isinstance(random.noise_source, SystemGaussianSampler)
    assert not torch.equal(
        random.noise_source.sample_noise((9,), 1.0), random.noise_source.sample_noise((9,), 1.0)
    )
    draws = [torch.rand(9, generator=random.torch_generator) for _ in range(2)]
    assert not torch.equal(*draws)


def test_a_simulated_devices_draws_differ_by_user_name_and_purpose() -> None:
    def draw(facts: DeviceProfile, name: str) -> tuple[float, ...]:
        random = Randomness(facts, name)
        assert isinstance(random.noise_source, SeededGaussianSampler)
        numbers = torch.cat(
            [
                random.noise_source.sample_noise((1,), 1.0),
                torch.rand(1, generator=random.torch_generator).double(),
            ]
        )
        return tuple(numbers.tolist())

    usual = draw(SIMULATED, "run/round-1")
    assert draw(SIMULATED, "run/round-1") == usual
    others = [
        draw(SIMULATED, "run/round-2"),
        draw(replace(SIMULATED, user="ben"), "run/round-1"),
        draw(replace(SIMULATED, simulated_seed=8), "run/round-1"),
    ]
    assert len({usual, *others}) == 4


def test_a_simulated_devices_draws_follow_the_release_and_not_the_run_or_the_request(
    tmp_path: Path,
) -> None:
    def noise(folder: str, run: str, content: str, times: int = 1) -> list[tuple[float, ...]]:
        device = Device.create(tmp_path / folder, replace(SIMULATED, budgets=()), clips())
        draws = []
        for time in range(times):
            asked = replace(release(1), run=run)
            random = device.book_release("round-1", f"{time}{content}", asked)
            again = device.book_release("round-1", f"{time}{content}", asked)
            draws.append(tuple(random.noise_source.sample_noise((3,), 1.0).tolist()))
            assert draws[-1] == tuple(again.noise_source.sample_noise((3,), 1.0).tolist())
        return draws

    first = noise("a", "run", "a" * 63, times=2)
    assert first[0] != first[1], "another request has noise of its own"
    assert noise("b", "another run/fold", "b" * 63) == first[:1]


# --- ledgers ----------------------------------------------------------------------------------


def _spent(device: Device, count: int = 3) -> list[bytes]:
    """Release a few times; the ledger's lines."""
    for number in range(1, count + 1):
        device.book_and_release(f"round-{number}", "a" * 64, release(number), Maker(device))
    return device.ledger.path.read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize("facts", [SIMULATED, REAL])
def test_lines_dropped_from_a_devices_ledger_show(make: MakeDevice, facts: DeviceProfile) -> None:
    device = make(facts)
    lines = _spent(device)
    for left in (lines[:-1], lines[:1], []):
        device.ledger.path.write_bytes(b"".join(left))
        with pytest.raises(LedgerError, match="only receive models"):
            Device.open(device.folder)
    device.ledger.path.unlink()
    with pytest.raises(LedgerError, match="only receive models"):
        Device.open(device.folder)

    device.ledger.path.write_bytes(b"".join(lines))
    assert len(Device.open(device.folder).ledger.releases) == 3


@pytest.mark.parametrize("facts", [SIMULATED, REAL])
def test_another_users_ledger_is_refused(tmp_path: Path, facts: DeviceProfile) -> None:
    ada = Device.create(tmp_path / "ada", facts, clips())
    ben = Device.create(tmp_path / "ben", replace(facts, user="ben"), clips())
    assert _spent(ada) != _spent(ben)
    ada.ledger.path.write_bytes(ben.ledger.path.read_bytes())

    with pytest.raises(LedgerError, match="not that of 'ada'"):
        Device.open(ada.folder)


def test_only_a_simulated_devices_ledger_repeats(tmp_path: Path) -> None:
    for facts in (SIMULATED, REAL):
        heads = set()
        for name in ("one", "two"):
            device = Device.create(tmp_path / f"{name}{facts.simulated_seed}", facts, clips())
            _spent(device)
            heads.add(device.ledger.head_hash)
        assert len(heads) == (1 if facts is SIMULATED else 2)


def test_an_anchor_that_is_gone_or_damaged_is_no_way_around(make: MakeDevice) -> None:
    device = make(REAL)
    _spent(device)
    path = device.folder / "vault" / "ledger-anchor.sealed"
    blob = path.read_bytes()
    path.write_bytes(bytes(len(blob)))
    with pytest.raises(LedgerError, match=r"anchor is damaged .* one backup"):
        Device.open(device.folder)
    path.unlink()
    with pytest.raises(LedgerError, match=r"anchor is gone .* one backup"):
        Device.open(device.folder)


def test_an_anchor_that_cannot_be_written_stops_the_release(
    make: MakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = make(SIMULATED)
    maker = Maker(device)

    def refuse(*_: Any) -> None:
        raise PrivacyError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(device.vault, "overwrite", refuse)
        for _ in range(2):
            with pytest.raises(PrivacyError, match="disk full"):
                device.book_and_release("round-1", "a" * 64, release(), maker)
    assert maker.calls == 0

    device.book_and_release("round-1", "a" * 64, release(), maker)
    assert len(device.ledger.releases) == 1


def test_no_word_in_its_facts_spares_a_device_its_anchor(make: MakeDevice) -> None:
    """Facts are plain text: whoever rolls the ledger back could write what they like there."""
    device = make(REAL)
    facts = device.folder / "device.json"
    (device.folder / "vault" / "ledger-anchor.sealed").unlink()
    facts.write_text(json.dumps(json.loads(facts.read_text()) | {"schema": 1}))

    with pytest.raises(PrivacyError, match="schema 1, this version reads 2"):
        Device.open(device.folder)


def test_a_device_keeps_what_one_run_may_spend(make: MakeDevice) -> None:
    two = accounting.compute_epsilon([release()] * 2, DELTA)
    device = make(replace(REAL, budgets=(PrivacyBudget(epsilon=8.0, delta=DELTA, per_run=two),)))
    _spent(device, 2)
    maker = Maker(device)

    with pytest.raises(BudgetSpent, match="allowance of the run 'run'"):
        Device.open(device.folder).book_and_release("round-3", "a" * 64, release(3), maker)
    assert maker.calls == 0

    device.book_and_release("round-1", "a" * 64, replace(release(), run="next"), maker)
    assert maker.calls == 1


# --- on the disk ------------------------------------------------------------------------------


def test_a_device_is_read_back_as_it_was_made(make: MakeDevice) -> None:
    device = make(REAL)
    again = Device.open(device.folder)
    assert again.profile == REAL
    assert torch.equal(
        again.load_features().examples.features, device.load_features().examples.features
    )
    assert Device.exists(device.folder)


def test_a_device_from_before_there_was_a_second_unit_is_read(make: MakeDevice) -> None:
    path = make(REAL).folder / "device.json"
    facts = json.loads(path.read_text())
    for record, budgets in (({"epsilon": 8.0, "delta": DELTA}, REAL.budgets), (None, ())):
        old = {key: value for key, value in facts.items() if key != "budgets"}
        path.write_text(json.dumps(old | {"budget": record}))
        assert read_profile(path).budgets == budgets


def test_each_unit_may_have_its_budget(make: MakeDevice) -> None:
    budgets = (*REAL.budgets, PrivacyBudget(epsilon=4.0, delta=1e-3, unit=PrivacyUnit.USER))
    device = make(replace(REAL, budgets=budgets))
    assert Device.open(device.folder).profile.budgets == budgets
    with pytest.raises(BudgetSpent, match="for one user"):  # it hides utterances alone
        device.book_and_release("round-1", "a" * 64, release(), Maker(device))


def test_a_second_device_in_the_same_place_is_refused(make: MakeDevice) -> None:
    make(SIMULATED)
    with pytest.raises(PrivacyError, match="already"):
        make(SIMULATED)


def test_nothing_personal_lies_open(make: MakeDevice) -> None:
    device = make(REAL)
    device.book_and_release("round-1", "a" * 64, release(), Maker(device))
    features = device.load_features().examples.features.numpy().tobytes()
    for path in device.folder.rglob("*"):
        if path.is_file():
            assert features[:16] not in path.read_bytes(), path


def test_a_folder_without_a_device_is_told_from_a_damaged_one(
    make: MakeDevice, tmp_path: Path
) -> None:
    with pytest.raises(SettingError, match="no device"):
        Device.open(tmp_path)

    device = make(SIMULATED)
    facts = json.loads((device.folder / "device.json").read_text())
    for spoilt in (
        "{",
        "[]",
        json.dumps(facts | {"schema": 9}),
        json.dumps(facts | {"budgets": [{"epsilon": 0, "delta": DELTA, "unit": "utterance"}]}),
        json.dumps(facts | {"budgets": [{"epsilon": "much"}]}),
        json.dumps({name: value for name, value in facts.items() if name != "user"}),
        json.dumps(facts | {"extra": 1}),
    ):
        (device.folder / "device.json").write_text(spoilt)
        with pytest.raises(PrivacyError):
            Device.open(device.folder)


def test_a_device_whose_ledger_was_tampered_with_opens_for_nobody(make: MakeDevice) -> None:
    device = make(SIMULATED)
    for number in (1, 2):
        device.book_and_release(f"round-{number}", "a" * 64, release(number), Maker(device))
    lines = device.ledger.path.read_bytes().splitlines(keepends=True)
    device.ledger.path.write_bytes(lines[1])

    with pytest.raises(LedgerError):
        Device.open(device.folder)


def test_a_user_has_one_name_however_it_is_written(tmp_path: Path) -> None:
    names = ["Jose\u0301", " José ", "Jos\u200bé"]

    users = {
        Device.create(tmp_path / str(number), replace(REAL, user=name), clips()).profile.user
        for number, name in enumerate(names)
    }

    assert users == {"José"}
    with pytest.raises(SettingError, match="name is empty"):
        Device.create(tmp_path / "nobody", replace(REAL, user=" \u200b"), clips())


def test_labels_are_found_in_another_form() -> None:
    own, plan = ("a\u0308rger", "Freude"), ("freude", "neutral", "ärger")

    labels = clips().with_label_order(own, plan).examples.labels

    assert labels.tolist() == [2, 0, 2, 0]
