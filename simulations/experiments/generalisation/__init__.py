"""Experiments on recordings that are not as those a model was trained on."""

__all__ = ["cross_corpus", "default_model", "padding", "transfer"]
