"""Names that come from a corpus, made fit for the disk: none of them leaves the run folder."""

import re

from sottovoce.shared import seeding


def file_name(user: str) -> str:
    """A user's name as a file name that cannot leave its folder."""
    # 60 characters, in UTF-8 and with suffix and ending, stay within 255 bytes.
    plain = "".join(c if c.isalnum() or c in "-_" else "_" for c in user)[:60]
    # The suffix tells apart names that become equal above, also where case does not count.
    return f"{plain}-{seeding.derive_seed(0, 'file', user) % 0xFFFFFFFF:08x}"


def folder_name(fold: str) -> str:
    """A fold's name as a folder name: its own if that is plain, for folds may be named by users."""
    return fold if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,59}", fold) else file_name(fold)
