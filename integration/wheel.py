# SPDX-License-Identifier: BSD-3-Clause
"""The product as its users install it: a wheel, the same bytes from the same commit.

Nothing of where, when and by whom it is built gets into it: entries have the commit's date, and
modes as git knows them. setuptools sorts them.

    python -m integration.wheel FOLDER
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

from integration.progress import LoggedStep, StepError

CHECKOUT = Path(__file__).resolve().parent.parent
#: what is no source: setuptools would take modules from a build/ of long ago
LEFT_OUT = (".*", "build", "dist", "*.egg-info", "__pycache__")
#: https://reproducible-builds.org/specs/source-date-epoch/, which setuptools heeds
DATE = "SOURCE_DATE_EPOCH"
#: setuptools makes files by the umask, also of those that it only copies
WITH_DATE = f'umask 022; exec env {DATE}="$0" "$@"'


def build(folder: Path) -> Path:
    """Build the checkout's wheel in `folder`, and return its path. The log is beside it.

    :raise StepError: pip failed, or there is no commit.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.whl"):
        old.unlink()
    with (
        LoggedStep("building the wheel", folder / "wheel.log") as step,
        tempfile.TemporaryDirectory() as scratch,
    ):
        source = Path(scratch, "source")
        ignored = shutil.ignore_patterns(*LEFT_OUT)
        shutil.copytree(CHECKOUT, source, ignore=ignored, copy_function=_copy)
        # With the setuptools that is installed, which requirements/ pins; its version is in there.
        pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation")
        step.run("sh", "-c", WITH_DATE, _date(), *pip, "-w", folder, source)
    [wheel] = folder.glob("*.whl")
    return wheel


def _copy(source: str, target: str) -> None:
    shutil.copyfile(source, target)
    Path(target).chmod(0o755 if Path(source).stat().st_mode & stat.S_IXUSR else 0o644)


def _date() -> str:
    """In seconds since 1970."""
    if DATE in os.environ:
        return os.environ[DATE]
    git = ("git", "-C", CHECKOUT, "log", "-1", "--format=%ct")
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or error
        raise StepError(f"no commit to date the wheel by; set {DATE}: {reason}") from error


def main() -> int:
    try:
        print(build(Path(sys.argv[1])))
    except StepError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
