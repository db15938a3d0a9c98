#!/usr/bin/env bash
#
# Every test of Podlane, as root on a Debian machine: installs what is missing, then format and lints, unit, property and
# BPF tests, the testbed's self-test, and the system suite in network namespaces, without Podlane and with it; then the chaos
# suite, which is about what a daemon's end, a neighbour or a change costs the traffic (docs/chaos.md); a short comparison with
# the bridge and bare loops, whose ratios must not have broken (benches/e2e/run.sh --guard); and containers of a real runtime
# (containerd, fetched by scripts/runtime.sh, not installed).
#
#   scripts/test.sh [--quick] [--long] [--only unit|system|chaos|speed|runtime] [--path without|af_xdp|kernel|mixed]
#
#   --quick   of the system suite, only the plain testbeds; not the testbed's self-test
#   --long    the chaos suite's long form: every way in both families, 1,000 cycles of a pod, 100 restarts
#   --only    unit: everything that builds no network of its own; chaos: the chaos suite; speed: the short comparison, and both
#             implementations of the frame I/O on a veth pair; runtime: the containers; system: the rest
#   --path    of the system suite, only the cases without Podlane (then on testbeds of every shape, else only on the plain
#             ones) or with it on that path
#
# The system tests end with three virtual machines (docs/zero-copy.md), which are skipped where they cannot be had.
# Each step says how long it took, and the last line is "N passed, N failed, N skipped", after the names of those that could
# not be run here. Exit code 0 if none failed.

set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly BPF_FS_MAGIC=cafe4a11 # linux/magic.h
ARGUMENTS=("$@")
QUICK=no LONG=() ONLY='' TEST_PATH=all
PASSED=0 FAILED=0 SKIPPED=()

refuse() {
    printf '%s\n' "$*" >&2
    exit 2
}

while (($#)); do
    case $1 in
        --quick) QUICK=yes ;;
        --long) LONG=(--long) ;;
        --only | --path)
            (($# >= 2)) || refuse "$1 needs a word after it; see the head of $0."
            case $1=$2 in
                --only=unit | --only=system | --only=chaos | --only=speed | --only=runtime) ONLY=$2 ;;
                --path=without | --path=af_xdp | --path=kernel | --path=mixed) TEST_PATH=$2 ;;
                *) refuse "$1 does not know '$2'; see the head of $0." ;;
            esac
            shift
            ;;
        -h | --help)
            sed -n '3,/^$/s/^# \{0,1\}//p' "$0"
            exit 0
            ;;
        *) refuse "there is no option '$1'; see $0 --help." ;;
    esac
    shift
done

# What stands in packaging/ for Prometheus, and the metrics themselves as a unit test keeps them in a file.
prometheus() {
    scripts/promtool.sh check rules packaging/prometheus/podlane.rules.yml &&
        scripts/promtool.sh test rules packaging/prometheus/podlane.rules.test.yml &&
        scripts/promtool.sh check metrics <loader/src/metrics/example.prom
}

# step NAME CMD…: runs it, goes on after a failure. Exit code 77 is for what this machine cannot do; it has said why.
step() {
    local name=$1 start=$SECONDS outcome code=0
    shift
    printf '\n── %s\n' "$name"
    "$@" || code=$?
    case $code in
        0) PASSED=$((PASSED + 1)) outcome=ok ;;
        77) SKIPPED+=("$name") outcome=skipped ;;
        *) FAILED=$((FAILED + 1)) outcome=FAILED ;;
    esac
    printf '── %s: %s, %d s\n' "$name" "$outcome" $((SECONDS - start))
}

