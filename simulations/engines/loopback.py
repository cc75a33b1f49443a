"""Run the two apps as a bundle on a SuperLink and SuperNodes on this machine's loopback.

Users of a corpus become devices on disk; each gets a SuperNode, a process of its own. Their noise
comes from the operating system, as on any real device, so no two runs give the same model.

    python -m sottovoce.simulations.engines.loopback
    python -m sottovoce.simulations.engines.loopback --data RAVDESS --public cremad=CREMAD
    python -m sottovoce.simulations.engines.loopback --unit user --secure-aggregation
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

from sottovoce.client.device.device import Device
from sottovoce.client.device.profile import DeviceProfile, LabelledFeatures
from sottovoce.server.federation import checkpoint
from sottovoce.server.federation.training_job import Job
from sottovoce.server.personalisation.head_store import HeadStore
from sottovoce.server.planning import noise_calibration
from sottovoce.server.planning.recipe import CLASS_EXPONENTS
from sottovoce.shared.errors import CorpusError, SettingError, SottovoceError
from sottovoce.shared.features.cache import FeatureCache
from sottovoce.shared.protocol.events import Event, RoundEnded
from sottovoce.shared.protocol.training_plan import Plan
from sottovoce.simulations.corpora.catalogue import open_corpus
from sottovoce.simulations.corpora.corpus import Clip
from sottovoce.simulations.data import run_plan
from sottovoce.simulations.data.feature_extraction import extract_features
from sottovoce.simulations.data.fold_inputs import (
    FoldInputs,
    PretrainingSettings,
    UserSpeech,
    merge_public_corpora,
    pretrain,
)
from sottovoce.simulations.data.loading import cache_folder
from sottovoce.simulations.data.pretraining import build_plan
from sottovoce.simulations.engines import deployed
from sottovoce.simulations.runs.fold_devices import pin_rosters
from sottovoce.simulations.scenario.scenario import Scenario, fill_defaults

REPOSITORY = Path(__file__).resolve().parents[2]
SYNTHETIC_USERS = "speakers=3,clips=18,seed=7"
SYNTHETIC_PUBLIC = ("synthetic", "speakers=16,clips=12,seed=90210")
LABELLED_CLIPS = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedRun:
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
    """Prepare, run and print; returns the exit status."""
    arguments = _parser().parse_args(argv)
    own = arguments.out is None
    out = Path(tempfile.mkdtemp(prefix="sottovoce-loopback-")) if own else arguments.out
    finished = False
    try:
        torch.set_num_threads(1)
        prepared = prepare_run(arguments, out)
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
        print(f"loopback: {error}", file=sys.stderr)
        # 2 for a mistake in the options, as argparse has it; 1 for a run that failed.
        return 2 if isinstance(error, SettingError) else 1
    except KeyboardInterrupt:
        print("loopback: stopped; every process it started was stopped", file=sys.stderr)
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


def prepare_run(arguments: argparse.Namespace, out: Path) -> PreparedRun:
    """Make the job and the devices.

    Args:
        arguments: The parsed options.
        out: Folder for job, devices and logs; empty, or made.

    Raises:
        SettingError: An option makes no sense, or the folder is not empty.
        SottovoceError: A corpus cannot be read, or there are too few speakers.
    """
    if out.exists() and any(out.iterdir()):
        raise SettingError(f"{out} is not empty; give another --out")
    if arguments.speakers < 1:
        raise SettingError(f"speakers is {arguments.speakers}; it must be at least 1")
    scenario = _scenario(arguments)
    fold_inputs = _fold_inputs(scenario, arguments.speakers, out)
    plan = _plan(scenario, fold_inputs)
    folder = (out / "job").resolve()
    Job(
        plan=plan,
        aggregation=scenario.recipe.aggregation,
        weights=fold_inputs.initial_weights,
        projection=fold_inputs.projection,
        speaker_statistics=fold_inputs.speaker_statistics,
        devices=len(fold_inputs.clips),
        budgets=noise_calibration.server_budgets(scenario.privacy_target),
        timeout_s=arguments.timeout,
        class_exponent=CLASS_EXPONENTS[scenario.recipe.class_weights],
        held_out_path=fold_inputs.held_out_file,
    ).save(folder)
    devices = []
    for number, user in enumerate(fold_inputs.clips, 1):
        devices.append((out / "devices" / f"{number:06d}").resolve())
        _device(devices[-1], user, scenario, fold_inputs)
    pin_rosters([Device.open(folder) for folder in devices])
    return PreparedRun(job=folder, devices=devices, plan=plan)


def _scenario(arguments: argparse.Namespace) -> Scenario:
    """What the options mean."""
    corpus = arguments.corpus or ("ravdess" if arguments.data else "synthetic")
    synthetic = corpus == "synthetic" and not arguments.data
    scenario = Scenario(
        corpus=corpus,
        data=SYNTHETIC_USERS if synthetic else arguments.data,
        public=tuple(_public(word) for word in arguments.public or ()),
        unit=arguments.unit,
        secure=arguments.secure_aggregation,
        epsilon=arguments.epsilon,
        delta=arguments.utterance_delta,
        user_delta=arguments.user_delta,
        rounds=arguments.rounds,
    )
    settled = fill_defaults(scenario)
    # So few devices can spare none.
    user = replace(settled.recipe.user, dropout=0.0, corruption=0.0)
    return replace(settled, recipe=replace(settled.recipe, user=user))


def _public(word: str) -> tuple[str, str]:
    """A corpus and its folder."""
    name, equals, folder = word.partition("=")
    if not equals:
        raise SettingError(f"--public is {word!r}; it must be NAME=DIR")
    return name, folder


def _fold_inputs(scenario: Scenario, speakers: int, out: Path) -> FoldInputs:
    """Features of a few users, and what pretraining gives."""
    cache = FeatureCache(cache_folder())
    corpus = open_corpus(scenario.corpus, scenario.data)
    chosen = corpus.speakers[:speakers]
    if len(chosen) < speakers:
        raise CorpusError(f"{corpus.name} has {len(chosen)} speakers; ask for fewer --speakers")
    own = _load_features([clip for clip in corpus.clips if clip.speaker in chosen], scenario, cache)
    public = [
        _load_features(open_corpus(name, data).clips, scenario, cache)
        for name, data in scenario.public or (SYNTHETIC_PUBLIC,)
    ]
    plan = run_plan.plan_without_noise(scenario, run="", labels=corpus.emotions, inputs=1)
    return pretrain(
        UserSpeech(
            labels=corpus.emotions,
            features=own[1],
            clips={user: tuple(clip for clip in own[0] if clip.speaker == user) for user in chosen},
        ),
        merge_public_corpora(corpus.emotions, public),
        PretrainingSettings(
            spec=plan.model,
            recipe=scenario.recipe,
            user_mean=True,
            use_warm_start=bool(scenario.public),
            seed=scenario.seed,
        ),
        out,
    )


def _load_features(
    clips: Sequence[Clip], scenario: Scenario, cache: FeatureCache
) -> tuple[list[Clip], Mapping[str, Tensor]]:
    """Clips that can be used, and their features."""
    table = extract_features(clips, scenario.encoder, cache, workers=os.cpu_count())
    _print_status(f"features of {len(table.features)} clips in {table.seconds:.0f} s")
    return [clip for clip in clips if clip.clip_id in table.features], table.features


def _plan(scenario: Scenario, fold_inputs: FoldInputs) -> Plan:
    """A private plan; its name is new, since its noise can never be repeated."""
    plan = build_plan(scenario, fold_inputs, f"loopback-{os.urandom(4).hex()}")
    return run_plan.add_secure_aggregation(plan, scenario, devices=len(fold_inputs.clips))


def _device(folder: Path, user: str, scenario: Scenario, fold_inputs: FoldInputs) -> None:
    """A user's real device: no seed, so its noise comes from the operating system."""
    clips = list(fold_inputs.clips[user])
    number = torch.arange(len(clips))
    # A head learns from clips that training has not seen, spread over the user's emotions.
    for_head = number % max(len(clips) // LABELLED_CLIPS, 2) == 0
    features = LabelledFeatures(
        examples=fold_inputs.build_examples(clips),
        for_enrolment=torch.ones(len(clips), dtype=torch.bool),
        for_head=for_head,
        for_training=~for_head,
    )
    profile = DeviceProfile(
        user=user,
        budgets=noise_calibration.device_budgets(scenario.privacy_target),
        labels=fold_inputs.labels,
    )
    Device.create(folder, profile, features)


def _print_results(prepared: PreparedRun, out: Path) -> None:
    """What came out: the model's hash, each device's ledger, the sealed heads."""
    tensors, _ = checkpoint.load_released_model(prepared.job)
    state = checkpoint.load_state(prepared.job, prepared.plan.content_hash())
    print(f"rounds      {state.round if state else 0} of {prepared.plan.rounds}")
    print(f"model       sha256 {prepared.plan.hash_model(tensors['weights'])}")
    bundle = next((out / "flower" / "bundle").glob("*.fab"))
    print(f"bundle      sha256 {hashlib.sha256(bundle.read_bytes()).hexdigest()}")
    print(f"heads       {len(HeadStore(prepared.job / 'heads.sqlite').list_users())} sealed")
    print(f"{'device':<12}{'releases':>9}{'epsilon':>9}{'budget':>8}  ledger's last line")
    for folder in prepared.devices:
        device = Device.open(folder)
        budget = device.profile.budgets[0]
        spent = device.ledger.epsilon_spent(budget.delta, budget.unit)
        print(
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
    print(line, file=sys.stderr, flush=True)


def _stop(_number: int, _frame: object) -> NoReturn:
    """Treat a request to end as Ctrl-C."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)  # so that the processes started here are stopped too
    sys.exit(main())
