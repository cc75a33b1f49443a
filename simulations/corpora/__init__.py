"""Adapters: from a folder of recordings to clips with a speaker and an emotion."""
