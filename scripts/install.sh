#!/usr/bin/env bash
#
# Installs Podlane: the program, its manual pages and shell completions, the service, the CNI plugin and, where there is
# none yet, the configuration. It starts nothing.
#
#   scripts/install.sh [--prefix DIR] [--destdir DIR] [--binary FILE] [--no-systemd] [--no-cni | --pod-cidr CIDR...]
#   scripts/install.sh --uninstall [--prefix DIR] [--destdir DIR]
#
#   --prefix      where programs and their files go; default /usr/local
#   --destdir     put in front of every path, to make a package of it
#   --binary      install this program; default target/release/podlane, which is built if there is none
#   --no-systemd  without the service
#   --no-cni      without the CNI plugin, which lies beside the program and goes to /opt/cni/bin
#   --pod-cidr    a network of this node's pods; once for each. The CNI configuration is then installed too, where there is
#                 none yet, and the container runtime takes it up at once: /etc/cni/net.d/10-podlane.conflist
#   --uninstall   remove what was installed, by the list that was kept of it
#
# A configuration that is there is never overwritten: the new example is then laid beside it as podlane.toml.new, if the two
# differ. What was changed since it was installed is not removed. Doing it again is harmless: it renews what is older and
# removes what an earlier version installed and this one does not have.

set -euo pipefail
umask 022

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PREFIX=/usr/local DESTDIR='' BINARY='' SYSTEMD=yes CNI=yes POD_CIDRS=() UNINSTALL=no
CONFIG=/etc/podlane/podlane.toml
# Where runtimes look, wherever the prefix is.
CNI_DIRECTORY=/opt/cni/bin CNI_CONFIG=/etc/cni/net.d/10-podlane.conflist

fail() {
    printf 'install.sh: %s\n' "$*" >&2
    exit 1
}

refuse() {
    printf 'install.sh: %s\n' "$*" >&2
    exit 2
}

while (($#)); do
    case $1 in
        --prefix | --destdir | --binary | --pod-cidr)
            (($# >= 2)) || refuse "$1 needs a word after it; see $0 --help."
            case $1 in
                --prefix) PREFIX=$2 ;;
                --destdir) DESTDIR=$2 ;;
                --binary) BINARY=$2 ;;
                --pod-cidr) POD_CIDRS+=("$2") ;;
            esac
            shift
            ;;
        --no-systemd) SYSTEMD=no ;;
        --no-cni) CNI=no ;;
        --uninstall) UNINSTALL=yes ;;
        -h | --help)
            sed -n '3,/^$/s/^# \{0,1\}//p' "$0"
            exit 0
            ;;
        *) refuse "there is no option '$1'; see $0 --help." ;;
    esac
    shift
done

