"""User-level mechanisms keep their bounds; a clip norm that is learned finds its quantile."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from sottovoce.shared.errors import MessageError, SettingError
from sottovoce.shared.privacy.release import NoiseSource, SumMechanism
from sottovoce.shared.privacy.user_level import (
    AdaptiveClipping,
    SecureSumConfigs,
    UserLevelPrivacy,
    secure_sum_kind,
    secure_sum_name,
)
from sottovoce.shared.secure_aggregation.parameter_selection import select_parameters

PLAN = "ab" * 32
CLIP = AdaptiveClipping(start=1.0)
NOISE = SumMechanism(noise_multiplier=2.0, clip_norm=0.5, noised_by=NoiseSource.SERVER)
GUARANTEE = UserLevelPrivacy(counts=NOISE, centre=NOISE, update=NOISE)
SHARES = replace(NOISE, noised_by=NoiseSource.DISTRIBUTED, discrete=True)
SECURE = SecureSumConfigs(
    enrolment=select_parameters(
        10, 5, math.sqrt(2), dropout=0.1, corruption=0.1, noise_multiplier=2.0 / math.sqrt(2)
    ),
    update=select_parameters(10, 8, 0.5, dropout=0.1, corruption=0.1, noise_multiplier=2.0),
    dishonest=1,
)


# --- secure sums ------------------------------------------------------------------------------


def test_a_sums_name_says_which_it_is_and_of_which_plan() -> None:
    for attempt in ("", "f00"):
        assert secure_sum_kind(PLAN, secure_sum_name(PLAN, "round-3", attempt)) == "round-3"
    with pytest.raises(MessageError, match="another plan"):
        secure_sum_kind("cd" * 32, secure_sum_name(PLAN, "round-3"))


def test_shares_that_keep_the_promise_are_accepted() -> None:
    promise = UserLevelPrivacy(counts=SHARES, centre=SHARES, update=SHARES, secure=SECURE)
    assert promise.secure is SECURE
    assert SECURE.guaranteed_multiplier(SECURE.update) >= 2.0


def test_shares_are_near_gaussian_only_where_their_lattice_is() -> None:
    near_gaussian = replace(SHARES, near_gaussian=True)
    promise = UserLevelPrivacy(
        counts=near_gaussian, centre=near_gaussian, update=near_gaussian, secure=SECURE
    )
    assert promise.update.near_gaussian
    coarse = select_parameters(
        10, 8, 0.5, dropout=0.1, corruption=0.1, noise_multiplier=2.0, bits=12
    )
    with pytest.raises(SettingError, match="8 values over 10 devices in 12 bits has a"):
        replace(promise, secure=replace(SECURE, update=coarse))
    UserLevelPrivacy(
        counts=near_gaussian,
        centre=near_gaussian,
        update=SHARES,
        secure=replace(SECURE, update=coarse),
    )  # accounted for by its Renyi divergence


@pytest.mark.parametrize(
    "change",
    [
        {"update": replace(SHARES, noise_multiplier=2.1)},
        {"counts": replace(SHARES, noise_multiplier=2.1)},
        {"update": replace(SHARES, clip_norm=0.6)},
        {"update": replace(SHARES, discrete=False)},
        {"update": NOISE},
        {"secure": None},
        {"centre": None},
        {"secure": replace(SECURE, dishonest=4)},
    ],
)
def test_shares_that_would_not_keep_the_promise_are_refused(change: dict[str, object]) -> None:
    whole = UserLevelPrivacy(counts=SHARES, centre=SHARES, update=SHARES, secure=SECURE)
    with pytest.raises(SettingError):
        replace(whole, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize("dishonest", [-1, -(10**6), 0.5, 1.0, math.nan, True, "1", None])
def test_devices_that_side_with_the_server_are_counted_in_whole_numbers(dishonest: Any) -> None:
    """A negative number would count noise of devices that are not there."""
    with pytest.raises(SettingError, match="dishonest is"):
        replace(SECURE, dishonest=dishonest)
    record = UserLevelPrivacy(counts=SHARES, centre=SHARES, update=SHARES, secure=SECURE).to_dict()
    record["secure"]["dishonest"] = dishonest
    with pytest.raises(SettingError, match="dishonest is"):
        UserLevelPrivacy.from_dict(record)


@pytest.mark.parametrize("change", [{"degree": 2, "threshold": 2}, {"degree": 9, "threshold": 5}])
def test_a_graph_that_would_not_hide_users_is_refused(change: dict[str, int]) -> None:
    """The noise of quorum and honest devices is as promised; the masks would come off."""
    whole = UserLevelPrivacy(counts=SHARES, centre=SHARES, update=SHARES, secure=SECURE)
    weak = replace(SECURE.update, **change)  # type: ignore[arg-type]
    assert replace(SECURE, update=weak).guaranteed_multiplier(weak) >= 2.0
    with pytest.raises(SettingError, match="does not hide them from a server with 1 on its side"):
        replace(whole, secure=replace(SECURE, update=weak))


@pytest.mark.parametrize("name", ["counts", "centre", "update", "calibration"])
@pytest.mark.parametrize("noised_by", list(NoiseSource))
def test_only_updates_under_the_servers_noise_are_accounted_for_as_sampled(
    name: str, noised_by: NoiseSource
) -> None:
    secure = None
    one = replace(NOISE, noised_by=noised_by, clip_norm=0.5)
    if noised_by is NoiseSource.DISTRIBUTED:
        one = replace(one, discrete=True)
        secure = replace(SECURE, calibration=SECURE.update)
    promise = UserLevelPrivacy(counts=one, centre=one, update=one, calibration=one, secure=secure)
    drawn = {name: replace(one, sample_rate=1e-3)}
    if name == "update" and noised_by is NoiseSource.SERVER:
        assert replace(promise, **drawn).update.sample_rate == 1e-3  # type: ignore[arg-type]
        return
    with pytest.raises(SettingError, match=f"sample_rate of {name} is 0.001; it must be 1"):
        replace(promise, **drawn)  # type: ignore[arg-type]


def test_secure_sums_belong_to_shares() -> None:
    with pytest.raises(SettingError, match="secure says how"):
        replace(GUARANTEE, secure=SECURE)


# --- a clip norm that is learned --------------------------------------------------------------


@pytest.mark.parametrize("size", [0.0, 0.3, 1.0, 7.0, 1e30, math.inf, math.nan])
def test_what_a_device_sends_keeps_the_bound(size: float) -> None:
    packed = CLIP.pack_update(torch.tensor([size, 0.0, 0.0]), 2.0)

    assert packed.shape == (4,)
    assert float(packed.norm()) <= CLIP.norm_bound * (1 + 1e-6)
    assert float(packed[-1]) == pytest.approx(0.2 if size <= 2.0 else -0.2)


def test_updates_come_back_in_their_own_units() -> None:
    short, long = torch.tensor([0.6, 0.8]), torch.tensor([6.0, 8.0])
    mean = (CLIP.pack_update(short, 2.0) + CLIP.pack_update(long, 2.0)) / 2

    update, following = CLIP.unpack_mean(mean, 2.0)

    assert torch.allclose(update, torch.tensor([0.9, 1.2]).double())
    assert following == pytest.approx(2.0)  # half of them were within: as wanted


@pytest.mark.parametrize("quantile", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("start", [0.01, 100.0])
def test_the_clip_norm_finds_its_quantile_through_noise(quantile: float, start: float) -> None:
    generator = torch.Generator().manual_seed(1)
    norms = torch.rand(2_000, generator=generator) + 1.0
    settings = AdaptiveClipping(start=start, quantile=quantile, rate=0.5)
    clip = start
    for _ in range(60):
        packed = torch.stack([settings.pack_update(norm[None], clip) for norm in norms[:200]])
        noise = 0.01 * torch.randn(2, generator=generator, dtype=torch.float64)
        _, clip = settings.unpack_mean(packed.mean(0) + noise, clip)

    assert clip == pytest.approx(float(norms[:200].quantile(quantile)), rel=0.1)


DEGENERATE = (0.0, 5e-324, 1e-320, 1e-30, 9e-13, 1.1e12, 1e300, math.inf, math.nan)
"""At some of them, float arithmetic lets through what is longer than the bound."""


@pytest.mark.parametrize("clip", DEGENERATE)
def test_bounds_that_floats_would_not_keep_are_refused(clip: float) -> None:
    with pytest.raises(SettingError, match=r"clip_norm is .* choose one in between"):
        CLIP.pack_update(torch.full((3,), 0.51), clip)
    with pytest.raises(SettingError, match="start is"):
        AdaptiveClipping(start=clip)
    if 0 < clip < math.inf:  # other norms can be in no promise
        odd = replace(NOISE, clip_norm=clip)
        for name in ("counts", "centre", "update", "calibration"):
            with pytest.raises(SettingError, match=f"{name}_clip_norm is"):
                replace(GUARANTEE, **{name: odd})  # type: ignore[arg-type]


@pytest.mark.parametrize("clip", [1e-12, 1e12])
@pytest.mark.parametrize("size", [1e-30, 0.51, 1e13, 3e38])
def test_the_last_bounds_that_are_allowed_are_kept(clip: float, size: float) -> None:
    for numbers in (1, 3, 59):
        packed = CLIP.pack_update(torch.full((numbers,), size), clip)
        assert float(packed.norm()) <= CLIP.norm_bound * (1 + 1e-6)


@pytest.mark.parametrize(("start", "indicator"), [(1e-12, 1e9), (1e12, -1e9)])
def test_a_clip_norm_never_learns_to_be_one_that_is_refused(start: float, indicator: float) -> None:
    learned = replace(CLIP, start=start)
    clip = start
    for _ in range(20):
        _, clip = learned.unpack_mean(torch.tensor([0.0, indicator], dtype=torch.float64), clip)
        learned.pack_update(torch.ones(1), clip)


@pytest.mark.parametrize("indicator", [-1e9, 1e9])
def test_noise_never_takes_the_clip_norm_far(indicator: float) -> None:
    clip = 1.0
    for _ in range(1_000):
        _, clip = CLIP.unpack_mean(torch.tensor([0.0, indicator], dtype=torch.float64), clip)
    assert 1e-3 <= clip <= 1e3


@pytest.mark.parametrize(
    "change", [{"start": 0.0}, {"start": math.nan}, {"quantile": 1.0}, {"rate": 0}, {"weight": 0}]
)
def test_a_clip_norm_that_cannot_be_learned_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(SettingError, match=next(iter(change))):
        replace(CLIP, **change)


def test_a_promise_is_made_in_units_of_the_clip_norm_that_is_learned() -> None:
    with pytest.raises(SettingError, match="where it is learned"):
        replace(GUARANTEE, adaptive=CLIP)
    learned = replace(GUARANTEE, adaptive=CLIP, update=replace(NOISE, clip_norm=CLIP.norm_bound))
    assert learned.adaptive == CLIP
