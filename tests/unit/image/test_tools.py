# SPDX-License-Identifier: GPL-2.0-or-later
"""Images by the real dracut and the real mkinitramfs of this machine, and what of it must never get into them."""

from __future__ import annotations

import dataclasses
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import kdumpd
from kdumpd.config.model import Action, Builder
from kdumpd.errors import BuildError
from kdumpd.image import build, check, parts, read_record, tools

if TYPE_CHECKING:
    from kdumpd.image import BuildRequest, ImageRecord
    from kdumpd.image.cpio import Entry

Built = tuple["BuildRequest", "ImageRecord"]
CANARY = "canary-6b64756d7064"


def _entries(folder: Path) -> dict[str, Entry]:
    return parts.read((folder / "initrd").read_bytes(), read_record(folder).parts)


@pytest.fixture(scope="module")
def dracut(new_request: Callable[[str], BuildRequest]) -> BuildRequest:
    """An image made by dracut, in an environment with a secret."""
    request = dataclasses.replace(new_request("dracut"), builder=Builder.DRACUT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDUMPD_TOKEN", CANARY)
        build(request)
    return request


@pytest.fixture(scope="module")
def initramfs_tools(new_request: Callable[[str], BuildRequest]) -> Path:
    """The folder of an image made by mkinitramfs, which takes kernels from /lib/modules and /boot alone; with no more
    capabilities than kdumpd-build@.service has.
    """
    request = new_request("initramfs-tools")
    root = request.root
    (root / "request.py").write_text(_BUILD.format(output=request.output))
    Path("/usr/lib/modules").mkdir(exist_ok=True)
    # The mounts are seen by this child alone.
    script = (
        f"mount --bind {root}/lib/modules /usr/lib/modules && mount --bind {root}/boot /boot && "
        "exec setpriv --bounding-set=-all,+dac_read_search --inh-caps=-all --no-new-privs "
        f"{sys.executable} {root}/request.py {request.kernel.release}"
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env={
            "PYTHONPATH": f"{Path(kdumpd.__file__).parents[1]}:{Path(__file__).parent}",
            "PATH": os.environ["PATH"],
            "KDUMPD_TOKEN": CANARY,
        },
    )
    assert done.returncode == 0, done.stderr
    return request.output


_BUILD = """
import dataclasses, sys
from pathlib import Path
from conftest import make_request
from kdumpd.config.model import Builder
from kdumpd.host.kernels import find_kernel
from kdumpd.image import build, squash
squash.LEVEL = 1
request = make_request(Path("/"), Path("{output}"), find_kernel(sys.argv[1]))
build(dataclasses.replace(request, builder=Builder.INITRAMFS_TOOLS))
"""


@pytest.fixture(params=["dracut", "initramfs-tools"])
def made(request: pytest.FixtureRequest) -> Path:
    """The folder of the image of each tool."""
    if request.param == "dracut":
        output: Path = request.getfixturevalue("dracut").output
        return output
    folder: Path = request.getfixturevalue("initramfs_tools")
    return folder


def test_it_passes_the_check_and_holds_what_our_own_image_holds(made: Path, built: Built) -> None:
    record = check(made)
    assert record.builder in (Builder.DRACUT, Builder.INITRAMFS_TOOLS)
    entries, own = _entries(made), _entries(built[0].output)
    for path, entry in own.items():
        if path.startswith(("usr/lib/python3", "kdumpd/bin/")) and entry.is_file:
            assert entries[path] == entry
    assert entries["kdumpd/init"].content == own["init"].content
    assert entries["init"] != own["init"]
    for path in ("etc/kdumpd/capture.json", "etc/kdumpd/modules"):
        assert entries[path] == own[path]
    # What the tool added is in the record like all else, and is looked at on the host by its own path.
    assert {file.path for file in record.files} == entries.keys()
    assert [file for file in record.files if file.source and file.source.path == "/usr/bin/udevadm"]


def test_it_runs_our_script_and_never_looks_for_a_root_file_system(dracut: BuildRequest, initramfs_tools: Path) -> None:
    entries = _entries(dracut.output)
    hooks = {path: entry.content for path, entry in entries.items() if "/hooks/" in path and "kdumpd" in path}
    assert sorted(path.split("/hooks/")[1].split("/")[0] for path in hooks) == ["cmdline", "emergency", "pre-mount"]
    assert entries["etc/cmdline.d/50-kdumpd.conf"].content == b"rd.shell=0 rd.emergency=reboot\n"
    entries = _entries(initramfs_tools)
    assert b"init-premount/kdumpd" in entries["scripts/init-premount/ORDER"].content


def test_no_secret_of_the_host_gets_in(made: Path, built: Built) -> None:
    secrets = [CANARY.encode()]
    secrets += [
        line.encode() for line in Path("/etc/shadow").read_text().splitlines() if line.split(":")[1] not in "*!"
    ]
    secrets.append(Path("/proc/cmdline").read_bytes().strip() or CANARY.encode())
    for folder in (made, built[0].output):
        for path, entry in _entries(folder).items():
            assert not path.startswith(("etc/shadow", "etc/gshadow", "etc/ssh", "root/.", "home"))
            assert not [secret for secret in secrets if secret in entry.content], path


def test_no_large_file_is_in_it_twice(made: Path) -> None:
    entries = _entries(made).values()
    large = [entry for entry in entries if entry.is_file and len(entry.content) >= tools._LARGE]
    twice = {entry.path for entry in large if sum(other.content == entry.content for other in large) > 1}
    # Two names that are both ours: the loader by its path and by its soname.
    assert not [path for path in twice if "/ld-linux" not in path]


def test_two_builds_by_a_tool_are_equal_to_the_byte(dracut: BuildRequest, tmp_path: Path) -> None:
    build(dataclasses.replace(dracut, output=tmp_path / "again"))
    assert (tmp_path / "again/initrd").read_bytes() == (dracut.output / "initrd").read_bytes()


def test_a_change_of_settings_does_not_run_the_tool(
    dracut: BuildRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    shutil.copytree(dracut.output, tmp_path / "image")
    monkeypatch.setattr(tools, "complete", None)
    capture = dataclasses.replace(dracut.capture, final_action=Action.HALT)
    record = build(dataclasses.replace(dracut, output=tmp_path / "image", capture=capture))
    assert record.parts[0] == read_record(dracut.output).parts[0]
    assert b"final_action halt\n" in _entries(tmp_path / "image")["etc/kdumpd/supervisor"].content


def test_words_for_dracut_reach_it_and_are_part_of_what_was_asked(dracut: BuildRequest, tmp_path: Path) -> None:
    wanted = tmp_path / "wanted.txt"
    wanted.write_text("wanted\n")
    request = dataclasses.replace(
        dracut, output=tmp_path / "image", builder_args=("--include", str(wanted), "/etc/wanted.txt")
    )
    assert build(request).base_key != read_record(dracut.output).base_key
    assert _entries(tmp_path / "image")["etc/wanted.txt"].content == b"wanted\n"


def test_a_stray_word_for_dracut_is_an_error_and_overwrites_nothing(dracut: BuildRequest, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("the host's own image")
    old = (dracut.output / "initrd").read_bytes()
    with pytest.raises(BuildError, match="dracut failed with status 1"):
        build(dataclasses.replace(dracut, builder_args=(str(own),)))
    assert own.read_text() == "the host's own image"
    assert (dracut.output / "initrd").read_bytes() == old


@pytest.mark.parametrize("builder", [Builder.DRACUT, Builder.INITRAMFS_TOOLS])
def test_a_tool_that_is_not_installed_is_named_with_the_cure(
    request_for: BuildRequest, monkeypatch: pytest.MonkeyPatch, builder: Builder
) -> None:
    monkeypatch.setattr(tools, "_PATH", "/nowhere")
    with pytest.raises(BuildError, match=f"'builder {builder}', and .* is not installed") as caught:
        build(dataclasses.replace(request_for, builder=builder))
    assert "busybox is the default" in str(caught.value)


def test_a_tool_that_changes_our_files_is_found_out(dracut: BuildRequest) -> None:
    from kdumpd.image.contents import Tree
    from kdumpd.image.cpio import Entry

    given = Entry(path="usr/bin/python3.11", mode=stat.S_IFREG | 0o755, content=b"whole")
    stripped = dataclasses.replace(given, content=b"stripped")
    with pytest.raises(BuildError, match=r"dracut put another file in the place of /usr/bin/python3\.11"):
        tools._joined(Tree(entries={given.path: given}), {given.path: stripped}, "dracut")


def test_a_person_s_dracut_gets_the_same_files(dracut: BuildRequest, tmp_path: Path) -> None:
    """`dracut --add kdumpd` calls `stage`, through the module's own lines."""
    from kdumpd.image import builder

    folder = tmp_path / "staged"
    folder.mkdir()
    builder.stage(dracut, folder)
    entries = _entries(dracut.output)
    staged = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(staged) > 200
    for path in staged:
        name = str(path.relative_to(folder))
        if name != "etc/kdumpd/image.json":
            assert path.read_bytes() == entries[name].content
    assert stat.S_IMODE((folder / "etc/kdumpd/capture.json").stat().st_mode) == 0o600
