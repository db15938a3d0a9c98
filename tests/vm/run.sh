#!/usr/bin/env bash
# Runs the wanted cases, each in a shell of its own with the two nodes' worth of cards as they were, and sums them up.

. /podlane/wanted
uname -r >/results/kernel
# The repository's top, as far as it is here.
cd "$(</podlane/repository)" || exit 1

PASSED=0 FAILED=0 SKIPPED=0

# On the console as well, which is all there is if the machine comes to its time limit.
summary() { printf '%s\n' "$*" | tee -a /results/summary; }

run_case() { # FILE
    local name start=$SECONDS code=0 follower heading='seconds'
    name=$(basename "$1" .sh)
    [[ $SYSTEM == no ]] || heading='seconds with --system'
    mkdir -p "/results/$name"
    : >"/results/$name/log"
    # Of a case that was asked for by name everything is on the console as it comes.
    ((${#NAMES[@]} == 0)) || { tail -f "/results/$name/log" & follower=$!; }
    # A case may take this long, and no longer: the machine has a limit as well, and would bring nothing back.
    CASE=$name RESULTS=/results/$name timeout -k 5 $(($(sed -n "s/^# $heading: //p" "$1") * SLOW)) bash -eu -o pipefail -c \
        '. /podlane/lib.sh; . "$0"' "$1" >>"/results/$name/log" 2>&1 || code=$?
    ((${#NAMES[@]} == 0)) || kill "$follower"
    case $code in
        0) PASSED=$((PASSED + 1)) && summary "ok       $name, $((SECONDS - start)) s: $(tail -n 1 "/results/$name/log")" ;;
        77) SKIPPED=$((SKIPPED + 1)) && summary "skipped  $name: $(tail -n 1 "/results/$name/log")" ;;
        *)
            FAILED=$((FAILED + 1))
            summary "FAILED   $name, $((SECONDS - start)) s, exit code $code"
            printf -- '-- %s\n' "$name"
            tail -n 40 "/results/$name/log"
            ;;
    esac
}

wanted_cases() {
    local file name
    for file in /podlane/cases/*.sh; do
        name=$(basename "$file" .sh)
        if ((${#NAMES[@]})); then
            [[ " ${NAMES[*]} " != *" $name "* ]] || printf '%s\n' "$file"
        elif [[ $SHORT == no ]] || grep -q '^# short$' "$file"; then
            printf '%s\n' "$file"
        fi
    done
}

mapfile -t FILES < <(wanted_cases)
for file in "${FILES[@]}"; do run_case "$file"; done
summary "Linux $(</results/kernel): $PASSED passed, $FAILED failed, $SKIPPED skipped"
