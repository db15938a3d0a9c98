#!/usr/bin/env bash
#
# Podlane beside its peers, in one run on one rig: two pods of one node, and between them each forwarder in turn.
#
# Every peer gets the same two veth pairs in namespaces made for it, proves with a checked burst that it delivers frames
# unaltered, is measured, and is taken away; then comes the next one, and after the last the next repeat. The generator
# has one core, the forwarder the other. The sink is the same for all: frames are counted and dropped at tc ingress
# inside the receiving pod, so that every forwarder pays for the skb that a real pod would get.
#
# What one peer needs is in three functions: start_NAME, evidence_NAME (which way did the frames really go?) and
# SETTINGS. The raw parts (sources, sink, the bare loop) are C files in compare/, medians and table a Rust program.

# shellcheck disable=SC2317 # start_… and evidence_… are called by name
set -euo pipefail

readonly PROGRAM=${0##*/}
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=${HERE%/*}
readonly HERE ROOT
readonly PEERS_NODES=(nodes-podlane nodes-kernel nodes-podlane-plain nodes-kernel-plain)
readonly PEERS_KNOWN=(podlane podlane-local ovs loop loop-spin podlane-kernel podlane-big peer bridge bridge-plain "${PEERS_NODES[@]}")
readonly PEERS_AF_XDP=(podlane podlane-local ovs loop loop-spin bridge bridge-plain)
readonly PEERS_KERNEL=(podlane-kernel podlane-big peer bridge)

REPEATS=3
SECONDS_MEASURED=3
PEERS=("${PEERS_AF_XDP[@]}")
JSON=''
GENERATOR_CPU=0
FORWARDER_CPU=1
KEEP=no

readonly WARMUP_SECONDS=1
readonly PINGS=2000
readonly PING_INTERVAL=0.0005
readonly TCP_PORT=5201
readonly LOCAL_MTU=65000
readonly BIG_TCP=262144
readonly CLUSTER_CIDR=10.244.0.0/16,fd00:10:244::/48
readonly IP=([1]=10.244.1.2 [2]=10.244.1.3)
readonly MAC=([1]=02:00:00:00:01:01 [2]=02:00:00:00:01:02)
readonly GATEWAY=10.244.1.1/24
# Two nodes with a pod each: by node, the pod's address, the bridge's and the uplink's.
readonly NODES_POD_IP=([1]=10.244.1.2 [2]=10.244.2.2)
readonly NODES_BRIDGE=([1]=10.244.1.1 [2]=10.244.2.1)
readonly NODES_BRIDGE_MAC=([1]=02:00:00:00:01:fe [2]=02:00:00:00:02:fe)
readonly NODES_UPLINK=([1]=192.0.2.1 [2]=192.0.2.2)

usage() {
    cat <<END
$PROGRAM: Podlane, Open vSwitch AF_XDP, a bare AF_XDP loop and the Linux bridge, pod to pod on one node; and Podlane
beside the kernel's routing, pod to pod across two

Usage: $PROGRAM [OPTIONS]                (as root)

  --repeats N          rounds over all peers; the table shows the median and min-max (default: $REPEATS)
  --seconds N          length of a rate or TCP measurement, after $WARMUP_SECONDS s of warm-up (default: $SECONDS_MEASURED)
  --set NAME           af_xdp (default): the path through workers and its peers; kernel: the path in the kernel and its
                       peers; nodes: two nodes with a veth between them as uplink; all
  --only PEER,PEER     of: ${PEERS_KNOWN[*]}
  --json FILE          also write all samples, medians and ratios to FILE ("-": to standard output, instead of the table)
  --generator-cpu N    core of the sources, the TCP sender and ping (default: $GENERATOR_CPU)
  --forwarder-cpu N    core of the forwarder and the TCP receiver (default: $FORWARDER_CPU)
  --keep               keep the work directory with the logs of all peers

Environment:
  PODLANE_BIN          the podlane binary (default: built here with cargo, in release mode)
  PODLANE_ARGS         more options for \`podlane run\`
  OVS_XDP_MODE         options:xdp-mode of Open vSwitch (default: the first that works of
                       native-with-zerocopy, native, generic)
  OVS_CONFIG           more other_config of Open vSwitch, as KEY=VALUE KEY=VALUE
  OVS_OPTIONS          more options of its interfaces, likewise
END
}

say() { printf '%s\n' "$*" >&2; }
die() {
    say "$PROGRAM: $*"
    exit "${CODE:-1}"
}

# ---------------------------------------------------------------------------------------------- command line

# whole_number NAME VALUE LOW HIGH
whole_number() {
    if ! [[ $2 =~ ^[0-9]{1,6}$ ]] || ((10#$2 < $3 || 10#$2 > $4)); then
        CODE=2 die "$1 wants a whole number from $3 to $4, not \"$2\""
    fi
}

parse_options() {
    local peer
    while (($#)); do
        case $1 in
            -h | --help) usage && exit 0 ;;
            --keep) KEEP=yes && shift && continue ;;
            --repeats | --seconds | --set | --only | --json | --generator-cpu | --forwarder-cpu) ;;
            *) CODE=2 die "unknown option \"$1\"; see $PROGRAM --help" ;;
        esac
        (($# > 1)) || CODE=2 die "$1 wants a value"
        case $1 in
            --repeats) whole_number "$1" "$2" 1 100 && REPEATS=$2 ;;
            --seconds) whole_number "$1" "$2" 1 600 && SECONDS_MEASURED=$2 ;;
            --generator-cpu) whole_number "$1" "$2" 0 4095 && GENERATOR_CPU=$2 ;;
            --forwarder-cpu) whole_number "$1" "$2" 0 4095 && FORWARDER_CPU=$2 ;;
            --json) JSON=$2 ;;
            --set)
                case $2 in
                    af_xdp) PEERS=("${PEERS_AF_XDP[@]}") ;;
                    kernel) PEERS=("${PEERS_KERNEL[@]}") ;;
                    nodes) PEERS=("${PEERS_NODES[@]}") ;;
                    all) PEERS=("${PEERS_KNOWN[@]}") ;;
                    *) CODE=2 die "\"$2\" is not a set; there are af_xdp, kernel, nodes and all" ;;
                esac
                ;;
            --only)
                IFS=, read -ra PEERS <<<"$2"
                for peer in "${PEERS[@]}"; do
                    [[ " ${PEERS_KNOWN[*]} " == *" $peer "* ]] ||
                        CODE=2 die "\"$peer\" is not a peer; there are ${PEERS_KNOWN[*]}"
                done
                ((${#PEERS[@]})) || CODE=2 die "--only wants at least one peer"
                ;;
        esac
        shift 2
    done
    local cpu
    for cpu in "$GENERATOR_CPU" "$FORWARDER_CPU"; do
        taskset -c "$cpu" true 2>/dev/null || CODE=2 die "this process may not run on CPU $cpu (nproc: $(nproc))"
    done
    ((GENERATOR_CPU != FORWARDER_CPU)) || CODE=2 die "generator and forwarder need different cores"
}

# ------------------------------------------------------------------------------------- things to have and build

# Installs the Debian packages that are missing. Services of a package are neither started nor left enabled: the
# comparison runs its own processes, and a machine that had no Open vSwitch before shall not have it running after.
install_missing() {
    local wanted=() policy=/usr/sbin/policy-rc.d had_policy=yes
    need() { command -v "$1" >/dev/null || wanted+=("$2"); }
    need cc gcc && need ip iproute2 && need ethtool ethtool && need ping iputils-ping && need iperf3 iperf3
    need awk mawk && need taskset util-linux
    [[ -e /usr/include/linux/if_xdp.h ]] || wanted+=(libc6-dev linux-libc-dev)
    if wants ovs; then need ovs-vswitchd openvswitch-switch; fi
    if wants_podlane; then need jq jq; fi
    ((${#wanted[@]})) || return 0
    command -v apt-get >/dev/null || die "missing: ${wanted[*]} (Debian package names), and there is no apt-get"
    say "installing ${wanted[*]}"
    if [[ ! -e $policy ]]; then
        had_policy=no
        printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod +x "$policy"
    fi
    local log=$WORK/apt.log failed=no
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${wanted[@]}"; } \
        >"$log" 2>&1 || failed=yes
    [[ $had_policy == yes ]] || rm -f "$policy"
    if [[ " ${wanted[*]} " == *" openvswitch-switch "* ]]; then
        update-rc.d openvswitch-switch disable >>"$log" 2>&1 || true
        if command -v systemctl >/dev/null; then systemctl disable openvswitch-switch.service >>"$log" 2>&1 || true; fi
    fi
    # Without Open vSwitch the others can still be compared; start_ovs then says why it is missing.
    [[ $failed == no ]] || say "some packages could not be installed: $(grep -m1 '^E:' "$log" || tail -n1 "$log")"
}

wants() { [[ " ${PEERS[*]} " == *" $1 "* ]]; }
wants_podlane() { [[ " ${PEERS[*]}" == *podlane* ]]; }

build() {
    local name
    for name in source sink bare_loop peer rr; do
        cc -O2 -Wall -Wextra -Werror -o "$WORK/$name" "$HERE/compare/$name.c" || die "cannot compile compare/$name.c"
    done
    local wanted=(-p podlane-benches --bin compare-report)
    if wants_podlane && [[ -z ${PODLANE_BIN:-} ]]; then wanted+=(-p podlane --bin podlane); fi
    (cd "$ROOT" && cargo build --release --quiet "${wanted[@]}") || die "cargo could not build what the comparison needs"
    local target
    target=$(cd "$ROOT" && cargo metadata --no-deps --format-version 1 | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
    REPORT=$target/release/compare-report
    PODLANE_BIN=${PODLANE_BIN:-$target/release/podlane}
}

# --------------------------------------------------------------------------------------- namespaces and processes

readonly PREFIX=plcmp$$
readonly NODE=$PREFIX-node
readonly NODES=([1]=$NODE [2]=$PREFIX-node2)
readonly POD=([1]=$PREFIX-pod1 [2]=$PREFIX-pod2)
WORK=''
RUNNING=()   # process ids that this script started and has not yet ended
AUTOGROUP_NICE='' # what the session's group had before
FORWARDER=''      # process id of the forwarder, where it is a process

in_ns() { ip netns exec "$@"; }

# launch LOG COMMAND…: starts a process in the background that `end_all` will end; its id is in $LAUNCHED.
launch() {
    local log=$1
    shift
    : >"$log" # here, not in the child: nobody may take the words of an earlier process for this one's
    "$@" >>"$log" 2>&1 </dev/null &
    LAUNCHED=$!
    RUNNING+=("$LAUNCHED")
}

# finish PID: waits for a launched process to end by itself; its exit code is the answer.
finish() {
    local code=0 pid left=()
    wait "$1" || code=$?
    for pid in "${RUNNING[@]}"; do [[ $pid == "$1" ]] || left+=("$pid"); done
    RUNNING=("${left[@]}")
    return $code
}

# Ends the processes in the reverse order of their start, each with ten seconds to go by itself.
end_all() {
    local i pid tries
    for ((i = ${#RUNNING[@]} - 1; i >= 0; i--)); do
        pid=${RUNNING[i]}
        kill -TERM "$pid" 2>/dev/null || true
        for ((tries = 0; tries < 100; tries++)); do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.1
        done
        kill -KILL "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    RUNNING=()
    FORWARDER=''
}

# wait_for SECONDS COMMAND…: until the command succeeds.
wait_for() {
    local tries=$(($1 * 20))
    shift
    for (( ; tries > 0; tries--)); do
        if "$@" >/dev/null 2>&1; then return 0; fi
        sleep 0.05
    done
    return 1
}

# The same two pods for every peer; only what connects their host ends differs.
net_up() {
    local n
    for n in "$NODE" "${POD[@]}"; do
        ip netns add "$n" && ip -n "$n" link set lo up || return 1
    done
    for n in 1 2; do
        ip link add eth0 netns "${POD[n]}" address "${MAC[n]}" mtu 1500 type veth \
            peer name "veth-pod$n" mtu 1500 netns "$NODE" || return 1
        ip -n "${POD[n]}" addr add "${IP[n]}/24" dev eth0 && ip -n "${POD[n]}" link set eth0 up || return 1
        ip -n "$NODE" link set "veth-pod$n" up || return 1
    done
}

# Two nodes, each with a bridge and one pod, an uplink between them, and routes to each other's pods by it.
nodes_up() {
    local n other
    for n in "${NODES[@]}" "${POD[@]}"; do
        ip netns add "$n" && ip -n "$n" link set lo up || return 1
    done
    ip link add up0 netns "${NODES[1]}" type veth peer name up0 netns "${NODES[2]}" || return 1
    for n in 1 2; do
        other=$((3 - n))
        in_ns "${NODES[n]}" sysctl -qw net.ipv4.ip_forward=1 || return 1
        ip -n "${NODES[n]}" link add cbr0 address "${NODES_BRIDGE_MAC[n]}" type bridge &&
            ip -n "${NODES[n]}" addr add "${NODES_BRIDGE[n]}/24" dev cbr0 && ip -n "${NODES[n]}" link set cbr0 up || return 1
        ip link add eth0 netns "${POD[n]}" address "${MAC[n]}" type veth peer name "veth-pod$n" netns "${NODES[n]}" || return 1
        ip -n "${NODES[n]}" link set "veth-pod$n" master cbr0 up || return 1
        ip -n "${POD[n]}" addr add "${NODES_POD_IP[n]}/24" dev eth0 && ip -n "${POD[n]}" link set eth0 up &&
            ip -n "${POD[n]}" route add default via "${NODES_BRIDGE[n]}" || return 1
        ip -n "${NODES[n]}" addr add "${NODES_UPLINK[n]}/24" dev up0 && ip -n "${NODES[n]}" link set up0 up || return 1
        ip -n "${NODES[n]}" route add "${NODES_POD_IP[other]%.*}.0/24" via "${NODES_UPLINK[other]}" dev up0 || return 1
        [[ $PEER != *-plain ]] || in_ns "${NODES[n]}" ethtool -K up0 tso off gso off >/dev/null || return 1
    done
    wait_for 5 nodes_reach || { WHY='the pods do not reach each other' && return 1; }
}

nodes_reach() { in_ns "${POD[1]}" ping -q -c1 -W1 "${NODES_POD_IP[2]}"; }

net_down() {
    local n
    for n in "${POD[@]}" "${NODES[@]}"; do
        [[ ! -e /run/netns/$n ]] || ip netns del "$n" || true
    done
    # The next daemon counts from 0.
    rm -f "/run/podlane/$PREFIX.counters" "/run/podlane/$PREFIX"-*.counters
}

# The pods' own offloads: `off` takes away what a container runtime would leave on.
pod_offloads_off() { # FEATURE…
    local n feature
    for n in 1 2; do
        for feature; do in_ns "${POD[n]}" ethtool -K eth0 "$feature" off >/dev/null || return 1; done
    done
}

bridge_up() {
    ip -n "$NODE" link add cbr0 type bridge && ip -n "$NODE" addr add "$GATEWAY" dev cbr0 || return 1
    ip -n "$NODE" link set cbr0 up || return 1
    local n
    for n in 1 2; do ip -n "$NODE" link set "veth-pod$n" master cbr0 || return 1; done
    wait_for 5 bridge_forwards
}

bridge_forwards() { [[ $(ip netns exec "$NODE" bridge link | grep -c 'state forwarding') == 2 ]]; }

# All measured processes share this script's priority: a passing cron job shall not take a core from one of them. Where
# the scheduler groups processes by session (sched_autogroup), it is the group's priority that counts.
raise_priority() {
    renice -n -10 -p $$ >/dev/null 2>&1 || true
    AUTOGROUP_NICE=$(sed -n 's/.* nice //p' /proc/self/autogroup 2>/dev/null) || true
    [[ -z $AUTOGROUP_NICE ]] || echo -10 2>/dev/null >/proc/self/autogroup || true
}

cleanup() {
    trap - EXIT INT TERM HUP
    end_all
    [[ -z $AUTOGROUP_NICE ]] || echo "$AUTOGROUP_NICE" 2>/dev/null >/proc/self/autogroup || true
    net_down
    if [[ -n $WORK ]]; then
        if [[ $KEEP == yes ]]; then say "logs are in $WORK"; else rm -rf "$WORK"; fi
    fi
}

# --------------------------------------------------------------------------------------------------- the peers
# start_NAME brings the peer up between veth-pod1 and veth-pod2, or sets WHY and fails.
# evidence_NAME fails with WHY when the frames that were just delivered ($1 of them) did not take the peer's own path.

declare -A TITLE=(
    [podlane]='Podlane, af_xdp' [podlane-local]='Podlane, af_xdp, local_mtu' [ovs]='Open vSwitch, type=afxdp' [loop]='bare AF_XDP loop, poll'
    [loop-spin]='bare AF_XDP loop, spin' [podlane-kernel]='Podlane, kernel' [podlane-big]='Podlane, kernel, big_tcp' [peer]='bare redirect_peer' [bridge]='Linux bridge' [bridge-plain]="Linux bridge, pods' offloads off"
    [nodes-podlane]='two nodes: Podlane, kernel' [nodes-kernel]='two nodes: kernel routing'
    [nodes-podlane-plain]='two nodes, plain uplink: Podlane, kernel' [nodes-kernel-plain]='two nodes, plain uplink: kernel routing'
)
declare -A SETTINGS=()
WHY=''

start_podlane() {
    podlane_up af_xdp || return 1
    SETTINGS[podlane]="$VERSION; native XDP, copy mode, 1 worker; pods' checksum offload on${PODLANE_ARGS:+; $PODLANE_ARGS}"
}

start_podlane-local() {
    podlane_up af_xdp --local-mtu $LOCAL_MTU || return 1
    wait_for 5 pods_have_local_mtu || { WHY="the pods' interfaces did not get the MTU $LOCAL_MTU" && return 1; }
    SETTINGS[podlane-local]="as Podlane, af_xdp, and local_mtu = $LOCAL_MTU${PODLANE_ARGS:+; $PODLANE_ARGS}"
}

pods_have_local_mtu() {
    local n
    for n in 1 2; do [[ $(in_ns "${POD[n]}" cat /sys/class/net/eth0/mtu) == "$LOCAL_MTU" ]] || return 1; done
}

start_podlane-kernel() {
    podlane_up kernel || return 1
    # It forwards in the kernel, on the time of whoever sends; the daemon has no part in it.
    FORWARDER=''
    SETTINGS[podlane-kernel]="$VERSION; tcx; all offloads as the kernel sets them; gro on at veth-pod1 for xdp frames only${PODLANE_ARGS:+; $PODLANE_ARGS}"
}

podlane_up() { # PATH [OPTION…]
    [[ -x $PODLANE_BIN ]] || { WHY="there is no program $PODLANE_BIN" && return 1; }
    VERSION=$("$PODLANE_BIN" --version 2>&1 | head -n1) || true
    bridge_up || { WHY='the bridge did not come up' && return 1; }
    echo 'uplinks = []' >"$WORK/podlane.toml"
    # shellcheck disable=SC2086 # PODLANE_ARGS is a list of words
    launch "$WORK/podlane.log" ip netns exec "$NODE" "$PODLANE_BIN" run --config "$WORK/podlane.toml" --bridge cbr0 --cluster-cidr "$CLUSTER_CIDR" \
        --path "$@" --instance "$PREFIX" --workers 1 --cpus "$FORWARDER_CPU" ${PODLANE_ARGS:-}
    FORWARDER=$LAUNCHED
    wait_for 20 podlane_is_ready_or_gone
    grep -q 'podlane is ready' "$WORK/podlane.log" || {
        WHY="podlane run did not get ready: $(tail -n1 "$WORK/podlane.log")" && return 1
    }
}

podlane_is_ready_or_gone() {
    grep -q 'podlane is ready' "$WORK/podlane.log" || ! kill -0 "$FORWARDER" 2>/dev/null
}

start_nodes-podlane() {
    [[ -x $PODLANE_BIN ]] || { WHY="there is no program $PODLANE_BIN" && return 1; }
    local n
    for n in 1 2; do
        # shellcheck disable=SC2086 # PODLANE_ARGS is a list of words
        launch "$WORK/podlane.log" ip netns exec "${NODES[n]}" "$PODLANE_BIN" run --bridge cbr0 --uplink up0 \
            --cluster-cidr "$CLUSTER_CIDR" --path kernel --instance "$PREFIX-$n" --workers 1 --cpus "$FORWARDER_CPU" ${PODLANE_ARGS:-}
        FORWARDER=$LAUNCHED
        wait_for 20 podlane_is_ready_or_gone
        grep -q 'podlane is ready' "$WORK/podlane.log" || {
            WHY="podlane run did not get ready: $(tail -n1 "$WORK/podlane.log")" && return 1
        }
    done
    FORWARDER=''
    SETTINGS[$PEER]="$("$PODLANE_BIN" --version 2>&1 | head -n1); tcx on both nodes; uplink $(uplink_offloads)${PODLANE_ARGS:+; $PODLANE_ARGS}"
}
start_nodes-podlane-plain() { start_nodes-podlane; }

start_nodes-kernel() { SETTINGS[$PEER]="ip_forward on both nodes; uplink $(uplink_offloads)"; }
start_nodes-kernel-plain() { start_nodes-kernel; }

uplink_offloads() { if [[ $PEER == *-plain ]]; then echo 'without tso and gso'; else echo 'with all offloads'; fi; }

evidence_podlane() { podlane_counted forwarded "$1"; }
evidence_podlane-local() { podlane_counted forwarded "$1"; }
evidence_podlane-big() { podlane_counted repeated "$1"; }
evidence_podlane-kernel() { podlane_counted repeated "$1"; }

evidence_nodes-podlane() {
    local n
    for n in 1 2; do podlane_counted repeated "$1" "${NODES[n]}" "$PREFIX-$n" || return 1; done
}
evidence_nodes-podlane-plain() { evidence_nodes-podlane "$1"; }
evidence_nodes-kernel() { :; } # no other way
evidence_nodes-kernel-plain() { :; }

podlane_counted() { # COUNTER LEAST [NODE INSTANCE]
    local status=$WORK/podlane-status.json forwarded
    in_ns "${3:-$NODE}" "$PODLANE_BIN" status --instance "${4:-$PREFIX}" --json >"$status" ||
        { WHY='podlane status did not answer' && return 1; }
    forwarded=$(jq -e "[.ports[].$1] | add" "$status") || { WHY="podlane status --json: no ports" && return 1; }
    ((forwarded >= $2)) || {
        WHY="$2 frames arrived, but only $forwarded are counted as $1: they went another way" && return 1
    }
}

start_podlane-big() {
    podlane_up kernel --big-tcp $BIG_TCP || return 1
    FORWARDER=''
    wait_for 5 podlane_gave_sizes || { WHY="the ports did not get big_tcp = $BIG_TCP" && return 1; }
    SETTINGS[podlane-big]="as Podlane, kernel, and big_tcp = $BIG_TCP${PODLANE_ARGS:+; $PODLANE_ARGS}"
}

podlane_gave_sizes() {
    in_ns "$NODE" "$PODLANE_BIN" status --instance "$PREFIX" --json |
        jq -e "[.ports[] | select(.kind == \"pod\") | .big_tcp] == [$BIG_TCP, $BIG_TCP]"
}

start_ovs() {
    command -v ovs-vswitchd >/dev/null || { WHY='openvswitch-switch is not installed and could not be' && return 1; }
    local mode
    for mode in ${OVS_XDP_MODE:-native-with-zerocopy native generic}; do
        if ovs_up "$mode"; then
            SETTINGS[ovs]="$(ovs-vswitchd --version | sed -n '1s/.*) //p'), xdp-mode=$mode, one PMD thread; pods' tx checksum off${OVS_CONFIG:+; $OVS_CONFIG}${OVS_OPTIONS:+; $OVS_OPTIONS}"
            return 0
        fi
        end_all
    done
    return 1
}

# Own database, sockets, logs and processes in a directory of their own; the system's Open vSwitch is never touched.
ovs_up() {
    local mode=$1 dir=$WORK/ovs n error options=("n_rxq=1" "xdp-mode=$1")
    rm -rf "$dir" && mkdir -p "$dir"
    export OVS_RUNDIR=$dir OVS_LOGDIR=$dir OVS_DBDIR=$dir OVS_SYSCONFDIR=$dir
    ovsdb-tool create "$dir/conf.db" /usr/share/openvswitch/vswitch.ovsschema 2>"$dir/tool.log" || {
        WHY="ovsdb-tool: $(tail -n1 "$dir/tool.log")" && return 1
    }
    launch "$dir/ovsdb-server.log" ip netns exec "$NODE" ovsdb-server "$dir/conf.db" \
        --remote="punix:$dir/db.sock" --unixctl="$dir/ovsdb.ctl"
    wait_for 10 test -S "$dir/db.sock" || { WHY='ovsdb-server did not start' && return 1; }
    local config=("pmd-cpu-mask=$(printf '0x%x' $((1 << FORWARDER_CPU)))")
    # shellcheck disable=SC2206 # OVS_CONFIG is a list of words
    config+=(${OVS_CONFIG:-})
    # shellcheck disable=SC2206 # so is OVS_OPTIONS
    options+=(${OVS_OPTIONS:-})
    ovs_vsctl --no-wait init -- set Open_vSwitch . "${config[@]/#/other_config:}" ||
        { WHY='ovs-vsctl could not write the configuration' && return 1; }
    launch "$dir/ovs-vswitchd.log" ip netns exec "$NODE" ovs-vswitchd "unix:$dir/db.sock" --unixctl="$dir/vswitchd.ctl"
    FORWARDER=$LAUNCHED
    # Generic XDP takes neither segmentation offload from the pods nor NAPI for xdp frames to the host ends.
    local off=(tx)
    if [[ $mode == generic ]]; then
        off+=(tso gso)
        for n in 1 2; do in_ns "$NODE" ethtool -K "veth-pod$n" gro on >/dev/null; done
    fi
    pod_offloads_off "${off[@]}" || { WHY="cannot switch the pods' offloads off" && return 1; }
    ovs_vsctl add-br br0 -- set bridge br0 datapath_type=netdev || { WHY='cannot add the bridge' && return 1; }
    for n in 1 2; do
        ovs_vsctl add-port br0 "veth-pod$n" -- set interface "veth-pod$n" type=afxdp \
            "${options[@]/#/options:}" >/dev/null 2>&1 || true
        error=$(ovs_vsctl get interface "veth-pod$n" error)
        [[ $error == '[]' ]] || { WHY="xdp-mode=$mode: $error" && return 1; }
    done
}

ovs_vsctl() { ovs-vsctl --db="unix:$WORK/ovs/db.sock" --timeout=15 "$@"; }

evidence_ovs() {
    local hits
    hits=$(ovs-appctl -t "$WORK/ovs/vswitchd.ctl" dpif-netdev/pmd-stats-show | awk '/packets received:/ {n += $NF} END {print n + 0}')
    ((hits >= $1)) || { WHY="$1 frames arrived, but the PMD thread received only $hits" && return 1; }
}

start_loop() { loop_up loop poll; }
start_loop-spin() { loop_up loop-spin spin; }

loop_up() {
    pod_offloads_off tx || { WHY="cannot switch the pods' tx checksum off" && return 1; }
    launch "$WORK/$1.log" ip netns exec "$NODE" "$WORK/bare_loop" veth-pod1 veth-pod2 "$FORWARDER_CPU" "$2"
    FORWARDER=$LAUNCHED
    wait_for 5 grep -q ready "$WORK/$1.log" || { WHY=$(tail -n1 "$WORK/$1.log") && return 1; }
    SETTINGS[$1]="native XDP, copy mode, one shared UMEM; pods' tx checksum off"
}

# The loop's program gives every frame to the socket, so nothing else could have delivered them: with no bridge and no
# route between the two host ends there is no other way.
evidence_loop() { :; }
evidence_loop-spin() { :; }

start_peer() {
    launch "$WORK/peer.log" ip netns exec "$NODE" "$WORK/peer" veth-pod1 veth-pod2
    wait_for 5 grep -q ready "$WORK/peer.log" || { WHY=$(tail -n1 "$WORK/peer.log") && return 1; }
    SETTINGS[peer]="tcx; all offloads as the kernel sets them; gro on at veth-pod1 for xdp frames only"
}

evidence_peer() { :; } # no bridge, no other way

start_bridge() {
    bridge_up || { WHY='the bridge did not come up' && return 1; }
    SETTINGS[bridge]="all offloads as the kernel sets them; gro on at veth-pod1 for xdp frames only"
}

start_bridge-plain() {
    bridge_up || { WHY='the bridge did not come up' && return 1; }
    pod_offloads_off tso gso gro tx || { WHY="cannot switch the pods' offloads off" && return 1; }
    SETTINGS[bridge-plain]="pods' tso, gso, gro and tx checksum off"
}

evidence_bridge() { :; }
evidence_bridge-plain() { :; }

# --------------------------------------------------------------------------------------------- the measurements

# sample PEER REPEAT MEASURE VALUE
sample() { printf 'sample\t%s\t%s\t%s\t%s\n' "$@" >>"$WORK/results"; }
# fact KEY VALUE
fact() { printf 'fact\t%s\t%s\n' "$@" >>"$WORK/results"; }

# What stands in the frames of the sources: across nodes they go to the router.
ends() {
    case $PEER in
        nodes-*) printf '%s ' "${MAC[1]}" "${NODES_BRIDGE_MAC[1]}" "${NODES_POD_IP[1]}" "${NODES_POD_IP[2]}" ;;
        *) printf '%s ' "${MAC[1]}" "${MAC[2]}" "${IP[1]}" "${IP[2]}" ;;
    esac
}
# address_of POD
address_of() { case $PEER in nodes-*) echo "${NODES_POD_IP[$1]}" ;; *) echo "${IP[$1]}" ;; esac; }

# An xdp frame reaches a veth only when NAPI runs on the receiving end. A peer with an XDP program there has it; the
# bridge gets it from gro, and only while xdp frames are sent.
xdp_frames_possible() { # on|off
    case $PEER in
        bridge | bridge-plain | peer | podlane-kernel | podlane-big) in_ns "$NODE" ethtool -K veth-pod1 gro "$1" >/dev/null ;;
    esac
}

# Every frame of a burst of skbs of all lengths and of xdp frames must arrive once, in order, byte for byte.
check_frames() {
    local log=$WORK/$PEER-check.log
    # shellcheck disable=SC2046 # a list of words
    launch "$log" ip netns exec "${POD[2]}" "$WORK/sink" check eth0 $(ends)
    local sink=$LAUNCHED failed=no
    wait_for 5 grep -q ready "$log" || { WHY=$(tail -n1 "$log") && return 1; }
    xdp_frames_possible on
    # shellcheck disable=SC2046
    in_ns "${POD[1]}" "$WORK/source" check eth0 $(ends) >"$WORK/source.log" 2>&1 || failed=yes
    finish "$sink" || failed=yes
    xdp_frames_possible off
    [[ $failed == no ]] || { WHY="checked burst: $(tail -qn1 "$log" "$WORK/source.log" | tr '\n' ' ')" && return 1; }
}

# measure_rate SOURCE NAME: delivered and offered Mpps as samples NAME_mpps and NAME_offered_mpps, and two
# that a disturbed machine hardly changes: NAME_busy_ns, the CPU time of the forwarder for each delivered frame, and
# NAME_source_ns, that of the source for each offered frame, with all that the host end does with it there
measure_rate() {
    local log=$WORK/$PEER-$2.log
    launch "$log" taskset -c "$GENERATOR_CPU" ip netns exec "${POD[2]}" \
        "$WORK/sink" count eth0 "$WARMUP_SECONDS" "$SECONDS_MEASURED" "${FORWARDER:-0}"
    local sink=$LAUNCHED failed=no busy bytes
    wait_for 5 grep -q ready "$log" || { WHY=$(tail -n1 "$log") && return 1; }
    busy=$(busy_seconds) bytes=$(received_bytes)
    # shellcheck disable=SC2046
    taskset -c "$GENERATOR_CPU" ip netns exec "${POD[1]}" "$WORK/source" "$1" eth0 $(ends) \
        "$WARMUP_SECONDS" "$SECONDS_MEASURED" >"$WORK/source.log" 2>&1 || failed=yes
    finish "$sink" || failed=yes
    [[ $failed == no ]] || { WHY="$2: $(tail -qn1 "$log" "$WORK/source.log" | tr '\n' ' ')" && return 1; }
    # The sink drops at tc ingress, behind the interface's own counters, so those have every frame.
    ! in_kernel || sample "$PEER" "$REPEAT" "$2_cost" "$(awk -v a="$busy" -v b="$(busy_seconds)" -v c="$bytes" -v d="$(received_bytes)" \
        'BEGIN { printf "%.6f\n", (b - a) / ((d - c) / 60 / 1e6) }')"
    sample "$PEER" "$REPEAT" "$2_mpps" "$(per_second delivered "$log")"
    sample "$PEER" "$REPEAT" "$2_offered_mpps" "$(per_second offered "$WORK/source.log")"
    [[ -z $FORWARDER ]] || sample "$PEER" "$REPEAT" "$2_busy_ns" "$(busy_per_frame "$log")"
    sample "$PEER" "$REPEAT" "$2_source_ns" "$(busy_per_frame "$WORK/source.log")"
    DELIVERED=$((DELIVERED + $(sed -n 's/delivered=\([0-9]*\).*/\1/p' "$log")))
}

busy_per_frame() { awk -F'[= ]' '/ busy=/ { printf "%.1f\n", ($2 > 0) ? $6 / $2 * 1e9 : 0 }' "$1"; }
per_second() { awk -F'[= ]' -v name="$1" '$1 == name { printf "%.6f\n", $2 / $4 / 1e6 }' "$2"; }

# measure_tcp FROM TO NAME [OPTION…]: Gbit/s at the receiver. The sender has the generator's core, the receiver the forwarder's.
measure_tcp() {
    local log=$WORK/$PEER-$3.log
    launch "$log.server" taskset -c "$FORWARDER_CPU" ip netns exec "${POD[$2]}" iperf3 -s -1 -p $TCP_PORT
    local server=$LAUNCHED
    wait_for 5 listens "${POD[$2]}" || { WHY="iperf3: $(tail -n1 "$log.server")" && return 1; }
    taskset -c "$GENERATOR_CPU" timeout $((SECONDS_MEASURED + WARMUP_SECONDS + 20)) ip netns exec "${POD[$1]}" \
        iperf3 "${@:4}" -c "$(address_of "$2")" -p $TCP_PORT -t "$SECONDS_MEASURED" -O "$WARMUP_SECONDS" -f m >"$log" 2>&1 ||
        { WHY="iperf3: $(grep -m1 error "$log" || tail -n1 "$log")" && return 1; }
    finish "$server" || true
    sample "$PEER" "$REPEAT" "$3" "$(awk '/receiver/ { printf "%.6f\n", $7 / 1000 }' "$log")"
}

# Whether the forwarder works in the kernel, on everybody's time: then the machine's time is what can be compared.
in_kernel() { case $PEER in peer | podlane-kernel | podlane-big | bridge | nodes-*) ;; *) return 1 ;; esac; }

