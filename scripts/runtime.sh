#!/usr/bin/env bash
#
# Fetches what the tests compare Podlane with and run it under: containerd, ctr and runc, the stock CNI plugins, a static
# busybox, all from Debian's packages, and says in which directory they are unpacked. (bin, usr/bin, usr/sbin, usr/lib/cni.)
#
#   scripts/runtime.sh
#
# Nothing is installed: containerd's package would start a container runtime on this machine. What is fetched stays in the build
# directory, so the next call needs no network. Exit code 1, and why on standard error, where that is not possible.

set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly ROOT
readonly TOOLS=${CARGO_TARGET_DIR:-$ROOT/target}/tools
readonly PACKAGES=(containerd runc containernetworking-plugins busybox-static)
# Another list of packages, or another way of unpacking them, is another directory.
readonly PLACE=$TOOLS/runtime-1

fetch() {
    local work=$1 package
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || {
        echo "there is no apt-get to fetch ${PACKAGES[*]} with" >&2
        return 1
    }
    if ! (cd "$work" && apt-get -qq download "${PACKAGES[@]}" 2>why); then
        # On a fresh machine there are no package lists yet.
        [[ $EUID -ne 0 ]] || apt-get -qq update >/dev/null 2>&1 || true
        (cd "$work" && apt-get -qq download "${PACKAGES[@]}" 2>why) || {
            printf "Debian's packages cannot be fetched: %s\n" "$(tail -n 3 "$work/why")" >&2
            return 1
        }
    fi
    mkdir "$work/unpacked"
    for package in "$work"/*.deb; do
        dpkg-deb --fsys-tarfile "$package" | tar -x --exclude './usr/share' --exclude './etc' -C "$work/unpacked"
    done
    for package in usr/bin/containerd usr/bin/ctr usr/sbin/runc usr/lib/cni/bridge usr/lib/cni/host-local bin/busybox; do
        # Newer Debians have no /bin of their own.
        [[ -x $work/unpacked/$package || -x $work/unpacked/usr/$package ]] || {
            printf "Debian's packages have no %s any more\n" "$package" >&2
            return 1
        }
    done
    mkdir -p "$work/unpacked/bin"
    [[ -x $work/unpacked/bin/busybox ]] || ln -s ../usr/bin/busybox "$work/unpacked/bin/busybox"
}

if [[ ! -d $PLACE ]]; then
    mkdir -p "$TOOLS"
    WORK=$(mktemp -d "$TOOLS/fetch.XXXXXX")
    trap 'rm -rf "$WORK"' EXIT
    fetch "$WORK" || exit 1
    # Two calls at once: the second one finds the first one's.
    mv -T "$WORK/unpacked" "$PLACE" 2>/dev/null || [[ -d $PLACE ]]
fi
printf '%s\n' "$PLACE"
