# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpd.host.kexec_tools: what kexec ends with, and what it is taken for."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from fake_machine import bzimage
from test_core_header import GOOD, IOMEM

from kdumpd.errors import LoadError, LoadLostError, UnsupportedError
from kdumpd.host.kexec_pair import Pair, open_pair
from kdumpd.host.kexec_tools import ToolLoader

_PROGRAM = """#!/bin/sh
# Acts kexec: notes its arguments, says what lies in `said`, ends with what lies in `status`.
cd {root} || exit 9
echo "$*" >> calls
case "$*" in
*-u*) echo 0 > sys/kernel/kexec_crash_loaded; exit 0 ;;
esac
cat said >&2
[ "$(cat status)" = 0 ] && echo 1 > sys/kernel/kexec_crash_loaded
for word; do case $word in --initrd=*) cat "${{word#--initrd=}}" > initrd-read ;; esac; done
exit "$(cat status)"
"""


class Tool:
    """A machine with a kexec of our own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("sys/kernel", "proc"):
            (root / folder).mkdir(parents=True)
        self.write("sys/kernel/kexec_crash_loaded", "0\n")
        self.write("proc/iomem", IOMEM)
        self.write("vmlinuz", "")
        (root / "vmlinuz").write_bytes(bzimage())
        self.write("initrd", "the image")
        self.write("kexec", _PROGRAM.format(root=root))
        (root / "kexec").chmod(0o700)
        self.says(GOOD)

    def write(self, name: str, text: str) -> None:
        (self.root / name).write_text(text)

    def says(self, text: str, status: int = 0) -> None:
        self.write("said", text)
        self.write("status", str(status))

    def load(self, arch: str = "x86_64") -> None:
        digest = hashlib.sha256(b"the image").hexdigest()
        pair = Pair(kernel=self.root / "vmlinuz", initrd=self.root / "initrd", initrd_sha256=digest, cmdline="a b=c")
        with open_pair(pair) as opened:
            ToolLoader(arch, root=self.root, program=str(self.root / "kexec")).load(opened)

    @property
    def loaded(self) -> bool:
        return (self.root / "sys/kernel/kexec_crash_loaded").read_text() == "1\n"


@pytest.fixture
def tool(tmp_path: Path) -> Tool:
    return Tool(tmp_path)


def test_it_loads_through_the_descriptors(tool: Tool) -> None:
    tool.load()
    assert tool.loaded
    (call,) = (tool.root / "calls").read_text().splitlines()
    assert call.startswith("-d -p --kexec-syscall /proc/self/fd/")
    assert call.endswith("--command-line=a b=c")
    assert (tool.root / "initrd-read").read_text() == "the image"


@pytest.mark.parametrize(
    "said",
    [
        GOOD.replace("p_memsz = 0x2830000", "p_memsz = 0xffffbc2700000000"),
        GOOD + "Can't get the symbol of _text to calculate page_offset.\n",
        "",
    ],
)
def test_a_core_header_that_no_capture_kernel_can_read_is_taken_out_again(tool: Tool, said: str) -> None:
    """Exit status 0 and crash_loaded=1 are not believed."""
    tool.says(said)
    with pytest.raises(LoadError, match="no capture kernel can read"):
        tool.load()
    assert not tool.loaded
    assert (tool.root / "calls").read_text().splitlines()[-1] == "-p -u"


def test_one_that_cannot_be_taken_out_again_leaves_the_unknown(tool: Tool) -> None:
    tool.says(GOOD.replace("p_memsz = 0x2830000", "p_memsz = 0x1"))
    text = (tool.root / "kexec").read_text()
    tool.write("kexec", text.replace("*-u*) echo 0 > sys/kernel/kexec_crash_loaded; exit 0", "*-u*) exit 1"))
    with pytest.raises(LoadLostError, match="could not be unloaded"):
        tool.load()


def test_a_header_that_cannot_be_compared_is_not_called_good(tool: Tool) -> None:
    tool.write("proc/iomem", "00000000-00000000 : System RAM\n")
    with pytest.raises(LoadError, match="no addresses"):
        tool.load()
    assert not tool.loaded


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("kexec_load failed: Cannot assign requested address\n", "do not fit"),
        ("kexec_load failed: Operation not permitted\n", "CAP_SYS_BOOT"),
        ("kexec_load failed: Frobnication\n", "status 255: kexec_load failed: Frobnication"),
        ("Could not find a free area of memory\nlocate_hole failed\n", "locate_hole failed"),
        (
            "Cannot open /proc/kcore: Denied\nCannot load /x\n",
            "Cannot open /proc/kcore: Denied; Cannot load",
        ),
        ("", "it said nothing"),
    ],
)
def test_its_failures_have_sentences(tool: Tool, said: str, words: str) -> None:
    tool.says(said, 255)
    with pytest.raises(LoadError, match=words):
        tool.load()


def test_a_kernel_without_the_call(tool: Tool) -> None:
    tool.says("kexec_load failed: Function not implemented\n", 255)
    with pytest.raises(UnsupportedError, match=r"no kexec_load\(2\)"):
        tool.load()


def test_success_without_a_loaded_kernel(tool: Tool) -> None:
    tool.write("kexec", "#!/bin/sh\nexit 0\n")
    with pytest.raises(LoadError, match="says that none is loaded"):
        tool.load()


def test_never_under_lockdown(tool: Tool) -> None:
    (tool.root / "sys/kernel/security").mkdir()
    tool.write("sys/kernel/security/lockdown", "none [integrity] confidentiality\n")
    with pytest.raises(LoadError, match="locked down"):
        tool.load()
    assert not (tool.root / "calls").exists()


def test_bad_files_never_reach_it(tool: Tool) -> None:
    tool.write("initrd", "another image")
    with pytest.raises(LoadError, match="damaged"):
        tool.load()
    assert not (tool.root / "calls").exists()


def test_without_kexec_tools(tool: Tool) -> None:
    with open_pair(
        Pair(kernel=tool.root / "vmlinuz", initrd=tool.root / "initrd", initrd_sha256="", cmdline="")
    ) as opened:
        loader = ToolLoader("x86_64", root=tool.root)
        loader._program = None
        with pytest.raises(UnsupportedError, match="not installed") as caught:
            loader.load(opened)
    assert caught.value.hint == "apt install kexec-tools"
