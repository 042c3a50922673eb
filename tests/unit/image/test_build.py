# SPDX-License-Identifier: GPL-2.0-or-later
"""Whole builds with this machine's python3, libraries and busybox, for a small kernel."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import re
import stat
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fake_kernel import NEW, FakeKernel

import kdumpd
from kdumpd.config.model import Compression, DumpSettings
from kdumpd.errors import BuildError, BusyError, UnsupportedError
from kdumpd.image import build, check, contents, cpio, parts, pyclosure, read_record
from kdumpd.image import builder as builder_module

if TYPE_CHECKING:
    from kdumpd.image import BuildRequest, ImageRecord

Built = tuple["BuildRequest", "ImageRecord"]


def _entries(folder: Path, record: ImageRecord) -> dict[str, cpio.Entry]:
    return parts.read((folder / "initrd").read_bytes(), record.parts)


def _unpack(request: BuildRequest, record: ImageRecord, folder: Path) -> None:
    for _, entry in sorted(_entries(request.output, record).items()):
        path = folder / entry.path
        if stat.S_ISDIR(entry.mode):
            path.mkdir(exist_ok=True)
        elif stat.S_ISLNK(entry.mode):
            path.symlink_to(entry.content.decode())
        elif entry.is_file:
            path.write_bytes(entry.content)
            path.chmod(entry.mode & 0o777)


def _python_of(image: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs the interpreter of an unpacked image with nothing but what the image holds."""
    libc = next(path for path in image.rglob("libc.so.6"))
    loader = next((image / "usr/lib64").glob("ld-linux*"), None) or next(image.rglob("ld-linux*"))
    command = [str(loader), "--inhibit-cache", "--library-path", str(libc.parent), str(image / "usr/bin/python3")]
    environment = {
        "PYTHONHOME": str(image / "usr"),
        "PYTHONPATH": str(image / "usr/lib/python3/dist-packages"),
        "PYTHONDONTWRITEBYTECODE": "1",
        **variables,
    }
    return subprocess.run(
        [*command, "-S", *arguments], capture_output=True, text=True, cwd=image, env=environment, check=False
    )


def test_the_image_passes_its_check_and_its_record_reads_back(built: Built) -> None:
    request, record = built
    assert check(request.output) == record
    assert read_record(request.output) == record
    assert read_record(request.output / "image.json") == record
    assert record.compression == "zstd"
    assert record.packed_bytes < record.unpacked_bytes < 80_000_000


def test_files_are_private(built: Built) -> None:
    request, _ = built
    assert stat.S_IMODE(request.output.stat().st_mode) == 0o700
    assert sorted(path.name for path in request.output.iterdir()) == ["image.json", "initrd"]
    for path in request.output.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_image_holds_what_the_capture_kernel_is_told(built: Built) -> None:
    request, record = built
    entries = _entries(request.output, record)
    assert entries["etc/kdumpd/capture.json"].content.decode() == request.capture.to_json()
    assert b"\nfinal_action reboot\nfailure_action poweroff\n" in entries["etc/kdumpd/supervisor"].content
    modules = entries["etc/kdumpd/modules"].content.decode().split()
    assert [Path(module).name for module in modules] == ["libcrc32c.ko", "xfs.ko"]
    inside = json.loads(entries["etc/kdumpd/image.json"].content)
    assert inside["image_id"] == record.image_id
    assert stat.S_ISCHR(entries["dev/console"].mode)
    assert entries["init"].mode & 0o111


def test_what_pets_a_watchdog_is_loaded_before_all_else(request_for: BuildRequest) -> None:
    capture = dataclasses.replace(request_for.capture, watchdogs=("xfs",))  # as if it drove one
    record = build(dataclasses.replace(request_for, capture=capture))
    entries = _entries(request_for.output, record)
    drivers = entries["etc/kdumpd/watchdogs"].content.decode().split()
    assert [Path(module).name for module in drivers] == ["libcrc32c.ko", "xfs.ko"]
    assert entries["etc/kdumpd/modules"].content.decode().split()[:2] == drivers
    assert b"\nwatchdog yes\n" in entries["etc/kdumpd/supervisor"].content


def test_only_the_rooms_of_the_capture_kernel_are_inside(built: Built) -> None:
    request, record = built
    prefix = "usr/lib/python3/dist-packages/kdumpd/"
    inside = {path.removeprefix(prefix).split("/")[0] for path in _entries(request.output, record) if prefix in path}
    assert {"config", "vmcore", "dumpfile", "targets", "collector", "errors.pyc"} <= inside
    assert not {"service", "cli", "image", "host", "crashes"} & inside


