#!/usr/bin/env bash
#
# Searches for inputs that break Podlane, with libFuzzer: the targets of fuzz/, each for a stated time, one after the other.
#
#   scripts/fuzz.sh [SECONDS [TARGET…]]      60 seconds for each of all targets, unless said otherwise
#   scripts/fuzz.sh --differential [SECONDS] engine against both BPF programs on random frames and tables, as root; 60 seconds
#   scripts/fuzz.sh --keep                   adds to the corpus what the searches found: the smallest inputs that reach code which
#                                            no seed reaches, 12 for each target at most
#
# Needs a nightly compiler (rustup toolchain install nightly) and cargo-fuzz (cargo install cargo-fuzz). What is found lies in
# ${PODLANE_FUZZ_DIR:-target/fuzz}: TARGET/corpus goes on growing from run to run, TARGET/crashes has what broke it, minimised. Run
# `cargo run -p podlane-fuzz --bin fuzz-seeds -- TARGET FILE` to see a crash again, mend it, and put the file into
# fuzz/corpus/TARGET/fault-NAME: the normal test run looks at it from then on.
#
# Exit code 0 if nothing was found.

set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

FUZZ=(cargo +nightly fuzz)
HERE=(--fuzz-dir fuzz/libfuzzer --sanitizer none --release)
OUT=${PODLANE_FUZZ_DIR:-target/fuzz}
ALL=(packet decide kernel filter config request answer netlink capture names saved)
# Memory that one input may take, and seconds: a limit on everything holds for what others send, too.
LIMITS=(-rss_limit_mb=1024 -malloc_limit_mb=256 -timeout=5)

refuse() {
    printf '%s\n' "$*" >&2
    exit 2
}

# What a run came to: executions, inputs, coverage. libFuzzer's last line of progress has them.
summary() {
    local target=$1 log=$2 last
    last=$(grep -aE '^#[0-9]+.*cov:' "$log" | tail -n 1)
    printf '%-10s %s\n' "$target" "$(sed -E 's/^#([0-9]+).* cov: ([0-9]+) ft: ([0-9]+) corp: ([0-9]+).*/\1 executions, \2 edges, \3 features, \4 inputs/' <<<"$last")"
}

# A crash as small as a minute can make it, beside the original.
minimise() {
    local target=$1 crash
    for crash in "$OUT/$target/crashes"/{crash,oom,timeout}-*; do
        [[ -e $crash && $crash != *.smaller ]] || continue
        "${FUZZ[@]}" tmin "${HERE[@]}" --runs 20000 "$target" "$crash" -- "${LIMITS[@]}" -exact_artifact_path="$crash.smaller" \
            >"$OUT/$target/tmin.log" 2>&1 || true
        printf '  %s (%d bytes)\n' "$crash" "$(stat -c %s "$crash")"
    done
}

search() {
    local target=$1 seconds=$2 log=$OUT/$1/log
    mkdir -p "$OUT/$target/corpus" "$OUT/$target/crashes"
    local options=("-max_total_time=$seconds" -print_final_stats=1 "-artifact_prefix=$OUT/$target/crashes/" "${LIMITS[@]}")
    [[ ! -e fuzz/dictionaries/$target ]] || options+=("-dict=fuzz/dictionaries/$target")
    if "${FUZZ[@]}" run "${HERE[@]}" "$target" "$OUT/$target/corpus" "fuzz/corpus/$target" -- "${options[@]}" >"$log" 2>&1; then
        summary "$target" "$log"
    else
        summary "$target" "$log"
        printf '%s: FOUND something; %s ends with:\n' "$target" "$log"
        grep -aE 'panicked|assertion|left:|right:|ERROR: libFuzzer' "$log" | head -n 6
        minimise "$target"
        return 1
    fi
}

# The engine against the programs under BPF_PROG_TEST_RUN, with new seeds until the time is over; one seed is 400 worlds of 200
# frames, and a failure names its seed.
differential() {
    local seconds=$1 seed frames=0 start=$SECONDS
    [[ $EUID -eq 0 ]] || refuse "loading BPF programs needs root."
    cargo test -q --release -p podlane --test steer --no-run
    while ((SECONDS - start < seconds)); do
        seed=$((RANDOM << 15 | RANDOM))
        PODLANE_SEED=$seed cargo test -q --release -p podlane --test steer program_and_engine_agree >"$OUT/differential.log" 2>&1 || {
            cat "$OUT/differential.log"
            refuse "they differ: PODLANE_SEED=$seed cargo test --release -p podlane --test steer program_and_engine_agree"
        }
        frames=$((frames + 80000))
        printf 'differential: %d frames, %d s\n' "$frames" $((SECONDS - start))
    done
}

keep() {
    local target file from to kept
    for target in "${ALL[@]}"; do
        from=$OUT/$target/corpus to=$OUT/$target/merged kept=0
        [[ -d $from ]] || continue
        rm -rf "$to" && mkdir "$to"
        cp "fuzz/corpus/$target"/seed-* "$to"
        "${FUZZ[@]}" run "${HERE[@]}" "$target" "$to" "$from" -- -merge=1 >"$OUT/$target/merge.log" 2>&1
        for file in $(find "$to" -type f ! -name 'seed-*' -size -2 -printf '%s %p\n' | sort -n | head -n 12 | cut -d' ' -f2); do
            cp "$file" "fuzz/corpus/$target/found-$(basename "$file" | cut -c1-12)"
            kept=$((kept + 1))
        done
        printf '%-10s %d kept\n' "$target" "$kept"
    done
}

mkdir -p "$OUT"
OUT=$(realpath "$OUT")
case "${1:-}" in
    -h | --help)
        sed -n '3,/^$/s/^# \{0,1\}//p' "$0"
        exit 0
        ;;
    --differential)
        differential "${2:-60}"
        exit 0
        ;;
    --keep) keep && exit 0 ;;
esac
seconds=${1:-60}
[[ $seconds =~ ^[1-9][0-9]*$ ]] || refuse "'$seconds' are no seconds; see $0 --help."
shift || true
targets=("${@:-${ALL[@]}}")
(($# > 0)) || targets=("${ALL[@]}")
for target in "${targets[@]}"; do
    [[ " ${ALL[*]} " == *" $target "* ]] || refuse "there is no target '$target'; there are ${ALL[*]}."
done
cargo +nightly --version >/dev/null 2>&1 || refuse "a nightly compiler is needed: rustup toolchain install nightly"
cargo +nightly fuzz --version >/dev/null 2>&1 || refuse "cargo-fuzz is needed: cargo install cargo-fuzz"
printf 'building %d targets\n' "${#targets[@]}"
"${FUZZ[@]}" build "${HERE[@]}" >"$OUT/build.log" 2>&1 || {
    tail -n 30 "$OUT/build.log"
    exit 1
}
found=0
for target in "${targets[@]}"; do
    search "$target" "$seconds" || found=$((found + 1))
done
printf '\n%d targets, %d s each, %d found something\n' "${#targets[@]}" "$seconds" "$found"
((found == 0))
