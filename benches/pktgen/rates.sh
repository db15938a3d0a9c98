#!/usr/bin/env bash
#
# How many packets a second a node with Podlane carries without loss (NDR) and with less than 0.5 % loss (PDR), found by
# search. The packets come from kernel pktgen on this machine; the node is usually another one. docs/zero-copy.md has the set-up.
#
#   benches/pktgen/rates.sh --device eth0 --mac MAC --source IP --destination IP --sink-device eth1 [OPTION…]
#
#   --device DEV          sends; its cable leads to the node
#   --netns NAME          the network namespace of DEV, if it is in one
#   --mac MAC             the node's interface at that cable (for a pod as the source: the bridge's)
#   --source IP           an address of the cluster from which such packets may come
#   --destination IP      the address that they go to, behind the node
#   --sink-device DEV     where they arrive on this machine; what its driver receives is counted
#   --sink-netns NAME     the network namespace of that DEV
#   --sink-command CMD    instead of a device: prints how many have arrived so far (for a pod on the node: over ssh)
#   --sizes LIST          bytes of a frame as on the wire, four of checksum included (64,128,256,512,1024,1280,1518)
#   --flows N             UDP source ports, over which a card spreads its queues (1)
#   --threads N           pktgen threads, each on a queue of its own (1)
#   --seconds S           length of a trial (10)
#   --repeats N           searches for each size; the table has the median, least and most (3)
#   --resolution PERCENT  when a search is done (2)
#   --label TEXT          what is measured, for the results
#   --json FILE           the results as JSON as well
#
# Where the pktgen module is missing, packets come from a packet socket (podlane-probe send-frames; PODLANE_PROBE names
# it), which is slower, and the results say so. Needs root, jq and iproute2.

set -euo pipefail

readonly SETTLE_S=5 MOST_TRIALS=16 PDR_LOSS=0.005

declare -A OPT=([netns]='' [sink_netns]='' [sink_device]='' [sink_command]='' [sizes]=64,128,256,512,1024,1280,1518 [flows]=1
    [threads]=1 [seconds]=10 [repeats]=3 [resolution]=2 [label]='' [json]='' [device]='' [mac]='' [source]='' [destination]='')
PROBE=${PODLANE_PROBE:-podlane-probe}

refuse() {
    printf '%s\n' "$*" >&2
    exit 2
}

fail() {
    printf '%s\n' "$*" >&2
    exit 1
}

