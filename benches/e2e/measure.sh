# The measurements of the comparison. Read by run.sh.
#
# Each appends lines to $WORK/results, which the report reads (report/main.rs says how they look), or sets WHY and fails.
# shellcheck shell=bash

# sample PEER REPEAT MEASURE VALUE
sample() { printf 'sample\t%s\t%s\t%s\t%s\n' "$@" >>"$WORK/results"; }
# point CURVE PEER X REPEAT MPPS NANOSECONDS
point() { printf 'point\t%s\t%s\t%s\t%s\t%s\t%s\n' "$@" >>"$WORK/results"; }
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
        nodes-podlane | nodes-kernel | nodes-podlane-plain | nodes-kernel-plain)
            in_ns "${NODES[1]}" ethtool -K veth-pod1 gro "$1" >/dev/null
            in_ns "${NODES[2]}" ethtool -K up0 gro "$1" >/dev/null
            ;;
    esac
}

# Every frame of a burst of skbs of all lengths and of xdp frames must arrive once, in order, byte for byte.
check_frames() {
    local log=$WORK/$PEER-check.log
    # shellcheck disable=SC2046 # a list of words
    launch "$log" ip netns exec "${POD[2]}" "$WORK/burst" expect eth0 $(ends)
    local sink=$LAUNCHED failed=no
    wait_for 5 grep -q ready "$log" || { WHY=$(tail -n1 "$log") && return 1; }
    xdp_frames_possible on
    # shellcheck disable=SC2046
    in_ns "${POD[1]}" "$WORK/burst" send eth0 $(ends) >"$WORK/source.log" 2>&1 || failed=yes
    finish "$sink" || failed=yes
    xdp_frames_possible off
    [[ $failed == no ]] || { WHY="checked burst: $(tail -qn1 "$log" "$WORK/source.log" | tr '\n' ' ')" && return 1; }
}

# load KEY=VALUE…: one run of the load between the pods; its answer is in the associative array SEEN.
declare -A SEEN=()
load() { load_between "${POD[1]}/eth0" "${POD[2]}/eth0" "$(ends)" "$@"; }

