"""The commands by which users make a device, decide about it, and see what it holds."""

__all__ = ["consent", "creation", "group", "opening", "serve", "upkeep", "user_data"]
