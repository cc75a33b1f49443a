"""What a device remembers between two messages of a secure sum."""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Self

from sottovoce.shared.errors import MessageError
from sottovoce.shared.secagg import codec
from sottovoce.shared.secagg.messages import Advertisement


class Stage(IntEnum):
    """What a device does next; left before its answer is given, and never entered again."""

    ADVERTISE = 0
    SHARE = 1
    MASK = 2
    AGREE = 3
    UNMASK = 4
    DONE = 5


@dataclass(kw_only=True, slots=True)
class State:
    """Secrets and facts of one round; secrets are dropped as soon as they are used.

    Attributes:
        stage: What comes next.
        agreement_key: Private X25519 key that shares travel under, until masked.
        mask_key: Private X25519 key of the pairwise masks, until masked.
        seed: Of the device's own mask, until masked.
        advertisement: The device's own, as bytes.
        session: See ``session.session``.
        users: Everybody who advertised, in order.
        neighbours: Advertisements of this device's neighbours, by user.
        shares: Shares of seed and mask key that neighbours gave to this device, by user.
        survivors: Whom this device signed for.
    """

    stage: Stage = Stage.ADVERTISE
    agreement_key: bytes = field(default=b"", repr=False)
    mask_key: bytes = field(default=b"", repr=False)
    seed: bytes = field(default=b"", repr=False)
    advertisement: bytes = b""
    session: bytes = b""
    users: tuple[str, ...] = ()
    neighbours: dict[str, Advertisement] = field(default_factory=dict)
    shares: dict[str, tuple[bytes, bytes]] = field(default_factory=dict, repr=False)
    survivors: tuple[str, ...] = ()

    def to_bytes(self) -> bytes:
        """All of it; keep it sealed."""
        secrets = self.agreement_key, self.mask_key, self.seed
        near = (each.to_bytes() for each in self.neighbours.values())
        rows = (codec.pack(user.encode(), *pair) for user, pair in self.shares.items())
        names = (codec.pack(*(n.encode() for n in each)) for each in (self.users, self.survivors))
        facts = self.advertisement, self.session
        return codec.pack(
            bytes([self.stage]), *secrets, *facts, *names, codec.pack(*near), codec.pack(*rows)
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what :meth:`to_bytes` made, or raise ``MessageError``."""
        stage, agreement, mask, seed, own, session, users, survivors, near, rows = codec.unpack(
            data, 10
        )
        neighbours = [Advertisement.from_bytes(part) for part in codec.unpack(near)]
        shares = [codec.unpack(part, 3) for part in codec.unpack(rows)]
        try:
            return cls(
                stage=Stage(stage[0]),
                agreement_key=agreement,
                mask_key=mask,
                seed=seed,
                advertisement=own,
                session=session,
                users=tuple(part.decode() for part in codec.unpack(users)),
                neighbours={each.user: each for each in neighbours},
                shares={user.decode(): (one, other) for user, one, other in shares},
                survivors=tuple(part.decode() for part in codec.unpack(survivors)),
            )
        except (ValueError, IndexError) as error:
            raise MessageError(f"a device's state is damaged ({error})") from error
