# SPDX-License-Identifier: GPL-2.0-or-later
"""Which modules a board's device tree asks for: those of its disks' buses, and of what these get power and clocks from.

What udev does on a running board by modalias (drivers/of/device.c, of_modalias()), done from the tree; a capture kernel
has no use for the rest, such as screens and sound.
"""

from __future__ import annotations

from collections.abc import Iterator

from kdumpd.host.fdt import DeviceTree, Node
from kdumpd.image.kmodules import ModuleIndex

# Below kernel/drivers. First what others wait for, then what disks hang on.
_SUPPLIERS = (
    *("soc", "firmware", "hwspinlock", "mailbox", "clk", "reset", "pinctrl", "gpio", "bus", "i2c", "spi", "mfd"),
    *("regulator", "pmdomain", "power", "nvmem", "interconnect", "iommu", "memory", "dma", "extcon", "phy"),
)
_BUSES = ("pci", "usb", "mmc", "ata", "ufs", "scsi", "nvme", "virtio", "block", "mtd")
_ORDER = {folder: place for place, folder in enumerate((*_SUPPLIERS, *_BUSES))}
_STATUS_ON = (None, "okay", "ok")


def tree_modules(tree: DeviceTree, index: ModuleIndex) -> tuple[str, ...]:
    """Names of modules for the devices that are switched on in `tree`, suppliers first; what is built in needs none."""
    known = _by_compatible(index)
    names: dict[str, None] = {}
    for compatible in _compatibles(tree.root):
        names.update(dict.fromkeys(known.get(compatible, ())))
    placed = [(place, name) for name in names if (place := _place(index, name)) is not None]
    return tuple(name for _, name in sorted(placed))


def _place(index: ModuleIndex, name: str) -> int | None:
    """Where a module comes in the order; None for one that a capture does without."""
    if name in index.builtin or name not in index.depends:
        return None
    parts = index.depends[name][0].split("/")
    return _ORDER.get(parts[2]) if parts[:2] == ["kernel", "drivers"] and len(parts) > 3 else None


def _compatibles(node: Node) -> Iterator[str]:
    """What each device is compatible with; whatever lies below one that is switched off is off too."""
    if node.text("status") not in _STATUS_ON:
        return
    for text in node.properties.get("compatible", b"").split(b"\0"):
        if text:
            yield text.decode(errors="replace")
    for child in node.children:
        yield from _compatibles(child)


def _by_compatible(index: ModuleIndex) -> dict[str, list[str]]:
    """Modules by what they are compatible with: "of:N*T*Cvendor,device", also with C* behind it (file2alias.c)."""
    found: dict[str, list[str]] = {}
    for pattern, name in index.aliases:
        if pattern.startswith("of:N*T*C"):
            names = found.setdefault(pattern.removeprefix("of:N*T*C").removesuffix("C*"), [])
            if name not in names:
                names.append(name)
    return found
