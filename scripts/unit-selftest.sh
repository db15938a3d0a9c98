#!/usr/bin/env bash
#
# Runs the service as it is installed, under a systemd of its own, in a node of a testbed: installs it, starts it, sends traffic
# on both paths, looks at what the process may do, reloads good and bad configurations, stops one worker and the whole daemon to
# see the watchdog act, removes it.
#
# That systemd cannot touch the machine. It is process 1 of namespaces of its own, in the network of node1; its root is an
# overlay whose changes are in memory, and the real root is not mounted any more when it starts; of /proc/sys only net can be
# written; it knows the units that are made here and no others, so nothing of a boot happens.
#
#   scripts/unit-selftest.sh [BINARY]     default: target/release/podlane, or else target/debug/podlane
#
# One line for each check, the last line is "N passed, N failed"; exit code 0 if none failed. Needs root, systemd, python3, curl.

set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly HERE TESTBED=$HERE/netns-testbed.sh
# Units of this machine that the test needs; everything else that units ask for is an empty target.
readonly JOURNAL=(systemd-journald.service systemd-journald.socket systemd-journald-dev-log.socket)
readonly TARGETS=(sysinit basic shutdown sockets network-pre multi-user test)

# ── inside ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

# In a mount namespace of its own: goes into a control group of its own, and then into the other namespaces.
enter() { # WORK NAME BINARY
    mount --make-rprivate /
    mount -t tmpfs tmpfs "$1"
    mkdir "$1/cgroup"
    mount_cgroup "$1/cgroup"
    mkdir "$1/cgroup/podlane-$2"
    echo "$BASHPID" >"$1/cgroup/podlane-$2/cgroup.procs"
    umount "$1/cgroup"
    exec nsenter --net="/run/netns/$2-node1" -- unshare --pid --mount --cgroup --uts --ipc --fork --kill-child -- \
        "$HERE/${BASH_SOURCE[0]##*/}" --boot "$@"
}

mount_cgroup() { # PLACE
    mount -t cgroup -o none,name=systemd cgroup "$1" 2>/dev/null || mount -t cgroup2 cgroup2 "$1"
}

# Makes the root, and becomes its process 1.
boot() { # WORK NAME BINARY
    local root=$1/root unit node
    mkdir "$1/upper" "$1/work" "$root"
    mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$root"
    mkdir -p "$root/.old" "$root/.test/repo"
    mount --bind -o ro "$HERE/.." "$root/.test/repo"
    cp "$3" "$root/.test/podlane"
    mount -t tmpfs -o mode=755 tmpfs "$root/dev"
    for node in 'null 1 3' 'zero 1 5' 'full 1 7' 'random 1 8' 'urandom 1 9' 'tty 5 0'; do
        # shellcheck disable=SC2086
        set -- $node && mknod -m 666 "$root/dev/$1" c "$2" "$3"
    done
    mkdir "$root/dev/pts" "$root/dev/shm" "$root/dev/mqueue"
    mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
    mount -t tmpfs tmpfs "$root/dev/shm"
    ln -s pts/ptmx "$root/dev/ptmx"
    mount -t tmpfs -o mode=755 tmpfs "$root/run"
    mount -t tmpfs tmpfs "$root/tmp"
    mount -t tmpfs tmpfs "$root/var/tmp"
    mkdir "$root/run/netns"
    mount --rbind /run/netns "$root/run/netns"
    cd "$root"
    pivot_root . .old
    mount -t proc proc /proc
    umount -l /.old
    # From here on nothing of the machine's files can be reached, or this goes no further.
    [[ $(stat -f -c %T /) == overlayfs && -z $(ls /.old) ]] || exit 1
    mount --bind /proc/sys /proc/sys
    mount --bind /proc/sys/net /proc/sys/net
    mount -o remount,bind,ro /proc/sys
    mount -t sysfs sysfs /sys
    mount -t bpf bpf /sys/fs/bpf
    mount -t tmpfs tmpfs /sys/fs/cgroup
    mkdir /sys/fs/cgroup/systemd
    if ! mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd 2>/dev/null; then
        umount /sys/fs/cgroup
        mount -t cgroup2 cgroup2 /sys/fs/cgroup
    fi
    mount -t tmpfs tmpfs /etc/systemd/system
    mkdir -p /.test/units /.test/none /etc/podlane /var/log/journal /usr/local/lib/systemd/system
    mount -t tmpfs tmpfs /var/log/journal
    for unit in "${JOURNAL[@]}"; do cp "/lib/systemd/system/$unit" /.test/units/; done
    for unit in "${TARGETS[@]}"; do
        printf '[Unit]\nDescription=%s\nDefaultDependencies=no\n' "$unit" >"/.test/units/$unit.target"
    done
    echo 'Wants=systemd-journald.service' >>/.test/units/test.target
    mount --make-rshared /
    exec env -i container=podlane-test PATH="$PATH" \
        SYSTEMD_UNIT_PATH=/etc/systemd/system:/usr/local/lib/systemd/system:/.test/units \
        SYSTEMD_GENERATOR_PATH=/.test/none SYSTEMD_ENVIRONMENT_GENERATOR_PATH=/.test/none \
        /lib/systemd/systemd --system --unit=test.target --log-target=journal-or-kmsg --show-status=no
}

