"""The command ``model``: sign a model folder, and verify whose it is."""

import argparse
from pathlib import Path

from sottovoce.cli.options import Commands, add_command, add_command_group, print_json
from sottovoce.shared.printable import print_lines

KEY_VARIABLE = "SOTTOVOCE_TRUSTED_KEY"


def add_model_commands(commands: Commands) -> None:
    """Add ``model key``, ``model sign`` and ``model verify``."""
    group = add_command_group(
        commands,
        "model",
        "Sign a model folder, and verify that it is whole and whose it is.",
        "sottovoce model verify runs/demo",
    )
    key = add_command(
        group,
        "key",
        run_model_key_command,
        "Draw a key to sign models with; prints its public half, which users pin.",
        "sottovoce model key publisher.key",
    )
    key.add_argument("file", type=Path, metavar="FILE", help="the new key; keep it secret")
    sign = add_command(
        group,
        "sign",
        run_model_sign_command,
        "Sign a model folder: every file of it.",
        "sottovoce model sign runs/demo --key publisher.key",
    )
    _add_model(sign)
    sign.add_argument("--key", type=Path, required=True, metavar="FILE", help="the publisher's key")
    verify = add_command(
        group,
        "verify",
        run_model_verify_command,
        "Verify a model folder, and print its hash and whose signature it bears.",
        "sottovoce model verify runs/demo",
    )
    _add_model(verify)
    add_trusted_key(verify)
    verify.add_argument("--json", action="store_true", help="print JSON")


def add_trusted_key(parser: argparse.ArgumentParser) -> None:
    """Add the option that pins whose models are accepted."""
    parser.add_argument(
        "--trusted-key",
        metavar="HEX",
        help="accept a model only if this public key signed it "
        f"(default: ${KEY_VARIABLE}, if it is set)",
    )


def read_trusted_key(arguments: argparse.Namespace) -> str:
    """The public key that the owner pinned, by the option or in the environment; "" for none."""
    import os

    from sottovoce.shared.models.model_folder import parse_public_key

    text = arguments.trusted_key or os.environ.get(KEY_VARIABLE, "")
    return parse_public_key(text) if text else ""


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="RUN", help="a run folder, or the model in it")


def run_model_key_command(arguments: argparse.Namespace) -> int:
    """Write a new private key and print its public half."""
    from sottovoce.shared import crypto
    from sottovoce.shared.atomic_files import replace_file
    from sottovoce.shared.errors import SettingError

    if arguments.file.exists():
        raise SettingError(f"{arguments.file} exists; nothing is written over: name another file")
    private = crypto.new_key()
    replace_file(arguments.file, private.hex().encode() + b"\n", secret=True)
    print_lines(crypto.identity_public_key(private).hex())
    return 0


def run_model_sign_command(arguments: argparse.Namespace) -> int:
    """Sign and print the public key."""
    from sottovoce.shared.exported.exported_model import ExportedModel, is_exported
    from sottovoce.shared.models.model_folder import find_model, read_private_key, sign_model_folder
    from sottovoce.shared.models.model_package import ModelPackage

    folder, private = find_model(arguments.model), read_private_key(arguments.key)
    # Nobody signs what cannot be used.
    if is_exported(folder):
        ExportedModel.load(folder)
    else:
        ModelPackage.load(folder)
    print_lines(sign_model_folder(folder, private))
    return 0


def run_model_verify_command(arguments: argparse.Namespace) -> int:
    """Verify and print the folder's hash and its signer."""
    from sottovoce.shared.models.model_folder import find_model, read_model_folder
    from sottovoce.shared.models.model_package import ModelPackage

    folder, key = find_model(arguments.model), read_trusted_key(arguments)
    package = ModelPackage.load(folder, trusted_key=key)
    content = read_model_folder(folder, trusted_key=key)
    found = {
        "folder": content.digest or None,
        "signed_by": content.signed_by or None,
        "labels": list(package.labels),
        "extractor": package.extractor,
        "model_hash": package.model_hash,
        "knows_public_speech": package.familiar_speech is not None,
    }
    if arguments.json:
        print_json(found)
    else:
        labels = ", ".join(package.labels)
        words = {
            "folder": content.digest or "no manifest",
            "signed_by": content.signed_by or "nobody",
            "knows_public_speech": "yes"
            if package.familiar_speech
            else "no: its answers to sound unlike its training data are not tempered",
        }
        shown = found | words | {"labels": labels}
        print_lines(*(f"{name.replace('_', ' '):<19}  {value}" for name, value in shown.items()))
    return 0