# Seconds that all CPUs were not idle, and bytes that the second pod has received.
busy_seconds() { awk -v hz="$(getconf CLK_TCK)" '/^cpu / { print ($2 + $3 + $4 + $7 + $8) / hz }' /proc/stat; }
received_bytes() { in_ns "${POD[2]}" cat /sys/class/net/eth0/statistics/rx_bytes; }

# measure_cost NAME COMMAND…: CPU seconds of the machine for each gigabyte that the command sent, over its whole run
measure_cost() {
    local name=$1 busy bytes
    shift
    in_kernel || { "$@" && return 0 || return 1; }
    busy=$(busy_seconds) bytes=$(received_bytes)
    "$@" || return 1
    sample "$PEER" "$REPEAT" "$name" "$(awk -v a="$busy" -v b="$(busy_seconds)" -v c="$bytes" -v d="$(received_bytes)" \
        'BEGIN { printf "%.6f\n", (b - a) / ((d - c) / 1e9) }')"
}

# An application that writes a mebibyte at a time, where iperf3 else writes 128 KiB: no super-frame gets larger than what was
# written.
measure_large_writes() {
    in_kernel || return 0
    measure_tcp 1 2 tcp_large_gbit -l 1M
}

measure_rr() {
    local log=$WORK/$PEER-rr.log
    launch "$log.server" taskset -c "$FORWARDER_CPU" ip netns exec "${POD[2]}" "$WORK/rr" server $TCP_PORT
    local server=$LAUNCHED
    wait_for 5 listens "${POD[2]}" || { WHY="rr: $(tail -n1 "$log.server")" && return 1; }
    taskset -c "$GENERATOR_CPU" ip netns exec "${POD[1]}" "$WORK/rr" client "${IP[2]}" $TCP_PORT "$SECONDS_MEASURED" >"$log" 2>&1 ||
        { WHY="rr: $(tail -n1 "$log")" && return 1; }
    finish "$server" || true
    sample "$PEER" "$REPEAT" rr_us "$(awk -F'[= ]' '/^transactions/ { printf "%.3f\n", $4 / $2 * 1e6 }' "$log")"
}

