# SPDX-License-Identifier: GPL-2.0-or-later
"""kdumpctl decrypt: dumps that kdumpd-collect encrypted, whole, cut and damaged, with right and wrong keys."""

from __future__ import annotations

import io
import json
import os
import random
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from age_keys import make_key
from fake_kernel import NEW, PAGE, FakeKernel

from kdumpd.cli.__main__ import main as ctl
from kdumpd.collector.__main__ import main as collect
from kdumpd.crashes.identity import default_identity, read_identities
from kdumpd.dumpfile.diskdump import Status
from kdumpd.dumpfile.reader import DiskdumpReader, verify
from kdumpd.dumpfile.sealed import CHUNK, SEALED_CHUNK
from kdumpd.errors import DeniedError, NotFoundError, UsageError
from kdumpd.vmcore.elfcore import ElfCore

SECRET = b"the secret of this machine: hunter2 "
QUIET = ["--message-level", "0"]


class World:
    """A key, a core in whose memory a secret lies, and its dump: clear and encrypted."""

    def __init__(self, folder: Path) -> None:
        self.key = folder / "key.txt"
        self.public = make_key(self.key)
        kernel = FakeKernel(NEW)
        chance = random.Random(5)
        for pfn in range(3000, 3900):
            kernel.memory[pfn * PAGE : (pfn + 1) * PAGE] = chance.randbytes(PAGE)
        kernel.memory[2900 * PAGE : 2901 * PAGE] = (SECRET * 200)[:PAGE]
        self.core = kernel.write(folder / "core")
        self.clear, self.sealed = folder / "clear", folder / "vmcore.age"
        assert collect(["-d", "1", *QUIET, str(self.core), str(self.clear)]) == 0
        assert collect(["-d", "1", *QUIET, "--encrypt-to", self.public, str(self.core), str(self.sealed)]) == 0


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_dump_comes_out_as_it_would_have_been(world: World, here: Path) -> None:
    assert SECRET in world.clear.read_bytes()
    assert SECRET not in world.sealed.read_bytes()
    assert ctl(["decrypt", str(world.sealed), "-i", str(world.key)]) == 0
    out = here / "vmcore-decrypted"
    assert [path.name for path in out.iterdir()] == ["vmcore"]
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    assert stat.S_IMODE((out / "vmcore").stat().st_mode) == 0o600
    verify(out / "vmcore", sample=None)
    with DiskdumpReader(out / "vmcore") as ours, DiskdumpReader(world.clear) as theirs:
        assert not ours.incomplete
        assert ours.page(2900) == (SECRET * 200)[:PAGE]
        assert ours.pfns().tolist() == theirs.pfns().tolist()
        assert all(ours.page(pfn) == theirs.page(pfn) for pfn in ours.pfns().tolist())