def test_two_builds_are_equal_to_the_byte(built: Built, tmp_path: Path) -> None:
    request, record = built
    again = build(dataclasses.replace(request, output=tmp_path / "again"))
    assert again.image_id == record.image_id
    assert (tmp_path / "again/initrd").read_bytes() == (request.output / "initrd").read_bytes()
    assert (tmp_path / "again/image.json").read_bytes() == (request.output / "image.json").read_bytes()


def test_another_setting_is_another_image(built: Built, tmp_path: Path) -> None:
    request, record = built
    capture = dataclasses.replace(request.capture, dump=DumpSettings(levels=(1,)))
    assert build(dataclasses.replace(request, capture=capture, output=tmp_path / "o")).image_id != record.image_id


def test_python_starts_from_the_image_alone_and_imports_the_collector(built: Built, tmp_path: Path) -> None:
    """The image's own loader, interpreter and modules; nothing of the host is on any path."""
    _unpack(*built, tmp_path)
    script = (
        "import "
        + ", ".join((*pyclosure.COLLECTOR_MODULES, "numpy", "zstandard", "sys"))
        + (
            "; print(numpy.dtype('<u8').newbyteorder().str, numpy.arange(9).reshape(3, 3).sum(axis=0).tolist());"
            "print(len(zstandard.compress(bytes(4096))));"
            "print(*{getattr(m, '__file__', None) or '' for m in sys.modules.values()}, sep='\\n');"
            "print(*(line.split()[-1] for line in open('/proc/self/maps') if '.so' in line), sep='\\n')"
        )
    )
    done = _python_of(tmp_path, "-c", script)
    assert done.returncode == 0, done.stderr
    dtype, _, *files = done.stdout.splitlines()
    assert dtype == ">u8 [9, 12, 15]"
    outside = [path for path in files if path.startswith("/") and not path.startswith(str(tmp_path))]
    assert outside == []


def test_the_collector_of_the_image_makes_the_same_dump_without_what_is_left_out(built: Built, tmp_path: Path) -> None:
    request, record = built
    paths = [file.path for file in record.files]
    assert not [path for path in paths if "lapack" in path or "gfortran" in path]
    assert [path for path in paths if path.endswith("numpy/linalg.pyc")]
    assert record.notes == ()
    image = tmp_path / "image"
    image.mkdir()
    _unpack(request, record, image)
    core = FakeKernel(NEW).write(tmp_path / "core")
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    command = ["-m", "kdumpd.collector", "-z", "-d", "31", str(core)]
    done = _python_of(image, *command, str(theirs))
    assert done.returncode == 0, done.stderr
    subprocess.run([sys.executable, *command, str(ours)], check=True, cwd=pyclosure.PACKAGE_DIR.parent)
    assert theirs.read_bytes() == ours.read_bytes()


def test_a_numpy_that_needs_what_is_left_out_is_taken_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyclosure, "LEFT_OUT_MODULES", ("numpy.core",))
    closure = pyclosure.find_closure()
    assert closure.left_out == ()
    assert len(closure.notes) == 1
    assert "all of numpy" in closure.notes[0]
    assert [path for path in closure.mapped if "lapack" in path]


def test_what_only_archives_need_is_left_out(built: Built) -> None:
    names = {file.path.rpartition("/")[2].partition(".")[0] for file in built[1].files}
    assert not names & {"bz2", "lzma", "_bz2", "_lzma", "liblzma", "libbz2"}
    assert "shutil" in names


def test_what_encrypts_is_inside_only_on_request() -> None:
    closure = pyclosure.find_closure()
    assert not [path for path in (*closure.sources, *closure.extensions) if "/cryptography/" in path]
    closure = pyclosure.find_closure(requested=("cryptography",))
    assert [path for path in closure.extensions if "/cryptography/" in path]
    assert [path for path in closure.sources if path.endswith("/cryptography/hazmat/primitives/kdf/hkdf.py")]
    with pytest.raises(
        BuildError, match=r"kdump\.conf asks for what needs the Python module nothing_like_it"
    ) as caught:
        pyclosure.find_closure(requested=("nothing_like_it",))
    assert caught.value.hint == "install python3-nothing_like_it"