# The list has one path a line, and paths go into the unit.
for path in "$PREFIX" ${DESTDIR:+"$DESTDIR"}; do
    [[ $path == /* && $path != *[[:space:][:cntrl:]\\%\"\'\&\|]* && /$path/ != */../* ]] ||
        refuse "'$path' must be an absolute path of plain characters, without '..'."
done
PREFIX=${PREFIX%/} DESTDIR=${DESTDIR%/}
[[ $CNI == yes || ${#POD_CIDRS[@]} == 0 ]] || refuse '--pod-cidr is for the CNI plugin, which --no-cni leaves out.'
for cidr in ${POD_CIDRS[@]+"${POD_CIDRS[@]}"}; do
    [[ $cidr =~ ^[0-9a-fA-F.:]+/[0-9]+$ ]] || refuse "'$cidr' is no network; write one such as 10.244.1.0/24."
done
LIST=$PREFIX/share/podlane/install-list

checksum() { sha256sum <"$1" | cut -d' ' -f1; }

# ── what is installed ──────────────────────────────────────────────────────────────────────────────────────────────────

# The new list: "file SUM PATH" and "dir PATH", without DESTDIR. Of the old one, the sums by path, and the directories.
NEW=()
declare -A OLD=() LISTED=()
OLD_DIRS=()

read_list() {
    local kind word path
    [[ -f $DESTDIR$LIST ]] || return 0
    while read -r kind word path; do
        case $kind in
            file) OLD[$path]=$word ;;
            dir) OLD_DIRS+=("$word") ;;
            *) fail "$DESTDIR$LIST is not a list of installed files; remove it by hand if it is not needed." ;;
        esac
        [[ /${path:-$word}/ != */../* && ${path:-$word} == /* ]] || fail "$DESTDIR$LIST names '${path:-$word}', which is no path."
    done <"$DESTDIR$LIST"
}

# Makes a directory and those above it, and remembers which were made.
make_directory() { # PATH
    [[ -d $DESTDIR$1 ]] && return 0
    [[ $1 == */* && -n ${1%/*} ]] && make_directory "${1%/*}"
    # Those of DESTDIR itself are not ours to remove.
    mkdir -p "$DESTDIR$1"
    NEW+=("dir $1")
}

put() { # MODE FROM TO
    local mode=$1 from=$2 to=$3 sum word=installed
    make_directory "${to%/*}"
    sum=$(checksum "$from")
    if [[ -f $DESTDIR$to && ! -L $DESTDIR$to ]] && cmp -s "$from" "$DESTDIR$to"; then
        chmod "$mode" "$DESTDIR$to"
        word=unchanged
    else
        [[ ! -d $DESTDIR$to ]] || fail "$DESTDIR$to is a directory."
        [[ ! -e $DESTDIR$to ]] || word=renewed
        # Beside it and then renamed: a program that runs keeps its file, and nobody sees half of one.
        install -m "$mode" "$from" "$DESTDIR$to.podlane-new"
        mv -f "$DESTDIR$to.podlane-new" "$DESTDIR$to"
    fi
    record "$sum" "$to"
    printf '%-10s %s\n' "$word" "$DESTDIR$to"
}

record() { # SUM PATH
    LISTED[$2]=yes
    NEW+=("file $1 $2")
}

# The first one is installed; later ones stay as they are.
put_config() { # FROM TO
    local example=$1 config=$2
    if [[ ! -e $DESTDIR$config ]]; then
        put 644 "$example" "$config"
        return
    fi
    printf '%-10s %s\n' kept "$DESTDIR$config"
    # Still the one that an earlier run installed: it stays on the list with its own sum.
    [[ -z ${OLD[$config]:-} ]] || record "${OLD[$config]}" "$config"
    if cmp -s "$example" "$DESTDIR$config"; then
        return
    fi
    put 644 "$example" "$config.new"
}

put_cni() { # WORK
    local plugin=${BINARY%/*}/podlane-cni cidrs
    [[ -f $plugin && -x $plugin ]] || fail "there is no $plugin: build it (see docs/cni.md), or say --no-cni."
    put 755 "$plugin" "$CNI_DIRECTORY/podlane-cni"
    put 644 "$ROOT/packaging/10-podlane.conflist" "$PREFIX/share/doc/podlane/10-podlane.conflist"
    if ((${#POD_CIDRS[@]})); then
        printf -v cidrs '"%s", ' "${POD_CIDRS[@]}"
        sed "s|\"podCIDRs\": \[.*\]|\"podCIDRs\": [${cidrs%, }]|" "$ROOT/packaging/10-podlane.conflist" >"$1/conflist"
        put_config "$1/conflist" "$CNI_CONFIG"
    elif [[ -n ${OLD[$CNI_CONFIG]:-} ]]; then
        # Of an earlier run: it stays, and stays ours.
        record "${OLD[$CNI_CONFIG]}" "$CNI_CONFIG"
    fi
}

unit_directory() {
    # Where systemd looks: the two usual prefixes have a directory for units, others do not.
    case $PREFIX in
        /usr | /usr/local) printf '%s/lib/systemd/system\n' "$PREFIX" ;;
        *) printf '/etc/systemd/system\n' ;;
    esac
}

build() {
    [[ -z $BINARY ]] || return 0
    BINARY=${CARGO_TARGET_DIR:-$ROOT/target}/release/podlane
    [[ ! -x $BINARY || ! -x $BINARY-cni ]] || return 0
    command -v cargo >/dev/null || fail "there is no $BINARY or $BINARY-cni, and no cargo to build it: name one with --binary."
    (cd "$ROOT" && cargo build --release -p podlane)
    # Statically: a runtime starts the plugin for every pod, and half of its start would be the loader's.
    (cd "$ROOT" && cargo rustc --release -p podlane-cni --bin podlane-cni -- -C target-feature=+crt-static -C strip=symbols)
}

do_install() {
    local work page unit
    build
    [[ -f $BINARY && -x $BINARY ]] || fail "$BINARY is no program; name another with --binary."
    work=$(mktemp -d)
    # shellcheck disable=SC2064  # the path of now
    trap "rm -rf '$work'" EXIT
    "$BINARY" generate man "$work/man" || fail "$BINARY is not Podlane, or too old to be installed by this script."
    "$BINARY" generate completions bash >"$work/bash"
    "$BINARY" generate completions zsh >"$work/zsh"
    "$BINARY" generate completions fish >"$work/fish"
    read_list

    put 755 "$BINARY" "$PREFIX/bin/podlane"
    for page in "$work"/man/*.8; do
        put 644 "$page" "$PREFIX/share/man/man8/${page##*/}"
    done
    put 644 "$work/bash" "$PREFIX/share/bash-completion/completions/podlane"
    put 644 "$work/zsh" "$PREFIX/share/zsh/site-functions/_podlane"
    put 644 "$work/fish" "$PREFIX/share/fish/vendor_completions.d/podlane.fish"
    put 644 "$ROOT/packaging/podlane.toml" "$PREFIX/share/doc/podlane/podlane.toml"
    put_config "$ROOT/packaging/podlane.toml" "$CONFIG"
    [[ $CNI == no ]] || put_cni "$work"
    if [[ $SYSTEMD == yes ]]; then
        unit=$(unit_directory)
        sed "s|/usr/local/bin/podlane|$PREFIX/bin/podlane|" "$ROOT/packaging/podlane.service" >"$work/podlane.service"
        put 644 "$work/podlane.service" "$unit/podlane.service"
        put 644 "$ROOT/packaging/podlane-large-frames.conf" "$PREFIX/share/doc/podlane/podlane-large-frames.conf"
        put 644 "$ROOT/packaging/podlane-conntrack.conf" "$PREFIX/share/doc/podlane/podlane-conntrack.conf"
    fi
    finish_list
    reload_systemd
    [[ -n $DESTDIR || $SYSTEMD == no ]] || printf '\nNow write bridge and uplinks into %s, look with\n  podlane check\nand start it with\n  systemctl enable --now podlane\n' "$CONFIG"
}

# Removes what the last version had and this one has not, and writes the list.
finish_list() {
    local path directory
    make_directory "${LIST%/*}"
    for path in "${!OLD[@]}"; do
        [[ -n ${LISTED[$path]:-} ]] || remove_file "$path"
    done
    for directory in ${OLD_DIRS[@]+"${OLD_DIRS[@]}"}; do
        [[ ! -d $DESTDIR$directory ]] || NEW+=("dir $directory")
    done
    printf '%s\n' "${NEW[@]}" | sort -u >"$DESTDIR$LIST"
    chmod 644 "$DESTDIR$LIST"
}

# ── and removed ────────────────────────────────────────────────────────────────────────────────────────────────────────

remove_file() { # PATH
    local file=$DESTDIR$1
    if [[ ! -e $file && ! -L $file ]]; then
        printf '%-10s %s\n' gone "$file"
    elif [[ -f $file && ! -L $file && $(checksum "$file") == "${OLD[$1]}" ]]; then
        rm -f "$file"
        printf '%-10s %s\n' removed "$file"
    else
        printf '%-10s %s (changed since it was installed)\n' kept "$file"
    fi
}

# What stopped daemons have left on this node (programs, the host port, pods' sizes) goes before the program that knows of it.
detach() {
    local pins
    [[ -z $DESTDIR && -x $PREFIX/bin/podlane && $EUID -eq 0 ]] || return 0
    for pins in /sys/fs/bpf/podlane/*/ /default/; do
        pins=${pins%/}
        [[ ${pins##*/} != '*' ]] || continue
        "$PREFIX/bin/podlane" detach --instance "${pins##*/}" ||
            fail "what Podlane left on this node is not all removed; see above, and do it again."
    done
}

