"""Releases, noise and their price."""
