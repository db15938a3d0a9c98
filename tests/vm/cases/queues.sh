# seconds: 100
#
# A card with two queues and a worker for each: the card spreads flows over both (RSS), and the worker that does not own a
# pod's one queue hands its packets over.

network_up
in_ns "$NODE" ethtool -L eth1 combined 2 || skip 'the machine could not give eth1 two queues'
podlane_up
expect 'the queues of eth1' 2 "$(port eth1 queues)"
expect 'the sockets of eth1' "$(expected_mode)" "$(port eth1 copy_mode)"
into_pod 60 64
out_of_pod 60 64
through_node 60 64
for worker in 0 1; do
    (($(status ".workers[$worker].rx") >= COUNT / 10)) || fail "worker $worker had $(status ".workers[$worker].rx") packets"
done
(($(status '[.workers[].handoff_out] | add') > 0)) || fail 'no packet was handed over'
audit
printf 'packets of the workers: %s; handed over: %s\n' "$(status '[.workers[].rx] | join(", ")')" \
    "$(status '[.workers[].handoff_out] | add')"
podlane_down
PODLANE_PID=''
