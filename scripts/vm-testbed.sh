#!/usr/bin/env bash
#
# Podlane inside a virtual machine of its own: network cards with zero-copy AF_XDP, kernel pktgen, and kernels that this
# machine does not run. Everything is software emulation: it shows that things are right, never how fast they are.
#
#   scripts/vm-testbed.sh [--kernel 7.3|6.18|6.12|6.1] [--short] [CASE…]        the cases of tests/vm/cases, or those named
#   scripts/vm-testbed.sh [--kernel 7.3|6.18|6.12|6.1] --system [FILTER…]       the system suite (tests/system.rs) in the guest: a
#                       selection that stands for every path, or the tests whose names contain one of the filters
#
#   --kernel VERSION  Debian's kernel for the guest: the newest package of that series (default: 7.3)
#   --short           only the cases of the short form, which scripts/test.sh runs
#   --time-limit S    end the machine after so many seconds (default: 230 with --short, else what the cases may take)
#   --slow N          everything may take N times as long, for a machine that is busy with something else (default: 1)
#   --results DIR     where results, logs and captures go (default: TARGET/vm/results-VERSION)
#   --fetch           only fetch the packages
#   --show-console    the guest's console as it comes
#
# Kernel and QEMU are Debian packages, fetched once from the mirror that this machine's apt uses, with a private apt
# configuration, and unpacked into PODLANE_VM_CACHE (default: ~/.cache/podlane-vm); nothing is installed. The guest's root is
# an initramfs of this machine's tools, the podlane binary, and tests/vm.
#
# Exit codes: 0 passed; 1 failed; 2 wrong options; 77 skipped, with the reason: this machine cannot have such a guest.

set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly CACHE=${PODLANE_VM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/podlane-vm}
readonly TARGET=${CARGO_TARGET_DIR:-target}
readonly KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
# Room for what comes back from the guest, MiB; the file is sparse.
readonly RESULTS_MIB=64
readonly MEMORY_MIB=3072

# What the guest's scripts call, from this machine. `scripts/deps.sh test` installs them.
readonly TOOLS=(bash sh ip bridge tc ethtool nsenter unshare flock setpriv ping traceroute nft cat grep sed awk sort head tail
    tr cut wc date sleep seq mkdir rm mv cp ln ls chmod touch timeout env sha256sum stat mktemp basename dirname readlink
    realpath kill ps tee tar gzip taskset sysctl findmnt uname id sync diff cmp od jq rmdir find mkfifo mount umount)

MACHINE='' KERNEL=7.3 SHORT=no SYSTEM=no FETCH=no LIMIT='' SLOW=1 RESULTS='' SHOW=no
NAMES=() FILTERS=()

refuse() {
    printf '%s\n' "$*" >&2
    exit 2
}

fail() {
    printf '%s\n' "$*" >&2
    exit 1
}

skip() { # REASON
    printf 'skipped: the virtual machine (%s)\n' "$*" >&2
    exit 77
}

