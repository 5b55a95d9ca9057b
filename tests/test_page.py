# SPDX-License-Identifier: BSD-3-Clause
"""The runner of documentation pages notices what it should."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration import page
from integration.page import Command, PageError, Shell, parse

PAGE = """\
Text with `# no command`.

    # echo neither

```console
# echo one \\
    two
one two
# true
```

```sh
# not this
```

```console
# seq 3
1
…
```

```console fails
# false
```
"""


def test_commands_and_their_output() -> None:
    assert parse(PAGE) == [
        Command("echo one \\\n    two", "one two\n"),
        Command("true"),
        Command("seq 3", "1\n…\n"),
        Command("false", fails=True),
    ]


@pytest.mark.parametrize(
    ("output", "printed", "same"),
    [
        ("a\n", "a\n", True),
        ("a\n", "b\n", False),
        ("a\n", "a\na\n", False),
        ("pid … ready\n", "pid 12 ready\n", True),
        ("pid … ready\n", "pid 12\n ready\n", False),
        ("1\n…\n", "1\n2\n3\n", True),
        ("1\n…\n", "2\n", False),
        ("a.c\n", "abc\n", False),
    ],
)
def test_what_is_expected(output: str, printed: str, same: bool) -> None:
    assert bool(Command("", output).expected.fullmatch(printed)) == same


def test_one_shell_runs_all() -> None:
    with Shell() as shell:
        shell.run(Command("name=value; cd /"))
        shell.run(Command('echo "$name $(pwd)"', "value /\n"))
        shell.run(Command("(sleep 0.05; echo late) &", "late\n"))
        shell.run(Command("test $name = other", fails=True))


def test_what_the_background_prints_later_is_in_nobodys_way() -> None:
    with Shell() as shell:
        shell.run(Command("(echo early; sleep 0.1; echo later) &", "early\n"))
        shell.run(Command("wait $!; echo now", "now\n"))


def test_the_background_has_ended_with_the_shell(tmp_path: Path) -> None:
    with Shell() as shell:
        work = f"trap 'sleep 0.1; touch {tmp_path}/ended; exit' TERM; echo ready; sleep 9 & wait"
        shell.run(Command(f"({work}) &", "ready\n"))
    assert (tmp_path / "ended").exists()


def test_commands_do_not_read_those_to_come() -> None:
    with Shell() as shell:
        shell.run(Command("cat", ""))
        shell.run(Command("echo here", "here\n"))


def test_a_console_s_lines_are_lines() -> None:
    with Shell() as shell:
        shell.run(Command(r"printf 'a\r\nb\r\n'", "a\nb\n"))


@pytest.mark.parametrize(
    ("command", "patience", "says"),
    [
        (Command("false"), 10, "exit status 1"),
        (Command("true", fails=True), 10, "exit status 0"),
        (Command("echo two", "one\n"), 10, "not what the page shows: two"),
        (Command("sleep 9"), 0.3, "no end"),
        (Command("sleep 9 &", "one\n"), 0.3, "no end"),
        (Command("exit 3"), 0.3, "no end"),
    ],
)
def test_what_is_noticed(command: Command, patience: float, says: str) -> None:
    with Shell() as shell, pytest.raises(PageError, match=says):
        shell.run(command, timeout=patience)


def test_what_is_otherwise_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "FOLDER", tmp_path)
    (tmp_path / "a.md").write_text("```console\n# test 01:10.1 = here\n```\n")
    page.run("a.md", {"01:10.1": "here"})
    with pytest.raises(PageError, match=r"doesn't say '02:10\.1' any more"):
        page.run("a.md", {"02:10.1": "here"})


def test_a_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "FOLDER", tmp_path)
    blocks = "## Bad\n```console\n# false\n```\n## Good\n```console\n# true\n```\n## Bad\n"
    (tmp_path / "a.md").write_text(f"# Title\n{blocks}```console\n# false\n```\n")
    page.run("a.md", {}, section="Good")
    with pytest.raises(PageError, match="exit status 1"):
        page.run("a.md", {}, section="Bad")
    with pytest.raises(PageError, match="has no section 'Goo' any more"):
        page.run("a.md", {}, section="Goo")
