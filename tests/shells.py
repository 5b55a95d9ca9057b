# SPDX-License-Identifier: BSD-3-Clause
"""Interactive shells on a terminal, asked what they would complete."""

from __future__ import annotations

import os
import pty
import select
import shlex
import subprocess
from pathlib import Path
from typing import Self

TIMEOUT = 20.0  # seconds; zsh takes one to start
SAID = """
    HISTFILE= PS1=
    said() { printf '%s\\0' "$@" '' >&$ANSWERS; }
"""
#: control-O inserts all that is offered
SETUP = {
    "bash": """
        bind '"\\C-o": insert-completions'
        . "$SCRIPT"
    """,
    "zsh": """
        fpath=(${SCRIPT:h} $fpath); autoload -U compinit; compinit -D -u
        bindkey -e; zle -C every complete-word _generic; bindkey '^O' every
        zstyle ':completion:every::::' completer _all_matches _complete
        zstyle ':completion:every:*' insert true
    """,
}
#: then control-A goes to the beginning
ANSWER = "\x0f\x01said \n"
COMMANDS = {"bash": ("bash", "--norc", "--noprofile", "-i"), "zsh": ("zsh", "-f", "-i")}


class Shell:
    """One that has read a completion *script*, in *folder*."""

    def __init__(self, name: str, script: Path, folder: Path) -> None:
        self._terminal, terminal = pty.openpty()
        self._answers, answers = os.pipe()
        environment = {
            "PATH": os.environ["PATH"],
            "TERM": "dumb",
            "HOME": str(folder),
            "SCRIPT": str(script),
            "ANSWERS": str(answers),
        }
        self._process = subprocess.Popen(
            COMMANDS[name],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
            pass_fds=(answers,),
            cwd=folder,
            env=environment,
        )
        os.close(terminal)
        os.close(answers)
        self._write(SAID + SETUP[name])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._terminal)
        os.close(self._answers)

    def offers(self, line: str) -> set[str]:
        """What may stand at the end of `vfio-user-bridge LINE`; what was begun, if nothing may.

        zsh writes an equals sign behind an option that takes a value.
        """
        self._write(f"vfio-user-bridge {line}{ANSWER}")
        answer = shown = b""
        while not answer.endswith(b"\0\0"):
            ready, _, _ = select.select((self._terminal, self._answers), (), (), TIMEOUT)
            assert ready, f"no answer, but {shown!r}"
            if self._terminal in ready:
                shown += os.read(self._terminal, 1 << 16)
            if self._answers in ready:
                answer += os.read(self._answers, 1 << 16)
        words = answer.decode().split("\0")[1:-2]
        before = shlex.split(f"{line}.")[:-1]
        assert words[: len(before)] == before
        return {word.removesuffix("=") for word in words[len(before) :]}

    def _write(self, text: str) -> None:
        os.write(self._terminal, text.encode())
