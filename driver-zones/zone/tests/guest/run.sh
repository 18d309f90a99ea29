#!/usr/bin/env bash
# The sandbox's tests on another kernel: in a QEMU guest, with control groups of version 2 only.
#
#   driver-zones/zone/tests/guest/run.sh VMLINUZ [TEST]...
#
# VMLINUZ is a kernel with its drivers for a serial line and tmpfs built in, as distributions'
# cloud kernels are; TESTs are of driver-zones/zone/tests (default: sandbox sandbox_limits
# sandbox_users). Needs qemu-system-x86_64, a static busybox (BUSYBOX, /bin/busybox) and cpio. Emulates the
# processor unless ACCEL=kvm is set: a /dev/kvm that opens need not work. Nothing in CI needs it.
set -euo pipefail
kernel=$(realpath "${1:?a kernel, like /boot/vmlinuz-6.12.0-cloud-amd64}")
shift
tests=("${@:-}")
[ -n "${tests[0]}" ] || tests=(sandbox sandbox_limits sandbox_users)
cd "$(dirname "$0")/../../../.."
busybox=${BUSYBOX:-/bin/busybox}
target=$PWD/target/guest
triple=$(uname -m)-unknown-linux-gnu
wanted=()
for test in "${tests[@]}"; do wanted+=(--test "$test"); done

# Static, so that the guest needs no libraries.
export RUSTFLAGS='-C target-feature=+crt-static'
built=$(cargo test -p gpuzone-zone "${wanted[@]}" --no-run --message-format=json \
    --target "$triple" --target-dir "$target" |
    grep -o '"executable":"[^"]*"' | cut -d'"' -f4)

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir -p "$root"/{usr/bin,usr/lib,proc,sys,dev,tmp,run,etc,var/tmp,new}
ln -s usr/bin "$root/bin"
ln -s usr/lib "$root/lib"
cp "$busybox" "$root/usr/bin/busybox"
for applet in $("$busybox" --list); do
    [ "$applet" = busybox ] || ln -s busybox "$root/usr/bin/$applet"
done
# At the paths that were compiled in.
for file in $built; do
    mkdir -p "$root$(dirname "$file")"
    cp "$file" "$root$file"
done

cat >"$root/init" <<'INIT'
#!/bin/sh
# No root can be left behind that is the kernel's first one, so the tests run on another.
mount -t tmpfs -o size=2g none /new
for entry in /*; do [ "$entry" = /new ] || cp -a "$entry" /new/; done
exec switch_root /new /start
INIT
cat >"$root/start" <<START
#!/bin/sh
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
mkdir -p /dev/shm
mount -t tmpfs none /dev/shm
mount -t cgroup2 none /sys/fs/cgroup
# As a service with Delegate=yes: in a group below its own, which passes controllers down.
mkdir -p /sys/fs/cgroup/service/agent
for group in "" service/; do
    for controller in cpu memory pids; do
        echo +\$controller >/sys/fs/cgroup/\${group}cgroup.subtree_control
    done
done
echo \$\$ >/sys/fs/cgroup/service/agent/cgroup.procs
ip link set lo up
export RUST_TEST_THREADS=2
uname -sr
echo "controllers: \$(cat /sys/fs/cgroup/service/cgroup.subtree_control)"
for test in $(echo $built); do
    case \$test in */deps/*) \$test --nocapture 2>&1 || failed=1 ;; esac
done
echo "groups left: \$(ls -d /sys/fs/cgroup/service/gpu-zone-* 2>/dev/null | wc -l)"
echo "guest: \${failed:-0} failed"
poweroff -f
START
chmod +x "$root/init" "$root/start"
image=$(mktemp)
trap 'rm -rf "$root" "$image"' EXIT
(cd "$root" && find . | cpio -o -H newc --quiet | gzip -1) >"$image"

accelerator=${ACCEL:-tcg}
said=$(timeout 600 qemu-system-x86_64 -machine q35,accel="$accelerator" -cpu max -smp 2 -m 4096 \
    -nographic -no-reboot -net none -kernel "$kernel" -initrd "$image" \
    -append "console=ttyS0 quiet panic=-1 rdinit=/init" </dev/null | tr -d '\r')
echo "$said"
grep -q '^guest: 0 failed$' <<<"$said"
