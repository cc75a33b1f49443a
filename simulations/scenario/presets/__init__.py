"""Named scenarios, each a TOML file beside this one."""
