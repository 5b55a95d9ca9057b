# SPDX-License-Identifier: BSD-3-Clause
"""The manual pages and the shells' completions, made from what --help says.

    python -m integration.manual

They are in the repository, so that they can be read and packaged without this; a test says when
they are out of date.
"""
