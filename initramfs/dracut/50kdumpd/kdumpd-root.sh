# shellcheck shell=sh disable=SC2034
# SPDX-License-Identifier: GPL-2.0-or-later
# Sourced by dracut, after what reads root= of the command line: no root file system is looked for.
root=kdumpd rootok=1
