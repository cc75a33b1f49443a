"""Ablations: one part of training changed at a time, judged on the same test speakers.

    sottovoce ablate losses --corpora ../shared/corpora --runs runs/ablation

Every variant is run beside the usual recipe with the same seeds. A run that is there already is not
run again; one that was interrupted goes on. Lines without runs stay as they were.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from sottovoce.server.planning.recipe import Recipe
from sottovoce.shared import validation
from sottovoce.shared.atomic_files import replace_text
from sottovoce.shared.errors import SettingError
from sottovoce.shared.models.losses import CROSS_ENTROPY, Loss
from sottovoce.shared.printable import print_lines
from sottovoce.shared.protocol.local_training import Curriculum
from sottovoce.simulations.evaluation.bootstrap import DEFAULT_DRAWS, draw_cohorts
from sottovoce.simulations.evaluation.bootstrap_side import BootstrapSide
from sottovoce.simulations.evaluation.predictions import Predictions
from sottovoce.simulations.experiments.accuracy import PUBLIC, find_corpus_name
from sottovoce.simulations.experiments.commands import run_command
from sottovoce.simulations.results.prediction_table import read_predictions
from sottovoce.simulations.runs.run_folder import is_same_scenario
from sottovoce.simulations.scenario.loading import Scenario, vary_scenario

Change = Mapping[str, Any]

UNITS: Final = ("utterance", "none")
PROTOCOLS: Final = ("emodb7-loso", "cremad4-5fold")
USUAL: Final = "usual"
_VOTED: Final = ("cremad4-5fold",)
"""Protocols whose corpus says how its raters voted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One change of a recipe.

    Attributes:
        name: In run names and tables.
        recipe: Fields of ``Recipe`` that differ.
        aggregation: Fields of its ``aggregation`` that differ.
        encoder: Another feature extractor; empty: the usual one.
        units: Promises for which it is tried.
        protocols: Protocols on which it is tried.
    """

    name: str
    recipe: Change = field(default_factory=dict)
    aggregation: Change = field(default_factory=dict)
    encoder: str = ""
    units: tuple[str, ...] = UNITS
    protocols: tuple[str, ...] = tuple(PUBLIC)

    def change_recipe(self, recipe: Recipe) -> Recipe:
        """Change the usual recipe.

        Example:
            >>> Variant(name="brier", recipe={"loss": Loss(kind="brier")}).change_recipe(
            ...     Recipe(label_smoothing=0.1)
            ... ).label_smoothing
            0.0
        """
        changes = dict(self.recipe)
        if not changes.get("loss", CROSS_ENTROPY).supports_smoothing:
            changes["label_smoothing"] = 0.0
        if self.aggregation:
            changes["aggregation"] = replace(recipe.aggregation, **self.aggregation)
        return replace(recipe, **changes)


SUBJECTS: Final[Mapping[str, tuple[Variant, ...]]] = {
    "losses": (
        Variant(name="ordinal", recipe={"loss": Loss(kind="ordinal")}),
        Variant(name="hierarchical", recipe={"loss": Loss(kind="hierarchical", weight=0.5)}),
        Variant(name="soft-targets", recipe={"targets": "soft"}, protocols=_VOTED),
        Variant(name="focal", recipe={"loss": Loss(kind="focal")}),
        Variant(name="brier", recipe={"loss": Loss(kind="brier")}),
    ),
    "curriculum": (
        Variant(
            name="agreement",
            recipe={"curriculum": Curriculum(kind="agreement")},
            protocols=_VOTED,
        ),
        Variant(name="confidence", recipe={"curriculum": Curriculum(kind="confidence")}),
    ),
    "optimiser": (
        Variant(name="momentum", aggregation={"momentum": 0.9}, units=("utterance",)),
        Variant(name="averaged-4", aggregation={"averaged_rounds": 4}, units=("utterance",)),
        Variant(name="cosine", aggregation={"schedule": "cosine"}, units=("utterance",)),
        Variant(
            name="adam",
            aggregation={
                "optimiser": "adam",
                "learning_rate": 0.1,
                "momentum": 0.9,
                "second_moment_decay": 0.999,
            },
            units=("utterance",),
        ),
        Variant(name="constant", aggregation={"schedule": "constant"}, units=("none",)),
        Variant(name="averaged-10", aggregation={"averaged_rounds": 10}, units=("none",)),
        Variant(
            name="fedavgm",
            aggregation={"optimiser": "average", "learning_rate": 1.0},
            units=("none",),
        ),
    ),
    "warm-start": (
        Variant(name="cold", recipe={"warm_start": False}, units=("utterance",)),
        Variant(name="warm", recipe={"warm_start": True}, units=("none",)),
    ),
    "fusion": (
        Variant(name="descriptors-alone", encoder="descriptors"),
        Variant(name="with-descriptors", encoder="whisper-tiny-en+descriptors"),
    ),
}
"""What can be ablated, and the variants of each; settings were set beforehand, not tuned."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AblationSettings:
    """Which runs an ablation makes, and where they lie.

    Attributes:
        subject: Of ``SUBJECTS``.
        corpora: Folder of the corpora.
        runs: Folder of the runs.
        out: Folder of the page.
        protocols: Protocols to run on.
        units: Promises to run under.
        seeds: Seeds of every variant; noise differs between them.
    """

    subject: str
    corpora: Path
    runs: Path
    out: Path
    protocols: tuple[str, ...] = PROTOCOLS
    units: tuple[str, ...] = UNITS
    seeds: tuple[int, ...] = (0, 1, 2)

    def __post_init__(self) -> None:
        validation.require_one_of(tuple(SUBJECTS), subject=self.subject)
        for name in self.protocols:
            validation.require_one_of(tuple(PUBLIC), protocols=name)
        for name in self.units:
            validation.require_one_of(UNITS, units=name)
        if not self.seeds or not self.protocols or not self.units:
            raise SettingError("seeds, protocols and units must name one each at least")
        for seed in self.seeds:
            validation.require_count(0, validation.MAX_SEED, seeds=seed)

    def variants(self, protocol: str, unit: str) -> tuple[Variant, ...]:
        """The variants that are tried on a protocol under a promise."""
        return tuple(
            variant
            for variant in SUBJECTS[self.subject]
            if protocol in variant.protocols and unit in variant.units
        )

    def run_folder(self, protocol: str, unit: str, variant: str, seed: int) -> Path:
        """Folder of one run."""
        return self.runs / f"{protocol}-{unit}-{variant}-{seed}"


