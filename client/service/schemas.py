"""What the service takes and answers, as the OpenAPI document describes it."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from sottovoce.client.device.consent import Purpose
from sottovoce.client.service.app_tokens import Scope

Fraction = Annotated[float, Field(ge=0, le=1)]
ShortText = Annotated[str, Field(min_length=1, max_length=200)]


class Taken(BaseModel):
    """Body of a request: nothing but what is named, of the types that are named."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Answer(BaseModel):
    """Answer to one recording: how a voice sounds, or why nothing is said."""

    emotion: str | None = Field(description="What it sounds like; null where nothing is said.")
    confidence: Fraction
    probabilities: dict[str, Fraction] = Field(description="Empty where nothing was guessed.")
    set: list[str] = Field(description="What cannot be ruled out at the coverage, likeliest first.")
    coverage: float | None = Field(description="How often such sets hold the true emotion.")
    abstained: bool
    reason: str = Field(description="Why nothing is said, for people.")
    abstention: str | None = Field(description="The same for programs.")
    quality: list[str] = Field(description="What is wrong with the recording.")
    next_step: str = Field(description="What to do about it, for people.")
    own_normaliser: bool = Field(description="Whether this user's voice is known.")
    own_head: bool = Field(description="Whether this user's corrections count.")
    own_set: bool
    model: str = Field(description="Hash of the model.")
    moment: str | None = Field(
        None,
        description="By which this can be corrected for a while; null where nothing is held: "
        "without consent to personalise, or of more than 10 s.",
    )


class Segment(BaseModel):
    """Utterance of a long recording, with its answer."""

    start_s: float
    end_s: float
    answer: Answer


class Segments(BaseModel):
    """Long recording, utterance by utterance."""

    duration_s: float
    segments: list[Segment] = Field(description="In order; none where nobody speaks.")


class Correction(Taken):
    """Label of a moment, as its user gives it now."""

    moment: ShortText = Field(description="Of an answer of the last minutes.")
    emotion: ShortText = Field(description="One of the model's emotions.")


class Learned(BaseModel):
    """Recording that was learned from."""

    name: str = Field(description="By which it is listed and forgotten.")


class PurposeState(BaseModel):
    """Consent to one purpose."""

    purpose: Purpose
    allowed: bool
    text: str = Field(description="What the user is asked, in plain words.")
    text_version: int
    changed: bool = Field(description="Whether the text changed since the user consented.")
    decided_at: str | None


class Decision(BaseModel):
    """One decision of the user, in the log of consent."""

    at: str
    purpose: Purpose
    granted: bool
    text_version: int


class ConsentState(BaseModel):
    """Consent, purpose by purpose, and its log."""

    user: str
    withdrawn: bool = Field(description="Whether the whole enrolment was withdrawn.")
    purposes: list[PurposeState]
    log: list[Decision]


class ConsentChange(Taken):
    """Decision about one purpose."""

    allowed: bool
    text_version: int = Field(0, ge=0, description="Of the text that was shown; needed to allow.")


class Budget(BaseModel):
    """One promise: what may be spent of it, and what is."""

    unit: str = Field(description="Whom it protects: utterance or user.")
    delta: float
    epsilon: float = Field(description="Most that may be spent in the life of the device.")
    spent: float | None = Field(description="Null where something left without protection.")
    left: float
    more_rounds: int | None = Field(description="Rounds like the last one that still fit.")
    sentence: str


class LogEntry(BaseModel):
    """Something that left the device."""

    run: str
    round: int
    what: str
    protection: str
    count: int
    details: dict[str, Any] = Field(description="The entry of the ledger, exact.")


class Privacy(BaseModel):
    """Account of what was spent, what is left, and all that ever left."""

    user: str
    withdrawn: bool
    releases: int
    ledger_sha256: str
    budgets: list[Budget]
    log: list[LogEntry] = Field(description="In order; the ledger keeps no dates.")
    confirmed_deletions: list[dict[str, Any]]


class Recording(BaseModel):
    """Recording that the device learned from: its features, never its sound."""

    name: str
    emotion: str | None
    extractor: str | None
    uses: list[str] = Field(description="What it serves: voice, head, training.")


class Recordings(BaseModel):
    """All recordings that the device keeps."""

    recordings: list[Recording]


class Erasure(Taken):
    """Word of the owner that the device shall be erased."""

    user: ShortText = Field(description="The user's name, to be sure.")


class Settings(Taken):
    """Settings of the service, kept in the device's vault."""

    risk: Annotated[
        Fraction | None,
        Field(description="Most chance of a wrong answer; null leaves it to the model."),
    ] = None
    coverage: Annotated[
        float, Field(gt=0, lt=1, description="How often sets hold the true emotion.")
    ] = 0.9
    moment_s: Annotated[
        int,
        Field(
            ge=0,
            le=600,
            description="How long the features of a moment, and never its sound, are held in "
            "memory, so that it can be corrected; 0 holds none.",
        ),
    ] = 120


class AppInfo(BaseModel):
    """App that has a token."""

    name: str
    scopes: list[Scope]
    created_at: str


class Apps(BaseModel):
    """All apps that have a token."""

    apps: list[AppInfo]


class Status(BaseModel):
    """State of device and service."""

    version: str
    user: str
    intended_use: str | None
    caller: str
    is_owner: bool
    scopes: list[Scope]
    labels: list[str] = Field(description="Emotions that the model knows.")
    extractor: str
    model: str = Field(description="Hash of the model.")
    allowed: dict[str, bool] = Field(description="Consent by purpose.")
    own_normaliser: bool
    own_head: bool
    recordings: int
    open_streams: int
    max_streams: int


class SessionKey(Taken):
    """Key of the link that the command printed."""

    key: ShortText


class Session(BaseModel):
    """Session of the owner's page."""

    token: str = Field(description="Ends with the service.")


class StreamReady(BaseModel):
    """First message of a stream."""

    type: Literal["ready"] = "ready"
    rate: int
    format: str
    window_s: float
    stride_s: float
    max_frame_bytes: int


class StreamResult(BaseModel):
    """Message of a stream: what it sounds like at the end of one window."""

    type: Literal["result"] = "result"
    start_s: float
    end_s: float
    emotion: str | None = Field(
        description="What to show: it changes only for one that is clearly likelier; null where "
        "nobody speaks, or nothing is sure enough."
    )
    probabilities: dict[str, Fraction] = Field(description="Smoothed over windows.")
    dropped: int = Field(description="Windows that were left out, because they came too fast.")
    backlog_s: float = Field(description="Sound that waits to be looked at.")
    answer: Answer = Field(description="What the window says by itself.")
