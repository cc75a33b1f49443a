"""The owner's page: static files, served as they are, without a step that builds them."""

__all__ = ["page_files"]
