# SPDX-License-Identifier: GPL-2.0-or-later
"""Whole machines for tests: Debian disk images, QEMU, commands inside a guest, crashed memory on demand.

Knows Debian, QEMU and files. Nothing here imports kdumpd: what judges the program must not share its mistakes.
"""
