"""The public projection: a fixed affine map from features to the model's few inputs.

It is fitted on public corpora only and sent to every device, so it costs no privacy.
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from sottovoce.shared import validation
from sottovoce.shared.errors import ModelError


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PublicProjection:
    """Affine map of features, and an optional common norm of rows after normalisation.

    Attributes:
        mean: Subtracted first, shape (features,), float32.
        matrix: Shape (features, inputs), float32.
        row_norm: L2 norm to which every row is scaled after the user's mean was subtracted, which
            bounds the influence of one utterance on a gradient; 0 leaves rows as they are.
    """

    mean: Tensor
    matrix: Tensor
    row_norm: float = 0.0

    def __post_init__(self) -> None:
        fits = self.mean.dim() == 1 and self.matrix.dim() == 2
        if not fits or self.matrix.shape[0] != self.mean.shape[0]:
            raise ModelError(
                f"a projection of mean {tuple(self.mean.shape)} and matrix "
                f"{tuple(self.matrix.shape)} does not fit together; needed: (features,) and "
                "(features, inputs)"
            )
        validation.require_non_negative(row_norm=self.row_norm)
        if not (self.mean.isfinite().all() and self.matrix.isfinite().all()):
            raise ModelError("the projection holds a NaN or an infinity; fit it again")

    @property
    def output_size(self) -> int:
        """Number of inputs that the model reads.

        Example:
            >>> PublicProjection(mean=torch.zeros(8), matrix=torch.zeros(8, 3)).output_size
            3
        """
        return int(self.matrix.shape[1])

    def project_features(self, features: Tensor) -> Tensor:
        """Project (..., features) to (..., inputs), float32, not yet normalised.

        Raises:
            ModelError: Features of another width.

        Example:
            >>> matrix = torch.tensor([[1.0], [2.0]])
            >>> projection = PublicProjection(mean=torch.ones(2), matrix=matrix)
            >>> projection.project_features(torch.tensor([[2.0, 3.0]]))
            tensor([[5.]])
        """
        if features.shape[-1] != self.mean.shape[0]:
            raise ModelError(
                f"features are {features.shape[-1]} wide and this model reads "
                f"{self.mean.shape[0]}: they come from another extractor"
            )
        projected: Tensor = (features - self.mean) @ self.matrix
        return projected

    def prepare_inputs(self, features: Tensor, mean: Tensor, frames: Tensor) -> Tensor:
        """Prepare model inputs: project, subtract a mean, scale every row, zero the padding.

        Args:
            features: Shape (utterances, features) or (utterances, frames, features), float32.
            mean: The user's, shape (inputs,), or anything that broadcasts to the projected rows.
            frames: Real frames of each utterance, shape (utterances,), int64.

        Returns:
            The model's inputs, shape (utterances, inputs) or (utterances, frames, inputs).

        Guarantees:
            As :func:`normalise_and_mask`.

        Raises:
            ModelError: Features of another width.

        Example:
            >>> zeros = torch.zeros(2)
            >>> projection = PublicProjection(mean=zeros, matrix=torch.eye(2), row_norm=5.0)
            >>> projection.prepare_inputs(torch.tensor([[6.0, 8.0]]), zeros, torch.ones(1)).tolist()
            [[3.0, 4.0]]
        """
        return self.normalise_rows(self.project_features(features), mean, frames)

    def normalise_rows(self, projected: Tensor, mean: Tensor, frames: Tensor) -> Tensor:
        """Prepare model inputs from features that are projected already.

        For callers that need the projected rows too, for instance for a mean; otherwise use
        :meth:`prepare_inputs`.
        """
        return normalise_and_mask(projected, mean, frames, row_norm=self.row_norm)

    def content_hash(self) -> str:
        """Hash everything that defines the projection: SHA-256, 64 hexadecimal digits.

        Example:
            >>> identity_projection(2).content_hash() == identity_projection(2).content_hash()
            True
        """
        sha = hashlib.sha256(repr(float(self.row_norm)).encode())
        for tensor in (self.mean, self.matrix):
            # The shape too: the same bytes under another shape are another projection.
            sha.update(str(tuple(tensor.shape)).encode())
            sha.update(tensor.contiguous().numpy().tobytes())
        return sha.hexdigest()


def normalise_and_mask(
    projected: Tensor, mean: Tensor, frames: Tensor, *, row_norm: float
) -> Tensor:
    """Subtract a mean, scale every row to one norm if asked for, and zero the padding.

    Args:
        projected: From :meth:`PublicProjection.project_features`, shape (utterances, inputs) or
            (utterances, frames, inputs).
        mean: The user's mean, shape (inputs,), or anything that broadcasts.
        frames: Real frames of each utterance, shape (utterances,), int64.
        row_norm: Norm of each row afterwards, 0 for no scaling; a row of zeros stays zeros.

    Returns:
        The model's inputs, same shape as ``projected``; zeros behind the last frame.

    Guarantees:
        - With a ``row_norm`` above 0 no finite row is longer than ``row_norm`` (to 1e-5, relative),
          whatever the features: this bounds the influence of one utterance on a gradient. A row of
          zeros stays zeros, and a row too long for float32 becomes zeros.
        - A row depends on its own features and the mean alone. One utterance can move another's
          inputs only through a mean computed from it, which must then be a booked release.
        - A row with a NaN or an infinity comes out with NaN; training counts its gradient as zeros.
          Behind the last frame anything comes out as zeros.

    Example:
        >>> rows = torch.tensor([[[3.0, 4.0], [9.0, 9.0]]])
        >>> normalise_and_mask(rows, torch.zeros(2), torch.tensor([1]), row_norm=5.0).tolist()
        [[[3.0, 4.0], [0.0, 0.0]]]
    """
    centred = projected - mean
    if row_norm:
        norm = torch.linalg.vector_norm(centred, dim=-1, keepdim=True)
        centred = centred * (row_norm / norm.clamp(min=1e-12))
    if centred.dim() == 3:
        # Subtracting the mean has made the padding non-zero. Filled, since 0 times an infinity
        # is NaN.
        steps = torch.arange(centred.shape[1])[None, :, None]
        centred = centred.masked_fill(steps >= frames[:, None, None], 0)
    return centred


def identity_projection(width: int) -> PublicProjection:
    """Make the projection that changes nothing, for end-to-end models.

    Example:
        >>> identity_projection(3).output_size
        3
    """
    return PublicProjection(mean=torch.zeros(width), matrix=torch.eye(width))
