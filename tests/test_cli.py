# SPDX-License-Identifier: BSD-3-Clause
"""The command line: what it takes and prints, its exit statuses, and `serve` as a process."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests import command_line
from tests.fake_sysfs import FakeSysfs
from vfio_user_bridge import __version__
from vfio_user_bridge.cli import main
from vfio_user_bridge.kernel import drivers, inuse, pci
from vfio_user_bridge.opening import device_name

NIC, TWIN, PORT = "0000:01:10.1", "0000:01:10.2", "0000:00:01.0"
COMMANDS = command_line.commands()
COMMAND = (sys.executable, "-m", "vfio_user_bridge")


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSysfs:
    """A machine whose two network functions share group 12 with the port that they are behind."""
    sysfs = FakeSysfs(tmp_path / "sys")
    sysfs.device(PORT, driver="pcieport", group=12, class_code=0x060400, header_type=1)
    sysfs.device(NIC, driver="igb", group=12)
    sysfs.device(TWIN, driver="igb", group=12)
    sysfs.driver("vfio-pci")
    for function in ("find", "all_devices", "group_endpoints"):
        monkeypatch.setattr(pci, function, partial(getattr(pci, function), sysfs=sysfs.root))
    monkeypatch.setattr(drivers, "write", sysfs.write)
    for function in ("bind", "unbind"):
        monkeypatch.setattr(
            drivers, function, partial(getattr(drivers, function), state=tmp_path / "run")
        )
    monkeypatch.setattr(inuse, "uses", partial(inuse.uses, sysfs=sysfs.root))
    return sysfs


Output = pytest.CaptureFixture[str]


# ---- Usage ----------------------------------------------------------------------------------


def test_version(capsys: Output) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"vfio-user-bridge {__version__}\n"


def test_help_names_every_command(capsys: Output) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"    {command}" in text for command in COMMANDS)


@pytest.mark.parametrize("command", [(), *command_line.every()])
def test_help_fits_a_terminal(
    command: tuple[str, ...], capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*command, "--help"]) == 0
    assert max(len(line) for line in capsys.readouterr().out.splitlines()) <= 80


def test_prose_of_help_fits_a_narrow_one(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is indented stays as it is: commands to be copied."""
    monkeypatch.setenv("COLUMNS", "50")
    assert main(["qemu-args", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert '    "$(vfio-user-bridge qemu-args /run/nic.sock)"' in lines
    description = lines[lines.index("") : lines.index("positional arguments:")]
    assert 30 < max(map(len, description)) <= 50


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "the following arguments are required: COMMAND; see vfio-user-bridge --help"),
        ("fly", "invalid choice: 'fly'"),
        ("bind", "required: BDF; see vfio-user-bridge bind --help"),
        ("bind edu", "'edu' is not a PCI address"),
        ("list 1", "'1' is not a PCI address"),
        ("serve model:edu", "no socket: give --socket-path PATH, --socket-dir DIR or --fd N"),
        ("serve edu --fd 3", "'edu' is not a device: give a PCI address like 0000:01:10.1, or"),
        ("serve model:edu --socket-path a --fd 3", "not allowed with argument"),
        ("serve model:edu --socket-path a --socket-mode 999", "'999' is not an octal mode"),
        ("serve model:edu --socket-path a --poll often", "'often' is not a number of microseconds"),
        ("serve model:edu --socket-path a --poll nan", "'nan' is not a number of microseconds"),
        ("serve model:edu --socket-path a --log-level loud", "invalid choice: 'loud'"),
        ("serve model:edu --socket-pat a", "unrecognized arguments: --socket-pat"),
        ("serve 1:10.1 --fd 3", "'1:10.1' is not a device"),
        ("serve 01:10.1 0000:01:10.1 --socket-dir a", f"{NIC} is given twice"),
        ("serve model:edu --socket-path a --group-fd x", "--group-fd: invalid int value: 'x'"),
        ("serve model:edu 01:10.1 --socket-path a", "several devices need a socket each"),
        ("libvirt-xml", "one of the arguments --domain --device is required"),
        ("libvirt-xml --domain a --device b", "not allowed with argument"),
        ("doctor 1", "'1' is not a PCI address"),
        ("doctor --memory big", "'big' is not a memory size: write it as 4G or 512M"),
        ("qemu-args a --memory big", "'big' is not a memory size: write it as 4G or 512M"),
    ],
)
def test_wrong_usage(line: str, says: str, capsys: Output) -> None:
    assert main(line.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("vfio-user-bridge: ")
    assert says in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "line",
    [
        "--print-capabilities",
        "--print-capabilities --whatever else",
        "--socket-path=/nowhere --print-capabilities",
        "serve --print-capabilities",
        "serve model:edu --fd=3 --print-capabilities",
    ],
)
def test_print_capabilities(line: str, capsys: Output) -> None:
    """As docs/interop/vhost-user.rst of QEMU has it: whatever else is there is ignored."""
    assert main(line.split()) == 0
    said = json.loads(capsys.readouterr().out)
    assert said.keys() == {"type", "features"}
    assert said["type"] == "vfio-pci"
    assert {"socket-mode", "bar-mmap"} < set(said["features"])
    assert main(["serve", "--help"]) == 0
    options = re.findall(r"^  --([a-z-]+)", capsys.readouterr().out, re.MULTILINE)
    assert set(said["features"]) == {*options} - {"socket-path", "fd", "print-capabilities"}


