"""Errors of the service as problem details (RFC 9457), with the value, the limit and the way out.

``type`` is stable and is what programs go by; ``detail`` is for people. Other members are there
where they say something: ``value``, ``limit``, ``way_out``.
"""

import math
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError, WebSocketRequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from sottovoce.shared.errors import (
    AudioError,
    ConsentError,
    MessageError,
    ModelError,
    PrivacyError,
    SettingError,
    SottovoceError,
    StorageError,
)
from sottovoce.shared.printable import clean_text

MEDIA_TYPE: Final = "application/problem+json"
_TYPE_PREFIX: Final = "urn:sottovoce:problem:"


class Problem(BaseModel):
    """Problem details of a request that was not answered."""

    type: str = Field(
        description="Kind of problem, stable between releases.",
        examples=[f"{_TYPE_PREFIX}consent-required"],
    )
    title: str = Field(description="The same in a few words.")
    status: int = Field(description="HTTP status.", ge=400, le=599)
    detail: str = Field(description="What happened, for people.")
    value: str | int | float | None = Field(None, description="The value that was refused.")
    limit: str | int | float | None = Field(None, description="What it would have to be.")
    way_out: str | None = Field(None, description="What to do now.")


class ProblemError(HTTPException):
    """A request that is not answered, and why.

    Args:
        status: HTTP status.
        kind: Last part of the problem's type, such as ``too-large``.
        detail: What happened, for people.
        value: The value that was refused, where there is one.
        limit: What it would have to be, likewise.
        way_out: What to do now.
        retry_after_s: After how many seconds it may come again, where waiting helps.

    Example:
        >>> ProblemError(413, "too-large", "the body is too large", limit=16_384).problem.title
        'too large'
    """

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        *,
        value: str | float | None = None,
        limit: str | float | None = None,
        way_out: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        headers = {"Cache-Control": "no-store"}
        if retry_after_s is not None:
            headers["Retry-After"] = str(max(1, round(retry_after_s + 0.5)))
        # RFC 9110 asks for a challenge with 401, and for what is allowed with 405.
        if status == HTTPStatus.UNAUTHORIZED:
            headers["WWW-Authenticate"] = "Bearer"
        if status == HTTPStatus.METHOD_NOT_ALLOWED and isinstance(limit, str):
            headers["Allow"] = limit
        if status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.REQUEST_ENTITY_TOO_LARGE):
            headers["Connection"] = "close"  # what is left of the body is not read
        super().__init__(status, detail, headers)
        self.problem = Problem(
            type=_TYPE_PREFIX + kind,
            title=kind.replace("-", " "),
            status=status,
            detail=clean_text(detail, max_length=1_000),
            value=clean_text(value) if isinstance(value, str) else value,
            limit=limit,
            way_out=way_out,
        )

    def build_response(self) -> JSONResponse:
        """Build the response that tells of the problem."""
        content = self.problem.model_dump(exclude_none=True)
        return JSONResponse(content, self.status_code, self.headers, media_type=MEDIA_TYPE)


_KINDS: Final[tuple[tuple[type[SottovoceError], int, str, str], ...]] = (
    (ConsentError, 403, "consent-required", "show the purpose's text to the user, and ask"),
    (AudioError, 422, "unusable-recording", "record again, or convert the file to WAV"),
    (SettingError, 422, "unusable-value", "choose one of the values that the detail names"),
    (MessageError, 422, "unusable-value", "send what the API describes"),
    (StorageError, 507, "disk-refuses", "make room on the disk, and try again"),
    (PrivacyError, 409, "promise-at-stake", "look at the device, by sottovoce device privacy"),
    (ModelError, 500, "broken-model", "get the model again, and start the service anew"),
    (SottovoceError, 500, "failed", "try again; if it stays, look at the terminal of the service"),
)
"""By class of error, the more special first: status, kind, way out."""


def convert_error(error: SottovoceError) -> ProblemError:
    """Convert an error of ours to a problem.

    Example:
        >>> convert_error(SettingError("the emotion is 'sadd'; ...")).status_code
        422
    """
    _, status, kind, way_out = next(one for one in _KINDS if isinstance(error, one[0]))
    value = error.kind.value if isinstance(error, AudioError) else None
    return ProblemError(status, kind, str(error), value=value, way_out=way_out)


def add_problem_handlers(app: FastAPI) -> None:
    """Let every error of an app be answered by problem details."""

    async def answer_problem(_: Request, error: Exception) -> JSONResponse:
        return _as_problem(error).build_response()

    kinds = (RequestValidationError, WebSocketRequestValidationError)
    # The last of them for what nobody foresaw: its traceback goes to the terminal alone.
    for kind in (HTTPException, SottovoceError, ClientDisconnect, *kinds, Exception):
        app.add_exception_handler(kind, answer_problem)


def describe_problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe statuses as problems, for an operation in the OpenAPI document.

    Example:
        >>> describe_problems(404)[404]["description"]
        'Not Found'
    """
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: {"schema": schema}},
        }
        for status in statuses
    }


def _as_problem(error: Exception) -> ProblemError:
    if isinstance(error, ProblemError):
        return error
    if isinstance(error, SottovoceError):
        return convert_error(error)
    if isinstance(error, RequestValidationError | WebSocketRequestValidationError):
        return _convert_validation(error)
    if isinstance(error, ClientDisconnect):
        return ProblemError(400, "client-gone", "the app went away before all was sent")
    if not isinstance(error, HTTPException):
        return ProblemError(
            500,
            "failed",
            "something failed that should not",
            way_out="try again; if it stays, report what the terminal of the service says",
        )
    status = error.status_code
    kind = HTTPStatus(status).phrase.lower().replace(" ", "-")
    allowed = (error.headers or {}).get("Allow")
    return ProblemError(
        status,
        kind,
        str(error.detail),
        limit=allowed,
        way_out="see /v1/openapi.json for what can be asked",
    )


def _as_value(given: object) -> str | int | float | None:
    """What was given, where it is short and JSON has it."""
    # Python reads NaN in JSON and refuses to write it: the problem would have no answer itself.
    if isinstance(given, float) and not math.isfinite(given):
        return str(given)
    return given if isinstance(given, str | int | float) else None


def _convert_validation(
    error: RequestValidationError | WebSocketRequestValidationError,
) -> ProblemError:
    """The first fault of a request that is not as the API describes."""
    fault = error.errors()[0]
    where = ".".join(str(part) for part in fault["loc"])
    context = fault.get("ctx") or {}
    limits = [
        str(context[name]) for name in ("expected", "ge", "gt", "le", "lt") if name in context
    ]
    given = fault.get("input")
    return ProblemError(
        422,
        "unusable-value",
        f"{where}: {fault['msg']}",
        value=_as_value(given),
        limit=", ".join(limits) or None,
        way_out="see /v1/openapi.json for what each operation takes",
    )
