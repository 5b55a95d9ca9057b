# SPDX-License-Identifier: BSD-3-Clause
"""The header, and VERSION with its JSON: bytes against values, and what is refused."""

from __future__ import annotations

import contextlib
import errno
import json
from dataclasses import astuple
from struct import Struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_user_bridge.protocol import (
    HEADER,
    Capabilities,
    Command,
    Header,
    ProtocolError,
    Version,
    fields,
)

from .wire import u16, u32

# ---- Header ---------------------------------------------------------------------------------

HEADERS = [
    (u16(0, 13) + u32(16, 0, 0), Header(0, Command.DEVICE_RESET, 16)),
    (u16(0x1234, 9) + u32(32, 0, 0), Header(0x1234, Command.REGION_READ, 32)),
    (u16(7, 10) + u32(36, 0x10, 0), Header(7, Command.REGION_WRITE, 36, flags=0x10)),
    (u16(7, 2) + u32(16, 0x21, 17), Header(7, Command.DMA_MAP, 16, flags=0x21, error=17)),
    (b"\xff" * 16, Header(0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF)),
]


@pytest.mark.parametrize(("data", "header"), HEADERS)
def test_header_has_the_specified_layout(data: bytes, header: Header) -> None:
    assert Header.unpack(data) == header
    assert header.pack() == data
    assert HEADER.size == 16


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (1, "VERSION"),
        (2, "DMA_MAP"),
        (3, "DMA_UNMAP"),
        (4, "DEVICE_GET_INFO"),
        (5, "DEVICE_GET_REGION_INFO"),
        (6, "DEVICE_GET_REGION_IO_FDS"),
        (7, "DEVICE_GET_IRQ_INFO"),
        (8, "DEVICE_SET_IRQS"),
        (9, "REGION_READ"),
        (10, "REGION_WRITE"),
        (11, "DMA_READ"),
        (12, "DMA_WRITE"),
        (13, "DEVICE_RESET"),
        (15, "REGION_WRITE_MULTI"),
        (16, "DEVICE_FEATURE"),
        (17, "MIG_DATA_READ"),
        (18, "MIG_DATA_WRITE"),
    ],
)
def test_commands_have_the_specified_numbers(number: int, name: str) -> None:
    assert Command(number).name == name


def test_there_are_no_other_commands() -> None:
    assert set(Command) == set(range(1, 19)) - {14}


def test_fields_ignores_what_follows_and_refuses_what_is_short() -> None:
    pair = Struct("=HI")
    assert fields(pair, u16(1) + u32(2) + b"more") == (1, 2)
    with pytest.raises(OSError, match="payload of 5 bytes") as caught:
        fields(pair, bytes(5))
    assert caught.value.errno == errno.EINVAL


# ---- Version data ---------------------------------------------------------------------------

DEFAULTS = (1, 1048576, 65535, 4096, False)

ACCEPTED: list[tuple[bytes, tuple[int | bool, ...], set[str]]] = [
    (b"", DEFAULTS, set(Capabilities().named)),
    (b"{}\0", DEFAULTS, set()),
    (b'{"capabilities":{}}\0', DEFAULTS, set()),
    (b'{"other":[1,2.5,null]}\0', DEFAULTS, set()),
    (b'{"capabilities":{"twin_socket":{"supported":true}}}\0', DEFAULTS, set()),
    (b'{"capabilities":{"max_msg_fds":8}}\0', (8, *DEFAULTS[1:]), {"max_msg_fds"}),
    (b'{"capabilities":{"max_msg_fds":0}}\0', (0, *DEFAULTS[1:]), {"max_msg_fds"}),
    (
        b'{"capabilities":{"max_data_xfer_size":4096}}\0',
        (1, 4096, *DEFAULTS[2:]),
        {"max_data_xfer_size"},
    ),
    (b'{"capabilities":{"max_dma_maps":7}}\0', (1, 1048576, 7, 4096, False), {"max_dma_maps"}),
    (
        b'{"capabilities":{"pgsizes":18446744073709551615}}\0',
        (1, 1048576, 65535, (1 << 64) - 1, False),
        {"pgsizes"},
    ),
    (b'{"capabilities":{"write_multiple":true}}\0', (*DEFAULTS[:4], True), {"write_multiple"}),
    (b'{"capabilities":{"write_multiple":false}}\0', DEFAULTS, {"write_multiple"}),
    (' {"capabilities" : {"größe" : "\\ud800"}}\n\0'.encode(), DEFAULTS, set()),
]


@pytest.mark.parametrize(("data", "values", "named"), ACCEPTED)
def test_capabilities_are_read_with_their_defaults(
    data: bytes, values: tuple[int | bool, ...], named: set[str]
) -> None:
    capabilities = Capabilities.from_json(data)
    assert astuple(capabilities)[:5] == values
    assert capabilities.named == named


