#!/usr/bin/env bash
#
# Podlane at work: two nodes with two pods each, in network namespaces of this machine, as root on a Debian machine.
#
#   scripts/demo.sh [--keep] [--topology direct|cloud] [--workers N] [--no-build]
#
#   --keep      leave everything running at the end, and say how to look around and how to remove it
#   --topology  direct: the nodes share one L2 segment (default); cloud: a router between them holds the pods' routes
#   --workers   worker threads of each node, 1 to 16 (default: 1)
#   --no-build  take the program as it was built before
#
# Installs what is missing, builds, raises the network, starts Podlane on both nodes and lets pods talk to pods, to
# their node and to a host outside. What it says of each packet's way comes from the counters of Podlane and of the
# interfaces at both ends. Exit code 0 if everything arrived and went the way that it should, 1 if not, 2 for wrong
# options.

set -euo pipefail

# Widths are counted in characters and fractions have points, whoever runs this.
export LC_ALL=C.UTF-8

cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly BINARY=${CARGO_TARGET_DIR:-target}/release/podlane
readonly TESTBED=scripts/netns-testbed.sh
readonly NAME=d$$                   # of the testbed
readonly CLUSTER=10.244.0.0/16,fd00:10:244::/48
readonly READY_SECONDS=30           # a daemon is ready in one, unless the machine is very busy
readonly QUIET_SECONDS=10           # so long frames may be under way after a test
readonly TEST_SECONDS=20            # so long one test may take
readonly TRIES=3                    # of a test that a busy machine disturbs
readonly PINGS=20 TCP_SECONDS=1
# Small and few enough to wait in the receiver's buffer should it not get the processor for a moment.
readonly DATAGRAMS=1000 DATAGRAM_BYTES=512 DATAGRAM_BITRATE=4M

KEEP=no TOPOLOGY=direct WORKERS=1 BUILD=yes
WORK=''                             # directory for control sockets, logs and answers
UP=no                               # the testbed
JOB=''                              # what is running in the foreground
DAEMONS=() SERVERS=()               # processes in the background

# ---------------------------------------------------------------------------------------------------------------------
# Saying things

BOLD='' DIM='' GREEN='' RED='' PLAIN=''
if [[ -t 1 && -z ${NO_COLOR:-} ]]; then
    BOLD=$'\e[1m' DIM=$'\e[2m' GREEN=$'\e[32m' RED=$'\e[31m' PLAIN=$'\e[0m'
fi

fail() {
    printf 'demo.sh: %s\n' "$*" >&2
    exit 1
}

refuse() { # for a wrong command line
    printf 'demo.sh: %s\n' "$*" >&2
    exit 2
}

heading() { printf '\n%s── %s%s\n' "$BOLD" "$*" "$PLAIN"; }
say() { printf '   %s\n' "$*"; }
remark() { printf '   %s%s%s\n' "$DIM" "$*" "$PLAIN"; }

