# SPDX-License-Identifier: BSD-3-Clause
"""Give a virtual machine a physical PCI device over one safe UNIX socket."""

__version__ = "0.1.0"
