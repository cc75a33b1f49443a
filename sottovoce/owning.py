"""The commands of a user's own device: ``predict`` and ``device``."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sottovoce.shared.errors import SettingError, SottovoceError

if TYPE_CHECKING:
    from sottovoce.client.vault import Vault

Command = Callable[..., argparse.ArgumentParser]
"""How ``cli`` makes one command."""


def add(commands: Any, command: Command) -> None:  # noqa: ANN401
    """``predict`` and ``device``."""
    _add_predict(commands, command)
    _add_device(commands, command)


def _add_predict(commands: Any, command: Command) -> None:  # noqa: ANN401
    """``predict``."""
    parser = command(
        commands,
        "predict",
        _predict,
        "Recognise the emotion in recordings.",
        "sottovoce predict hello.wav --model runs/demo/model",
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--model", type=Path, required=True, help="a model folder")
    parser.add_argument("--device", type=Path, help="the user's device folder: normaliser and head")
    parser.add_argument(
        "--learn",
        action="store_true",
        help="learn the user's voice from each file afterwards; stays on the device",
    )
    parser.add_argument(
        "--label",
        metavar="EMOTION",
        help="what each file was: the user's head is fitted on it afterwards; stays on the device",
    )
    parser.add_argument(
        "--risk", type=_share, help="abstain where the chance of a wrong answer is above this"
    )
    parser.add_argument(
        "--coverage", type=_share, default=0.9, help="how often the set holds the truth (0.9)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, one line a file")


def _share(word: str) -> float:
    """A number from 0 to 1."""
    try:
        share = float(word)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{word} is no share; it must be from 0 to 1")
    return share


def _predict(arguments: argparse.Namespace) -> int:
    """Predict each file; a bad file fails the command, after the others were done."""
    import json

    from sottovoce.client.recogniser import Recogniser
    from sottovoce.client.vault import unlocked
    from sottovoce.shared.audio import load

    if (arguments.learn or arguments.label) and arguments.device is None:
        option = "--learn" if arguments.learn else "--label"
        raise SettingError(f"{option} has no device to keep what is learned; add --device")
    least = None if arguments.risk is None else 1 - arguments.risk
    recogniser = Recogniser.open(
        arguments.model,
        arguments.device,
        least_confidence=least,
        coverage=arguments.coverage,
        vault=unlocked(arguments.device / "vault") if arguments.device else None,
    )
    known = recogniser.bundle.labels
    if arguments.label and arguments.label not in known:
        raise SettingError(
            f"--label is {arguments.label!r}; this model knows {', '.join(known)}: nothing was "
            "learned"
        )
    failed = 0
    for path in arguments.files:
        prediction, learned = None, {}
        try:
            signal = load(path)
            prediction = recogniser.predict(signal)
            if arguments.learn:
                learned["learned"] = recogniser.learn(signal)
            if arguments.label:
                learned["labelled"] = recogniser.label(signal, arguments.label)
        except SottovoceError as error:
            failed += 1
            print(f"sottovoce: {error}", file=sys.stderr)
        if prediction is None:
            continue
        if arguments.json:
            print(json.dumps({"file": str(path)} | prediction.to_dict() | learned))
        else:
            more = (f"{how} as {name}" for how, name in learned.items())
            print("; ".join([f"{path}: {prediction}", *more]))
    return 1 if failed else 0


def _add_device(commands: Any, command: Command) -> None:  # noqa: ANN401
    """``device`` and its commands."""
    example = "sottovoce device budget DIR"
    text = "Look after a user's own device."
    group = commands.add_parser(
        "device",
        help=text,
        description=text,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    group.set_defaults(parser=group)
    own = group.add_subparsers(title="commands", metavar="COMMAND")
    parser = command(
        own, "budget", _device_budget, "Show what a device has spent, and what is left.", example
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the device's folder")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser = command(
        own,
        "forget",
        _device_forget,
        "Forget recordings that the user's voice or head was learned from.",
        "sottovoce device forget my-device NAME",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the device's folder")
    parser.add_argument("names", nargs="+", metavar="NAME", help="what predict printed")
    parser.add_argument(
        "--model",
        type=Path,
        help="for labelled recordings: whose head is fitted again at once, not when next opened",
    )
    retiring = command(
        own,
        "retire",
        _device_retire,
        "End the training of a device whose ledger is refused: it only receives models, for good.",
        "sottovoce device retire DIR",
    )
    retiring.add_argument("folder", type=Path, metavar="FOLDER", help="the device's folder")


def _device_forget(arguments: argparse.Namespace) -> int:
    """Forget by name; the user's mean and head are then what they would be without them."""
    from sottovoce.client.recogniser import Recogniser
    from sottovoce.client.recordings import vault_of
    from sottovoce.client.vault import unlocked

    folder, model = arguments.folder, arguments.model
    vault = vault_of(folder, unlocked(folder / "vault"))
    recogniser = Recogniser.open(model, folder, vault=vault) if model else None
    before = _kept(folder, vault)
    names = list(dict.fromkeys(arguments.names))
    gone = [name for name in names if name not in before]
    let_go = False
    for name in names:
        if recogniser and name in before:
            recogniser.forget(name)
        elif not recogniser:
            let_go |= _forget_without_model(folder, vault, name)
    left = _kept(folder, vault)
    print(f"forgotten: {len(names) - len(gone)}; still kept: {len(left)}")
    if let_go:
        print("the user's head is let go: the next predict fits it again, on what is still kept")
    if gone:  # said last: one that was cut short is finished by being repeated
        held = ", ".join(sorted(left)) or "none"
        raise SettingError(f"{folder} keeps no recording {', '.join(gone)}; it keeps {held}")
    return 0


def _kept(folder: Path, vault: "Vault") -> set[str]:
    """Names of all recordings that something was learned from."""
    from sottovoce.client import labeller, listener

    return {*listener.heard(folder, vault=vault), *labeller.labelled(folder, vault=vault)}


def _forget_without_model(folder: Path, vault: "Vault", name: str) -> bool:
    """Forget one recording; whether the head, which no model can fit again now, was let go."""
    from sottovoce.client import labeller, listener

    if name in listener.heard(folder, vault=vault):
        listener.forget(folder, name, vault=vault)
    return labeller.forget(folder, name, vault=vault)


def _device_retire(arguments: argparse.Namespace) -> int:
    """Put a spent ledger in place of the refused one."""
    from sottovoce.client.device import Device
    from sottovoce.client.vault import unlocked

    folder = arguments.folder
    aside = Device.retire(folder, vault=unlocked(folder / "vault"))
    kept = f"; the refused ledger is kept as {aside}" if aside else ""
    print(f"retired: the device gives nothing more and goes on receiving models{kept}")
    return 0


def _device_budget(arguments: argparse.Namespace) -> int:
    """Verify the ledger and price it."""
    import json

    from sottovoce.client.budget import account
    from sottovoce.client.vault import unlocked

    folder = arguments.folder
    told = account(folder, vault=unlocked(folder / "vault"))
    if arguments.json:
        print(json.dumps(told.to_dict(), indent=1, ensure_ascii=False))
    else:
        print("\n".join(told.lines()))
    return 0
