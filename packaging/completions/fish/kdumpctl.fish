# SPDX-License-Identifier: GPL-2.0-or-later
# Completion of kdumpctl(8) for fish. tests/unit/packaging compares it with the parser.

function __kdumpctl_crashes
    echo last
    command kdumpctl list --json 2>/dev/null | string match -ra '"name": "[^"]*"' | string split -f 4 '"'
end

function __kdumpctl_kernels
    for folder in /usr/lib/modules/*/
        basename $folder
    end
end

set -l verbs status why-stale watch list info verify decrypt test rehearse load start unload stop reload restart rebuild show-config \
    check-config import-config estimate showmem get-default-crashkernel reset-crashkernel reservation propagate test-target build \
    kernel-hook
set -l none "not __fish_seen_subcommand_from $verbs"

complete -c kdumpctl -f
complete -c kdumpctl -l json -d 'print JSON' -xa 'short pretty off'
complete -c kdumpctl -l root -d 'look at the machine below a folder' -xa '(__fish_complete_directories)'
complete -c kdumpctl -s h -l help -d 'a short help'
complete -c kdumpctl -n $none -l version -d 'the version'

complete -c kdumpctl -n $none -a status -d 'is this machine ready?'
complete -c kdumpctl -n $none -a why-stale -d 'why what is loaded is out of date'
complete -c kdumpctl -n $none -a watch -d 'print each change of the state'
complete -c kdumpctl -n $none -a list -d 'the crashes that were captured'
complete -c kdumpctl -n $none -a info -d 'all about one crash'
complete -c kdumpctl -n $none -a verify -d 'check the files of one crash'
complete -c kdumpctl -n $none -a decrypt -d 'make an encrypted crash readable'
complete -c kdumpctl -n $none -a test -d 'CRASH this machine'
complete -c kdumpctl -n $none -a rehearse -d 'crash a scratch machine instead'
complete -c kdumpctl -n $none -a 'load start' -d 'build if needed, and load'
complete -c kdumpctl -n $none -a 'unload stop' -d 'unload the capture kernel'
complete -c kdumpctl -n $none -a 'reload restart' -d 'read kdump.conf again'
complete -c kdumpctl -n $none -a rebuild -d 'build in any case, and load'
complete -c kdumpctl -n $none -a show-config -d 'the configuration in force'
complete -c kdumpctl -n $none -a check-config -d 'complain about kdump.conf'
complete -c kdumpctl -n $none -a import-config -d 'import the settings of another kdump'
complete -c kdumpctl -n $none -a estimate -d 'how much memory a capture needs'
complete -c kdumpctl -n $none -a showmem -d 'how much memory is reserved'
complete -c kdumpctl -n $none -a get-default-crashkernel -d 'the crashkernel= that fits'
complete -c kdumpctl -n $none -a reset-crashkernel -d 'set the boot loader to it'
complete -c kdumpctl -n $none -a reservation -d 'show or set crashkernel= of the next boot'
complete -c kdumpctl -n $none -a propagate -d 'make the ssh targets ready'
complete -c kdumpctl -n $none -a test-target -d 'try the targets on the network'
complete -c kdumpctl -n $none -a build -d 'all that a board needs, in one folder'
complete -c kdumpctl -n $none -a kernel-hook -d 'tell of a kernel that came or went'

complete -c kdumpctl -n '__fish_seen_subcommand_from info verify decrypt' -a '(__kdumpctl_crashes)'
complete -c kdumpctl -n '__fish_seen_subcommand_from check-config import-config' -F
complete -c kdumpctl -n '__fish_seen_subcommand_from import-config reset-crashkernel set' -l dry-run -d 'change nothing'
complete -c kdumpctl -n '__fish_seen_subcommand_from import-config' -l force -d 'replace an earlier import'
complete -c kdumpctl -n '__fish_seen_subcommand_from decrypt' -F
complete -c kdumpctl -n '__fish_seen_subcommand_from decrypt' -s i -l identity -rF -d 'the private key'
complete -c kdumpctl -n '__fish_seen_subcommand_from decrypt' -s o -l output -d 'where the files go' -xa '(__fish_complete_directories)'
complete -c kdumpctl -n '__fish_seen_subcommand_from rehearse' -l accel -d 'how the machine is run' -xa 'kvm tcg'
complete -c kdumpctl -n '__fish_seen_subcommand_from test' -l force -d 'without a question'
complete -c kdumpctl -n '__fish_seen_subcommand_from reservation; and not __fish_seen_subcommand_from show set' -a 'show set'
complete -c kdumpctl -n '__fish_seen_subcommand_from propagate' -l yes -d 'pin the host key unseen'
complete -c kdumpctl -n '__fish_seen_subcommand_from propagate' -l fingerprint -x -d 'of the host key to pin'
set -l build '__fish_seen_subcommand_from build'
complete -c kdumpctl -n $build -l kernel -rF -d 'the kernel of the board'
complete -c kdumpctl -n $build -l dtb -rF -d 'its device tree'
complete -c kdumpctl -n $build -l out -d 'where to put it all' -xa '(__fish_complete_directories)'
complete -c kdumpctl -n $build -l builder -d 'what the image is made of' -xa busybox
complete -c kdumpctl -n $build -l target -x -d 'where dumps go'
complete -c kdumpctl -n $build -l config -rF -d 'a kdump.conf'
complete -c kdumpctl -n $build -l modules -d 'the modules of the kernel' -xa '(__fish_complete_directories)'
complete -c kdumpctl -n $build -l module -x -d 'a further driver'
complete -c kdumpctl -n $build -l disk -d 'what the disk hangs on' -xa 'usb mmc nvme virtio ata'
complete -c kdumpctl -n $build -l kernel-config -rF -d 'how the kernel was built'
complete -c kdumpctl -n $build -l arch -d 'the architecture' -xa 'arm64 amd64 aarch64 x86_64'
complete -c kdumpctl -n $build -l hostname -x -d 'the name of the board'
complete -c kdumpctl -n '__fish_seen_subcommand_from kernel-hook; and not __fish_seen_subcommand_from add remove' -a 'add remove'
complete -c kdumpctl -n '__fish_seen_subcommand_from add remove' -a '(__kdumpctl_kernels)'
