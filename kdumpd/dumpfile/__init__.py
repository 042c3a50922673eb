# SPDX-License-Identifier: GPL-2.0-or-later
"""Dump formats, written and read back."""
