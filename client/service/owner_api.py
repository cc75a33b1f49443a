"""What the owner's page alone may ask: export, erasure, withdrawal, settings, apps."""

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from sottovoce.client.service.access import Access
from sottovoce.client.service.app_tokens import AppTokens
from sottovoce.client.service.http_api import AnyCaller, Session
from sottovoce.client.service.problems import ProblemError, describe_problems
from sottovoce.client.service.schemas import AppInfo, Apps, Erasure, SessionKey, Settings
from sottovoce.client.service.schemas import Session as OpenedSession
from sottovoce.client.user_data import data_export

_USUAL = (400, 401, 403, 408, 409, 410, 413, 421, 422, 429, 500, 503, 507)

router = APIRouter(prefix="/v1", tags=["owner"], responses=describe_problems(*_USUAL))


@router.post("/session", status_code=201)
def open_session(request: Request, key: SessionKey) -> OpenedSession:
    """Open the owner's page, by the key of the link that the command printed; it works once."""
    access: Access = request.app.state.access
    return OpenedSession(token=access.open_session(key.key))


@router.get(
    "/export",
    response_class=Response,
    responses={200: {"content": {"application/zip": {}}, "description": "A ZIP archive."}},
)
async def export_data(caller: AnyCaller, session: Session) -> Response:
    """Export all that the device holds of its user, readable, as a ZIP archive."""
    caller.require_owner()

    def work() -> bytes:
        return data_export.export_data(session.read_device(), session.vault)

    # In memory: a copy on the disk would outlive the download, and be sealed by nobody.
    data = await session.run_on_device(work)
    return Response(
        data,
        media_type="application/zip",
        headers={
            "Content-Disposition": 'attachment; filename="my-data.zip"',
            "Cache-Control": "no-store",
        },
    )


@router.post("/withdrawal", status_code=204)
async def withdraw_device(caller: AnyCaller, session: Session) -> None:
    """End the enrolment towards every server: nothing is trained or sent any more."""
    caller.require_owner()
    await session.run_on_device(session.user_device.withdraw)


@router.post("/erasure", responses=describe_problems(404))
async def erase_device(caller: AnyCaller, session: Session, erasure: Erasure) -> list[str]:
    """Erase the device for good, its key first; answers with files of others that stay."""
    caller.require_owner()
    # A name that must be typed: one wrong tap must not cost what cannot be brought back.
    if erasure.user != session.vault.user:
        raise ProblemError(
            422,
            "unusable-value",
            f"{erasure.user!r} is not the user of this device; nothing was erased",
            value=erasure.user,
            way_out="send the user's name as /v1/status has it",
        )
    return list(await session.run_on_device(session.erase_device))


@router.get("/settings")
async def read_settings(caller: AnyCaller, session: Session) -> Settings:
    """Show the settings of the service."""
    caller.require_owner()
    return session.settings


@router.put("/settings")
async def change_settings(caller: AnyCaller, session: Session, settings: Settings) -> Settings:
    """Change the settings of the service; they count from the next request on."""
    caller.require_owner()
    await session.run_on_device(lambda: session.change_settings(settings))
    return session.settings


@router.get("/apps")
async def list_apps(caller: AnyCaller, session: Session) -> Apps:
    """List the apps that have a token, and what each may ask."""
    caller.require_owner()
    found = await session.run_on_device(AppTokens(session.vault).list_apps)
    return Apps(
        apps=[
            AppInfo(name=app.name, scopes=list(app.scopes), created_at=app.created_at)
            for app in found
        ]
    )


@router.delete("/apps/{name}", status_code=204)
async def revoke_app(
    caller: AnyCaller, session: Session, name: Annotated[str, Path(max_length=200)]
) -> None:
    """Revoke the token of an app; it counts no more from then on."""
    caller.require_owner()
    await session.run_on_device(lambda: AppTokens(session.vault).revoke_token(name))