case ${1:-} in
    --enter) enter "${@:2}" ;;
    --boot) boot "${@:2}" ;;
esac

# ── outside ────────────────────────────────────────────────────────────────────────────────────────────────────────────

cd "$HERE/.."
TARGET=${CARGO_TARGET_DIR:-target}
BINARY=${1:-}
if [[ -z $BINARY ]]; then
    for BINARY in "$TARGET/release/podlane" "$TARGET/debug/podlane"; do [[ ! -x $BINARY ]] || break; done
fi
[[ -x $BINARY ]] || {
    printf 'there is no %s: build it with cargo build -p podlane\n' "$BINARY" >&2
    exit 1
}
[[ $EUID -eq 0 && -x /lib/systemd/systemd ]] || {
    printf 'this test needs root and systemd\n' >&2
    exit 1
}

readonly NAME=u$((BASHPID % 1000000))
WORK=$(mktemp -d /tmp/podlane-unit.XXXXXX)
OUT=$(mktemp -d /tmp/podlane-unit-out.XXXXXX)
readonly WORK OUT
KEEPER='' INIT='' PASSED=0 FAILED=0

finish() {
    [[ -z $INIT ]] || kill -KILL "$INIT" 2>/dev/null || true
    [[ -z $KEEPER ]] || wait "$KEEPER" 2>/dev/null || true
    "$TESTBED" down --name "$NAME" >/dev/null 2>&1 || true
    unshare --mount -- bash -c "$(declare -f mount_cgroup)
        mount --make-rprivate / && mount_cgroup '$WORK' &&
        find '$WORK/podlane-$NAME' -depth -type d -exec rmdir {} +" >/dev/null 2>&1 || true
    rmdir "$WORK"
    rm -f "$OUT"/*
    rmdir "$OUT"
}
trap finish EXIT
trap 'exit 130' INT TERM HUP

# check WHAT CMD…: passes if the command succeeds. The output is shown only if it does not.
check() {
    local what=$1
    shift
    if "$@" >"$OUT/said" 2>&1; then
        PASSED=$((PASSED + 1))
        printf 'ok    %s\n' "$what"
    else
        FAILED=$((FAILED + 1))
        printf 'FAIL  %s\n' "$what"
        sed 's/^/        /' "$OUT/said"
        journal -n 12 2>/dev/null | sed 's/^/        | /'
    fi
}

# until_ SECONDS CMD…: waits until the command succeeds.
until_() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < deadline)) || { "$@"; return 1; }
        sleep 0.1
    done
}

node() { nsenter --target "$INIT" --mount --pid --net --cgroup --uts --ipc --root --wdns=/ -- "$@"; }
pod() { nsenter --net="/run/netns/$NAME-$1" -- "${@:2}"; }
journal() { node journalctl --no-pager -q -o cat -u podlane "$@"; }
# Never 0, which would be everybody to `kill`.
main_pid() { node systemctl show -p MainPID --value podlane | grep -v '^0$' || printf 'none\n'; }
is() { [[ $1 == "$2" ]] || { printf 'it is "%s", not "%s"\n' "$1" "$2"; return 1; }; }
has() { grep -q -- "$2" <<<"$1" || { printf 'there is no "%s" in:\n%s\n' "$2" "$1"; return 1; }; }
fails() { ! "$@"; }
# A member of the status, by an expression over it.
status() { node podlane status --json | python3 -c "import json, sys; status = json.load(sys.stdin); print($1)" 2>/dev/null; }

# The line of /proc/PID/status that begins with the word.
process() { node sed -n "s/^$2:\t//p" "/proc/$1/status"; }
# Numbers of the service's threads of this name.
threads() { # PID PATTERN
    local task
    for task in $(node ls "/proc/$1/task"); do
        # shellcheck disable=SC2053
        [[ $(node cat "/proc/$1/task/$task/comm") != $2 ]] || printf '%s\n' "$task"
    done
}

config() { # LINE…
    node sh -c 'cat >/etc/podlane/podlane.toml' <<END
bridge = "cbr0"
uplinks = ["eth0"]
cluster_cidrs = ["10.244.0.0/16", "fd00:10:244::/48"]
# A machine may not let its root raise the limit of locked memory; this much it has.
$([[ $* == *frames* ]] || echo 'frames = 2048')
$(printf '%s\n' "$@")
END
}

# Every packet arrives, inside of the node and from it to another.
traffic() {
    local to said
    for to in 10.244.1.3 10.244.2.2; do
        said=$(pod pod1 ping -nq -c 20 -i 0.01 -W 2 "$to") || return 1
        has "$said" ' 0% packet loss' || return 1
    done
}
traffic_takes() { # KIND
    local before after
    # Right after a start the first packets resolve neighbours.
    until_ 10 traffic || return 1
    before=$(status "sum(port['$1'] for port in status['ports'])")
    traffic || return 1
    after=$(status "sum(port['$1'] for port in status['ports'])")
    ((after >= before + 60)) || { printf 'only %d packets were %s\n' $((after - before)) "$1"; return 1; }
}

start() {
    "$TESTBED" up --name "$NAME" >/dev/null
    unshare --mount -- "$HERE/${BASH_SOURCE[0]##*/}" --enter "$WORK" "$NAME" "$(realpath "$BINARY")" &
    KEEPER=$!
    # Its only child, once it has become what it is to be.
    until_ 20 pgrep -P "$KEEPER" -x systemd
    INIT=$(pgrep -P "$KEEPER" -x systemd)
    until_ 30 node systemctl is-active test.target systemd-journald.service
}

