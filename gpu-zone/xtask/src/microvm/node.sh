#!/bin/sh
# The first process of a node that is a guest: what all such nodes do first, and behind it what one suite does. Its
# last words are read outside.
export PATH=/opt/gpu-zone:/usr/bin:/bin:/usr/sbin:/sbin
if [ "$0" = /init ]; then
    # Where pivot_root(2) works: not on the kernel's first root.
    mount --bind / /newroot
    cd /newroot
    mount --move . /
    exec chroot . /node.sh
fi
cd /
over() {
    echo "node: $*"
    echo o >/proc/sysrq-trigger
    sleep 60
}
passed() {
    read -r up _ </proc/uptime
    echo "node:    $1, after $up s"
}
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm
for folder in /tmp /run /dev/shm; do mount -t tmpfs none $folder; done
mount -t cgroup2 none /sys/fs/cgroup
for module in /modules/*; do insmod "$module" || over "$module is not loaded"; done
[ -c /dev/kvm ] || over "the node has no KVM"
