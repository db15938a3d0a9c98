#!/usr/bin/env bash
#
# Does netns-testbed.sh build what it says? Real testbeds, real packets, the plain kernel.
#
# One line for each check; the last line is "N passed, N failed"; exit code 0 if none failed. Needs root and ping. The
# instance names carry the process id, so that several runs can go on at the same time. Every packet is sent once and
# has to arrive within two seconds: an address that is not usable at once, or a first frame that is lost, is a failure.

set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly HERE TESTBED=$HERE/netns-testbed.sh
readonly A=a$$ B=b$$ # the names of the testbeds
SCRATCH=$(mktemp -d)
readonly SCRATCH
PASSED=0
FAILED=0

tb() { "$TESTBED" "$@"; }
inside() { tb exec --name "$A" "$@"; }

# check WHAT CMD…: passes if the command succeeds. The output is shown only if it does not.
check() {
    local what=$1
    shift
    if "$@" >"$SCRATCH/output" 2>&1; then
        PASSED=$((PASSED + 1))
        printf 'ok    %s\n' "$what"
    else
        FAILED=$((FAILED + 1))
        printf 'FAIL  %s\n' "$what"
        sed 's/^/        /' "$SCRATCH/output"
    fi
}

# ---------------------------------------------------------------------------------------------------------------------
# Conditions

fails() { ! "$@"; }

# The command ends with this exit code, and what it says contains the words.
says() { # CODE WORDS CMD…
    local code=0 said
    said=$("${@:3}" 2>&1) || code=$?
    printf 'exit code %d: %s\n' "$code" "$said"
    [[ $code -eq $1 && $said == *"$2"* ]]
}

reaches() { # FROM TO…
    local to
    for to in "${@:2}"; do inside "$1" ping -n -c 1 -W 2 "$to" || return 1; done
}

unreachable() { # FROM TO
    fails inside "$1" ping -n -c 1 -W 0.3 "$2"
}

# A packet of exactly this size arrives unfragmented, in each family given by its address.
reaches_with() { # FROM SIZE TO…
    local to header
    for to in "${@:3}"; do
        header=28
        [[ $to != *:* ]] || header=48
        inside "$1" ping -n -c 1 -W 2 -M 'do' -s $(($2 - header)) "$to" || return 1
    done
}

# Too large for the uplink: the node says so, the pod learns the path MTU, and a packet of that size then arrives.
learns_path_mtu() { # FROM TO TOO-LARGE MTU
    fails reaches_with "$1" "$3" "$2" || return 1
    inside "$1" ip route get "$2" | grep "mtu $4" || return 1
    reaches_with "$1" "$4" "$2"
}

# The outside answers nobody but node1's own addresses.
answer_only_node1() {
    inside outside nft -f - <<'END'
table inet selftest {
    chain input {
        type filter hook input priority filter; policy accept;
        icmp type echo-request ip saddr != 192.168.100.1 drop
        icmpv6 type echo-request ip6 saddr != fd00:192:168:100::1 drop
    }
}
END
}

json_has() { # TEXT
    local json
    json=$(tb status --json --name "$A")
    printf '%s\n' "$json"
    [[ $json == *"$1"* ]]
}

nothing_left() {
    local path
    for path in /run/netns/"$A"-* /run/netns/"$B"-* /run/podlane-testbed/"$A" /run/podlane-testbed/"$B"; do
        [[ ! -e $path ]] || { printf 'left over: %s\n' "$path"; return 1; }
    done
    same_root_links
}

# No name of a testbed has landed in the root namespace. (Others may be at work there, so only our names count.)
root_links() {
    ip -o link show | sed 's/^[0-9]*: \([^:@]*\).*/\1/' |
        grep -E '^(cbr0|seg0|outside|node[0-9]+|veth-pod[0-9]+)$' | sort
}
same_root_links() { diff <(printf '%s' "$ROOT_LINKS") <(printf '%s' "$(root_links)"); }

