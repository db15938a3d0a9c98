#!/usr/bin/env bash
#
# The models of what Podlane's threads share (models/), under loom. The normal test run has them; this runs them alone.
#
#   scripts/models.sh             all models
#   scripts/models.sh --mutants   one order of memory accesses after the other is weakened in a copy of the source, and a model must
#                                 notice each (about ten seconds for each, on an idle machine)
#
# Exit code 0 if the models pass, or if every mutant is noticed.

set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

case "${1:-}" in
    '') exec cargo test -p podlane-models ;;
    --mutants) ;;
    -h | --help)
        sed -n '3,/^$/s/^# \{0,1\}//p' "$0"
        exit 0
        ;;
    *)
        printf "there is no option '%s'; see %s --help.\n" "$1" "$0" >&2
        exit 2
        ;;
esac

# Test, file, what is weakened or left out (a sed script), what that is.
MUTANTS=(
    "rings|dataplane/src/afxdp/ring.rs|s/producer().store(self.head, Ordering::Release)/producer().store(self.head, Ordering::Relaxed)/|the producer's counter is published without order"
    "rings|dataplane/src/afxdp/ring.rs|/fn available/,/^    }/s/Ordering::Acquire/Ordering::Relaxed/|the producer's counter is read without order"
    "rings|dataplane/src/afxdp/ring.rs|s/consumer().store(self.tail, Ordering::Release)/consumer().store(self.tail, Ordering::Relaxed)/|entries are given back without order"
    "rings|dataplane/src/afxdp/ring.rs|/fn space/,/^    }/s/Ordering::Acquire/Ordering::Relaxed/|the consumer's counter is read without order"
    "rings|dataplane/src/afxdp/ring.rs|/fn push/,/^    }/s/self.head = self.head.wrapping_add(1);/self.head = self.head.wrapping_add(1); self.publish();/|a batch is published one by one"
    "handoff|dataplane/src/afxdp/sleeping.rs|/fn begin/,/^    }/s/Ordering::SeqCst/Ordering::AcqRel/|the sleeper's fence is weaker"
    "handoff|dataplane/src/afxdp/sleeping.rs|/fn must_be_woken/,/^    }/s/Ordering::SeqCst/Ordering::AcqRel/|the waker's fence is weaker"
    "handoff|dataplane/src/afxdp/sleeping.rs|/fn begin/,/^    }/s/^ *fence(.*//|the sleeper has no fence"
    "handoff|dataplane/src/worker/handoff.rs|s/ring.capacity() - ring.len() < pieces.len()/ring.capacity() == ring.len()/|room for one piece is taken for room for the packet"
    "handoff|dataplane/src/worker/handoff.rs|s/while more {/while false {/|a packet is taken before all of it is there"
    "publication|dataplane/src/table/snapshot.rs|s/self.shared.load().generation + 1/1/|generations do not go up"
    "tap|dataplane/src/tap/ring.rs|s/slot.rest = rest;/slot.rest = None; drop(rest);/|a long frame loses its rest"
    "tap|dataplane/src/tap/ring.rs|s/slot.used = (bytes as usize - start)/slot.used = (bytes as usize)/|a slot says that it holds more than it does"
)

cargo test -q -p podlane-models
COPY=$(mktemp -d)
trap 'rm -rf "$COPY"' EXIT
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}
missed=0
for mutant in "${MUTANTS[@]}"; do
    IFS='|' read -r test file edit what <<<"$mutant"
    rm -rf "${COPY:?}"/*
    # The models take the copied files; what else they need of the engine is built once, from where it stands.
    cp -r Cargo.lock dataplane models "$COPY"
    sed -e 's/^members = .*/members = ["models"]/' -e "s|path = \"dataplane\"|path = \"$PWD/dataplane\"|" \
        Cargo.toml >"$COPY/Cargo.toml"
    sed -i "$edit" "$COPY/$file"
    if cmp -s "$file" "$COPY/$file"; then
        printf 'STALE     %s: the edit fits nothing in %s any more\n' "$what" "$file"
        missed=$((missed + 1))
        continue
    fi
    build=(cargo test -q --manifest-path "$COPY/Cargo.toml" -p podlane-models --test "$test")
    "${build[@]}" --no-run 2>"$COPY/log" || {
        cat "$COPY/log"
        printf 'BROKEN    %s: does not build\n' "$what"
        missed=$((missed + 1))
        continue
    }
    if timeout 300 "${build[@]}" >"$COPY/log" 2>&1; then
        printf 'UNNOTICED %s\n' "$what"
        missed=$((missed + 1))
    else
        printf 'noticed   %s (%s)\n' "$what" "$(sed -n 's/^---- \(.*\) stdout ----$/\1/p' "$COPY/log" | paste -sd' ')"
    fi
done
printf '\n%d mutants, %d noticed\n' "${#MUTANTS[@]}" "$((${#MUTANTS[@]} - missed))"
((missed == 0))
