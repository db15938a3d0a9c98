# The rig of the comparison: packages and programs, processes, and the namespaces of two pods on one node or on two.
# Read by run.sh; it has no command line of its own.
# shellcheck shell=bash

# ------------------------------------------------------------------------------------- things to have and build

# Installs the Debian packages that are missing. Services of a package are neither started nor left enabled: the
# comparison runs its own processes, and a machine that had no Open vSwitch before shall not have it running after.
install_missing() {
    local wanted=() policy=/usr/sbin/policy-rc.d had_policy=yes
    need() { command -v "$1" >/dev/null || wanted+=("$2"); }
    need_file() { compgen -G "$1" >/dev/null || wanted+=("$2"); }
    need cc gcc && need ip iproute2 && need ethtool ethtool && need ping iputils-ping && need iperf3 iperf3
    need awk mawk && need taskset util-linux
    [[ -e /usr/include/linux/if_xdp.h ]] || wanted+=(libc6-dev linux-libc-dev)
    if wants ovs; then need ovs-vswitchd openvswitch-switch; fi
    if wants dpdk; then need dpdk-testpmd dpdk-dev && need_file '/usr/lib/*/librte_net_af_xdp.so.*' librte-net-af-xdp23; fi
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
    for name in load burst bare_loop peer devmap rr; do
        cc -O2 -Wall -Wextra -Werror -o "$WORK/$name" "$HERE/$name.c" || die "cannot compile e2e/$name.c"
    done
    local wanted=(-p podlane-benches --bin e2e-report)
    if wants_podlane && [[ -z ${PODLANE_BIN:-} ]]; then wanted+=(-p podlane --bin podlane); fi
    if [[ -n ${PODLANE_E2E_REPORT:-} ]] && { ! wants_podlane || [[ -n ${PODLANE_BIN:-} ]]; }; then
        REPORT=$PODLANE_E2E_REPORT
        return 0
    fi
    (cd "$ROOT" && cargo build --release --quiet "${wanted[@]}") || die "cargo could not build what the comparison needs"
    local target
    target=$(cd "$ROOT" && cargo metadata --no-deps --format-version 1 | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
    REPORT=$target/release/e2e-report
    PODLANE_BIN=${PODLANE_BIN:-$target/release/podlane}
}

# --------------------------------------------------------------------------------------- namespaces and processes

readonly PREFIX=ple2e$$
DPDK_FILES='' # what DPDK leaves in /var/run
readonly NODE=$PREFIX-node
readonly NODES=([1]=$NODE [2]=$PREFIX-node2)
readonly POD=([1]=$PREFIX-pod1 [2]=$PREFIX-pod2)
WORK=''
RUNNING=()   # process ids that this script started and has not yet ended
AUTOGROUP_NICE='' # what the session's group had before
FORWARDER=''      # process id of the forwarder, where it is a process
DAEMON=''         # process id of what must run for it, though it may forward nothing itself

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
    FORWARDER='' DAEMON=''
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
    for n in "${POD[@]}" "${NODES[@]}" "$OTHERS"; do
        [[ ! -e /run/netns/$n ]] || ip netns del "$n" || true
    done
    [[ -z $DPDK_FILES ]] || rm -rf "$DPDK_FILES"
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
