"""Run the two apps as a bundle on a SuperLink and SuperNodes on this machine's loopback.

Users of a corpus become devices on disk; each gets a SuperNode, a process of its own. Their noise
comes from the operating system, as on any real device, so no two runs give the same model.

    python scripts/loopback.py
    python scripts/loopback.py --data RAVDESS_FOLDER --public cremad=CREMAD_FOLDER
    python scripts/loopback.py --unit user --secure --delta 1e-3
"""

import argparse
import hashlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from sottovoce.client.device import Device
from sottovoce.client.owner import Clips, Facts
from sottovoce.server import checkpoint
from sottovoce.server.heads import HeadStore
from sottovoce.server.job import Job
from sottovoce.shared.errors import CorpusError, SettingError, SottovoceError
from sottovoce.shared.features.cache import FeatureCache
from sottovoce.shared.plan import Plan
from sottovoce.simulations import promise
from sottovoce.simulations.corpora.catalogue import open_corpus
from sottovoce.simulations.corpora.clips import Clip
from sottovoce.simulations.engines import deployed
from sottovoce.simulations.features import features
from sottovoce.simulations.hearing import cache_folder
from sottovoce.simulations.material import Material, prepare, public_speech
from sottovoce.simulations.preparation import plan_of
from sottovoce.simulations.scenario import CLASS_EXPONENTS, Scenario, settle
from sottovoce.simulations.world import introduce

REPOSITORY = Path(__file__).resolve().parent.parent
MADE_UP_USERS = "speakers=3,clips=18,seed=7"
MADE_UP_PUBLIC = ("synthetic", "speakers=16,clips=12,seed=90210")
HEAD_CLIPS = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A job and its devices, ready to run.

    Attributes:
        job: The job's folder.
        devices: The devices' folders.
        plan: The plan.
    """

    job: Path
    devices: list[Path]
    plan: Plan


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare, run, show; returns the exit status."""
    arguments = _parser().parse_args(argv)
    own = arguments.out is None
    out = Path(tempfile.mkdtemp(prefix="sottovoce-loopback-")) if own else arguments.out
    finished = False
    try:
        torch.set_num_threads(1)
        prepared = _prepare(arguments, out)
        deployed.run_apps(
            config={"job": str(prepared.job), "devices": ""},
            devices=prepared.devices,
            app=REPOSITORY,
            home=out / "flower",
            timeout_s=arguments.timeout,
            tell=_tell,
        )
        _show(prepared, out)
        finished = True
    except SottovoceError as error:
        print(f"loopback: {error}", file=sys.stderr)
        return 2 if isinstance(error, SettingError) else 1
    except KeyboardInterrupt:
        print("loopback: stopped; every process it started was stopped", file=sys.stderr)
        return 130
    finally:
        if own and finished:
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
    add("--secure", action="store_true", help="with --unit user: secure sums")
    add("--epsilon", type=float, default=8.0, help="budget of every device's life (default 8)")
    add("--delta", type=float, help="chance of more loss (default: utterance 1e-5, user 1e-3)")
    add("--timeout", type=float, default=900.0, help="seconds the run may take (default 900)")
    add("--out", type=Path, help="where all of it is kept (default: a temporary folder)")
    return parser


def _prepare(arguments: argparse.Namespace, out: Path) -> Prepared:
    """Make the job and the devices."""
    if out.exists() and any(out.iterdir()):
        raise SettingError(f"{out} is not empty; give another --out")
    if arguments.speakers < 1:
        raise SettingError(f"speakers is {arguments.speakers}; it must be at least 1")
    scenario = _scenario(arguments)
    material = _material(scenario, arguments.speakers, out)
    plan = _plan(scenario, material)
    folder = (out / "job").resolve()
    Job(
        plan=plan,
        aggregation=scenario.recipe.aggregation,
        weights=material.start,
        front=material.front,
        population=material.population,
        devices=len(material.clips),
        budgets=promise.sum_budgets(scenario),
        timeout_s=arguments.timeout,
        class_exponent=CLASS_EXPONENTS[scenario.recipe.class_weights],
        held_out=material.held_out,
    ).save(folder)
    devices = []
    for number, user in enumerate(material.clips, 1):
        devices.append((out / "devices" / f"{number:06d}").resolve())
        _device(devices[-1], user, scenario, material)
    introduce([Device(folder) for folder in devices])
    return Prepared(job=folder, devices=devices, plan=plan)


