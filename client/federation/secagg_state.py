"""What a device remembers between two messages of a secure sum."""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Self

from sottovoce.shared.errors import MessageError
from sottovoce.shared.secure_aggregation import framing
from sottovoce.shared.secure_aggregation.messages import KeyAdvertisement


class SecAggStage(IntEnum):
    """Stages of a device's round; each is left before its answer goes out, for good."""

    ADVERTISE = 0
    SHARE = 1
    MASK = 2
    AGREE = 3
    UNMASK = 4
    DONE = 5


@dataclass(kw_only=True, slots=True)
class SecAggState:
    """Secrets and facts of one round; secrets are dropped as soon as they are used.

    Attributes:
        stage: What comes next.
        agreement_key: Private X25519 key that shares travel under, until masked.
        mask_key: Private X25519 key of the pairwise masks, until masked.
        seed: Of the device's own mask, until masked.
        advertisement: The device's own, as bytes.
        session: See ``transcript.compute_session_id``.
        users: Everybody who advertised, in order.
        neighbours: Advertisements of this device's neighbours, by user.
        shares: Shares of seed and mask key that neighbours gave to this device, by user.
        survivors: Whom this device signed for.
    """

    stage: SecAggStage = SecAggStage.ADVERTISE
    agreement_key: bytes = field(default=b"", repr=False)
    mask_key: bytes = field(default=b"", repr=False)
    seed: bytes = field(default=b"", repr=False)
    advertisement: bytes = b""
    session: bytes = b""
    users: tuple[str, ...] = ()
    neighbours: dict[str, KeyAdvertisement] = field(default_factory=dict)
    shares: dict[str, tuple[bytes, bytes]] = field(default_factory=dict, repr=False)
    survivors: tuple[str, ...] = ()

    def to_bytes(self) -> bytes:
        """All of it; keep it sealed."""
        secrets = self.agreement_key, self.mask_key, self.seed
        near = (each.to_bytes() for each in self.neighbours.values())
        rows = (framing.pack(user.encode(), *pair) for user, pair in self.shares.items())
        names = (framing.pack(*(n.encode() for n in each)) for each in (self.users, self.survivors))
        # The order is the format: from_bytes reads the same ten parts.
        facts = self.advertisement, self.session
        return framing.pack(
            bytes([self.stage]), *secrets, *facts, *names, framing.pack(*near), framing.pack(*rows)
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what :meth:`to_bytes` made, or raise ``MessageError``."""
        stage, agreement, mask, seed, own, session, users, survivors, near, rows = framing.unpack(
            data, 10
        )
        neighbours = [KeyAdvertisement.from_bytes(part) for part in framing.unpack(near)]
        shares = [framing.unpack(part, 3) for part in framing.unpack(rows)]
        try:
            return cls(
                stage=SecAggStage(stage[0]),
                agreement_key=agreement,
                mask_key=mask,
                seed=seed,
                advertisement=own,
                session=session,
                users=tuple(part.decode() for part in framing.unpack(users)),
                neighbours={each.user: each for each in neighbours},
                shares={user.decode(): (one, other) for user, one, other in shares},
                survivors=tuple(part.decode() for part in framing.unpack(survivors)),
            )
        except (ValueError, IndexError) as error:
            raise MessageError(f"a device's state is damaged ({error})") from error
