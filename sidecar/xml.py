"""An answer as XML, as djangorestframework-xml writes it: elements by name, `list-item` for what has none. Pure.

true and false are True and False, null is empty. Two things XML cannot have: control characters are left out, and what
no name may have in it is an underscore (a content key as the name of a member).
"""

import re
from collections.abc import Iterator, Mapping
from typing import Final
from xml.sax.saxutils import escape

_NO_CHARACTER: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_NOT_IN_A_NAME: Final = re.compile(r"[^A-Za-z0-9_.:-]")
_BEGINNING: Final = re.compile(r"[A-Za-z_:]")


def to_xml(value: object) -> bytes:
    """The document of a JSON value."""
    text = "".join(_element("root", value))
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text}'.encode()


def _element(name: str, value: object) -> Iterator[str]:
    yield f"<{name}>"
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _element(_name(str(key)), inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _element("list-item", inner)
    elif value is not None:
        yield escape(_NO_CHARACTER.sub("", str(value)))
    yield f"</{name}>"


def _name(key: str) -> str:
    name = _NOT_IN_A_NAME.sub("_", key)
    return name if _BEGINNING.match(name) else f"_{name}"