# ---------------------------------------------------------------------------------------------------------------------
# Groups of checks

# Both topologies in all families: everybody whom a pod or node has to reach, at once after `up`.
test_reachability() { # TOPOLOGY FAMILY
    local what="$1, $2"
    check "$what: up" tb up --name "$A" --topology "$1" "--$2"
    check "$what: pod to pod on a node" each "$2" reaches pod1 10.244.1.3 fd00:10:244:1::3
    check "$what: pod to pod across nodes" each "$2" reaches pod1 10.244.2.3 fd00:10:244:2::3
    check "$what: pod to its gateway" each "$2" reaches pod4 10.244.2.1 fd00:10:244:2::1
    check "$what: node to its pods" each "$2" reaches node1 10.244.1.2 fd00:10:244:1::2
    check "$what: node to the other node's pods" each "$2" reaches node2 10.244.1.2 fd00:10:244:1::2
    check "$what: pod to the outside, masqueraded" each "$2" reaches pod3 198.51.100.2 2001:db8:ffff::2
    check "$what: full MTU across nodes" each "$2" reaches_with pod2 1500 10.244.2.2 fd00:10:244:2::2
    case $2 in
        ipv4) check "$what: no IPv6 at all" fails grep -q . <(inside pod1 ip -6 addr) ;;
        ipv6) check "$what: no IPv4 but lo's" fails grep -q 'inet .*eth0' <(inside pod1 ip -4 addr) ;;
    esac
    check "$what: down" tb down --name "$A"
}

# The last two arguments are an IPv4 and an IPv6 address: leave out what the testbed does not have.
each() { # FAMILY CONDITION… IPV4 IPV6
    local -a rest=("${@:2:$#-3}")
    case $1 in
        ipv4) "${rest[@]}" "${*: -2:1}" ;;
        ipv6) "${rest[@]}" "${*: -1:1}" ;;
        dual) "${rest[@]}" "${@: -2:2}" ;;
    esac
}

test_large_mtu() { # MTU
    check "MTU $1: up" tb up --name "$A" --mtu "$1"
    check "MTU $1: within a node" reaches_with pod1 "$1" 10.244.1.3 fd00:10:244:1::3
    check "MTU $1: across nodes" reaches_with pod1 "$1" 10.244.2.3 fd00:10:244:2::3
    check "MTU $1: to the outside" reaches_with pod1 "$1" 198.51.100.2 2001:db8:ffff::2
    check "MTU $1: down" tb down --name "$A"
}

test_path_mtu() { # TOPOLOGY
    check "path MTU, $1: up" tb up --name "$A" --topology "$1" --uplink-mtu 1300
    check "path MTU, $1: 1500 within a node" reaches_with pod1 1500 10.244.1.3 fd00:10:244:1::3
    check "path MTU, $1: IPv4 learns 1300" learns_path_mtu pod1 10.244.2.3 1500 1300
    check "path MTU, $1: IPv6 learns 1300" learns_path_mtu pod1 fd00:10:244:2::3 1500 1300
    check "path MTU, $1: to the outside, IPv4" learns_path_mtu pod1 198.51.100.2 1500 1300
    check "path MTU, $1: to the outside, IPv6" learns_path_mtu pod1 2001:db8:ffff::2 1500 1300
    check "path MTU, $1: down" tb down --name "$A"
}

