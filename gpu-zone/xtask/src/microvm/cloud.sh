# What comes behind node.sh in `cargo xtask microvm-suite --cloud-hypervisor`: a node with KVM, whose microVMs are Cloud
# Hypervisor's.
failed() {
    for log in /tmp/said /tmp/up /run/gpu-zone/driver-zone/broker.log \
        /run/gpu-zone/driver-zone/machine/*.log; do
        echo "== $log"
        cat "$log"
    done
    # What each of its threads waits for: a guest that says nothing may be one that is not run.
    user cloud-hyperviso
    for thread in /proc/$found/task/*; do
        echo "== $(cat $thread/comm) $(cat $thread/wchan) $(cat $thread/syscall)"
        cat $thread/stack
    done
    over "$*"
}
# Should a process of the node end by a signal or a filter of system calls, the kernel's word on it is shown, too.
echo 7 >/proc/sys/kernel/printk
echo 1 >/proc/sys/kernel/print-fatal-signals
mount -t tmpfs none /var/lib
passed "the node has KVM"

gpu-zone up --config /etc/gpu-zone/agent.toml >/tmp/up 2>&1 &
tries=0
until gpu-zone ps >/dev/null 2>&1; do
    tries=$((tries + 1))
    [ $tries -lt 900 ] || failed "the agent does not answer"
    sleep 0.2
done
passed "the driver zone serves in a machine of Cloud Hypervisor's"
user() {
    seen=
    for process in /proc/[0-9]*; do
        read -r name <$process/comm || continue
        [ "$name" = "$1" ] || continue
        while read -r key user _; do [ "$key" = Uid: ] && seen=$user; done <$process/status
        found=${process#/proc/}
    done 2>/dev/null
}
user cloud-hyperviso
[ "${seen:-0}" -gt 65536 ] || failed "Cloud Hypervisor is user '$seen' of the node"
passed "it is user $seen of the node"
machine=$found
export GPUZONE_KERNELS=/usr/share/kernels
run="gpu-zone run --tenant acme --memory 128Mi --share 50"
tenant="$run -- /opt/gpu-zone/gpuzone-workload"
$tenant matmul >/tmp/said 2>&1 || failed "a program does not compute"
passed "a program computes over a window"
$tenant matmul >/tmp/said 2>&1 || failed "the next one does not compute"
passed "and the next one, over another"
count=0
while [ $count -lt "${sessions:-0}" ]; do
    count=$((count + 1))
    $tenant vector-add >/tmp/said 2>&1 || failed "no program computes in session $count"
    [ -d /proc/$machine ] || failed "the machine ended after session $count"
    [ $((count % 10)) != 0 ] || passed "$count sessions more came and went in one machine"
done

kill -9 $machine
tries=0
until $tenant matmul >/tmp/said 2>&1; do
    tries=$((tries + 1))
    [ $tries -lt 60 ] || failed "no program computes after the machine was killed"
    sleep 1
done
user cloud-hyperviso
[ "$found" != "$machine" ] || failed "it was not killed"
passed "the machine is killed, and in the next one a program computes"

vm="$run --zone-kind microvm --rootfs /guest/root --host-memory 256Mi"
(for n in 1 2 3; do echo "line $n"; done) |
    $vm -- /bin/sh -c 'while read -r line; do echo "got $line"; done; echo wrong >&2; exit 4' \
        >/tmp/out 2>/tmp/said
[ $? = 4 ] || failed "a program in a machine of its own ended otherwise"
grep -q '^got line 3$' /tmp/out || failed "its input did not come, or its output"
grep -q '^wrong$' /tmp/said || failed "its error did not come"
passed "a program runs in a machine of its own: input, output, error and exit code"
$vm -- /opt/gpu-zone/gpuzone-workload matmul >/tmp/said 2>&1 || failed "it does not compute there"
passed "a program computes in one, while the driver zone is one, too"

gpu-zone stop --agent >/tmp/said 2>&1
tries=0
while user cloud-hyperviso && [ -n "$seen" ]; do
    tries=$((tries + 1))
    [ $tries -lt 100 ] || failed "a machine is left"
    sleep 0.2
done
passed "the end leaves no machine"
over ok
