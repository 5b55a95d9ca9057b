# SPDX-License-Identifier: BSD-3-Clause
"""What `libvirt-xml` makes of a domain: XML in, XML out. integration/system has libvirt read it."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from vfio_user_bridge.cli import main
from vfio_user_bridge.errors import BridgeError, UsageError
from vfio_user_bridge.libvirt.domain import QEMU_NAMESPACE, bridged, pieces

FOLDER = Path("/run/vfio-user-bridge")

WHOLE = """\
<domain type='kvm'>
  <name>web</name>
  <uuid>c7a5fdbd-edaf-9455-926a-d65c16db1809</uuid>
  <memory unit='KiB'>4194304</memory>
  <currentMemory unit='KiB'>4194304</currentMemory>
  <vcpu placement='static'>2</vcpu>
  <os>
    <type arch='x86_64' machine='pc-q35-9.2'>hvm</type>
    <boot dev='hd'/>
  </os>
  <devices>
    <controller type='pci' index='0' model='pcie-root'/>
    <controller type='pci' index='1' model='pcie-root-port'>
      <address type='pci' domain='0x0000' bus='0x00' slot='0x02' function='0x0'/>
    </controller>
    <!-- the card in slot 3 -->
    <hostdev mode='subsystem' type='pci' managed='yes'>
      <source>
        <address domain='0x0000' bus='0x01' slot='0x10' function='0x1'/>
      </source>
      <rom bar='off'/>
      <address type='pci' domain='0x0000' bus='0x01' slot='0x00' function='0x0'/>
    </hostdev>
    <memballoon model='none'/>
  </devices>
</domain>
"""

WHOLE_BRIDGED = """\
<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web</name>
  <uuid>c7a5fdbd-edaf-9455-926a-d65c16db1809</uuid>
  <metadata>
    <bridge:hostdevs sockets='/run/vfio-user-bridge' xmlns:bridge='urn:vfio-user-bridge:domain:1'>
      <hostdev mode='subsystem' type='pci' managed='yes'>
        <source>
          <address domain='0x0000' bus='0x01' slot='0x10' function='0x1'/>
        </source>
        <rom bar='off'/>
        <address type='pci' domain='0x0000' bus='0x01' slot='0x00' function='0x0'/>
      </hostdev>
    </bridge:hostdevs>
  </metadata>
  <memory unit='KiB'>4194304</memory>
  <currentMemory unit='KiB'>4194304</currentMemory>
  <memoryBacking>
    <source type='memfd'/>
    <access mode='shared'/>
  </memoryBacking>
  <vcpu placement='static'>2</vcpu>
  <os>
    <type arch='x86_64' machine='pc-q35-9.2'>hvm</type>
    <boot dev='hd'/>
  </os>
  <devices>
    <controller type='pci' index='0' model='pcie-root'/>
    <controller type='pci' index='1' model='pcie-root-port'>
      <address type='pci' domain='0x0000' bus='0x00' slot='0x02' function='0x0'/>
    </controller>
    <!-- the card in slot 3 -->
    <controller type='fdc' index='1'>
      <address type='pci' domain='0x0000' bus='0x01' slot='0x00' function='0x0'/>
    </controller>
    <memballoon model='none'/>
  </devices>
  <qemu:commandline>
    <qemu:arg value='-device'/>
    <qemu:arg value='{"driver":"vfio-user-pci",\
"socket":{"type":"unix","path":"/run/vfio-user-bridge/0000:01:10.1.sock"},"x-msg-timeout":60000,\
"id":"vfio-user-0000-01-10.1","bus":"pci.1","addr":"0x0","rombar":0}'/>
  </qemu:commandline>