load_between() { # FROM TO ENDS KEY=VALUE…
    local log=$WORK/$PEER-load.log word
    # shellcheck disable=SC2086 # ENDS is a list of words
    taskset -c "$GENERATOR_CPU" timeout 120 "$WORK/load" "$1" "$2" $3 "pid=${FORWARDER:-0}" "${@:4}" >"$log" 2>&1 ||
        { WHY="load ${*:4}: $(tail -n1 "$log")" && return 1; }
    SEEN=()
    for word in $(tail -n1 "$log"); do SEEN[${word%%=*}]=${word#*=}; done
}

# of NUMERATOR DENOMINATOR [FACTOR]: from SEEN
of() { awk -v a="${SEEN[$1]}" -v b="${SEEN[$2]}" -v f="${3:-1}" 'BEGIN { printf "%.6f\n", (b > 0) ? a / b * f : 0 }'; }

# measure_rate SOURCE SIZE: delivered Mpps as sample SOURCE_mpps (64 bytes) or SOURCE_SIZE_mpps, with what was offered, the
# bits a second of all but the smallest, and what a disturbed machine hardly changes: the CPU time of the forwarder for each
# frame and of the source, with all that the host end does with it there; and the machine's for a million frames.
measure_rate() {
    local name=$1
    [[ $2 == 64 ]] || name=$1_$2
    xdp_frames_possible "$([[ $1 == xdp ]] && echo on || echo off)"
    load source="$1" size="$2" warmup="$WARMUP_SECONDS" seconds="$SECONDS_MEASURED" || return 1
    sample "$PEER" "$REPEAT" "${name}_mpps" "$(of delivered seconds 1e-6)"
    DELIVERED=$((DELIVERED + SEEN[delivered]))
    if [[ $2 != 64 ]]; then
        sample "$PEER" "$REPEAT" "${name}_gbit" "$(of bytes seconds 8e-9)"
        return 0
    fi
    sample "$PEER" "$REPEAT" "${name}_offered_mpps" "$(of offered seconds 1e-6)"
    [[ -z $FORWARDER ]] || sample "$PEER" "$REPEAT" "${name}_busy_ns" "$(of busy delivered 1e9)"
    sample "$PEER" "$REPEAT" "${name}_source_ns" "$(of source offered 1e9)"
    sample "$PEER" "$REPEAT" "${name}_cost" "$(of machine delivered 1e6)"
}

measure_rates() { measure_rate xdp 64 && measure_rate skb 64; }

measure_sizes() {
    local source size
    for source in xdp skb; do
        for size in 128 256 512 1024 1518 imix; do measure_rate "$source" "$size" || return 1; done
    done
}

# The rates without loss and with less than 0.5 %, of 64-byte frames.
measure_search() {
    local source
    for source in xdp skb; do
        xdp_frames_possible "$([[ $source == xdp ]] && echo on || echo off)"
        load mode=search source="$source" warmup="$WARMUP_SECONDS" seconds="$TRIAL_SECONDS" || return 1
        sample "$PEER" "$REPEAT" "${source}_ndr_mpps" "$(awk -v n="${SEEN[ndr]}" 'BEGIN { printf "%.6f", n / 1e6 }')"
        sample "$PEER" "$REPEAT" "${source}_pdr_mpps" "$(awk -v n="${SEEN[pdr]}" 'BEGIN { printf "%.6f", n / 1e6 }')"
        [[ $source == xdp ]] || PDR=${SEEN[pdr]}
    done
}

# One-way times of 64-byte skbs: a thousand a second, and at shares of the PDR that was just found.
measure_latency() {
    local share pps
    xdp_frames_possible off
    for share in 0 10 50 90; do
        pps=1000
        ((share == 0)) || pps=$((PDR * share / 100))
        ((pps > 0)) || { WHY='no PDR was found to measure latency at' && return 1; }
        load mode=latency source=skb pps="$pps" warmup="$WARMUP_SECONDS" seconds="$SECONDS_MEASURED" || return 1
        for p in p50 p99 p999; do sample "$PEER" "$REPEAT" "latency_${share}_${p}_us" "${SEEN[$p]}"; done
    done
}

# Cost against the number of flows.
measure_flows() {
    local flows
    xdp_frames_possible on
    load source=xdp varied=1 warmup="$WARMUP_SECONDS" seconds="$SECONDS_MEASURED" || return 1 # the first is often slower
    for flows in "${FLOWS[@]}"; do
        load source=xdp varied=1 flows="$flows" warmup="$WARMUP_SECONDS" seconds="$SECONDS_MEASURED" || return 1
        curve_point flows "$flows"
    done
    xdp_frames_possible off
}

# curve_point CURVE X: what SEEN says of it. A frame's cost is the forwarder's CPU time, or, where it forwards on the sender's
# time, the time of a frame at full rate.
curve_point() {
    local cost
    if [[ -n $FORWARDER ]]; then cost=$(of busy delivered 1e9); else cost=$(of seconds delivered 1e9); fi
    point "$1" "$PEER" "$2" "$REPEAT" "$(of delivered seconds 1e-6)" "$cost"
}

# measure_tcp FROM TO NAME [OPTION…]: Gbit/s at the receiver. The sender has the generator's core, the receiver the forwarder's.
measure_tcp() {
    local log=$WORK/$PEER-$3.log
    launch "$log.server" taskset -c "$FORWARDER_CPU" ip netns exec "${POD[$2]}" iperf3 -s -1 -p $TCP_PORT
    local server=$LAUNCHED
    wait_for 5 listens "${POD[$2]}" t || { WHY="iperf3: $(tail -n1 "$log.server")" && return 1; }
    taskset -c "$GENERATOR_CPU" timeout $((TCP_SECONDS + 20)) ip netns exec "${POD[$1]}" \
        iperf3 "${@:4}" -c "$(address_of "$2")" -p $TCP_PORT -t "$TCP_SECONDS" -O 1 -f m >"$log" 2>&1 ||
        { WHY="iperf3: $(grep -m1 error "$log" || tail -n1 "$log")" && return 1; }
    finish "$server" || true
    # The last line of the receiver's is the sum, where there are several.
    sample "$PEER" "$REPEAT" "$3" "$(awk '/receiver/ { n = ($1 == "[SUM]") ? $6 : $7 } END { printf "%.6f\n", n / 1000 }' "$log")"
}

# Seconds that all CPUs were not idle, and bytes that the second pod has received.
busy_seconds() { awk -v hz="$(getconf CLK_TCK)" '/^cpu / { print ($2 + $3 + $4 + $7 + $8) / hz }' /proc/stat; }
received_bytes() { in_ns "${POD[2]}" cat /sys/class/net/eth0/statistics/rx_bytes; }

# measure_cost NAME COMMAND…: CPU seconds of the machine for each gigabyte that the command sent, over its whole run
measure_cost() {
    local name=$1 busy bytes
    shift
    busy=$(busy_seconds) bytes=$(received_bytes)
    "$@" || return 1
    sample "$PEER" "$REPEAT" "$name" "$(awk -v a="$busy" -v b="$(busy_seconds)" -v c="$bytes" -v d="$(received_bytes)" \
        'BEGIN { printf "%.6f\n", (b - a) / ((d - c) / 1e9) }')"
}

measure_bulk() { measure_cost tcp_cost measure_tcp 1 2 tcp_gbit && measure_tcp 2 1 tcp_back_gbit; }
measure_tcp_only() { measure_tcp 1 2 tcp_gbit; }
measure_bulk8() { measure_tcp 1 2 tcp8_gbit -P 8; }

# An application that writes a mebibyte at a time, where iperf3 else writes 128 KiB: no super-frame gets larger than what was
# written.
measure_large_writes() {
    case $PEER in podlane-kernel | podlane-big | peer | bridge) measure_tcp 1 2 tcp_large_gbit -l 1M ;; esac
}

