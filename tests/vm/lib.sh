# What the cases share: a node with two cards and two pods, the wire that the cards lead to, kernel pktgen at either end, and
# Podlane on the node.
#
#   wire  eth0 ~~~ eth1  node  cbr0 ── pod1, pod2
#         eth3 ~~~ eth2
#
# eth1 has two queues where the machine could give it that many. Behind eth0 and eth3 are two other nodes, as far as the
# node's routes say. A case that cannot be on this kernel or machine ends with `skip`; its last line of output is shown.

WIRE=wire NODE=node
declare -A POD_ADDRESS=([pod1]=10.244.1.2 [pod2]=10.244.1.3)
# Packets of one transfer and their pace, per second: the guest forwards several thousand a second on an idle machine.
COUNT=${COUNT:-2000}
RATE=${RATE:-$((1000 / SLOW))}
# How long anything may take; the machine below may be busy.
PATIENCE_S=$((40 * SLOW))
PODLANE_PID=''
# What the daemon is started by, if by anything.
LAUNCH=()

skip() { # REASON
    printf '%s\n' "$*"
    exit 77
}

fail() {
    printf 'FAILED: %s\n' "$*" >&2
    exit 1
}

in_ns() { # NAMESPACE CMD…: without a mount namespace of its own, so that bpffs is there
    local namespace=$1
    shift
    nsenter --net="/run/netns/$namespace" "$@"
}

wait_until() { # WHAT CMD…
    local what=$1 until=$((SECONDS + PATIENCE_S))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < until)) || fail "$what: not within $PATIENCE_S s"
        sleep 0.1
    done
}

mac_of() { # NAMESPACE DEVICE
    # What /sys shows is of the first namespace.
    in_ns "$1" ip -json link show "$2" | jq -er '.[0].address'
}

# ---------------------------------------------------------------------------------------------------------------------
# The network

add_pod() { # POD
    ip netns add "$1"
    in_ns "$1" sysctl -qw net.ipv6.conf.all.disable_ipv6=1
    ip link add "veth-$1" netns "$NODE" type veth peer name eth0 netns "$1"
    in_ns "$NODE" ip link set "veth-$1" master cbr0 mtu "$MTU" up
    in_ns "$1" ip link set eth0 mtu "$MTU" up
    in_ns "$1" ip link set lo up
    in_ns "$1" ip address add "${POD_ADDRESS[$1]}/24" dev eth0
    in_ns "$1" ip route add default via 10.244.1.1
}

card_up() { # NAMESPACE DEVICE ADDRESS
    ip link set "$2" netns "$1"
    # The machine's cables deliver by address, and pktgen's packets come from strangers.
    in_ns "$1" ip link set "$2" mtu "$MTU" promisc on up
    in_ns "$1" ip address add "$3/24" dev "$2"
}

# MTU of everything, bytes
network_up() {
    MTU=${1:-1500}
    local namespace
    for namespace in "$WIRE" "$NODE"; do
        ip netns add "$namespace"
        in_ns "$namespace" sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1 \
            net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0
        in_ns "$namespace" ip link set lo up
    done
    card_up "$WIRE" eth0 192.168.1.2
    card_up "$WIRE" eth3 192.168.2.2
    card_up "$NODE" eth1 192.168.1.1
    card_up "$NODE" eth2 192.168.2.1
    in_ns "$NODE" ip link add cbr0 type bridge
    in_ns "$NODE" ip link set cbr0 mtu "$MTU" up
    in_ns "$NODE" ip address add 10.244.1.1/24 dev cbr0
    in_ns "$NODE" ip route add 10.244.2.0/24 via 192.168.1.2
    in_ns "$NODE" ip route add 10.244.3.0/24 via 192.168.2.2
    in_ns "$WIRE" ip address add 10.244.2.1/32 dev lo
    in_ns "$WIRE" ip address add 10.244.3.1/32 dev lo
    in_ns "$WIRE" ip route add 10.244.1.0/24 via 192.168.1.1 src 10.244.2.1
    add_pod pod1
    add_pod pod2
    # Everybody knows everybody's address, so that the first packet of a transfer is not one too many.
    wait_until 'the wire to be there' in_ns "$NODE" ping -c 1 -W 1 192.168.1.2
    wait_until 'the second wire to be there' in_ns "$NODE" ping -c 1 -W 1 192.168.2.2
    wait_until 'pod1 to be there' in_ns "$NODE" ping -c 1 -W 1 10.244.1.2
    wait_until 'pod2 to be there' in_ns "$NODE" ping -c 1 -W 1 10.244.1.3
}

# ---------------------------------------------------------------------------------------------------------------------
# Podlane

