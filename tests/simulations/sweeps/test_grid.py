"""Which runs a sweep is made of."""

from typing import Any

import pytest

from sottovoce.shared.errors import SettingError
from sottovoce.simulations.sweeps.grid import Axis, Sweep, parse_axes

BASE = {"corpus": "synthetic", "data": "speakers=4,clips=8", "public": [{"name": "synthetic"}]}


def _sweep(**axes: tuple[Any, ...]) -> Sweep:
    return Sweep(
        base=BASE,
        axes=tuple(Axis(setting=n.replace("__", "."), values=v) for n, v in axes.items()),
    )


def test_every_combination_is_a_run_and_all_of_a_seed_come_first() -> None:
    points = _sweep(epsilon=(2, 8), seed=(0, 1), recipe__clip_norm=(0.5, 0.7)).expand_runs()

    assert [point.settings["seed"] for point in points] == [0] * 4 + [1] * 4
    assert len({point.name for point in points}) == 8
    for point in points:
        assert point.scenario.privacy.epsilon == point.settings["epsilon"]
        assert point.scenario.run.seed == point.settings["seed"]
        assert point.scenario.recipe.clip_norm == point.settings["recipe.clip_norm"]


def test_units_bring_their_own_recipes() -> None:
    utterance, user = _sweep(unit=("utterance", "user")).expand_runs()

    assert (utterance.scenario.run.rounds, user.scenario.run.rounds) == (16, 10)
    assert utterance.scenario.recipe.aggregation != user.scenario.recipe.aggregation


def test_without_a_promise_epsilon_means_nothing_and_is_run_once() -> None:
    points = _sweep(epsilon=(2, 4, 8), unit=("utterance", "none")).expand_runs()

    assert len(points) == 4
    assert [p.settings["epsilon"] for p in points if p.scenario.privacy.unit == "none"] == [None]


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ({"epsilon": (8, -1)}, ["epsilon_-1", "above 0"]),
        ({"epsilon": (8, 0.001)}, ["epsilon_0_001", "too small"]),
        ({"unit": ("utterance", "house")}, ["unit_house", "user"]),
        ({"recipe__clip": (1.0,)}, ["clip", "clip_norm"]),
        ({"encoder": ("log-mel",)}, ["encoder_log-mel", "frames"]),
        ({"rounds": ("many",)}, ["rounds", "whole number"]),
    ],
)
def test_a_run_that_cannot_be_is_named_before_any_is_run(
    axes: dict[str, tuple[Any, ...]], words: list[str]
) -> None:
    with pytest.raises(SettingError) as refused:
        _sweep(**axes).expand_runs()

    assert not [word for word in words if word not in str(refused.value)], refused.value


@pytest.mark.parametrize(
    ("setting", "values"),
    [("corpus", ("a", "b")), ("sped", (1,)), ("epsilon", ()), ("seed", (1, 1))],
)
def test_an_axis_is_a_setting_with_values(setting: str, values: tuple[Any, ...]) -> None:
    with pytest.raises(SettingError, match=setting):
        Axis(setting=setting, values=values)


def test_a_sweep_has_axes_each_once_and_not_too_many_runs() -> None:
    with pytest.raises(SettingError, match="--epsilons"):
        Sweep(base=BASE, axes=())
    with pytest.raises(SettingError, match="once"):
        Sweep(base=BASE, axes=(Axis(setting="seed", values=(0,)),) * 2)
    with pytest.raises(SettingError, match="10000"):
        _sweep(seed=tuple(range(101)), rounds=tuple(range(1, 101)))


def test_a_files_table_names_settings_with_dots() -> None:
    axes = parse_axes(
        {"epsilon": [1, 2], "recipe": {"clip_norm": [0.5], "user": {"quantile": [0.4]}}}
    )

    assert {axis.setting: axis.values for axis in axes} == {
        "epsilon": (1, 2),
        "recipe.clip_norm": (0.5,),
        "recipe.user.quantile": (0.4,),
    }
    with pytest.raises(SettingError, match="list"):
        parse_axes({"epsilon": 8})