# ── the checks ─────────────────────────────────────────────────────────────────────────────────────────────────────────

# The watchdog with a shorter time, so that its checks do not take minutes.
shorten_watchdog() {
    node mkdir -p /etc/systemd/system/podlane.service.d
    node sh -c "printf '[Service]\nWatchdogSec=10\n' >/etc/systemd/system/podlane.service.d/watchdog.conf"
    node systemctl daemon-reload
}

installs_and_starts() {
    node /.test/repo/scripts/install.sh --binary /.test/podlane || return 1
    shorten_watchdog
    config 'path = "af_xdp"'
    node systemctl start podlane && is "$(node systemctl is-active podlane)" active && pins
}

# What outlives the daemon is where the host sees it.
pins() { node test -d /sys/fs/bpf/podlane/default && fails has "$(journal)" 'programs and maps go when podlane stops'; }

is_confined() {
    local pid worker
    pid=$(main_pid)
    # NET_BROADCAST 11, NET_ADMIN 12, NET_RAW 13, PERFMON 38, BPF 39.
    is "$(process "$pid" CapBnd)" 000000c000003800 || return 1
    is "$(process "$pid" CapEff)" 000000c000003800 || return 1
    is "$(process "$pid" NoNewPrivs) $(process "$pid" Seccomp)" '1 2' || return 1
    for worker in $(threads "$pid" 'podlane-*'); do
        is "$(process "$pid/task/$worker" CapEff) $(process "$pid/task/$worker" CapPrm)" \
            '0000000000000000 0000000000000000' || return 1
    done
    (($(threads "$pid" 'podlane-w*' | wc -l) >= 1 && $(threads "$pid" 'podlane-*' | wc -l) >= 3))
}

