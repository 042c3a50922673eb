# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading crashed memory. Knows nothing of the files that are written from it."""
