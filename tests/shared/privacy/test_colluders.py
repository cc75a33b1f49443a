"""A user's epsilon where devices noise their own: the noise of insiders does not count."""

import math
from dataclasses import replace

import pytest
from builders import make_plan

from sottovoce.shared.errors import SettingError
from sottovoce.shared.privacy import accounting
from sottovoce.shared.privacy.release import NoiseSource, PrivacyUnit, SumMechanism
from sottovoce.shared.privacy.scheme import SumKind
from sottovoce.shared.privacy.user_level import UserLevelPrivacy
from sottovoce.shared.protocol.local_training import ExampleLevelMechanism, LocalTraining
from sottovoce.shared.protocol.training_plan import Plan

DELTA = 1e-3
NOISE = SumMechanism(noise_multiplier=2.0, clip_norm=0.5, noised_by=NoiseSource.DEVICES)


def plan(share: float, own: float = 0.7) -> Plan:
    """A plan that hides utterances and users."""
    return replace(
        make_plan(
            training=LocalTraining(steps=1, sample_rate=1.0, learning_rate=0.5, denominator=4.0)
        ),
        mechanism=ExampleLevelMechanism(clip_norm=0.5, noise_multiplier=own, sum_norm=0.5),
        count_noise=10.0,
        centre=None,
        normaliser=None,
        calibration=None,
        user=UserLevelPrivacy(counts=NOISE, centre=None, update=NOISE, colluding_share=share),
    )


def epsilon_seen(plan: Plan, devices: int, insiders: int) -> float:
    """Epsilon of a round's sum for somebody who knows these insiders' noise."""
    scheme, unit = plan.scheme, plan.scheme.update_unit(plan, 4.0)
    one = scheme.device_noise_std(plan, SumKind.UPDATE, devices=1, denominator=4.0)
    added = scheme.server_noise_std(plan, SumKind.UPDATE, devices=devices, denominator=4.0)
    left = math.sqrt((devices - insiders) * one**2 + added**2)
    return epsilon_of(left / (NOISE.clip_norm * unit))


def epsilon_of(multiplier: float) -> float:
    """Epsilon of one sum, for a user."""
    release = replace(plan(0).gradient_release(1), user=replace(NOISE, noise_multiplier=multiplier))
    return accounting.compute_epsilon([release], DELTA, unit=PrivacyUnit.USER)


@pytest.mark.parametrize("own", [0.1, 0.7])
def test_the_printed_epsilon_is_never_below_what_insiders_see(own: float) -> None:
    """Of 4 to 100 devices, from none to half of them; whether the server adds noise or need not."""
    printed = epsilon_of(NOISE.noise_multiplier)
    tight = 0
    for devices in range(4, 101):
        for stated in range(devices // 2 + 1):
            one = plan(stated / devices, own=own)
            seen = [epsilon_seen(one, devices, insiders) for insiders in (0, max(stated, 1))]
            assert max(seen) == seen[1] <= printed * (1 + 1e-6), (devices, stated)
            tight += seen[1] > printed * (1 - 1e-3)
    assert tight > 30, "noise is topped up to just what is promised"


def test_insiders_beyond_the_stated_share_would_see_more() -> None:
    """So the share is what the promise rests on, and the test above can fail."""
    printed = epsilon_of(NOISE.noise_multiplier)

    weak = plan(0.1, own=0.3)

    assert epsilon_seen(weak, devices=20, insiders=2) == pytest.approx(printed, rel=1e-3)
    assert epsilon_seen(weak, devices=20, insiders=6) > printed * 1.05


def test_all_noise_of_a_sum_is_counted_where_its_size_matters() -> None:
    """Step sizes follow from all of it, what insiders know included."""
    one = plan(0.25)
    scheme = one.scheme
    own = scheme.device_noise_std(one, SumKind.UPDATE, devices=8, denominator=4.0)
    added = scheme.server_noise_std(one, SumKind.UPDATE, devices=8, denominator=4.0)

    total = scheme.sum_noise_std(one, SumKind.UPDATE, devices=8, denominator=4.0)

    assert total == pytest.approx(math.hypot(own, added))
    assert total > NOISE.noise_std * scheme.update_unit(one, 4.0)


def test_the_share_is_stated_and_read_back() -> None:
    promise = plan(0.1).user
    assert promise is not None
    assert UserLevelPrivacy.from_dict(promise.to_dict()) == promise
    assert "colluding_share" not in replace(promise, colluding_share=0.0).to_dict()
    assert "share of 0.1" in " ".join(plan(0.1).scheme.assumptions(plan(0.1)))
    for wrong in (-0.1, 1.0, math.nan):
        with pytest.raises(SettingError, match="colluding_share"):
            plan(wrong)