test_outside() {
    local topology
    check "masquerade: up" tb up --name "$A"
    check "masquerade: the outside answers only node1" answer_only_node1
    check "masquerade: node1's pod looks like node1" reaches pod1 198.51.100.2 2001:db8:ffff::2
    check "masquerade: node2's pod does not, IPv4" unreachable pod3 198.51.100.2
    check "masquerade: node2's pod does not, IPv6" unreachable pod3 2001:db8:ffff::2
    check "masquerade: down" tb down --name "$A"
    for topology in direct cloud; do
        check "no masquerade, $topology: up" tb up --name "$A" --topology $topology --no-masquerade
        check "no masquerade, $topology: no answer, IPv4" unreachable pod1 198.51.100.2
        check "no masquerade, $topology: no answer, IPv6" unreachable pod1 2001:db8:ffff::2
        check "no masquerade, $topology: nodes are known" reaches node1 198.51.100.2 2001:db8:ffff::2
        tb down --name "$A" >/dev/null
        check "route outside, $topology: up" tb up --name "$A" --topology $topology --no-masquerade --route-outside
        check "route outside, $topology: answers" reaches pod1 198.51.100.2 2001:db8:ffff::2
        check "route outside, $topology: pods from outside" reaches outside 10.244.2.3 fd00:10:244:2::3
        tb down --name "$A" >/dev/null
    done
}

test_shape() {
    check "shape: up" tb up --name "$A" --nodes 3 --pods 1 --queues 4 --uplink-queues 2 --pods-checksum-offload off \
        --bridge-netfilter off
    check "shape: pods are numbered across nodes" reaches pod1 10.244.2.2 10.244.3.2 fd00:10:244:3::2
    check "shape: 4 queues in the pod" grep -q 'numtxqueues 4 numrxqueues 4' <(inside pod1 ip -d link show eth0)
    check "shape: 4 queues on the host end" grep -q 'numtxqueues 4 numrxqueues 4' \
        <(inside node1 ip -d link show veth-pod1)
    check "shape: 2 queues on the uplink" grep -q 'numtxqueues 2 numrxqueues 2' <(inside node1 ip -d link show eth0)
    check "shape: checksum offload off" grep -q 'tx-checksumming: off' <(inside pod1 ethtool -k eth0)
    check "shape: cbr0 keeps its MAC" json_has '"name":"cbr0","ifindex":3,"mac":"02:63:62:72:00:01"'
    check "shape: a plain bridge" grep -q 'forward_delay 0 .* stp_state 0 .* mcast_snooping 0' \
        <(inside node1 ip -d link show cbr0)
    check "shape: no address is tentative" fails grep -rq tentative <(inside node1 ip addr; inside pod1 ip addr)
    check "shape: status is for people" says 0 '10.244.3.2/24' tb status --name "$A"
    check "shape: down" tb down --name "$A"
}

test_single_pods() {
    local pod1_pings_pod2=(reaches pod1 10.244.1.3 fd00:10:244:1::3)
    check "pods: up" tb up --name "$A"
    check "pods: pod1 knows pod2" "${pod1_pings_pod2[@]}"
    check "pods: del-pod" tb del-pod --name "$A" pod2
    check "pods: a removed pod is gone" unreachable pod1 10.244.1.3
    check "pods: removing it again is refused" says 1 'there is no pod2' tb del-pod --name "$A" pod2
    check "pods: it comes back with another MAC" says 0 'pod2 on node1: 10.244.1.3 fd00:10:244:1::3 02:00:00:00:00:99' \
        tb add-pod --name "$A" node1 pod2 --mac 02:00:00:00:00:99
    check "pods: reached at once under the new MAC" "${pod1_pings_pod2[@]}"
    check "pods: moves back while its MAC is known" readd_pod2
    check "pods: pod1 has been told, IPv4" grep -q 02:70:6f:64:00:02 <(inside pod1 ip neigh show 10.244.1.3)
    check "pods: pod1 has been told, IPv6" grep -q 02:70:6f:64:00:02 <(inside pod1 ip neigh show fd00:10:244:1::3)
    check "pods: reached at once under the old MAC" "${pod1_pings_pod2[@]}"
    check "pods: a new one gets the next number" says 0 'pod5 on node2: 10.244.2.4' tb add-pod --name "$A" node2
    check "pods: the new one is reached" reaches pod1 10.244.2.4 fd00:10:244:2::4
    check "pods: one that is there is refused" says 1 'there already' tb add-pod --name "$A" node1 pod1
    check "pods: json knows them" json_has '"name":"pod5"'
    check "pods: another node's pod is refused" moving_is_refused
    check "pods: two added at the same time" add_two
    check "pods: both are reached" reaches pod1 10.244.1.4 10.244.1.5
    check "pods: down" tb down --name "$A"
}

