"""The server's side of a secure sum: collect, route, open. See ``sottovoce.shared.secagg``."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np

from sottovoce.shared import crypto
from sottovoce.shared.errors import AggregationError, MessageError, PrivacyError
from sottovoce.shared.secagg import graph, masks, quantise, session, shamir
from sottovoce.shared.secagg.messages import (
    KEY,
    SEED,
    Advertisement,
    AdvertiseRequest,
    Agreement,
    Masked,
    Parcel,
    Parcels,
    ShareRequest,
    Survivors,
    Unmasking,
    UnmaskRequest,
)
from sottovoce.shared.secagg.quantise import Floats, Ring
from sottovoce.shared.secagg.settings import SecureAggregation

Letters = Mapping[str, bytes]
"""Replies, or requests, by user."""

_Read = TypeVar("_Read")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Opened:
    """What a round gives.

    Attributes:
        total: Noised sum of the survivors' clipped updates, shape (parameters,), float64, in the
            units of the clip norm. Exact to one granularity for each survivor, beside the noise.
        survivors: Whose updates are in it, in order; the sum divided by their number is the mean.
        faults: What was wrong with whom, by user, for the operator; none of it is in the sum.
    """

    total: Floats
    survivors: tuple[str, ...]
    faults: Mapping[str, str]


class ServerRound:
    """One round: each step takes the replies that came and gives the next requests.

    A device that does not answer, or whose answer is malformed, unsigned or wrong, is left out
    from there on and named in :attr:`faults`. Below quorum or threshold the round ends with an
    ``AggregationError`` and nothing is opened.

    Guarantees:
        - See ``client.secagg.DeviceRound`` for what is hidden from whoever runs this.
        - A wrong share, seed or key is found by what its owner committed to under signature, and
          its giver is named; a sum that would be wrong for it is not returned.
        - Not promised: that devices masked what they should have. One that adds nonsense within
          the ring spoils the sum unseen.
    """

    def __init__(
        self, *, settings: SecureAggregation, round_name: str, roster: Mapping[str, bytes]
    ) -> None:
        """A round to come.

        Args:
            settings: What all devices agreed to.
            round_name: Unique over all runs, 1 to 128 characters.
            roster: Who is invited: from users' names to their public identity keys.

        Raises:
            AggregationError: More or fewer users than the settings allow.
        """
        self.settings: Final = settings
        self.round_name: Final = round_name
        self.faults: Final[dict[str, str]] = {}
        self._roster: Final = dict(roster)
        self._session = b""
        self._graph: graph.Graph = {}
        self._advertised: dict[str, Advertisement] = {}
        self._parcels: dict[str, dict[str, Parcel]] = {}
        self._masked: dict[str, Ring] = {}
        self._check_quorum(roster, "are invited")
        if len(roster) > settings.devices:
            raise AggregationError(
                f"{len(roster)} devices are invited, the settings allow {settings.devices}"
            )

    def advertise(self) -> dict[str, bytes]:
        """Ask everybody for fresh keys."""
        request = AdvertiseRequest(round=self.round_name).to_bytes()
        return dict.fromkeys(sorted(self._roster), request)

    def share(self, replies: Letters) -> dict[str, bytes]:
        """Show all advertisements to all who advertised.

        Raises:
            AggregationError: Below the quorum.
        """

        def read(user: str, data: bytes) -> Advertisement:
            found = Advertisement.from_bytes(data)
            if found.user != user:
                raise MessageError(f"it advertises for {found.user!r}")
            identity = self._roster[user]
            session.check_advertisement(
                self.settings, found, identity=identity, round_name=self.round_name
            )
            if not all(map(crypto.gives_secret, (found.agreement_key, found.mask_key))):
                # Its neighbours would all refuse: better one device less than no sum.
                raise AggregationError("it advertises a key that makes no secret with others")
            return found

        self._advertised = self._collected(replies, self._roster, read)
        self._check_quorum(self._advertised, "advertise")
        self._session = session.session(self.settings, self._advertised.values())
        self._graph = graph.harary(self._advertised, self.settings.degree, self._session)
        request = ShareRequest(advertisements=tuple(self._advertised.values())).to_bytes()
        return dict.fromkeys(self._advertised, request)

    def mask(self, replies: Letters) -> dict[str, bytes]:
        """Bring everybody the shares that neighbours sealed for them.

        Raises:
            AggregationError: Below the quorum, or somebody's masks could not be taken off.
        """

        def read(user: str, data: bytes) -> dict[str, Parcel]:
            parcels = Parcels.from_bytes(data).parcels
            if any(parcel.sender != user for parcel in parcels):
                raise MessageError("it gives shares in another's name")
            if sorted(parcel.receiver for parcel in parcels) != sorted(self._graph[user]):
                raise MessageError("it must give shares to each neighbour once, to nobody else")
            return {parcel.receiver: parcel for parcel in parcels}

        self._parcels = self._collected(replies, self._advertised, read)
        self._check_quorum(self._parcels, "share")
        for user in self._parcels:
            self._check_support(user, self._parcels, "share")
        return {user: self._post(user).to_bytes() for user in self._parcels}

    def agree(self, replies: Letters) -> dict[str, bytes]:
        """Tell those whose masked updates came who they are.

        Raises:
            AggregationError: Below the quorum, or somebody's masks could not be taken off.
        """

        def read(user: str, data: bytes) -> Ring:
            size, bits = self.settings.parameters, self.settings.bits
            found = Masked.from_bytes(data, parameters=size, bits=bits)
            statement = session.masked(self._session, user, found.vector)
            if not crypto.verify(self._roster[user], found.signature, statement):
                raise MessageError("its masked update is not signed by it: altered on the way")
            return found.vector

        self._masked = self._collected(replies, self._parcels, read)
        self._check_quorum(self._masked, "mask")
        for user in self._parcels:
            self._check_support(user, self._masked, "survive")
        request = Survivors(users=tuple(self._masked)).to_bytes()
        return dict.fromkeys(self._masked, request)

    def unmask(self, replies: Letters) -> dict[str, bytes]:
        """Bring everybody their neighbours' signatures on the survivors.

        Raises:
            AggregationError: Too few signed.
        """
        statement = session.survivors(self._session, tuple(self._masked))

        def read(user: str, data: bytes) -> bytes:
            signature = Agreement.from_bytes(data).signature
            if not crypto.verify(self._roster[user], signature, statement):
                raise MessageError("it signed other survivors")
            return signature

        agreed = self._collected(replies, self._masked, read)
        for user in self._parcels:
            self._check_support(user, agreed, "agree")
        requests = {}
        for user in agreed:
            near = {other: agreed[other] for other in self._graph[user] if other in agreed}
            requests[user] = UnmaskRequest(agreements=near).to_bytes()
        return requests

    def finish(self, replies: Letters) -> Opened:
        """Take all masks off the sum.

        Raises:
            AggregationError: Too few right shares of somebody's secret, or the shares are of
                another secret than its owner committed to.
        """
        opened = self._collected(replies, self._masked, self._shares)
        size, bits = self.settings.parameters, self.settings.bits
        total = np.zeros(size, dtype=np.uint32)
        for vector in self._masked.values():
            total = masks.add(total, vector, bits)
        for user in self._parcels:
            for mask in self._masks(user, self._secret(user, opened)):
                total = masks.add(total, masks.negative(mask, bits), bits)
        return Opened(
            total=quantise.decode(total, self.settings),
            survivors=tuple(self._masked),
            faults=dict(self.faults),
        )

    def _collected(
        self, replies: Letters, expected: Collection[str], read: Callable[[str, bytes], _Read]
    ) -> dict[str, _Read]:
        """What could be read of expected users' replies, in the order of users."""
        found = {}
        for user in sorted(expected):
            if user not in replies:
                self.faults.setdefault(user, "no answer")
                continue
            try:
                found[user] = read(user, replies[user])
            except (MessageError, PrivacyError) as error:
                self.faults[user] = str(error)
        return found

    def _check_support(self, user: str, present: Collection[str], what: str) -> None:
        """End the round where somebody's secrets could not be opened."""
        near = len(self._graph[user] & set(present))
        if near < self.settings.threshold:
            raise AggregationError(
                f"of the neighbours of {user!r} only {near} {what}, the threshold is"
                f" {self.settings.threshold}: the sum stays closed; {self._way_out()}"
            )

    def _check_quorum(self, users: Collection[str], what: str) -> None:
        """End the round below the quorum."""
        if len(users) < self.settings.quorum:
            raise AggregationError(
                f"{len(users)} devices {what}, the quorum is {self.settings.quorum}: the sum stays"
                f" closed; {self._way_out()}"
            )

    def _way_out(self) -> str:
        """What an operator can do."""
        named = ", ".join(f"{user!r}: {why}" for user, why in sorted(self.faults.items())[:3])
        return f"start a new round, or arrange for more dropout ({named or 'nobody at fault'})"

    def _post(self, user: str) -> Parcels:
        """The parcels for one user."""
        senders = sorted(self._graph[user] & set(self._parcels))
        return Parcels(parcels=tuple(self._parcels[sender][user] for sender in senders))

    def _shares(self, user: str, data: bytes) -> dict[str, bytes]:
        """One user's shares of its neighbours' secrets, once they are the right ones."""
        shares = Unmasking.from_bytes(data).shares
        if set(shares) != self._graph[user] & set(self._parcels):
            raise MessageError("it must give a share for each neighbour, and for nobody else")
        for owner, (kind, share) in shares.items():
            parcel = self._parcels[owner][user]
            committed = parcel.seed_commitment if kind == SEED else parcel.key_commitment
            found = session.share_commitment(self._session, owner, user, kind=kind, share=share)
            if kind != (SEED if owner in self._masked else KEY) or found != committed:
                raise MessageError(f"it gave a wrong share for {owner!r}")
        return {owner: share for owner, (_, share) in shares.items()}

    def _secret(self, owner: str, opened: Mapping[str, Mapping[str, bytes]]) -> bytes:
        """A survivor's seed, or the mask key of one who dropped out, as its owner committed to."""
        self._check_support(owner, opened, "give right shares")
        place = session.places(self._advertised)
        given = {place[user]: opened[user][owner] for user in self._graph[owner] & set(opened)}
        secret = shamir.combine(given, self.settings.threshold)
        own = self._advertised[owner]
        if owner in self._masked:
            right = session.seed_commitment(owner, self.round_name, secret) == own.seed_commitment
        else:
            right = crypto.agreement_public(secret) == own.mask_key
        if not right:
            raise AggregationError(
                f"{owner!r} shared out another secret than it committed to; start a new round"
                " without it"
            )
        return secret

    def _masks(self, user: str, secret: bytes) -> list[Ring]:
        """What is left in the sum because of one user."""
        size, bits = self.settings.parameters, self.settings.bits
        if user in self._masked:
            return [masks.expand(secret, size, bits)]
        left = []
        for other in sorted(self._graph[user] & set(self._masked)):
            public = self._advertised[other].mask_key
            seed = masks.pair_seed(self._session, secret, public, users=(user, other))
            left.append(masks.pair_mask(seed, other, user, parameters=size, bits=bits))
        return left
