"""The commands ``device serve`` and ``device token``."""

import argparse

from sottovoce.cli.devices.opening import add_folder, open_to_look
from sottovoce.cli.model import read_trusted_key
from sottovoce.cli.options import Commands, add_command, add_command_group, print_json
from sottovoce.cli.recognition.recogniser_choice import add_model_options
from sottovoce.shared.printable import print_lines

_PORT = 8765


def add_serve_commands(group: Commands) -> None:
    """Add ``device serve`` and ``device token``."""
    parser = add_command(
        group,
        "serve",
        run_serve_command,
        "Serve a device to apps on this machine, over HTTP and WebSocket, with a page for its "
        "owner.",
        "sottovoce device serve my-device",
    )
    add_folder(parser)
    add_model_options(parser)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="a name of loopback (127.0.0.1); others are refused")
    add("--port", type=int, default=_PORT, help=f"0 takes one that is free ({_PORT})")
    _add_token_commands(group)


def _add_token_commands(group: Commands) -> None:
    tokens = add_command_group(
        group,
        "token",
        "Create, list and revoke the tokens by which apps use a device's service.",
        "sottovoce device token list my-device",
    )
    create = add_command(
        tokens,
        "create",
        run_create_command,
        "Create the token of an app; it is shown once.",
        "sottovoce device token create my-device diary --scope recognise --scope personalise",
    )
    add_folder(create)
    create.add_argument("name", metavar="APP", help="name of the app")
    create.add_argument(
        "--scope",
        action="append",
        required=True,
        metavar="SCOPE",
        help="recognise, personalise or contribute; may be repeated",
    )
    listing = add_command(
        tokens,
        "list",
        run_list_command,
        "List the apps that have a token, and what each may ask.",
        "sottovoce device token list my-device",
    )
    add_folder(listing)
    listing.add_argument("--json", action="store_true", help="print JSON")
    revoke = add_command(
        tokens,
        "revoke",
        run_revoke_command,
        "Revoke the token of an app, at once.",
        "sottovoce device token revoke my-device diary",
    )
    add_folder(revoke)
    revoke.add_argument("name", metavar="APP", help="name of the app")


def run_serve_command(arguments: argparse.Namespace) -> int:
    """Serve until Ctrl-C; the link that opens the owner's page is printed once."""
    from sottovoce.client.service.access import Access
    from sottovoce.client.service.app_tokens import AppTokens
    from sottovoce.client.service.device_session import DeviceSession
    from sottovoce.client.service.server import open_socket, require_loopback, run_service
    from sottovoce.client.service.service_limits import ServiceLimits
    from sottovoce.shared.models.default_model import DEFAULT_MODEL

    require_loopback(arguments.host)
    _, vault = open_to_look(arguments.folder)
    model, limits = arguments.model or DEFAULT_MODEL, ServiceLimits()
    session = DeviceSession(
        arguments.folder,
        vault,
        model=model,
        limits=limits,
        trusted_key=read_trusted_key(arguments),
    )
    access = Access(AppTokens(vault), limits)
    listening = open_socket(arguments.host, arguments.port)
    host, port = arguments.host, listening.getsockname()[1]
    print_lines(
        f"serving the device of {vault.user} at http://{host}:{port}, on this machine alone",
        # Behind the '#': a browser sends that part to nobody, and no log has it.
        f"your page, once: http://{host}:{port}/#key={access.issue_key()}",
        f"apps: sottovoce device token create {arguments.folder} APP --scope recognise",
        "Ctrl-C ends it",
    )
    run_service(session, access, listening)
    return 0


def run_create_command(arguments: argparse.Namespace) -> int:
    """Create and print the token of an app."""
    from sottovoce.client.service.app_tokens import AppTokens

    _, vault = open_to_look(arguments.folder)
    token = AppTokens(vault).create_token(arguments.name, arguments.scope)
    print_lines(token)
    return 0


def run_list_command(arguments: argparse.Namespace) -> int:
    """List apps with their scopes; tokens are not kept, so none is shown."""
    from sottovoce.client.service.app_tokens import AppTokens

    _, vault = open_to_look(arguments.folder)
    apps = AppTokens(vault).list_apps()
    if arguments.json:
        print_json(
            [
                {"name": app.name, "scopes": list(app.scopes), "created_at": app.created_at}
                for app in apps
            ]
        )
        return 0
    lines = (f"{app.name}  {', '.join(app.scopes)}  since {app.created_at[:10]}" for app in apps)
    print_lines(*(lines if apps else ["no app has a token"]))
    return 0


def run_revoke_command(arguments: argparse.Namespace) -> int:
    """Revoke the token of an app."""
    from sottovoce.client.service.app_tokens import AppTokens

    _, vault = open_to_look(arguments.folder)
    AppTokens(vault).revoke_token(arguments.name)
    print_lines(f"revoked: {arguments.name} is refused from now on")
    return 0
