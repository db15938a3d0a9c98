#!/usr/bin/env bash
#
# Podlane beside its peers, end to end, in one run on one rig, and a report of it.
#
# Two pods of one node, or one pod on each of two nodes, and between them each forwarder in turn: every peer gets the same veth
# pairs in namespaces made for it, proves with a checked burst that it delivers frames unaltered, is measured, and is taken
# away; then comes the next one, and after the last the next repeat. The generator has one core, the forwarder the other. The
# sink is the same for all: frames are counted and dropped at tc ingress inside the receiving pod, so that every forwarder pays
# for the skb that a real pod would get.
#
# rig.sh has namespaces and processes, peers.sh what each peer needs, measure.sh and curves.sh what is measured, the C files the
# loads, sinks and limits, and report/ makes the table, the JSON and the page.

set -euo pipefail

readonly PROGRAM=${E2E_NAME:-${0##*/}}
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=${HERE%/*/*}
readonly HERE ROOT
readonly PEERS_NODES=(nodes-podlane nodes-kernel nodes-podlane-plain nodes-kernel-plain)
readonly PEERS_KNOWN=(podlane podlane-local ovs dpdk loop loop-spin podlane-kernel podlane-big peer devmap bridge bridge-plain
    nodes-podlane-af "${PEERS_NODES[@]}")
readonly PEERS_AF_XDP=(podlane podlane-local ovs dpdk loop loop-spin bridge bridge-plain)
readonly PEERS_KERNEL=(podlane-kernel podlane-big peer devmap bridge)
readonly PEERS_REPORT=(podlane podlane-local ovs dpdk loop-spin podlane-kernel podlane-big peer devmap bridge bridge-plain
    nodes-podlane nodes-kernel)
PEERS_CURVES=(podlane podlane-kernel bridge)
PEERS_ROUTES=(nodes-podlane-af nodes-podlane nodes-kernel)
readonly MEASURES_ALL='idle rates sizes search latency flows bulk bulk8 ping requests large_writes'
readonly MEASURES_TABLE='idle rates bulk ping requests large_writes'

REPEATS=3
SECONDS_MEASURED=0.4
WARMUP_SECONDS=0.15
TRIAL_SECONDS=0.15
TCP_SECONDS=1
RR_SECONDS=0.7
MEASURES=$MEASURES_ALL
CURVES=yes
PEERS=("${PEERS_REPORT[@]}")
JSON='' OUT='' GUARD=no TABLE=no
GENERATOR_CPU=0
FORWARDER_CPU=1
KEEP=no
NODES_SERVED=(1 2)

readonly PINGS=1000
readonly PING_INTERVAL=0.0005
readonly TCP_PORT=5201
readonly LOCAL_MTU=65000
readonly BIG_TCP=262144
readonly CLUSTER_CIDR=10.244.0.0/16,fd00:10:244::/48
readonly NODES_CIDR=10.0.0.0/8,fd00:10:244::/48
FLOWS=(1 100 10000 100000)
PODS=(2 10 50 250)
ROUTES=(1 128 1024 15000)
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
$PROGRAM: Podlane beside Open vSwitch AF_XDP, DPDK, bare AF_XDP and BPF loops, the Linux bridge and kernel routing

Usage: $PROGRAM [OPTIONS]                (as root)

  --out DIR            write report.html, report.json and pictures to DIR (default: benches/results/e2e)
  --table              only the small frames, TCP and request/response of every peer, as a table on standard output, 3 s each
  --guard              a short form of 90 s that checks ratios with wide margins: exit code 1 if one is missed
  --repeats N          rounds over all peers; everything shows the median and min-max (default: 3; --guard: 2)
  --seconds S          length of one measurement of a rate, and of TCP at least 1 (default: $SECONDS_MEASURED; with --table: 3)
  --set NAME           report (default), af_xdp: the path through workers and its peers; kernel: the path in the kernel and its
                       peers; nodes: two nodes with a veth between them as uplink; all
  --only PEER,PEER     of: ${PEERS_KNOWN[*]}
  --measures M,M       of: ${MEASURES_ALL// /, }
  --no-curves          without cost against pods and routes
  --json FILE          also write all samples, medians and ratios to FILE ("-": to standard output, instead of the table)
  --generator-cpu N    core of the sources, the TCP sender and ping (default: $GENERATOR_CPU)
  --forwarder-cpu N    core of the forwarder and the TCP receiver (default: $FORWARDER_CPU)
  --keep               keep the work directory with the logs of all peers

The whole takes about 22 minutes; the machine should have nothing else to do.

Environment:
  PODLANE_BIN          the podlane binary (default: built here with cargo, in release mode)
  PODLANE_E2E_REPORT   the e2e-report binary, if it is there already
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

# number NAME VALUE PATTERN WHAT
number() { [[ $2 =~ ^$3$ ]] || CODE=2 die "$1 wants $4, not \"$2\""; }

use_table() {
    TABLE=yes CURVES=no MEASURES=$MEASURES_TABLE SECONDS_MEASURED=3 WARMUP_SECONDS=1 TCP_SECONDS=3 RR_SECONDS=3
    PEERS=("${PEERS_AF_XDP[@]}")
}

use_guard() {
    GUARD=yes CURVES=no MEASURES='idle rates tcp_only' REPEATS=2 SECONDS_MEASURED=0.7
    PEERS=(podlane loop-spin podlane-kernel peer bridge)
}

use_set() {
    case $1 in
        report) PEERS=("${PEERS_REPORT[@]}") ;;
        af_xdp) PEERS=("${PEERS_AF_XDP[@]}") ;;
        kernel) PEERS=("${PEERS_KERNEL[@]}") ;;
        nodes) PEERS=("${PEERS_NODES[@]}") ;;
        all) PEERS=("${PEERS_KNOWN[@]}") ;;
        *) CODE=2 die "\"$1\" is not a set; there are report, af_xdp, kernel, nodes and all" ;;
    esac
}

# known KIND LIST NAME…
known() {
    local name
    for name in "${@:3}"; do [[ " $2 " == *" $name "* ]] || CODE=2 die "\"$name\" is not a $1; there are $2"; done
    (($# > 2)) || CODE=2 die "at least one $1 is wanted"
}

parse_options() {
    local list
    while (($#)); do
        case $1 in
            -h | --help) usage && exit 0 ;;
            --keep) KEEP=yes && shift && continue ;;
            --table) use_table && shift && continue ;;
            --guard) use_guard && shift && continue ;;
            --no-curves) CURVES=no && shift && continue ;;
            --out | --repeats | --seconds | --set | --only | --measures | --json | --generator-cpu | --forwarder-cpu) ;;
            *) CODE=2 die "unknown option \"$1\"; see $PROGRAM --help" ;;
        esac
        (($# > 1)) || CODE=2 die "$1 wants a value"
        case $1 in
            --out) OUT=$2 ;;
            --repeats) number "$1" "$2" '[1-9][0-9]?' 'a whole number from 1 to 99' && REPEATS=$2 ;;
            --seconds)
                number "$1" "$2" '([1-9][0-9]{0,2}|0\.[1-9][0-9]?)' 'seconds from 0.1 to 999'
                SECONDS_MEASURED=$2 RR_SECONDS=$2 TCP_SECONDS=${2/0.*/1}
                ;;
            --generator-cpu) number "$1" "$2" '[0-9]{1,4}' 'the number of a core' && GENERATOR_CPU=$2 ;;
            --forwarder-cpu) number "$1" "$2" '[0-9]{1,4}' 'the number of a core' && FORWARDER_CPU=$2 ;;
            --json) JSON=$2 ;;
            --set) use_set "$2" ;;
            --only)
                IFS=, read -ra PEERS <<<"$2"
                known peer "${PEERS_KNOWN[*]}" "${PEERS[@]}"
                ;;
            --measures)
                IFS=, read -ra list <<<"$2"
                known measure "$MEASURES_ALL" "${list[@]}"
                MEASURES="${list[*]}"
                ;;
        esac
        shift 2
    done
    [[ $MEASURES != *latency* || $MEASURES == *search* ]] || CODE=2 die "latency is measured at shares of the rate that search finds: ask for both"
    check_cpus
}

