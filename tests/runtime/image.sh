# sh -eu image.sh BUSYBOX PROBE RESOLVER OUT: an image of a static busybox and the traffic tool, as `docker save` writes one, for
# which no registry is asked. RESOLVER is the name server's address in the containers.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
mkdir -p "$root/bin" "$root/etc" "$root/proc" "$root/sys" "$root/dev" "$root/tmp" "$root/www"
cp "$1" "$root/bin/busybox"
for applet in $("$1" --list); do
    [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
done
strip -o "$root/bin/podlane-probe" "$2"
# The libraries of the tool, where its loader looks for them.
ldd "$2" | grep -o '/[^ ]*' | while read -r library; do
    mkdir -p "$root${library%/*}"
    cp -L "$library" "$root$library"
done
echo "nameserver $3" >"$root/etc/resolv.conf"
echo 'root:x:0:0:root:/:/bin/sh' >"$root/etc/passwd"
echo 'from a container' >"$root/www/index.html"
head -c 1000000 /dev/urandom >"$root/www/bulk"
tar -C "$root" -cf "$work/layer.tar" .
layer=$(sha256sum "$work/layer.tar" | cut -d ' ' -f 1)
printf '{"architecture":"%s","os":"linux","config":{"Env":["PATH=/bin"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
    "$(dpkg --print-architecture)" "$layer" >"$work/config.json"
echo '[{"Config":"config.json","RepoTags":["podlane.test/pod:1"],"Layers":["layer.tar"]}]' >"$work/manifest.json"
tar -C "$work" -cf "$4" manifest.json config.json layer.tar