def test_what_packs_for_zlib_is_inside_only_on_request(request_for: BuildRequest, tmp_path: Path) -> None:
    """And opened there by the names that the host's libraries have."""
    library = re.compile(r"/lib(isal|deflate)\.so\.")
    assert not [path for path in pyclosure.find_closure().mapped if library.search(path)]
    capture = dataclasses.replace(request_for.capture, dump=DumpSettings(compression=Compression.ZLIB))
    request = dataclasses.replace(request_for, capture=capture)
    record = build(request)
    assert {found[1] for file in record.files if (found := library.search(file.path))} == {"isal", "deflate"}
    image = tmp_path / "image"
    image.mkdir()
    _unpack(request, record, image)
    script = (
        "from kdumpd.dumpfile.packing import Packing; from kdumpd.dumpfile.diskdump import Codec\n"
        "for level in (1, 2): print(type(Packing(Codec.ZLIB, level)._compressor).__name__)\n"
        "print(*{line.split()[-1] for line in open('/proc/self/maps') if '.so' in line})"
    )
    done = _python_of(image, "-c", script)
    assert done.returncode == 0, done.stderr
    first, second, mapped = done.stdout.splitlines()
    assert (first, second) == ("IsalCompressor", "NativeCompressor")
    found = {path for path in mapped.split() if library.search(path)}
    assert len(found) == 2
    assert all(path.startswith(str(image)) for path in found)


def test_what_is_opened_by_name_has_the_name_that_it_was_opened_by(tmp_path: Path) -> None:
    """/proc/PID/maps shows where a link led."""
    real = Path("/usr/lib") / sysconfig.get_config_var("MULTIARCH") / "libisal.so.2"
    tree = contents.Tree()
    contents.add_libraries(tree, [], [str(real.resolve())])
    entry = tree.entries[str(real).lstrip("/")]
    assert entry.content == real.read_bytes()
    assert tree.entries[str(real.resolve()).lstrip("/")].content == b"libisal.so.2"


def test_an_image_that_encrypts_does_it_with_its_own_files(request_for: BuildRequest, tmp_path: Path) -> None:
    key = tmp_path / "key.txt"
    subprocess.run(["age-keygen", "-o", key], capture_output=True, check=True)
    public = subprocess.run(["age-keygen", "-y", key], capture_output=True, text=True, check=True).stdout.strip()
    request = dataclasses.replace(request_for, capture=dataclasses.replace(request_for.capture, encrypt_to=(public,)))
    record = build(request)
    image = tmp_path / "image"
    image.mkdir()
    _unpack(request, record, image)
    core = FakeKernel(NEW).write(tmp_path / "core")
    # OpenSSL opens this by its path, if the library wants it; here the image is not at the root.
    modules = next(image.rglob("ossl-modules"), tmp_path)
    words = ["-m", "kdumpd.collector", "--encrypt-to", public, str(core), str(tmp_path / "dump.age")]
    done = _python_of(image, *words, OPENSSL_MODULES=str(modules))
    assert done.returncode == 0, done.stderr
    flat = subprocess.run(["age", "-d", "-i", key, tmp_path / "dump.age"], capture_output=True, check=True).stdout
    assert flat.startswith(b"makedumpfile")


def test_a_kernel_that_cannot_capture_is_refused(request_for: BuildRequest) -> None:
    config = request_for.root / f"boot/config-{request_for.kernel.release}"
    config.write_text(config.read_text().replace("CONFIG_PROC_VMCORE=y", "# CONFIG_PROC_VMCORE is not set"))
    with pytest.raises(UnsupportedError, match="CONFIG_PROC_VMCORE"):
        build(request_for)
    assert not request_for.output.exists()


def test_a_python_module_that_is_missing_is_named() -> None:
    with pytest.raises(BuildError, match=r"Python module nothing_like_it is missing"):
        pyclosure.find_closure(modules=("nothing_like_it",))


def test_imports_made_late_are_inside_too(tmp_path: Path) -> None:
    """Inside a function, and of a name that its package imports on first use."""
    package = tmp_path / "kdumpd"
    for room in ("config", "collector"):
        (package / room).mkdir(parents=True)
        (package / room / "__init__.py").write_text("")
    (package / "__init__.py").write_text("")
    (package / "errors.py").write_text("def later():\n    import xmlrpc.client\n    import no_such_module\n")
    lazy = "from concurrent.futures import ThreadPoolExecutor\n"
    (package / "collector/lazy.py").write_text(f"def later():\n    {lazy}")
    closure = pyclosure.find_closure(package_dir=package, modules=())
    sources = " ".join(closure.sources)
    assert "/xmlrpc/client.py" in sources
    assert "/concurrent/futures/thread.py" in sources
    assert len(closure.own) == 5


