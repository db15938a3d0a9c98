# The peers of the comparison. Read by run.sh.
#
# start_NAME brings the peer up between veth-pod1 and veth-pod2, or sets WHY and fails.
# evidence_NAME fails with WHY when the frames that were just delivered ($1 of them) did not take the peer's own path.
# shellcheck shell=bash disable=SC2034,SC2317

declare -A TITLE=(
    [podlane]='Podlane, af_xdp' [podlane-local]='Podlane, af_xdp, local_mtu' [ovs]='Open vSwitch, type=afxdp' [loop]='bare AF_XDP loop, poll'
    [loop-spin]='bare AF_XDP loop, spin' [dpdk]='DPDK testpmd, af_xdp' [devmap]='bare devmap redirect' [podlane-kernel]='Podlane, kernel' [podlane-big]='Podlane, kernel, big_tcp' [peer]='bare redirect_peer' [bridge]='Linux bridge' [bridge-plain]="Linux bridge, pods' offloads off"
    [nodes-podlane-af]='two nodes: Podlane, af_xdp' [nodes-podlane]='two nodes: Podlane, kernel' [nodes-kernel]='two nodes: kernel routing'
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
    FORWARDER=$LAUNCHED DAEMON=$LAUNCHED
    wait_for 20 podlane_is_ready_or_gone
    grep -q 'podlane is ready' "$WORK/podlane.log" || {
        WHY="podlane run did not get ready: $(tail -n1 "$WORK/podlane.log")" && return 1
    }
}

podlane_is_ready_or_gone() {
    grep -q 'podlane is ready' "$WORK/podlane.log" || ! kill -0 "$FORWARDER" 2>/dev/null
}

start_nodes-podlane() { nodes_podlane_up kernel; }

nodes_podlane_up() { # PATH
    [[ -x $PODLANE_BIN ]] || { WHY="there is no program $PODLANE_BIN" && return 1; }
    local n
    for n in "${NODES_SERVED[@]}"; do
        # shellcheck disable=SC2086 # PODLANE_ARGS is a list of words
        launch "$WORK/podlane.log" ip netns exec "${NODES[n]}" "$PODLANE_BIN" run --bridge cbr0 --uplink up0 \
            --cluster-cidr "$NODES_CIDR" --path "$1" --instance "$PREFIX-$n" --workers 1 --cpus "$FORWARDER_CPU" ${PODLANE_ARGS:-}
        FORWARDER=$LAUNCHED
        wait_for 20 podlane_is_ready_or_gone
        grep -q 'podlane is ready' "$WORK/podlane.log" || {
            WHY="podlane run did not get ready: $(tail -n1 "$WORK/podlane.log")" && return 1
        }
    done
    DAEMON=$FORWARDER
    [[ $1 != kernel ]] || FORWARDER=''
    SETTINGS[$PEER]="$("$PODLANE_BIN" --version 2>&1 | head -n1); path $1 on both nodes; uplink $(uplink_offloads)${PODLANE_ARGS:+; $PODLANE_ARGS}"
}
start_nodes-podlane-plain() { nodes_podlane_up kernel; }
start_nodes-podlane-af() { nodes_podlane_up af_xdp; }

start_nodes-kernel() { SETTINGS[$PEER]="ip_forward on both nodes; uplink $(uplink_offloads)"; }
start_nodes-kernel-plain() { start_nodes-kernel; }

uplink_offloads() { if [[ $PEER == *-plain ]]; then echo 'without tso and gso'; else echo 'with all offloads'; fi; }

evidence_podlane() { podlane_counted forwarded "$1"; }
evidence_podlane-local() { podlane_counted forwarded "$1"; }
evidence_podlane-big() { podlane_counted repeated "$1"; }
evidence_podlane-kernel() { podlane_counted repeated "$1"; }

evidence_nodes-podlane() { nodes_counted repeated "$1"; }
evidence_nodes-podlane-af() { nodes_counted forwarded "$1"; }

nodes_counted() { # COUNTER LEAST
    local n
    for n in 1 2; do podlane_counted "$1" "$2" "${NODES[n]}" "$PREFIX-$n" || return 1; done
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
    FORWARDER=$LAUNCHED DAEMON=$LAUNCHED
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
    FORWARDER=$LAUNCHED DAEMON=$LAUNCHED
    wait_for 5 grep -q ready "$WORK/$1.log" || { WHY=$(tail -n1 "$WORK/$1.log") && return 1; }
    SETTINGS[$1]="native XDP, copy mode, one shared UMEM; pods' tx checksum off"
}

# The loop's program gives every frame to the socket, so nothing else could have delivered them: with no bridge and no
# route between the two host ends there is no other way.
evidence_loop() { :; }
evidence_loop-spin() { :; }

# testpmd gives what one port receives to the other and looks at nothing. Its main thread only waits.
start_dpdk() {
    command -v dpdk-testpmd >/dev/null || { WHY='dpdk-testpmd (Debian: dpdk-dev) is not installed and could not be' && return 1; }
    pod_offloads_off tx || { WHY="cannot switch the pods' tx checksum off" && return 1; }
    DPDK_FILES=/var/run/dpdk/$PREFIX
    launch "$WORK/dpdk.log" ip netns exec "$NODE" dpdk-testpmd --no-huge -m 512 --no-pci --no-telemetry --file-prefix "$PREFIX" \
        -l "$GENERATOR_CPU,$FORWARDER_CPU" --main-lcore "$GENERATOR_CPU" \
        --vdev net_af_xdp0,iface=veth-pod1 --vdev net_af_xdp1,iface=veth-pod2 -- --forward-mode=io --auto-start --nb-cores=1 \
        --no-mlockall --total-num-mbufs=16384 --stats-period 3600
    FORWARDER=$LAUNCHED DAEMON=$LAUNCHED
    wait_for 15 dpdk_forwards_or_gone
    grep -q 'forwards packets on 2 streams' "$WORK/dpdk.log" || {
        WHY="dpdk-testpmd: $(grep -m1 -i -E 'error|fail|cannot' "$WORK/dpdk.log" || tail -n1 "$WORK/dpdk.log")" && return 1
    }
    SETTINGS[dpdk]="$(dpdk-testpmd --version 2>&1 | grep -o 'DPDK [0-9.]*' | head -n1 || true) $(dpkg-query -W -f '${Version}' dpdk-dev 2>/dev/null || true), net_af_xdp with busy polling, io forwarding, one core; pods' tx checksum off"
}

dpdk_forwards_or_gone() {
    grep -q 'forwards packets on 2 streams' "$WORK/dpdk.log" || ! kill -0 "$FORWARDER" 2>/dev/null
}

evidence_dpdk() { :; } # no bridge, no other way

start_devmap() {
    local n
    # A redirected frame reaches a veth only when NAPI runs there.
    for n in 1 2; do in_ns "${POD[n]}" ethtool -K eth0 tx off gro on >/dev/null || { WHY="cannot set the pods' offloads" && return 1; }; done
    launch "$WORK/devmap.log" ip netns exec "$NODE" "$WORK/devmap" veth-pod1 veth-pod2
    wait_for 5 grep -q ready "$WORK/devmap.log" || { WHY=$(tail -n1 "$WORK/devmap.log") && return 1; }
    SETTINGS[devmap]="native XDP; pods' tx checksum off, gro on"
}

evidence_devmap() { :; } # no bridge, no other way

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
