# short
# seconds: 140
#
# A daemon with zero-copy sockets is killed, started again, and taken over from: the node's traffic goes on each time, and the
# sockets are zero-copy again although the driver gives a queue up only some time after its socket.

COUNT=500
network_up
podlane_up
# Checksums that a pod leaves unfinished have to be finished on the way, which the kernel does from some release on.
tcp_both_ways
into_pod 1400
kill -9 "$PODLANE_PID"
wait "$PODLANE_PID" 2>/dev/null || true
PODLANE_PID=''
# Nobody steers any more: the kernel does it.
into_pod 1400
out_of_pod 1400
podlane_up
expect 'the sockets after a kill' "$(expected_mode)" "$(port eth1 copy_mode)"
into_pod 1400
out_of_pod 1400
audit

first=$PODLANE_PID
podlane_up --take-over
wait "$first" || fail "the first daemon ended with $?"
expect 'the sockets after a take-over' "$(expected_mode)" "$(port eth1 copy_mode)"
into_pod 1400
through_node 1400
audit
podlane_down
PODLANE_PID=''
in_ns "$NODE" ip -details link show eth1 | grep -q 'prog/xdp' && fail 'a program is left on eth1'
into_pod 1400
printf 'kill, start, take-over, detach with %s sockets\n' "$(expected_mode)"
