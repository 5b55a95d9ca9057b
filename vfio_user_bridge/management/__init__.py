# SPDX-License-Identifier: BSD-3-Clause
"""What operators see of a server, and do to it, while it runs."""
