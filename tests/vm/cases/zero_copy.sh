# seconds: 150
#
# Cards with zero-copy sockets beside veths that copy: three ways of a packet, sizes from the smallest to a full frame, and
# checksums that a pod left to offload. Then the same in copy mode, which is also what a kernel without zero-copy gives.

COUNT=1000

# A daemon that does not run for a fifth of a second, again and again, until it is told to end.
stop_and_go() {
    while sleep 0.3; do
        kill -STOP "$PODLANE_PID"
        sleep 0.2
        kill -CONT "$PODLANE_PID"
    done
}

network_up
for zero_copy in auto off; do
    mode=copy
    [[ $zero_copy == off ]] || mode=$(expected_mode)
    podlane_up --zero-copy "$zero_copy"
    for card in eth1 eth2; do
        expect "the sockets of $card with --zero-copy $zero_copy" "$mode" "$(port "$card" copy_mode)"
    done
    expect 'the sockets of a pod' copy "$(port veth-pod1 copy_mode)"
    printf -- '--zero-copy %s: the sockets are as they should be\n' "$zero_copy"
    tcp_both_ways
    for size in 60 1400; do
        into_pod "$size"
        out_of_pod "$size"
        through_node "$size"
    done
    # What the kernel forwarded would have arrived just as well.
    (($(port eth1 forwarded) >= 4 * COUNT)) || fail "the workers forwarded only $(port eth1 forwarded) of eth1's packets"
    (($(port veth-pod1 forwarded) >= 2 * COUNT)) || fail "the workers forwarded only $(port veth-pod1 forwarded) of pod1's"
    before=$(standstills)
    stop_and_go &
    stopper=$!
    through_node 60
    kill "$stopper"
    wait "$stopper" || true
    kill -CONT "$PODLANE_PID"
    (($(standstills) - before >= 100)) || fail "a daemon that was stopped left only $(($(standstills) - before)) packets to the kernel"
    audit
    podlane_down
    PODLANE_PID=''
    has_zero_copy || break
done
printf 'cards: %s; %s packets of each kind, none lost\n' "$(expected_mode)" "$COUNT"