def run_ablation(settings: AblationSettings, *, table_only: bool = False) -> int:
    """Make the runs that are missing, then write the page; returns how many runs failed.

    Args:
        settings: Which runs.
        table_only: Write the page of the runs that are there, and run nothing.
    """
    settings.runs.mkdir(parents=True, exist_ok=True)
    failed = 0
    for protocol, unit in _pairs(settings):
        # All seeds of one variant after another: what is interrupted leaves whole seeds.
        for seed in () if table_only else settings.seeds:
            for variant in (Variant(name=USUAL), *settings.variants(protocol, unit)):
                failed += _run(settings, protocol, unit, variant, seed)
            _write(settings)
    _write(settings)
    return failed


def _pairs(settings: AblationSettings) -> Iterator[tuple[str, str]]:
    """Protocols and promises, those without variants left out."""
    for protocol in settings.protocols:
        for unit in settings.units:
            if settings.variants(protocol, unit):
                yield protocol, unit


def build_scenario(
    variant: Variant, *, protocol: str, unit: str, seed: int, corpora: Path
) -> Scenario:
    """Build the scenario of one run.

    Args:
        variant: What differs from the usual recipe.
        protocol: Which speakers test.
        unit: What is promised.
        seed: The run's.
        corpora: Folder of the corpora.
    """
    corpus = find_corpus_name(protocol)
    usual = vary_scenario(
        None,
        {
            "corpus": corpus,
            "data": str(corpora / corpus),
            "protocol": protocol,
            "public": tuple((name, str(corpora / name)) for name in PUBLIC[protocol]),
            "unit": unit,
            "seed": seed,
            **({"encoder": variant.encoder} if variant.encoder else {}),
        },
    )
    recipe = variant.change_recipe(usual.recipe)
    if usual.privacy_scheme.promised:
        return replace(usual, recipe=recipe)
    # Without privacy the statistics for heads take three more models, and no shared model is
    # other for them.
    shares = replace(recipe.shares, head_statistics=0.0)
    return replace(
        usual,
        recipe=replace(recipe, shares=shares),
        privacy=replace(usual.privacy, shares=shares),
    )


