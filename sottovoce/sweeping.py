"""The command ``sottovoce sweep``: many runs, one page."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sottovoce.shared.errors import SettingError

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
_PLAIN = ("corpus", "data", "protocol", "delta", "user_delta", "secure", "head_clips", "engine")


def add(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:  # noqa: ANN401
    """``sweep``."""
    parser = command(
        commands,
        "sweep",
        run,
        "Run many simulations over a grid of settings; ends in one page of curves and a table.",
        "sottovoce sweep --corpus ravdess --data ravdess --public cremad=cremad "
        "--epsilons 1,2,4,8 --units utterance,user --seeds 0,1,2 --out sweeps/ravdess",
    )
    add = parser.add_argument
    add("scenario", nargs="?", help="a .toml file with a table [sweep], or a scenario such as demo")
    add("--corpus", help="whose users, as for simulate")
    add("--data", help="the corpus's folder")
    add("--protocol", help="which speakers test which model")
    add("--public", action="append", metavar="NAME=DIR", help="a corpus declared public")
    add("--delta", type=float, help="chance of more loss, for one utterance (default 1e-5)")
    add("--user-delta", type=float, help="the same for one user (default 1e-3)")
    add("--secure", action="store_true", default=None, help="with --units user: secure sums")
    add("--head-clips", type=int, help="labelled clips for each test user's head (default 5)")
    add("--epsilons", metavar="E,E", help="budgets to sweep over")
    add("--units", metavar="U,U", help="utterance, user, both, none")
    add("--rounds", metavar="N,N", help="numbers of rounds")
    add("--encoders", metavar="NAME,NAME", help="feature extractors")
    add("--enrolments", metavar="KIND,KIND", help="none, neutral:K, all")
    add("--models", metavar="NAME,NAME", help="linear, mlp, cnn-attention, tcn, bilstm-attention")
    add("--seeds", metavar="N,N", help="seeds; figures are means over them")
    add(
        "--vary",
        action="append",
        metavar="SETTING=V,V",
        help="any other setting of a scenario's file, such as recipe.clip_norm=0.3,0.5",
    )
    add("--out", type=Path, help="the sweep's folder (default: sweeps/CORPUS)")
    add("--workers", type=int, default=1, help="runs at a time, a process each (default 1)")
    add("--engine", help="of every run: local (default) or ray")
    add("--address", help="with --engine ray: a Ray cluster to run on, auto or HOST:PORT")
    add("--resume", action="store_true", help="go on: finished runs are kept")
    add("--quiet", action="store_true", help="print the page's path only")
    add("--json", action="store_true", help="print sweep.json")


def run(arguments: argparse.Namespace) -> int:
    """Settle what is swept over, run it, and say where the page is."""
    from sottovoce.simulations.console import Console
    from sottovoce.simulations.runfile import dumps
    from sottovoce.simulations.sweeps.grid import Sweep
    from sottovoce.simulations.sweeps.runner import sweep

    base, axes = _settled(arguments)
    plan = Sweep(base=base, axes=axes)
    name = Path(arguments.scenario).stem if arguments.scenario else base["corpus"]
    out = arguments.out or Path("sweeps") / name
    with Console(quiet=arguments.quiet or arguments.json) as console:
        told = sweep(
            plan,
            out,
            workers=arguments.workers,
            address=arguments.address,
            resume=arguments.resume,
            tell=console.tell,
            progress=console.progress,
        )
    print(dumps(told) if arguments.json else out / "sweep.html")
    return 0


def _settled(arguments: argparse.Namespace) -> tuple[dict[str, Any], tuple["Axis", ...]]:
    """The scenario's tables and what varies: the file's, then the options'."""
    from sottovoce.cli import _public
    from sottovoce.simulations.reading import table_of
    from sottovoce.simulations.sweeps.grid import axes_of

    base = table_of(arguments.scenario) if arguments.scenario else {}
    axes = {axis.setting: axis for axis in axes_of(base.pop("sweep", {}))}
    for name in _PLAIN:
        if getattr(arguments, name) is not None:
            base[name] = getattr(arguments, name)
    if arguments.public is not None:
        pairs = (_public(text) for text in arguments.public)
        base["public"] = [{"name": name, "data": data} for name, data in pairs]
    if "corpus" not in base:
        raise SettingError("say what to sweep over: a scenario such as demo, or --corpus NAME")
    for axis in _given(arguments):
        axes[axis.setting] = axis
    return base, tuple(axes.values())


def _given(arguments: argparse.Namespace) -> list["Axis"]:
    """The axes that options name."""
    from sottovoce.simulations.sweeps.grid import Axis

    texts = {setting: getattr(arguments, option) for option, setting in _AXES.items()}
    for text in arguments.vary or []:
        setting, sign, values = text.partition("=")
        if not sign or not setting:
            raise SettingError(f"--vary is {text!r}; it must be SETTING=VALUE,VALUE")
        texts[setting] = values
    return [
        Axis(setting=setting, values=tuple(_value(word) for word in text.split(",") if word))
        for setting, text in texts.items()
        if text is not None
    ]


def _value(word: str) -> str | int | float | bool:
    """A word as TOML would read it; any other is a text."""
    if word in ("true", "false"):
        return word == "true"
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word
