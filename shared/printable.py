"""The one place through which foreign text reaches terminals, logs and pages.

Names of files, speakers, labels and devices, and the reasons that devices give, are chosen by
strangers. Printed as they are, they can move the cursor, rewrite a line that was shown before,
reverse what is read (CVE-2021-42574), pretend to be a line of this program, or end it with an
encoding error. Here every such character is written as its escape, which everybody can read.
"""

import logging
import re
import sys
import unicodedata
from typing import IO, Any, Final, TypeVar

Record = TypeVar("Record")

MAX_LINE: Final = 4_000
"""Most characters of a printed line: a name of megabytes is cut."""
MAX_QUOTE: Final = 120
"""Most characters of a peer's own words."""

# Control characters, surrogates, separators of lines, and invisible characters that change how
# their neighbours are shown; but for the joiners, without which Persian and emoji are misspelt.
_HIDDEN_CATEGORIES = ("Cc", "Cs", "Zl", "Zp", "Cf")
_JOINERS = "\u200c\u200d"
_SUSPECT = re.compile("[^\x20-\x7e]")


def clean_text(text: object, *, max_length: int | None = MAX_LINE) -> str:
    r"""Escape what a terminal, a log or a page would obey instead of show; at most one line.

    Args:
        text: Anything; its ``str`` is taken.
        max_length: Most characters that come back; what is longer is cut, and says so. None cuts
            nothing.

    Guarantees:
        - What comes back is one line that can be encoded as UTF-8.
        - It holds no control character, no override or isolate of the writing direction, and
          nothing else that is invisible but the zero-width joiners.
        - Ordinary text of any script comes back unchanged, and so does what comes back.

    Example:
        >>> clean_text("Zoë \x1b[2J\u202etxt.wav")
        'Zoë \\x1b[2J\\u202etxt.wav'
        >>> clean_text(b"caf\xe9.wav".decode(errors="surrogateescape"))
        'caf\\xe9.wav'
        >>> clean_text("a" * 99, max_length=12)
        'aaaaaaaa ...'
    """
    whole = str(text)
    if max_length is None:
        return _SUSPECT.sub(_escape, whole)
    # Cut first: of a text of megabytes only the beginning is looked at.
    shown = _SUSPECT.sub(_escape, whole[: max_length + 1])
    return shown if len(shown) <= max_length else shown[: max(0, max_length - 4)] + " ..."


def clean_json(text: str) -> str:
    r"""Escape hidden characters inside the strings of a JSON text, which stays the same value.

    Example:
        >>> clean_json('{\n "name": "Zoë\u202e\x9b"\n}')
        '{\n "name": "Zoë\\u202e\\u009b"\n}'
    """
    # Line feeds are the text's own layout: within strings JSON has escaped them already.
    return _SUSPECT.sub(lambda found: found[0] if found[0] == "\n" else _escape_json(found), text)


def clean_inserted_value(value: object) -> object:
    r"""Clean what a template inserts, line by line; for Jinja's ``finalize``.

    Numbers stay numbers, and what a template marked as HTML of its own stays as it is.

    Example:
        >>> clean_inserted_value("actor\x1b[1m\nsecond line")
        'actor\\x1b[1m\nsecond line'
        >>> clean_inserted_value(0.5)
        0.5
    """
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    return "\n".join(clean_text(line, max_length=None) for line in value.split("\n"))


def clean_record(record: Record) -> Record:
    r"""Clean all texts of nested dictionaries and lists, keys too, for a page with pictures.

    Example:
        >>> clean_record({"ada\x1b[1m": ["b\udce9", 0.5]})
        {'ada\\x1b[1m': ['b\\xe9', 0.5]}
    """
    cleaned: Any = record
    if isinstance(record, str):
        cleaned = clean_inserted_value(record)
    elif isinstance(record, dict):
        cleaned = {clean_record(key): clean_record(item) for key, item in record.items()}
    elif isinstance(record, list):
        cleaned = [clean_record(item) for item in record]
    found: Record = cleaned
    return found


def quote_peer(words: object, *, max_length: int = MAX_QUOTE) -> str:
    r"""Quote what a peer says of itself, so that nobody takes it for a word of this program.

    Example:
        >>> quote_peer("please run: curl evil\nsottovoce: done")
        '"please run: curl evil\\nsottovoce: done"'
    """
    return '"' + clean_text(str(words).replace('"', "'"), max_length=max_length) + '"'


def print_lines(*lines: object, file: IO[str] | None = None) -> None:
    r"""Print each text as one line, cleaned; to standard output unless ``file`` says otherwise.

    Example:
        >>> print_lines("UAR 0.61", "speaker \x1b]0;owned\x07")
        UAR 0.61
        speaker \x1b]0;owned\x07
    """
    _write("".join(f"{clean_text(line)}\n" for line in lines), file or sys.stdout)


def print_error(message: object) -> None:
    """Print what went wrong as one line on standard error, after the program's name."""
    print_lines(f"sottovoce: {message}", file=sys.stderr)


def print_json_text(text: str) -> None:
    """Print a JSON text, whose length is the reader's affair, with hidden characters escaped."""
    _write(f"{clean_json(text)}\n", sys.stdout)


def print_table_text(text: str) -> None:
    r"""Print rows between line feeds with cells between tabs, everything else cleaned.

    Example:
        >>> print_table_text("start_s,emotion\n0.5,angry\x1b[1m\n")
        start_s,emotion
        0.5,angry\x1b[1m
    """
    rows = (row.split("\t") for row in text.removesuffix("\n").split("\n"))
    cleaned = ("\t".join(clean_text(cell, max_length=None) for cell in row) for row in rows)
    _write("".join(f"{row}\n" for row in cleaned), sys.stdout)


def get_logger(name: str) -> logging.Logger:
    """Get the logger of a name, whose records are cleaned before they reach any handler."""
    logger = logging.getLogger(name)
    if not any(isinstance(one, _CleanRecords) for one in logger.filters):
        logger.addFilter(_CleanRecords())
    return logger


class _CleanRecords(logging.Filter):
    """Puts the cleaned text in place of a record's message and of its traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = clean_text(record.getMessage()), ()
        if record.exc_info and record.exc_info[0]:
            lines = logging.Formatter().formatException(record.exc_info).splitlines()
            # Indented: no line of an exception's text can pass for the beginning of a record.
            record.exc_text = "\n".join(f"  {clean_text(line)}" for line in lines)
        return True


def _write(text: str, file: IO[str]) -> None:
    """Write to a stream whose encoding may lack letters, such as ASCII's."""
    encoding = getattr(file, "encoding", None) or "utf-8"
    file.write(text.encode(encoding, "backslashreplace").decode(encoding))
    file.flush()


def _is_hidden(character: str) -> bool:
    return unicodedata.category(character) in _HIDDEN_CATEGORIES and character not in _JOINERS


def _escape(found: re.Match[str]) -> str:
    """A hidden character as Python writes it; another as it is."""
    character = found[0]
    if not _is_hidden(character):
        return character
    code = ord(character)
    # PEP 383: a byte of a file name that is not UTF-8 stands in such a surrogate.
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def _escape_json(found: re.Match[str]) -> str:
    character = found[0]
    if not _is_hidden(character):
        return character
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))
