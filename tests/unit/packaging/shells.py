# SPDX-License-Identifier: GPL-2.0-or-later
"""What bash, zsh and fish offer when TAB is pressed behind a line: each shell with its own completion system."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import time
from pathlib import Path

TOP = Path(__file__).resolve().parents[3]
FOLDER = TOP / "packaging" / "completions"

_BASH = r"""
source /usr/share/bash-completion/bash_completion
source "$1"
while IFS= read -r COMP_LINE; do
    COMP_POINT=${#COMP_LINE}
    read -ra COMP_WORDS <<<"$COMP_LINE"
    [[ $COMP_LINE == *' ' ]] && COMP_WORDS+=('')
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    COMPREPLY=()
    _kdumpctl kdumpctl
    printf '%s\n' "${COMPREPLY[@]}"
    echo ==
done
"""
_FISH = 'source $argv[1]; while read -l line; complete -C "$line" | string split -f 1 \\t; echo ==; end'
# The candidates are printed where they would be offered.
_ZSH = r"""
PS1= PS2= RPS1=; unsetopt zle_bracketed_paste prompt_cr prompt_sp; stty -echo
fpath=(FOLDER $fpath); autoload -Uz compinit; compinit -u -D; bindkey '^I' complete-word
zstyle ':completion:*' verbose no
compadd() {
    if [[ "${@[1,(i)(-|--)]}" == *-(O|A|D)\ * ]]; then builtin compadd "$@"; return; fi
    local -a hits; builtin compadd -A hits "$@"; local hit; for hit in $hits; print -r -- "<HIT:$hit>" >$TTY
}
done-mark() { print -r -- "<DONE>" >$TTY; zle kill-buffer }; zle -N done-mark; bindkey '^T' done-mark
print '<RE''ADY>'
"""


def bash(lines: list[str], path: str) -> list[set[str]]:
    """The candidates for each line."""
    return _piped(["bash", "--norc", "-c", _BASH, "bash", str(FOLDER / "bash/kdumpctl")], lines, path)


def fish(lines: list[str], path: str) -> list[set[str]]:
    """The candidates for each line."""
    return _piped(["fish", "--no-config", "-c", _FISH, str(FOLDER / "fish/kdumpctl.fish")], lines, path)


def _piped(words: list[str], lines: list[str], path: str) -> list[set[str]]:
    environ = {"PATH": f"{path}:/usr/bin:/bin", "HOME": path, "LC_ALL": "C.UTF-8"}
    text = "".join(line + "\n" for line in lines)
    done = subprocess.run(words, input=text, capture_output=True, text=True, check=True, timeout=120, env=environ)
    assert done.stderr == ""
    return [set(part.split()) for part in done.stdout.split("==\n")[:-1]]


def zsh(lines: list[str], path: str) -> list[set[str]]:
    """The candidates for each line, from an interactive shell at a terminal: zsh completes nowhere else."""
    child, terminal = pty.fork()
    if child == 0:
        os.execve("/usr/bin/zsh", ["zsh", "-f", "-i"], {"PATH": f"{path}:/usr/bin:/bin", "HOME": path, "TERM": "dumb"})
    try:
        os.write(terminal, _ZSH.replace("FOLDER", str(FOLDER / "zsh")).encode())
        _until(terminal, "<READY>")
        found = []
        for line in lines:
            os.write(terminal, line.encode() + b"\t\x14")
            text = _until(terminal, "<DONE>")
            found.append({hit.strip().removesuffix("=") for hit in re.findall(r"<HIT:([^>]*)>", text)})
        return found
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(terminal)


def _until(terminal: int, mark: str) -> str:
    text = ""
    deadline = time.monotonic() + 60
    waiting = select.poll()  # select() would fail with descriptors above 1023
    waiting.register(terminal, select.POLLIN)
    while mark not in text:
        assert time.monotonic() < deadline, text
        if waiting.poll(1000):
            text += os.read(terminal, 65536).decode(errors="replace")
    return text