# bash's printf counts bytes; arrows have three.
left() { printf '%s%*s' "$1" $(($2 > ${#1} ? $2 - ${#1} : 0)) ''; }   # TEXT WIDTH
right() { printf '%*s%s' $(($2 > ${#1} ? $2 - ${#1} : 0)) '' "$1"; }

thousands() { # NUMBER, or anything else as it is
    local rest=$1 grouped=''
    while [[ $rest =~ ^([0-9]+)([0-9]{3})$ ]]; do
        rest=${BASH_REMATCH[1]} grouped=,${BASH_REMATCH[2]}$grouped
    done
    printf '%s' "$rest$grouped"
}

number_of() { # COUNT SINGULAR PLURAL
    if (($1 == 1)); then printf '1 %s' "$2"; else printf '%s %s' "$(thousands "$1")" "$3"; fi
}

# ---------------------------------------------------------------------------------------------------------------------
# The command line

parse_command_line() {
    while (($#)); do
        case $1 in
            --keep) KEEP=yes ;;
            --no-build) BUILD=no ;;
            --topology | --workers)
                (($# >= 2)) || refuse "$1 needs a value after it; see $0 --help."
                check_value "$1" "$2"
                shift
                ;;
            -h | --help)
                sed -n '3,/^$/s/^# \{0,1\}//p' scripts/demo.sh
                exit 0
                ;;
            *) refuse "there is no option '$1'; see $0 --help." ;;
        esac
        shift
    done
}

check_value() { # OPTION VALUE
    case $1 in
        --topology)
            [[ $2 == direct || $2 == cloud ]] || refuse "--topology takes 'direct' or 'cloud', not '$2'."
            TOPOLOGY=$2
            ;;
        --workers)
            [[ $2 =~ ^([1-9]|1[0-6])$ ]] || refuse "--workers takes a number from 1 to 16, not '$2'."
            WORKERS=$2
            ;;
    esac
}

# ---------------------------------------------------------------------------------------------------------------------
# Processes, and leaving nothing behind

# Runs a command so that a signal to this script is obeyed at once: a shell that waits for a foreground command is deaf.
# The command is the leader of its own process group, and is ended with all of it.
run() { # CMD…
    local code=0
    set -m
    "$@" </dev/null &
    JOB=$!
    set +m
    wait "$JOB" || code=$?
    JOB=''
    return "$code"
}

# Out of the terminal's reach: Ctrl-C is for this script, which then ends them in order.
in_background() { # PLACE LOG CMD…; its process is $!
    # Not `ip netns exec`, which hides the machine's bpffs.
    setsid nsenter --net="/run/netns/$NAME-$1" -- "${@:3}" </dev/null >"$2" 2>&1 &
}

end_processes() { # PID…
    local pid tries
    kill "$@" 2>/dev/null || true
    for pid in "$@"; do
        for ((tries = 0; tries < 100; tries++)); do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.05
        done
        kill -KILL "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
}

clean_up() {
    local code=$?
    trap - EXIT
    trap '' INT TERM HUP            # a second Ctrl-C does not interrupt the cleaning
    set +e
    [[ -z $JOB ]] || kill -- "-$JOB" 2>/dev/null
    [[ -z $JOB ]] || wait "$JOB" 2>/dev/null
    ((${#SERVERS[@]} == 0)) || end_processes "${SERVERS[@]}"
    if [[ $UP == kept ]]; then exit "$code"; fi
    ((${#DAEMONS[@]} == 0)) || end_processes "${DAEMONS[@]}"
    [[ $UP == no ]] || $TESTBED down --name "$NAME" >/dev/null || code=1
    [[ -z $WORK ]] || rm -rf "$WORK"
    exit "$code"
}

# ---------------------------------------------------------------------------------------------------------------------
# Setting up

prepare() {
    [[ $EUID -eq 0 ]] || fail "network namespaces and AF_XDP need root: run it again with sudo."
    # sudo forgets where rustup has put cargo.
    command -v cargo >/dev/null || PATH=$PATH:$HOME/.cargo/bin
    run scripts/deps.sh build demo
    describe_machine
    build
    WORK=$(mktemp -d /tmp/podlane-demo.XXXXXX)
    export PODLANE_RUN_DIR=$WORK/run
}

describe_machine() {
    local system processor memory
    system=$(sed -n 's/^PRETTY_NAME="\(.*\)"$/\1/p' /etc/os-release 2>/dev/null) || true
    processor=$(sed -n '/^model name/{s/.*: *//p;q}' /proc/cpuinfo)
    memory=$(awk '/^MemTotal/ { printf "%.0f", $2 / 1048576 }' /proc/meminfo)
    heading 'This machine'
    say "${system:-unknown system}, kernel $(uname -r), $(uname -m)"
    say "$(number_of "$(nproc)" processor processors)${processor:+ ($processor)}, $memory GiB of memory," \
        "load $(cut -d' ' -f1 /proc/loadavg)"
}

build() {
    if [[ $BUILD == no ]]; then
        [[ -x $BINARY ]] || fail "there is no $BINARY: leave --no-build out."
        return
    fi
    heading 'Building Podlane (cargo build --release)'
    run nice cargo build --release -p podlane || fail "the build failed; the reason is above."
}

raise_testbed() {
    heading 'Raising two nodes with two pods each'
    UP=yes
    run $TESTBED up --name "$NAME" --topology "$TOPOLOGY" --queues "$WORKERS" --uplink-queues "$WORKERS" >"$WORK/up" ||
        fail "the testbed could not be raised; the reason is above."
    draw_testbed
}

draw_testbed() {
    local middle='segment' uplinks='192.168.100.1 and 192.168.100.2' routes="to the other node's pods"
    if [[ $TOPOLOGY == cloud ]]; then
        middle='router ' uplinks='192.168.101.2 and 192.168.102.2' routes='to a default gateway, no others'
    fi
    say '   pod1   pod2             pod3   pod4       pods      10.244.1.2, .3     10.244.2.2, .3'
    say '    │      │  veth pairs    │      │                   fd00:10:244:1::2…  fd00:10:244:2::2…'
    say '  ┌─┴─cbr0─┴─┐           ┌──┴─cbr0─┴┐        gateways  10.244.1.1         10.244.2.1'
    say '  │  node1   │           │  node2   │                  fd00:10:244:1::1   fd00:10:244:2::1'
    say "  └───eth0───┘           └───eth0───┘        uplinks   $uplinks"
    say "       └─────── $middle ───────┘             routes    $routes"
    say '                   └── outside               outside   198.51.100.2, 2001:db8:ffff::2'
    [[ $TOPOLOGY == direct ]] ||
        remark "The router's table knows which node has which pods, as a cloud provider's does."
}

start_podlane() {
    local node options
    heading 'Starting Podlane on both nodes'
    for node in 1 2; do
        options="--bridge cbr0 --uplink eth0 --cluster-cidr $CLUSTER $(worker_options "$node")"
        say "node$node: podlane run $options"
        # shellcheck disable=SC2086 # the options are words
        in_background "node$node" "$WORK/node$node.log" "$BINARY" run --instance "$NAME-node$node" $options
        DAEMONS+=($!)
    done
    for node in 1 2; do wait_until_ready "$node"; done
    remark "From now on an XDP program on every veth and uplink steers the pods' packets into AF_XDP sockets."
}

# Two nodes share one machine here: a worker each gets a processor each, if there are two.
worker_options() { # NODE
    local allowed
    allowed=$(sed -n 's/^Cpus_allowed_list:[[:space:]]*//p' /proc/self/status)
    case $WORKERS,$1 in
        1,1) printf -- '--cpus %s' "${allowed%%[-,]*}" ;;
        1,2) printf -- '--cpus %s' "${allowed##*[-,]}" ;;
        *) printf -- '--workers %s' "$WORKERS" ;;
    esac
}

wait_until_ready() { # NODE
    local deadline=$((SECONDS + READY_SECONDS)) log=$WORK/node$1.log
    until grep -q 'podlane is ready' "$log"; do
        if ! kill -0 "${DAEMONS[$1 - 1]}" 2>/dev/null || ((SECONDS >= deadline)); then
            cat "$log" >&2
            fail "Podlane did not become ready on node$1 within $READY_SECONDS seconds; above is what it says."
        fi
        sleep 0.05
    done
    say "node$1: $(sed -n 's/.*podlane is ready: //p' "$log")"
}

# ---------------------------------------------------------------------------------------------------------------------
# Counters: Podlane's own, and those of the interfaces at the ends of the way. All have a name such as
# node1/veth-pod1/steered; GREW["ping node1/veth-pod1/steered"] is by how much it grew during that test of this leg.

declare -A NOW=() GREW=()

# shellcheck disable=SC2016 # jq's variables
readonly STATUS_TO_COUNTERS='
    def reasons($at; $kind): .by_reason | to_entries[] | "\($at)/\($kind):\(.key) \(.value)";
    (.ports[] | "\($node)/\(.name)" as $at
        | "\($at)/steered \(.steered)", "\($at)/forwarded \(.forwarded)", "\($at)/tx \(.tx_packets)",
          "\($at)/passed \(.passed.total)", (.passed | reasons($at; "left")), (.kernel | reasons($at; "left")),
          (.dropped | reasons($at; "lost")), (.tx_dropped | reasons($at; "lost")),
          (.socket_drops | to_entries[] | "\($at)/lost:\(.key) \(.value)")),
    (.workers[] | "\($node)/worker\(.id)/forwarded \(.forwarded)"),
    "\($node)/balanced \(if .accounts_balance then 1 else 0 end)"'

read_counters() {
    local place counter value
    for place in node1 node2; do read_status "$place"; done
    for place in pod1 pod2 pod4 outside "$(fabric)"; do interface_counters "$place"; done >"$WORK/ends.counters"
    while read -r counter value; do
        NOW[$counter]=$value
    done < <(cat "$WORK"/*.counters)
}

fabric() { if [[ $TOPOLOGY == cloud ]]; then printf router; else printf segment; fi; }

# Waits until no frame is on its way any more, which is when the accounts balance.
read_status() { # NODE
    local deadline=$((SECONDS + QUIET_SECONDS)) counters=$WORK/$1.counters
    while true; do
        "$BINARY" status --json --instance "$NAME-$1" | jq -r --arg node "$1" "$STATUS_TO_COUNTERS" >"$counters" || {
            tail -n 20 "$WORK/$1.log" >&2
            fail "Podlane on $1 does not answer; above is the end of its log."
        }
        if ((SECONDS >= deadline)) || grep -q '/balanced 1$' "$counters"; then return; fi
        sleep 0.05
    done
}

interface_counters() { # PLACE
    # The columns: https://docs.kernel.org/filesystems/proc.html, /proc/net/dev; the last two files have a UDP counter
    # for datagrams that found the receiver's buffer full.
    # shellcheck disable=SC2016 # awk's fields
    nsenter --net="/run/netns/$NAME-$1" awk -v place="$1" '
        FILENAME ~ /dev$/ && FNR > 2 { sub(":", " "); print place "/" $1 "/in", $3; print place "/" $1 "/out", $11 }
        FILENAME ~ /snmp$/ && $1 == "Udp:" {
            if ($2 ~ /^[0-9]/) overrun += $column
            else for (i = 2; i <= NF; i++) if ($i == "RcvbufErrors") column = i
        }
        $1 == "Udp6RcvbufErrors" { overrun += $2 }
        END { print place "/udp/overrun", overrun + 0 }' /proc/net/dev /proc/net/snmp /proc/net/snmp6
}

# What the counters grow by from the last reading to the end of this test.
measure() { # TEST CMD…
    local counter
    local -A before=()
    for counter in "${!NOW[@]}"; do before[$counter]=${NOW[$counter]}; done
    "${@:2}"
    read_counters
    for counter in "${!NOW[@]}"; do
        GREW["$1 $counter"]=$((${NOW[$counter]} - ${before[$counter]:-0}))
    done
}

# Again, if a worker did not get its processor: then the test shows how packets fall to the kernel, and answers may come
# later than ping waits (twice the longest time so far, whatever -W says).
measure_undisturbed() { # TEST CMD…
    local tries stalled problems=("${PROBLEMS[@]}")
    for ((tries = 1; ; tries++)); do
        measure "$@"
        stalled=$(grew "$1" '*/left:worker_stalled')
        ((stalled > 0 && tries < TRIES)) || return 0
        ((${#PROBLEMS[@]} > ${#problems[@]} || stalled * 4 > $(through_workers "$1"))) || return 0
        stalled=$(number_of "$stalled" packet packets)
        remark "The machine was too busy to let a worker run: $stalled fell to the kernel. Again:"
        PROBLEMS=("${problems[@]}")
    done
}

# Sum of what grew, over all counters whose name matches.
grew() { # TEST-PATTERN COUNTER-PATTERN
    local counter sum=0
    for counter in "${!GREW[@]}"; do
        # shellcheck disable=SC2053 # they are patterns
        [[ $counter != $1' '$2 ]] || sum=$((sum + ${GREW[$counter]}))
    done
    printf '%d' "$sum"
}

# What keeps the network itself going is the kernel's on every way.
housekeeping() { # TEST-PATTERN
    printf '%d' $(($(grew "$1" '*/left:not_ip') + $(grew "$1" '*/left:nd') + $(grew "$1" '*/left:group')))
}

through_workers() { grew "$1" '*/worker*/forwarded'; }                              # TEST-PATTERN
through_kernel() { printf '%d' $(($(grew "$1" '*/left:*') - $(housekeeping "$1"))); }

# ---------------------------------------------------------------------------------------------------------------------
# Tests: FROM talks to ADDRESS of TO; what goes wrong is added to PROBLEMS

FROM='' TO='' ADDRESS='' PROBLEMS=()
PING='' TTL='' TCP='' UDP='' UDP_LOST=0 PEER=''

inside() { # PLACE CMD…
    run timeout "$TEST_SECONDS" ip netns exec "$NAME-$1" "${@:2}"
}

ping_test() {
    local report=$WORK/ping sent got
    inside "$FROM" ping -n -c $PINGS -i 0.05 -W 5 "$ADDRESS" >"$report" 2>&1 || true
    sent=$(sed -n 's/^\([0-9]*\) packets transmitted.*/\1/p' "$report")
    got=$(sed -n 's/^.*transmitted, \([0-9]*\) received.*/\1/p' "$report")
    PING=$(sed -n 's|^rtt [^=]*= [^/]*/\([^/]*\)/.*|\1 ms|p' "$report") PING=${PING:--}
    TTL=$(sed -n 's/.* ttl=\([0-9]*\) .*/\1/p' "$report" | tail -n 1)
    if [[ -z $got ]]; then
        PROBLEMS+=("ping: $(tail -n 1 "$report")")
    elif ((got < sent)); then
        PROBLEMS+=("ping: only $got of $sent were answered")
    else
        say "ping   $got of $sent answered, $PING on average; the answers' TTL is $TTL: $(routed $((64 - TTL)))"
    fi
}

routed() { # TIMES
    case $1 in
        0) printf 'not routed' ;;
        1) printf 'routed once' ;;
        2) printf 'routed twice' ;;
        *) printf 'routed %d times' "$1" ;;
    esac
}

tcp_test() {
    TCP=-
    transfer tcp -t $TCP_SECONDS || return 0
    TCP=$(jq '.end.sum_received.bits_per_second' "$WORK/tcp" | awk '{ printf "%.2f Gbit/s", $1 / 1e9 }')
    say "TCP    $TCP (iperf3)"
}

udp_test() {
    local sent
    UDP=- UDP_LOST=0
    transfer udp -u -k $DATAGRAMS -l $DATAGRAM_BYTES -b $DATAGRAM_BITRATE || return 0
    read -r sent UDP_LOST < <(jq -r '"\(.end.sum.packets) \(.end.sum.lost_packets)"' "$WORK/udp")
    UDP="$(thousands $((sent - UDP_LOST)))/$(thousands "$sent")"
    say "UDP    $(thousands $((sent - UDP_LOST))) of $(number_of "$sent" datagram datagrams) arrived in time (iperf3)"
}

transfer() { # REPORT IPERF3-OPTION…
    local report=$WORK/$1 server=$WORK/server
    in_background "$TO" "$server" iperf3 -s -1 --forceflush
    SERVERS=($!)
    wait_until_listening || true
    inside "$FROM" iperf3 -J -c "$ADDRESS" "${@:2}" >"$report" 2>&1 || true
    end_processes "${SERVERS[@]}"
    SERVERS=()
    PEER=$(sed -n 's/^Accepted connection from \([^,]*\),.*/\1/p' "$server")
    jq -e '.end | has("sum") or has("sum_received")' "$report" >/dev/null 2>&1 || {
        PROBLEMS+=("${1^^}: $(jq -r '.error // "iperf3 did not finish"' "$report" 2>/dev/null || tail -n 1 "$report")")
        return 1
    }
}

# iperf3's port 5201 is 0x1451; 0A is the state "listening" (include/net/tcp_states.h).
wait_until_listening() {
    local tries
    for ((tries = 0; tries < 100; tries++)); do
        ! nsenter --net="/run/netns/$NAME-$TO" grep -q ':1451 0*:0000 0A' /proc/net/tcp6 || return 0
        sleep 0.05
    done
    return 1
}

# ---------------------------------------------------------------------------------------------------------------------
# The ways of the article, hop by hop

readonly TESTS=(ping TCP UDP)

way_on_one_node() {
    hop pod1 eth0 pod1/eth0/out pod1/eth0/in
    hop node1 'veth-pod1, its AF_XDP socket' node1/veth-pod1/steered node1/veth-pod1/tx
    hop node1 "$(workers_of node1): bridges, frame as it is" node1/veth-pod1/forwarded node1/veth-pod2/forwarded
    hop node1 'veth-pod2, its AF_XDP socket' node1/veth-pod2/tx node1/veth-pod2/steered
    hop pod2 eth0 pod2/eth0/in pod2/eth0/out
}

way_across_nodes() {
    hop pod1 eth0 pod1/eth0/out pod1/eth0/in
    hop node1 'veth-pod1, its AF_XDP socket' node1/veth-pod1/steered node1/veth-pod1/tx
    hop node1 "$(workers_of node1): routes, TTL − 1, new MACs" node1/veth-pod1/forwarded node1/eth0/forwarded
    hop node1 'eth0, its AF_XDP socket' node1/eth0/tx node1/eth0/steered
    hop_of_fabric
    hop node2 'eth0, its AF_XDP socket' node2/eth0/steered node2/eth0/tx
    hop node2 "$(workers_of node2): routes, TTL − 1, new MACs" node2/eth0/forwarded node2/veth-pod4/forwarded
    hop node2 'veth-pod4, its AF_XDP socket' node2/veth-pod4/tx node2/veth-pod4/steered
    hop pod4 eth0 pod4/eth0/in pod4/eth0/out
}

hop_of_fabric() {
    if [[ $TOPOLOGY == cloud ]]; then
        hop router "kernel: routes by the provider's table" router/node1/in router/node1/out
    else
        hop segment 'a switch' segment/node1/in segment/node1/out
    fi
}

# What the kernel sends out of a port does not pass Podlane at all, so Podlane has no counter of it.
way_from_node() {
    hop node1 'kernel: the node itself, cbr0' - -
    hop node1 "$(workers_of node1)" - node1/veth-pod1/forwarded
    hop node1 'veth-pod1, XDP passes to the kernel' - node1/veth-pod1/passed
    hop pod1 eth0 pod1/eth0/in pod1/eth0/out
}

way_to_node() {
    hop pod1 eth0 pod1/eth0/out pod1/eth0/in
    hop node1 'veth-pod1, XDP passes to the kernel' node1/veth-pod1/passed -
    hop node1 "$(workers_of node1)" node1/veth-pod1/forwarded -
    hop node1 'kernel: cbr0, the node itself' - -
}

way_outside() {
    hop pod1 eth0 pod1/eth0/out pod1/eth0/in
    hop node1 'veth-pod1, XDP passes to the kernel' node1/veth-pod1/passed -
    hop node1 "$(workers_of node1)" node1/veth-pod1/forwarded node1/eth0/forwarded
    hop node1 'kernel: routes, changes the address' - -
    hop node1 'eth0, XDP passes to the kernel' - node1/eth0/passed
    hop_of_fabric
    hop outside eth0 outside/eth0/in outside/eth0/out
}

workers_of() { # NODE; those that did something
    local id list=''
    for ((id = 0; id < WORKERS; id++)); do
        (($(grew '*' "$1/worker$id/forwarded") == 0)) || list+=${list:+, }$id
    done
    case $list in
        '') if ((WORKERS == 1)); then printf 'worker'; else printf 'workers'; fi ;;
        *,*) printf 'workers %s' "$list" ;;
        *) printf 'worker %s' "$list" ;;
    esac
}

hop() { # PLACE WHAT COUNTER-OF-THERE COUNTER-OF-BACK; - where nobody counts
    local test counter
    printf '   '
    left "$1" 8
    left "$2" 38
    for test in "${TESTS[@]}"; do
        for counter in "$3" "$4"; do right "$(thousands "${GREW[$test $counter]:-·}")" 9; done
    done
    printf '\n'
}

print_way() { # WAY
    local test
    printf '\n   %s' "$DIM"
    left 'Packets at each hop' 46
    for test in "${TESTS[@]}"; do
        right "$test →" 9
        right '←' 9
    done
    printf '%s\n' "$PLAIN"
    "$1"
    printf '\n'
}

# What workers did, and what was not for them: each reason in the words of the engine.
print_accounts() {
    say "$(thousands "$(through_workers '*')") packets forwarded by workers."
    print_reasons left 'Left to the kernel:'
    print_reasons lost 'Lost by workers:'
}

print_reasons() { # KIND HEADING
    local counter reason count heading=$2
    local -A counts=()
    for counter in "${!GREW[@]}"; do
        reason=${counter##*:}
        [[ $counter != */"$1":* ]] || counts[$reason]=$((${counts[$reason]:-0} + ${GREW[$counter]}))
    done
    for reason in "${!counts[@]}"; do printf '%d %s\n' "${counts[$reason]}" "$reason"; done | sort -rn |
        while read -r count reason; do
            ((count > 0)) || break
            [[ -z $heading ]] || say "$heading"
            heading=''
            say "$(right "$(thousands "$count")" 11) $(left "$reason" 16) $(sentence_of "$reason")"
        done
}

sentence_of() { # REASON
    case $1 in
        fill_ring_empty | rx_ring_full) printf 'More came than the worker kept up with; TCP slows down then.' ;;
        *) sed -n "s/^ *[A-Za-z]* = [0-9]*, \"$1\", \"\(.*\)\";$/\1/p" dataplane/src/forward/reason.rs ;;
    esac
}

# ---------------------------------------------------------------------------------------------------------------------
# Legs

ROWS=() NOTES=() FAILED=0

# First packets find empty tables, with Podlane as without.
first_contact() {
    heading 'First contact'
    say "ARP and neighbour discovery are the kernel's; Podlane reads in its tables who is where, and takes over."
    read_counters
    meet pod1 pod2 10.244.1.3 2
    meet pod1 pod2 fd00:10:244:1::3 2
    meet pod1 pod4 10.244.2.3 4
    meet pod1 pod4 fd00:10:244:2::3 4
    remark "In the tables below → is the way there, ← the way back, · what the kernel does and nobody counts for us."
}

# Pings until a packet and its answer are forwarded by workers on all of their way.
meet() { # FROM TO ADDRESS FRAMES
    local tries where
    where=$(left "$1 → $2" 12)$(left "$3" 17)
    for ((tries = 1; tries <= 50; tries++)); do
        GREW=()
        measure ping inside "$1" ping -n -q -c 1 -W 1 "$3" >/dev/null || true
        (($(through_workers ping) < $4)) || break
    done
    if ((tries > 50)); then
        say "$where none of 50 pings went through workers"
    elif ((tries == 1)); then
        say "$where ping 1 and its answer already went through workers"
    else
        say "$where from ping $tries on through workers; before it the kernel resolved addresses"
    fi
}

legs() {
    leg 'pod1 → pod2, on one node' pod1 pod2 10.244.1.3 fd00:10:244:1::3 way_on_one_node worker
    leg 'pod1 → pod4, across nodes' pod1 pod4 10.244.2.3 fd00:10:244:2::3 way_across_nodes worker
    leg 'node1 → pod1' node1 pod1 10.244.1.2 fd00:10:244:1::2 way_from_node for_node
    leg 'pod1 → node1' pod1 node1 10.244.1.1 fd00:10:244:1::1 way_to_node for_node
    leg 'pod1 → outside' pod1 outside 198.51.100.2 2001:db8:ffff::2 way_outside outside_cluster
}

leg() { # TITLE FROM TO IPV4 IPV6 WAY worker|REASON
    FROM=$2 TO=$3
    ADDRESS=$4
    leg_of_family "$1" IPv4 "$6" "$7"
    ADDRESS=$5
    leg_of_family "$1" IPv6 "$6" "$7"
}

leg_of_family() { # TITLE FAMILY WAY worker|REASON
    PROBLEMS=() GREW=()
    heading "$1, $2 ($ADDRESS)"
    explain "$3"
    measure_undisturbed ping ping_test
    measure_undisturbed TCP tcp_test
    measure_undisturbed UDP udp_test
    print_way "$3"
    print_accounts
    [[ $3 != way_outside ]] || check_masquerade
    judge_udp "$1, $2"
    if [[ $4 == worker ]]; then judge_worker_leg "$1, $2"; else judge_kernel_leg "$4"; fi
    conclude "$1" "$2"
}

explain() { # WAY
    case $1 in
        way_on_one_node) say "Both hang on node1's cbr0: a worker knows behind which port pod2's MAC address is." ;;
        way_across_nodes) say "pod4's network is node2's: a worker of each node routes by CIDR, and counts as a hop." ;;
        way_from_node) say "The node talks to its pod, as kubelet's probes do: answers are for the node's kernel." ;;
        way_to_node) say "A pod talks to its node: the node's kernel answers." ;;
        way_outside) say "A pod talks to the world: the kernel masquerades, so both directions are the kernel's." ;;
    esac
}

