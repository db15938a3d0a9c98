# short
# seconds: 100
#
# The kernel path, and `auto`, on real cards: the same ways, none lost, and what `auto` chooses follows the sockets.

COUNT=500
network_up
podlane_up --path kernel
expect 'the sockets of a card on the kernel path' copy "$(port eth1 copy_mode)"
tcp_both_ways
for size in 60 1400; do
    into_pod "$size"
    out_of_pod "$size"
    through_node "$size"
done
(($(port eth1 repeated) >= 2 * COUNT)) || fail "the kernel path repeated only $(port eth1 repeated) of eth1's packets"
audit
podlane_down

podlane_up --path auto
if has_zero_copy; then
    expect 'the path of a card with zero-copy' af_xdp "$(port eth1 path)"
else
    expect 'the path of a card without zero-copy' kernel "$(port eth1 path)"
fi
expect 'the path of a pod' kernel "$(port veth-pod1 path)"
tcp_both_ways
into_pod 1400
out_of_pod 1400
audit
podlane_down
PODLANE_PID=''
printf 'the kernel path (%s) and auto\n' "$(uname -r)"