podlane_up() { # OPTION…: on the node, and waits until it is ready
    local log
    log=$(mktemp "$RESULTS/podlane.XXXXXX.log")
    # Not by the function: its process would be a shell's, and signals are for the daemon.
    nsenter --net="/run/netns/$NODE" "${LAUNCH[@]}" podlane run --bridge cbr0 --uplink eth1,eth2 --cluster-cidr 10.244.0.0/16 --workers 2 \
        --metrics-address off "$@" >"$log" 2>&1 &
    PODLANE_PID=$!
    local until=$((SECONDS + PATIENCE_S))
    until grep -q 'podlane is ready' "$log"; do
        kill -0 "$PODLANE_PID" 2>/dev/null || { cat "$log"; fail 'podlane ended before it was ready'; }
        ((SECONDS < until)) || { cat "$log"; fail "podlane was not ready within $PATIENCE_S s"; }
        sleep 0.1
    done
}

podlane_down() {
    kill "$PODLANE_PID"
    wait "$PODLANE_PID" || fail "podlane ended with $?"
    in_ns "$NODE" podlane detach >/dev/null
}

status() { # JQ-FILTER
    in_ns "$NODE" podlane status --json | jq -r "$1"
}

port() { # NAME FIELD
    status ".ports[] | select(.name == \"$1\") | .$2"
}

refusal() { # NAME: why a port is left to the kernel
    status ".refused[] | select(.name == \"$1\") | .why"
}

expect() { # WHAT WANTED FOUND
    [[ $2 == "$3" ]] || fail "$1: $3, not $2"
}

# Whether every frame and every packet is accounted for, once the traffic is over.
balanced() {
    [[ $(status .accounts_balance) == true && $(status .umem.sum_ok) == true ]]
}

audit() {
    wait_until 'the accounts to balance' balanced
}

# ---------------------------------------------------------------------------------------------------------------------
# Traffic

pktgen() { # FILE LINE…
    local file=/proc/net/pktgen/$1 line
    shift
    for line in "$@"; do
        printf '%s\n' "$line" >"$file" || fail "pktgen does not take '$line'"
    done
}
export -f pktgen fail

# NAMESPACE DEVICE DESTINATION-MAC SOURCE DESTINATION SIZE [FLOWS]: COUNT packets of SIZE bytes at RATE per second
generate() {
    in_ns "$1" bash -eu -c '
        device=$1 mac=$2 source=$3 destination=$4 size=$5 flows=$6 count=$7 rate=$8 patience=$9
        pktgen kpktgend_0 rem_device_all "add_device $device"
        pktgen "$device" "count $count" "pkt_size $size" "ratep $rate" "dst_mac $mac" "src_min $source" "src_max $source" \
            "dst_min $destination" "dst_max $destination" "udp_src_min 1000" "udp_src_max $((1000 + flows))" \
            "udp_dst_min 9" "udp_dst_max 9" "flag UDPCSUM"
        pktgen pgctrl start
        # Its threads get an eighth of a second to begin, and a start that finds none running returns.
        for ((tries = 0; tries < patience * 10; tries++)); do
            ! grep -q "^Result: OK" "/proc/net/pktgen/$device" || break
            sleep 0.1
        done
        grep -q "^Result: OK" "/proc/net/pktgen/$device" || { cat "/proc/net/pktgen/$device" >&2; exit 1; }
        pktgen kpktgend_0 rem_device_all' generate "$2" "$3" "$4" "$5" "$6" "${7:-1}" "$COUNT" "$RATE" "$PATIENCE_S"
}

# FROM-NAMESPACE FROM-DEVICE GATEWAY-MAC SOURCE DESTINATION TO-NAMESPACE TO-DEVICE SIZE [FLOWS]: sends, and prints as JSON what
# arrived. pktgen's size does not count the four bytes of a frame's checksum, nor does ours.
transfer() {
    local out receiver
    out=$(mktemp "$RESULTS/received.XXXXXX")
    in_ns "$6" podlane-probe --deadline-s $((45 * SLOW)) pktgen-receive --interface "$7" --count "$COUNT" --size "$8" \
        --settle-ms $((1500 * SLOW)) >"$out" &
    receiver=$!
    wait_until 'the receiver to be ready' grep -q ready "$out"
    generate "$1" "$2" "$3" "$4" "$5" "$8" "${9:-1}" || { kill "$receiver" && fail 'pktgen'; }
    wait "$receiver" || fail "the receiver: $(tail -n 1 "$out")"
    tail -n 1 "$out"
}

# How often a worker, or the daemon, had not run for so long that a packet was left to the kernel; 0 without a daemon.
standstills() {
    if [[ -z $PODLANE_PID ]]; then
        printf 0
    else
        status '[.ports[].passed.by_reason | (.worker_stalled // 0) + (.tables_stale // 0)] | add'
    fi
}

