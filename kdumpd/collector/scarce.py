# SPDX-License-Identifier: GPL-2.0-or-later
"""What the collector does without where memory is scarce, at the price of some processor time.

Its own memory cannot be written out anywhere. What it does not need at a time makes room for the pages of its programs,
which the kernel else drops and reads again and again, until the capture seems to hang.
"""

from __future__ import annotations

from kdumpd.config.own_memory import set_malloc, spare_openssl

# Of what is available before the imports: a reservation of 128M leaves 57 MiB then (Debian 12's 6.1), 192M far more.
SCARCE_BYTES = 64 << 20
# The same for less than 112M.
VERY_SCARCE_BYTES = 40 << 20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGE_BYTES = 128 << 10  # glibc begins with this, and learns to keep up to 32 MiB of what is freed (mallopt(3))


def spare_memory(available: int | None) -> None:
    """Prepares this process for `available` bytes, before anything large is imported; None changes nothing."""
    if available is None or available >= SCARCE_BYTES:
        return
    return_what_is_freed()
    if available < VERY_SCARCE_BYTES:
        spare_openssl()


def return_what_is_freed() -> None:
    """Has glibc hand freed memory back at once: 6 MiB less while pages are written, 0.1 s more for 4 GiB of memory."""
    set_malloc(_M_MMAP_THRESHOLD, _LARGE_BYTES)
    set_malloc(_M_TRIM_THRESHOLD, 2 * _LARGE_BYTES)
