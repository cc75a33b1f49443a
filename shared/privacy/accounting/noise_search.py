"""Search for the least noise at which the releases of a plan keep a budget."""

import math
from collections.abc import Callable, Iterable

from sottovoce.shared import validation
from sottovoce.shared.errors import SettingError
from sottovoce.shared.privacy.accounting.composition import compose_releases
from sottovoce.shared.privacy.accounting.composition_rules import sampled_steps_pass
from sottovoce.shared.privacy.accounting.loss_distributions import (
    DISCRETISATION_INTERVAL,
    MAX_DISCRETISATION_ERROR,
    account_discretised,
    gaussian_epsilon,
    has_closed_form,
)
from sottovoce.shared.privacy.release import PrivacyUnit, Release


def calibrate_noise_multiplier(
    releases_for: Callable[[float], Iterable[Release]],
    budget: float,
    delta: float,
    *,
    unit: PrivacyUnit = PrivacyUnit.UTTERANCE,
) -> float:
    """Find the smallest noise multiplier at which the releases keep a budget.

    Where steps are sampled, under the filter that costs least: a device cannot know that the plan
    was fixed before the first answer.

    Args:
        releases_for: From a noise multiplier to all releases it leads to.
        budget: Epsilon the releases may cost together, above 0.
        delta: In (0, 1).
        unit: Whose presence the budget hides.

    Returns:
        The noise multiplier, at most 0.1 % above the smallest.

    Guarantees:
        - ``compute_epsilon(releases_for(result), delta, unit=unit) <= budget``, and so is what the
          filter of :func:`choose_renyi_order` gives: it errs on the side of more noise.

    Raises:
        SettingError: No noise keeps the budget: other releases of the plan spend it already, or
            the budget or delta makes no sense.
    """
    validation.require_positive(epsilon=budget)
    validation.require_between(0, 1, delta=delta)

    def passes(noise: float) -> bool:
        spent = compose_releases(releases_for(noise), unit)
        slack = spent.slack
        left, rest = budget - slack, delta * math.exp(-slack)
        # The unsampled part alone has a closed form; if that is too much, all of it is.
        if math.isinf(spent.precision):
            return True
        exact = gaussian_epsilon(spent.precision, rest) if spent.precision else 0.0
        if exact > left:
            return True
        if spent.sampled:
            return sampled_steps_pass(spent, delta, budget)
        # Far below the budget, an unsampled plan need not be discretised to know that it keeps it.
        if has_closed_form(spent) and exact + MAX_DISCRETISATION_ERROR <= left:
            return False
        return account_discretised(spent, rest, DISCRETISATION_INTERVAL) > left

    found = _least_noise(passes)
    if found is None:
        raise SettingError(
            f"epsilon {budget} at delta {delta} is too small for this plan even for one round; "
            "raise epsilon, or lower the share of the normaliser and of the label counts"
        )
    return found


def _least_noise(passes: Callable[[float], bool]) -> float | None:
    """The least multiplier that keeps a budget, or one up to 0.1 % above; None below 1e7."""
    low, high = 0.0, 1.0
    while passes(high):
        low, high = high, high * 2
        if high > 1e7:
            return None
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        if passes(middle):
            low = middle
        else:
            high = middle
    return high