workers_run_first() {
    local pid worker
    pid=$(main_pid)
    for worker in $(threads "$pid" 'podlane-w*'); do
        is "$(nice_of "$worker")" $(($(nice_of "$pid") - 5)) || return 1
    done
}
# The 19th word of a thread's line, whose name has no space.
nice_of() { node cut -d' ' -f19 "/proc/$(main_pid)/task/$1/stat"; }

# Where root itself may not raise limits, as in some virtual machines, the capabilities for which they do not apply.
lift_limits() {
    local file=/etc/systemd/system/podlane.service.d/limits.conf
    ! node capsh --has-p=cap_sys_resource 2>/dev/null || return 0
    node sh -c "printf '[Service]\nCapabilityBoundingSet=CAP_IPC_LOCK CAP_SYS_NICE\n' >$file"
    node systemctl daemon-reload
    node systemctl restart podlane
}

complains_of_nothing() {
    local lines
    # Its own, not systemd's about it.
    lines=$(node journalctl --no-pager -q -o cat -p warning _COMM=podlane)
    [[ -z $lines ]] || { printf '%s\n' "$lines"; return 1; }
}

answers() {
    node podlane status >/dev/null && node podlane trace 10.244.1.2 10.244.2.2 >/dev/null &&
        has "$(node curl -fsS http://127.0.0.1:9477/metrics)" 'podlane_' &&
        has "$(node systemctl show -p StatusText --value podlane)" 'ports: 3, workers: '
}

captures() {
    local said code=0
    # Until it has seen its packets; how many there are does not matter.
    (until_ 20 test -e "$OUT/captured" || true) &
    while [[ ! -e $OUT/captured ]]; do traffic >/dev/null || true; done &
    said=$(node timeout 15 podlane capture -c 10 2>&1) || code=$?
    : >"$OUT/captured"
    wait %2 %3 2>/dev/null || true
    rm "$OUT/captured"
    ((code == 0)) && has "$said" '10.244.1.2'
}

reloads() {
    local pid
    pid=$(main_pid)
    config 'path = "kernel"' 'log = "debug"'
    node systemctl reload podlane || return 1
    is "$(node systemctl is-active podlane) $(main_pid)" "active $pid" || return 1
    has "$(journal)" 'in force: path (af_xdp → kernel)'
}

refuses() {
    config 'path = "fast"'
    fails node systemctl reload podlane || return 1
    is "$(node systemctl is-active podlane) $(status "status['path']")" 'active kernel' || return 1
    has "$(status "status['notes']")" 'podlane.toml:6: path: "fast" is not one of' || return 1
    has "$(journal)" 'podlane.toml:6: path: "fast" is not one of'
}

reloads_by_signal() {
    config 'path = "kernel"' 'frames = 4096'
    node systemctl kill -s HUP podlane
    until_ 5 has_note 'needs a restart: frames (2048 → 4096)' && is "$(node systemctl is-active podlane)" active
}
has_note() { has "$(status "status['notes']")" "$1"; }

large_frames_want_more() {
    config 'local_mtu = 9000'
    node systemctl restart podlane || return 1
    until_ 10 has_note 'it takes CAP_SYS_ADMIN' && traffic
}

large_frames_with_the_drop_in() {
    node mkdir -p /etc/systemd/system/podlane.service.d
    node cp /.test/repo/packaging/podlane-large-frames.conf /etc/systemd/system/podlane.service.d/
    node systemctl daemon-reload
    config 'path = "af_xdp"'
    node systemctl restart podlane || return 1
    config 'local_mtu = 9000'
    node systemctl reload podlane && until_ 10 has_mtu pod1 9000 || return 1
    pod pod1 ping -nq -c 3 -i 0.1 -W 2 -M "do" -s 8000 10.244.1.3 || return 1
    config 'path = "af_xdp"'
    # While it may still enter the pods.
    node systemctl reload podlane && until_ 5 has_mtu pod1 1500 || return 1
    node rm /etc/systemd/system/podlane.service.d/podlane-large-frames.conf
    node systemctl daemon-reload
    node systemctl restart podlane
}
has_mtu() { has "$(pod "$1" ip link show eth0)" "mtu $2 "; }

restarts() { node systemctl show -p NRestarts --value podlane; }
restarted() { (($(restarts) > $1)) && is "$(node systemctl is-active podlane)" active; }

