"""Run the two apps as a bundle on a SuperLink and SuperNodes on this machine's loopback.

Users of a corpus become devices on disk; each gets a SuperNode, a process of its own. Their noise
comes from the operating system, as on any real device, so no two runs give the same model.

    python -m sottovoce.simulations.engines.loopback
    python -m sottovoce.simulations.engines.loopback --data RAVDESS --public cremad=CREMAD
    python -m sottovoce.simulations.engines.loopback --unit user --secure-aggregation
"""

import argparse
import hashlib
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch

from sottovoce.client.device.device import Device
from sottovoce.server.federation import checkpoint
from sottovoce.server.personalisation.head_store import HeadStore
from sottovoce.shared.errors import SettingError, SottovoceError
from sottovoce.shared.printable import print_lines
from sottovoce.shared.protocol.events import Event, RoundEnded
from sottovoce.simulations.engines import deployed
from sottovoce.simulations.engines.loopback_run import PreparedRun, prepare_run
from sottovoce.simulations.scenario.loading import vary_scenario
from sottovoce.simulations.scenario.scenario import Scenario

REPOSITORY = Path(__file__).resolve().parents[2]
SYNTHETIC_USERS = "speakers=3,clips=18,seed=7"


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare, run and print; returns the exit status."""
    arguments = _parser().parse_args(argv)
    own = arguments.out is None
    out = Path(tempfile.mkdtemp(prefix="sottovoce-loopback-")) if own else arguments.out
    finished = False
    try:
        torch.set_num_threads(1)
        prepared = prepare_run(
            _scenario(arguments),
            out,
            speakers=arguments.speakers,
            timeout_s=arguments.timeout,
            on_message=_print_status,
        )
        deployed.run_apps(
            config={"job": str(prepared.job), "devices": ""},
            devices=prepared.devices,
            app=REPOSITORY,
            home=out / "flower",
            timeout_s=arguments.timeout,
            on_message=_print_status,
            listener=_PrintedRounds(),
        )
        _print_results(prepared, out)
        finished = True
    except SottovoceError as error:
        print_lines(f"loopback: {error}", file=sys.stderr)
        # 2 for a mistake in the options, as argparse has it; 1 for a run that failed.
        return 2 if isinstance(error, SettingError) else 1
    except KeyboardInterrupt:
        print_lines("loopback: stopped; all its processes were stopped", file=sys.stderr)
        return 130
    finally:
        if own and finished:
            # A folder of a failed run stays, with its logs.
            shutil.rmtree(out, ignore_errors=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    """The options."""
    text, _, examples = (__doc__ or "").partition("\n\n    ")
    parser = argparse.ArgumentParser(
        description=text,
        epilog=f"examples:\n    {examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--corpus", help="whose users (default: ravdess with --data, else synthetic)")
    add("--data", default="", help="the corpus's folder; for synthetic its options")
    add("--public", action="append", metavar="NAME=DIR", help="a corpus declared public")
    add("--speakers", type=int, default=3, help="users, one SuperNode each (default 3)")
    add("--rounds", type=int, default=2, help="rounds of training (default 2)")
    add("--unit", default="utterance", help="what is protected: utterance, user or both")
    add("--secure-aggregation", action="store_true", help="with --unit user: secure sums")
    add("--epsilon", type=float, default=8.0, help="budget of every device (default 8)")
    add("--utterance-delta", type=float, default=1e-5, help="for one utterance (default 1e-5)")
    add("--user-delta", type=float, default=1e-3, help="for one user (default 1e-3)")
    add("--timeout", type=float, default=900.0, help="seconds the run may take (default 900)")
    add("--out", type=Path, help="where all of it is written (default: a temporary folder)")
    return parser


def _scenario(arguments: argparse.Namespace) -> Scenario:
    """What the options mean."""
    corpus = arguments.corpus or ("ravdess" if arguments.data else "synthetic")
    synthetic = corpus == "synthetic" and not arguments.data
    settings = {
        "corpus": corpus,
        "data": SYNTHETIC_USERS if synthetic else arguments.data,
        "public": tuple(_public(word) for word in arguments.public or ()),
        "unit": arguments.unit,
        "secure": arguments.secure_aggregation,
        "epsilon": arguments.epsilon,
        "delta": arguments.utterance_delta,
        "user_delta": arguments.user_delta,
        "rounds": arguments.rounds,
        # So few devices can spare none.
        "recipe": {"user": {"dropout": 0.0, "corruption": 0.0}},
    }
    return vary_scenario(None, settings)


def _public(word: str) -> tuple[str, str]:
    """A corpus and its folder."""
    name, equals, folder = word.partition("=")
    if not equals:
        raise SettingError(f"--public is {word!r}; it must be NAME=DIR")
    return name, folder


def _print_results(prepared: PreparedRun, out: Path) -> None:
    """What came out: the model's hash, each device's ledger, the sealed heads."""
    tensors, _ = checkpoint.load_released_model(prepared.job)
    state = checkpoint.load_state(prepared.job, prepared.plan.content_hash())
    print_lines(f"rounds      {state.round if state else 0} of {prepared.plan.rounds}")
    print_lines(f"model       sha256 {prepared.plan.hash_model(tensors['weights'])}")
    bundle = next((out / "flower" / "bundle").glob("*.fab"))
    print_lines(f"bundle      sha256 {hashlib.sha256(bundle.read_bytes()).hexdigest()}")
    print_lines(f"heads       {len(HeadStore(prepared.job / 'heads.sqlite').list_users())} sealed")
    print_lines(f"{'device':<12}{'releases':>9}{'epsilon':>9}{'budget':>8}  ledger's last line")
    for folder in prepared.devices:
        device = Device.open(folder)
        budget = device.profile.budgets[0]
        spent = device.ledger.charged_epsilon(budget)
        print_lines(
            f"{device.profile.user:<12}{len(device.ledger.releases):>9}{spent:>9.3f}"
            f"{budget.epsilon:>8g}  {device.ledger.head_hash[:16]}"
        )


class _PrintedRounds:
    """The listener that prints each round."""

    def handle_event(self, event: Event, /) -> None:
        """Print one event."""
        if isinstance(event, RoundEnded):
            _print_status(f"round {event.round} of {event.total_rounds}")


def _print_status(line: str) -> None:
    """One line of progress."""
    print_lines(line, file=sys.stderr)


def _stop(_number: int, _frame: object) -> NoReturn:
    """Treat a request to end as Ctrl-C."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)  # so that the processes started here are stopped too
    sys.exit(main())
