# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpd: saves the memory of a Linux kernel that died, and shows beforehand that it will.

The rooms of this package and which of them may import which are drawn in docs/ARCHITECTURE.md.
"""

__version__ = "0.1.0"