def test_the_tools_of_others_do_the_same(world: World, here: Path) -> None:
    """age and -R; and what age itself encrypted, of the dump as it is."""
    flat = subprocess.run(["age", "-d", "-i", world.key, world.sealed], capture_output=True, check=True).stdout
    done = subprocess.run(
        [sys.executable, "-m", "kdumpd.collector", "-R", str(here / "out")],
        cwd=Path(__file__).resolve().parents[3], input=flat, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    subprocess.run(["age", "-r", world.public, "-o", here / "theirs.age", world.clear], check=True)
    assert ctl(["decrypt", "theirs.age", "-i", str(world.key), "-o", "new"]) == 0
    assert (here / "new/theirs").read_bytes() == world.clear.read_bytes()
    assert ctl(["decrypt", str(world.sealed), "-i", str(world.key), "-o", "new"]) == 0
    assert (here / "new/vmcore").read_bytes() == (here / "out").read_bytes()


def test_elf_and_logs_are_encrypted_too(world: World, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert collect(["-E", "-d", "1", *QUIET, "--encrypt-to", world.public, str(world.core), "elf.age"]) == 0
    assert ctl(["decrypt", "elf.age", "-i", str(world.key), "-o", "out"]) == 0
    with ElfCore(here / "out/elf") as ours, ElfCore(world.core) as theirs:
        assert ours.read(2900 * PAGE, PAGE) == theirs.read(2900 * PAGE, PAGE) == (SECRET * 200)[:PAGE]
    words = ["--encrypt-to", world.public, "--split", str(world.core), "a", "b"]
    assert collect(words) == 2
    assert "'--encrypt-to' is for a dump or a log" in capfd.readouterr().err
    assert collect(["--encrypt-to", "age1oops", str(world.core), "a"]) == 2
    assert "'age1oops' is no public key of age" in capfd.readouterr().err
    assert not (here / "a").exists()


def cut(world: World, size: int, name: str) -> Path:
    path = Path(name)
    path.write_bytes(world.sealed.read_bytes()[:size])
    return path


def test_what_is_left_of_a_cut_dump_opens_and_is_no_success(
    world: World, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """At each border of a chunk, one byte before and one behind."""
    whole = world.sealed.stat().st_size
    raw = world.sealed.read_bytes()
    start = raw.index(b"\n--- ") + 1 + 4 + 43 + 1 + 16
    opened = 0
    borders = range(start, whole, SEALED_CHUNK)
    assert len(borders) > 50
    for number, border in enumerate(borders):
        for shift in (-1, 0, 1) if number % 16 < 2 else (0,):
            folder = here / f"out-{number}-{shift}"
            path = cut(world, border + shift, "cut.age")
            assert ctl(["decrypt", str(path), "-i", str(world.key), "-o", str(folder)]) == 1
            assert "was cut or damaged at its end" in capfd.readouterr().err
            assert not (folder / "cut").exists()
            partial = folder / "cut.incomplete"
            if number < 6:
                continue
            with DiskdumpReader(partial) as dump, DiskdumpReader(world.clear) as theirs:
                assert dump.header.status & Status.INCOMPLETE
                pfns = dump.pfns().tolist()
                found = [pfn for pfn in pfns if dump.page(pfn) is not None]
                assert all(dump.page(pfn) == theirs.page(pfn) for pfn in found[:50])
                opened += bool(found)
            partial.unlink()
    assert opened > 5


def test_damage_in_the_middle_keeps_what_is_before(world: World, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    raw = bytearray(world.sealed.read_bytes())
    raw[30 * SEALED_CHUNK] ^= 1
    (here / "x.age").write_bytes(raw)
    assert ctl(["decrypt", "x.age", "-i", str(world.key), "-o", "out", "--json"]) == 1
    told = capfd.readouterr()
    assert "x.age is damaged at byte" in told.err
    (facts,) = json.loads(told.out)
    assert (facts["whole"], facts["path"]) == (False, "out/x.incomplete")
    # The dump inside begins behind 4096 bytes of the stream's header.
    assert (here / "out/x.incomplete").stat().st_size > 20 * CHUNK


def test_wrong_keys_are_a_sentence_and_make_nothing(
    world: World, here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_key(here / "other.txt")
    assert ctl(["decrypt", str(world.sealed), "-i", "other.txt"]) == 1
    assert "was not encrypted to any of these keys" in capfd.readouterr().err
    # Several files of keys: one of them fits.
    assert ctl(["decrypt", str(world.sealed), "-i", "other.txt", "-i", str(world.key), "-o", "good"]) == 0
    os.chmod("other.txt", 0o640)
    assert ctl(["decrypt", str(world.sealed), "-i", "other.txt"]) == 1
    told = capfd.readouterr().err
    assert "other.txt is a private key that others may read: its mode is 0640\n  chmod 600 other.txt" in told
    monkeypatch.setenv("XDG_CONFIG_HOME", str(here / "none"))
    assert ctl(["decrypt", str(world.sealed)]) == 1
    assert "none/kdumpd/identity.txt cannot be read" in capfd.readouterr().err
    assert ctl(["decrypt", "./nothing.age", "-i", str(world.key)]) == 1
    assert "there is no file or folder ./nothing.age" in capfd.readouterr().err
    assert ctl(["decrypt", str(world.clear), "-i", str(world.key)]) == 1
    assert "is not encrypted" in capfd.readouterr().err
    assert sorted(path.name for path in here.iterdir()) == ["good", "other.txt"]


def test_nothing_is_overwritten_and_nothing_is_open_to_others(
    world: World, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["decrypt", str(world.sealed), "-i", str(world.key), "-o", "out"]
    assert ctl(words) == 0
    before = (here / "out/vmcore").stat()
    assert ctl(words) == 2
    assert "out/vmcore exists" in capfd.readouterr().err
    assert (here / "out/vmcore").stat() == before
    (here / "out/vmcore").unlink()
    (here / "out/vmcore.incomplete").symlink_to(here / "victim")
    assert ctl(words) == 2
    assert not (here / "victim").exists()
    (here / "open").mkdir(mode=0o755)
    assert ctl([*words[:-1], "open"]) == 1
    assert "open is not yours alone" in capfd.readouterr().err
    (here / "link").symlink_to("out")
    assert ctl([*words[:-1], "link"]) == 2
    assert "link is not a folder" in capfd.readouterr().err
    assert list((here / "open").iterdir()) == []


def test_files_of_keys_are_read_as_age_does(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = here / "a", here / "b"
    make_key(first)
    make_key(second)
    both = first.read_text() + "\n# another\n" + second.read_text()
    assert len(read_identities([first, second])) == 2
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(both.encode())))
    assert read_identities([Path("-")]) == read_identities([first, second])
    assert default_identity({"HOME": "/home/ann"}) == Path("/home/ann/.config/kdumpd/identity.txt")
    assert default_identity({"HOME": "/x", "XDG_CONFIG_HOME": "/y"}) == Path("/y/kdumpd/identity.txt")

    bad = here / "bad"
    secret = first.read_text().splitlines()[-1]
    for text, sentence in [
        ("", "holds no private key"),
        ("# only a comment\n", "holds no private key"),
        (f"{secret[:-1]}\n", "bad:1: this is no private key of age: it has 73 characters"),
        (
            f"# x\n{secret[:-1]}{'Q' if secret[-1] != 'Q' else 'P'}\n",
            "bad:2: this is no private key of age: its checksum",
        ),
        ("age-encryption.org/v1\n-> scrypt x 18\n", "is protected by a passphrase"),
        ("x" * 2_000_000, "is too long"),
    ]:
        bad.write_text(text)
        bad.chmod(0o600)
        with pytest.raises(UsageError, match=sentence) as caught:
            read_identities([bad])
        assert secret[20:50] not in str(caught.value)
    with pytest.raises(NotFoundError, match="Is a directory"):
        read_identities([here])
    first.chmod(0o604)
    with pytest.raises(DeniedError, match="mode is 0604"):
        read_identities([first])
