"""Many runs at once: a grid of settings, its runs, one page of curves and a table."""

__all__ = ["grid", "page", "runner", "table"]