do_uninstall() {
    local path directory
    [[ -f $DESTDIR$LIST ]] || fail "there is no $DESTDIR$LIST: nothing is installed under this prefix."
    read_list
    if [[ -z $DESTDIR ]] && command -v systemctl >/dev/null &&
        { systemctl -q is-active podlane || systemctl -q is-enabled podlane; } 2>/dev/null; then
        fail "the service runs, or is to be started: end it first with 'systemctl disable --now podlane'."
    fi
    detach
    while IFS= read -r path; do
        [[ -z $path ]] || remove_file "$path"
    done < <(printf '%s\n' "${!OLD[@]}" | sort)
    rm -f "$DESTDIR$LIST"
    # The deepest first; what somebody else uses stays.
    while IFS= read -r directory; do
        [[ -z $directory ]] || rmdir --ignore-fail-on-non-empty "$DESTDIR$directory" 2>/dev/null || true
    done < <(printf '%s\n' ${OLD_DIRS[@]+"${OLD_DIRS[@]}"} | sort -r)
    reload_systemd
}

reload_systemd() {
    [[ -z $DESTDIR && $SYSTEMD == yes && -d /run/systemd/system ]] || return 0
    systemctl daemon-reload || printf 'systemctl daemon-reload failed; run it by hand.\n' >&2
}

if [[ $UNINSTALL == yes ]]; then do_uninstall; else do_install; fi
