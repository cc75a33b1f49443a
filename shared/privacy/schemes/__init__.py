"""The privacy units, one file each, and the choice among them.

A unit that is not built in registers itself with :func:`register_scheme`; a plan names it in its
field ``unit``, because noise alone does not tell it from the others.
"""

from sottovoce.shared import validation
from sottovoce.shared.errors import SettingError
from sottovoce.shared.privacy.scheme import PlanFacts, PrivacyScheme
from sottovoce.shared.privacy.schemes.both import BothScheme
from sottovoce.shared.privacy.schemes.no_privacy import NoPrivacyScheme
from sottovoce.shared.privacy.schemes.secure_both import SecureBothScheme
from sottovoce.shared.privacy.schemes.secure_user import SecureUserScheme
from sottovoce.shared.privacy.schemes.secure_utterance import SecureUtteranceScheme
from sottovoce.shared.privacy.schemes.user import UserScheme
from sottovoce.shared.privacy.schemes.utterance import UtteranceScheme

__all__ = [
    "find_scheme",
    "register_scheme",
    "scheme_for",
    "scheme_of",
    "unit_names",
    "unregister_scheme",
]

_SCHEMES: list[PrivacyScheme] = [
    NoPrivacyScheme(),
    UtteranceScheme(),
    SecureUtteranceScheme(),
    UserScheme(),
    SecureUserScheme(),
    BothScheme(),
    SecureBothScheme(),
]


def unit_names() -> tuple[str, ...]:
    """Names of all units, in the order of registration.

    Example:
        >>> unit_names()
        ('none', 'utterance', 'user', 'both')
    """
    return tuple(dict.fromkeys(scheme.unit for scheme in _SCHEMES))


def find_scheme(unit: str, *, secure: bool = False) -> PrivacyScheme | None:
    """Find the scheme of a unit by its name; None where there is none.

    Example:
        >>> find_scheme("user", secure=True).noise_source.value
        'shares'
    """
    found = (one for one in _SCHEMES if (one.unit, one.secure) == (unit, secure))
    return next(found, None)


def scheme_for(unit: str, *, secure: bool = False) -> PrivacyScheme:
    """Choose the scheme of what a run is to promise, or of what a record says it promised.

    Args:
        unit: Name of the unit.
        secure: Whether sums are to be secure.

    Raises:
        SettingError: There is no such unit, or it has no secure sums.

    Example:
        >>> scheme_for("both").wording.name
        'utterance and user'
    """
    validation.require_one_of(unit_names(), unit=unit)
    scheme = find_scheme(unit, secure=secure)
    if scheme is None:
        with_secure_sums = " or ".join(repr(one.unit) for one in _SCHEMES if one.secure)
        raise SettingError(
            f"secure is asked for with unit {unit!r}; unit must be {with_secure_sums} for secure "
            "sums; without them: --no-secure-aggregation, or secure = false in the scenario"
        )
    return scheme


def scheme_of(plan: PlanFacts) -> PrivacyScheme:
    """Choose the scheme of a plan, by its public facts.

    Guarantees:
        - Exactly one scheme describes the plan; where none or several do, it is refused.

    Raises:
        SettingError: This version knows no such scheme, or the facts are those of several.
    """
    found = [scheme for scheme in _SCHEMES if scheme.describes(plan)]
    if len(found) != 1:
        raise SettingError(
            f"unit of the plan is {plan.unit!r}, which {len(found)} schemes of this version "
            f"describe; it must be one. Known units: {', '.join(unit_names())}"
        )
    return found[0]


def register_scheme(scheme: PrivacyScheme) -> None:
    """Register a further unit.

    Args:
        scheme: Its ``unit`` is a new name, and its plans carry that name.

    Raises:
        SettingError: The name is taken.
    """
    if find_scheme(scheme.unit, secure=scheme.secure):
        raise SettingError(f"unit {scheme.unit!r} is registered already; choose another name")
    _SCHEMES.append(scheme)


def unregister_scheme(scheme: PrivacyScheme) -> None:
    """Remove a unit that was registered; its plans are refused from then on."""
    _SCHEMES.remove(scheme)