</domain>
"""

SOURCE = "<source><address domain='0' bus='1' slot='0x10' function='1'/></source>"
PLACE = "<address type='pci' bus='1' slot='0'/>"


def hostdev(inside: str = PLACE, source: str = SOURCE) -> str:
    return f"<hostdev mode='subsystem' type='pci'>{source}{inside}</hostdev>"


def domain(devices: str, rest: str = "", machine: str = "q35") -> str:
    system = f"<os><type machine='{machine}'>hvm</type><boot dev='hd'/></os>"
    return f"<domain type='kvm'><name>vm</name>{system}{rest}<devices>{devices}</devices></domain>"


def after(text: str) -> ET.Element:
    return ET.fromstring(bridged(text, FOLDER).text)


def told(text: str) -> list[dict[str, object]]:
    """The devices that QEMU is told of."""
    words = [arg.get("value", "") for arg in after(text).iter(f"{{{QEMU_NAMESPACE}}}arg")]
    assert words[::2] == ["-device"] * (len(words) // 2)
    return [json.loads(word) for word in words[1::2]]


def reserved(text: str) -> list[tuple[str, ...]]:
    """The indices and addresses of what keeps addresses from others: bus, slot, function."""
    found = after(text).findall("devices/controller[@type='fdc']")
    keys = ("bus", "slot", "function")
    every = [(fdc, fdc.find("address")) for fdc in found]
    return [
        (fdc.get("index", ""), *(address.get(key, "") for key in keys))
        for fdc, address in every
        if address is not None
    ]


def test_whole() -> None:
    """As virsh dumpxml prints it, but for what has changed."""
    assert bridged(WHOLE, FOLDER) == (WHOLE_BRIDGED, [])


def test_text_stays_as_it_is() -> None:
    """Comments outside, entities, other name spaces: all that isn't concerned."""
    mine = (
        "<!-- virsh edit vm -->\n<domain xmlns:x='urn:x' type='kvm'><metadata>"
        "<app xmlns='urn:app'>a &lt; b &amp; c</app><x:y x:z='&apos;&lt;&quot;'/></metadata>"
    )
    text = mine + domain(hostdev()).partition(">")[2]
    (before, _) = bridged(text, FOLDER).text.split("<bridge:hostdevs")
    assert before == mine.removesuffix("</metadata>").replace(
        "type='kvm'", f"type='kvm' xmlns:qemu='{QEMU_NAMESPACE}'"
    ).replace("&quot;", '"')


# ---- The device -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inside", "properties"),
    [
        ("", {}),
        ("<boot order='2'/>", {"bootindex": 2}),
        ("<rom bar='on'/>", {"rombar": 1}),
        ("<rom bar='off'/>", {"rombar": 0}),
        ("<rom file='/nic.rom'/>", {"romfile": "/nic.rom"}),
        ("<rom enabled='no'/>", {"romfile": ""}),
        ("<acpi index='7'/>", {"acpi-index": 7}),
        ("<alias name='ua-nic'/>", {"id": "ua-nic"}),
        ("<alias name='hostdev0'/>", {}),
        ("<driver name='vfio'/>", {}),
    ],
)
def test_settings(inside: str, properties: dict[str, object]) -> None:
    (device,) = told(domain(hostdev(PLACE + inside)))
    plain = {
        "driver": "vfio-user-pci",
        "socket": {"type": "unix", "path": "/run/vfio-user-bridge/0000:01:10.1.sock"},
        "x-msg-timeout": 60000,
        "id": "vfio-user-0000-01-10.1",
        "bus": "pci.1",
        "addr": "0x0",
    }
    assert device == plain | properties


def test_what_cannot_come_over_is_named() -> None:
    text = domain(hostdev(PLACE + "<teaming type='transient' persistent='ua-net'/>"))
    assert bridged(text, FOLDER).lost == ["0000:01:10.1: vfio-user-pci has no <teaming>; left out"]


# ---- Its place ------------------------------------------------------------------------------

PORT = "<controller type='pci' index='{}' model='pcie-root-port'/>"


@pytest.mark.parametrize(
    ("machine", "address", "bus", "addr"),
    [
        ("q35", "bus='0x0a' slot='0'", "pci.10", "0x0"),
        ("q35", "bus='0' slot='0x1e' function='0x3'", "pcie.0", "0x1e.0x3"),
        ("pc-q35-9.2", "slot='5'", "pcie.0", "0x5"),
        ("virt-10.0", "slot='5'", "pcie.0", "0x5"),
        ("pc", "bus='0' slot='0x07'", "pci.0", "0x7"),
        ("pc-i440fx-9.2", "bus='1' slot='0x07'", "pci.1", "0x7"),
    ],
)
def test_place(machine: str, address: str, bus: str, addr: str) -> None:
    (device,) = told(domain(hostdev(f"<address type='pci' {address}/>"), machine=machine))
    assert (device["bus"], device["addr"]) == (bus, addr)