readd_pod2() {
    tb del-pod --name "$A" pod2 && tb add-pod --name "$A" node1 pod2
}

moving_is_refused() {
    tb del-pod --name "$A" pod5 && says 1 'addresses on node2' tb add-pod --name "$A" node1 pod5
}

add_two() {
    local one
    "$TESTBED" add-pod --name "$A" node1 &
    one=$!
    tb add-pod --name "$A" node1 && wait $one
}

test_many_pods() {
    check "250 pods: up" tb up --name "$A" --nodes 1 --pods 250
    check "250 pods: first to last" reaches pod1 10.244.1.251 fd00:10:244:1::251
    check "250 pods: the last to the outside" reaches pod250 198.51.100.2 2001:db8:ffff::2
    check "250 pods: the /24 fills up" fill_the_last_addresses
    check "250 pods: down" tb down --name "$A"
}

fill_the_last_addresses() {
    tb add-pod --name "$A" node1 && tb add-pod --name "$A" node1 && tb add-pod --name "$A" node1 &&
        says 1 'no free pod address' tb add-pod --name "$A" node1
}

test_two_instances() {
    check "two testbeds: built at the same time" both up
    check "two testbeds: one works" reaches pod1 10.244.2.3 fd00:10:244:2::3
    check "two testbeds: the other one is removed" tb down --name "$B"
    check "two testbeds: the one still works" reaches pod1 10.244.2.2 198.51.100.2
    check "two testbeds: removed and built at the same time" swap
    check "two testbeds: the new one works" tb exec --name "$B" pod1 ping -n -c 1 -W 2 10.244.2.3
    check "two testbeds: of two equal ones, one is built" one_of_two
    check "two testbeds: down" both down
    check "two testbeds: nothing is left" nothing_left
}

both() { # SUBCOMMAND
    local one
    "$TESTBED" "$1" --name "$A" &
    one=$!
    tb "$1" --name "$B" && wait $one
}

swap() {
    local one
    "$TESTBED" down --name "$A" &
    one=$!
    tb up --name "$B" --topology cloud && wait $one
}

one_of_two() {
    local one code=0 other=0
    "$TESTBED" up --name "$A" &
    one=$!
    tb up --name "$A" || code=$?
    wait $one || other=$?
    ((code + other == 1)) && reaches pod1 10.244.2.2
}

test_ends() {
    local willing stubborn
    check "ends: up" tb up --name "$A"
    check "ends: up twice is refused" says 1 'is up already' tb up --name "$A"
    check "ends: which leaves it as it is" reaches pod1 10.244.2.2
    # One that ends when asked to, and one that does not.
    "$TESTBED" exec --name "$A" pod1 sleep 1000 &
    willing=$!
    "$TESTBED" exec --name "$A" node1 sh -c "trap '' TERM; while :; do sleep 1000; done" &
    stubborn=$!
    disown $willing $stubborn # so that the shell does not comment on their end
    until [[ $(ip netns pids "$A-node1" | wc -l) -ge 2 && -n $(ip netns pids "$A-pod1") ]]; do sleep 0.01; done
    check "ends: exec at no such pod" says 1 'there is no pod9' tb exec --name "$A" pod9 true
    check "ends: exec at no such place" says 2 'no place' tb exec --name "$A" moon true
    check "ends: exec gives the exit code" says 7 '' inside pod1 sh -c 'exit 7'
    check "ends: down" tb down --name "$A"
    check "ends: a process inside has ended" fails readlink /proc/$willing/ns/net
    check "ends: one that did not want to, too" fails readlink /proc/$stubborn/ns/net
    check "ends: nothing is left" nothing_left
    check "ends: down again does nothing" says 0 'was not up' tb down --name "$A"
    check "ends: status of nothing" says 1 'is not up' tb status --name "$A"
    check "ends: status of nothing, json" says 1 '"up":false' tb status --json --name "$A"
    check "ends: exec in nothing" says 1 'is not up' tb exec --name "$A" pod1 true
    check "ends: an up that fails takes itself down" failing_up
    check "ends: nothing is left of it" nothing_left
    check "ends: an up that is stopped takes itself down" stopped_up
    check "ends: nothing is left of that" nothing_left
}