def test_an_interpreter_that_does_not_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="/gone/python3"):
        pyclosure.find_closure("/gone/python3")
    broken = tmp_path / "python3"
    broken.write_text("#!/bin/sh\necho 'cannot start: broken' >&2\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(BuildError, match="cannot start: broken"):
        pyclosure.find_closure(str(broken))


def test_a_second_build_of_the_same_folder_is_refused(request_for: BuildRequest) -> None:
    request_for.output.mkdir(parents=True)
    handle = os.open(request_for.output, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(BusyError):
            build(request_for)
    finally:
        os.close(handle)


def test_a_damaged_module_stops_the_build(request_for: BuildRequest) -> None:
    (request_for.kernel.modules / "kernel/fs/xfs/xfs.ko").write_bytes(b"")
    with pytest.raises(BuildError, match=r"xfs\.ko is damaged"):
        build(request_for)
    assert list(request_for.output.iterdir()) == []


# Where a build is killed: in a child process, at the entrance of the function.
_KILLED = """
import os, pickle, sys
from kdumpd.image import builder, install, squash, verify
squash.LEVEL = 1
request = pickle.load(sys.stdin.buffer)
calls = 0
def deadly(*arguments, **options):
    global calls
    calls += 1
    if calls == {nth}:
        os.kill(os.getpid(), 9)
    return real(*arguments, **options)
real = {place}
{place} = deadly
builder.build(request, anew=True)
"""


@pytest.mark.parametrize(
    ("place", "nth"),
    [
        ("builder.gather", 1),
        ("squash.write", 1),
        ("squash.read", 1),
        ("builder.pack.pack", 1),
        ("install.os.fsync", 1),
        ("install.os.fsync", 2),
        ("verify.check_packed", 1),
        ("install.os.rename", 1),
    ],
)
def test_a_build_killed_before_the_end_leaves_the_old_image(
    image: tuple[Path, ImageRecord], built: Built, place: str, nth: int
) -> None:
    folder, record = image
    old = (folder / "initrd").read_bytes()
    _build_killed(built[0], folder, place, nth)
    assert (folder / "initrd").read_bytes() == old
    assert check(folder) == record


def test_a_build_killed_between_the_renames_has_its_image_whole_and_the_next_one_tidies_up(
    image: tuple[Path, ImageRecord], built: Built
) -> None:
    folder, _ = image
    request = _build_killed(built[0], folder, "install.os.rename", 2)
    new = check(folder)
    assert new.capture == request.capture
    assert "image.json.new" in os.listdir(folder)
    assert build(request) == new
    assert sorted(path.name for path in folder.iterdir()) == ["image.json", "initrd"]


def _build_killed(request: BuildRequest, folder: Path, place: str, nth: int) -> BuildRequest:
    import pickle

    capture = dataclasses.replace(request.capture, dump=DumpSettings(levels=(0,)))
    changed = dataclasses.replace(request, output=folder, capture=capture)
    done = subprocess.run(
        [sys.executable, "-c", _KILLED.format(place=place, nth=nth)],
        input=pickle.dumps(changed),
        capture_output=True,
        env={"PYTHONPATH": str(Path(kdumpd.__file__).parents[1]), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == -9, done.stderr.decode()
    return changed


def test_a_full_disk_is_told_and_leaves_the_old_image(
    image: tuple[Path, ImageRecord], built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource

    folder, record = image
    capture = dataclasses.replace(built[0].capture, dump=DumpSettings(levels=(0,)))
    changed = dataclasses.replace(built[0], output=folder, capture=capture)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setattr(builder_module, "_assemble", _limited(builder_module._assemble, limits[1]))
    try:
        with pytest.raises(BuildError, match="cannot be written"):
            build(changed)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert check(folder) == record
    assert sorted(path.name for path in folder.iterdir()) == ["image.json", "initrd"]


def _limited(gather, hard: int):  # type: ignore[no-untyped-def]
    """The real gathering; files may not grow beyond 1 MB afterwards, as on a disk that is full."""
    import resource

    def gather_then_limit(*arguments):  # type: ignore[no-untyped-def]
        tree = gather(*arguments)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
        return tree

    return gather_then_limit
