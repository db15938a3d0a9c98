#!/usr/bin/env bash
#
# Tests scripts/install.sh in a directory of its own: installs, looks at every file, runs the installed program, installs
# again, upgrades, and removes; nothing may be left. Needs no root.
#
#   scripts/install-selftest.sh [BINARY]     default: target/release/podlane, or else target/debug/podlane

set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

TARGET=${CARGO_TARGET_DIR:-target}
BINARY=${1:-}
if [[ -z $BINARY ]]; then
    for BINARY in "$TARGET/release/podlane" "$TARGET/debug/podlane"; do [[ ! -x $BINARY ]] || break; done
fi
[[ -x $BINARY ]] || {
    printf 'there is no %s: build it with cargo build -p podlane -p podlane-cni\n' "$BINARY" >&2
    exit 1
}

WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
DEST=$WORK/dest
CHECKS=0

fail() {
    printf 'FAILED: %s\n' "$*" >&2
    exit 1
}

check() { # WHAT CMD…
    local what=$1
    shift
    "$@" || fail "$what"
    CHECKS=$((CHECKS + 1))
}

install() { scripts/install.sh --destdir "$DEST" --binary "$BINARY" "$@"; }
uninstall() { scripts/install.sh --destdir "$DEST" --uninstall "$@"; }
files() { (cd "$DEST" && find . -mindepth 1 | sort); }
is() { [[ $1 == "$2" ]] || { diff <(printf '%s\n' "$1") <(printf '%s\n' "$2"); return 1; }; }

# ── a fresh installation ───────────────────────────────────────────────────────────────────────────────────────────────

mkdir -p "$DEST"
install >"$WORK/said"
check 'the program runs' is "$("$DEST/usr/local/bin/podlane" --version)" "$("$BINARY" --version)"
for file in bin/podlane share/man/man8/podlane.8 share/man/man8/podlane-run.8 share/man/man8/podlane-bugreport.8 \
    share/bash-completion/completions/podlane share/zsh/site-functions/_podlane \
    share/fish/vendor_completions.d/podlane.fish lib/systemd/system/podlane.service share/podlane/install-list; do
    check "$file is there" test -s "$DEST/usr/local/$file"
done
check 'the CNI plugin is where runtimes look' cmp "${BINARY%/*}/podlane-cni" "$DEST/opt/cni/bin/podlane-cni"
check 'and its configuration only an example' test ! -e "$DEST/etc/cni" -a -s "$DEST/usr/local/share/doc/podlane/10-podlane.conflist"
check 'it says what it put where' grep -q "^installed  $DEST/usr/local/share/man/man8/podlane.8$" "$WORK/said"
check 'every file is told' is "$(grep -c '^installed ' "$WORK/said")" "$(($(find "$DEST" -type f | wc -l) - 1))"
check 'the configuration is the example' cmp packaging/podlane.toml "$DEST/etc/podlane/podlane.toml"
check 'a page for each command' is "$("$BINARY" --help | sed -n '/^Commands:/,/^$/s/^  \([a-z][a-z]*\) .*/\1/p' | grep -v '^help$' | sort)" \
    "$(find "$DEST/usr/local/share/man/man8" -name 'podlane-*.8' -printf '%f\n' | sed 's/^podlane-\(.*\)\.8$/\1/' | sort)"
# shellcheck disable=SC1091
check 'bash loads the completion' bash --norc -c "source '$DEST/usr/local/share/bash-completion/completions/podlane' && complete -p podlane" >/dev/null
check 'modes' is "$(stat -c %a "$DEST/usr/local/bin/podlane" "$DEST/etc/podlane/podlane.toml" | xargs)" '755 644'
if command -v systemd-analyze >/dev/null; then
    sed "s|/usr/local/bin|$DEST/usr/local/bin|" "$DEST/usr/local/lib/systemd/system/podlane.service" >"$WORK/podlane.service"
    # Other units of this machine, and its missing manual pages, are not judged here.
    check 'the unit is sound' is "$(systemd-analyze verify --man=no "$WORK/podlane.service" 2>&1 | grep podlane.service || true)" ''
    # Exposure in tenths, of at most 100; what is left is what a dataplane is for: the node's network, BPF, being root.
    if systemd-analyze security --help | grep -q -- --offline; then
        check 'the unit is confined' systemd-analyze security --offline=yes --threshold=27 "$WORK/podlane.service" >/dev/null
    fi
fi

# ── again ──────────────────────────────────────────────────────────────────────────────────────────────────────────────

before=$(files; cat "$DEST/usr/local/share/podlane/install-list")
install >"$WORK/said"
check 'a second time changes nothing' is "$(files; cat "$DEST/usr/local/share/podlane/install-list")" "$before"
check 'and says so' test "$(grep -c '^installed\|^renewed' "$WORK/said")" = 0
uninstall >"$WORK/said"
check 'nothing is left' is "$(files)" ''

