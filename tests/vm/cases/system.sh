# short
# seconds: 80
# seconds with --system: 2400
#
# The system suite (tests/system.rs) on the guest's kernel, in network namespaces as on any machine. --system runs what stands
# for every path and both families, or the tests that its filters name; without it only enough to see that the suite is well.

TINY='af_xdp::direct::plain::ping'
SELECTION='direct::plain::ping direct::plain::udp_bulk direct::plain::tcp_bulk direct::plain::checksums
    direct::plain::learned_mac_moves direct::plain::route_comes_and_goes direct::plain::masquerade
    direct::plain::killed_daemon direct::plain::ended_daemon direct::plain::path_changes direct::plain::cni_connects
    cloud::plain::ping direct::local_mtu::inside direct::local_mtu::to_another_node direct::survival::taken_over
    direct::services::nftables direct::services::within_the_cluster_nftables direct::events::filter_at_tc'
# What the guest has no programs for.
declare -A NEEDS=([capture]=tshark [bad_input]=clang [promtool]=promtool [stock_chain]='the stock plugins' [dropin]='the stock plugins'
    [iptables]=iptables-restore)

filters=$TINY
[[ $SYSTEM == no ]] || filters=${FILTERS:-$SELECTION}
skips=()
for what in "${!NEEDS[@]}"; do
    skips+=(--skip "$what")
    [[ $SYSTEM == no ]] || printf 'not here: tests with %s in their names, for want of %s\n' "$what" "${NEEDS[$what]}"
done
# AF_XDP sockets carry what fits one frame there, and local_mtu is refused with a sentence.
if [[ $(printf '%s\n' 6.6 "$(uname -r)" | sort -V | head -n 1) != 6.6 ]]; then
    for group in {af_xdp,mixed}::{direct,cloud}; do skips+=(--skip "$group::local_mtu"); done
    printf 'not here: local_mtu on the af_xdp path, for want of Linux 6.6\n'
fi
for module in br_netfilter nf_conntrack; do modprobe $module 2>/dev/null || true; done
times=$((4 * SLOW < 99 ? 4 * SLOW : 99))
PODLANE_TEST_SLOW=$times PODLANE_TEST_ONLY=$filters PODLANE_TEST_TIMES=200 \
    /podlane/built/deps/system "${skips[@]}" 2>&1 | tee "$RESULTS/system.txt"
passed=$(grep -c '^test .* ok$' "$RESULTS/system.txt") || fail 'no test ran'
printf 'the system suite: %s tests passed\n' "$passed"
