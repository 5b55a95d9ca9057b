# SPDX-License-Identifier: BSD-3-Clause
"""What the Linux kernel offers: VFIO and PCI in sysfs."""