listens() { in_ns "$1" ss -Hltn "sport = :$TCP_PORT" | grep -q .; }

measure_ping() {
    local log=$WORK/$PEER-ping.log
    taskset -c "$GENERATOR_CPU" ip netns exec "${POD[1]}" \
        ping -q -c $PINGS -i $PING_INTERVAL "$(address_of 2)" >"$log" 2>&1 || { WHY="ping: $(tail -n3 "$log" | tr '\n' ' ')" && return 1; }
    grep -q ' 0% packet loss' "$log" || { WHY="ping: $(grep loss "$log")" && return 1; }
    sample "$PEER" "$REPEAT" ping_us "$(awk -F/ '/^rtt/ { printf "%.3f\n", $5 * 1000 }' "$log")"
}

# What the forwarder's process burns with nothing to do, in percent of one core.
measure_idle() {
    [[ -n $FORWARDER ]] || return 0
    local before after
    before=$(cpu_ticks) && sleep 1 && after=$(cpu_ticks)
    sample "$PEER" "$REPEAT" idle_cpu_percent "$(awk -v t=$((after - before)) -v hz="$(getconf CLK_TCK)" 'BEGIN { print t * 100 / hz }')"
}

cpu_ticks() { sed 's/.*) //' "/proc/$FORWARDER/stat" | awk '{ print $12 + $13 }'; }

