# SPDX-License-Identifier: BSD-3-Clause
"""What `make bench` does in the test machine, as far as it goes without one."""

from __future__ import annotations

import array
import mmap
import os
import subprocess
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from integration.bench.inside.maps import VERBS, Taken, times, within
from integration.bench.peers import floor
from integration.bench.setting import QUICK, Setting, compile_programs

from .descriptors import memory_files
from .running_server import server

EFFORT = replace(QUICK, rounds=2, maps=(3, 40), turns=7)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("programs")
    compile_programs(folder)
    return folder


def test_interrupts_are_read_one_by_one(programs: Path) -> None:
    """Of an eventfd that is always ready; the device is memory."""
    with memory_files(1, mmap.PAGESIZE) as (bar,):
        eventfd = os.eventfd(1000, os.EFD_SEMAPHORE)
        try:
            done = subprocess.run(
                [programs / "interrupts", "10", str(bar), "0", str(eventfd)],
                pass_fds=(bar, eventfd),
                stdout=subprocess.PIPE,
                check=True,
            )
        finally:
            os.close(eventfd)
        assert [os.pread(bar, 4, register) for register in (0x5C, 0x60, 0x64, 0x68)] == [
            *(bytes(4), b"\1\0\0\0", b"\1\0\0\0", bytes(4)),
        ]
    assert len(array.array("Q", done.stdout)) == 10


def test_maps_come_and_go(programs: Path, tmp_path: Path) -> None:
    """Nothing is refused: what is taken away was there, and what is made wasn't."""
    mine, its = tmp_path / "ours.sock", tmp_path / "floor.sock"
    with (
        server(mine, "--socket-path", str(mine), "--log-level", "info") as running,
        floor(programs).serving(its),
    ):
        numbers = map(str, (4096, EFFORT.rounds, EFFORT.turns))
        done = subprocess.run(
            [programs / "maps", *numbers, "3,40", mine, its], stdout=subprocess.PIPE, check=True
        )
        running.stop()
        assert ", 0 refused;" in running.log()
    counts, parties, verbs = 2, 2, 2
    expected = counts * EFFORT.rounds * parties * verbs * EFFORT.turns
    assert len(array.array("Q", done.stdout)) == expected


def test_whose_times_are_whose(tmp_path: Path) -> None:
    """The program writes: by count, round, party and verb, so many of each."""

    def took(count: int, round_: int, party: int, verb: int) -> list[float]:
        return [count * 1000 + round_ * 100 + party * 10 + verb] * EFFORT.turns

    told = array.array("Q")
    for place in product(EFFORT.maps, range(EFFORT.rounds), range(4), range(2)):
        told.extend(int(microseconds) * 1000 for microseconds in took(*place))
    (tmp_path / "told").write_bytes(told.tobytes())
    (tmp_path / "maps").write_text(f"#!/bin/sh\ncat '{tmp_path}/told'\n")
    (tmp_path / "maps").chmod(0o755)
    sockets = [tmp_path / name for name in ("ours", "floor", "peer")]
    with Path(os.devnull).open() as container:
        setting = Setting(EFFORT, tmp_path, floor(tmp_path))
        taken = times(setting, 4096, container.fileno(), sockets)
    for count, (number, verb) in product(EFFORT.maps, enumerate(VERBS)):
        ours, ioctl, trip, peer = (
            [took(count, round_, party, number) for round_ in range(EFFORT.rounds)]
            for party in range(4)
        )
        assert taken[verb, count] == Taken(ours, ioctl, trip, [peer])


@pytest.mark.parametrize(("ours", "met"), [(4.5, True), (4.6, False)])
def test_the_goal_is_for_ioctl_and_round_trip_together(ours: float, met: bool) -> None:
    goal = within(Taken([[ours], [ours], [100]], [[1]] * 3, [[2]] * 3, []))
    assert goal.met == met
    assert "round trip, 3 µs" in goal.text
