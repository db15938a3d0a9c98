#!/usr/bin/busybox sh
# The first and only process of the guest (scripts/vm-testbed.sh): mounts what a system mounts, has the cases run, hands the
# results over as a tar on the first disk, and powers off.

/usr/bin/busybox mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
export PATH=/usr/sbin:/usr/bin HOME=/root LANG=C.UTF-8
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
busybox mkdir -p /dev/pts /dev/shm
busybox mount -t devpts devpts /dev/pts
for directory in /run /dev/shm; do busybox mount -t tmpfs tmpfs $directory; done
busybox mount -t bpf bpf /sys/fs/bpf
busybox mount -t cgroup2 cgroup /sys/fs/cgroup
busybox mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null
busybox ln -s /proc/self/fd /dev/fd
busybox hostname guest
# Drivers first; what the network needs besides, the kernel asks for.
for module in virtio_pci virtio_blk virtio_net veth pktgen; do modprobe $module 2>/dev/null; done
ip link set lo up

mkdir -p /results
bash /podlane/run.sh
dmesg() { busybox dmesg; }
dmesg >/results/dmesg
[ -b /dev/vda ] && tar -cf /dev/vda -C /results .
sync
busybox poweroff -f
