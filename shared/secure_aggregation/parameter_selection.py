"""Selection of graph, threshold and noise from how many devices may drop out or collude."""

import math
from dataclasses import replace
from typing import Final, NamedTuple

from sottovoce.shared import validation
from sottovoce.shared.errors import SettingError
from sottovoce.shared.privacy.release import DISCRETISATION_SLACK
from sottovoce.shared.secure_aggregation import noise_accounting
from sottovoce.shared.secure_aggregation.config import SecureAggregationConfig

SECURITY_BITS = 60.0
"""The graph fails to protect somebody with probability 2^-60. An attacker who can try a million
graphs (a server with lying devices, see ``neighbour_graph``) still succeeds with 2^-40 only."""

CORRECTNESS_BITS = 20.0
"""One honest round in a million fails because of its graph, which reveals nothing."""

_PARTS_OF_AN_UPDATE: Final = (256, 128, 64, 32, 16)


class GraphParameters(NamedTuple):
    """Graph and thresholds that :func:`select_graph_parameters` chose.

    Attributes:
        degree: Neighbours of each device, even, or all others.
        threshold: Shares that reconstruct a secret.
        corrupt_neighbours: Upper bound on the dishonest neighbours of one device.
        quorum: Smallest number of devices in the sum.
    """

    degree: int
    threshold: int
    corrupt_neighbours: int
    quorum: int


def select_graph_parameters(
    devices: int,
    *,
    dropout: float,
    corruption: float,
    security_bits: float = SECURITY_BITS,
    correctness_bits: float = CORRECTNESS_BITS,
) -> GraphParameters:
    """Select the sparsest graph that protects every honest device and tolerates the dropouts.

    Args:
        devices: Number of invited devices, at least 3.
        dropout: Largest share of them, in [0, 1), that drops out over all stages, assumed to be
            independent of the graph.
        corruption: Largest share of them, in [0, 1), that colludes with the server.
        security_bits: -log2 of the probability that the graph fails to protect somebody.
        correctness_bits: -log2 of the probability that tolerated dropouts end the round.

    Returns:
        Degree, threshold, bound on the dishonest neighbours of one device, and quorum.

    Raises:
        SettingError: Numbers out of range, or not even the complete graph is enough.

    Guarantees:
        With k neighbours, threshold t and X liars among the neighbours of one device
        (hypergeometric, since the graph is drawn at random: Bell et al. 2020, section 3), and by
        a union bound over all devices:

        - 2 t > k + X for every device, except with probability 2^-security_bits. The server would
          need 2 t shares to learn both secrets of a device. Every honest neighbour gives one share
          and every liar two, so it gets at most k + X. So no device is unmasked, whatever the
          server claims about survivors (Bonawitz et al. 2017, section 6.2). It follows that X < t.
        - Liars and random dropouts do not disconnect the graph, except with probability
          2^-security_bits: the server learns one sum over all honest survivors and no partial one.
          (A ring with k/2 neighbours on each side is cut only by k/2 lost devices in a row.)
        - Every device keeps at least t neighbours, except with probability 2^-correctness_bits.

        A server that *chooses* who is lost, knowing the graph, can disconnect a sparse one. Then
        every part still holds at least ``threshold + 1 - liars`` honest devices, because each of
        them requires ``threshold`` surviving neighbours. A complete graph cannot be disconnected.

    Example:
        >>> select_graph_parameters(24, dropout=0.1, corruption=0.1)
        GraphParameters(degree=14, threshold=9, corrupt_neighbours=3, quorum=21)
    """
    _check_rates(devices, dropout, corruption)
    lost, lying = count_share(devices, dropout), count_share(devices, corruption)
    for degree in [*range(2, devices - 1, 2), devices - 1]:
        # Fewer devices in the graph make the same liars weigh more, until it is complete.
        found = _least_threshold(degree, max(devices - lost, degree + 1), lying, security_bits)
        if found is None:
            continue
        threshold, liars = found
        complete = degree >= devices - 1
        cut = -math.inf if complete else _log2_cut(degree, devices - lost, lying + lost)
        stuck = _log2_tail(devices, lost, degree, degree - threshold + 1)
        if cut <= -security_bits and stuck <= -correctness_bits:
            return GraphParameters(degree, threshold, liars, max(devices - lost, threshold + 1))
    raise SettingError(
        f"no graph over {devices} devices bears a dropout of {dropout} and a corruption of"
        f" {corruption}: twice the dropout and the corruption must stay well below 1 together;"
        " lower one of them, or invite more devices"
    )