def _run(settings: AblationSettings, protocol: str, unit: str, variant: Variant, seed: int) -> int:
    """One run, unless it is there; whether it failed."""
    out = settings.run_folder(protocol, unit, variant.name, seed)
    scenario = build_scenario(
        variant, protocol=protocol, unit=unit, seed=seed, corpora=settings.corpora
    )
    if (out / "run.json").is_file():
        # A run of an earlier recipe would be compared with today's, and nobody would notice.
        if not is_same_scenario(out, scenario):
            raise SettingError(
                f"{out} holds a run of other settings than {variant.name} has today; name another "
                "folder by --runs, or remove it"
            )
        return 0
    config = out.with_suffix(".toml")
    replace_text(config, scenario.to_toml())
    print_lines(out.name)
    resume = ["--resume"] if (out / "config.toml").is_file() else []
    words = ["sottovoce", "simulate", str(config), "--out", str(out), "--quiet", *resume]
    return int(run_command(words) != 0)


def compare_runs(
    usual: Sequence[Predictions], variant: Sequence[Predictions], *, draws: int = DEFAULT_DRAWS
) -> dict[str, dict[str, float]]:
    """Compare predictions of a variant with the usual ones, clip by clip the same.

    Args:
        usual: The usual recipe's, a table a seed.
        variant: The variant's, for the same seeds.
        draws: How many cohorts of speakers to draw.

    Returns:
        For ``uar`` and ``nll``, means over seeds: ``usual``, ``variant``, their ``difference``,
        and ``low`` and ``high``, a paired 95 % interval of it over new samples of speakers and of
        the seeds.

    Raises:
        SettingError: The tables are of different speakers or labels.
    """
    sides = [(_side(one), _side(other)) for one, other in zip(usual, variant, strict=True)]
    first = usual[0]
    for table in (*usual, *variant):
        same = sorted(zip(table.speakers, table.labels.tolist(), strict=True))
        if same != sorted(zip(first.speakers, first.labels.tolist(), strict=True)):
            raise SettingError("the runs tested other clips; make both anew in one folder")
    users = sides[0][0].user_count
    random = np.random.default_rng(0)
    # The first cohort is everybody, with all seeds: its figure is the estimate.
    cohorts = np.vstack([np.ones((1, users), dtype=np.int64), draw_cohorts(users, draws, random)])
    # Seeds are drawn, too: under privacy most of a small difference is their noise.
    seeds = np.vstack([np.ones((1, len(sides))), draw_cohorts(len(sides), draws, random)])
    found = {}
    for name in ("uar", "nll"):
        each = np.array([[getattr(side, f"measure_{name}")(cohorts) for side in p] for p in sides])
        means = np.einsum("spd,ds->pd", each, seeds) / len(sides)
        moved = means[1] - means[0]
        low, high = np.quantile(moved[1:], [0.025, 0.975])
        found[name] = {
            "usual": round(float(means[0][0]), 5),
            "variant": round(float(means[1][0]), 5),
            "difference": round(float(moved[0]), 5),
            "low": round(float(low), 5),
            "high": round(float(high), 5),
        }
    return found


def _side(table: Predictions) -> BootstrapSide:
    """The shared model's answers, by speaker; who is who follows the order of the names."""
    names = sorted(set(table.speakers))
    numbers = {name: number for number, name in enumerate(names)}
    users = np.array([numbers[name] for name in table.speakers], dtype=np.int64)
    return BootstrapSide(table.before, table.labels, users)


def _write(settings: AblationSettings) -> None:
    """The JSON and the page; what was not measured here stays as it was."""
    settings.out.mkdir(parents=True, exist_ok=True)
    path = settings.out / "ablation.json"
    lines = json.loads(path.read_text()) if path.is_file() else []
    known = {_key(line): line for line in lines}
    for protocol, unit in _pairs(settings):
        for variant in settings.variants(protocol, unit):
            if measured := _measure(settings, protocol, unit, variant):
                known[_key(measured)] = measured
    ordered = [
        known[key]
        for subject, variants in SUBJECTS.items()
        for protocol in PUBLIC
        for unit in UNITS
        for variant in variants
        if (key := (subject, protocol, unit, variant.name)) in known
    ]
    replace_text(path, json.dumps(ordered, indent=1) + "\n")
    replace_text(settings.out / "ablation.md", format_page(ordered))


