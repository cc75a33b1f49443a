"""A device's side of a secure sum: five steps, bytes for bytes.

See :mod:`sottovoce.shared.secure_aggregation`.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Final, Self

from sottovoce.client.federation.secagg_state import SecAggStage, SecAggState
from sottovoce.shared import crypto
from sottovoce.shared.errors import AggregationError, MessageError, SettingError
from sottovoce.shared.secure_aggregation import (
    encrypted_shares,
    framing,
    masking,
    neighbour_graph,
    quantisation,
    secret_sharing,
    transcript,
)
from sottovoce.shared.secure_aggregation.config import SecureAggregationConfig
from sottovoce.shared.secure_aggregation.discrete_gaussian import RandomWords
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

_VERSION: Final = b"device round 1"

UpdateMaker = Callable[[], tuple[Floats, RandomWords]]
"""Books an update and makes it, shape (parameters,), in the units of the clip norm; beside it where
its noise comes from: ``SystemRandomWords()`` of ``discrete_gaussian``, or ``SeededRandomWords`` in
a simulation."""


class DeviceRound:
    """One device in one round.

    Every step takes the server's request and returns the reply. The caller keeps
    :meth:`to_bytes` sealed (the vault does) **before** it sends a reply, and never puts an older
    copy back: a device that forgets what it has answered can be asked twice.

    Guarantees:
        - The server and the lying devices together learn, of the honest devices' updates, the sum
          over all survivors that were agreed on, with everybody's noise in it. That holds against
          a server that follows the protocol and remembers all it sees. Against one that lies
          about keys, survivors or shares, a device refuses, or the sum does not open; in a graph
          that is not complete, such a server may get sums over parts of the graph instead, each
          over at least ``threshold + 1 - liars`` honest devices.
        - Assumed: identities in the roster are the users' own, no more devices side with the
          server than the parameters were selected for, and X25519, Ed25519, ChaCha20 and SHA-256.
        - Not hidden: who takes part, who drops out, and when.
        - Not promised: that the sum is right. A server can compute another; a lying device can add
          anything.

    Example:
        >>> from sottovoce.shared.secure_aggregation.parameter_selection import select_parameters
        >>> key = crypto.new_key()
        >>> device = DeviceRound(
        ...     user="ada",
        ...     identity=key,
        ...     roster={"ada": crypto.identity_public_key(key)},
        ...     settings=select_parameters(5, 3, 1.0, dropout=0.0, corruption=0.0),
        ...     round_name="run 1, round 1",
        ... )
        >>> reply = device.advertise(AdvertiseRequest(round_name="run 1, round 1").to_bytes())
        >>> KeyAdvertisement.from_bytes(reply).user
        'ada'
    """

    def __init__(
        self,
        *,
        user: str,
        identity: bytes,
        roster: Mapping[str, bytes],
        settings: SecureAggregationConfig,
        round_name: str,
    ) -> None:
        """A device at the beginning of a round.

        Args:
            user: The user's name in the roster.
            identity: The user's private identity key (Ed25519), 32 bytes.
            roster: Everybody's public identity keys, pinned on the device: from a user's name to
                32 bytes.
            settings: What the device agreed to, not what a message says.
            round_name: The round's name, unique over all runs, 1 to 128 characters.

        Raises:
            SettingError: The roster has another identity for this user.
        """
        if roster.get(user) != crypto.identity_public_key(identity):
            raise SettingError(f"the roster does not hold the identity of {user!r}; enrol first")
        self.user: Final = user
        self.settings: Final = settings
        self.round_name: Final = round_name
        self._identity: Final = identity
        self._roster: Final = roster
        self._state = SecAggState()

    @property
    def next_stage(self) -> SecAggStage:
        """Stage that the device takes next."""
        return self._state.stage

    def advertise(self, request: bytes) -> bytes:
        """Draw fresh keys and sign their advertisement.

        Raises:
            MessageError: The request is malformed.
            AggregationError: Another round, or not the time for it.
        """
        requested_name = AdvertiseRequest.from_bytes(request).round_name
        if requested_name != self.round_name:
            raise AggregationError(
                f"asked for round {requested_name!r}, this is {self.round_name!r}; nothing is sent"
            )
        state = self._enter(SecAggStage.ADVERTISE)
        state.agreement_key, state.mask_key = crypto.new_key(), secret_sharing.new_secret()
        state.seed = secret_sharing.new_secret()
        state.advertisement = self._advertisement().to_bytes()
        return state.advertisement

    def share(self, request: bytes) -> bytes:
        """Share both secrets out among the neighbours, sealed for each.

        Raises:
            MessageError: The request is malformed.
            AggregationError: Too few or unknown users, keys that are not signed by the identity
                in the roster, repeated keys, another round, or not the time for it.

        Guarantees:
            - Fewer than ``threshold`` shares say nothing; each opens for one neighbour only.
            - Whoever was shown other advertisements cannot open them.
        """
        found = {each.user: each for each in ShareRequest.from_bytes(request).advertisements}
        state = self._enter(SecAggStage.SHARE)
        self._check_advertisements(found)
        state.session = transcript.compute_session_id(self.settings, found.values())
        state.users = tuple(sorted(found))
        near = neighbour_graph.harary_graph(state.users, self.settings.degree, state.session)[
            self.user
        ]
        for user in sorted(near):
            transcript.verify_advertisement(
                self.settings,
                found[user],
                identity=self._roster[user],
                round_name=self.round_name,
            )
        self._check_threshold(near, "advertise")
        state.neighbours = {user: found[user] for user in sorted(near)}
        return EncryptedSharesBatch(encrypted_shares=self._encrypt_shares()).to_bytes()

    def mask(self, request: bytes, make_update: UpdateMaker) -> bytes:
        """Clip, quantise, noise and mask the update; from here on the masks' secrets are gone.

        Args:
            request: The neighbours' encrypted shares.
            make_update: Books and makes the update. What it raises ends the round for this device.

        Raises:
            MessageError: The request is malformed, or the update has another shape.
            AggregationError: Too few encrypted shares, some from elsewhere, some that do not open
                or are others than their sender committed to, or not the time for it.
            PrivacyError: A neighbour's mask key that gives no secret.

        Guarantees:
            - ``make_update`` is called once, and only where nothing in the request or in what came
              before stands in the way of masking: what is refused costs nothing.
            - What is sent cannot be told from uniform values, as long as fewer than ``threshold``
              shares of the device's seed are out, or one honest neighbour's mask stays unknown.
            - An update with a NaN or an infinity counts as zeros and gets noise; see
              ``quantisation.encode_update``.
        """
        batch = EncryptedSharesBatch.from_bytes(request).encrypted_shares
        state = self._enter(SecAggStage.MASK)
        senders = [each.sender for each in batch]
        if len(set(senders)) != len(senders) or not set(senders) <= set(state.neighbours):
            raise AggregationError("shares came twice or from no neighbour; nothing is sent")
        self._check_threshold(senders, "share")
        shares = {each.sender: self._decrypt_shares(each) for each in batch}
        seeds = {sender: self._pair_seed(sender) for sender in shares}
        update, random = make_update()
        vector = self._masked(quantisation.encode_update(update, self.settings, random), seeds)
        state.shares = shares  # none before: a device that masked nothing agrees to nothing
        # Forgotten at once: whoever takes the device later cannot take the masks off.
        state.agreement_key = state.mask_key = state.seed = b""
        signed = crypto.sign_message(
            self._identity, transcript.masked_update_payload(state.session, self.user, vector)
        )
        return MaskedUpdate(vector=vector, signature=signed).to_bytes()

    def agree(self, request: bytes) -> bytes:
        """Sign who survives, once and for all.

        Raises:
            MessageError: The request is malformed.
            AggregationError: Below the quorum or threshold, without this device, with strangers,
                or not the time for it.
        """
        users = Survivors.from_bytes(request).users
        state = self._enter(SecAggStage.AGREE)
        near = set(users) & set(state.neighbours)
        if self.user not in users or not set(users) <= set(state.users):
            raise AggregationError("the survivors lack this device or name strangers")
        if not near <= set(state.shares):
            raise AggregationError("survivors are named whose shares never came; nothing is sent")
        if len(users) < self.settings.quorum:
            raise AggregationError(
                f"{len(users)} devices survive, the quorum is {self.settings.quorum}: the sum"
                " stays closed; try a new round with more devices"
            )
        self._check_threshold(near, "survive")
        state.survivors = users
        signed = crypto.sign_message(
            self._identity, transcript.survivors_payload(state.session, users)
        )
        return ConsistencySignature(signature=signed).to_bytes()

    def unmask(self, request: bytes) -> bytes:
        """Give one share for each neighbour, and forget everything.

        Raises:
            MessageError: The request is malformed.
            AggregationError: Fewer than ``threshold`` neighbours signed the same survivors, one
                signed others, or not the time for it.

        Guarantees:
            - Of a survivor a share of the seed is given, of others a share of the mask key; never
              both of one device, and never twice.
        """
        agreements = UnmaskRequest.from_bytes(request).consistency_signatures
        state = self._enter(SecAggStage.UNMASK)
        statement = transcript.survivors_payload(state.session, state.survivors)
        if not set(agreements) <= set(state.survivors) & set(state.neighbours):
            raise AggregationError("agreements came from no surviving neighbour; nothing is sent")
        for user, signature in agreements.items():
            if not crypto.verify_signature(self._roster[user], signature, statement):
                raise AggregationError(
                    f"{user!r} did not sign the survivors that this device was told: the server"
                    " tells users different things, or the message was altered; nothing is sent"
                )
        self._check_threshold(agreements, "agree")
        surviving, stored_shares = set(state.survivors), state.shares
        shares = {
            # Of a survivor never the key: with the seed it would bare the update.
            user: (SEED_SHARE, seed) if user in surviving else (KEY_SHARE, key)
            for user, (seed, key) in stored_shares.items()
        }
        # Both kinds of share, from enough neighbours, would open an update: no other is left.
        self._state = SecAggState(stage=SecAggStage.DONE)
        return UnmaskShares(shares=shares).to_bytes()

    def to_bytes(self) -> bytes:
        """Convert the state, secrets included, to bytes that must be kept sealed."""
        return framing.pack(*self._binding(), self._state.to_bytes())

    @classmethod
    def from_bytes(
        cls,
        data: bytes,
        *,
        user: str,
        identity: bytes,
        roster: Mapping[str, bytes],
        settings: SecureAggregationConfig,
        round_name: str,
    ) -> Self:
        """Resume the device as :meth:`to_bytes` left it; arguments as for a new one.

        Raises:
            AggregationError: Damaged, or of another user, round, release or settings.
        """
        device = cls(
            user=user, identity=identity, roster=roster, settings=settings, round_name=round_name
        )
        try:
            *bound, state = framing.unpack(data, 5)
            if tuple(bound) != device._binding():
                raise MessageError("it belongs to another user, round, release or settings")
            device._state = SecAggState.from_bytes(state)
        except MessageError as error:
            raise AggregationError(
                f"the state of round {round_name!r} cannot be used ({error}); sit this round out"
            ) from error
        return device

    def _binding(self) -> tuple[bytes, ...]:
        """Facts that a stored state belongs to."""
        names = self.user.encode(), self.round_name.encode()
        return (_VERSION, *names, self.settings.config_hash())

    def _enter(self, stage: SecAggStage) -> SecAggState:
        """Leave a stage for the next, or refuse."""
        if self._state.stage is not stage:
            raise AggregationError(
                f"asked to {stage.name.lower()}, but the next step is to"
                f" {self._state.stage.name.lower()}: every step is taken once; wait for a new round"
            )
        # Left before anything is computed: a step that fails is not tried again with other input.
        self._state.stage = SecAggStage(stage + 1)
        return self._state

    def _advertisement(self) -> KeyAdvertisement:
        """Sign the public halves of the fresh keys."""
        state = self._state
        unsigned = KeyAdvertisement(
            user=self.user,
            round_name=self.round_name,
            agreement_key=crypto.agreement_public_key(state.agreement_key),
            mask_key=crypto.agreement_public_key(state.mask_key),
            seed_commitment=transcript.commit_to_seed(self.user, self.round_name, state.seed),
            signature=b"",
        )
        return replace(
            unsigned,
            signature=crypto.sign_message(
                self._identity, transcript.advertisement_payload(self.settings, unsigned)
            ),
        )

    def _check_advertisements(self, found: Mapping[str, KeyAdvertisement]) -> None:
        """Refuse a round of too few, of strangers, of twins, or without this device's own keys."""
        least, most = self.settings.quorum, self.settings.devices
        if not least <= len(found) <= most:
            raise AggregationError(
                f"{len(found)} devices advertise; the settings ask for {least} to {most}: try a"
                " new round"
            )
        strangers = sorted(set(found) - set(self._roster))
        if strangers:
            raise AggregationError(
                f"{strangers[0]!r} is not in the roster of this device; enrol that user first"
            )
        own = found.get(self.user)
        if own is None or own.to_bytes() != self._state.advertisement:
            raise AggregationError("this device's own keys are missing or were exchanged")
        keys = [key for each in found.values() for key in (each.agreement_key, each.mask_key)]
        if len(set(keys)) != len(keys):
            raise AggregationError("two keys are the same; somebody repeats another's")

    def _check_threshold(self, users: Collection[str], what: str) -> None:
        """Refuse below the threshold."""
        if len(users) < self.settings.threshold:
            raise AggregationError(
                f"{len(users)} neighbours {what}, the threshold is {self.settings.threshold}: the"
                " sum stays closed; try a new round with more devices"
            )

    def _encrypt_shares(self) -> tuple[EncryptedShares, ...]:
        """Both secrets' shares, sealed for each neighbour."""
        state, points = self._state, transcript.evaluation_points(self._state.users)
        holders = [points[user] for user in state.neighbours]
        seeds = secret_sharing.split_secret(state.seed, holders, self.settings.threshold)
        keys = secret_sharing.split_secret(state.mask_key, holders, self.settings.threshold)
        return tuple(
            encrypted_shares.encrypt_shares(
                state.session,
                state.agreement_key,
                other.agreement_key,
                names=(self.user, user),
                seed=seeds[points[user]],
                key=keys[points[user]],
            )
            for user, other in state.neighbours.items()
        )

    def _decrypt_shares(self, encrypted: EncryptedShares) -> tuple[bytes, bytes]:
        """A neighbour's shares for this device."""
        if encrypted.receiver != self.user:
            raise AggregationError(f"shares for {encrypted.receiver!r} came here; nothing is sent")
        state = self._state
        public = state.neighbours[encrypted.sender].agreement_key
        return encrypted_shares.decrypt_shares(
            state.session, state.agreement_key, public, encrypted
        )

    def _pair_seed(self, other: str) -> bytes:
        """Derive the seed of the mask that this device has with a neighbour."""
        state, pair = self._state, (self.user, other)
        public = state.neighbours[other].mask_key
        return masking.pair_seed(state.session, state.mask_key, public, users=pair)

    def _masked(self, vector: RingVector, seeds: Mapping[str, bytes]) -> RingVector:
        """Add its own mask to the vector, and one for each neighbour whose shares came."""
        size, bits = self.settings.parameters, self.settings.bits
        vector = masking.add_mask(vector, masking.expand_mask(self._state.seed, size, bits), bits)
        for other, seed in seeds.items():
            mask = masking.pair_mask(seed, self.user, other, parameters=size, bits=bits)
            vector = masking.add_mask(vector, mask, bits)
        return vector