# NAME and the arguments of `transfer`: nothing may be lost, come twice or differ. An emulated machine whose processors are
# taken away in the middle of it loses a packet now and then, and no counter of the guest says where (docs/zero-copy.md): a
# transfer with standstills gets three attempts, one without must be complete.
all_arrive() {
    local name=$1 result before tries
    shift
    for tries in 1 2 3; do
        before=$(standstills)
        result=$(transfer "$@")
        printf '%s, %s bytes: %s\n' "$name" "$8" "$result"
        ! jq -e '.lost == 0 and .again == 0 and .wrong == 0' <<<"$result" >/dev/null || return 0
        jq -e '.again == 0 and .wrong == 0' <<<"$result" >/dev/null || break
        (($(standstills) > before && tries < 3)) || break
        printf 'again: %d packets met a standstill\n' $(($(standstills) - before))
        counts >"$RESULTS/counts-$tries.txt" || true
    done
    fail "$name, $8 bytes: $result"
}

into_pod() { # SIZE [FLOWS]
    all_arrive 'uplink to pod' "$WIRE" eth0 "$(mac_of "$NODE" eth1)" 10.244.2.9 10.244.1.2 pod1 eth0 "$@"
}

out_of_pod() { # SIZE [FLOWS]
    all_arrive 'pod to uplink' pod1 eth0 "$(mac_of "$NODE" cbr0)" 10.244.1.2 10.244.2.9 "$WIRE" eth0 "$@"
}

through_node() { # SIZE [FLOWS]
    all_arrive 'uplink to uplink' "$WIRE" eth0 "$(mac_of "$NODE" eth1)" 10.244.2.9 10.244.3.9 "$WIRE" eth3 "$@"
}

# Two megabytes of TCP each way between a pod and the wire, content compared: checksums left to offload on the pod's side.
tcp_both_ways() {
    local out server
    out=$(mktemp "$RESULTS/tcp.XXXXXX")
    in_ns "$WIRE" podlane-probe --deadline-s $((100 * SLOW)) tcp-serve --bind 10.244.2.1:7777 --send 2000000 --receive 2000000 --flow 7 \
        >"$out" &
    server=$!
    wait_until 'the TCP server to be ready' grep -q ready "$out"
    in_ns pod1 podlane-probe --deadline-s $((100 * SLOW)) tcp-connect --to 10.244.2.1:7777 --send 2000000 --receive 2000000 --flow 7 ||
        fail 'TCP between pod and wire'
    wait "$server" || fail "the TCP server: $(tail -n 1 "$out")"
}

# Whether this kernel's driver of the cards has zero-copy AF_XDP: virtio-net since 6.13.
has_zero_copy() {
    local version
    version=$(uname -r)
    [[ $(printf '%s\n' 6.13 "${version%%-*}" | sort -V | head -n 1) == 6.13 ]]
}

expected_mode() {
    if has_zero_copy; then printf zero_copy; else printf copy; fi
}

# What counts packets, as lines "PLACE NAME NUMBER", without the zeros: the protocols, interfaces and drivers of both ends and
# the node, the machine's backlogs, and Podlane.
counts() {
    local namespace card
    for namespace in "$NODE" "$WIRE" pod1; do
        [[ -e /run/netns/$namespace ]] || continue
        in_ns "$namespace" cat /proc/net/snmp /proc/net/netstat | awk -v place="$namespace" '
            NR % 2 { split($0, names); next } { for (i = 2; i <= NF; i++) if ($i != 0) print place, $1 names[i], $i }'
        in_ns "$namespace" ip -json -statistics link | jq -r --arg place "$namespace" '.[] | .ifname as $name | .stats64 |
            paths(numbers) as $path | select(getpath($path) != 0) | "\($place) \($name) \($path | join(" ")) \(getpath($path))"'
        for card in eth0 eth1 eth2 eth3; do
            { in_ns "$namespace" ethtool -S "$card" 2>/dev/null || true; } | awk -v place="$namespace $card" '$2 > 0 { print place, $1, $2 }'
        done
    done
    awk '{ print "backlog of processor " NR - 1 ": dropped 0x" $2 ", out of time 0x" $3 }' /proc/net/softnet_stat
    [[ -z $PODLANE_PID ]] || in_ns "$NODE" podlane status --json | jq -r '.ports[] | .name as $name |
        paths(numbers) as $path | select(getpath($path) != 0) | "podlane \($name) \($path | join(" ")) \(getpath($path))"'
}

# What a case leaves behind goes with its namespaces; the cards come back to the first one.
clean_up() {
    local code=$? namespace
    [[ $code == 0 || $code == 77 ]] || counts >"$RESULTS/counts.txt" 2>&1 || true
    [[ -z $PODLANE_PID ]] || in_ns "$NODE" podlane status >"$RESULTS/status.txt" 2>&1 || true
    [[ -z $PODLANE_PID ]] || kill -9 "$PODLANE_PID" 2>/dev/null || true
    [[ ! -e /run/netns/$NODE ]] || in_ns "$NODE" podlane detach >/dev/null 2>&1 || true
    for namespace in "$NODE" "$WIRE" pod1 pod2; do
        [[ ! -e /run/netns/$namespace ]] || ip netns del "$namespace"
    done
    for namespace in eth0 eth1 eth2 eth3; do
        wait_until "$namespace to come back" ip link show "$namespace"
    done
}
trap clean_up EXIT
