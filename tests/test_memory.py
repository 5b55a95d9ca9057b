# SPDX-License-Identifier: BSD-3-Clause
"""Client memory: one mapping a file, and a client that changes its file hurts only itself."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from vfio_user_bridge import memory
from vfio_user_bridge.memory import ClientFiles

from .descriptors import memory_files

PAGE = os.sysconf("SC_PAGESIZE")
LIMIT = 1 << 40


@pytest.fixture
def files() -> Iterator[ClientFiles]:
    files = ClientFiles(LIMIT)
    yield files
    files.close()


@pytest.fixture
def ram() -> Iterator[int]:
    with memory_files(1, 4 * PAGE) as (fd,):
        yield fd


def mappings(fd: int) -> list[str]:
    """The permissions of each mapping that this process has of the file *fd*."""
    found = os.fstat(fd)
    file = [f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}", str(found.st_ino)]
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    return [line[1] for line in lines if line[3:5] == file]


def resident(address: int) -> int:
    """How many bytes this process's page table has of the mapping at *address*."""
    _, _, mapping = Path("/proc/self/smaps").read_text().partition(f"{address:x}-")
    _, _, size = mapping.partition("\nRss:")
    return int(size.split()[0]) << 10


def code_of(caught: pytest.ExceptionInfo[OSError]) -> int | None:
    return caught.value.errno


# ---- Reading and writing --------------------------------------------------------------------


def test_what_one_side_writes_the_other_reads(files: ClientFiles, ram: int) -> None:
    address = files.map(ram, PAGE, 2 * PAGE, writable=True)
    os.pwrite(ram, b"from the client", PAGE + 100)
    assert memory.read(address + 100, 15) == b"from the client"
    memory.write(address + PAGE - 3, b"across a page")
    assert os.pread(ram, 13, 2 * PAGE - 3) == b"across a page"
    memory.write(address, bytearray(b"any"))
    memory.write(address + 3, memoryview(b" buffer"))
    assert os.pread(ram, 10, PAGE) == b"any buffer"


def test_nothing_is_read_and_written_too(files: ClientFiles, ram: int) -> None:
    address = files.map(ram, 0, PAGE, writable=True)
    assert memory.read(address, 0) == b""
    memory.write(address, b"")


@pytest.mark.parametrize("offset", [0, 1, 3])
def test_each_map_starts_at_its_offset(files: ClientFiles, ram: int, offset: int) -> None:
    os.pwrite(ram, bytes([offset]), offset * PAGE)
    assert memory.read(files.map(ram, offset * PAGE, PAGE, writable=False), 1) == bytes([offset])


def test_what_is_left_is_there_still(files: ClientFiles, ram: int) -> None:
    address = files.map(ram, 0, 4 * PAGE, writable=True)
    memory.write(address, bytes(PAGE) + b"from here")
    assert resident(address) == 2 * PAGE
    memory.leave(address, 4 * PAGE)
    assert resident(address) == 0
    assert memory.read(address + PAGE, 9) == os.pread(ram, 9, PAGE) == b"from here"


# ---- Files that can't be mapped -------------------------------------------------------------


def test_a_map_beyond_the_end_is_refused(files: ClientFiles, ram: int) -> None:
    for offset, size in [(0, 5 * PAGE), (4 * PAGE, PAGE), (1 << 62, PAGE)]:
        with pytest.raises(OSError, match="are needed") as caught:
            files.map(ram, offset, size, writable=True)
        assert code_of(caught) == errno.EINVAL
    assert mappings(ram) == []


def test_an_empty_file_is_refused(files: ClientFiles) -> None:
    with memory_files(1, 0) as (empty,):
        with pytest.raises(OSError, match="are needed") as caught:
            files.map(empty, 0, PAGE, writable=True)
        assert code_of(caught) == errno.EINVAL


def test_a_read_only_file_can_be_read_only(files: ClientFiles, ram: int) -> None:
    os.pwrite(ram, b"rom", 0)
    fd = os.open(f"/proc/self/fd/{ram}", os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="isn't open for writing") as caught:
            files.map(fd, 0, PAGE, writable=True)
        assert code_of(caught) == errno.EACCES
        address = files.map(fd, 0, PAGE, writable=False)
    finally:
        os.close(fd)
    assert memory.read(address, 3) == b"rom"
    with pytest.raises(OSError, match="can't be reached") as caught:
        memory.write(address, b"x")
    assert code_of(caught) == errno.EFAULT