failing_up() {
    mkdir -p "$SCRATCH/bin"
    printf '#!/bin/sh\nexit 1\n' >"$SCRATCH/bin/nft"
    chmod +x "$SCRATCH/bin/nft"
    PATH=$SCRATCH/bin:$PATH says 1 'taking the unfinished' tb up --name "$A"
}

stopped_up() {
    local pid code=0
    "$TESTBED" up --name "$A" --pods 100 & # not through a function: the signal is for the script itself
    pid=$!
    until [[ -e /run/netns/$A-pod100 ]]; do sleep 0.01; done
    kill -TERM $pid
    wait $pid || code=$?
    [[ $code -eq 143 ]]
}

test_refusals() {
    local help="see ${TESTBED##*/} --help"
    check "refused: no subcommand" says 2 'say what to do' tb
    check "refused: unknown subcommand" says 2 "no subcommand 'start'" tb start
    check "refused: unknown option" says 2 "$help" tb up --podz 3
    check "refused: too many nodes" says 2 'from 1 to 16' tb up --nodes 17
    check "refused: too many pods" says 2 'from 0 to 250' tb up --pods=251
    check "refused: not a number" says 2 "not '08'" tb up --nodes 08
    check "refused: no value" says 2 'needs a value' tb up --mtu
    check "refused: MTU too small for IPv6" says 2 'from 1280' tb up --mtu 1279
    check "refused: no such topology" says 2 "'direct' or 'cloud'" tb up --topology ring
    check "refused: a name with a dash" says 2 '1 to 8 of a-z' tb up --name a-b
    check "refused: a multicast MAC" says 2 'multicast' tb add-pod node1 --mac 01:00:5e:00:00:01
    check "refused: a short MAC" says 2 'six hexadecimal' tb add-pod node1 --mac 02:00:5e
    check "refused: up's option at down" says 2 "belongs to 'up'" tb down --nodes 2
    check "refused: exec without a command" says 2 'a place and a command' tb exec pod1
    check "refused: a switch with a value" says 2 'takes no value' tb up --ipv4=yes
    check "help is there" says 0 'Examples:' tb --help
}

# ---------------------------------------------------------------------------------------------------------------------

clean_up() {
    "$TESTBED" down --name "$A" >/dev/null 2>&1 || true
    "$TESTBED" down --name "$B" >/dev/null 2>&1 || true
    rm -rf "$SCRATCH"
}

main() {
    local topology family
    command -v ping >/dev/null || { echo "ping is missing: install the package 'iputils-ping'." >&2; exit 1; }
    [[ $EUID -eq 0 ]] || { echo "Network namespaces need root: run it again with sudo." >&2; exit 1; }
    trap clean_up EXIT
    ROOT_LINKS=$(root_links || true)
    test_refusals
    for topology in direct cloud; do
        for family in ipv4 ipv6 dual; do test_reachability $topology $family; done
        test_path_mtu $topology
    done
    test_large_mtu 9000
    test_large_mtu 65000
    test_outside
    test_shape
    test_single_pods
    test_two_instances
    test_ends
    test_many_pods
    check "nothing is left at the end" nothing_left
    printf '%d passed, %d failed\n' "$PASSED" "$FAILED"
    [[ $FAILED -eq 0 ]]
}

main