# Everything about one peer in one repeat; fails with WHY.
measure_peer() {
    DELIVERED=0 WHY='unknown reason'
    [[ $PEER != nodes-* ]] || { measure_nodes && return 0 || return 1; }
    net_up || { WHY="the pods' namespaces could not be made" && return 1; }
    "start_$PEER" && check_frames || return 1
    # The small frames are the same with it; what differs is what TCP makes of it.
    [[ $PEER != podlane-local ]] || { measure_tcp 1 2 tcp_gbit && measure_tcp 2 1 tcp_back_gbit && evidence_podlane-local 1 && measure_ping && return 0 || return 1; }
    [[ $PEER != podlane-big ]] || { measure_cost tcp_cost measure_tcp 1 2 tcp_gbit && measure_tcp 2 1 tcp_back_gbit && measure_large_writes && evidence_podlane-big 1 && return 0 || return 1; }
    measure_idle || return 1
    xdp_frames_possible on
    measure_rate xdp xdp || return 1
    xdp_frames_possible off
    measure_rate mmsg skb && "evidence_$PEER" "$DELIVERED" || return 1
    measure_cost tcp_cost measure_tcp 1 2 tcp_gbit && measure_tcp 2 1 tcp_back_gbit && measure_ping && measure_rr && measure_large_writes
}

