# SPDX-License-Identifier: GPL-2.0-or-later
"""The order of work in the capture kernel."""
