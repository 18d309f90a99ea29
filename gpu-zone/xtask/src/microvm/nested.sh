# What comes behind node.sh in `cargo xtask microvm-suite --nested`: a node with an IOMMU, whose NVMe controller goes to a
# program in a microVM and comes back.
# until_so WHAT TRIES COMMAND...: until it succeeds, looking every fifth of a second.
until_so() {
    what=$1 left=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        left=$((left - 1))
        [ $left -gt 0 ] || { cat /tmp/up /tmp/said $zone/broker.log $zone/machine/*.log; over "not seen: $what"; }
        sleep 0.2
    done
}
zone=/run/gpu-zone/driver-zone
mount -t sysfs sys /node
device=/sys/bus/pci/devices/$ADDRESS
[ -b /dev/nvme0n1 ] || over "the host's driver does not have the controller"

agent() {
    gpu-zone up --config "/etc/gpu-zone/$1" >>/tmp/up 2>&1 &
    agent=$!
    until_so "the agent's answer" 900 gpu-zone ps
}
agent_ends() {
    kill $agent
    wait $agent
}
on_vfio() { [ -e $device/driver/module/drivers/pci:vfio-pci ] && [ -e /dev/vfio/vfio ]; }
no_lease() { [ -z "$(gpu-zone ps --format json | grep lease-)" ]; }
with_its_driver() { [ -b /dev/nvme0n1 ]; }
# What a device without memory comes to that was reset and looked at. One that could not be opened is another case.
in_quarantine() {
    until_so "the lease's end" 300 no_lease
    gpu-zone gpus >/tmp/said 2>&1
    grep -q -i quarantine /tmp/said || { cat /tmp/said /tmp/up; over "the next one could have it"; }
    grep -q 'does not hold' /tmp/said || { cat /tmp/said /tmp/up; over "it was not looked at"; }
}
agent agent.toml
on_vfio || { cat /tmp/up; over "the agent did not bind it to VFIO"; }
passed "the agent has the controller on VFIO"
run="gpu-zone run --tenant acme --exposure passthrough"
$run -- /bin/sh -c true 2>/tmp/said && over "a sandbox got it"
grep -q 'zone-kind microvm' /tmp/said || { cat /tmp/said; over "a sandbox is refused otherwise"; }
uses='
read -r up _ </proc/uptime
echo "begins after $up s"
until [ -b /dev/nvme0n1 ]; do
    read -r up _ </proc/uptime
    [ ${up%.*} -lt 60 ] || { echo /sys/bus/pci/devices/*/driver /dev/*; exit 9; }
done
read -r word </dev/nvme0n1
echo "inside=$word"'
writes='
echo from-inside >/dev/nvme0n1
[ -e /run/gpu-zone/slot ] && exit 8
exit 4'
in_a_machine="$run --zone-kind microvm --rootfs /guest/root --host-memory 192Mi -- /bin/sh -c"
$in_a_machine "$uses$writes" >/tmp/said 2>&1 &
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
[ "${seen:-0}" -gt 65536 ] || over "QEMU was user '$seen'"
passed "a program had it in a machine of its own"
in_quarantine
passed "it was reset and looked at, and the next one does not get it"
agent_ends

agent given-back.toml
until_so "the host's driver with it" 300 with_its_driver
read -r word </dev/nvme0n1
[ "$word" = from-inside ] || over "the program's write is not on it: $word"
passed "it is back with the host's driver, and the write is on it"
agent_ends

# As on a fresh node, so that it may be had once more: whoever has it is killed in the midst.
rm -rf /var/lib/gpu-zone
agent agent.toml
on_vfio || { cat /tmp/up; over "the agent did not bind it once more"; }
$in_a_machine "$uses
sleep 600" >/tmp/said 2>&1 &
running=$!
until_so "the program with its device" 300 grep -q '^inside=from-inside$' /tmp/said
kill -9 $running
in_quarantine
passed "its holder was killed, and it was waited for, reset and looked at"
agent_ends

# A program through workers in a sandbox, and in a driver zone's machine, which has the controller that was left on VFIO;
# all processors are alike here.
for kind in sandbox machine; do
    rm -rf /var/lib/gpu-zone
    on_vfio || over "the controller is not on VFIO before a $kind"
    agent $kind.toml
    gpu-zone run --tenant acme --memory 64Mi --rootfs host -- /opt/gpu-zone/gpuzone-workload figures --calls 200 \
        --launches 20 --only call_awake --only launches_ns >/tmp/said 2>&1 ||
        { cat /tmp/said /tmp/up; over "a program does not compute through a $kind"; }
    while read -r line; do
        case $line in *call_awake_ns*) passed "a program computed through a $kind: $line" ;; esac
    done </tmp/said
    [ $kind = machine ] || agent_ends
done
gpu-zone stop --agent >/tmp/said 2>&1 || { cat /tmp/said /tmp/up; over "the driver zone does not end"; }
wait $agent
echo $ADDRESS >/sys/bus/pci/drivers/vfio-pci/unbind
echo >$device/driver_override
echo $ADDRESS >/sys/bus/pci/drivers_probe
until_so "the host's driver with what the driver zone had" 300 with_its_driver
read -r word </dev/nvme0n1
[ "$word" = from-driver-zone ] || over "the driver zone's kernel did not write to its device: $word"
passed "the driver zone's kernel drove the device that its machine was given"
over ok
