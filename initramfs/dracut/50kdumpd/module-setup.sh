#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
# dracut module: an image that captures a crash and restarts the machine, never the system itself. What goes into it is
# gathered by kdumpd: beforehand ($KDUMPD_STAGED), or now for `dracut --add kdumpd`.

check() {
    return 255 # on request only
}

depends() {
    echo base
}

install() {
    local staged=${KDUMPD_STAGED-}
    if [[ -z $staged ]]; then
        staged=$(mktemp -d --tmpdir="${DRACUT_TMPDIR:-/var/tmp}" kdumpd.XXXXXX) || return 1
        # shellcheck disable=SC2154 # dracut sets kernel, moddir and initdir
        /usr/bin/python3 -I -m kdumpd.image stage --kernel "$kernel" "$staged" || return 1
    fi
    # shellcheck disable=SC2154
    cp -a "$staged/." "$initdir/"
    # shellcheck disable=SC2154
    inst_hook cmdline 99 "$moddir/kdumpd-root.sh"
    inst_hook pre-mount 00 "$moddir/kdumpd-capture.sh"
    # dracut's own errors must not cost the dump, nor end in a shell that nobody sees.
    inst_hook emergency 00 "$moddir/kdumpd-capture.sh"
    mkdir -p "$initdir/etc/cmdline.d"
    echo "rd.shell=0 rd.emergency=reboot" >"$initdir/etc/cmdline.d/50-kdumpd.conf"
    [[ -n ${KDUMPD_STAGED-} ]] || rm -rf "$staged"
}