def test_place_behind_a_port_that_the_user_named() -> None:
    port = (
        "<controller type='pci' index='1' model='pcie-root-port'><alias name='ua-p'/></controller>"
    )
    (device,) = told(domain(port + hostdev()))
    assert device["bus"] == "ua-p"


def test_multifunction() -> None:
    place = "<address type='pci' bus='1' slot='0' function='{}' {}/>"
    second = SOURCE.replace("function='1'", "function='2'")
    text = domain(
        hostdev(place.format(0, "multifunction='on'")) + hostdev(place.format(1, ""), second)
    )
    first, other = told(text)
    assert (first["addr"], first["multifunction"]) == ("0x0", True)
    assert other["addr"] == "0x0.0x1"
    assert "multifunction" not in other
    assert reserved(text) == [("1", "0x01", "0x00", "0x0"), ("2", "0x01", "0x00", "0x1")]


def test_reservation_beside_a_floppy_controller() -> None:
    assert reserved(domain("<controller type='fdc' index='4'/>" + hostdev())) == [
        ("5", "0x01", "0x00", "0x0")
    ]


@pytest.mark.parametrize(
    ("devices", "index"),
    [
        ("", "1"),
        (PORT.format(0), "1"),
        (PORT.format(3), "4"),
        (PORT.format(3) + "<controller type='pci' model='pcie-root-port'/>" * 2, "6"),
        ("<disk><address type='pci' bus='0x09' slot='0'/></disk>", "10"),
        ("<disk><address type='drive' bus='9'/></disk>", "1"),
    ],
)
def test_a_port_of_its_own(devices: str, index: str) -> None:
    """Without an address: behind a port that nothing else can be meant to be behind."""
    text = domain(devices + hostdev(""))
    (device,) = told(text)
    assert (device["bus"], device["addr"]) == (f"pci.{index}", "0x0")
    assert reserved(text) == [("1", f"{int(index):#04x}", "0x00", "0x0")]
    path = f"devices/controller[@type='pci'][@index='{index}'][@model='pcie-root-port']"
    assert len(after(text).findall(path)) == 1


def test_a_slot_of_its_own() -> None:
    """On conventional PCI, from the end, where libvirt comes last."""
    taken = "<disk><address type='pci' bus='0' slot='0x1f'/></disk>"
    second = hostdev("", SOURCE.replace("function='1'", "function='2'"))
    assert [d["addr"] for d in told(domain(taken + hostdev("") + second, machine="pc"))] == [
        "0x1e",
        "0x1d",
    ]


def test_a_full_bus() -> None:
    slots = [f"<disk><address type='pci' bus='0' slot='{slot}'/></disk>" for slot in range(32)]
    with pytest.raises(BridgeError, match="PCI bus is full"):
        bridged(domain("".join(slots) + hostdev(""), machine="pc"), FOLDER)


def test_a_device_that_the_guest_does_not_get() -> None:
    """It is bound and served for the sake of its group."""
    text = domain(hostdev() + hostdev("<address type='unassigned'/>"))
    assert len(told(text)) == len(reserved(text)) == 1
    assert len(after(text).findall("metadata/*/hostdev")) == 2


# ---- The domain -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ("", "<source type='memfd'/><access mode='shared'/>"),
        ("<hugepages/>", "<hugepages/><source type='memfd'/><access mode='shared'/>"),
        ("<source type='anonymous'/>", "<source type='memfd'/><access mode='shared'/>"),
        ("<source type='file'/>", "<source type='memfd'/><access mode='shared'/>"),
        ("<access mode='shared'/>", "<access mode='shared'/><source type='memfd'/>"),
        ("<source type='file'/><access mode='shared'/>",) * 2,
        ("<source type='memfd'/><access mode='shared'/><locked/>",) * 2,
        (
            "<access mode='private'/><locked/>",
            "<access mode='shared'/><locked/><source type='memfd'/>",
        ),
    ],
)
def test_memory(before: str, expected: str) -> None:
    backing = f"<memoryBacking>{before}</memoryBacking>" if before else ""
    found = after(domain(hostdev(), rest=backing)).find("memoryBacking")
    assert found is not None
    wanted = ET.fromstring(f"<x>{expected}</x>")
    assert [(e.tag, e.attrib) for e in found] == [(e.tag, e.attrib) for e in wanted]