def select_parameters(
    devices: int,
    parameters: int,
    clip_norm: float,
    *,
    dropout: float,
    corruption: float,
    noise_multiplier: float = 0.0,
    bits: int = 32,
) -> SecureAggregationConfig:
    """Select settings with the sparsest graph, a fine granularity and the least noise.

    Args:
        devices: Number of invited devices, at least 3.
        parameters: Length of an update.
        clip_norm: L2 bound on an update, in its units, above 0.
        dropout: Largest share of devices that may drop out, in [0, 1).
        corruption: Largest share of devices that collude and may add no noise, in [0, 1).
        noise_multiplier: Noise multiplier of the sum that is reached even after these losses,
            relative to the sensitivity to one device; see
            ``noise_accounting.effective_multiplier`` for its accounting. 0 adds no noise.
        bits: Sums are taken modulo 2^bits.

    Returns:
        Settings of the secure sum, including the local noise.

    Raises:
        SettingError: Numbers out of range, or more than a graph or the ring can tolerate.

    Example:
        >>> chosen = select_parameters(24, 10, 1.0, dropout=0.1, corruption=0.1)
        >>> chosen.degree, chosen.threshold, chosen.quorum
        (14, 9, 21)
    """
    validation.require_positive(clip_norm=clip_norm)
    validation.require_non_negative(noise_multiplier=noise_multiplier)
    graph = select_graph_parameters(devices, dropout=dropout, corruption=corruption)
    dishonest = count_share(devices, corruption)
    contributors = noise_accounting.honest_contributors(graph.quorum, dishonest)
    # Clip norms that half of the ring must hold: n updates, and 12 deviations of their noise.
    clip_norms = devices + 12 * noise_multiplier * math.sqrt(devices / contributors)
    steps = (2 ** (bits - 1) - 1) / (1.01 * clip_norms) - 2
    validation.require_at_least(1, steps_within_the_clip_norm=steps)
    plain = SecureAggregationConfig(
        devices=devices,
        parameters=parameters,
        degree=graph.degree,
        threshold=graph.threshold,
        quorum=graph.quorum,
        clip_norm=clip_norm,
        granularity=clip_norm / steps,
        bits=bits,
    )
    return noise_accounting.with_noise(plain, noise_multiplier, contributors=contributors)


def select_part_parameters(
    devices: int,
    parameters: int,
    sensitivity: float,
    *,
    dropout: float,
    corruption: float,
    noise_multiplier: float,
) -> SecureAggregationConfig:
    """Select settings whose noise hides a part of an update, such as one utterance.

    Args:
        devices: Number of invited devices, at least 3.
        parameters: Length of an update.
        sensitivity: L2 bound on what the part changes, in the units of an update, above 0.
        dropout: As in :func:`select_parameters`, like ``corruption``.
        corruption: Likewise.
        noise_multiplier: Noise multiplier of the sum over ``sensitivity``, reached even after these
            losses, above 0.

    Returns:
        Settings of the secure sum. Its bound on the whole update is that of as many parts as leave
        the lattice fine enough for near-Gaussian noise, at most 256: more rarely point one way, and
        where they do, the whole is scaled down.

    Raises:
        SettingError: Numbers out of range, more than a graph can tolerate, or a lattice that would
            be too coarse.

    Example:
        >>> chosen = select_part_parameters(
        ...     24, 1000, 0.5, dropout=0.1, corruption=0.1, noise_multiplier=2.0
        ... )
        >>> chosen.clip_norm, chosen.sensitivity
        (128.0, 0.5)
    """
    validation.require_positive(noise_multiplier=noise_multiplier, sensitivity=sensitivity)
    slack = math.inf
    for parts in _PARTS_OF_AN_UPDATE:
        plain = select_parameters(
            devices,
            parameters,
            parts * sensitivity,
            dropout=dropout,
            corruption=corruption,
            noise_multiplier=noise_multiplier / parts,
        )
        honest = noise_accounting.honest_contributors(
            plain.quorum, count_share(devices, corruption)
        )
        found = noise_accounting.with_noise(
            replace(plain, sensitivity=sensitivity), noise_multiplier, contributors=honest
        )
        slack = noise_accounting.discretisation_slack(found, honest)
        if slack <= DISCRETISATION_SLACK:
            return found
    raise SettingError(
        f"a secure sum of {parameters:,} values over {devices:,} devices has a discretisation "
        f"slack of {slack:.3g}; it must be at most {DISCRETISATION_SLACK:g}: sum fewer devices, "
        "train a smaller model, or hide utterances without secure sums"
    )


