# seconds: 170
#
# benches/pktgen/rates.sh, as somebody with real cards runs it: both generators, a table, and JSON. Its numbers mean nothing here.

rates() { # RESULT OPTION…
    local result=$1
    shift
    benches/pktgen/rates.sh --netns "$WIRE" --device eth0 --mac "$(mac_of "$NODE" eth1)" --source 10.244.2.9 \
        --destination 10.244.3.9 --sink-netns "$WIRE" --sink-device eth3 --seconds 1 --repeats 1 --resolution 30 \
        --label "uplink to uplink, $QUEUES queues" --json "$result" "$@"
}

network_up
# More than one where the machine could give it so many.
in_ns "$NODE" ethtool -L eth1 combined 2 || true
podlane_up
QUEUES=$(port eth1 queues)
rates "$RESULTS/pktgen.json" --sizes 64 --flows 8
expect 'the generator' pktgen "$(jq -r .generator "$RESULTS/pktgen.json")"
(($(jq '.results[0].pdr_pps.median' "$RESULTS/pktgen.json") > 0)) || fail "no rate was found: $(cat "$RESULTS/pktgen.json")"
for ((worker = 0; worker < QUEUES; worker++)); do
    (($(status ".workers[$worker].rx") > 0)) || fail "worker $worker had none of eight flows"
done

busybox rmmod pktgen
mv /usr/sbin/modprobe /usr/sbin/modprobe.away
rates "$RESULTS/socket.json" --sizes 1518
mv /usr/sbin/modprobe.away /usr/sbin/modprobe
modprobe pktgen
expect 'the generator without the module' 'packet socket' "$(jq -r .generator "$RESULTS/socket.json")"
(($(jq '.results[0].pdr_pps.median' "$RESULTS/socket.json") > 0)) || fail "no rate was found: $(cat "$RESULTS/socket.json")"
audit
podlane_down
PODLANE_PID=''
printf 'both generators find a rate, pktgen over %s queues\n' "$QUEUES"
