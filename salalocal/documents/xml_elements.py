"""The small XML files inside an EPUB, as a flat list of elements. Entities and the network stay untouched.

Knows XML events; knows nothing of EPUB.
"""

from __future__ import annotations

from dataclasses import dataclass
from xml.parsers import expat

from salalocal.errors import BadDocument


@dataclass(frozen=True)
class Element:
    """An element's name without its namespace, and its attributes likewise."""

    name: str
    attributes: dict[str, str]


def read_elements(name: str, data: bytes) -> list[Element]:
    """All elements of the XML file `name` in document order.

    Raises BadDocument if it is not well-formed or declares entities (billion laughs, files read from disk).
    """
    elements: list[Element] = []

    def start(tag: str, attributes: dict[str, str]) -> None:
        plain = {key.rpartition(" ")[2]: value for key, value in attributes.items()}
        elements.append(Element(tag.rpartition(" ")[2], plain))

    def refuse(*_: object) -> None:
        raise BadDocument(f"is damaged: {name} declares XML entities, which are not read")

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.StartElementHandler = start
    parser.EntityDeclHandler = refuse
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, ValueError, LookupError) as error:
        raise BadDocument(f"is damaged: {name} is not well-formed XML ({error})") from error
    return elements
