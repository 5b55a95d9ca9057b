# SPDX-License-Identifier: BSD-3-Clause
"""What goes wrong on the operator's side. The text is one line: what, where, and what to do.

::

    BridgeError          exit status 1
    ├── UsageError       exit status 2: the command line can't mean anything
    └── DeviceError      this device can't be used as things are

What a client does wrong is told by errnos and by ``protocol.ProtocolError`` instead.
"""


class BridgeError(Exception):
    exit_status = 1


class UsageError(BridgeError):
    exit_status = 2


class DeviceError(BridgeError):
    pass
