# SPDX-License-Identifier: BSD-3-Clause
"""The binding of libvfio-user: what it says of C against the header, and what becomes of errors.

The header is found by $LIBVFIO_USER_HEADER (a path to libvfio-user.h) or by the compiler.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from ctypes.util import find_library
from pathlib import Path

import pytest

from vfio_user_bridge.errors import BridgeError
from vfio_user_bridge.libvfio_user import library as vfu

from .engines import LIBRARY, need
from .running_server import SERVE

HEADER = os.environ.get("LIBVFIO_USER_HEADER", "libvfio-user.h")
#: enums and structures may have another name here than in C
STRUCTURES = {"struct iovec": vfu.Iovec, "vfu_dma_info_t": vfu.DmaInfo}


def compile_(*declarations: str) -> str:
    """What the compiler says against these, below the header; "" if nothing."""
    source = [f'#include "{HEADER}"', "#include <stdbool.h>", "#include <stddef.h>", *declarations]
    return subprocess.run(
        ["gcc", "-fsyntax-only", "-D_GNU_SOURCE", "-x", "c", "-"],
        input="\n".join(source),
        capture_output=True,
        text=True,
        check=False,
    ).stderr


def asserted(facts: dict[str, int]) -> list[str]:
    assert facts
    return [f'_Static_assert(({fact}) == {value}, "");' for fact, value in facts.items()]


@pytest.fixture(scope="module")
def header() -> None:
    if compile_():
        pytest.skip(f"no {HEADER}: set LIBVFIO_USER_HEADER to the path of libvfio-user's header")


# ---- Against the header ---------------------------------------------------------------------


@pytest.mark.usefixtures("header")
def test_the_compiler_can_say_no() -> None:
    assert compile_(*asserted({"VFU_DEV_MSIX_IRQ": 12345}))
    assert compile_("int vfu_run_ctx(vfu_ctx_t *, int);")
    assert compile_("typedef int (vfu_reset_cb_t)(vfu_ctx_t *);")


@pytest.mark.usefixtures("header")
def test_constants() -> None:
    names = [n for n in vars(vfu) if n.startswith(("VFU_", "LIBVFIO_USER_", "LOG_"))]
    assert compile_(*asserted({name: getattr(vfu, name) for name in names})) == ""


@pytest.mark.usefixtures("header")
def test_types() -> None:
    sizes = {f"sizeof({c})": ctypes.sizeof(type_) for c, type_ in vfu.TYPES.items() if type_}
    assert compile_(*asserted(sizes)) == ""


@pytest.mark.usefixtures("header")
def test_structures() -> None:
    facts = {}
    for name, structure in STRUCTURES.items():
        facts[f"sizeof({name})"] = ctypes.sizeof(structure)
        for field, *_ in structure._fields_:
            here = getattr(structure, field)
            facts[f"offsetof({name}, {field})"] = here.offset
            facts[f"sizeof((({name} *)0)->{field})"] = here.size
    assert compile_(*asserted(facts)) == ""


@pytest.mark.usefixtures("header")
def test_prototypes() -> None:
    """Declared again as they are here: C takes that from whoever says the same."""
    again = []
    for name, prototype in vfu.FUNCTIONS.items():
        result, parameters = vfu.split(prototype)
        again.append(f"{result} {name}({', '.join(parameters)});")
    for name, prototype in vfu.CALLBACKS.items():
        result, parameters = vfu.split(prototype)
        again.append(f"typedef {result} ({name})({', '.join(parameters)});")
    assert compile_(*again) == ""


# ---- Loading --------------------------------------------------------------------------------


@pytest.fixture
def fresh() -> Iterator[None]:
    """Nothing is loaded yet; what a test loads is forgotten."""
    vfu.load.cache_clear()
    yield
    vfu.load.cache_clear()


@pytest.mark.usefixtures("fresh")
def test_it_is_missed_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(vfu.VARIABLE, raising=False)
    monkeypatch.setattr(ctypes.util, "find_library", lambda _name: None)
    with pytest.raises(BridgeError, match=r"isn't installed: .*LIBVFIO_USER") as error:
        vfu.load()
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("what", ["nothing", "no library", "another library"])
def test_what_is_not_it_is_told(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "libvfio-user.so"
    if what == "no library":
        path.write_text("hello")
    monkeypatch.setenv(vfu.VARIABLE, (find_library("c") or "") if "other" in what else str(path))
    with pytest.raises(BridgeError, match="can't be used as libvfio-user") as error:
        vfu.load()
    assert "\n" not in str(error.value)


def test_serve_says_it_too(tmp_path: Path) -> None:
    served = subprocess.run(
        [*SERVE, "--socket-path", str(tmp_path / "edu.sock"), "--engine", LIBRARY],
        env={**os.environ, vfu.VARIABLE: str(tmp_path / "nothing")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (served.returncode, served.stdout) == (1, "")
    assert re.fullmatch("vfio-user-bridge: .*can't be used as libvfio-user.*\\n", served.stderr)


def test_who_does_not_ask_for_it_imports_nothing_of_it() -> None:
    program = "import sys, vfio_user_bridge.serve as _; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True
    )
    assert "vfio_user_bridge.session" in modules.stdout.split()
    assert "vfio_user_bridge.libvfio_user.library" not in modules.stdout.split()
    assert "vfio_user_bridge.libvfio_user.session" not in modules.stdout.split()


# ---- Errors, both ways ----------------------------------------------------------------------


def test_an_error_of_the_library_is_an_oserror() -> None:
    need(LIBRARY)
    with pytest.raises(OSError, match="vfu_create_ctx") as error:
        vfu.load().vfu_create_ctx(vfu.VFU_TRANS_SOCK, b"/nowhere/at/all", 0, None, 0)
    assert error.value.errno == errno.ENOENT


def test_a_callback_gives_what_its_function_gives() -> None:
    made = vfu.callback("vfu_region_access_cb_t", lambda _buffer, count, *_: count)
    assert made(None, None, 5, 0, False) == 5
    assert vfu.callback("vfu_reset_cb_t", lambda _reason: None)(None, 0) == 0
    assert vfu.callback("vfu_dma_register_cb_t", lambda _info: 7)(None, None) is None


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (OSError(errno.EBUSY, "not now"), errno.EBUSY, "vfu_reset_cb_t: not now"),
        (OSError("no errno"), errno.EIO, "no errno"),
        (ValueError("of the bridge's own"), errno.EIO, "defect"),
    ],
)
def test_an_exception_stays_out_of_c(
    error: Exception, code: int, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise error

    caplog.set_level(logging.INFO)
    # As C would call it: through a pointer, leaving errno behind.
    made = vfu.callback("vfu_reset_cb_t", fail)
    again = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, use_errno=True)(
        ctypes.cast(made, ctypes.c_void_p).value or 0
    )
    assert again(None, 0) == -1
    assert ctypes.get_errno() == code
    assert told in caplog.text
    assert vfu.callback("vfu_dma_register_cb_t", fail)(None, None) is None
