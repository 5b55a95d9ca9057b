# SPDX-License-Identifier: BSD-3-Clause
"""What open files are called that go from one bridge to the next.

A name says what is open there. It has no colon, which separates names in LISTEN_FDNAMES.
"""

#: before each in a service manager's store, to tell them from others that it passes
PREFIX = "kept-"

JOURNAL = "journal-"
LISTENER = "listener-"
#: a client's memory
FILE = "file-"
#: the same, on whose file system it may keep waiting who looks at it or closes it: no manager's
FOREIGN = "foreign-"
#: our standard output and error
STDIO = {"stdio-1": 1, "stdio-2": 2}

#: in the environment of one that takes over from a bridge that runs: its end of the link
LINK_VARIABLE = "VFIO_USER_BRIDGE_HANDOVER"


def plain(device: str) -> str:
    """A device's name, as part of such a name."""
    return device.replace(":", ".")