# Across two nodes. That frames arrive unaltered but for what routing changes is shown by TCP and ping.
measure_nodes() {
    nodes_up && "start_$PEER" || return 1
    measure_rate mmsg skb && "evidence_$PEER" "$DELIVERED" || return 1
    measure_cost tcp_cost measure_tcp 1 2 tcp_gbit && measure_tcp 2 1 tcp_back_gbit && measure_ping
}

describe_machine() {
    fact kernel "$(uname -r)"
    fact cpu "$(awk -F': ' '/model name/ { print $2; exit }' /proc/cpuinfo), $(nproc) cores; sources on $GENERATOR_CPU, forwarder on $FORWARDER_CPU"
    fact frames "64 bytes with FCS (60 on a veth), one flow; $SECONDS_MEASURED s after ${WARMUP_SECONDS} s, $REPEATS repeats"
    fact tcp "iperf3 one flow, MTU 1500, $(iperf3 --version | awk 'NR == 1 { print $2 }')"
    fact ping "$PINGS at ${PING_INTERVAL} s"
    fact load "$(cut -d' ' -f1-3 /proc/loadavg) before the run"
}

main() {
    ((EUID == 0)) || die "needs root: it makes network namespaces and loads XDP programs"
    parse_options "$@"
    trap cleanup EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    raise_priority
    WORK=$(mktemp -d "${TMPDIR:-/tmp}/podlane-compare.XXXXXX")
    install_missing
    build
    : >"$WORK/results"
    describe_machine
    declare -A failures=() reasons=()
    for ((REPEAT = 1; REPEAT <= REPEATS; REPEAT++)); do
        for PEER in "${PEERS[@]}"; do
            say "repeat $REPEAT of $REPEATS: ${TITLE[$PEER]}"
            if ! measure_peer; then
                failures[$PEER]=$((${failures[$PEER]:-0} + 1))
                reasons[$PEER]=$WHY
                say "  failed: $WHY"
            fi
            end_all
            net_down
        done
    done
    fact load_after "$(cut -d' ' -f1-3 /proc/loadavg) after the run"
    for PEER in "${PEERS[@]}"; do
        printf 'peer\t%s\t%s\t%s\n' "$PEER" "${TITLE[$PEER]}" "${SETTINGS[$PEER]:-}" >>"$WORK/results"
        [[ -z ${failures[$PEER]:-} ]] || printf 'failed\t%s\t%s\t%s\n' "$PEER" "${failures[$PEER]}" "${reasons[$PEER]}" >>"$WORK/results"
    done
    "$REPORT" "$WORK/results" ${JSON:+--json "$JSON"}
}

# Read as a whole: nothing more is taken from this file, whatever becomes of it meanwhile.
{
    main "$@"
    exit 0
}
