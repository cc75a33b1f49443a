"""The server's side of a secure sum: collect, route, unmask.

See :mod:`sottovoce.shared.secure_aggregation`.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np

from sottovoce.shared import crypto
from sottovoce.shared.errors import AggregationError, MessageError, PrivacyError
from sottovoce.shared.secure_aggregation import (
    masking,
    neighbour_graph,
    quantisation,
    secret_sharing,
    transcript,
)
from sottovoce.shared.secure_aggregation.config import SecureAggregationConfig
from sottovoce.shared.secure_aggregation.messages import (
    KEY_SHARE,
    SEED_SHARE,
    AdvertiseRequest,
    ConsistencySignature,
    EncryptedShares,
    EncryptedSharesBatch,
    KeyAdvertisement,
    MaskedUpdate,
    ShareRequest,
    Survivors,
    UnmaskRequest,
    UnmaskShares,
)
from sottovoce.shared.secure_aggregation.quantisation import Floats, RingVector

MessagesByUser = Mapping[str, bytes]
"""Replies, or requests, by user."""

_Parsed = TypeVar("_Parsed")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class UnmaskedSum:
    """Result of a round.

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
    """One round: each step takes the replies that came and returns the next requests.

    A device that does not answer, or whose answer is malformed, unsigned or wrong, is left out
    from there on and named in :attr:`faults`. Below quorum or threshold the round ends with an
    ``AggregationError`` and nothing is opened.

    Guarantees:
        - See ``client.federation.secagg_client.DeviceRound`` for what is hidden from whoever runs
          this.
        - A wrong share, seed or key is found by what its owner committed to under signature, and
          its sender is named; a sum that would be wrong for it is not returned.
        - Not promised: that devices masked what they should have. One that adds nonsense within
          the ring spoils the sum unseen.
    """

    def __init__(
        self, *, settings: SecureAggregationConfig, round_name: str, roster: Mapping[str, bytes]
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
        self._graph: neighbour_graph.NeighbourGraph = {}
        self._advertised: dict[str, KeyAdvertisement] = {}
        self._encrypted_shares: dict[str, dict[str, EncryptedShares]] = {}
        self._masked: dict[str, RingVector] = {}
        self._check_quorum(roster, "are invited")
        if len(roster) > settings.devices:
            raise AggregationError(
                f"{len(roster)} devices are invited, the settings allow {settings.devices}"
            )

    def request_keys(self) -> dict[str, bytes]:
        """Ask everybody for fresh keys."""
        request = AdvertiseRequest(round_name=self.round_name).to_bytes()
        return dict.fromkeys(sorted(self._roster), request)

    def broadcast_keys(self, replies: MessagesByUser) -> dict[str, bytes]:
        """Show all advertisements to all who advertised.

        Raises:
            AggregationError: Below the quorum.
        """

        def read(user: str, data: bytes) -> KeyAdvertisement:
            found = KeyAdvertisement.from_bytes(data)
            if found.user != user:
                raise MessageError(f"it advertises for {found.user!r}")
            identity = self._roster[user]
            transcript.verify_advertisement(
                self.settings, found, identity=identity, round_name=self.round_name
            )
            if not all(map(crypto.is_valid_agreement_key, (found.agreement_key, found.mask_key))):
                # Its neighbours would all refuse: better one device less than no sum.
                raise AggregationError("it advertises a key that makes no secret with others")
            return found

        self._advertised = self._parse_replies(replies, self._roster, read)
        self._check_quorum(self._advertised, "advertise")
        # Over all advertisements: whoever was shown other ones derives another session.
        self._session = transcript.compute_session_id(self.settings, self._advertised.values())
        self._graph = neighbour_graph.harary_graph(
            self._advertised, self.settings.degree, self._session
        )
        request = ShareRequest(advertisements=tuple(self._advertised.values())).to_bytes()
        return dict.fromkeys(self._advertised, request)

    def route_shares(self, replies: MessagesByUser) -> dict[str, bytes]:
        """Route to every device the shares that its neighbours sealed.

        Raises:
            AggregationError: Below the quorum, or somebody's masks could not be taken off.
        """

        def read(user: str, data: bytes) -> dict[str, EncryptedShares]:
            batch = EncryptedSharesBatch.from_bytes(data).encrypted_shares
            if any(each.sender != user for each in batch):
                raise MessageError("it gives shares in another's name")
            if sorted(each.receiver for each in batch) != sorted(self._graph[user]):
                raise MessageError("it must give shares to each neighbour once, to nobody else")
            return {each.receiver: each for each in batch}

        self._encrypted_shares = self._parse_replies(replies, self._advertised, read)
        self._check_quorum(self._encrypted_shares, "share")
        for user in self._encrypted_shares:
            self._check_support(user, self._encrypted_shares, "share")
        return {user: self._shares_for(user).to_bytes() for user in self._encrypted_shares}

    def announce_survivors(self, replies: MessagesByUser) -> dict[str, bytes]:
        """Tell those whose masked updates came who they are.

        Raises:
            AggregationError: Below the quorum, or somebody's masks could not be taken off.
        """

        def read(user: str, data: bytes) -> RingVector:
            size, bits = self.settings.parameters, self.settings.bits
            found = MaskedUpdate.from_bytes(data, parameters=size, bits=bits)
            statement = transcript.masked_update_payload(self._session, user, found.vector)
            if not crypto.verify_signature(self._roster[user], found.signature, statement):
                raise MessageError("its masked update is not signed by it: altered on the way")
            return found.vector

        self._masked = self._parse_replies(replies, self._encrypted_shares, read)
        self._check_quorum(self._masked, "mask")
        for user in self._encrypted_shares:
            self._check_support(user, self._masked, "survive")
        # Settled here: of whoever comes later, devices give the key share, never the seed share.
        request = Survivors(users=tuple(self._masked)).to_bytes()
        return dict.fromkeys(self._masked, request)

    def route_signatures(self, replies: MessagesByUser) -> dict[str, bytes]:
        """Bring everybody their neighbours' signatures on the survivors.

        Raises:
            AggregationError: Too few signed.
        """
        statement = transcript.survivors_payload(self._session, tuple(self._masked))

        def read(user: str, data: bytes) -> bytes:
            signature = ConsistencySignature.from_bytes(data).signature
            if not crypto.verify_signature(self._roster[user], signature, statement):
                raise MessageError("it signed other survivors")
            return signature

        agreed = self._parse_replies(replies, self._masked, read)
        for user in self._encrypted_shares:
            self._check_support(user, agreed, "agree")
        requests = {}
        for user in agreed:
            # Neighbours only: all signatures to all would grow with the square of the cohort.
            near = {other: agreed[other] for other in self._graph[user] if other in agreed}
            requests[user] = UnmaskRequest(consistency_signatures=near).to_bytes()
        return requests

    def unmask_sum(self, replies: MessagesByUser) -> UnmaskedSum:
        """Take all masks off the sum.

        Raises:
            AggregationError: Too few right shares of somebody's secret, or the shares are of
                another secret than its owner committed to.
        """
        shares = self._parse_replies(replies, self._masked, self._parse_unmask_shares)
        size, bits = self.settings.parameters, self.settings.bits
        # Unsigned, to wrap round as the masks do: the ring has 2^bits elements, bits at most 32.
        total = np.zeros(size, dtype=np.uint32)
        for vector in self._masked.values():
            total = masking.add_mask(total, vector, bits)
        for user in self._encrypted_shares:
            for mask in self._remaining_masks(user, self._reconstruct_secret(user, shares)):
                total = masking.add_mask(total, masking.negate_mask(mask, bits), bits)
        return UnmaskedSum(
            total=quantisation.decode_sum(total, self.settings),
            survivors=tuple(self._masked),
            faults=dict(self.faults),
        )

    def _parse_replies(
        self,
        replies: MessagesByUser,
        expected: Collection[str],
        read: Callable[[str, bytes], _Parsed],
    ) -> dict[str, _Parsed]:
        """Parse what could be read of expected users' replies, in the order of users."""
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
                f" {self.settings.threshold}: the sum stays closed; {self._recovery_hint()}"
            )

    def _check_quorum(self, users: Collection[str], what: str) -> None:
        """End the round below the quorum."""
        if len(users) < self.settings.quorum:
            raise AggregationError(
                f"{len(users)} devices {what}, the quorum is {self.settings.quorum}: the sum stays"
                f" closed; {self._recovery_hint()}"
            )

    def _recovery_hint(self) -> str:
        """Say what an operator can do."""
        named = ", ".join(f"{user!r}: {why}" for user, why in sorted(self.faults.items())[:3])
        return f"start a new round, or arrange for more dropout ({named or 'nobody at fault'})"

    def _shares_for(self, user: str) -> EncryptedSharesBatch:
        """Collect the encrypted shares for one user."""
        senders = sorted(self._graph[user] & set(self._encrypted_shares))
        return EncryptedSharesBatch(
            encrypted_shares=tuple(self._encrypted_shares[sender][user] for sender in senders)
        )

    def _parse_unmask_shares(self, user: str, data: bytes) -> dict[str, bytes]:
        """Parse one user's shares of its neighbours' secrets, and check that they are right."""
        shares = UnmaskShares.from_bytes(data).shares
        if set(shares) != self._graph[user] & set(self._encrypted_shares):
            raise MessageError("it must give a share for each neighbour, and for nobody else")
        for owner, (kind, share) in shares.items():
            encrypted = self._encrypted_shares[owner][user]
            committed = (
                encrypted.seed_commitment if kind == SEED_SHARE else encrypted.key_commitment
            )
            found = transcript.commit_to_share(self._session, owner, user, kind=kind, share=share)
            if kind != (SEED_SHARE if owner in self._masked else KEY_SHARE) or found != committed:
                raise MessageError(f"it gave a wrong share for {owner!r}")
        return {owner: share for owner, (_, share) in shares.items()}

    def _reconstruct_secret(self, owner: str, shares: Mapping[str, Mapping[str, bytes]]) -> bytes:
        """Reconstruct a survivor's seed, or a dropout's mask key, as its owner committed to."""
        self._check_support(owner, shares, "give right shares")
        points = transcript.evaluation_points(self._advertised)
        known = {points[user]: shares[user][owner] for user in self._graph[owner] & set(shares)}
        # Each share was checked against its commitment, so what can still be wrong is the secret.
        secret = secret_sharing.combine_shares(known, self.settings.threshold)
        own = self._advertised[owner]
        if owner in self._masked:
            right = transcript.commit_to_seed(owner, self.round_name, secret) == own.seed_commitment
        else:
            right = crypto.agreement_public_key(secret) == own.mask_key
        if not right:
            raise AggregationError(
                f"{owner!r} shared out another secret than it committed to; start a new round"
                " without it"
            )
        return secret

    def _remaining_masks(self, user: str, secret: bytes) -> list[RingVector]:
        """List the masks that are left in the sum because of one user."""
        size, bits = self.settings.parameters, self.settings.bits
        if user in self._masked:
            # A survivor's pairwise masks cancel; only its own is left.
            return [masking.expand_mask(secret, size, bits)]
        # A dropout's own mask was never added; its neighbours' masks with it have no counterpart.
        left = []
        for other in sorted(self._graph[user] & set(self._masked)):
            public = self._advertised[other].mask_key
            seed = masking.pair_seed(self._session, secret, public, users=(user, other))
            left.append(masking.pair_mask(seed, other, user, parameters=size, bits=bits))
        return left