is_wanted() { # CASE
    ((${#NAMES[@]} == 0)) || [[ " ${NAMES[*]} " == *" $1 "* ]]
}

# What the wanted cases may take by their own word, and the guest's start and end.
seconds_of_cases() {
    local file seconds=30 heading='seconds'
    [[ $SYSTEM == no ]] || heading='seconds with --system'
    for file in tests/vm/cases/*.sh; do
        is_wanted "$(basename "$file" .sh)" || continue
        seconds=$((seconds + $(sed -n "s/^# $heading: //p" "$file")))
    done
    printf '%d' "$seconds"
}

while (($#)); do
    case $1 in
        --kernel | --time-limit | --slow | --results)
            (($# >= 2)) || refuse "$1 needs a word after it; see $0 --help."
            case $1 in
                --kernel) KERNEL=$2 ;;
                --time-limit) LIMIT=$2 ;;
                --slow) SLOW=$2 ;;
                --results) RESULTS=$2 ;;
            esac
            shift
            ;;
        --short) SHORT=yes ;;
        --system) SYSTEM=yes ;;
        --fetch) FETCH=yes ;;
        --show-console) SHOW=yes ;;
        -h | --help)
            sed -n '3,/^$/s/^# \{0,1\}//p' "$0"
            exit 0
            ;;
        -*) refuse "there is no option '$1'; see $0 --help." ;;
        *) NAMES+=("$1") ;;
    esac
    shift
done
[[ $KERNEL =~ ^[0-9]+\.[0-9]+$ ]] || refuse "--kernel takes a series, for example 7.3, not '$KERNEL'."
[[ $SLOW =~ ^[1-9][0-9]?$ ]] || refuse "--slow takes a number from 1 to 99, not '$SLOW'."
if [[ $SYSTEM == yes ]]; then
    [[ $SHORT == no ]] || refuse '--short and --system exclude each other.'
    FILTERS=("${NAMES[@]}") NAMES=(system)
fi
if [[ -z $LIMIT ]]; then
    LIMIT=$(($(if [[ $SHORT == yes ]]; then printf 230; else seconds_of_cases; fi) * SLOW))
fi
[[ $LIMIT =~ ^[1-9][0-9]*$ ]] || refuse "--time-limit takes seconds, not '$LIMIT'."
: "${RESULTS:=$TARGET/vm/results-$KERNEL}"

# ---------------------------------------------------------------------------------------------------------------------
# Packages

# Lists of our own, and the dpkg database of a machine without packages: what this machine has installed, or gets its own
# packages from, plays no part.
private_apt() { # SOURCES ARGUMENT…
    local sources=$1
    shift
    apt-get -q -y --no-install-recommends -o Dir::Etc::sourcelist="$CACHE/apt/$sources" -o Dir::Etc::sourceparts=/dev/null \
        -o Dir::Etc::preferencesparts=/dev/null -o Dir::Etc::preferences=/dev/null -o Dir::State::lists="$CACHE/apt/lists" \
        -o Dir::Cache="$CACHE/apt/cache" -o Dir::State::status="$CACHE/apt/status" -o APT::Sandbox::User="$(id -un)" \
        -o Acquire::Languages=none -o Debug::NoLocking=1 "$@"
}

# Where this machine gets an archive of that name from; nothing where it does not.
archive() { # LABEL
    apt-get indextargets --format '$(LABEL)|$(COMPONENT)|$(REPO_URI)' 'Created-By: Packages' |
        awk -F '|' -v label="$1" '$1 == label && $2 == "main" && $3 !~ /^cdrom:/ && !found++ { print $3 }'
}

write_sources() {
    local debian security line="deb [signed-by=$KEYRING]"
    debian=$(archive Debian)
    security=$(archive Debian-Security)
    [[ -n $debian ]] || skip 'apt knows no mirror of Debian: it is none of its sources, or their lists were never fetched (apt-get update)'
    mkdir -p "$CACHE"/apt/{lists/partial,cache/archives/partial}
    : >"$CACHE/apt/status"
    {
        printf '%s\n' "$line $debian bookworm main" "$line $debian bookworm-backports main"
        [[ -z $security ]] || printf '%s\n' "$line $security bookworm-security main"
    } >"$CACHE/apt/bookworm.list"
    printf '%s\n' "$(<"$CACHE/apt/bookworm.list")" "$line $debian trixie-backports main" >"$CACHE/apt/kernels.list"
}

update_lists() {
    [[ -z ${LISTS_ARE_NEW:-} ]] || return 0
    command -v apt-get >/dev/null || skip 'there is no apt-get to fetch QEMU and kernels with'
    [[ -r $KEYRING ]] || skip "$KEYRING is missing: install debian-archive-keyring"
    write_sources
    private_apt kernels.list update >"$CACHE/apt/log" 2>&1 || skip "no package lists of Debian: $(tail -n 1 "$CACHE/apt/log")"
    LISTS_ARE_NEW=yes
}

unpack_into() { # DIRECTORY DEB…: the directory is there only when it is whole
    local directory=$1 unpacked deb
    shift
    unpacked=$(mktemp -d "$directory.XXXXXX")
    for deb in "$@"; do dpkg-deb -x "$deb" "$unpacked"; done
    chmod 755 "$unpacked"
    mv -T "$unpacked" "$directory"
}

# QEMU with all its libraries, so that it runs on any machine, and busybox.
fetch_host() {
    [[ ! -d $CACHE/host ]] || return 0
    update_lists
    printf 'Fetching QEMU from Debian (40 MB).\n'
    private_apt bookworm.list -t bookworm-backports --download-only install qemu-system-x86 busybox-static xz-utils \
        >"$CACHE/apt/log" 2>&1 || skip "QEMU cannot be fetched: $(tail -n 1 "$CACHE/apt/log")"
    unpack_into "$CACHE/host" "$CACHE"/apt/cache/archives/*.deb
    rm -f "$CACHE"/apt/cache/archives/*.deb
}

# The packages of a kernel series' newest version: one (linux-image), or since 7.1 two.
kernel_packages() {
    local names newest
    names=$(apt-cache -o Dir::Etc::sourcelist="$CACHE/apt/kernels.list" -o Dir::Etc::sourceparts=/dev/null \
        -o Dir::State::lists="$CACHE/apt/lists" -o Dir::Cache="$CACHE/apt/cache" -o Dir::State::status="$CACHE/apt/status" \
        pkgnames linux- | grep -E "^linux-(image|modules)-${KERNEL//./\\.}[.][^ ]*-cloud-amd64$") || return 0
    newest=$(sed -n '/^linux-modules-/p' <<<"$names" | sort -V | tail -n 1)
    if [[ -n $newest ]]; then
        printf '%s\n' "$newest" "${newest/linux-modules/linux-binary}"
    else
        sort -V <<<"$names" | tail -n 1
    fi
}

fetch_kernel() {
    local directory=$CACHE/kernel-$KERNEL downloads packages
    [[ ! -d $directory ]] || return 0
    update_lists
    mapfile -t packages < <(kernel_packages)
    [[ -n ${packages[*]} ]] || skip "Debian has no cloud kernel $KERNEL (bookworm, and trixie-backports, were asked)"
    printf 'Fetching %s from Debian.\n' "${packages[*]}"
    downloads=$(mktemp -d "$CACHE/download.XXXXXX")
    (cd "$downloads" && private_apt kernels.list download "${packages[@]}") >"$CACHE/apt/log" 2>&1 ||
        skip "kernel $KERNEL cannot be fetched: $(tail -n 1 "$CACHE/apt/log")"
    unpack_into "$downloads/root" "$downloads"/*.deb
    lay_out_kernel "$downloads/root" "$downloads/kernel"
    mv -T "$downloads/kernel" "$directory"
    rm -rf "$downloads"
}

# Of a kernel's packages: the image, and the modules that a network node may want, uncompressed for busybox' modprobe.
lay_out_kernel() { # ROOT TO
    local root=$1 to=$2 modules version part
    modules=$(find "$root" -type d -path '*/lib/modules/*' -prune -print -quit)
    version=${modules##*/}
    mkdir -p "$to/lib/modules/$version/kernel/drivers"
    cp "$(find "$root" -name 'vmlinuz*' -type f -print -quit)" "$to/vmlinuz"
    for part in net lib crypto arch drivers/net drivers/virtio drivers/block drivers/ptp drivers/char/hw_random; do
        [[ ! -d $modules/kernel/$part ]] || cp -r "$modules/kernel/$part" "$to/lib/modules/$version/kernel/${part%/*}/"
    done
    find "$to" -name '*.xz' -print0 | xargs -0r xz -d
    # A kernel package brings its lists only when it is installed.
    cp "$root"/lib/modules/"$version"/modules.{builtin,order} "$to/lib/modules/$version/" 2>/dev/null || true
    "$CACHE/host/bin/busybox" depmod -b "$to" "$version"
    printf '%s\n' "$version" >"$to/version"
}

fetch() {
    [[ $(uname -m) == x86_64 ]] || skip "the guest is an x86_64 machine, this one is $(uname -m)"
    mkdir -p "$CACHE"
    exec {LOCK}>"$CACHE/lock"
    flock "$LOCK"
    fetch_host
    fetch_kernel
    exec {LOCK}>&-
}

# ---------------------------------------------------------------------------------------------------------------------
# The guest's root

# A program or library at the same place in the guest as here, with the libraries that it is linked with.
place() { # FILE…
    local file
    for file in "$@"; do
        [[ -e $ROOT$file ]] || install -D -m 755 "$(realpath "$file")" "$ROOT$file"
        { ldd "$file" 2>/dev/null || true; } | grep -oE '/[^ ]+' | sort -u | while read -r library; do
            [[ -e $ROOT$library ]] || install -D -m 755 "$(realpath "$library")" "$ROOT$library"
        done
    done
}

make_root() {
    local tool path
    mkdir -p "$ROOT"/{proc,sys,dev,run,tmp,root,var/tmp,etc,usr/bin,usr/sbin,usr/lib,usr/lib64,podlane/captures}
    # As on the machine: /bin is /usr/bin.
    for tool in bin sbin lib lib64; do ln -s "usr/$tool" "$ROOT/$tool"; done
    ln -s /proc/mounts "$ROOT/etc/mtab"
    printf 'root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534::/:/bin/false\n' >"$ROOT/etc/passwd"
    printf 'root:x:0:\nnogroup:x:65534:\n' >"$ROOT/etc/group"
    printf '127.0.0.1 localhost\n::1 localhost\n' >"$ROOT/etc/hosts"
    install -D "$CACHE/host/bin/busybox" "$ROOT/usr/bin/busybox"
    ln -s /usr/bin/busybox "$ROOT/usr/sbin/modprobe"
    for tool in "${TOOLS[@]}"; do
        path=$(type -P "$tool") || fail "'$tool' is missing: run 'scripts/deps.sh test'."
        place "$path"
    done
    cp -r "$CACHE/kernel-$KERNEL/lib/modules" "$ROOT/usr/lib/"
    cp -r tests/vm/. "$ROOT/podlane/"
    # As if the repository were here, for what is run from its top.
    mkdir -p "$ROOT$PWD"/{benches,tests}
    cp -r scripts "$ROOT$PWD/"
    cp tests/kube-proxy.sh "$ROOT$PWD/tests/"
    cp -r benches/pktgen "$ROOT$PWD/benches/"
    printf '%s\n' "$PWD" >"$ROOT/podlane/repository"
}

# PROGRAM: without what only a debugger reads, which is most of it
place_own() { # FILE TO
    place "$1"
    rm "$ROOT$1"
    install -D -m 755 "$1" "$ROOT$2"
    strip --strip-debug "$ROOT$2"
}

# The suite's program: cargo knows which of the files it is, and makes it if it is not there.
system_program() {
    cargo test -q -p podlane-tests --test system --no-run --message-format json |
        sed -n 's/.*"executable":"\([^"]*\/system-[^"]*\)".*/\1/p' | tail -n 1
}

make_initramfs() {
    local program
    ROOT=$WORK/root
    make_root
    # As in the build directory, so that the suite finds what it calls.
    for program in podlane podlane-probe podlane-cni; do
        place_own "$(realpath "$TARGET/debug/$program")" "/podlane/built/$program"
        ln -s "/podlane/built/$program" "$ROOT/usr/bin/$program"
    done
    [[ -z $SUITE ]] || place_own "$(realpath "$SUITE")" /podlane/built/deps/system
    {
        printf 'export SLOW=%q SHORT=%q SYSTEM=%q FILTERS=%q\nNAMES=(' "$SLOW" "$SHORT" "$SYSTEM" "${FILTERS[*]}"
        ((${#NAMES[@]} == 0)) || printf '%q ' "${NAMES[@]}"
        printf ')\n'
    } >"$ROOT/podlane/wanted"
    ln -s /podlane/init.sh "$ROOT/init"
    (cd "$ROOT" && find . | "$CACHE/host/bin/busybox" cpio -o -H newc 2>/dev/null) >"$WORK/initramfs"
    rm -rf "$ROOT"
}

# ---------------------------------------------------------------------------------------------------------------------
# The machine

# NUMBER NETDEV OPTIONS: a card whose driver has zero-copy
card() {
    printf '%s\n' -device \
        "virtio-net-pci,netdev=$2,mac=52:54:00:00:00:0$1,disable-legacy=on,iommu_platform=on,romfile=$3"
}

# Four cards on two cables: nic0 ~ nic1 and nic2 ~ nic3, in that order on the bus. Where this machine lets us, nic1 has two
# queues, which takes a tap: then the cable is a bridge in a network namespace that lasts as long as QEMU.
machine() {
    local hub
    for hub in 0 1 2 3; do
        if [[ $QUEUES == 2 && $hub -lt 2 ]]; then
            printf '%s\n' -netdev "tap,id=n$hub,ifname=nic$hub,script=no,downscript=no,vhost=off$([[ $hub == 0 ]] || printf ',queues=2')"
            card "$hub" "n$hub" "$([[ $hub == 0 ]] || printf ',mq=on,vectors=6,rss=on')"
        else
            printf '%s\n' -netdev "hubport,id=n$hub,hubid=$((hub / 2))"
            card "$hub" "n$hub" ''
        fi
    done
}

# The QEMU that was fetched, with the libraries that came with it.
qemu_command() {
    local host=$CACHE/host cards
    mapfile -t cards < <(machine)
    QEMU=("$host/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
        --library-path "$host/lib/x86_64-linux-gnu:$host/usr/lib/x86_64-linux-gnu" "$host/usr/bin/qemu-system-x86_64"
        -L "$host/usr/share/qemu" -L "$host/usr/share/seabios" -nodefaults -no-user-config -display none
        -accel tcg,thread=multi -machine q35 -cpu max -smp 2 -m "$MEMORY_MIB" -no-reboot
        -serial "file:$RESULTS/console.log" -kernel "$CACHE/kernel-$KERNEL/vmlinuz" -initrd "$WORK/initramfs"
        -append 'console=ttyS0 quiet panic=-1 random.trust_cpu=on mitigations=off no_timer_check'
        -drive "file=$WORK/results.tar,format=raw,if=virtio" "${cards[@]}")
}

# A cable of two taps: what one end sends, the other receives.
cable() {
    ip link set lo up
    ip tuntap add nic0 mode tap
    ip tuntap add nic1 mode tap multi_queue
    ip link add cable type bridge mcast_snooping 0 ageing_time 0
    for end in nic0 nic1; do
        ip link set "$end" master cable mtu 9000 up
        sysctl -qw "net.ipv6.conf.$end.disable_ipv6=1"
    done
    ip link set cable up
    exec "$@"
}

# How QEMU gets a network namespace of its own with taps, or why it cannot.
find_namespace() {
    NAMESPACE=() QUEUES=1
    export -f cable
    if [[ -w /dev/net/tun ]] && unshare --net bash -c 'cable true' >/dev/null 2>&1; then
        NAMESPACE=(unshare --net bash -c 'cable "$@"' cable) QUEUES=2
    fi
}

run_machine() {
    local start=$SECONDS follower='' code=0
    rm -rf "$RESULTS"
    mkdir -p "$RESULTS"
    truncate -s "${RESULTS_MIB}M" "$WORK/results.tar"
    : >"$RESULTS/console.log"
    find_namespace
    qemu_command
    timeout --kill-after=5 "$LIMIT" "${NAMESPACE[@]}" "${QEMU[@]}" >"$RESULTS/qemu.log" 2>&1 &
    MACHINE=$!
    if [[ $SHOW == yes ]]; then
        tail -n +1 -f --pid="$MACHINE" "$RESULTS/console.log" &
        follower=$!
    fi
    wait "$MACHINE" || code=$?
    [[ -z $follower ]] || wait "$follower" || true
    tar -xf "$WORK/results.tar" -C "$RESULTS" 2>/dev/null || true
    printf 'The machine ran for %d s.\n' $((SECONDS - start))
    [[ $code == 0 ]] || printf 'QEMU ended with %d%s.\n' "$code" "$( ((code != 124)) || printf ' (the time limit of %d s)' "$LIMIT")"
}

show_outcome() {
    if [[ ! -s $RESULTS/summary ]]; then
        printf 'The guest brought no results back. Its console:\n'
        tail -n 60 "$RESULTS/console.log"
        tail -n 5 "$RESULTS/qemu.log"
        return 1
    fi
    cat "$RESULTS/summary"
    if ! grep -q ', 0 failed' "$RESULTS/summary"; then
        printf 'The end of its console; the rest, logs and captures are in %s:\n' "$RESULTS"
        tail -n 40 "$RESULTS/console.log"
        return 1
    fi
}

fetch
[[ $FETCH == no ]] || exit 0
[[ -x $TARGET/debug/podlane && -x $TARGET/debug/podlane-probe && -x $TARGET/debug/podlane-cni ]] ||
    fail "There is no podlane in $TARGET/debug: run 'cargo build --workspace --bins'."
SUITE=''
if is_wanted system; then
    SUITE=$(system_program)
    [[ -x $SUITE ]] || fail 'cargo made no program of the system suite.'
fi
mkdir -p "$TARGET/vm"
RESULTS=$(realpath -m "$RESULTS")
WORK=$(mktemp -d "$TARGET/vm/work.XXXXXX")
WORK=$(realpath "$WORK")
# The machine ends with us, and before its files.
trap '[[ -z $MACHINE ]] || kill "$MACHINE" 2>/dev/null || true; rm -rf "$WORK"' EXIT
trap 'exit 1' INT TERM
make_initramfs
run_machine
show_outcome
