"""Privacy accounting of releases, in (epsilon, delta): the only user of ``dp_accounting``.

``composition`` adds up what releases cost one unit, by its neighbouring relation;
``loss_distributions`` turns the sum into an epsilon, in closed form, by privacy-loss distributions
or by Renyi divergences. ``composition_rules`` says which choices of mechanisms that epsilon bears:
those of a plan fixed in advance, or any, by a valid privacy filter. ``curve`` gives mu, all
deltas and the epsilon of groups; ``noise_search`` the least noise that keeps a budget;
``private_selection`` prices the best of a random number of runs.
"""

from sottovoce.shared.privacy.accounting.composition import NEIGHBOURING_RELATIONS
from sottovoce.shared.privacy.accounting.composition_rules import (
    FIXED_PLAN,
    GAUSSIAN_FILTER,
    STEP_BY_STEP_ERROR,
    CompositionRule,
    FixedPlanComposition,
    GaussianFilter,
    RenyiFilter,
    bound_epsilon,
    choose_renyi_order,
    compute_epsilon,
    filter_of_order,
    rule_from_record,
)
from sottovoce.shared.privacy.accounting.curve import (
    MAX_GROUP,
    compute_deltas,
    compute_group_epsilon,
    compute_mu,
    discretisation_slack,
)
from sottovoce.shared.privacy.accounting.loss_distributions import (
    ACCOUNTANT_NAME,
    DISCRETE_ACCOUNTANT_NAME,
    MAX_DISCRETISATION_ERROR,
    MIN_DELTA,
    gaussian_mu,
)
from sottovoce.shared.privacy.accounting.noise_search import calibrate_noise_multiplier
from sottovoce.shared.privacy.accounting.private_selection import (
    SELECTION_SCOPE,
    SELECTION_SCORE,
    RandomStopping,
    compute_selection_epsilon,
)

__all__ = [
    "ACCOUNTANT_NAME",
    "DISCRETE_ACCOUNTANT_NAME",
    "FIXED_PLAN",
    "GAUSSIAN_FILTER",
    "MAX_DISCRETISATION_ERROR",
    "MAX_GROUP",
    "MIN_DELTA",
    "NEIGHBOURING_RELATIONS",
    "SELECTION_SCOPE",
    "SELECTION_SCORE",
    "STEP_BY_STEP_ERROR",
    "CompositionRule",
    "FixedPlanComposition",
    "GaussianFilter",
    "RandomStopping",
    "RenyiFilter",
    "bound_epsilon",
    "calibrate_noise_multiplier",
    "choose_renyi_order",
    "compute_deltas",
    "compute_epsilon",
    "compute_group_epsilon",
    "compute_mu",
    "compute_selection_epsilon",
    "discretisation_slack",
    "filter_of_order",
    "gaussian_mu",
    "rule_from_record",
]