def test_a_write_only_file_can_be_neither(files: ClientFiles, ram: int) -> None:
    fd = os.open(f"/proc/self/fd/{ram}", os.O_WRONLY)
    try:
        for writable in (False, True):
            with pytest.raises(OSError, match="isn't open for") as caught:
                files.map(fd, 0, PAGE, writable=writable)
            assert code_of(caught) == errno.EACCES
    finally:
        os.close(fd)


def test_what_is_no_memory_is_refused(files: ClientFiles, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    (tmp_path / "file").write_bytes(bytes(PAGE))
    path = os.open(tmp_path / "file", os.O_PATH)
    folder = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for fd, size, code in [
            (reader, PAGE, errno.ENODEV),
            (writer, PAGE, errno.EACCES),
            (path, PAGE, errno.EBADF),
            (folder, 1, errno.ENODEV),
        ]:
            with pytest.raises(OSError, match="the client's") as caught:
                files.map(fd, 0, size, writable=False)
            assert code_of(caught) == code
    finally:
        for fd in (reader, writer, path, folder):
            os.close(fd)


# ---- Files that change ----------------------------------------------------------------------


def test_a_file_that_shrinks_is_an_error_not_a_signal(files: ClientFiles, ram: int) -> None:
    address = files.map(ram, 0, 4 * PAGE, writable=True)
    memory.write(address + 2 * PAGE, b"still there")
    os.truncate(ram, PAGE)
    for access in (
        lambda: memory.read(address + 2 * PAGE, 11),
        lambda: memory.write(address + 2 * PAGE, b"gone"),
        lambda: memory.read(address, 2 * PAGE),  # begins well
        lambda: memory.write(address + PAGE - 1, b"ab"),
    ):
        with pytest.raises(OSError, match="can't be reached") as caught:
            access()
        assert code_of(caught) == errno.EFAULT
    os.truncate(ram, 4 * PAGE)
    assert memory.read(address + 2 * PAGE, 11) == bytes(11)


def test_a_file_that_grows_is_mapped_anew(files: ClientFiles, ram: int) -> None:
    first = files.map(ram, 0, 4 * PAGE, writable=True)
    os.truncate(ram, 8 * PAGE)
    second = files.map(ram, 4 * PAGE, 4 * PAGE, writable=True)
    memory.write(first, b"old")
    memory.write(second, b"new")
    assert (os.pread(ram, 3, 0), os.pread(ram, 3, 4 * PAGE)) == (b"old", b"new")
    files.unmap(first, 4 * PAGE)
    assert memory.read(second, 3) == b"new"
    files.unmap(second, 4 * PAGE)
    assert mappings(ram) == []


# ---- One mapping a file ---------------------------------------------------------------------


def test_maps_of_one_file_share_a_mapping_until_the_last_goes(files: ClientFiles, ram: int) -> None:
    addresses = [files.map(ram, offset, PAGE, writable=True) for offset in (0, PAGE, PAGE, 0)]
    assert addresses[1] == addresses[2] == addresses[0] + PAGE
    random.Random(1).shuffle(addresses)  # any order, the same each time
    for address in addresses:
        assert mappings(ram) == ["rw-s"]
        assert memory.read(address, 1) == b"\0"
        files.unmap(address, PAGE)
    assert mappings(ram) == []


def test_another_descriptor_of_the_file_shares_it_too(files: ClientFiles, ram: int) -> None:
    first = files.map(ram, 0, PAGE, writable=True)
    again = os.dup(ram)
    try:
        assert files.map(again, PAGE, PAGE, writable=True) == first + PAGE
    finally:
        os.close(again)
    assert mappings(ram) == ["rw-s"]


def test_a_read_only_map_has_a_mapping_of_its_own(files: ClientFiles, ram: int) -> None:
    files.map(ram, 0, PAGE, writable=True)
    read_only = files.map(ram, 0, PAGE, writable=False)
    assert sorted(mappings(ram)) == ["r--s", "rw-s"]
    with pytest.raises(OSError, match="can't be reached"):
        memory.write(read_only, b"x")


def test_different_files_are_different(files: ClientFiles) -> None:
    with memory_files(3, PAGE) as fds:
        addresses = [files.map(fd, 0, PAGE, writable=True) for fd in fds]
        for number, address in enumerate(addresses):
            memory.write(address, bytes([number]))
        assert [os.pread(fd, 1, 0) for fd in fds] == [b"\0", b"\1", b"\2"]
        files.unmap(addresses[1], PAGE)
        assert [len(mappings(fd)) for fd in fds] == [1, 0, 1]


def test_close_takes_all_mappings_back(ram: int) -> None:
    files = ClientFiles(LIMIT)
    for offset in (0, PAGE):
        files.map(ram, offset, PAGE, writable=True)
    files.close()
    assert mappings(ram) == []