check_masquerade() {
    if [[ -n $PEER && $(ip -n "$NAME-node1" -o addr show dev eth0) == *" $PEER/"* ]]; then
        say "The outside saw $PEER as the sender, which is node1's eth0."
    else
        PROBLEMS+=("the outside saw '$PEER' as the sender, not node1's address")
    fi
}

# On a machine that is too busy, a datagram may come when iperf3 does not listen any more, or find its buffer full, or
# be lost; but not many are lost, and none without a trace.
judge_udp() { # LEG
    local sent=${GREW[UDP $FROM/eth0/out]:-} arrived=${GREW[UDP $TO/eth0/in]:-} traced missing=$UDP_LOST
    ((UDP_LOST > 0)) || return 0
    # The interfaces of both ends know it better than iperf3.
    [[ -z $sent || -z $arrived ]] || missing=$((sent > arrived ? sent - arrived : 0))
    traced=$(grew UDP '*/lost:*')
    if ((missing * 10 > DATAGRAMS || missing > traced)); then
        PROBLEMS+=("UDP: $(number_of "$missing" 'datagram was' 'datagrams were') lost")
    else
        NOTES+=("$1: $UDP_LOST datagrams came too late for iperf3 or found its buffer full, $missing were lost.")
    fi
}

# Most of every test must have gone through workers. A few packets may fall to the kernel where a worker was kept from
# its processor, or where a neighbour was being resolved again.
judge_worker_leg() { # LEG
    local test workers kernel
    for test in "${TESTS[@]}"; do
        workers=$(through_workers "$test") kernel=$(through_kernel "$test")
        ((workers > 0 && kernel * 4 <= workers)) ||
            PROBLEMS+=("$test: workers forwarded $workers packets, the kernel $kernel")
    done
    kernel=$(through_kernel '*')
    ((kernel == 0)) ||
        NOTES+=("$1: $(number_of "$kernel" packet packets) fell to the kernel ($(fallen_because)).")
}

