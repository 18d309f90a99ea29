#!/usr/bin/env bash
# Devices, bound and opened on a real kernel: in a QEMU guest with an IOMMU of its own.
#
#   driver-zones/hw/tests/guest/run.sh [KERNEL]
#
# KERNEL is a folder in which a kernel's package was unpacked (boot/vmlinuz-…, lib/modules/…), of
# the kind that distributions make for clouds: NVMe built in, VFIO as modules. Without it, Debian's
# linux-image-cloud-amd64 is downloaded and unpacked below target/guest. Needs qemu-system-x86_64
# (8 or later, for SR-IOV on igb), cpio, xz and depmod; exits with 77 and says so where one is
# missing. The processor is emulated: a /dev/kvm that opens need not work.
set -euo pipefail
cd "$(dirname "$0")/../../../.."
for tool in qemu-system-x86_64 cpio xz depmod; do
    if ! PATH=$PATH:/sbin:/usr/sbin command -v "$tool" >/dev/null; then
        echo "skipped: there is no $tool" >&2
        exit 77
    fi
done
if ! qemu-system-x86_64 -device help 2>/dev/null | grep -q '"igb"'; then
    echo "skipped: this QEMU has no igb; version 8 or later is needed" >&2
    exit 77
fi
target=$PWD/target/guest
mkdir -p "$target"
kernel=${1:-}
if [ -z "$kernel" ]; then
    kernel=$target/kernel
    if ! ls "$kernel"/boot/vmlinuz-* >/dev/null 2>&1; then
        package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: //p' | head -1)
        if [ -z "$package" ] || ! (cd "$target" && apt-get download "$package" >/dev/null); then
            echo "skipped: the kernel's package cannot be had" >&2
            exit 77
        fi
        dpkg-deb -x "$target/$package"_*.deb "$kernel"
        rm "$target/$package"_*.deb
    fi
fi
image=$(echo "$kernel"/boot/vmlinuz-*)
version=${image##*/vmlinuz-}
modules=$(echo "$kernel"/{usr/,}lib/modules/"$version")
for found in $modules; do [ -d "$found" ] && modules=$found; done

# Static, so that the guest needs no libraries.
triple=$(uname -m)-unknown-linux-gnu
program=$(RUSTFLAGS='-C target-feature=+crt-static' cargo test -p gpuzone-hw --test guest --no-run \
    --message-format=json --target "$triple" --target-dir "$target" |
    grep -o '"executable":"[^"]*"' | cut -d'"' -f4)

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir -p "$root"/{proc,sys,dev,tmp,modules,lib/modules}
cp "$program" "$root/init"
# In the order in which one needs the other; not all kernels have all of them.
number=10
for module in irqbypass vfio vfio_virqfd vfio_iommu_type1 vfio-pci-core vfio-pci mdev mtty; do
    for file in $(find "$modules" -name "$module.ko*"); do
        to=$root/modules/$number-$module.ko
        case $file in *.xz) xz -dc "$file" >"$to" ;; *) cp "$file" "$to" ;; esac
    done
    number=$((number + 1))
done
# A package's list of aliases is made when it is installed.
mkdir -p "$root/depmod/lib/modules"
cp -r "$modules" "$root/depmod/lib/modules/$version"
PATH=$PATH:/sbin:/usr/sbin depmod -b "$root/depmod" "$version"
cp "$root/depmod/lib/modules/$version/modules.alias" "$root/modules.alias"
rm -rf "$root/depmod"
initramfs=$target/vfio-suite.cpio
(cd "$root" && find . | cpio -o -H newc --quiet) >"$initramfs"

# Of a faster port the kernel waits after a reset for a link that QEMU does not bring up again.
port=pcie-root-port,x-speed=5
# edu: registers, DMA and an interrupt. ivshmem: memory that a reset leaves as it is. igb: virtual
# functions. Slot 3: two functions in one IOMMU group, the other one on a driver of the host.
guest() {
    timeout 90 qemu-system-x86_64 -machine q35,accel=tcg -cpu max -m 768 \
        -nodefaults -nographic -no-reboot -serial stdio -kernel "$image" -initrd "$initramfs" \
        -append "console=ttyS0 quiet panic=-1 intel_iommu=on rdinit=/init" \
        -device intel-iommu,intremap=on,caching-mode=on \
        -device edu,addr=0x4 \
        -device "$port,id=p1,chassis=1,slot=1,addr=0x5" -device igb,bus=p1 \
        -object memory-backend-ram,id=m,size=1M,share=on \
        -device "$port,id=p2,chassis=2,slot=2,addr=0x6" -device ivshmem-plain,memdev=m,bus=p2 \
        -device "$port,id=p3,chassis=3,slot=3,addr=0x7" \
        -device edu,bus=p3,addr=0x0.0,multifunction=on \
        -blockdev null-co,node-name=n,size=1048576 \
        -device nvme,serial=gpuzone,drive=n,bus=p3,addr=0x0.1 </dev/null | tr -d '\r'
}
# An emulated machine on a busy host can lose its timer; its kernel says so, and nothing goes on. That
# says nothing of what is tested, so it is begun anew, and in the end said.
for try in 1 2 3; do
    said=$(guest) || true
    if grep -q '^suite: [0-9]* failed$' <<<"$said" || ! grep -q 'rcu.*detected stalls' <<<"$said"; then
        break
    fi
    echo "try $try: the emulated machine lost its timer" >&2
    if [ "$try" = 3 ]; then
        echo "skipped: the emulated machine lost its timer three times" >&2
        exit 77
    fi
done
echo "$said" | sed -n '/suite: /,$p'
grep -q '^suite: 0 failed$' <<<"$said" || { echo "$said" >&2; exit 1; }
