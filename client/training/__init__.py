"""Local training of the shared model: each utterance's gradient, its clip, the noise, the step.

One user's contribution to a round stands in ``trainer``; who joins a step in ``batch``; the step
itself, noised under Opacus or plain, in ``steps``. Gradients of single utterances come from
``gradients`` (any model we have, layer by layer, the memory of an LSTM by ``recurrence``) or
``dense`` (heads on frozen features, in closed form), and ``shares`` sums and measures them.
"""
