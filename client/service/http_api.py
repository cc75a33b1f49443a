"""What apps ask of the service: recognise, learn, consent, and what the device holds."""

from collections.abc import Callable
from typing import Annotated, Any, Final, TypeVar

from fastapi import APIRouter, Depends, Path, Query, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from sottovoce import __version__
from sottovoce.client.device.consent import CONSENT_TEXTS, Purpose
from sottovoce.client.recognition import segmentation
from sottovoce.client.service.access import Access, Caller
from sottovoce.client.service.app_tokens import Scope
from sottovoce.client.service.device_session import DeviceSession
from sottovoce.client.service.problems import describe_problems
from sottovoce.client.service.schemas import (
    Answer,
    Budget,
    ConsentChange,
    ConsentState,
    Correction,
    Decision,
    Learned,
    LogEntry,
    Privacy,
    PurposeState,
    Recording,
    Recordings,
    Segment,
    Segments,
    Status,
)
from sottovoce.client.service.uploads import MEDIA_TYPES, decode_upload, require_media_type
from sottovoce.client.user_data.release_log import describe_budgets, describe_releases
from sottovoce.shared.audio import Signal

Result = TypeVar("Result")

_USUAL: Final = (400, 401, 403, 408, 409, 410, 413, 421, 422, 429, 500, 503, 507)
"""What every operation may answer."""

_bearer = HTTPBearer(auto_error=False, description="Token of an app, or of the owner's page.")


def find_session(request: Request) -> DeviceSession:
    """Find the device that the service works for."""
    session: DeviceSession = request.app.state.session
    return session


def identify_caller(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
) -> Caller:
    """Identify who calls, by the token in the header."""
    access: Access = request.app.state.access
    return access.identify(credentials.credentials if credentials else "")


AnyCaller = Annotated[Caller, Depends(identify_caller)]
Session = Annotated[DeviceSession, Depends(find_session)]

_RECORDING_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "description": "A recording of one voice.",
        "required": True,
        "content": {
            name: {"schema": {"type": "string", "format": "binary"}} for name in MEDIA_TYPES
        },
    }
}

router = APIRouter(prefix="/v1", responses=describe_problems(*_USUAL))


async def use_recording(
    request: Request, session: DeviceSession, purpose: Purpose, use: Callable[[Signal], Result]
) -> Result:
    """Read and decode an upload, and use it on the device's thread.

    Args:
        request: Its body is bounded in size and time by the guard.
        session: The device.
        purpose: What its user must consent to.
        use: What is done with the recording.

    Raises:
        ProblemError: It is no recording, or too many are on their way.
        SottovoceError: Whatever else is wrong with it.
    """
    require_media_type(request.headers.get("content-type"))

    def work() -> Result:
        # Before it is decoded: who did not consent is not listened to at all.
        session.user_device.consent.require(purpose)
        return use(decode_upload(data, max_duration_s=session.limits.max_recording_s))

    with session.reserve_upload():
        data = await request.body()
        return await session.run_on_device(work)


@router.get("/status", tags=["status"])
async def read_status(caller: AnyCaller, session: Session) -> Status:
    """State of device and service, for any caller."""

    def work() -> Status:
        device = session.user_device
        package, own = device.recogniser.package, device.recogniser.personalisation
        profile = session.read_device().profile
        return Status(
            version=__version__,
            user=session.vault.user,
            intended_use=str(profile.intended_use) if profile.intended_use else None,
            caller=caller.name,
            is_owner=caller.is_owner,
            scopes=sorted(caller.scopes),
            labels=list(package.labels),
            extractor=package.extractor,
            model=package.model_hash,
            allowed={one.value: device.consent.allows(one) for one in Purpose},
            own_normaliser=own.has_own_mean,
            own_head=own.has_own_head,
            recordings=len(device.list_recordings()),
            open_streams=session.open_streams,
            max_streams=session.limits.max_streams,
        )

    return await session.run_on_device(work)


@router.post(
    "/predict",
    tags=["recognise"],
    openapi_extra=_RECORDING_BODY,
    responses=describe_problems(415),
)
async def predict_emotion(caller: AnyCaller, session: Session, request: Request) -> Answer:
    """Recognise how the voice in a recording sounds; scope recognise."""
    caller.require_scope(Scope.RECOGNISE)

    def answer(signal: Signal) -> Answer:
        return session.build_answer(session.recognise(signal))

    return await use_recording(request, session, Purpose.RECOGNISE, answer)


@router.post(
    "/segments",
    tags=["recognise"],
    openapi_extra=_RECORDING_BODY,
    responses=describe_problems(415),
)
async def recognise_segments(caller: AnyCaller, session: Session, request: Request) -> Segments:
    """Cut a long recording into utterances by its pauses, and recognise each; scope recognise."""
    caller.require_scope(Scope.RECOGNISE)

    def cut(signal: Signal) -> Segments:
        segments = []
        for start_s, end_s in segmentation.find_utterances(signal):
            recognised = session.recognise(signal.cut(start_s, end_s - start_s))
            answer = session.build_answer(recognised)
            segments.append(Segment(start_s=start_s, end_s=end_s, answer=answer))
        return Segments(duration_s=signal.duration_s, segments=segments)

    return await use_recording(request, session, Purpose.RECOGNISE, cut)


