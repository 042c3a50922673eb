# SPDX-License-Identifier: GPL-2.0-or-later
"""Finding kernels in both of the places where distributions put them."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdumpd.errors import NotFoundError
from kdumpd.host.kernels import find_kernel, parse_kernel_config, read_kernel_config


def _touch(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize("image", ["boot/vmlinuz-6.1", "usr/lib/modules/6.1/vmlinuz", "lib/modules/6.1/vmlinuz"])
@pytest.mark.parametrize("modules", ["lib/modules/6.1", "usr/lib/modules/6.1"])
def test_images_and_modules_are_found_where_they_may_be(tmp_path: Path, image: str, modules: str) -> None:
    path = _touch(tmp_path / image)
    (tmp_path / modules).mkdir(parents=True, exist_ok=True)
    kernel = find_kernel("6.1", tmp_path)
    assert kernel.image == path
    assert kernel.modules.is_dir()
    assert kernel.release == "6.1"


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no image at /boot/vmlinuz-6\.1"):
        find_kernel("6.1", tmp_path)
    _touch(tmp_path / "boot/vmlinuz-6.1")
    with pytest.raises(NotFoundError, match="no modules"):
        find_kernel("6.1", tmp_path)


@pytest.mark.parametrize("release", ["", "../etc", ".", ".."])
def test_a_release_never_leads_out_of_the_folders(tmp_path: Path, release: str) -> None:
    with pytest.raises(NotFoundError, match="not the name"):
        find_kernel(release, tmp_path)


def test_the_build_configuration_is_read(tmp_path: Path) -> None:
    text = '# CONFIG_A is not set\nCONFIG_RD_ZSTD=y\nCONFIG_CODEPAGE=437\nCONFIG_CHARSET="utf8"\n\nrubbish\n'
    wanted = {"CONFIG_RD_ZSTD": "y", "CONFIG_CODEPAGE": "437", "CONFIG_CHARSET": "utf8"}
    assert parse_kernel_config(text) == wanted
    assert read_kernel_config("6.1", tmp_path) is None
    _touch(tmp_path / "usr/lib/modules/6.1/config", text)
    assert read_kernel_config("6.1", tmp_path) == wanted
