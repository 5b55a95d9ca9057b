# SPDX-License-Identifier: BSD-3-Clause
"""Domains of libvirt whose PCI devices are on sockets."""
