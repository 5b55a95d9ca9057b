# SPDX-License-Identifier: BSD-3-Clause
"""docker/: manifests that are valid, and say what the program and each other say.

integration/system runs them; nothing here runs the pod of Kubernetes.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from vfio_user_bridge.qemu import arguments

from . import command_line

FOLDER = Path(__file__).parents[1] / "docker"
SOCKET = Path("/run/vfio-user/device.sock")
MEMORY = "1G"

COMPOSE_CHECKER = ("check-jsonschema", "--builtin-schema", "vendor.compose-spec")
KUBERNETES_CHECKER = ("kubernetes-validate", "--strict")


def documents(name: str) -> list[Any]:
    return list(YAML(typ="safe").load_all(FOLDER / name))


[COMPOSE] = documents("compose.yaml")
POD, POLICY = documents("kubernetes.yaml")
[POD_BRIDGE] = POD["spec"]["initContainers"]
[POD_QEMU] = POD["spec"]["containers"]
#: where a container is described, for the bridge and for QEMU
COMPOSED = [COMPOSE["services"][name] for name in ("bridge", "qemu")]
IN_POD = [POD_BRIDGE, POD_QEMU]


@pytest.mark.parametrize(
    ("checker", "name"),
    [(COMPOSE_CHECKER, "compose.yaml"), (KUBERNETES_CHECKER, "kubernetes.yaml")],
)
def test_schema(checker: tuple[str, ...], name: str) -> None:
    tool, *options = checker
    command = (str(Path(sys.executable).with_name(tool)), *options, str(FOLDER / name))
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize(
    "words",
    [COMPOSED[0]["command"], shlex.split(POD_BRIDGE["command"][-1].partition("bridge ")[2])],
    ids=["compose", "kubernetes"],
)
def test_serve(words: list[str]) -> None:
    *commands, device = words[:3]
    options = words[3:]
    assert commands == ["supervise", "serve"]
    assert device.startswith("$")
    assert {option.partition("=")[0] for option in options} <= command_line.options("serve")
    assert f"--socket-path={SOCKET}" in options


def qemu_words(words: list[str]) -> list[str]:
    """Those of *words* that `qemu-args` has an opinion on, without what compose fills in."""
    plain = [re.sub(r"\$\{\w+:-(.*?)\}", r"\1", word) for word in words]
    pairs = [plain[i : i + 2] for i in range(len(plain) - 1)]
    names = ("-object", "-machine", "-m", "-device")
    return [word for pair in pairs if pair[0] in names for word in pair]


@pytest.mark.parametrize(
    "words", [COMPOSED[1]["command"], POD_QEMU["args"]], ids=["compose", "kubernetes"]
)
def test_qemu(words: list[str]) -> None:
    """QEMU is told what `qemu-args` says, but to allocate the guest's RAM itself."""
    told = [word.removesuffix(",prealloc=on") for word in qemu_words(words)]
    assert told == arguments([SOCKET], MEMORY)
    assert any(word.endswith(",prealloc=on") for word in words)


def test_that_both_run_qemu_alike() -> None:
    without_environment = [word.removesuffix(" ${APPEND:-}") for word in COMPOSED[1]["command"]]
    assert qemu_words(without_environment) == qemu_words(POD_QEMU["args"])
    assert len(without_environment) == len(POD_QEMU["args"])


def test_that_nobody_has_more_than_he_needs() -> None:
    bridge, qemu = COMPOSED
    for service in COMPOSED:
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges"]
        assert service["read_only"] is True
        assert service["network_mode"] == "none"
    assert "devices" not in qemu
    assert all(device.startswith("/dev/vfio/") for device in bridge["devices"])
    for container in IN_POD:
        context = container["securityContext"]
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
    assert set(POD_QEMU["resources"]["limits"]) == {"memory"}


def test_users() -> None:
    """The bridge's socket is for its group, which QEMU is in, under a name of its own."""
    users = []
    for dockerfile in ("Dockerfile", "Dockerfile.qemu"):
        user = re.search(r"^USER (\d+):(\d+)$", (FOLDER / dockerfile).read_text(), re.MULTILINE)
        assert user
        users.append((int(user[1]), int(user[2])))
    (bridge, group), (qemu, group_of_qemu) = users
    assert group == group_of_qemu
    assert bridge != qemu
    security = POD["spec"]["securityContext"]
    assert (security["runAsGroup"], security["fsGroup"]) == (group, group)
    assert [container["securityContext"]["runAsUser"] for container in IN_POD] == [bridge, qemu]
    mount = COMPOSE["volumes"]["sockets"]["driver_opts"]["o"]
    assert mount == f"uid={bridge},gid={group},mode=0770"
