"""Model card that is delivered with the weights: intended uses, and uses to avoid.

Sections follow Mitchell et al., Model Cards for Model Reporting (2019).
"""

import re
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sottovoce.shared.printable import clean_inserted_value
from sottovoce.simulations.reports import wording
from sottovoce.simulations.reports.pages import TEMPLATE_FOLDER, known_groups
from sottovoce.simulations.results.schema import RunRecord, Table, validate_run

LICENCES = {
    "ravdess": "CC BY-NC-SA 4.0: no commercial use",
    "cremad": "ODbL 1.0, contents DbCL 1.0",
    "emodb": "free for research; cite it",
    "synthetic": "made by this software; Apache-2.0",
}
_UNRECORDED = "not recorded; ask whoever owns the recordings"
_MARKS = re.compile(r"([\\`*_{}\[\]<>|#~])")


def render_card(run: RunRecord) -> str:
    """Render MODEL_CARD.md for the model of a run.

    Args:
        run: Content of run.json. Where it says nothing of a licence, the corpora that this
            software knows are named with theirs; for others the card says that it is unknown.

    Returns:
        Markdown with tables; names from the data are escaped.

    Raises:
        MessageError: Not a run of this schema.
    """
    checked = validate_run(run)
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE_FOLDER),
        autoescape=False,  # noqa: S701  (Markdown; names pass through "name", which escapes)
        # A name that a template misspells must fail, not print nothing.
        undefined=StrictUndefined,
        finalize=clean_inserted_value,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        percent=wording.format_percent, number=wording.format_number, name=_name
    )
    return environment.get_template("card.md.j2").render(run=checked, **_context(checked))


def _context(run: Table) -> dict[str, Any]:
    """What the template needs besides the run."""
    # What the run says of its own corpus goes before what is known of public ones.
    own = {run["corpus"]["name"]: run["corpus"].get("licence")}
    trained = [run["corpus"]["name"], *run["model"]["public_corpora"]]
    privacy = run["privacy"]
    return {
        "licences": [
            (name, own.get(name) or LICENCES.get(name, _UNRECORDED))
            for name in dict.fromkeys(trained)
        ],
        "promised": wording.is_promised(privacy),
        "promise": wording.summarise_promise(privacy),
        "plain": wording.explain_promise(privacy),
        "terms": [
            (name, privacy[name.lower()])
            for name in ("Neighbouring", "Sampling", "Accountant")
            if privacy.get(name.lower())
        ],
        "chance": 1 / len(run["corpus"]["emotions"]),
        "groups": known_groups(run["fairness"]),
    }


def _name(text: object) -> str:
    """A name from the data as one line of Markdown that means nothing but itself."""
    # First one line, then Markdown's marks; "&" last, so that no entity appears by accident.
    return _MARKS.sub(r"\\\1", " ".join(str(text).split())).replace("&", "&amp;")