check_cpus() {
    local cpu
    for cpu in "$GENERATOR_CPU" "$FORWARDER_CPU"; do
        taskset -c "$cpu" true 2>/dev/null || CODE=2 die "this process may not run on CPU $cpu (nproc: $(nproc))"
    done
    ((GENERATOR_CPU != FORWARDER_CPU)) || CODE=2 die "generator and forwarder need different cores"
}

# shellcheck source=rig.sh
source "$HERE/rig.sh"
# shellcheck source=peers.sh
source "$HERE/peers.sh"
# shellcheck source=measure.sh
source "$HERE/measure.sh"
# shellcheck source=curves.sh
source "$HERE/curves.sh"

describe_machine() {
    local model
    model=$(awk -F': ' '/model name/ { print $2; exit }' /proc/cpuinfo)
    fact date "$(date -u +%Y-%m-%d)"
    fact kernel "$(uname -r)"
    fact cpu "$model, $(nproc) cores$(grep -q '^flags.* hypervisor' /proc/cpuinfo && echo ' of a virtual machine'); sources on $GENERATOR_CPU, forwarder on $FORWARDER_CPU"
    fact frames "64 bytes with FCS (60 on a veth) unless said otherwise; $SECONDS_MEASURED s after $WARMUP_SECONDS s, $REPEATS repeats"
    fact tcp "iperf3 $(iperf3 --version | awk 'NR == 1 { print $2 }'), MTU 1500, $TCP_SECONDS s after 1 s"
    fact load "$(cut -d' ' -f1-3 /proc/loadavg) before the run"
    [[ $PODLANE_BIN != "" ]] && wants_podlane && fact podlane "$("$PODLANE_BIN" --version 2>&1 | head -n1), commit $(git -C "$ROOT" rev-parse --short HEAD 2>/dev/null || echo unknown)"
    return 0
}

