# SPDX-License-Identifier: GPL-2.0-or-later
"""Which pages an analyst's tools read first, subject by subject; `vmcore.critical` puts the subjects in order."""
