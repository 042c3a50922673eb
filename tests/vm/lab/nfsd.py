# SPDX-License-Identifier: GPL-2.0-or-later
"""An NFS server in a tiny guest of its own: the kernel's nfsd, with real disks behind its exports.

It is linked to the guests that crash by a cable of QEMU (dgram), one of them at a time. A test may stop it (QMP), tell
it to lose an export's files or to serve another version, and look at its disks afterwards.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from . import tiny

ADDRESS = "10.0.3.1"
# Of a guest that crashes: its end of the cable, and what its first system does with it.
CLIENT = "10.0.3.2"
MODULES = ("virtio_net",)
SETUP = f"""
await /sys/class/net/eth0
ip link set eth0 up
ip address add {CLIENT}/24 dev eth0
"""
_TOOLS = ("/usr/sbin/exportfs", "/usr/sbin/rpc.mountd", "/usr/sbin/rpc.nfsd", "/usr/sbin/rpcbind", "/usr/sbin/setquota")
# Who the clients of an export with a quota are on the server: root has none.
_SQUASHED = 1000
_NETCONFIG = """udp tpi_clts v inet udp - -
tcp tpi_cots_ord v inet tcp - -
local tpi_cots_ord - loopback - - -
"""
_NETWORK = f"""
await /sys/class/net/eth0
ip link set lo up
ip link set eth0 up
ip address add {ADDRESS}/24 dev eth0
"""
_SETUP = f"""
mkdir -p /srv /var/lib/nfs/v4recovery /run/rpcbind /run/sendsigs.omit.d
ln -s /run /var/run
echo '{_NETCONFIG}' >/etc/netconfig
echo '127.0.0.1 localhost' >/etc/hosts
printf 'root:x:0:0:::\\n_rpc:x:1:1:::\\n' >/etc/passwd
printf 'sunrpc 111/tcp portmapper\\nsunrpc 111/udp portmapper\\nnfs 2049/tcp\\n' >/etc/services
touch /var/lib/nfs/etab /var/lib/nfs/rmtab
n=0
for share in $shares; do
    export=${{share%:*}} quota=${{share#*:}} options=rw squash=no_root_squash
    mkdir "/srv/$export"
    if [ "$quota" -gt 0 ]; then options=usrquota squash=all_squash,anonuid={_SQUASHED},anongid={_SQUASHED}; fi
    mount -t ext4 -o "$options" "$(disk "disk$n")" "/srv/$export" || fail "no disk for $export"
    if [ "$quota" -gt 0 ]; then
        chown {_SQUASHED}:{_SQUASHED} "/srv/$export"
        setquota -u {_SQUASHED} 0 "$quota" 0 0 "/srv/$export" || fail "setquota: $?"
    fi
    n=$((n + 1))
    echo "/srv/$export *(rw,insecure,$squash,no_subtree_check,sync,fsid=$n)" >>/etc/exports
done
rpcbind || fail "rpcbind: $?"
mount -t nfsd nfsd /proc/fs/nfsd
exportfs -ra || fail "exportfs: $?"
rpc.mountd || fail "rpc.mountd: $?"
rpc.nfsd -G 10 -L 10 2 || fail "rpc.nfsd: $?"
echo Y >/proc/fs/nfsd/v4_end_grace
"""
# What `order` may say.
_ORDERS = """
# Serves version 3 alone.
only_v3() {
    rpc.nfsd 0
    rpc.nfsd -N 4 2
    cat /proc/fs/nfsd/versions
}
all_versions() {
    rpc.nfsd 0
    rpc.nfsd -G 10 -L 10 2
    echo Y >/proc/fs/nfsd/v4_end_grace
}
# Takes away what lies on the export $1: who holds a file there hears ESTALE.
lose() { rm -rf "/srv/$1/"*; }
finish() {
    rpc.nfsd 0
    exportfs -ua
    exportfs -f
    for export in $exports; do umount "/srv/$export" || fail "$export is busy"; done
}
"""


class NfsServer:
    """A server that runs. `words` are for QEMU's command line of the guest at the other end of the cable, `disks` the
    exports' by name; `machine` may be stopped and continued (QMP)."""

    def __init__(self, serving: tiny.Serving, words: tuple[str, ...], disks: Mapping[str, Path]) -> None:
        self._serving = serving
        self.machine = serving.machine
        self.words = words
        self.disks = disks

    def order(self, words: str) -> None:
        """Has the server run one of the functions above, and waits until it has."""
        self._serving.order(words)


@contextlib.contextmanager
def running(
    scratch: Path,
    sizes_mib: Mapping[str, int],
    *,
    quotas_mib: Mapping[str, int] | None = None,
    setup: str = "",
    modules: Sequence[str] = (),
    name: str = "nfsd",
) -> Iterator[NfsServer]:
    """A server with an export, /srv/NAME, for each of `sizes_mib`; its disks are whole at the end of the block. On one
    in `quotas_mib` clients may fill no more than that. `setup` (sh) comes before it serves."""
    quotas = quotas_mib or {}
    disks = {export: scratch / f"{name}-{export}.raw" for export in sizes_mib}
    for export, path in disks.items():
        options = ["-O", "quota", "-E", "quotatype=usrquota"] if export in quotas else []
        tiny.ext4(path, mib=sizes_mib[export], label=export, options=options)
    cable = Path(tempfile.mkdtemp(prefix="kdumpd-net-"))  # short, as paths of sockets have to be
    try:
        exports = f"exports='{' '.join(disks)}'\n"
        exports += f"shares='{' '.join(f'{export}:{quotas.get(export, 0) << 10}' for export in disks)}'\n"
        with tiny.serving(
            _ORDERS,
            scratch,
            disks=[tiny.Disk(path=path) for path in disks.values()],
            setup=exports + _NETWORK + setup + _SETUP,
            tools=_TOOLS,
            modules=["virtio_net", "ext4", "nfsd", *(["quota_v2"] if quotas else []), *modules],
            words=_cable(cable / "server", cable / "client", 1),
            name=name,
        ) as serving:
            yield NfsServer(serving, _cable(cable / "client", cable / "server", 2), disks)
            serving.order("finish")
    finally:
        shutil.rmtree(cable, ignore_errors=True)


def _cable(here: Path, there: Path, number: int) -> tuple[str, ...]:
    sockets = f"local.type=unix,local.path={here},remote.type=unix,remote.path={there}"
    card = f"virtio-net-pci,netdev=cable,id=card-cable,mac=52:54:00:6b:64:{number:02x}"
    return ("-netdev", f"dgram,id=cable,{sockets}", "-device", card)