# Each repeat begins with another peer, so that nobody has the place after the curves every time.
round() {
    local first=$(((REPEAT - 1) * ${#PEERS[@]} / REPEATS))
    for PEER in "${PEERS[@]:first}" "${PEERS[@]:0:first}"; do
        say "repeat $REPEAT of $REPEATS: ${TITLE[$PEER]}"
        if ! measure_peer; then
            failures[$PEER]=$((${failures[$PEER]:-0} + 1))
            reasons[$PEER]=$WHY
            say "  failed: $WHY"
        fi
        end_all
        net_down
    done
}

report() {
    local to=()
    if [[ $TABLE == no && $GUARD == no ]]; then
        OUT=${OUT:-$ROOT/benches/results/e2e}
        mkdir -p "$OUT"
    fi
    [[ -z $OUT ]] || to+=(--out "$OUT")
    [[ -z $JSON ]] || to+=(--json "$JSON")
    [[ $GUARD == no ]] || to+=(--guard)
    "$REPORT" "$WORK/results" "${to[@]}"
}

main() {
    local started=$SECONDS
    ((EUID == 0)) || die "needs root: it makes network namespaces and loads BPF programs"
    parse_options "$@"
    trap cleanup EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    raise_priority
    WORK=$(mktemp -d "${TMPDIR:-/tmp}/podlane-e2e.XXXXXX")
    install_missing
    build
    : >"$WORK/results"
    describe_machine
    declare -A failures=() reasons=()
    for ((REPEAT = 1; REPEAT <= REPEATS; REPEAT++)); do
        round
        [[ $CURVES == no ]] || curves
    done
    fact load_after "$(cut -d' ' -f1-3 /proc/loadavg) after the run"
    fact took "$((SECONDS - started)) s"
    local named=("${PEERS[@]}")
    [[ $CURVES == no ]] || named+=("${PEERS_CURVES[@]}" "${PEERS_ROUTES[@]}")
    for PEER in $(printf '%s\n' "${named[@]}" | awk '!seen[$0]++'); do
        printf 'peer\t%s\t%s\t%s\n' "$PEER" "${TITLE[$PEER]}" "${SETTINGS[$PEER]:-}" >>"$WORK/results"
        [[ -z ${failures[$PEER]:-} ]] || printf 'failed\t%s\t%s\t%s\n' "$PEER" "${failures[$PEER]}" "${reasons[$PEER]}" >>"$WORK/results"
    done
    report
}

# Read as a whole: nothing more is taken from this file, whatever becomes of it meanwhile.
{
    main "$@"
    exit 0
}