# The reasons, but those of housekeeping.
fallen_because() {
    local counter reason because=''
    for counter in "${!GREW[@]}"; do
        reason=${counter##*:}
        [[ $counter == */left:* && ! $reason =~ ^(not_ip|nd|group)$ ]] || continue
        [[ ${GREW[$counter]} == 0 || $because == *"$reason"* ]] || because+=", $reason"
    done
    [[ $because != *worker_stalled* ]] || because+=': the machine was too busy'
    printf '%s' "${because#, }"
}

judge_kernel_leg() { # REASON
    local workers reason
    workers=$(through_workers '*') reason=$(grew '*' "*/left:$1")
    ((workers == 0)) || PROBLEMS+=("workers forwarded $workers packets that are the kernel's")
    ((reason > 0)) || PROBLEMS+=("no packet was left to the kernel as $1")
}

conclude() { # TITLE FAMILY [BY-WORKERS BY-KERNEL]
    local problem way=worker result=ok
    local workers=${3:-$(through_workers '*')} kernel=${4:-$(through_kernel '*')}
    [[ $workers =~ [1-9] ]] || way=kernel
    for problem in "${PROBLEMS[@]}"; do
        say "${RED}FAILED${PLAIN} $problem"
        result=FAILED
    done
    [[ $result == ok ]] || FAILED=$((FAILED + 1))
    ROWS+=("$1|$2|$PING|$TCP|$UDP|$way|$workers|$kernel|$result")
}

# ---------------------------------------------------------------------------------------------------------------------
# The end

check_accounts() {
    local node
    heading 'Accounts'
    for node in node1 node2; do
        if ((${NOW[$node/balanced]} == 1)); then
            say "$node: every packet that came in is accounted for, and every frame of the UMEM is in its place."
        else
            "$BINARY" status --instance "$NAME-$node"
            complain "$node: the accounts above do not balance."
        fi
        ! grep -E ' (WARN|ERROR) ' "$WORK/$node.log" || complain "$node: the log has the complaints above."
    done
}

stop_podlane() {
    local pid node family code
    heading 'Stopping Podlane: the kernel goes on without it'
    kill "${DAEMONS[@]}" || true
    for pid in "${DAEMONS[@]}"; do
        code=0
        wait "$pid" || code=$?
        ((code == 0)) || complain "Podlane ended with exit code $code."
    done
    DAEMONS=()
    say 'Its programs stay, pass everything to the kernel, and wait for the next start. Taking them back:'
    for node in node1 node2; do
        nsenter --net="/run/netns/$NAME-$node" -- "$BINARY" detach --instance "$NAME-$node" || complain "$node: detach failed."
        check_nothing_left "$node"
    done
    TCP=· UDP=· FROM=pod1
    for family in IPv4 IPv6; do
        ADDRESS=10.244.2.3 PROBLEMS=()
        [[ $family == IPv4 ]] || ADDRESS=fd00:10:244:2::3
        say "pod1 → pod4, $family ($ADDRESS)"
        ping_test
        conclude 'pod1 → pod4, stopped' $family · ·
    done
}

check_nothing_left() { # NODE
    local links
    links=$(ip -n "$NAME-$1" link show)
    if [[ $links == *xdp* || $links == *podlane0* ]]; then
        complain "$1: an XDP program or podlane0 is left behind."
    else
        say "$1: no XDP program and no interface of Podlane's is left."
    fi
}

complain() { # SENTENCE
    say "${RED}FAILED${PLAIN} $1"
    FAILED=$((FAILED + 1))
}

print_table() {
    local row note
    heading 'All at once'
    printf '%s' "$DIM"
    print_row LEG FAMILY PING TCP UDP WAY 'BY WORKERS' 'BY KERNEL' RESULT
    printf '%s' "$PLAIN"
    for row in "${ROWS[@]}"; do
        IFS='|' read -ra row <<<"$row"
        print_row "${row[@]}"
    done
    remark "Packets forwarded by workers and left to the kernel by XDP, without ARP and neighbour discovery;"
    remark "across nodes both nodes count, and the kernel's own packets nobody counts."
    for note in "${NOTES[@]}"; do say "$note"; done
}

print_row() {
    local colour=''
    case $9 in ok) colour=$GREEN ;; FAILED) colour=$RED ;; esac
    printf '   '
    left "$1" 27
    left "$2" 7
    right "$3" 9
    right "$4" 13
    right "$5" 13
    printf '  '
    left "$6" 7
    right "$(thousands "$7")" 11
    right "$(thousands "$8")" 11
    printf '  %s%s%s\n' "$colour" "$9" "$PLAIN"
}

tell_what_is_kept() {
    UP=kept
    heading 'Everything is still running. Look around:'
    say "$TESTBED --name $NAME status"
    say "$TESTBED --name $NAME exec pod1 ping 10.244.2.3"
    say "PODLANE_RUN_DIR=$PODLANE_RUN_DIR $BINARY status --instance $NAME-node1"
    say "tail -f $WORK/node1.log"
    heading 'Remove it all:'
    say "$TESTBED --name $NAME down && rm -r $WORK"
}

main() {
    parse_command_line "$@"
    trap clean_up EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    prepare
    SECONDS=0
    raise_testbed
    start_podlane
    first_contact
    legs
    check_accounts
    [[ $KEEP == yes ]] || stop_podlane
    print_table
    [[ $KEEP == no ]] || tell_what_is_kept
    printf '\n'
    ((FAILED == 0)) || fail "$(number_of $FAILED 'thing' 'things') did not go as expected; FAILED marks them."
    say "${GREEN}Everything went its way.${PLAIN} $SECONDS seconds."
}

main "$@"
