# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpd.image.tree_modules: from a device tree to the drivers of a board's disks."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdumpd.host.fdt import DeviceTree, Node, parse_fdt
from kdumpd.image.kmodules import ModuleIndex, parse_aliases, parse_dep
from kdumpd.image.tree_modules import tree_modules

DEP = """\
kernel/drivers/usb/dwc3/dwc3.ko.xz: kernel/drivers/usb/core/usbcore.ko.xz
kernel/drivers/usb/core/usbcore.ko.xz:
kernel/drivers/phy/rockchip/phy-rockchip-usb.ko.xz:
kernel/drivers/mmc/host/dw_mmc-rockchip.ko.xz:
kernel/drivers/gpu/drm/panfrost/panfrost.ko.xz:
kernel/drivers/clk/clk-rk808.ko.xz:
kernel/sound/soc/snd-soc-x.ko.xz:
"""
# As depmod writes them.
ALIASES = """\
# Aliases extracted from modules themselves.
alias of:N*T*Csnps,dwc3C* dwc3
alias of:N*T*Csnps,dwc3 dwc3
alias of:N*T*Crockchip,usb-phy phy_rockchip_usb
alias of:N*T*Crockchip,dw-mshcC* dw_mmc_rockchip
alias of:N*T*Carm,mali panfrost
alias of:N*T*Crockchip,rk808 clk_rk808
alias of:N*T*Cx,sound snd_soc_x
alias pci:v00001234d*sv*sd*bc*sc*i* other
"""


def index(builtin: frozenset[str] = frozenset()) -> ModuleIndex:
    return ModuleIndex(
        folder=Path("/m"), depends=parse_dep(DEP), builtin=builtin, aliases=parse_aliases(ALIASES),
        builtin_aliases=(), softdeps={},
    )  # fmt: skip


def device(name: str, *compatible: str, status: str | None = None, children: tuple[Node, ...] = ()) -> Node:
    node = Node(name, {"compatible": b"".join(text.encode() + b"\0" for text in compatible)}, list(children))
    if status is not None:
        node.set_text("status", status)
    return node


def tree(*nodes: Node) -> DeviceTree:
    made = DeviceTree(root=device("", "pine64,board", children=(device("soc", "simple-bus", children=nodes),)))
    return parse_fdt(made.to_bytes(), "x.dtb")


def test_disks_and_what_they_wait_for_suppliers_first() -> None:
    board = tree(
        device("usb@1", "rockchip,rk3399-dwc3", "snps,dwc3"), device("mmc@2", "rockchip,dw-mshc", status="okay"),
        device("phy@3", "rockchip,usb-phy"), device("pmic@4", "rockchip,rk808"), device("gpu@5", "arm,mali"),
        device("sound", "x,sound"),
    )  # fmt: skip
    assert tree_modules(board, index()) == ("clk_rk808", "phy_rockchip_usb", "dwc3", "dw_mmc_rockchip")


@pytest.mark.parametrize("status", ["disabled", "fail", "reserved"])
def test_what_is_switched_off_needs_no_driver(status: str) -> None:
    inner = device("mmc@2", "rockchip,dw-mshc")
    assert tree_modules(tree(device("usb@1", "snps,dwc3", status=status, children=(inner,))), index()) == ()


def test_what_is_built_in_needs_no_module() -> None:
    assert tree_modules(tree(device("usb@1", "snps,dwc3")), index(frozenset({"dwc3"}))) == ()
