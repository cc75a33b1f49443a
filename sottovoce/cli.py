"""The command ``sottovoce``: parses words, imports what they need, and prints.

Exit status 0 on success, 2 on a usage error, 1 on a failure whose last line says what was wrong and
the way out. Rooms are imported only by the command that needs them, so ``--help`` is quick.
"""

import argparse
import errno
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sottovoce import __version__, owning, sweeping
from sottovoce.shared.errors import SettingError, SottovoceError

_PUBLIC = "NAME=DIR"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = _parser().parse_args(argv)
    if not hasattr(arguments, "run"):
        arguments.parser.print_help()
        return 2
    try:
        status: int = arguments.run(arguments)
    except SettingError as error:
        print(f"sottovoce: {error}", file=sys.stderr)
        return 2
    except SottovoceError as error:
        print(f"sottovoce: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"sottovoce: {_refused(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nsottovoce: stopped{_goes_on(arguments, argv)}", file=sys.stderr)
        return 130
    return status


def _goes_on(arguments: argparse.Namespace, argv: Sequence[str] | None) -> str:
    """How to go on with what was interrupted, where that can be."""
    if not hasattr(arguments, "resume"):
        return ""
    words = [shlex.quote(word) for word in (sys.argv[1:] if argv is None else argv)]
    again = " ".join(word for word in words if word != "--resume")
    return f"; what was finished is kept, go on with: sottovoce {again} --resume"


def _refused(error: OSError) -> str:
    """What the system would not do, where, and the way out."""
    where = f"{error.filename}: " if error.filename else ""
    ways = {
        errno.ENOSPC: "free some space; an interrupted run goes on with --resume",
        errno.EDQUOT: "free some of your quota; an interrupted run goes on with --resume",
        errno.EROFS: "choose a folder on a disk that can be written",
        errno.EACCES: "check its permissions, or choose another path",
    }
    way_out = ways.get(error.errno or 0, "check the path and run again")
    return f"{where}{error.strerror or error}; {way_out}"


def _parser() -> argparse.ArgumentParser:
    """All commands and their words."""
    parser = argparse.ArgumentParser(
        prog="sottovoce", description="Speech emotion recognition that hears no one."
    )
    parser.add_argument("--version", action="version", version=f"sottovoce {__version__}")
    parser.set_defaults(parser=parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for add in (
        _add_simulate,
        _add_sweep,
        _add_corpora,
        _add_report,
        _add_budget,
        _add_audit,
    ):
        add(commands)
    owning.add(commands, _command)
    return parser


def _command(
    commands: Any,  # noqa: ANN401  (argparse hides its type)
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
    example: str,
) -> argparse.ArgumentParser:
    """One command with its help and an example."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=text,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run, parser=parser)
    return parser


def _add_simulate(commands: Any) -> None:  # noqa: ANN401
    """``simulate``."""
    parser = _command(
        commands,
        "simulate",
        _simulate,
        "Run a federated simulation and write its report.",
        "sottovoce simulate --corpus ravdess --data ravdess --public cremad=cremad --epsilon 8",
    )
    add = parser.add_argument
    add("scenario", nargs="?", help="a .toml file, or the name of a scenario such as demo")
    add("--corpus", help="whose users: ravdess, cremad, emodb, savee, tess, folder, synthetic")
    add("--data", help="the corpus's folder; for synthetic: speakers=24,clips=30,seed=7")
    add("--users", type=int, help="with synthetic: a crowd of so many made-up users; see --cohort")
    add("--cohort", type=int, help="how many of the crowd a round draws, on average")
    add("--protocol", help="which speakers test which model (default: the corpus's usual one)")
    add("--unit", help="what is protected: utterance (default), user, both or none")
    add("--epsilon", type=float, help="budget of every device's life (default 8)")
    add("--delta", type=float, help="chance of more loss (default: utterance 1e-5, user 1e-3)")
    add("--user-delta", type=float, help="with --unit both: the user's (default 1e-3)")
    add("--secure", action="store_true", default=None, help="with --unit user: secure sums")
    add("--tuned-over", type=int, help="runs that settings were chosen by; all are charged for")
    add("--rounds", type=int, help="rounds of training (default: the recipe's)")
    add("--engine", help="local (default) or ray")
    add("--address", help="with --engine ray: a Ray cluster to run on, auto or HOST:PORT")
    add("--workers", type=int, help="processes that run clients (default 1)")
    add("--encoder", help="feature extractor (default: the model's usual one)")
    add("--model", help="linear, mlp, cnn-attention, tcn or bilstm-attention")
    add("--public", action="append", metavar=_PUBLIC, help="a corpus declared public")
    add("--enrolment", help="what a test user's normaliser knows: none, neutral:K, all (default)")
    add("--head-clips", type=int, help="labelled clips for each test user's head (default 5)")
    add("--baselines", help="compare with: central,local_only,federated_no_privacy")
    add("--seed", type=int, help="decides every draw (default 0)")
    add("--out", type=Path, help="the run folder (default: runs/CORPUS-SEED)")
    add("--resume", action="store_true", help="go on with an interrupted run")
    add("--quiet", action="store_true", help="print the summary only")
    add("--json", action="store_true", help="print run.json instead of the summary")


def _simulate(arguments: argparse.Namespace) -> int:
    """Settle the scenario, run it, print its summary."""
    from sottovoce.simulations.console import Console
    from sottovoce.simulations.pipeline import simulate
    from sottovoce.simulations.summary import summary

    scenario = _scenario(arguments)
    name = Path(arguments.scenario).stem if arguments.scenario else scenario.corpus
    out = arguments.out or Path("runs") / f"{name}-{scenario.seed}"
    with Console(quiet=arguments.quiet or arguments.json) as console:
        run = simulate(
            scenario,
            out,
            resume=arguments.resume,
            address=arguments.address,
            tell=console.tell,
            progress=console.progress,
            show=console.show,
        )
    _print(run) if arguments.json else print(summary(run, out))
    return 0


def _scenario(arguments: argparse.Namespace) -> Any:  # noqa: ANN401
    """The scenario that file and options together mean."""
    from sottovoce.simulations import scenario as scenarios
    from sottovoce.simulations.reading import find

    given = {
        name: getattr(arguments, name)
        for name in (
            "corpus",
            "data",
            "protocol",
            "unit",
            "epsilon",
            "delta",
            "user_delta",
            "secure",
            "tuned_over",
            "rounds",
            "engine",
            "workers",
            "encoder",
            "enrolment",
            "head_clips",
            "seed",
        )
        if getattr(arguments, name) is not None
    }
    if arguments.public is not None:
        given["public"] = tuple(_public(text) for text in arguments.public)
    if arguments.baselines is not None:
        given["baselines"] = tuple(name for name in arguments.baselines.split(",") if name)
    if arguments.scenario is None:
        if "corpus" not in given:
            raise SettingError("say what to simulate: a scenario such as demo, or --corpus NAME")
        crowd = _crowd(arguments, None)
        plain = scenarios.Scenario(**_delta_of_unit(given, ""), population=crowd)
        return scenarios.settle(plain, model=arguments.model)
    found = find(arguments.scenario)
    if arguments.users or arguments.cohort:
        given["population"] = _crowd(arguments, found.population)
    changed = replace(found, **_delta_of_unit(given, found.unit))
    if arguments.model or changed.unit != found.unit:
        fresh: dict[str, Any] = {} if arguments.encoder else {"encoder": ""}
        rounds: dict[str, Any] = {} if arguments.rounds else {"rounds": 0}
        return scenarios.settle(replace(changed, **fresh, **rounds), model=arguments.model)
    return changed


def _crowd(arguments: argparse.Namespace, known: Any) -> Any:  # noqa: ANN401
    """The population that the options mean, from the scenario's own if it has one."""
    from sottovoce.simulations.population.settings import PopulationSettings

    names = ("users", "cohort")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name)}
    if known is not None:
        return replace(known, **given)
    if given and set(given) != set(names):
        raise SettingError("a crowd needs both --users and --cohort")
    return PopulationSettings(**given) if given else None


def _delta_of_unit(given: dict[str, Any], unit: str) -> dict[str, Any]:
    """``--delta`` is the user's where only users are hidden."""
    if given.get("unit", unit) != "user" or "delta" not in given:
        return given
    return {"user_delta": given["delta"], **{k: v for k, v in given.items() if k != "delta"}}


def _public(text: str) -> tuple[str, str]:
    """NAME=DIR."""
    name, sign, data = text.partition("=")
    if not name or not (sign or name == "synthetic"):
        raise SettingError(f"--public is {text!r}; it must be {_PUBLIC}, such as cremad=../cremad")
    return name, data


def _add_sweep(commands: Any) -> None:  # noqa: ANN401
    """``sweep``."""
    sweeping.add(commands, _command)


def _add_corpora(commands: Any) -> None:  # noqa: ANN401
    """``corpora``."""
    parser = _command(
        commands,
        "corpora",
        _corpora,
        "List known corpora, or check one.",
        "sottovoce corpora check cremad --data DIR",
    )
    parser.add_argument("action", choices=("list", "check"))
    parser.add_argument("name", nargs="?", help="the corpus to check")
    parser.add_argument("--data", help="its folder")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _corpora(arguments: argparse.Namespace) -> int:
    """List or check."""
    from sottovoce.simulations.corpora import TITLES, check, open_corpus

    if arguments.action == "list":
        if arguments.json:
            _print(dict(TITLES))
        else:
            width = max(map(len, TITLES))
            print("\n".join(f"{name:<{width}}  {title}" for name, title in TITLES.items()))
        return 0
    if arguments.name is None:
        raise SettingError("which corpus? sottovoce corpora check NAME --data DIR")
    report = check(open_corpus(arguments.name, arguments.data))
    _print(report.as_dict()) if arguments.json else print("\n".join(report.lines()))
    return 0


def _add_report(commands: Any) -> None:  # noqa: ANN401
    """``report``."""
    parser = _command(
        commands,
        "report",
        _report,
        "Render a run's pages again from the JSON beside them.",
        "sottovoce report runs/demo",
    )
    parser.add_argument("run_folder", type=Path, metavar="RUN")


def _report(arguments: argparse.Namespace) -> int:
    """Render both pages."""
    from sottovoce.simulations.reports import render

    for path in render(arguments.run_folder):
        print(path)
    return 0


def _add_budget(commands: Any) -> None:  # noqa: ANN401
    """``budget``."""
    parser = _command(
        commands,
        "budget",
        _budget,
        "Recompute every epsilon of a run from its ledgers, by two independent accountants.",
        "sottovoce budget runs/demo",
    )
    parser.add_argument("run_folder", type=Path, metavar="RUN")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _budget(arguments: argparse.Namespace) -> int:
    """Recompute and compare."""
    from sottovoce.simulations.recount import recount

    counted = recount(arguments.run_folder)
    if arguments.json:
        _print(counted.to_dict())
    else:
        print("\n".join(counted.lines()))
    return 0 if counted.agrees else 1


def _add_audit(commands: Any) -> None:  # noqa: ANN401
    """``audit``."""
    parser = _command(
        commands,
        "audit",
        _audit,
        "Attack a run: lower bounds on epsilon, membership, gender, speaker, features.",
        "sottovoce audit runs/demo",
    )
    parser.add_argument("run_folder", type=Path, metavar="RUN")
    parser.add_argument("--seed", type=int, default=0, help="decides every draw (default 0)")
    parser.add_argument(
        "--lives",
        type=int,
        default=400,
        help="lives of the canary's device, with and without it; more are tighter (default 400)",
    )
    parser.add_argument("--quiet", action="store_true", help="print the table only")
    parser.add_argument("--json", action="store_true", help="print audit.json")


def _audit(arguments: argparse.Namespace) -> int:
    """Attack; a claim that an attack refutes is a failure."""
    from sottovoce.simulations.audit.attack import Effort, audit
    from sottovoce.simulations.audit.table import table
    from sottovoce.simulations.console import Console

    with Console(quiet=arguments.quiet or arguments.json) as console:
        found = audit(
            arguments.run_folder,
            seed=arguments.seed,
            effort=Effort(lives=arguments.lives),
            tell=console.tell,
            progress=console.progress,
        )
    _print(found) if arguments.json else print("\n".join(table(found)))
    return 0 if found["holds"] else 1


def _print(value: object) -> None:
    """Print JSON for a program."""
    import json

    print(json.dumps(value, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    sys.exit(main())
