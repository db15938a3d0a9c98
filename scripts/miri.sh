#!/usr/bin/env bash
#
# What touches memory by pointers, or bytes that several threads share, under miri: the ring arithmetic and the UMEM over plain
# memory, hand-off, capture ring and publication with crossbeam and arc-swap as they are, packet views, rewriting and checksums.
# Every access is checked for bounds, validity and data races.
#
#   scripts/miri.sh [SEEDS]    the tests that start threads run under so many schedules, 8 unless said otherwise
#
# Needs a nightly compiler with miri and rust-src (rustup component add --toolchain nightly miri rust-src). It is slow (rings and
# UMEM alone take a minute of a core, property tests far longer), so it is not part of the normal test run.

set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    sed -n '3,/^$/s/^# \{0,1\}//p' "$0"
    exit 0
fi
seeds=${1:-8}
[[ $seeds =~ ^[1-9][0-9]*$ ]] || {
    printf "'%s' is no number of schedules; see %s --help.\n" "$seeds" "$0" >&2
    exit 2
}
cargo +nightly miri --version >/dev/null 2>&1 || {
    printf 'miri is needed: rustup component add --toolchain nightly miri rust-src\n' >&2
    exit 2
}

# miri FLAGS FILTER…: the unit tests of the engine whose names begin so. Isolation is off because proptest asks for its
# directory, and random numbers are fixed by what is not isolated then: its cases are few, a fixed number of them.
engine() {
    local flags=$1
    shift
    MIRIFLAGS="-Zmiri-disable-isolation $flags" PROPTEST_CASES=4 PROPTEST_DISABLE_FAILURE_PERSISTENCE=1 \
        cargo +nightly miri test -q -p podlane-dataplane --lib -- "$@"
}

printf '── once: rings, UMEM, packets\n'
engine '' afxdp::ring afxdp::umem packet::
printf '── under %d schedules: what threads share\n' "$seeds"
engine "-Zmiri-many-seeds=0..$seeds" threads a_reader_sees_snapshots_in_order tap::ring
