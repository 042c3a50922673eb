# SPDX-License-Identifier: GPL-2.0-or-later
"""What kdumpd-collect can be told to do, a module for each."""
