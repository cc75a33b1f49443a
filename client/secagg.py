"""A device's side of a secure sum: five steps, bytes for bytes. See ``sottovoce.shared.secagg``."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Final, Self

from sottovoce.client.secagg_state import Stage, State
from sottovoce.shared import crypto
from sottovoce.shared.errors import AggregationError, MessageError, SettingError
from sottovoce.shared.secagg import codec, graph, masks, parcels, quantise, session, shamir
from sottovoce.shared.secagg.discrete import RandomWords
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

_VERSION: Final = b"device round 1"

Give = Callable[[], tuple[Floats, RandomWords]]
"""Books an update and makes it, shape (parameters,), in the units of the clip norm; beside it where
its noise comes from: ``discrete.SystemWords()``, or ``SeededWords`` in a simulation."""


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
          server than the settings were arranged for, and X25519, Ed25519, ChaCha20 and SHA-256.
        - Not hidden: who takes part, who drops out, and when.
        - Not promised: that the sum is right. A server can compute another; a lying device can add
          anything.

    Example:
        >>> from sottovoce.shared.secagg.arrangement import settings_for
        >>> key = crypto.new_key()
        >>> device = DeviceRound(
        ...     user="ada",
        ...     identity=key,
        ...     roster={"ada": crypto.identity_public(key)},
        ...     settings=settings_for(5, 3, 1.0, dropout=0.0, corruption=0.0),
        ...     round_name="run 1, round 1",
        ... )
        >>> reply = device.advertise(AdvertiseRequest(round="run 1, round 1").to_bytes())
        >>> Advertisement.from_bytes(reply).user
        'ada'
    """

    def __init__(
        self,
        *,
        user: str,
        identity: bytes,
        roster: Mapping[str, bytes],
        settings: SecureAggregation,
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
        if roster.get(user) != crypto.identity_public(identity):
            raise SettingError(f"the roster does not hold the identity of {user!r}; enrol first")
        self.user: Final = user
        self.settings: Final = settings
        self.round_name: Final = round_name
        self._identity: Final = identity
        self._roster: Final = roster
        self._state = State()

    @property
    def stage(self) -> Stage:
        """What the device does next."""
        return self._state.stage

    def advertise(self, request: bytes) -> bytes:
        """Draw fresh keys and sign them.

        Raises:
            MessageError: The request is malformed.
            AggregationError: Another round, or not the time for it.
        """
        asked = AdvertiseRequest.from_bytes(request).round
        if asked != self.round_name:
            raise AggregationError(
                f"asked for round {asked!r}, this is {self.round_name!r}; nothing is sent"
            )
        state = self._enter(Stage.ADVERTISE)
        state.agreement_key, state.mask_key = crypto.new_key(), shamir.new_secret()
        state.seed = shamir.new_secret()
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
        state = self._enter(Stage.SHARE)
        self._check_everybody(found)
        state.session = session.session(self.settings, found.values())
        state.users = tuple(sorted(found))
        near = graph.harary(state.users, self.settings.degree, state.session)[self.user]
        for user in sorted(near):
            session.check_advertisement(
                self.settings,
                found[user],
                identity=self._roster[user],
                round_name=self.round_name,
            )
        self._check_enough(near, "advertise")
        state.neighbours = {user: found[user] for user in sorted(near)}
        return Parcels(parcels=self._parcels()).to_bytes()

    def mask(self, request: bytes, give: Give) -> bytes:
        """Clip, quantise, noise and mask the update; from here on the masks' secrets are gone.

        Args:
            request: The neighbours' parcels.
            give: Books and makes the update. What it raises ends the round for this device.

        Raises:
            MessageError: The request is malformed, or the update has another shape.
            AggregationError: Too few parcels, one from elsewhere, one that does not open or holds
                other shares than its sender committed to, or not the time for it.
            PrivacyError: A neighbour's mask key that gives no secret.

        Guarantees:
            - ``give`` is asked once, and only where nothing in the request or in what came before
              stands in the way of masking: what is refused costs nothing.
            - What is sent cannot be told from uniform values, as long as fewer than ``threshold``
              shares of the device's seed are out, or one honest neighbour's mask stays unknown.
            - An update with a NaN or an infinity counts as zeros and gets noise; see
              ``quantise.encode``.
        """
        came = Parcels.from_bytes(request).parcels
        state = self._enter(Stage.MASK)
        senders = [parcel.sender for parcel in came]
        if len(set(senders)) != len(senders) or not set(senders) <= set(state.neighbours):
            raise AggregationError("shares came twice or from no neighbour; nothing is sent")
        self._check_enough(senders, "share")
        shares = {parcel.sender: self._unsealed(parcel) for parcel in came}
        seeds = {sender: self._pair_seed(sender) for sender in shares}
        update, random = give()
        vector = self._masked(quantise.encode(update, self.settings, random), seeds)
        state.shares = shares  # none before: a device that masked nothing agrees to nothing
        state.agreement_key = state.mask_key = state.seed = b""
        signed = crypto.sign(self._identity, session.masked(state.session, self.user, vector))
        return Masked(vector=vector, signature=signed).to_bytes()

    def agree(self, request: bytes) -> bytes:
        """Sign who survives, once and for all.

        Raises:
            MessageError: The request is malformed.
            AggregationError: Below the quorum or threshold, without this device, with strangers,
                or not the time for it.
        """
        users = Survivors.from_bytes(request).users
        state = self._enter(Stage.AGREE)
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
        self._check_enough(near, "survive")
        state.survivors = users
        signed = crypto.sign(self._identity, session.survivors(state.session, users))
        return Agreement(signature=signed).to_bytes()

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
        agreements = UnmaskRequest.from_bytes(request).agreements
        state = self._enter(Stage.UNMASK)
        statement = session.survivors(state.session, state.survivors)
        if not set(agreements) <= set(state.survivors) & set(state.neighbours):
            raise AggregationError("agreements came from no surviving neighbour; nothing is sent")
        for user, signature in agreements.items():
            if not crypto.verify(self._roster[user], signature, statement):
                raise AggregationError(
                    f"{user!r} did not sign the survivors that this device was told: the server"
                    " tells users different things, or the message was altered; nothing is sent"
                )
        self._check_enough(agreements, "agree")
        alive, held = set(state.survivors), state.shares
        shares = {
            user: (SEED, seed) if user in alive else (KEY, key)
            for user, (seed, key) in held.items()
        }
        self._state = State(stage=Stage.DONE)
        return Unmasking(shares=shares).to_bytes()

    def to_bytes(self) -> bytes:
        """The state, secrets included, to be kept sealed; see :meth:`restore`."""
        return codec.pack(*self._bound(), self._state.to_bytes())

    @classmethod
    def restore(
        cls,
        data: bytes,
        *,
        user: str,
        identity: bytes,
        roster: Mapping[str, bytes],
        settings: SecureAggregation,
        round_name: str,
    ) -> Self:
        """The device as :meth:`to_bytes` left it; arguments as for a new one.

        Raises:
            AggregationError: Damaged, or of another user, round, release or settings.
        """
        device = cls(
            user=user, identity=identity, roster=roster, settings=settings, round_name=round_name
        )
        try:
            *bound, state = codec.unpack(data, 5)
            if tuple(bound) != device._bound():
                raise MessageError("it belongs to another user, round, release or settings")
            device._state = State.from_bytes(state)
        except MessageError as error:
            raise AggregationError(
                f"the state of round {round_name!r} cannot be used ({error}); sit this round out"
            ) from error
        return device

    def _bound(self) -> tuple[bytes, ...]:
        """What a kept state belongs to."""
        names = self.user.encode(), self.round_name.encode()
        return (_VERSION, *names, self.settings.digest())

    def _enter(self, stage: Stage) -> State:
        """Leave a stage for the next, or refuse."""
        if self._state.stage is not stage:
            raise AggregationError(
                f"asked to {stage.name.lower()}, but the next step is to"
                f" {self._state.stage.name.lower()}: every step is taken once; wait for a new round"
            )
        self._state.stage = Stage(stage + 1)
        return self._state

    def _advertisement(self) -> Advertisement:
        """The public halves of the fresh keys, signed."""
        state = self._state
        unsigned = Advertisement(
            user=self.user,
            round=self.round_name,
            agreement_key=crypto.agreement_public(state.agreement_key),
            mask_key=crypto.agreement_public(state.mask_key),
            seed_commitment=session.seed_commitment(self.user, self.round_name, state.seed),
            signature=b"",
        )
        return replace(
            unsigned,
            signature=crypto.sign(self._identity, session.advertised(self.settings, unsigned)),
        )

    def _check_everybody(self, found: Mapping[str, Advertisement]) -> None:
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
            raise AggregationError("two keys are alike; somebody repeats another's")

    def _check_enough(self, users: Collection[str], what: str) -> None:
        """Refuse below the threshold."""
        if len(users) < self.settings.threshold:
            raise AggregationError(
                f"{len(users)} neighbours {what}, the threshold is {self.settings.threshold}: the"
                " sum stays closed; try a new round with more devices"
            )

    def _parcels(self) -> tuple[Parcel, ...]:
        """Both secrets' shares, sealed for each neighbour."""
        state, place = self._state, session.places(self._state.users)
        holders = [place[user] for user in state.neighbours]
        seeds = shamir.split(state.seed, holders, self.settings.threshold)
        keys = shamir.split(state.mask_key, holders, self.settings.threshold)
        return tuple(
            parcels.seal(
                state.session,
                state.agreement_key,
                other.agreement_key,
                names=(self.user, user),
                seed=seeds[place[user]],
                key=keys[place[user]],
            )
            for user, other in state.neighbours.items()
        )

    def _unsealed(self, parcel: Parcel) -> tuple[bytes, bytes]:
        """A neighbour's shares for this device."""
        if parcel.receiver != self.user:
            raise AggregationError(f"shares for {parcel.receiver!r} came here; nothing is sent")
        state = self._state
        public = state.neighbours[parcel.sender].agreement_key
        return parcels.unseal(state.session, state.agreement_key, public, parcel)

    def _pair_seed(self, other: str) -> bytes:
        """The seed of the mask that this device has with a neighbour."""
        state, pair = self._state, (self.user, other)
        public = state.neighbours[other].mask_key
        return masks.pair_seed(state.session, state.mask_key, public, users=pair)

    def _masked(self, vector: Ring, seeds: Mapping[str, bytes]) -> Ring:
        """The vector under its own mask and one for each neighbour whose shares came."""
        size, bits = self.settings.parameters, self.settings.bits
        vector = masks.add(vector, masks.expand(self._state.seed, size, bits), bits)
        for other, seed in seeds.items():
            mask = masks.pair_mask(seed, self.user, other, parameters=size, bits=bits)
            vector = masks.add(vector, mask, bits)
        return vector