read_options() {
    local name
    while (($#)); do
        case $1 in
            -h | --help)
                sed -n '3,/^$/s/^# \{0,1\}//p' "$0"
                exit 0
                ;;
            --*) name=${1#--} name=${name//-/_} ;;
            *) refuse "'$1' is no option; see $0 --help." ;;
        esac
        [[ -v OPT[$name] ]] || refuse "there is no option '$1'; see $0 --help."
        (($# >= 2)) || refuse "$1 needs a value."
        OPT[$name]=$2
        shift 2
    done
    for name in device mac source destination; do
        [[ -n ${OPT[$name]} ]] || refuse "--$name is missing; see $0 --help."
    done
    [[ -n ${OPT[sink_device]}${OPT[sink_command]} ]] || refuse 'say where the packets arrive: --sink-device or --sink-command.'
    for name in flows threads seconds repeats resolution; do
        [[ ${OPT[$name]} =~ ^[1-9][0-9]{0,5}$ ]] || refuse "--$name takes a whole number from 1, not '${OPT[$name]}'."
    done
    [[ ${OPT[sizes]} =~ ^[0-9]+(,[0-9]+)*$ ]] || refuse "--sizes takes numbers with commas, not '${OPT[sizes]}'."
}

in_ns() { # NAMESPACE|'' CMD…
    local namespace=$1
    shift
    if [[ -n $namespace ]]; then nsenter --net="/run/netns/$namespace" "$@"; else "$@"; fi
}

# ---------------------------------------------------------------------------------------------------------------------
# Sending

choose_generator() {
    if [[ -d /proc/net/pktgen ]] || modprobe pktgen 2>/dev/null; then
        GENERATOR=pktgen
    elif command -v "$PROBE" >/dev/null; then
        GENERATOR='packet socket'
        ((OPT[threads] == 1)) || fail 'without the pktgen module there is one thread: leave --threads away.'
    else
        fail "this kernel has no pktgen module, and there is no $PROBE: build it (cargo build -p podlane-tests --bins)."
    fi
}

tell() { # FILE LINE…
    local file=/proc/net/pktgen/$1 line
    shift
    for line in "$@"; do
        printf '%s\n' "$line" >"$file" || fail "pktgen does not take '$line'; the kernel's log may say why."
    done
}

# FRAME-BYTES RATE|0 COUNT|0: with kernel pktgen, in its device's namespace. Prints packets and microseconds.
send_pktgen() {
    local bytes=$1 rate=$2 count=$3 thread name names=()
    for ((thread = 0; thread < OPT[threads]; thread++)); do
        name=${OPT[device]}@$thread
        names+=("$name")
        tell "kpktgend_$thread" rem_device_all "add_device $name"
        tell "$name" "count $((count / OPT[threads]))" "pkt_size $bytes" 'clone_skb 0' 'burst 1' "dst_mac ${OPT[mac]}" \
            "src_min ${OPT[source]}" "src_max ${OPT[source]}" "dst_min ${OPT[destination]}" "dst_max ${OPT[destination]}" \
            "queue_map_min $thread" "queue_map_max $thread" 'udp_src_min 1024' "udp_src_max $((1024 + OPT[flows]))" \
            'udp_dst_min 9' 'udp_dst_max 9' 'flag UDPCSUM'
        if ((rate > 0)); then tell "$name" "ratep $(((rate + OPT[threads] - 1) / OPT[threads]))"; else tell "$name" 'delay 0'; fi
    done
    tell pgctrl start
    # A start returns at once if no thread has begun within an eighth of a second, as on a busy machine.
    for name in "${names[@]}"; do
        until grep -q '^Result: OK' "/proc/net/pktgen/$name"; do
            ((SECONDS < OPT[seconds] * 10 + 60)) || fail "pktgen did not end: $(cat "/proc/net/pktgen/$name")"
            sleep 0.1
        done
    done
    for name in "${names[@]}"; do cat "/proc/net/pktgen/$name"; done |
        awk '/pkts-sofar:/ { sent += $2 } /^Result: OK:/ { split($3, time, "("); if (time[1] > longest) longest = time[1] }
             END { if (!longest) exit 1; print sent, longest }' || fail "pktgen sent nothing: $(cat "/proc/net/pktgen/${names[0]}")"
    for ((thread = 0; thread < OPT[threads]; thread++)); do tell "kpktgend_$thread" rem_device_all; done
}

hex_of() { # WIDTH NUMBER…
    local width=$1 number
    shift
    for number in "$@"; do printf "%0${width}x" "$number"; done
}

# One UDP packet as hexadecimal digits, of the flow with this number. Its UDP checksum is left out, which IPv4 allows.
packet_hex() { # FRAME-BYTES FLOW
    local bytes=$1 own sum=0 header word
    own=$(ip -json link show "${OPT[device]}" | jq -er '.[0].address')
    header=4500$(hex_of 4 $((bytes - 14)))0000400040110000
    # shellcheck disable=SC2086  # the four numbers of an address
    header+=$(hex_of 2 ${OPT[source]//./ })$(hex_of 2 ${OPT[destination]//./ })
    for ((word = 0; word < 40; word += 4)); do sum=$((sum + 16#${header:word:4})); done
    while ((sum >> 16)); do sum=$(((sum & 0xffff) + (sum >> 16))); done
    header=${header:0:20}$(hex_of 4 $((sum ^ 0xffff)))${header:24}
    printf '%s%s0800%s%s0009%s0000' "${OPT[mac]//:/}" "${own//:/}" "$header" "$(hex_of 4 $((1024 + $2)))" \
        "$(hex_of 4 $((bytes - 34)))"
    printf "%0$((2 * (bytes - 42)))d" 0
}

# The same from a packet socket.
send_socket() {
    local bytes=$1 rate=$2 count=$3 flow pace=0 start end
    ((rate == 0)) || pace=$((1000000 / rate))
    for ((flow = 0; flow < OPT[flows]; flow++)); do
        printf '%d %d %s\n' $((count / OPT[flows])) "$pace" "$(packet_hex "$bytes" "$flow")"
    done >"$WORK/frames"
    start=$(date +%s%6N)
    "$PROBE" --deadline-s $((OPT[seconds] * 10 + 60)) send-frames --interface "${OPT[device]}" <"$WORK/frames" >"$WORK/sent" ||
        fail "$PROBE: $(tail -n 1 "$WORK/sent")"
    end=$(date +%s%6N)
    printf '%d %d\n' $((count / OPT[flows] * OPT[flows])) $((end - start))
}

# ---------------------------------------------------------------------------------------------------------------------
# Counting and searching

arrived() {
    if [[ -n ${OPT[sink_command]} ]]; then
        bash -c "${OPT[sink_command]}"
    else
        in_ns "${OPT[sink_netns]}" ip -statistics -json link show "${OPT[sink_device]}" | jq -er '.[0].stats64.rx.packets'
    fi
}

# What is on its way gets time to arrive: until the count stands still for a second.
arrived_at_last() {
    local before now until=$((SECONDS + SETTLE_S))
    now=$(arrived)
    while
        before=$now
        sleep 1
        now=$(arrived)
        ((now != before && SECONDS < until))
    do :; done
    printf '%s\n' "$now"
}

# FRAME-BYTES RATE|0: sets SENT, RECEIVED, and RATE as it was
trial() {
    local bytes=$1 rate=$2 count before microseconds
    count=$((rate > 0 ? rate * OPT[seconds] : FULL_COUNT))
    before=$(arrived_at_last)
    case $GENERATOR in
        pktgen) read -r SENT microseconds < <(in_ns "${OPT[netns]}" bash -c "$SENDER" sender "$bytes" "$rate" "$count") ;;
        *) read -r SENT microseconds < <(in_ns "${OPT[netns]}" bash -c "$SENDER" sender "$bytes" "$rate" "$count") ;;
    esac
    RECEIVED=$(($(arrived_at_last) - before))
    # What else runs over the sink's wire (ARP) is no packet of ours.
    ((RECEIVED <= SENT)) || RECEIVED=$SENT
    RATE=$((SENT * 1000000 / microseconds))
}

lost_too_many() { # LOSS-ALLOWED
    awk -v sent="$SENT" -v received="$RECEIVED" -v most="$1" 'BEGIN { exit !(sent - received > most * sent) }'
}

# FRAME-BYTES LOSS-ALLOWED: the highest rate that keeps to it; 0 if none does
search() {
    local bytes=$1 allowed=$2 low=0 high middle trials=0
    trial "$bytes" 0
    if ! lost_too_many "$allowed"; then
        printf '%d\n' "$RATE"
        return
    fi
    high=$RATE
    while ((trials++ < MOST_TRIALS && (high - low) * 100 > OPT[resolution] * high)); do
        middle=$(((low + high) / 2))
        ((middle > 0)) || break
        trial "$bytes" "$middle"
        # A generator that cannot keep up has shown no more than what it did.
        if lost_too_many "$allowed"; then high=$middle; else low=$((RATE < middle ? RATE : middle)); fi
    done
    printf '%d\n' "$low"
}

spread() { # NUMBER…: as JSON
    printf '%s\n' "$@" | sort -n | jq -cs '{median: .[length / 2 | floor], least: .[0], most: .[-1]}'
}

measure_size() { # BYTES-ON-THE-WIRE
    local repeat ndr=() pdr=()
    # So many at full speed are about a trial's length on a card of ten gigabits, and not too long on a slow one.
    FULL_COUNT=$((OPT[seconds] * 20000))
    for ((repeat = 0; repeat < OPT[repeats]; repeat++)); do
        ndr+=("$(search $(($1 - 4)) 0)")
        pdr+=("$(search $(($1 - 4)) "$PDR_LOSS")")
    done
    jq -nc --argjson size "$1" --argjson ndr "$(spread "${ndr[@]}")" --argjson pdr "$(spread "${pdr[@]}")" \
        '{size: $size, ndr_pps: $ndr, pdr_pps: $pdr}'
}

print_table() {
    printf '%s; %s, %s; generator: %s, %d thread(s), %d flow(s); trials of %d s\n' "${OPT[label]:-no label}" "$(uname -r)" \
        "$(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -n 1)" "$GENERATOR" "${OPT[threads]}" "${OPT[flows]}" "${OPT[seconds]}"
    printf '%6s  %12s %25s  %12s %25s\n' BYTES 'NDR, pps' '(least – most)' 'PDR, pps' '(least – most)'
    jq -r '.results[] | [.size, .ndr_pps.median, .ndr_pps.least, .ndr_pps.most, .pdr_pps.median, .pdr_pps.least, .pdr_pps.most] | @tsv' \
        "$WORK/all.json" | while read -r size ndr ndr_least ndr_most pdr pdr_least pdr_most; do
        printf '%6d  %12d %25s  %12d %25s\n' "$size" "$ndr" "$ndr_least – $ndr_most" "$pdr" "$pdr_least – $pdr_most"
    done
}

read_options "$@"
[[ $EUID -eq 0 ]] || fail 'it needs root: pktgen and network namespaces do.'
command -v jq >/dev/null || fail "'jq' is missing: apt-get install jq."
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
choose_generator
export PROBE WORK
# What runs inside of the sender's namespace.
SENDER="set -euo pipefail; $(declare -p OPT); $(declare -f tell fail send_pktgen send_socket packet_hex hex_of in_ns)
OPT[netns]=''
$([[ $GENERATOR == pktgen ]] && printf send_pktgen || printf send_socket) \"\$@\""
for size in ${OPT[sizes]//,/ }; do
    ((size >= 64 && size <= 9018)) || refuse "--sizes: $size is not within 64 and 9018."
    measure_size "$size" >>"$WORK/sizes"
done
jq -s --arg title "${OPT[label]}" --arg generator "$GENERATOR" --arg kernel "$(uname -r)" --argjson threads "${OPT[threads]}" \
    --argjson flows "${OPT[flows]}" --argjson seconds "${OPT[seconds]}" --argjson resolution "${OPT[resolution]}" \
    '{label: $title, generator: $generator, kernel: $kernel, threads: $threads, flows: $flows, trial_s: $seconds,
      resolution_percent: $resolution, results: .}' "$WORK/sizes" >"$WORK/all.json"
print_table
[[ -z ${OPT[json]} ]] || cp "$WORK/all.json" "${OPT[json]}"