# A worker or a probe that the machine keeps from running for a moment spoils a case. What failed is run once more, by itself, and
# must pass then; the names are shown, so that a case that needs this often does not hide.
# twice FUNCTION ARGUMENT…: a suite, whose function hands its arguments on to the test's program
twice() {
    local log failed name again=0
    log=$(mktemp)
    if "$@" 2>&1 | tee "$log"; then
        rm -f "$log"
        return 0
    fi
    # The harness's list at the end: a case's line is broken where it prints something.
    mapfile -t failed < <(awk '/^failures:$/ { n = 0 } /^    [^ ]+$/ { name[n++] = $1 } /^test result:/ { for (i = 0; i < n; i++) print name[i] }' "$log")
    grep -q "^test result: FAILED\. .* ${#failed[@]} failed;" "$log" || failed=()
    rm -f "$log"
    ((${#failed[@]} > 0 && ${#failed[@]} <= 40)) || return 1
    for name in "${failed[@]}"; do
        printf -- '-- once more: %s\n' "$name"
        "$1" --exact "$name" || again=1
    done
    return "$again"
}

system_cases() { PODLANE_TEST_PATH=$TEST_PATH cargo test -q -p podlane-tests --test system -- "$@"; }

system_suite() {
    local filter=()
    [[ $QUICK == no ]] || filter=(::plain::)
    twice system_cases "${filter[@]}"
}

# A machine that is emulated stands still whenever this one does: what failed is run once more, as with the suites.
virtual_machine() {
    local code=0
    scripts/vm-testbed.sh --short "$@" || code=$?
    ((code == 1)) || return "$code"
    printf -- '-- once more\n'
    scripts/vm-testbed.sh --short "$@"
}

chaos_cases() { cargo test -q -p podlane-tests --test chaos -- "${LONG[@]}" "$@"; }

# Besides, it measures again by itself what it knows the machine to have spoiled.
chaos_suite() {
    local filter=()
    [[ $TEST_PATH == all ]] || filter=("$TEST_PATH::")
    twice chaos_cases "${filter[@]}"
}

# cargo has an exit code of its own, so the program is found first and run by itself.
runtime_suite() {
    local program
    program=$(cargo test -q -p podlane-tests --test runtime --no-run --message-format json |
        sed -n 's/.*"executable":"\([^"]*\/runtime-[^"]*\)".*/\1/p' | tail -n 1)
    [[ -x $program ]] && "$program"
}

# Our sockets and xsk-rs's must do the same; a crate of its own, outside of the workspace.
frame_io() {
    cargo test -q --manifest-path benches/xsk-rs/Cargo.toml --test conformance
}

# Against the build that the suites use: what is watched is the order of magnitude.
speed_guard() {
    local built=${CARGO_TARGET_DIR:-target}/debug
    PODLANE_BIN=$built/podlane PODLANE_E2E_REPORT=$built/e2e-report benches/e2e/run.sh --guard
}

# What Podlane pins needs bpffs, which systemd mounts and a bare container does not have. It is mounted for this run alone, in a
# mount namespace of its own, so that a run beside this one neither needs nor loses it.
if [[ $EUID -eq 0 && $(stat -f -c %t /sys/fs/bpf 2>/dev/null) != "$BPF_FS_MAGIC" ]]; then
    # shellcheck disable=SC2016 # expanded in there
    exec unshare --mount --propagation slave bash -c 'mount -t bpf bpf /sys/fs/bpf && exec "$0" "$@"' "$PWD/scripts/test.sh" "${ARGUMENTS[@]}"
fi

# A checkout that is built once only pays for what would make the second build fast, most of all with room on the disk.
[[ -z ${CI:-} ]] || export CARGO_INCREMENTAL=0

scripts/deps.sh build test
# The engine's own tests need no root; everything that touches interfaces does, and must not be skipped in silence.
[[ $EUID -eq 0 || $ONLY == unit ]] || refuse "the system tests need root: run it with sudo, or with --only unit."

if [[ -z $ONLY || $ONLY == unit ]]; then
    step 'format' cargo fmt --all --check
    step 'lints' cargo clippy -q --workspace --all-targets -- -D warnings
    step 'unit, property and BPF tests' cargo test -q --workspace --exclude podlane-tests
    step 'metrics, alert rules' prometheus
    step "the tests' own tools" cargo test -q -p podlane-tests --lib
fi
if [[ $ONLY != unit ]]; then
    step 'build' cargo build -q --workspace --bins
fi
if [[ -z $ONLY || $ONLY == system ]]; then
    step 'installation' scripts/install-selftest.sh "${CARGO_TARGET_DIR:-target}/debug/podlane"
    [[ $QUICK == yes ]] || step 'testbed' scripts/netns-testbed-selftest.sh
    step 'system' system_suite
    [[ $TEST_PATH != all ]] || step 'virtual machine, zero-copy' virtual_machine
    [[ $TEST_PATH != all ]] || step "virtual machine, Debian 13's kernel" virtual_machine --kernel 6.12 survival capabilities
    [[ $TEST_PATH != all ]] || step 'virtual machine, oldest kernel' virtual_machine --kernel 6.1
fi
# Its short form has no runs without Podlane and none on both paths at once.
if [[ -z $ONLY || $ONLY == chaos ]] && [[ $TEST_PATH =~ ^(all|af_xdp|kernel)$ || ${#LONG[@]} -gt 0 ]]; then
    step 'chaos' chaos_suite
fi
if [[ -z $ONLY || $ONLY == speed ]] && [[ $TEST_PATH == all ]]; then
    step 'frame I/O on a veth pair' frame_io
    step 'speed' speed_guard
fi

if [[ -z $ONLY || $ONLY == runtime ]]; then
    step 'containers of a real runtime' runtime_suite
fi

printf '\n'
((${#SKIPPED[@]} == 0)) || printf 'skipped: %s\n' "${SKIPPED[@]}"
printf '%d passed, %d failed, %d skipped\n' "$PASSED" "$FAILED" "${#SKIPPED[@]}"
((FAILED == 0))
