"""Local training of the shared model: each utterance's gradient, its clip, the noise, the step.

One user's contribution to a round is computed in ``local_trainer``; who joins a step is decided in
``poisson_batch``; the step itself, noised under Opacus or plain, is taken in ``dp_sgd``. Gradients
of single utterances come from ``per_example_gradients`` (any model we have, layer by layer, an LSTM
by ``lstm_gradients``) or ``linear_gradients`` (heads on frozen features, in closed form), and
``gradient_factors`` sums and measures them.
"""

__all__ = [
    "dp_sgd",
    "gradient_factors",
    "linear_gradients",
    "local_trainer",
    "lstm_gradients",
    "per_example_gradients",
    "poisson_batch",
]
