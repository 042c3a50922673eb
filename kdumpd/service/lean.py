# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeps the daemon small: it is resident on every machine, for years, to be needed once."""

from __future__ import annotations

import ctypes

from kdumpd.config.own_memory import set_malloc

_M_ARENA_MAX = -8  # malloc.h
_PR_SET_THP_DISABLE = 41  # linux/prctl.h


def one_arena() -> None:
    """Keeps glibc from giving each thread an arena of its own, which it would rarely hand memory back from."""
    set_malloc(_M_ARENA_MAX, 1)


def small_pages() -> None:
    """Keeps the kernel from backing heap and stacks of this process with huge pages, PR_SET_THP_DISABLE in prctl(2).

    Where they are the default (/sys/kernel/mm/transparent_hugepage/enabled, on Debian for example) the first touch of a
    range of 2 MiB makes all of it resident, and a thread needs some 50 KiB of its stack. Kernels without them refuse.
    """
    nothing = ctypes.c_ulong(0)
    ctypes.CDLL(None).prctl(_PR_SET_THP_DISABLE, ctypes.c_ulong(1), nothing, nothing, nothing)


def give_back() -> None:
    """Hands memory that is not used any more back to the kernel, after something that took much of it."""
    # malloc_trim(3) is glibc's; without it the memory is merely kept.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
