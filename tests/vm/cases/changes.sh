# seconds: 120
#
# What happens to a card while its sockets are zero-copy: it goes down and up, gets another MTU and larger frames, leaves and
# comes back. No frame of the memory is lost over any of it.

COUNT=500
network_up
podlane_up
into_pod 1400
in_ns "$NODE" ip link set eth1 down
in_ns "$NODE" ip link set eth1 up
in_ns "$NODE" ip route replace 10.244.2.0/24 via 192.168.1.2
wait_until 'the wire to be there again' in_ns "$NODE" ping -c 1 -W 1 192.168.1.2
wait_until 'eth1 to forward again' eval '[[ $(port eth1 state) == forwarding ]]'
into_pod 1400
out_of_pod 1400
audit

# The largest that fits into one frame of the memory, with the room that the kernel wants in front.
for device in eth1 eth2 cbr0 veth-pod1; do in_ns "$NODE" ip link set "$device" mtu 3400; done
for device in eth0 eth3; do in_ns "$WIRE" ip link set "$device" mtu 3400; done
in_ns pod1 ip link set eth0 mtu 3400
wait_until 'the new MTU' eval '[[ $(port eth1 mtu) == 3400 && $(port veth-pod1 mtu) == 3400 ]]'
wait_until 'the wire to be there with the new MTU' in_ns "$NODE" ping -c 1 -W 1 -s 3300 192.168.1.2
expect 'the sockets with a larger MTU' "$(expected_mode)" "$(port eth1 copy_mode)"
for size in 60 3400; do
    into_pod "$size"
    out_of_pod "$size"
    through_node "$size"
done
audit

# Out of the configuration's sight and back: the port is closed, its frames come back, and it is opened anew.
ip -netns "$NODE" link set eth1 netns "$WIRE"
wait_until 'the port to be closed' eval '[[ -z $(port eth1 state) ]]'
audit
ip -netns "$WIRE" link set eth1 netns "$NODE"
in_ns "$NODE" ip link set eth1 mtu 3400 promisc on up
in_ns "$NODE" ip address replace 192.168.1.1/24 dev eth1
in_ns "$NODE" ip route replace 10.244.2.0/24 via 192.168.1.2
wait_until 'the port to be open again' eval '[[ $(port eth1 state) == forwarding ]]'
wait_until 'the wire to be there after that' in_ns "$NODE" ping -c 1 -W 1 192.168.1.2
expect 'the sockets of the card that came back' "$(expected_mode)" "$(port eth1 copy_mode)"
into_pod 1400
audit
podlane_down
PODLANE_PID=''
printf 'link down and up, MTU 3400, card gone and back with %s sockets\n' "$(expected_mode)"
