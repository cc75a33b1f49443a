"""The command ``sottovoce sweep``: many runs, one page."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sottovoce.cli.options import (
    Commands,
    add_command,
    add_data_options,
    add_evaluation_options,
    add_privacy_options,
    add_run_options,
    parse_public_corpus,
)
from sottovoce.shared.errors import SettingError
from sottovoce.shared.printable import print_json_text, print_lines

if TYPE_CHECKING:
    from sottovoce.simulations.sweeps.grid import Axis

_AXES = {
    "epsilons": "epsilon",
    "units": "unit",
    "rounds": "rounds",
    "encoders": "encoder",
    "enrolments": "enrolment",
    "models": "recipe.model",
    "seeds": "seed",
}
"""Options that name the values of an axis, and the setting that varies along it."""

_SETTINGS = (
    "corpus",
    "data",
    "protocol",
    "label_map",
    "follow_links",
    "delta",
    "user_delta",
    "secure",
    "labelled_clips_per_user",
    "engine",
)
"""Settings of every run whose option sets them as it stands."""


def add_sweep_command(commands: Commands) -> None:
    """Add the command ``sweep``."""
    parser = add_command(
        commands,
        "sweep",
        run_sweep_command,
        "Run many simulations over a grid of settings; ends in one page of curves and a table.",
        "sottovoce sweep --corpus ravdess --data ravdess --public cremad=cremad "
        "--epsilons 1,2,4,8 --units utterance,user --seeds 0,1,2 --out sweeps/ravdess",
    )
    parser.add_argument(
        "scenario",
        nargs="?",
        help="a .toml file with a table [sweep], or a scenario such as demo",
    )
    add_data_options(parser)
    add = parser.add_argument_group("what varies").add_argument
    add("--epsilons", metavar="E,E", help="budgets to sweep over")
    add("--units", metavar="U,U", help="utterance, user, both, none")
    add("--rounds", metavar="N,N", help="numbers of rounds")
    add("--encoders", metavar="NAME,NAME", help="feature extractors")
    add("--enrolments", metavar="KIND,KIND", help="none, neutral:K, all")
    add("--models", metavar="NAME,NAME", help="linear, mlp, cnn-attention, tcn, bilstm-attention")
    add("--seeds", metavar="N,N", help="seeds; figures are means over them")
    add(
        "--set",
        dest="axes",
        action="append",
        metavar="SETTING=V,V",
        help="any other setting of a scenario's file, such as recipe.clip_norm=0.3,0.5",
    )
    add_privacy_options(parser)
    add_evaluation_options(parser)
    add = add_run_options(parser).add_argument
    add("--workers", type=int, default=1, metavar="N", help="runs at a time (default 1)")
    add("--out", type=Path, metavar="DIR", help="the sweep's folder (default: sweeps/CORPUS)")
    add("--resume", action="store_true", help="go on: finished runs are kept")
    add("--quiet", action="store_true", help="print the page's path only")
    add("--json", action="store_true", help="print sweep.json")


def run_sweep_command(arguments: argparse.Namespace) -> int:
    """Build the grid, run it, and print where the page is."""
    from sottovoce.cli.progress_bar import ProgressConsole
    from sottovoce.simulations.results.schema import dump_json
    from sottovoce.simulations.sweeps.grid import Sweep
    from sottovoce.simulations.sweeps.runner import run_sweep

    base, axes = _base_and_axes(arguments)
    name = Path(arguments.scenario).stem if arguments.scenario else base["corpus"]
    out = arguments.out or Path("sweeps") / name
    with ProgressConsole(quiet=arguments.quiet or arguments.json) as console:
        found = run_sweep(
            Sweep(base=base, axes=axes),
            out,
            workers=arguments.workers,
            address=arguments.address,
            resume=arguments.resume,
            on_message=console.print_message,
            on_progress=console.update_progress,
        )
    if arguments.json:
        print_json_text(dump_json(found))
    else:
        print_lines(out / "sweep.html")
    return 0


def _base_and_axes(arguments: argparse.Namespace) -> tuple[dict[str, Any], tuple["Axis", ...]]:
    """The scenario's tables and what varies: the file's, then the options'."""
    from sottovoce.simulations.scenario.loading import load_tables
    from sottovoce.simulations.sweeps.grid import parse_axes

    base = load_tables(arguments.scenario) if arguments.scenario else {}
    axes = {axis.setting: axis for axis in parse_axes(base.pop("sweep", {}))}
    for name in _SETTINGS:
        if getattr(arguments, name) is not None:
            base[name] = getattr(arguments, name)
    if arguments.public is not None:
        pairs = (parse_public_corpus(text) for text in arguments.public)
        base["public"] = [{"name": name, "data": data} for name, data in pairs]
    if "corpus" not in base:
        raise SettingError("say what to sweep over: a scenario such as demo, or --corpus NAME")
    for axis in _axes_from_options(arguments):
        axes[axis.setting] = axis
    return base, tuple(axes.values())


def _axes_from_options(arguments: argparse.Namespace) -> list["Axis"]:
    """The axes that options name."""
    from sottovoce.simulations.sweeps.grid import Axis

    texts = {setting: getattr(arguments, option) for option, setting in _AXES.items()}
    for text in arguments.axes or []:
        setting, sign, values = text.partition("=")
        if not sign or not setting:
            raise SettingError(f"--set is {text!r}; it must be SETTING=VALUE,VALUE")
        texts[setting] = values
    return [
        Axis(setting=setting, values=tuple(_parse_value(word) for word in text.split(",") if word))
        for setting, text in texts.items()
        if text is not None
    ]


def _parse_value(word: str) -> str | int | float | bool:
    """A word as TOML would read it; any other is a text."""
    if word in ("true", "false"):
        return word == "true"
    # int first: float would take whole numbers too, and a seed of 0.0 is none.
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word
