"""Experiments on recognisers as apps run them."""

__all__ = ["web"]
