#!/bin/sh
# The first process of the outer guest of `cargo xtask microvm-suite --nested`: a node with an IOMMU, whose
# NVMe controller goes to a program in a microVM and comes back. Its last words are read outside.
export PATH=/opt/gpu-zone:/usr/bin:/bin:/usr/sbin:/sbin
if [ "$0" = /init ]; then
    # Where pivot_root(2) works: not on the kernel's first root.
    mount --bind / /newroot
    cd /newroot
    mount --move . /
    exec chroot . /nested.sh
fi
cd /
over() {
    echo "nested: $*"
    echo o >/proc/sysrq-trigger
    sleep 60
}
passed() {
    read -r up _ </proc/uptime
    echo "nested:    $1, after $up s"
}
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t sysfs sys /node
mount -t devtmpfs dev /dev
mkdir -p /dev/shm
for folder in /tmp /run /dev/shm; do mount -t tmpfs none $folder; done
mount -t cgroup2 none /sys/fs/cgroup
for module in /modules/*; do insmod "$module" || over "$module is not loaded"; done
device=/sys/bus/pci/devices/$ADDRESS
[ -b /dev/nvme0n1 ] || over "the host's driver does not have the controller"
echo "$ADDRESS" >/sys/bus/pci/drivers/nvme/unbind
echo vfio-pci >$device/driver_override
echo "$ADDRESS" >/sys/bus/pci/drivers_probe
[ -e /dev/vfio/vfio ] && [ -e $device/iommu_group ] || over "it is not on VFIO"
passed "the controller is on VFIO"

gpu-zone up --config /etc/gpu-zone/agent.toml >/tmp/up 2>&1 &
tries=0
until gpu-zone ps >/dev/null 2>&1; do
    tries=$((tries + 1))
    [ $tries -lt 600 ] || { cat /tmp/up; over "the agent does not answer"; }
    sleep 0.2
done
passed "the agent answers"
run="gpu-zone run --tenant acme --exposure passthrough"
$run -- /bin/sh -c true 2>/tmp/said && over "a sandbox got it"
grep -q 'zone-kind microvm' /tmp/said || { cat /tmp/said; over "a sandbox is refused otherwise"; }
script='
read -r up _ </proc/uptime
echo "begins after $up s"
until [ -b /dev/nvme0n1 ]; do
    read -r up _ </proc/uptime
    [ ${up%.*} -lt 300 ] || { echo /sys/bus/pci/devices/*/driver /dev/*; exit 9; }
done
read -r word </dev/nvme0n1
echo "inside=$word"
echo from-inside >/dev/nvme0n1
[ -e /run/gpu-zone/slot ] && exit 8
exit 4'
$run --zone-kind microvm --rootfs /guest/root --host-memory 192Mi -- /bin/sh -c "$script" >/tmp/said 2>&1 &
running=$!
# QEMU is nobody on this node, and so is its relay.
seen=
tries=0
while [ -z "$seen" ] && kill -0 $running 2>/dev/null && [ $tries -lt 300 ]; do
    for process in /proc/[0-9]*; do
        read -r name <$process/comm || continue
        [ "$name" = qemu-system-x86 ] || continue
        while read -r key user _; do [ "$key" = Uid: ] && seen=$user; done <$process/status
    done 2>/dev/null
    tries=$((tries + 1))
    sleep 0.2
done
passed "QEMU runs as user ${seen:-nobody}"
wait $running
code=$?
cat /tmp/said
[ $code = 4 ] || { cat /tmp/up; over "the program ended with $code"; }
grep -q '^inside=from-outside$' /tmp/said || over "it read something else"
passed "a program had it in a machine of its own"
[ "${seen:-0}" -gt 65536 ] || over "QEMU was user '$seen'"
tries=0
while [ -n "$(gpu-zone ps --format json | grep lease-)" ]; do
    tries=$((tries + 1))
    [ $tries -lt 100 ] || over "its lease is left"
    sleep 0.2
done
# Nothing shows that it is clear: no reset of it is configured.
gpu-zone gpus >/tmp/said 2>&1
grep -q -i quarantine /tmp/said || { cat /tmp/said; over "the next one could have it"; }
echo "$ADDRESS" >/sys/bus/pci/drivers/vfio-pci/unbind
echo >$device/driver_override
echo "$ADDRESS" >/sys/bus/pci/drivers_probe
tries=0
until [ -b /dev/nvme0n1 ]; do
    tries=$((tries + 1))
    [ $tries -lt 300 ] || over "the host's driver does not take it back"
    sleep 0.1
done
read -r word </dev/nvme0n1
[ "$word" = from-inside ] || over "the program's write is not on it: $word"
passed "and its write is on the device"
over ok
