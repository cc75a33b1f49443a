"""Named scenarios, each a TOML file beside this one."""

__all__: list[str] = []
