# SPDX-License-Identifier: BSD-3-Clause
"""XML that people keep: read, changed in places, written as it was everywhere else.

Comments, name spaces, white space and the order of attributes stay, but that declarations of name
spaces come first. The quotes are libvirt's, whose texts differ only where they were changed.
"""

from __future__ import annotations

from typing import cast
from xml.dom import minidom
from xml.parsers.expat import ExpatError
from xml.sax.saxutils import escape

from vfio_user_bridge.errors import BridgeError

INDENT = "  "


def parse(text: str) -> minidom.Document:
    """:raise BridgeError: it is no XML"""
    try:
        return minidom.parseString(text)  # nosec B318 # the operator's own file
    except ExpatError as error:
        raise BridgeError(f"this is no XML: {error}") from None


def written(node: minidom.Node) -> str:
    """The text of a document, or of what is in one."""
    if isinstance(node, minidom.Document):
        return "".join(f"{written(child)}\n" for child in node.childNodes)
    if not isinstance(node, minidom.Element):
        return str(node.toxml())
    pairs = node.attributes.items() if node.attributes else ()
    start = node.tagName + "".join(f" {name}='{_quoted(value)}'" for name, value in pairs)
    inside = "".join(map(written, node.childNodes))
    return f"<{start}>{inside}</{node.tagName}>" if node.childNodes else f"<{start}/>"


def _quoted(value: str) -> str:
    return escape(value, {"'": "&apos;", "\n": "&#10;", "\t": "&#9;"})


# ---- Looking --------------------------------------------------------------------------------


def elements(parent: minidom.Element | None, name: str = "") -> list[minidom.Element]:
    """The children that are elements, those of that name if one is given."""
    nodes = parent.childNodes if parent else ()
    every = (node for node in nodes if isinstance(node, minidom.Element))
    return [element for element in every if name in ("", element.tagName)]


def find(parent: minidom.Element | None, *path: str) -> minidom.Element | None:
    """The first element at that path of names below *parent*."""
    for name in path:
        parent = next(iter(elements(parent, name)), None)
    return parent


# ---- Changing -------------------------------------------------------------------------------


def element(name: str, *children: minidom.Element, **attributes: str) -> minidom.Element:
    """An element that is in no document yet."""
    made = minidom.Document().createElement(name)
    for attribute, value in attributes.items():
        made.setAttribute(attribute, value)
    for child in children:
        made.appendChild(child)
    return made


def insert(
    parent: minidom.Element, new: minidom.Element, after: tuple[str, ...] = ()
) -> minidom.Element:
    """Put *new* below *parent*, on a line of its own if its siblings are; gives it.

    :param after: behind the last of the elements of these names; without any, behind all
    """
    siblings = elements(parent)
    behind = [sibling for sibling in siblings if sibling.tagName in after] or siblings
    parent.insertBefore(new, cast("minidom.Element", behind[-1].nextSibling) if behind else None)
    outer = _indent(parent) or ""
    indent = _indent(siblings[0]) if siblings else outer + INDENT
    if indent is not None:
        parent.insertBefore(_text(f"\n{indent}"), new)
        if not siblings:
            parent.appendChild(_text(f"\n{outer}"))
        _lay_out(new, indent)
    return new


def replace(old: minidom.Element, new: minidom.Element) -> None:
    """Put *new* where *old* is, which then is nowhere."""
    cast("minidom.Element", old.parentNode).replaceChild(new, old)
    _lay_out(new, _indent(new) or "")


def remove(old: minidom.Element) -> None:
    """Take *old* out, and the line that it has to itself."""
    parent, before = cast("minidom.Element", old.parentNode), old.previousSibling
    if isinstance(before, minidom.Text) and _indent(old) is not None:
        parent.removeChild(before)
    parent.removeChild(old)


def _indent(element: minidom.Element) -> str | None:
    """The white space before it; None if there is something else on its line."""
    before = element.previousSibling
    _, newline, space = (before.data if isinstance(before, minidom.Text) else "").rpartition("\n")
    return space if newline and not space.strip() else None


def _lay_out(element: minidom.Element, indent: str) -> None:
    """Put each child on a line of its own, unless there is text among them."""
    texts = [node for node in element.childNodes if isinstance(node, minidom.Text)]
    if any(text.data.strip() for text in texts):
        return
    for text in texts:
        element.removeChild(text)
    children = list(element.childNodes)
    for child in children:
        element.insertBefore(_text(f"\n{indent}{INDENT}"), cast("minidom.Element", child))
        if isinstance(child, minidom.Element):
            _lay_out(child, indent + INDENT)
    if children:
        element.appendChild(_text(f"\n{indent}"))


def _text(data: str) -> minidom.Text:
    return minidom.Document().createTextNode(data)