@router.post("/corrections", tags=["personalise"], responses=describe_problems(404))
async def correct_moment(caller: AnyCaller, session: Session, correction: Correction) -> Learned:
    """Say what a moment was; the user's head is fitted on it at once; scope personalise."""
    caller.require_scope(Scope.PERSONALISE)
    # Consent to personalise is asked where the label is kept: no way to the vault goes round it.
    name = await session.run_on_device(
        lambda: session.correct_moment(correction.moment, correction.emotion)
    )
    return Learned(name=name)


@router.post(
    "/recordings",
    tags=["personalise"],
    openapi_extra=_RECORDING_BODY,
    responses=describe_problems(415),
)
async def enrol_recording(
    caller: AnyCaller,
    session: Session,
    request: Request,
    emotion: Annotated[
        str, Query(max_length=200, description="What it is; empty where nobody knows.")
    ] = "",
    neutral: Annotated[bool, Query(description="Whether it is known to be neutral.")] = False,
) -> Learned:
    """Enrol a recording of the user; it tells the voice, and its emotion; scope personalise."""
    caller.require_scope(Scope.PERSONALISE)

    def enrol(signal: Signal) -> Learned:
        return Learned(name=session.user_device.enrol([(signal, emotion)], is_neutral=neutral)[0])

    return await use_recording(request, session, Purpose.PERSONALISE, enrol)


@router.get("/recordings", tags=["data"])
async def list_recordings(caller: AnyCaller, session: Session) -> Recordings:
    """List what the device learned from; scope personalise."""
    caller.require_scope(Scope.PERSONALISE)
    found = await session.run_on_device(session.user_device.list_recordings)
    return Recordings(recordings=[Recording(**one.to_dict()) for one in found])


@router.delete("/recordings/{name}", tags=["data"], status_code=204)
async def forget_recording(
    caller: AnyCaller, session: Session, name: Annotated[str, Path(max_length=200)]
) -> None:
    """Forget a recording and all that was learned from it; scope personalise."""
    caller.require_scope(Scope.PERSONALISE)
    await session.run_on_device(lambda: session.user_device.forget(name))


@router.get("/consent", tags=["consent"])
async def read_consent(caller: AnyCaller, session: Session) -> ConsentState:
    """Show what the user consents to, purpose by purpose, with the texts and the log."""
    del caller  # known, which is enough
    return await session.run_on_device(lambda: _describe_consent(session))


@router.put("/consent/{purpose}", tags=["consent"])
async def change_consent(
    caller: AnyCaller, session: Session, purpose: Purpose, change: ConsentChange
) -> ConsentState:
    """Withdraw consent, for apps with the purpose's scope; or grant it, for the owner's page.

    An app that could consent in its user's place would make consent worth nothing.
    """
    caller.require_scope(Scope(purpose.value))

    def work() -> ConsentState:
        if change.allowed:
            # Withdrawing needs less than granting: it can harm nobody but the app.
            caller.require_owner()
            session.grant_consent(purpose, change.text_version)
        else:
            session.withdraw_consent(purpose)
        return _describe_consent(session)

    return await session.run_on_device(work)


@router.get("/privacy", tags=["privacy"])
async def read_privacy(caller: AnyCaller, session: Session) -> Privacy:
    """Show what was spent, what is left, and all that ever left the device; scope contribute."""
    caller.require_scope(Scope.CONTRIBUTE)

    def work() -> Privacy:
        # Built from the ledger on the disk each time: a run in another process may have written.
        report = session.user_device.privacy()
        device = session.read_device()
        sentences = describe_budgets(report)
        budgets = zip(report.budgets, sentences, strict=False)  # without a budget one is over
        return Privacy(
            user=report.user,
            withdrawn=report.withdrawn,
            releases=report.release_count,
            ledger_sha256=report.ledger_sha256,
            budgets=[
                Budget(**_only(Budget, status.to_dict()), sentence=sentence)
                for status, sentence in budgets
            ],
            log=[
                LogEntry(
                    run=line.run,
                    round=line.round,
                    what=line.what,
                    protection=line.protection,
                    count=line.count,
                    details=line.details,
                )
                for line in describe_releases(device.ledger.releases)
            ],
            confirmed_deletions=[dict(one) for one in report.confirmations],
        )

    return await session.run_on_device(work)


def _only(model: type[Budget], values: dict[str, Any]) -> dict[str, Any]:
    """Those values that a model has fields for."""
    return {name: value for name, value in values.items() if name in model.model_fields}


def _describe_consent(session: DeviceSession) -> ConsentState:
    device = session.read_device()
    consent = device.consent
    record = consent.read()
    states = []
    for purpose, text in CONSENT_TEXTS.items():
        last = record.find_last(purpose)
        states.append(
            PurposeState(
                purpose=purpose,
                allowed=consent.allows(purpose),
                text=text.text,
                text_version=text.version,
                changed=bool(last and last.is_granted and last.text_version != text.version),
                decided_at=last.at if last else None,
            )
        )
    return ConsentState(
        user=device.profile.user,
        withdrawn=device.profile.withdrawn,
        purposes=states,
        log=[
            Decision(
                at=one.at,
                purpose=one.purpose,
                granted=one.is_granted,
                text_version=one.text_version,
            )
            for one in record.decisions
        ],
    )
