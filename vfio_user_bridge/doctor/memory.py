# SPDX-License-Identifier: BSD-3-Clause
"""Whether there is memory for the guest, and the right to pin it.

A device may write anywhere in guest RAM at any time, so VFIO pins all of it, and counts it as
locked by the bridge (vfio_lock_acct): once for each IOMMU group that one process serves.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from vfio_user_bridge.kernel.credentials import CAP_IPC_LOCK

from .findings import Finding, ok, problem, warning
from .host import Host

POOLS = "sys/kernel/mm/hugepages"
THP = "sys/kernel/mm/transparent_hugepage/shmem_enabled"

#: the guest that is spoken of where none was named: what `qemu-args` makes
USUAL = 4 << 30


def locked(host: Host) -> Iterator[Finding]:
    """This process may pin that much."""
    status = host.text("proc/self/status")
    capabilities = re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.MULTILINE)
    limit = re.search(r"^Max locked memory +(\S+)", host.text("proc/self/limits"), re.MULTILINE)
    if capabilities is None or limit is None:
        yield warning("it can't be seen how much memory this process may lock", "mount /proc")
        return
    guest = host.memory or USUAL
    # It doesn't count in a user namespace: vfio_dma_do_map() asks capable().
    whole = host.text("proc/self/uid_map").split() in ([], ["0", "0", "4294967295"])
    if int(capabilities[1], 16) >> CAP_IPC_LOCK & 1 and whole:
        yield ok("this process may lock any memory (CAP_IPC_LOCK)")
    elif limit[1] == "unlimited" or int(limit[1]) >= guest:
        most = "any memory" if limit[1] == "unlimited" else size(int(limit[1]))
        yield ok(f"this process may lock {most}")
    else:
        found = problem if host.memory else warning
        yield found(
            f"this process may lock {size(int(limit[1]))}, and a guest of {size(guest)} takes"
            " that much in each IOMMU group",
            "LimitMEMLOCK=infinity in a unit, memlock in /etc/security/limits.conf for a login,"
            " or for the shell at hand",
            "prlimit --pid $$ --memlock=unlimited",
        )


def available(host: Host) -> Iterator[Finding]:
    """The host has that much."""
    total, free = (_meminfo(host, name) for name in ("MemTotal", "MemAvailable"))
    seen = f"the host has {size(free)} available of {size(total)}"
    guest = host.memory
    if guest is None or guest <= free or any(pool.free >= guest for pool in _pools(host)):
        yield ok(seen)
    elif guest > total:
        yield problem(f"{seen}, and all {size(guest)} of the guest are pinned", "a smaller guest")
    else:
        yield warning(
            f"{seen}, and all {size(guest)} of the guest are pinned",
            "end what takes memory, or a smaller guest",
        )


def hugepages(host: Host) -> Iterator[Finding]:
    """If there are any, the guest fits into them. A large guest starts faster with them."""
    pools = [pool for pool in _pools(host) if pool.pages]
    for pool in pools:
        seen = f"{pool.pages} hugepages of {size(pool.page)}, {size(pool.free)} free"
        if host.memory is None or any(other.free >= host.memory for other in pools):
            yield ok(seen)
            continue
        taken = pool.pages - pool.free // pool.page
        wanted = taken - -host.memory // pool.page
        yield warning(
            f"{seen}: a guest of {size(host.memory)} doesn't fit",
            "let it have small pages, or reserve more",
            f"echo {wanted} >/{POOLS}/hugepages-{pool.page >> 10}kB/nr_hugepages",
        )
    if not pools:
        chosen = re.search(r"\[(\w+)\]", host.text(THP))
        thp = f"; transparent ones for shared memory: {chosen[1]}" if chosen else ""
        yield ok(f"no hugepages are reserved, nor needed{thp}")


@dataclass(frozen=True, slots=True)
class _Pool:
    """The hugepages of one size; *page* and *free* are bytes."""

    page: int
    pages: int
    free: int


def _pools(host: Host) -> list[_Pool]:
    found = []
    for name in host.names(POOLS):
        page = int(name.removeprefix("hugepages-").removesuffix("kB")) << 10
        pages, free = (
            int(host.text(f"{POOLS}/{name}/{file}")) for file in ("nr_hugepages", "free_hugepages")
        )
        found.append(_Pool(page, pages, free * page))
    return found


def _meminfo(host: Host, name: str) -> int:
    """Bytes.

    :raise ValueError: it isn't there
    """
    found = re.search(rf"^{name}: *(\d+) kB$", host.text("proc/meminfo"), re.MULTILINE)
    if found is None:
        raise ValueError(f"/proc/meminfo has no {name}")
    return int(found[1]) << 10


def size(count: int) -> str:
    """*count* bytes, as in ``1.5 GiB``."""
    amount, units = float(count), iter(("bytes", "KiB", "MiB", "GiB"))
    unit = next(units)
    for larger in units:
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:.1f}".removesuffix(".0") + f" {unit}"