def select_nested_parameters(
    plain: SecureAggregationConfig,
    sensitivity: float,
    *,
    corruption: float,
    noise_multiplier: float,
    part_noise_multiplier: float,
) -> SecureAggregationConfig:
    """Settle noise that hides a whole update, and a part of it such as one utterance.

    Args:
        plain: Settings of the sum by :func:`select_parameters`, with room in the ring for as much
            noise.
        sensitivity: L2 bound on what the part changes, in the units of an update, above 0.
        corruption: Largest share of devices that collude and may add no noise, in [0, 1).
        noise_multiplier: Noise multiplier of the sum over the bound of the whole, above 0.
        part_noise_multiplier: The same over ``sensitivity``, above 0.

    Returns:
        The least noise that gives both.

    Raises:
        SettingError: Numbers out of range, or more noise than the ring holds.

    Example:
        >>> plain = select_parameters(
        ...     24, 10, 2.0, dropout=0.1, corruption=0.1, noise_multiplier=1.0
        ... )
        >>> both = select_nested_parameters(
        ...     plain, 0.5, corruption=0.1, noise_multiplier=1.0, part_noise_multiplier=2.0
        ... )
        >>> round(both.noise * both.granularity * 18**0.5, 3)  # of 18 devices that are counted
        2.0
    """
    honest = noise_accounting.honest_contributors(
        plain.quorum, count_share(plain.devices, corruption)
    )
    both = replace(plain, sensitivity=sensitivity)
    return replace(
        both,
        noise=max(
            noise_accounting.calibrate_local_noise(
                both, noise_multiplier, contributors=honest, whole=True
            ),
            noise_accounting.calibrate_local_noise(
                both, part_noise_multiplier, contributors=honest
            ),
        ),
    )


def is_secure(settings: SecureAggregationConfig, dishonest: int) -> bool:
    """Whether a sum's graph has the guarantees of :func:`select_graph_parameters`.

    Args:
        settings: Settings of the sum, whoever chose them; devices may be lost down to the quorum.
        dishonest: Largest number of devices that collude with the server.

    Example:
        >>> settings = select_parameters(24, 10, 1.0, dropout=0.1, corruption=0.1)
        >>> is_secure(settings, dishonest=3), is_secure(settings, dishonest=12)
        (True, False)
    """
    degree, lost = settings.degree, settings.devices - settings.quorum
    there = max(settings.quorum, degree + 1)  # as in the selection: fewer devices weigh liars more
    unmasked = _log2_tail(there, dishonest, degree, 2 * settings.threshold - degree)
    complete = degree >= settings.devices - 1
    cut = -math.inf if complete else _log2_cut(degree, settings.quorum, dishonest + lost)
    return max(unmasked, cut) <= -SECURITY_BITS


def _check_rates(devices: int, dropout: float, corruption: float) -> None:
    """Refuse numbers of devices and shares out of range."""
    validation.require_at_least(3, devices=devices)
    for name, value in (("dropout", dropout), ("corruption", corruption)):
        if not 0 <= value < 1:
            raise SettingError(f"{name} is {value}; it must be at least 0 and below 1")


def count_share(devices: int, share: float) -> int:
    """Count the whole devices of a share, rounded up.

    Example:
        >>> count_share(30, 0.1), count_share(31, 0.1)
        (3, 4)
    """
    # 0.1 of 30 is 3, though the product of floats is a little above.
    return math.ceil(devices * share - 1e-9)


def _least_threshold(
    degree: int, devices: int, corrupted: int, bits: float
) -> tuple[int, int] | None:
    """The least t with 2 t > k + X except with probability 2^-bits, and the largest such X."""
    for threshold in range(degree // 2 + 1, degree + 1):
        if _log2_tail(devices, corrupted, degree, 2 * threshold - degree) <= -bits:
            return threshold, min(2 * threshold - degree - 1, corrupted)
    return None


def _log2_tail(devices: int, marked: int, drawn: int, least: int) -> float:
    """log2 of devices x P(at least ``least`` of ``drawn`` others are among the marked)."""
    others = devices - 1
    marked = min(marked, others)
    low, high = max(least, 0, drawn - (others - marked)), min(marked, drawn)
    logs = [
        _log_choose(marked, hits) + _log_choose(others - marked, drawn - hits)
        for hits in range(low, high + 1)
    ]
    if not logs:
        return -math.inf
    # Log-sum-exp: the probabilities themselves would underflow.
    top = max(logs)
    total = top + math.log(math.fsum(math.exp(log - top) for log in logs))
    return (total - _log_choose(others, drawn) + math.log(devices)) / math.log(2)


def _log2_cut(degree: int, devices: int, lost: int) -> float:
    """log2 of devices x P(a given run of k/2 devices is lost), which bounds P(cut)."""
    run, lost = degree // 2, min(lost, devices)
    if lost < run:
        return -math.inf
    return (
        math.log(devices) + _log_choose(devices - run, lost - run) - _log_choose(devices, lost)
    ) / math.log(2)


def _log_choose(total: int, chosen: int) -> float:
    """Natural logarithm of the binomial coefficient; minus infinity where it is 0."""
    if not 0 <= chosen <= total:
        return -math.inf
    return math.lgamma(total + 1) - math.lgamma(chosen + 1) - math.lgamma(total - chosen + 1)