# measure_rr KIND NAME [SECONDS]: time of a transaction in µs
measure_rr() {
    local log=$WORK/$PEER-rr-$1.log letter=t
    [[ $1 != udp ]] || letter=u
    launch "$log.server" taskset -c "$FORWARDER_CPU" ip netns exec "${POD[2]}" "$WORK/rr" server "$1" $TCP_PORT
    local server=$LAUNCHED failed=no
    wait_for 5 listens "${POD[2]}" $letter || { WHY="rr: $(tail -n1 "$log.server")" && return 1; }
    taskset -c "$GENERATOR_CPU" timeout 60 ip netns exec "${POD[1]}" "$WORK/rr" client "$1" "$(address_of 2)" $TCP_PORT \
        "$RR_SECONDS" >"$log" 2>&1 || failed=yes
    kill -TERM "$server" 2>/dev/null || true
    finish "$server" || true
    [[ $failed == no ]] || { WHY="rr $1: $(tail -n1 "$log")" && return 1; }
    sample "$PEER" "$REPEAT" "$2" "$(awk -F'[= ]' '/^transactions/ { printf "%.3f\n", $4 / $2 * 1e6 }' "$log")"
    sample "$PEER" "$REPEAT" "${2%_us}_p99_us" "$(sed -n 's/.* p99=\([0-9.]*\).*/\1/p' "$log")"
}

measure_requests() { measure_rr tcp rr_us && measure_rr connect connect_us && measure_rr udp udp_rr_us; }

listens() { in_ns "$1" ss -Hln"$2" "sport = :$TCP_PORT" | grep -q .; } # NETNS t|u

measure_ping() {
    local log=$WORK/$PEER-ping.log
    taskset -c "$GENERATOR_CPU" ip netns exec "${POD[1]}" \
        ping -q -c $PINGS -i $PING_INTERVAL "$(address_of 2)" >"$log" 2>&1 || { WHY="ping: $(tail -n3 "$log" | tr '\n' ' ')" && return 1; }
    grep -q ' 0% packet loss' "$log" || { WHY="ping: $(grep loss "$log")" && return 1; }
    sample "$PEER" "$REPEAT" ping_us "$(awk -F/ '/^rtt/ { printf "%.3f\n", $5 * 1000 }' "$log")"
}

# What the forwarder's process burns with nothing to do, in percent of one core, and what memory it has.
measure_idle() {
    [[ -n $DAEMON ]] || return 0
    local before after
    before=$(cpu_ns) && sleep 1 && after=$(cpu_ns)
    sample "$PEER" "$REPEAT" idle_cpu_percent "$(awk -v t=$((after - before)) 'BEGIN { printf "%.3f", t / 1e7 }')"
    sample "$PEER" "$REPEAT" memory_mib "$(awk '/^VmRSS/ { printf "%.1f", $2 / 1024 }' "/proc/$DAEMON/status")"
}

cpu_ns() { cat "/proc/$DAEMON/task/"*/schedstat 2>/dev/null | awk '{ n += $1 } END { printf "%d", n }'; }

# Everything about one peer in one repeat, as far as MEASURES has it; fails with WHY.
measure_peer() {
    DELIVERED=0 PDR=0 WHY='unknown reason'
    local measure
    if [[ $PEER == nodes-* ]]; then
        nodes_up && "start_$PEER" || return 1
    else
        net_up || { WHY="the pods' namespaces could not be made" && return 1; }
        "start_$PEER" && check_frames || return 1
    fi
    # With larger pieces small frames are the same; what differs is what TCP makes of it.
    case $PEER in podlane-local | podlane-big)
        measure_bulk && measure_large_writes && { [[ $PEER != podlane-local ]] || measure_ping; } || return 1
        "evidence_$PEER" 1
        return
        ;;
    esac
    for measure in $MEASURES; do
        case $measure in
            flows) [[ " ${PEERS_CURVES[*]} " == *" $PEER "* ]] || continue ;;
        esac
        "measure_$measure" || return 1
        # Before TCP, whose pieces are counted as they come.
        [[ $measure != rates ]] || "evidence_$PEER" "$DELIVERED" || return 1
    done
}
