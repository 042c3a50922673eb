# SPDX-License-Identifier: GPL-2.0-or-later
"""The process that loads: the only one with the right to (CAP_SYS_BOOT)."""
