"""Degree and threshold hide everybody and bear the dropouts, as often as they say."""

import math
import random
from dataclasses import replace

import pytest

from sottovoce.shared.errors import SettingError
from sottovoce.shared.secure_aggregation import noise_accounting
from sottovoce.shared.secure_aggregation.neighbour_graph import harary_graph
from sottovoce.shared.secure_aggregation.parameter_selection import (
    is_secure,
    select_graph_parameters,
    select_parameters,
)


def exact_tail(others: int, marked: int, drawn: int, least: int) -> float:
    ways = sum(
        math.comb(marked, hits) * math.comb(others - marked, drawn - hits)
        for hits in range(least, drawn + 1)
    )
    return ways / math.comb(others, drawn)


@pytest.mark.parametrize("devices", [10, 24, 91, 300])
@pytest.mark.parametrize(("dropout", "corruption"), [(0.0, 0.0), (0.1, 0.1), (0.3, 0.05)])
def test_chances_are_as_promised(devices: int, dropout: float, corruption: float) -> None:
    found = select_graph_parameters(devices, dropout=dropout, corruption=corruption)
    lost, lying = math.ceil(devices * dropout), math.ceil(devices * corruption)
    left = max(devices - lost, found.degree + 1)

    assert found.degree / 2 < found.threshold <= found.degree
    assert found.quorum > found.threshold
    assert found.corrupt_neighbours <= lying
    assert 2 * found.threshold > found.degree + found.corrupt_neighbours
    both = exact_tail(left - 1, lying, found.degree, 2 * found.threshold - found.degree)
    assert left * both <= 2**-60 * 1.001
    stuck = exact_tail(devices - 1, lost, found.degree, found.degree - found.threshold + 1)
    assert devices * stuck <= 2**-20 * 1.001


@pytest.mark.parametrize("devices", [*range(3, 13), 24, 91, 300])
@pytest.mark.parametrize(("dropout", "corruption"), [(0.0, 0.0), (0.2, 0.0), (0.1, 0.1)])
def test_selected_parameters_are_secure_and_little_less_does(
    devices: int, dropout: float, corruption: float
) -> None:
    try:
        chosen = select_parameters(devices, 5, 1.0, dropout=dropout, corruption=corruption)
    except SettingError:
        pytest.skip("no graph over so few bears it")
    lying = math.ceil(devices * corruption)
    assert is_secure(chosen, lying)
    if corruption and chosen.threshold - 1 > chosen.degree / 2:
        assert not is_secure(replace(chosen, threshold=chosen.threshold - 1), lying)
    assert not is_secure(chosen, devices)


def test_more_trouble_asks_for_more_neighbours() -> None:
    usual = select_graph_parameters(200, dropout=0.1, corruption=0.1)

    assert select_graph_parameters(200, dropout=0.2, corruption=0.1).degree > usual.degree
    assert select_graph_parameters(200, dropout=0.1, corruption=0.2).degree > usual.degree
    assert (
        select_graph_parameters(200, dropout=0.1, corruption=0.1, security_bits=30).degree
        < usual.degree
    )


def test_the_graph_is_sparse_where_there_are_many() -> None:
    assert select_graph_parameters(1000, dropout=0.1, corruption=0.1).degree < 130


def test_weak_parameters_fail_as_often_as_they_say() -> None:
    """At 4 bits failures can be counted: liars beyond the bound, over random graphs."""
    devices, lying = 40, 8
    found = select_graph_parameters(
        devices, dropout=0.0, corruption=0.2, security_bits=4, correctness_bits=4
    )
    names = [str(number) for number in range(devices)]
    random.seed(5)
    rounds, failed = 600, 0
    for number in range(rounds):
        graph = harary_graph(names, found.degree, number.to_bytes(4, "big"))
        liars = set(random.sample(names, lying))
        failed += any(
            2 * found.threshold <= found.degree + len(graph[name] & liars) for name in names
        )

    assert found.degree < devices - 1
    assert 0 < failed <= rounds * 2**-4 + 4 * math.sqrt(rounds * 2**-4)


@pytest.mark.parametrize(
    ("devices", "dropout", "corruption"),
    [
        (2, 0.0, 0.0),
        (24, 0.5, 0.1),
        (24, 0.1, 0.9),
        (24, 0.0, 0.97),
        (24, math.nan, 0.1),
        (24, 0.1, -0.1),
    ],
)
def test_what_no_graph_bears_is_refused(devices: int, dropout: float, corruption: float) -> None:
    with pytest.raises(SettingError):
        select_graph_parameters(devices, dropout=dropout, corruption=corruption)


def test_settings_come_with_the_noise_that_was_asked_for() -> None:
    settings = select_parameters(91, 1000, 0.7, dropout=0.1, corruption=0.1, noise_multiplier=3.0)

    multiplier = noise_accounting.effective_multiplier(settings, settings.quorum - 10)
    assert 3.0 <= multiplier < 3.0 * (1 + 1e-6)
    assert settings.quorum == 81
    assert select_parameters(91, 1000, 0.7, dropout=0.1, corruption=0.1).noise == 0


@pytest.mark.parametrize("multiplier", [-1.0, math.nan, math.inf, 1e9])
def test_noise_that_no_ring_holds_is_refused(multiplier: float) -> None:
    with pytest.raises(SettingError):
        select_parameters(24, 10, 1.0, dropout=0.1, corruption=0.1, noise_multiplier=multiplier)