# ── with files of others around, and a configuration of one's own ──────────────────────────────────────────────────────

mkdir -p "$DEST/usr/local/bin" "$DEST/usr/local/share/man/man8" "$DEST/etc/podlane"
echo other >"$DEST/usr/local/bin/other"
echo 'bridge = "mine"' >"$DEST/etc/podlane/podlane.toml"
before=$(files)
install --no-systemd >"$WORK/said"
check 'a configuration is kept' is "$(cat "$DEST/etc/podlane/podlane.toml")" 'bridge = "mine"'
check 'and the new one laid beside' cmp packaging/podlane.toml "$DEST/etc/podlane/podlane.toml.new"
check 'no service' test ! -e "$DEST/usr/local/lib/systemd"
# An earlier version had a page that this one has not.
echo old >"$DEST/usr/local/share/man/man8/podlane-old.8"
printf 'file %s %s\n' "$(sha256sum <"$DEST/usr/local/share/man/man8/podlane-old.8" | cut -d' ' -f1)" \
    /usr/local/share/man/man8/podlane-old.8 >>"$DEST/usr/local/share/podlane/install-list"
install --no-systemd >/dev/null
check 'what this version lacks is removed' test ! -e "$DEST/usr/local/share/man/man8/podlane-old.8"
echo changed >>"$DEST/usr/local/share/zsh/site-functions/_podlane"
uninstall >"$WORK/said"
check 'what was changed is told' grep -q '^kept .*/_podlane (changed since it was installed)$' "$WORK/said"
rm -r "$DEST/usr/local/share/zsh"
check 'what others have is kept' is "$(files)" "$before"

# ── a configuration that was installed and then changed ────────────────────────────────────────────────────────────────

rm -r "${DEST:?}"/*
install >/dev/null
echo '# mine' >>"$DEST/etc/podlane/podlane.toml"
install >/dev/null
check 'it is kept' grep -q '^# mine$' "$DEST/etc/podlane/podlane.toml"
uninstall >/dev/null
check 'to the end' is "$(files)" "$(printf '%s\n' ./etc ./etc/podlane ./etc/podlane/podlane.toml)"
rm -r "${DEST:?}"/*

# ── the CNI plugin ─────────────────────────────────────────────────────────────────────────────────────────────────────

CONFLIST=$DEST/etc/cni/net.d/10-podlane.conflist
install --pod-cidr 10.7.1.0/24 --pod-cidr fd07:1::/64 >/dev/null
check 'its configuration has the networks' is "$(jq -c '.plugins[0].podCIDRs' "$CONFLIST")" '["10.7.1.0/24","fd07:1::/64"]'
install >/dev/null
check 'another run leaves it' is "$(jq -c '.plugins[0].podCIDRs' "$CONFLIST")" '["10.7.1.0/24","fd07:1::/64"]'
install --pod-cidr 10.7.2.0/24 >/dev/null
check 'and lays another one beside it' is "$(jq -c '.plugins[0].podCIDRs' "$CONFLIST" "$CONFLIST.new" | xargs)" '[10.7.1.0/24,fd07:1::/64] [10.7.2.0/24]'
uninstall >/dev/null
check 'nothing is left of it' is "$(files)" ''
install --no-cni >/dev/null
check 'it can be left out' test ! -e "$DEST/opt" -a ! -e "$DEST/usr/local/share/doc/podlane/10-podlane.conflist"
uninstall >/dev/null

# ── another prefix, and mistakes ───────────────────────────────────────────────────────────────────────────────────────

install --prefix /opt/podlane >/dev/null
check 'the unit names the prefix' grep -q '^ExecStart=/opt/podlane/bin/podlane run$' "$DEST/etc/systemd/system/podlane.service"
uninstall --prefix /opt/podlane >/dev/null
check 'nothing is left of it' is "$(files)" ''
for wrong in '--pod-cidr 10.0.0.0' '--no-cni --pod-cidr 10.0.0.0/24' '--prefix relative' '--prefix /a/../b' '--prefix' '--colour' '--destdir x'; do
    # shellcheck disable=SC2086
    code=0 && scripts/install.sh $wrong 2>"$WORK/said" || code=$?
    check "$wrong is refused" is "$code" 2
done
code=0 && uninstall 2>"$WORK/said" || code=$?
check 'there is nothing to remove' is "$code $(grep -c 'nothing is installed' "$WORK/said")" '1 1'
code=0 && scripts/install.sh --destdir "$DEST" --binary /bin/false 2>"$WORK/said" || code=$?
check 'another program is refused' is "$code $(files)" '1 '
mkdir -p "$DEST/usr/local/share/podlane"
printf 'file 0 /usr/../../etc/passwd\n' >"$DEST/usr/local/share/podlane/install-list"
code=0 && uninstall 2>"$WORK/said" || code=$?
check 'a list that leads elsewhere is refused' is "$code" 1

printf '%d checks passed\n' "$CHECKS"