def _key(line: Mapping[str, Any]) -> tuple[str, str, str, str]:
    return line["subject"], line["protocol"], line["unit"], line["variant"]


def _measure(
    settings: AblationSettings, protocol: str, unit: str, variant: Variant
) -> dict[str, Any] | None:
    """One line, of the seeds that both the usual recipe and the variant have been run with."""
    pairs = {}
    for seed in settings.seeds:
        both = [
            _read(settings.run_folder(protocol, unit, name, seed)) for name in (USUAL, variant.name)
        ]
        if both[0] is not None and both[1] is not None:
            pairs[seed] = both[0], both[1]
    if not pairs:
        return None
    compared = compare_runs([one for one, _ in pairs.values()], [two for _, two in pairs.values()])
    changes = dict(variant.recipe) | dict(variant.aggregation)
    plain = {
        name: asdict(value) if isinstance(value, Loss | Curriculum) else value
        for name, value in changes.items()
    }
    return {
        "subject": settings.subject,
        "protocol": protocol,
        "unit": unit,
        "variant": variant.name,
        "changes": plain | ({"encoder": variant.encoder} if variant.encoder else {}),
        "seeds": list(pairs),
        **compared,
    }


def _read(folder: Path) -> Predictions | None:
    """A run's predictions, if it has ended."""
    path = folder / "run.json"
    if not path.is_file():
        return None
    return read_predictions(folder, json.loads(path.read_text())["predictions"])[0]


def format_page(lines: Sequence[Mapping[str, Any]]) -> str:
    """Format the page of what has been measured.

    Args:
        lines: As ``ablation.json`` has them.

    Example:
        >>> format_page([]).splitlines()[0]
        '# Ablations'
    """
    head = (
        "# Ablations\n\n"
        "One part of training changed at a time, everything else the usual recipe of the promise "
        "(ε = 8 at δ = 1e-5 for one utterance, or no privacy), by `sottovoce ablate SUBJECT`. UAR "
        "and NLL of the shared model on speakers that training never saw, means over seeds. In "
        "brackets: a paired 95 % interval of the difference over new samples of those speakers "
        "and of the seeds (bootstrap, the same clips on both sides). *helps* and *hurts*: the "
        "interval of the UAR lies on one side of 0.\n\n"
        "Settings of the variants were set beforehand, once, and not tuned; the usual ones were. "
        "With this many lines one in twenty leaves 0 outside by chance; EMO-DB has ten speakers; "
        "and one seed shows nothing of the noise of a private line, three too little of it. "
        "Nothing here was used to choose a recipe. Speech for the projection is public: CREMA-D "
        "and RAVDESS for EMO-DB, RAVDESS for CREMA-D.\n"
    )
    parts = [head]
    for subject in SUBJECTS:
        own = [line for line in lines if line["subject"] == subject]
        if not own:
            continue
        parts.append(
            f"\n## {subject.capitalize()}\n\n"
            "| protocol | promise | variant | seeds | UAR, usual | variant | difference | NLL, "
            f"difference | |\n|{'---|' * 9}\n"
        )
        parts += [_row(line) for line in own]
        parts.append(f"\n`sottovoce ablate {subject} --corpora ../shared/corpora`\n")
    return "".join(parts)


def _row(line: Mapping[str, Any]) -> str:
    """One line of a table."""
    uar, nll = line["uar"], line["nll"]
    verdict = "helps" if uar["low"] > 0 else "hurts" if uar["high"] < 0 else ""
    promise = {"none": "none"}.get(line["unit"], "one utterance")
    return (
        f"| {line['protocol']} | {promise} | {line['variant']} | {len(line['seeds'])} | "
        f"{uar['usual']:.3f} | {uar['variant']:.3f} | {_interval(uar)} | {_interval(nll)} | "
        f"{verdict} |\n"
    )


def _interval(figures: Mapping[str, float]) -> str:
    """A difference with its interval."""
    return f"{figures['difference']:+.3f} ({figures['low']:+.3f} to {figures['high']:+.3f})"
