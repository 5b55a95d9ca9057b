# SPDX-License-Identifier: BSD-3-Clause
"""man(7) of texts that are written for --help.

In these texts, paragraphs are separated by blank lines. What is indented stays as it is, but for
rows of two columns, which become a list. A first line like "examples:" is a heading.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator

#: what argparse writes itself begins with a small letter too: "options:"
_HEADING = re.compile(r"([a-z][^.\n]*):")
#: its second column may be all in further lines, which are indented more
_ROW = re.compile(r"  (\S.*?)(?:  +(\S.*)|)")
#: of a sentence
_END = re.compile(r"(?<=[.!?]) +(?=[A-Z])")
_OPTION = r"(?<![\w-])--?[a-z][a-z-]*"
_PATH = r"(?<![\w./])/[\w@:./-]*[\w/]"
_QUOTED = r"`[^`]+`"


def bold(text: str) -> str:
    return rf"\fB{code(text)}\fP"


def italic(text: str) -> str:
    return rf"\fI{code(text)}\fP"


def code(text: str) -> str:
    """What a reader may copy: its signs stay what they are."""
    signs = {"\\": r"\e", "-": r"\-", "'": r"\(aq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti"}
    return "".join(signs.get(sign, sign) for sign in text)


def line(text: str) -> str:
    """One that roff doesn't take for a request."""
    return rf"\&{text}" if text.startswith((".", "'")) else text


def prose(text: str, values: Collection[str] = ()) -> str:
    """Filled, a sentence a line. Options are bold, paths and *values* in italics."""
    words = [re.escape(value) for value in sorted(values, key=len, reverse=True)]
    named = rf"(?<!\w)(?:{'|'.join(words)})(?!\w)" if words else "(?!)"
    marked = re.compile(f"({_QUOTED})|({_OPTION})|({_PATH}|{named})")
    sentences = _END.split(" ".join(text.split()))
    return "".join(f"{line(_marked(marked, sentence))}\n" for sentence in sentences)


def _marked(marked: re.Pattern[str], text: str) -> str:
    done, at = [], 0
    for found in marked.finditer(text):
        quoted, option, other = found.groups()
        done.append(text[at : found.start()].replace("\\", r"\e"))
        done.append(bold((quoted or option).strip("`")) if quoted or option else italic(other))
        at = found.end()
    return "".join((*done, text[at:].replace("\\", r"\e")))


def text(source: str, values: Collection[str] = (), section: str = ".SH") -> str:
    """All of such a text; its headings begin with *section*."""
    return "".join(_blocks(source.strip("\n"), values, section)) if source else ""


def parts(*texts: str | None) -> tuple[str, str]:
    """What stands before the first heading, and the rest."""
    whole = "\n\n".join(text.strip("\n") for text in texts if text)
    first = re.search(rf"(?:\A|\n\n){_HEADING.pattern}\n", whole)
    at = first.start() if first else len(whole)
    return whole[:at], whole[at:]


def _blocks(source: str, values: Collection[str], section: str) -> Iterator[str]:
    begun = True  # a section, in which the first paragraph needs no .PP
    for paragraph in re.split(r"\n{2,}", source):
        lines = paragraph.split("\n")
        if heading := _HEADING.fullmatch(lines[0]):
            yield f"{section} {heading[1].upper()}\n"
            begun = True
            del lines[0]
        for indented, group in itertools.groupby(lines, key=lambda line: line.startswith(" ")):
            block = list(group)
            start = "" if begun else ".PP\n"
            if indented:
                yield _list(block, values) or start + _verbatim(block)
            else:
                yield start + prose(" ".join(block), values)
            begun = False


def _list(block: list[str], values: Collection[str]) -> str | None:
    """Of two columns, whose second may go on in further lines."""
    rows: list[list[str]] = []
    for row in block:
        if found := _ROW.fullmatch(row):
            rows.append([found[1], found[2] or ""])
        elif rows and re.match(" {6}", row):
            rows[-1][1] += f" {row.strip()}"
        else:
            return None
    if not all(meaning for _, meaning in rows):
        return None  # lines of something else
    return "".join(f".TP\n{bold(term)}\n{prose(meaning, values)}" for term, meaning in rows)


def _verbatim(block: list[str]) -> str:
    lines = "".join(f"{line(code(row.removeprefix('  ')))}\n" for row in block)
    return f".EX\n{lines}.EE\n"
