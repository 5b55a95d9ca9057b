# SPDX-License-Identifier: BSD-3-Clause
"""docs/users/trouble.md has every message of the program's, and none that it hasn't."""

from __future__ import annotations

import re
from pathlib import Path

from .complaints import VARYING, complaints, texts

TOP = Path(__file__).parents[1]
PACKAGE = TOP / "vfio_user_bridge"
PAGE = "docs/users/trouble.md"
DIARY = TOP / "docs/users/operate.md"
#: sections of what others say
OTHERS = ("What QEMU says", "Without a message")
#: what the page writes for what varies
WORDS = re.compile(rf"(?:{VARYING}|…|\b(?:ADDRESS|FILE|LIBVFIO_USER|N|PATH)\b)+")


def same(text: str) -> str:
    """*text*, whatever stands in it for what varies."""
    return WORDS.sub("…", text)


def messages() -> set[str]:
    """What the page has in the first column of its tables."""
    text = (TOP / PAGE).read_text()
    for section in OTHERS:
        text = re.sub(rf"^## {section}\n.*?(?=^## |\Z)", "", text, flags=re.MULTILINE | re.DOTALL)
    return first_column(text)


def first_column(text: str) -> set[str]:
    return set(re.findall(r"^\| `(.*?)` \| ", text, re.MULTILINE))


def test_the_page_has_every_message() -> None:
    there = set(map(same, messages()))
    rows = [
        f"| `{same(complaint.text)}` | {complaint.where} |"
        for complaint in complaints(PACKAGE)
        if same(complaint.text) not in there
    ]
    assert not rows, "\n".join([f"{PAGE} lacks, where one meets it and with what it means:", *rows])


def test_the_page_says_what_each_means() -> None:
    rows = re.findall(r"^\|.*\|$", (TOP / PAGE).read_text(), re.MULTILINE)
    assert not [row for row in rows if re.search(r"\| *(\w\S+\.py:\d+ *)?\|$", row)]


def test_the_page_has_no_other() -> None:
    said = {same(complaint.text) for complaint in complaints(PACKAGE)}
    said |= set(map(same, texts(PACKAGE)))
    stale = sorted(message for message in messages() if same(message) not in said)
    assert not stale, "\n".join([f"nothing in the source says, as {PAGE} has it:", *stale])


def test_messages_are_one_line() -> None:
    assert [complaint for complaint in complaints(PACKAGE) if "\n" in complaint.text] == []


def test_what_the_log_has_besides() -> None:
    """At the level that it has by default."""
    _, _, table = DIARY.read_text().partition("| line at `info` |")
    table, _, _ = table.partition("\n\n")
    said = {same(complaint.text) for complaint in complaints(PACKAGE, {}, {"info": 0})}
    assert set(map(same, first_column(table))) == said


SOURCE = """
def refuse(path, why=None):
    if path:
        raise UsageError(f"{path} is no path: " "choose another")
    raise Special("out of " + reason(path))

def reason(path):
    if path:
        return "luck"
    def inner():
        return "time: unseen"
    return f"order: {path}"

class Special(BridgeError):
    def note(self, what):
        log.error("%s: %s: %d", self, what, 7)
        log.info("all is well")
        self.note("broken") if self else self.note(what="bent")
        raise BridgeError(f"{self}: {what}")

def tell(who, error):
    refusal = None
    if who:
        refusal = "it is full"
    elif error:
        refusal = "it is shut"
    log.warning("refused %s: %s", who, refusal)
    log.log(level, "lost: %s", str(error) or "all")
    log.exception("%s", error)
    complain("not " + str(who))
    return Obstacle("word", "in the way")
"""


def test_what_is_collected(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "one.py").write_text(SOURCE)
    found = complaints(package)
    assert found[0].where == "package/one.py:4"
    assert [same(complaint.text) for complaint in found] == [
        "… is no path: choose another",
        "out of luck",
        "out of order: …",
        "…: bent: …",
        "…: broken: …",
        "…: bent",
        "…: broken",
        "refused …: it is full",
        "refused …: it is shut",
        "lost: …",
        "not …",
        "in the way",
    ]
