# sh -eu node.sh PLACE TOOLS CNI PLUGIN CONFIGURATION: becomes containerd, in a mount and process namespace of its own. Everything that it
# writes lies in memory under PLACE and goes with the namespace; so do its processes, of which it is the first. The paths that
# are fixed in containerd and ctr (/run/containerd, /etc/cni/net.d, /opt/cni/bin) are laid over the machine's for it alone.
place=$1 tools=$2 cni=$3 plugin=$4 configuration=$5
mount -t tmpfs -o mode=700,size=1g tmpfs "$place"
cd "$place"

mkdir -p run/netns run/podlane run/lock opt etc/cni/net.d root
mount --bind /run/netns run/netns
mount --bind /run/podlane run/podlane
mount --rbind run /run

for path in /opt/*; do
    [ -e "$path" ] && [ "$path" != /opt/cni ] || continue
    if [ -d "$path" ]; then mkdir "opt/${path##*/}"; else : >"opt/${path##*/}"; fi
    mount --rbind "$path" "opt/${path##*/}"
done
mkdir -p opt/cni/bin
cp "$cni"/* "$plugin" opt/cni/bin/
mount --rbind opt /opt

# Of /etc, what programs need that are run here.
for path in alternatives ld.so.cache ld.so.conf ld.so.conf.d passwd group nsswitch.conf protocols services; do
    [ ! -e "/etc/$path" ] || cp -a "/etc/$path" etc/
done
printf '%s\n' "$configuration" >etc/cni/net.d/10-test.conflist
mount --bind etc /etc

cat >containerd.toml <<TOML
version = 2
root = "$place/root"
state = "/run/containerd/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt", "io.containerd.internal.v1.tracing",
    "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.overlayfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
address = "/run/containerd/containerd.sock"
[ttrpc]
address = "/run/containerd/containerd.ttrpc.sock"
TOML
PATH=$tools/usr/bin:$tools/usr/sbin:$PATH
export PATH
exec containerd --config "$place/containerd.toml" --log-level warn
