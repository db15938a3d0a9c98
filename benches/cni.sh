#!/usr/bin/env bash
#
# Podlane's CNI plugin beside the stock bridge and host-local plugins, in one run: how long do ADD and DEL take?
#
#   benches/cni.sh [--rounds N] [--pods N] [--stock DIR]        (as root)
#
#   --rounds N    rounds over both plugins and both concurrencies, interleaved; default 5
#   --pods N      ADDs and DELs of a round; default 48
#   --stock DIR   where bridge and host-local are; default: fetched from Debian into a directory that is removed again
#
# Each plugin has a node and pods of its own in network namespaces, both families, the same ranges, and its data on the same
# disk. A call is timed from the start of the program to its end, as a runtime waits for it.

set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=${HERE%/*}
TARGET=${CARGO_TARGET_DIR:-$ROOT/target}
ROUNDS=5 PODS=48 STOCK=''
CONCURRENT=(1 16)

fail() {
    printf 'cni.sh: %s\n' "$*" >&2
    exit 1
}

while (($#)); do
    case $1 in
        --rounds | --pods | --stock)
            (($# >= 2)) || fail "$1 needs a word after it"
            case $1 in
                --rounds) ROUNDS=$2 ;;
                --pods) PODS=$2 ;;
                --stock) STOCK=$2 ;;
            esac
            shift
            ;;
        -h | --help)
            sed -n '3,/^$/s/^# \{0,1\}//p' "$0"
            exit 0
            ;;
        *) fail "there is no option '$1'; see $0 --help" ;;
    esac
    shift
done
((EUID == 0)) || fail 'network namespaces need root'
command -v jq >/dev/null || fail 'the table is made by jq: install it'

WORK=$(mktemp -d /var/tmp/podlane-cni-bench.XXXXXX)
NAME=cb$$
cleanup() {
    local namespace
    for namespace in $(ip netns list | awk -v name="$NAME-" 'index($1, name) == 1 { print $1 }'); do
        ip netns del "$namespace"
    done
    rm -rf "$WORK"
}
trap cleanup EXIT

if [[ -z $STOCK ]]; then
    mkdir "$WORK/stock"
    (cd "$WORK/stock" && apt-get download containernetworking-plugins >/dev/null 2>&1 && dpkg -x ./*.deb .) ||
        fail 'containernetworking-plugins cannot be fetched: name a directory with --stock'
    STOCK=$WORK/stock/usr/lib/cni
fi
PLUGIN=$TARGET/release/podlane-cni DRIVER=$TARGET/release/cni-driver
[[ -x $PLUGIN && -x $DRIVER ]] ||
    fail "build first: cargo build --release -p podlane-cni -p podlane-benches --bin podlane-cni --bin cni-driver"

RANGES='[[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:10:244:1::/64"}]]'
cat >"$WORK/podlane.json" <<END
{"cniVersion": "1.0.0", "name": "bench", "type": "podlane-cni", "bridge": "cbr0",
 "ipam": {"ranges": $RANGES, "dataDir": "$WORK/podlane"}}
END
cat >"$WORK/stock.json" <<END
{"cniVersion": "1.0.0", "name": "bench", "type": "bridge", "bridge": "cbr0", "isDefaultGateway": true,
 "ipam": {"type": "host-local", "ranges": $RANGES, "dataDir": "$WORK/host-local"}}
END

for plugin in podlane stock; do
    ip netns add "$NAME-$plugin"
    ip -n "$NAME-$plugin" link set lo up
    pods=()
    for ((pod = 1; pod <= PODS; pod++)); do
        ip netns add "$NAME-$plugin$pod"
        pods+=("$NAME-$plugin$pod")
    done
    printf '%s\n' "${pods[@]}" >"$WORK/$plugin.pods"
done

measure() { # PLUGIN PROGRAM CONCURRENT
    local pods
    mapfile -t pods <"$WORK/$1.pods"
    CNI_PATH=$STOCK nsenter --net="/run/netns/$NAME-$1" "$DRIVER" "$2" "$WORK/$1.json" "$3" "${pods[@]}" |
        jq -c --arg plugin "$1" '. + {plugin: $plugin}' >>"$WORK/times"
}

# One round that does not count: files are read from the disk, the bridge is made.
for ((round = 0; round <= ROUNDS; round++)); do
    for concurrent in "${CONCURRENT[@]}"; do
        measure podlane "$PLUGIN" "$concurrent"
        measure stock "$STOCK/bridge" "$concurrent"
    done
    ((round)) || : >"$WORK/times"
done

# shellcheck disable=SC2016 # the variables are jq's
jq -rs '
    def rank($share): sort | .[([(length * $share | ceil) - 1, 0] | max)];
    def round2: . * 100 | round / 100;
    group_by([.command, .concurrent])[] |
    (map(select(.plugin == "podlane").ms)) as $ours | (map(select(.plugin == "stock").ms)) as $stock |
    .[0] as $first |
    ([0.5, 0.99] | map({share: ., ours: (. as $s | $ours | rank($s)), stock: (. as $s | $stock | rank($s))})) as $rows |
    $rows[] | [$first.command, $first.concurrent, "p\(.share * 100)", (.ours | round2), (.stock | round2),
        (.ours / .stock | round2)] | @tsv
' "$WORK/times" | {
    printf '| call | at once | | podlane-cni, ms | bridge + host-local, ms | ratio |\n|---|---|---|---|---|---|\n'
    while IFS=$'\t' read -r call at_once share ours stock ratio; do
        printf '| %s | %s | %s | %s | %s | %s |\n' "$call" "$at_once" "$share" "$ours" "$stock" "$ratio"
    done
}
printf '\n%s calls of each kind, %s pods, %s CPUs, kernel %s\n' $((ROUNDS * PODS)) "$PODS" "$(nproc)" "$(uname -r)"
