# SPDX-License-Identifier: GPL-2.0-or-later
"""Facts about the running machine. `parse_x(text)` is pure, `read_x(root)` reads below a root folder."""
