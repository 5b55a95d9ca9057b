# SPDX-License-Identifier: BSD-3-Clause
"""What the bridge costs, beside a named peer that is measured in the same run.

    python -m integration.bench [ROW...] [--peer 'COMMAND {socket}'] [--json FILE] [--plot FILE]

Each row is a file here, or in `inside` for what is measured in the test machine, with a function
that gives `figures.Line`s; `rows` lists them. docs/performance.md tells what they mean.
"""
