# SPDX-License-Identifier: BSD-3-Clause
"""Breed inputs for a target, or run it with the given ones: `python -m integration.fuzz --help`.

What breaks a property goes to the corpus, from where the tests take it too.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

from integration import cache
from integration.fuzz import CORPUS, TARGETS, mutations, target

#: bytes of an input, seconds for it, and MiB for the whole process
MOST, PATIENCE, MEMORY = 2560, 20, 1024


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m integration.fuzz", description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("files", nargs="*", type=Path, help="run the target with these instead")
    parser.add_argument("--seconds", type=int, default=60, help="how long to breed (%(default)s)")
    arguments = parser.parse_args()
    if arguments.files:
        replay(arguments.target, arguments.files)
    else:
        breed(arguments.target, arguments.seconds)


def replay(name: str, files: list[Path]) -> None:
    with target(name) as run:
        for file in files:
            run(file.read_bytes())
            print(f"{file}: the property of {name} holds")


def breed(name: str, seconds: int) -> None:
    """With atheris, which ends this process. The inputs that it keeps begin its next run too."""
    import atheris

    kept, corpus = cache.root() / "fuzz" / name, CORPUS / name
    kept.mkdir(parents=True, exist_ok=True)
    options = {
        "max_total_time": seconds,
        "max_len": MOST,
        "timeout": PATIENCE,
        "rss_limit_mb": MEMORY,
        "artifact_prefix": f"{corpus}/",
        "print_final_stats": 1,
    }
    words = [f"-{option}={value}" for option, value in options.items()]
    with atheris.instrument_imports(include=["vfio_user_bridge"]), target(name) as run:

        def run_or_tell(data: bytes) -> None:
            try:
                run(data)
            except BaseException:
                name_given = f"crash-{hashlib.sha1(data, usedforsecurity=False).hexdigest()}"
                again = f"python -m integration.fuzz {name} {corpus / name_given}"
                sys.stderr.write(f"\nThe property of {name} is broken. Again: {again}\n")
                raise

        def mutate(data: bytes, most: int, seed: int) -> bytes:
            mutated = mutations.mutate(data, seed) if seed % 2 else data
            if len(mutated) > most or mutated == data:
                return bytes(atheris.Mutate(data, most))
            return mutated

        arguments = [sys.argv[0], *words, str(kept), str(corpus)]
        if name == "protocol":  # an input of which is one message
            atheris.Setup(arguments, run_or_tell)
        else:
            atheris.Setup(arguments, run_or_tell, custom_mutator=mutate)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