# One worker alone: a tracer stops its thread, as a hang would.
a_hung_worker() {
    local pid worker before began=$SECONDS code=0
    pid=$(main_pid) before=$(restarts)
    worker=$(threads "$pid" 'podlane-w0')
    node timeout 30 python3 - "$worker" <<'PYTHON' &
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
PTRACE_SEIZE, PTRACE_INTERRUPT = 0x4206, 0x4207
for request in (PTRACE_SEIZE, PTRACE_INTERRUPT):
    assert libc.ptrace(request, int(sys.argv[1]), None, None) == 0, ctypes.get_errno()
# That it has stopped; and then its end, which nobody else is told.
WALL = 0x40000000
while not os.WIFSIGNALED(os.waitpid(int(sys.argv[1]), WALL)[1]):
    pass
PYTHON
    local tracer=$!
    until_ 25 restarted "$before" || code=$?
    kill "$tracer" 2>/dev/null || true
    wait "$tracer" 2>/dev/null || true
    printf 'a hung worker: restarted after %d s\n' $((SECONDS - began)) | tee -a "$OUT/times"
    ((code == 0 && SECONDS - began >= 7 && SECONDS - began <= 16)) && has "$(journal)" 'worker 0 has not come around for'
}

a_stopped_daemon() {
    local before began=$SECONDS
    before=$(restarts)
    node kill -STOP "$(main_pid)"
    until_ 25 restarted "$before" || return 1
    printf 'a stopped daemon: restarted after %d s\n' $((SECONDS - began)) | tee -a "$OUT/times"
    ((SECONDS - began >= 7 && SECONDS - began <= 16))
}

counters_stay() {
    local before after rx="sum(port['forwarded'] + port['repeated'] for port in status['ports'])"
    before=$(status "$rx")
    node systemctl restart podlane || return 1
    after=$(status "$rx")
    ((before > 0 && after >= before)) || { printf '%s before, %s after\n' "$before" "$after"; return 1; }
}

a_wrong_file_is_not_tried_again() {
    node systemctl stop podlane
    config 'frames = 5000'
    fails node systemctl start podlane || return 1
    is "$(node systemctl show -p ExecMainStatus --value podlane) $(node systemctl is-failed podlane)" '2 failed'
}

is_removed() {
    config 'path = "af_xdp"'
    node systemctl reset-failed podlane
    node systemctl start podlane && node systemctl stop podlane || return 1
    node /.test/repo/scripts/install.sh --uninstall || return 1
    fails node test -e /usr/local/bin/podlane && fails node test -e /sys/fs/bpf/podlane/default || return 1
    fails node ip link show podlane0 || return 1
    fails has "$(node ip -d link)" 'prog/xdp' && traffic
}

start
check 'it is installed, and ready when systemctl says so' installs_and_starts
((FAILED == 0)) || exit 1
check 'the process has five capabilities, its threads none' is_confined
check 'limits are lifted, by the unit or for this test' lift_limits
check 'workers run before ordinary threads' workers_run_first
check 'traffic takes the af_xdp path' traffic_takes forwarded
check 'status, trace and metrics answer' answers
check 'captures work' captures
check 'it complains of nothing' complains_of_nothing
check 'systemctl reload brings a file into force' reloads
check 'traffic takes the kernel path' traffic_takes repeated
check 'captures work there too' captures
check 'it still complains of nothing' complains_of_nothing
check 'a wrong file is refused by systemctl reload, and changes nothing' refuses
check 'SIGHUP reads it again, and what needs a restart is named' reloads_by_signal
check 'local_mtu is not in force without CAP_SYS_ADMIN, and nothing else is missing' large_frames_want_more
check 'and is with the drop-in' large_frames_with_the_drop_in
check 'counters outlive a restart' counters_stay
check 'a worker that hangs ends in a restart' a_hung_worker
check 'so does a daemon that hangs' a_stopped_daemon
check 'traffic takes the af_xdp path after it' traffic_takes forwarded
check 'a service with a wrong file fails once' a_wrong_file_is_not_tried_again
check 'it is removed, and the kernel forwards' is_removed
[[ ! -s $OUT/times ]] || cat "$OUT/times"

printf '%d passed, %d failed\n' "$PASSED" "$FAILED"
((FAILED == 0))
