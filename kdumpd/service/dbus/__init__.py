# SPDX-License-Identifier: GPL-2.0-or-later
"""The service on the bus; the only room that imports pydbus."""