def test_interrupted_from_the_keyboard(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pci, "all_devices", interrupted)
    assert main(["list"]) == 130
    assert capsys.readouterr() == ("", "")


def test_broken_pipe_is_quiet() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*COMMAND, "list"], stdout=writer, stderr=subprocess.PIPE, check=False, timeout=20
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


# ---- list, bind, unbind ---------------------------------------------------------------------


@pytest.mark.usefixtures("fake")
def test_list(capsys: Output) -> None:
    assert main(["list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [device["bdf"] for device in found] == [PORT, NIC, TWIN]
    assert found[1]["todo"] == "bind --group"


@pytest.mark.usefixtures("fake")
def test_list_some(capsys: Output) -> None:
    assert main(["list", "01:10.2"]) == 0
    assert TWIN in capsys.readouterr().out
    assert main(["list", "--group", "12"]) == 0
    assert PORT in capsys.readouterr().out
    assert main(["list", "--group", "99"]) == 1
    assert "IOMMU group 99 has no such device" in capsys.readouterr().err
    assert main(["list", "0000:05:00.0"]) == 1
    assert "0000:05:00.0: there is no such PCI device" in capsys.readouterr().err


@pytest.mark.usefixtures("fake")
def test_bind_the_group_and_back(capsys: Output) -> None:
    assert main(["bind", "--group", "01:10.1"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [f"{NIC}: igb -> vfio-pci", f"{TWIN}: igb -> vfio-pci"]
    assert err == ""
    assert main(["unbind", "--group", "01:10.1"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [f"{NIC}: vfio-pci -> igb", f"{TWIN}: vfio-pci -> igb"]
    assert err == ""


@pytest.mark.usefixtures("fake")
def test_nothing_to_do(capsys: Output) -> None:
    assert main(["unbind", NIC, PORT]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [f"{NIC}: igb, as before", f"{PORT}: pcieport, as before"]
    assert err == ""


@pytest.mark.usefixtures("fake")
def test_bind_tells_what_is_left_to_do(capsys: Output) -> None:
    assert main(["bind", NIC]) == 0
    out, err = capsys.readouterr()
    assert out == f"{NIC}: igb -> vfio-pci\n"
    assert err == (
        "vfio-user-bridge: not ready to be served: IOMMU group 12 is not viable: 0000:01:10.2 is"
        " bound to igb; bind to vfio-pci too: vfio-user-bridge bind --group 0000:01:10.1\n"
    )


def test_bind_fails(fake: FakeSysfs, capsys: Output) -> None:
    fake.broken.add("vfio-pci")
    assert main(["bind", NIC]) == 1
    assert capsys.readouterr() == (
        "",
        f"vfio-user-bridge: {NIC}: vfio-pci doesn't take it; dmesg has the reason\n",
    )


@pytest.mark.usefixtures("fake")
def test_bind_spares_a_mounted_disk(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    mounted = [inuse.Use("vda is mounted on /", vital=True)]
    monkeypatch.setattr(inuse, "uses", lambda: {NIC: mounted})
    assert main(["bind", NIC]) == 1
    assert (
        f"{NIC}: vda is mounted on /: unmount it first, or bind --force" in capsys.readouterr().err
    )
    assert main(["bind", NIC, "--force"]) == 0


# ---- qemu-args ------------------------------------------------------------------------------


def test_qemu_args(capsys: Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["qemu-args", "it's a nic.sock", "/run/disk.sock", "--memory", "512m"]) == 0
    words = shlex.split(capsys.readouterr().out)
    assert words[:6] == [
        "-object",
        "memory-backend-memfd,id=mem,size=512m,share=on",
        "-machine",
        "q35,memory-backend=mem",
        "-m",
        "512m",
    ]
    assert words[6::2] == ["-device", "-device"]
    first, second = (json.loads(word) for word in words[7::2])
    assert first == {
        "driver": "vfio-user-pci",
        "socket": {"type": "unix", "path": f"{tmp_path}/it's a nic.sock"},
        "x-msg-timeout": 60000,
    }
    assert second["socket"]["path"] == "/run/disk.sock"


@pytest.mark.parametrize(("given", "size"), [("4G", "4G"), ("512", "512M"), ("1t", "1t")])
def test_qemu_memory(given: str, size: str, capsys: Output) -> None:
    assert main(["qemu-args", "/a", "--memory", given]) == 0
    words = shlex.split(capsys.readouterr().out)
    assert f"size={size},share=on" in words[1]
    assert words[5] == size


# ---- serve: devices -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name"), [("model:edu", "edu"), ("01:10.1", NIC), ("AF:00.0", "0000:af:00.0")]
)
def test_device_name(text: str, name: str) -> None:
    assert device_name(text) == name


# ---- serve: the process ---------------------------------------------------------------------


@contextmanager
def running(command: Sequence[str], **options: Any) -> Iterator[Server]:
    """A process that can't outlive its test, whatever becomes of it."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, **options) as process:
        try:
            yield Server(process)
        finally:
            process.kill()


def serving(*arguments: str | Path, **options: Any) -> AbstractContextManager[Server]:
    return running([*COMMAND, "serve", *map(str, arguments)], **options)


class Server:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout
        assert process.stderr
        self.process = process
        self.out, self.err = process.stdout, process.stderr

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Its exit status."""
        self.process.send_signal(number)
        return self.process.wait(20)


def connect(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        yield listener


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_until_told_to_stop(tmp_path: Path, number: signal.Signals) -> None:
    path = tmp_path / "edu.sock"
    with serving("model:edu", "--socket-path", path, "--socket-mode", "0660") as server:
        assert server.out.readline() == f"edu ready on {path}\n"
        assert path.stat().st_mode & 0o777 == 0o660
        connect(path)
        assert server.stop(number) == 0  # at once: it is ready for that too
        assert server.out.read() == ""
    assert not path.exists()


def test_serve_by_the_conventions_alone(tmp_path: Path) -> None:
    """A manager knows --socket-path and the binary, not our commands."""
    path = tmp_path / "edu.sock"
    with running([*COMMAND, f"--socket-path={path}", "model:edu"]) as server:
        assert server.out.readline() == f"edu ready on {path}\n"
        assert server.stop() == 0


def test_serve_in_a_folder(tmp_path: Path) -> None:
    with serving("model:edu", "--socket-dir", tmp_path) as server:
        assert server.out.readline() == f"edu ready on {tmp_path}/edu.sock\n"
        assert (tmp_path / "edu.sock").stat().st_mode & 0o777 == 0o600
        assert server.stop() == 0


def test_all_or_nothing(tmp_path: Path) -> None:
    with serving("model:edu", "ffff:ff:1f.7", "--socket-dir", tmp_path) as server:
        assert server.process.wait(20) == 1
        assert server.out.read() == ""
        says = "vfio-user-bridge: ffff:ff:1f.7: there is no such PCI device"
        assert server.err.read().startswith(says)
    assert not list(tmp_path.iterdir())


def test_serve_on_a_socket_passed_in(tmp_path: Path) -> None:
    path = tmp_path / "passed.sock"
    with listening(path) as listener:
        fd = listener.fileno()
        with serving("model:edu", "--fd", str(fd), pass_fds=[fd]) as server:
            assert server.out.readline() == f"edu ready on {path}\n"
            connect(path)
            assert server.stop() == 0
    assert path.exists()  # whoever made it removes it


def test_logs_have_a_line_each_with_time_and_level(tmp_path: Path) -> None:
    path = tmp_path / "edu.sock"
    with serving("model:edu", "--socket-path", path) as server:
        server.out.readline()
        connect(path)
        lines = [server.err.readline() for _ in range(2)]
    time = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d\d\d"
    assert re.match(rf"{time} INFO confined: ", lines[0])
    assert re.match(rf"{time} INFO edu: pid {os.getpid()}", lines[1])  # who came and said nothing


def test_serving_a_model_imports_nothing_for_hardware(tmp_path: Path) -> None:
    """Start-up time is a feature. (But for confining: pyseccomp asks ldconfig for its library.)"""
    path = tmp_path / "edu.sock"
    arguments = ["serve", "model:edu", "--socket-path", str(path), "--confine", "off"]
    with running([sys.executable, "-X", "importtime", *COMMAND[1:], *arguments]) as server:
        server.out.readline()
        server.process.kill()
        imported = {line.rsplit("|", 1)[-1].strip() for line in server.err}
    assert "vfio_user_bridge.models" in imported
    costly = {"subprocess", "asyncio", "vfio_user_bridge.hostdev", "vfio_user_bridge.kernel.pci"}
    assert not imported & costly
