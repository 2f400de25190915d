"""The flat XML of pushes, read strictly."""

from typing import Final
from xml.parsers import expat

MAX_BYTES: Final = 65_536
_MAX_DEPTH: Final = 8
_MAX_MEMBERS: Final = 64


class _Refused(Exception):
    """Stops the parser."""


def read_members(content: bytes) -> dict[str, str] | None:
    """The members of one element `xml`, as text; None if it is ambiguous.

    Safe against what XML is known for: expat expands only entities that a DTD declares, and a
    DTD ends the reading where it begins, so nothing is expanded and nothing is fetched. What is
    left is as long as the bytes that came, which are bounded, and so are depth and number.
    Elements inside a member are left out.
    """
    if len(content) > MAX_BYTES:
        return None
    reader = _Reader()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = _refuse
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.text
    try:
        # As text, so that an encoding in the document has no effect.
        parser.Parse(content.decode(), True)  # noqa: FBT003 (expat's signature)
    except (expat.ExpatError, UnicodeError, _Refused):
        return None
    return reader.members


def _refuse(*_: object) -> None:
    raise _Refused


class _Reader:
    def __init__(self) -> None:
        self.members: dict[str, str] = {}
        self._open: list[str] = []

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self._open.append(name)
        depth = len(self._open)
        if attributes or depth > _MAX_DEPTH or (depth == 1 and name != "xml"):
            raise _Refused
        if depth == 2:
            if name in self.members or len(self.members) == _MAX_MEMBERS:
                raise _Refused
            self.members[name] = ""

    def end(self, _: str) -> None:
        self._open.pop()

    def text(self, text: str) -> None:
        if len(self._open) == 2:
            self.members[self._open[1]] += text
