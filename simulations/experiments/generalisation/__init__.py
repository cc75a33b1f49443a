"""Experiments on recordings that are not as those a model was trained on."""

__all__ = ["default_model", "padding"]
