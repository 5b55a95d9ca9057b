# SPDX-License-Identifier: BSD-3-Clause
"""`vfio-user-bridge trace`: what can be done with a recording, a command each."""

from __future__ import annotations

import argparse

from . import add_commands, trace_diff, trace_plot, trace_replay, trace_show, trace_stats

NAME = "trace"
SUMMARY = "look into what serve --record recorded"

COMMANDS = (trace_show, trace_stats, trace_plot, trace_diff, trace_replay)


def add_to(parser: argparse.ArgumentParser) -> None:
    add_commands(parser, COMMANDS)