def _scenario(arguments: argparse.Namespace) -> Scenario:
    """What the options mean."""
    corpus = arguments.corpus or ("ravdess" if arguments.data else "synthetic")
    made_up = corpus == "synthetic" and not arguments.data
    name = "user_delta" if arguments.unit == "user" else "delta"
    deltas = {} if arguments.delta is None else {name: arguments.delta}
    scenario = Scenario(
        corpus=corpus,
        data=MADE_UP_USERS if made_up else arguments.data,
        public=tuple(_public(word) for word in arguments.public or ()),
        unit=arguments.unit,
        secure=arguments.secure,
        epsilon=arguments.epsilon,
        **deltas,
        rounds=arguments.rounds,
    )
    settled = settle(scenario)
    # So few devices can spare none.
    user = replace(settled.recipe.user, dropout=0.0, corruption=0.0)
    return replace(settled, recipe=replace(settled.recipe, user=user))


def _public(word: str) -> tuple[str, str]:
    """A corpus and its folder."""
    name, equals, folder = word.partition("=")
    if not equals:
        raise SettingError(f"--public is {word!r}; it must be NAME=DIR")
    return name, folder


def _material(scenario: Scenario, speakers: int, out: Path) -> Material:
    """Features of a few users, and what public speech teaches."""
    cache = FeatureCache(cache_folder())
    corpus = open_corpus(scenario.corpus, scenario.data)
    chosen = corpus.speakers[:speakers]
    if len(chosen) < speakers:
        raise CorpusError(f"{corpus.name} has {len(chosen)} speakers; ask for fewer --speakers")
    own = _heard([clip for clip in corpus.clips if clip.speaker in chosen], scenario, cache)
    public = [
        _heard(open_corpus(name, data).clips, scenario, cache)
        for name, data in scenario.public or (MADE_UP_PUBLIC,)
    ]
    spoken, neutral = public_speech(corpus.emotions, public)
    return prepare(
        labels=corpus.emotions,
        features=own[1],
        clips={user: tuple(clip for clip in own[0] if clip.speaker == user) for user in chosen},
        spoken=spoken,
        neutral=neutral,
        spec=promise.open_plan(scenario, run="", labels=corpus.emotions, inputs=1).model,
        recipe=scenario.recipe,
        user_mean=True,
        warm=bool(scenario.public),
        seed=scenario.seed,
        folder=out,
    )


def _heard(
    clips: Sequence[Clip], scenario: Scenario, cache: FeatureCache
) -> tuple[list[Clip], Mapping[str, Tensor]]:
    """Clips that can be used, and their features."""
    table = features(clips, scenario.encoder, cache, workers=os.cpu_count())
    _tell(f"features of {len(table.features)} clips in {table.seconds:.0f} s")
    return [clip for clip in clips if clip.clip_id in table.features], table.features


def _plan(scenario: Scenario, material: Material) -> Plan:
    """A private plan; its name is new, since its noise can never be repeated."""
    plan = plan_of(scenario, material, f"loopback-{os.urandom(4).hex()}")
    return promise.secured(plan, scenario, devices=len(material.clips))


def _device(folder: Path, user: str, scenario: Scenario, material: Material) -> None:
    """A user's real device: no seed, so its noise comes from the operating system."""
    clips = list(material.clips[user])
    place = torch.arange(len(clips))
    # A head learns from clips that training has not seen, spread over the user's emotions.
    heads = place % max(len(clips) // HEAD_CLIPS, 2) == 0
    held = Clips(
        examples=material.examples(clips),
        enrols=torch.ones(len(clips), dtype=torch.bool),
        calibrates=heads,
        trains=~heads,
    )
    facts = Facts(user=user, budgets=promise.budgets(scenario), labels=material.labels)
    Device.create(folder, facts, held)


def _show(prepared: Prepared, out: Path) -> None:
    """What came out: the model's hash, each device's ledger, the sealed heads."""
    tensors, _ = checkpoint.released(prepared.job)
    state = checkpoint.latest(prepared.job, prepared.plan.digest())
    print(f"rounds      {state.round if state else 0} of {prepared.plan.rounds}")
    print(f"model       sha256 {prepared.plan.model_hash(tensors['weights'])}")
    bundle = next((out / "flower" / "bundle").glob("*.fab"))
    print(f"bundle      sha256 {hashlib.sha256(bundle.read_bytes()).hexdigest()}")
    print(f"heads       {len(HeadStore(prepared.job / 'heads.sqlite').users())} sealed")
    print(f"{'device':<12}{'releases':>9}{'epsilon':>9}{'budget':>8}  ledger's last line")
    for folder in prepared.devices:
        device = Device(folder)
        budget = device.facts.budgets[0]
        spent = device.ledger.epsilon(budget.delta, budget.unit)
        print(
            f"{device.facts.user:<12}{len(device.ledger.releases):>9}{spent:>9.3f}"
            f"{budget.epsilon:>8g}  {device.ledger.head[:16]}"
        )


def _tell(line: str) -> None:
    """One line of progress."""
    print(line, file=sys.stderr, flush=True)


def _stop(_number: int, _frame: object) -> NoReturn:
    """Treat a request to end as Ctrl-C."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)  # so that the processes started here are stopped too
    sys.exit(main())
