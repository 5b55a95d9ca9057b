# SPDX-License-Identifier: BSD-3-Clause
"""A client's conversation from VERSION to the end: who may speak, in what order, what is left."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from typing import Any

import pytest

from vfio_user_bridge.limits import Limits
from vfio_user_bridge.state import State

from . import client as c
from .conversation import PATIENCE, conversation
from .descriptors import eventfds, inodes, memory_files, open_descriptors
from .fake_device import FakeDevice
from .wire import dma_map, dma_unmap, message, region, set_irqs, u16, u32, u64

PAGE = 4096
CONFIG = 7


# ---- Version --------------------------------------------------------------------------------


@pytest.mark.parametrize(("proposed", "agreed"), [(0, 0), (1, 1), (2, 1), (0xFFFF, 1)])
def test_the_minor_version_is_at_most_the_one_proposed(proposed: int, agreed: int) -> None:
    with conversation(negotiated=False) as talk:
        payload = talk.client.ask(c.VERSION, u16(0, proposed) + c.version_data({}))
        assert payload == u16(0, agreed) + b'{"capabilities":{}}\0'


@pytest.mark.parametrize("major", [1, 0xFFFF])
def test_another_major_version_ends_the_conversation(major: int) -> None:
    with conversation(negotiated=False) as talk:
        assert talk.client.refused(c.VERSION, u16(major, 0)) == errno.EINVAL
        talk.client.wait_until_hung_up()


def test_version_data_is_optional_and_unknown_names_are_ignored() -> None:
    for data in (b"", c.version_data({"twin_socket": {"supported": True}, "colour": "blue"})):
        with conversation(negotiated=False) as talk:
            talk.client.ask(c.VERSION, u16(0, 0) + data)
            assert talk.client.ask(c.REGION_READ, region(0, CONFIG, 1))


@pytest.mark.parametrize(
    ("proposal", "answer"),
    [
        ({}, {}),
        ({"max_msg_fds": 1}, {"max_msg_fds": 16}),
        ({"max_data_xfer_size": 1 << 30}, {"max_data_xfer_size": 1 << 20}),
        ({"max_dma_maps": 65535}, {"max_dma_maps": 100}),
        ({"max_dma_maps": 10}, {"max_dma_maps": 10}),
        ({"pgsizes": 4096, "twin_socket": {}}, {"pgsizes": 4096}),
        ({"write_multiple": False}, {"write_multiple": False}),
        (
            c.QEMU_CAPABILITIES,
            {**c.QEMU_CAPABILITIES, "max_msg_fds": 16, "max_dma_maps": 100},
        ),
    ],
)
def test_the_reply_names_what_the_proposal_named(
    proposal: dict[str, Any], answer: dict[str, Any]
) -> None:
    with conversation(FakeDevice(max_dma_maps=100), negotiated=False) as talk:
        assert talk.client.negotiate(proposal) == answer


@pytest.mark.parametrize(
    "payload", [b"", u16(0), u16(0, 0) + b"{}", u16(0, 0) + b'{"capabilities":{"pgsizes":""}}\0']
)
def test_a_malformed_version_ends_the_conversation(payload: bytes) -> None:
    with conversation(negotiated=False) as talk:
        assert talk.client.refused(c.VERSION, payload) == errno.EINVAL
        talk.client.wait_until_hung_up()


@pytest.mark.parametrize("command", [c.REGION_READ, c.RESET, c.DMA_MAP, 0, 99])
def test_a_stranger_gets_nothing_but_an_error(command: int) -> None:
    with conversation(negotiated=False) as talk, memory_files(2) as files:
        assert talk.client.refused(command, bytes(32), files) == errno.EINVAL
        talk.client.wait_until_hung_up()
        talk.wait()
        assert talk.device.calls == []  # not even quiesced: it was never touched


def test_a_silent_stranger_is_put_out() -> None:
    with conversation(negotiated=False, limits=Limits(stall=0.05)) as talk:
        talk.client.wait_until_hung_up()
        talk.wait()
        assert talk.error is None


def test_who_has_introduced_himself_may_be_silent() -> None:
    with conversation(limits=Limits(stall=0.05)) as talk:
        talk.client.socket.settimeout(0.2)
        with pytest.raises(TimeoutError):
            talk.client.receive()
        talk.client.socket.settimeout(10)
        assert talk.client.ask(c.RESET) == b""


def test_version_comes_once() -> None:
    with conversation() as talk:
        assert talk.client.refused(c.VERSION, u16(0, 0)) == errno.EINVAL
        assert talk.client.ask(c.RESET) == b""


# ---- Order ----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [0, 11, 12, 14, 19, 0xFFFF])
def test_unknown_commands_are_refused_and_nothing_else_happens(command: int) -> None:
    with conversation() as talk:
        assert talk.client.refused(command, b"what?") == errno.EINVAL
        assert talk.client.ask(c.RESET) == b""


@pytest.mark.parametrize("flags", [0x1, 0x21, 0x2, 0xF])
def test_a_reply_that_nobody_asked_for_ends_the_conversation(flags: int) -> None:
    with conversation() as talk, memory_files(1) as files:
        talk.client.send(c.DMA_READ, u64(0, 0), files, flags=flags)
        talk.client.wait_until_hung_up()
        talk.wait()
        assert talk.error is None


def test_pipelined_requests_are_answered_in_order() -> None:
    with conversation() as talk:
        numbers = [talk.client.send(c.REGION_READ, region(at, CONFIG, 1)) for at in range(100)]
        replies = [talk.client.receive() for _ in numbers]
        assert [reply.number for reply in replies] == numbers
        assert [reply.payload[:8] for reply in replies] == [u64(at) for at in range(100)]
        assert [call[2] for call in talk.device.asked("region_read")] == list(range(100))


def test_no_reply_means_none_even_to_an_error() -> None:
    with conversation() as talk:
        for payload in (region(0, CONFIG, b"well"), region(256, CONFIG, b"wrong")):
            talk.client.send(c.REGION_WRITE, payload, flags=c.NO_REPLY)
        talk.client.send(99, flags=c.NO_REPLY)
        assert talk.client.ask(c.RESET) == b""  # the first reply that comes is this one's
        assert talk.device.asked("region_write") == [("region_write", CONFIG, 0, b"well")]


def test_message_ids_belong_to_the_client() -> None:
    with conversation() as talk:
        for number in (7, 7, 0xFFFF):
            talk.client.socket.sendall(message(c.RESET, number=number))
        assert [talk.client.receive().number for _ in range(3)] == [7, 7, 0xFFFF]


def test_a_message_that_is_none_ends_the_conversation() -> None:
    for size in (0, 15, 2 << 20, 0xFFFFFFFF):
        with conversation() as talk:
            talk.client.socket.sendall(u16(1, c.RESET) + u32(size, 0, 0))
            talk.client.wait_until_hung_up()
            talk.wait()
            assert talk.error is None


def test_one_message_may_carry_all_that_was_agreed_on() -> None:
    size = 1 << 20
    with conversation() as talk:
        assert talk.client.ask(c.REGION_WRITE, region(0, 2, bytes(size)))
        assert len(talk.client.ask(c.REGION_READ, region(0, 2, size))) == 16 + size


# ---- What a device says no to ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.EBUSY, "busy"), errno.EBUSY),
        (TimeoutError(errno.ETIMEDOUT, "late"), errno.ETIMEDOUT),
        (BlockingIOError(errno.EAGAIN, "later"), errno.EAGAIN),
        (OSError("without a number"), errno.EIO),
    ],
)
def test_the_errors_of_a_device_reach_the_client(error: OSError, code: int) -> None:
    with conversation() as talk:
        talk.device.failures["region_read"] = error
        assert talk.client.refused(c.REGION_READ, region(0, CONFIG, 4)) == code
        assert talk.client.ask(c.REGION_WRITE, region(0, CONFIG, b"goes on"))


def test_a_map_that_the_device_refused_does_not_exist() -> None:
    with conversation() as talk:
        talk.device.failures["dma_map"] = OSError(errno.ENOMEM, "no memory")
        assert talk.client.refused(c.DMA_MAP, dma_map(0, PAGE)) == errno.ENOMEM
        del talk.device.failures["dma_map"]
        assert talk.client.ask(c.DMA_MAP, dma_map(0, PAGE)) == b""


@pytest.mark.parametrize("verb", ["region_read", "quiesce", "dma_unmap"])
def test_a_defect_of_a_device_ends_its_session_only_and_in_good_order(verb: str) -> None:
    with conversation() as talk, memory_files(1) as files:
        talk.client.ask(c.DMA_MAP, dma_map(0, PAGE), files)
        talk.client.ask(c.DMA_MAP, dma_map(PAGE, PAGE), files)
        talk.device.failures[verb] = ZeroDivisionError("a defect")
        if verb == "region_read":
            talk.client.send(c.REGION_READ, region(0, CONFIG, 4))
        else:
            talk.client.socket.shutdown(1)
        talk.client.wait_until_hung_up()
        talk.wait()
        if verb == "region_read":
            assert isinstance(talk.error, ZeroDivisionError)
        assert talk.device.asked("quiesce") == [("quiesce", True)]
        assert len(talk.device.asked("dma_unmap")) == 2


@pytest.mark.parametrize("failure", [OSError(errno.ENOMEM, "no memory"), MemoryError()])
def test_a_host_that_fails_ends_the_session_in_one_line(
    failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    device = FakeDevice()
    device.failures["prepare"] = failure
    with conversation(device, negotiated=False) as talk:
        talk.client.wait_until_hung_up()
        talk.wait()
        assert talk.error is None
        assert not talk.device.asked("quiesce")
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert "no memory" in line


def test_what_made_sense_is_answered_before_the_end() -> None:
    with conversation() as talk:
        talk.client.socket.sendall(message(c.REGION_READ, region(0, CONFIG, 4)) * 3 + bytes(16))
        for _ in range(3):
            assert talk.client.receive().payload == region(0, CONFIG, 4) + b"\xa5" * 4
        talk.client.wait_until_hung_up()


def test_a_reply_does_not_wait_for_a_request_that_takes_long() -> None:
    class Slow(FakeDevice):
        def reset(self) -> None:
            assert answered.wait(PATIENCE)

    answered = threading.Event()
    with conversation(Slow()) as talk:
        read, reset = message(c.REGION_READ, region(0, CONFIG, 4)), message(c.RESET)
        talk.client.socket.sendall(read * 2 + reset)
        for _ in range(2):
            assert talk.client.receive().payload == region(0, CONFIG, 4) + b"\xa5" * 4
        answered.set()
        assert talk.client.receive().command == c.RESET
        assert talk.error is None


# ---- The end --------------------------------------------------------------------------------


@pytest.mark.parametrize("reset", [True, False])
def test_the_device_comes_to_rest_before_its_memory_goes(reset: bool) -> None:
    with conversation(reset=reset) as talk, memory_files(1) as files:
        for address in (2 * PAGE, 0, 7 * PAGE):
            talk.client.ask(c.DMA_MAP, dma_map(address, PAGE), files)
        del talk.device.calls[:]
        talk.end()
        verbs = [call[0] for call in talk.device.calls]
        assert verbs == ["quiesce", "dma_unmap", "dma_unmap", "dma_unmap"]
        assert talk.device.calls[0] == ("quiesce", reset)
        gone = {request.address for _, request in talk.device.asked("dma_unmap")}
        assert gone == {0, 2 * PAGE, 7 * PAGE}
        assert talk.error is None


def test_an_unmap_that_fails_at_the_end_does_not_keep_the_others() -> None:
    with conversation() as talk:
        for address in (0, PAGE):
            talk.client.ask(c.DMA_MAP, dma_map(address, PAGE))
        talk.device.failures["dma_unmap"] = OSError(errno.EIO, "stuck")
        talk.end()
        assert len(talk.device.asked("dma_unmap")) == 2
        assert talk.error is None


def test_a_client_that_vanishes_in_mid_message_is_cleaned_up_behind() -> None:
    for cut in (1, 15, 16, 40):
        with conversation() as talk, memory_files(1) as files:
            talk.client.ask(c.DMA_MAP, dma_map(0, PAGE), files)
            talk.client.socket.sendall(message(c.DMA_MAP, dma_map(PAGE, PAGE))[:cut])
            talk.end()
            assert [call[0] for call in talk.device.calls][-2:] == ["quiesce", "dma_unmap"]
            assert talk.error is None


def test_a_client_that_never_reads_is_put_out() -> None:
    with conversation(limits=Limits(stall=0.05)) as talk:
        talk.client.socket.setblocking(False)
        request = message(c.REGION_READ, region(0, 2, 1 << 16))
        with contextlib.suppress(OSError):  # EAGAIN when the socket is full, EPIPE when it is over
            while True:
                talk.client.socket.send(request)
        talk.wait()
        assert talk.error is None
        assert talk.device.asked("quiesce")


def test_descriptors_that_no_request_takes_are_closed() -> None:
    with conversation() as talk, memory_files(16) as files, eventfds(2) as events:
        before = open_descriptors()
        assert talk.client.ask(c.RESET, fds=files) == b""
        assert talk.client.refused(99, bytes(20), files) == errno.EINVAL
        assert talk.client.refused(c.DMA_MAP, dma_map(0, PAGE), files) == errno.EINVAL
        assert talk.client.refused(c.SET_IRQS, set_irqs(0x24, 1, 0, 1), events) == errno.EINVAL
        assert talk.client.ask(c.DMA_MAP, dma_map(0, PAGE), files[:1]) == b""
        assert talk.client.ask(c.SET_IRQS, set_irqs(0x24, 1, 0, 2), events) == b""
        assert talk.client.ask(c.DMA_UNMAP, dma_unmap(0, PAGE))
        assert talk.client.ask(c.RESET) == b""  # the last message's are closed by now
        assert open_descriptors() == before
        assert talk.device.asked("set_irqs")[0][2] == inodes(events)


def test_a_flood_of_descriptors_ends_the_conversation_and_leaves_none() -> None:
    with conversation() as talk, memory_files(17) as files:
        before = open_descriptors()
        talk.client.send(c.RESET, fds=files)
        talk.client.wait_until_hung_up()
        talk.wait()
        assert open_descriptors().items() < before.items()  # our socket's end is gone, no more
        assert talk.error is None


def test_the_bar_stays_open_after_it_was_handed_out() -> None:
    with conversation() as talk:
        for _ in range(2):
            reply = talk.client.call(c.GET_REGION_INFO, u32(32, 0, 0, 0) + u64(0, 0))
            assert inodes(reply.fds) == inodes([talk.device.bar])
            os.close(reply.fds[0])


def test_what_is_done_is_answered_so_though_it_cannot_be_written_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tries = []

    def full(state: State) -> None:
        tries.append(state.changed)
        raise OSError(errno.EMFILE, "too many")

    with conversation() as talk, eventfds(1) as event:
        with monkeypatch.context() as patch:
            patch.setattr(State, "write_down", full)
            talk.client.ask(c.SET_IRQS, set_irqs(0x24, 1, 0, 1), event)
            talk.client.ask(c.REGION_READ, region(0, CONFIG, 1))
        assert tries == [True, True]
        assert talk.device.asked("set_irqs")