def test_memory_of_cells_and_modules() -> None:
    cells = "<cell id='0' memAccess='private'/><cell id='1'/>"
    text = domain(
        hostdev() + "<memory model='dimm' access='private'/>",
        rest=f"<cpu><numa>{cells}</numa></cpu>",
    )
    result = after(text)
    assert [c.get("memAccess") for c in result.findall("cpu/numa/cell")] == ["shared", None]
    assert [m.get("access") for m in result.findall("devices/memory")] == ["shared"]


@pytest.mark.parametrize(
    ("system", "devices", "expected"),
    [
        ("", hostdev("<boot order='1'/>"), ["fd"]),
        ("", hostdev("<boot order='2'/>") + "<disk><boot order='1'/></disk>", []),
        ("<boot dev='hd'/>", hostdev(), ["hd"]),
        ("", hostdev(), []),
    ],
)
def test_boot_order(system: str, devices: str, expected: list[str]) -> None:
    """Where only host devices had one, libvirt must not begin to count at the disks."""
    text = domain(devices).replace("<boot dev='hd'/>", system)
    assert [boot.get("dev") for boot in after(text).findall("os/boot")] == expected


def test_arguments_that_are_there() -> None:
    """They stay, under the name space's own prefix."""
    text = domain(hostdev(), "<q:commandline><q:arg value='-s'/></q:commandline>").replace(
        "<domain", f"<domain xmlns:q='{QEMU_NAMESPACE}'"
    )
    result = bridged(text, FOLDER).text
    assert "<q:commandline><q:arg value='-s'/><q:arg value='-device'/>" in result
    assert "qemu:" not in result


def test_a_second_time() -> None:
    """For a device that came later."""
    once = bridged(domain(hostdev()), FOLDER).text
    later = hostdev("", SOURCE.replace("function='1'", "function='2'"))
    twice = once.replace("</devices>", f"{later}</devices>")
    assert [device["bus"] for device in told(twice)] == ["pci.1", "pci.2"]
    assert len(after(twice).findall("metadata/*")) == 1
    assert len(after(twice).findall("metadata/*/hostdev")) == 2
    with pytest.raises(UsageError, match="give --socket-dir /run/vfio-user-bridge"):
        bridged(twice, Path("/elsewhere"))


# ---- The command ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "this is no XML: no element found"),
        ("<domain>", "this is no XML"),
        ("<network/>", "this is no libvirt domain but a <network>"),
        (domain(""), "the domain has no <hostdev mode='subsystem' type='pci'>"),
        (domain(hostdev(source="")), "a <hostdev> has no <source> with an <address>"),
        (domain(hostdev("<boot order='x'/>")), "order='x' of <boot> is no number"),
    ],
)
def test_refusals(text: str, says: str) -> None:
    with pytest.raises(BridgeError) as refusal:
        bridged(text, FOLDER)
    assert says in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "vm.xml"
    file.write_text(domain(hostdev(PLACE + "<teaming type='transient' persistent='ua-n'/>")))
    assert main(["libvirt-xml", "--domain", str(file), "--socket-dir", "/run/x"]) == 0
    out, err = capsys.readouterr()
    assert out == bridged(file.read_text(), Path("/run/x")).text
    assert err == "vfio-user-bridge: 0000:01:10.1: vfio-user-pci has no <teaming>; left out\n"
    assert main(["libvirt-xml", "--domain", f"{file}x"]) == 1
    assert capsys.readouterr().err == (
        f"vfio-user-bridge: can't read {file}x: No such file or directory\n"
    )
    file.write_text("<network/>")
    assert main(["libvirt-xml", "--domain", str(file)]) == 1
    assert f"{file}: this is no libvirt domain" in capsys.readouterr().err


def test_pieces(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["libvirt-xml", "--device", "/run/nic.sock"]) == 0
    out = capsys.readouterr().out
    assert out == pieces(Path("/run/nic.sock"))
    assert (
        out
        == f"""\
<memoryBacking>
  <source type='memfd'/>
  <access mode='shared'/>
</memoryBacking>
<qemu:commandline xmlns:qemu='{QEMU_NAMESPACE}'>
  <qemu:arg value='-device'/>
  <qemu:arg value='{{"driver":"vfio-user-pci","socket":{{"type":"unix","path":"/run/nic.sock"}},\
"x-msg-timeout":60000}}'/>
</qemu:commandline>
"""
    )
