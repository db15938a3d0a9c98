#!/usr/bin/env bash
#
# Installs the Debian packages that Podlane's scripts need and that are missing, and says if Rust is missing or too old.
#
#   scripts/deps.sh [build] [test] [demo]     what for; default: build test
#
# Nothing happens where nothing is missing, so it needs root (and a network) only on a fresh machine.

set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

# PURPOSE  what shows that it is there (a command, or a file)  PACKAGE
readonly NEEDS='
build cc                         gcc
build /usr/include/stdlib.h      libc6-dev
build make                       make
build pkg-config                 pkg-config
build /usr/include/libelf.h      libelf-dev
build /usr/include/zlib.h        zlib1g-dev
build clang                      clang
test  ip                         iproute2
test  bridge                     iproute2
test  nsenter                    util-linux
test  setpriv                    util-linux
test  flock                      util-linux
test  ping                       iputils-ping
test  traceroute                 traceroute
test  ethtool                    ethtool
test  nft                        nftables
test  iptables                   iptables
test  tshark                     tshark
test  clang                      clang
test  strip                      binutils
test  jq                         jq
test  iperf3                     iperf3
test  taskset                    util-linux
test  m4                         m4
test  man                        man-db
test  mandoc                     mandoc
demo  ip                         iproute2
demo  bridge                     iproute2
demo  nsenter                    util-linux
demo  ping                       iputils-ping
demo  ethtool                    ethtool
demo  nft                        nftables
demo  iperf3                     iperf3
demo  jq                         jq
'

fail() {
    printf '%s\n' "$*" >&2
    exit 1
}

is_there() { # COMMAND|FILE
    if [[ $1 == /* ]]; then
        # Headers may lie in a directory of the architecture.
        [[ -e $1 ]] || compgen -G "/usr/include/*/${1##*/}" >/dev/null
    else
        command -v "$1" >/dev/null
    fi
}

missing_packages() { # PURPOSE…
    local purpose sign package
    while read -r purpose sign package; do
        [[ -z $purpose || " $* " != *" $purpose "* ]] || is_there "$sign" || printf '%s\n' "$package"
    done <<<"$NEEDS" | sort -u
}

install_missing() { # PURPOSE…
    local packages
    mapfile -t packages < <(missing_packages "$@")
    ((${#packages[@]})) || return 0
    command -v apt-get >/dev/null || fail "Missing: ${packages[*]} (Debian's names). Install them and run this again."
    [[ $EUID -eq 0 ]] || fail "Missing: run 'sudo apt-get install ${packages[*]}' and then this again."
    printf 'Installing: %s\n' "${packages[*]}"
    DEBIAN_FRONTEND=noninteractive apt-get -q update >/dev/null
    DEBIAN_FRONTEND=noninteractive apt-get -qy install --no-install-recommends "${packages[@]}" >/dev/null ||
        fail "apt-get could not install: ${packages[*]}. Its reason is above."
}

# The version that the workspace asks for; Debian 12 has an older one, and rustup is how to get a newer one there.
check_rust() {
    local needed have
    needed=$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' Cargo.toml)
    have=$(cargo --version 2>/dev/null | cut -d' ' -f2) || true
    if [[ -z $have ]]; then
        fail "Rust is missing: install Rust $needed or newer with rustup (https://rustup.rs), so that 'cargo' is in PATH."
    fi
    if [[ $(printf '%s\n%s\n' "$needed" "$have" | sort -V | head -n 1) != "$needed" ]]; then
        fail "Rust $have is too old: install Rust $needed or newer with rustup (https://rustup.rs)."
    fi
}

for purpose in "$@"; do
    case $purpose in
        build | test | demo) ;;
        *) fail "'$purpose' is none of build, test, demo." ;;
    esac
done
if (($# == 0)); then set -- build test; fi
install_missing "$@"
# It is in a package that would start a service, so it is fetched in its own way.
[[ " $* " != *' test '* ]] || scripts/promtool.sh --version >/dev/null
check_rust
