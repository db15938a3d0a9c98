#!/usr/bin/env bash
#
# Runs promtool, which checks metrics, alert rules and their tests as Prometheus would: the one in PATH, or the one of Debian's
# package prometheus.
#
#   scripts/promtool.sh ARGUMENT…     e.g. check rules packaging/prometheus/podlane.rules.yml
#
# The package is only fetched and this one program unpacked, into the build directory: installing it would start a Prometheus
# on port 9090, make a user and bring what its web pages need.

set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly ROOT
readonly TOOLS=${CARGO_TARGET_DIR:-$ROOT/target}/tools

fetch() {
    local work
    command -v apt-get >/dev/null || {
        echo "promtool is missing, and there is no apt-get to fetch it with: put one into PATH (it comes with Prometheus)." >&2
        exit 1
    }
    work=$(mktemp -d)
    # shellcheck disable=SC2064 # this directory, not a later value
    trap "rm -rf '$work'" EXIT
    if ! (cd "$work" && apt-get -qq download prometheus 2>"$work/why"); then
        # On a fresh machine there are no package lists yet.
        [[ $EUID -ne 0 ]] || apt-get -qq update >/dev/null
        (cd "$work" && apt-get -qq download prometheus 2>"$work/why") || {
            echo "promtool is missing, and Debian's package prometheus cannot be fetched: $(cat "$work/why")" >&2
            exit 1
        }
    fi
    dpkg-deb --fsys-tarfile "$work"/prometheus_*.deb | tar -x -C "$work" ./usr/bin/promtool
    mkdir -p "$TOOLS"
    mv "$work/usr/bin/promtool" "$TOOLS/promtool.$$"
    mv "$TOOLS/promtool.$$" "$TOOLS/promtool"
    rm -rf "$work"
    trap - EXIT
}

if command -v promtool >/dev/null; then
    exec promtool "$@"
fi
[[ -x $TOOLS/promtool ]] || fetch
exec "$TOOLS/promtool" "$@"