REFUSED = [
    (b"{}", "doesn't end with NUL"),
    (b'{"capabilities":{}}', "doesn't end with NUL"),
    (b"\0", "isn't JSON"),
    (b"{}\0\0", "isn't JSON"),
    (b'{"capabilities":\0', "isn't JSON"),
    (b'{"capabilities":{"\xff":1}}\0', "isn't JSON"),  # not UTF-8
    (b"\xef\xbb\xbf{}\0", "isn't JSON"),  # a byte order mark
    (b'{"capabilities":{"pgsizes":' + b"9" * 10_000 + b"}}\0", "isn't JSON"),
    (b"[" * 65_000 + b"\0", "isn't JSON"),
    (b'{"a":' * 13_000 + b"\0", "isn't JSON"),
    (b"null\0", "isn't an object"),
    (b"[]\0", "isn't an object"),
    (b'"capabilities"\0', "isn't an object"),
    (b'{"capabilities":null}\0', "isn't an object"),
    (b'{"capabilities":[]}\0', "isn't an object"),
    (b'{"capabilities":{"max_msg_fds":"8"}}\0', "max_msg_fds"),
    (b'{"capabilities":{"max_msg_fds":-1}}\0', "max_msg_fds"),
    (b'{"capabilities":{"max_msg_fds":true}}\0', "max_msg_fds"),
    (b'{"capabilities":{"max_dma_maps":1.5}}\0', "max_dma_maps"),
    (b'{"capabilities":{"max_dma_maps":null}}\0', "max_dma_maps"),
    (b'{"capabilities":{"max_data_xfer_size":{}}}\0', "max_data_xfer_size"),
    (b'{"capabilities":{"pgsizes":18446744073709551616}}\0', "pgsizes"),
    (b'{"capabilities":{"pgsizes":NaN}}\0', "pgsizes"),
    (b'{"capabilities":{"pgsizes":1e400}}\0', "pgsizes"),
    (b'{"capabilities":{"write_multiple":1}}\0', "write_multiple"),
    (b'{"capabilities":{"write_multiple":"true"}}\0', "write_multiple"),
]


@pytest.mark.parametrize(
    ("data", "why"), REFUSED, ids=[data[:40].decode(errors="replace") for data, _ in REFUSED]
)
def test_other_version_data_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(OSError, match=why) as caught:
        Capabilities.from_json(data)
    assert caught.value.errno == errno.EINVAL


def test_version_has_the_specified_layout() -> None:
    data = u16(0, 1) + b'{"capabilities":{"max_msg_fds":8}}\0'
    version = Version(0, 1, Capabilities(max_msg_fds=8, named=frozenset({"max_msg_fds"})))
    assert Version.unpack(data) == version
    assert version.pack() == data


def test_version_data_is_optional() -> None:
    assert Version.unpack(u16(3, 4)) == Version(3, 4, Capabilities())


@pytest.mark.parametrize("size", [0, 1, 3])
def test_version_without_its_numbers_is_refused(size: int) -> None:
    with pytest.raises(OSError, match="at least 4 needed") as caught:
        Version.unpack(bytes(size))
    assert caught.value.errno == errno.EINVAL


def test_only_what_is_named_is_said() -> None:
    capabilities = Capabilities(max_msg_fds=3, write_multiple=True, named=frozenset({"pgsizes"}))
    assert capabilities.to_json() == b'{"capabilities":{"pgsizes":4096}}\0'


# ---- Properties -----------------------------------------------------------------------------

u64s = st.integers(0, (1 << 64) - 1)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
names = st.sampled_from(sorted(Capabilities().named)) | st.text(max_size=3)


@given(st.builds(Header, *[st.integers(0, 0xFFFF)] * 2, *[st.integers(0, 0xFFFFFFFF)] * 3))
def test_any_header_survives_the_wire(header: Header) -> None:
    assert Header.unpack(header.pack()) == header


@given(
    st.builds(
        Version,
        st.integers(0, 0xFFFF),
        st.integers(0, 0xFFFF),
        st.builds(Capabilities, u64s, u64s, u64s, u64s, st.booleans()),
    )
)
def test_any_version_survives_the_wire(version: Version) -> None:
    assert Version.unpack(version.pack()) == version


@given(st.binary())
def test_any_bytes_are_a_version_or_refused(data: bytes) -> None:
    with contextlib.suppress(OSError, ProtocolError):
        Version.unpack(data)


@given(st.dictionaries(names, json_values), st.binary(max_size=2))
def test_any_json_is_a_version_or_refused(capabilities: dict[str, object], tail: bytes) -> None:
    data = json.dumps({"capabilities": capabilities}).encode() + b"\0" + tail
    with contextlib.suppress(OSError, ProtocolError):
        Version.unpack(u16(0, 0) + data)
