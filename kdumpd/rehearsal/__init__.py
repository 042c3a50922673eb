# SPDX-License-Identifier: GPL-2.0-or-later
"""Trying the capture image in a scratch machine (QEMU) that crashes, before the machine itself does."""
