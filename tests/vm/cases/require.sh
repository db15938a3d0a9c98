# short
# seconds: 60
#
# --require-zero-copy: a driver that cannot is named, and its uplink stays with the kernel, which goes on forwarding.

COUNT=300
network_up
in_ns "$NODE" ip link add up3 type veth peer name down3
in_ns "$NODE" ip link set up3 up
in_ns "$NODE" ip link set down3 up
podlane_up --require-zero-copy --uplink up3
[[ $(refusal up3) == *'zero-copy is required and the driver refuses it'* ]] || fail "of up3 it says: $(refusal up3)"
if has_zero_copy; then
    expect 'the sockets of eth1' zero_copy "$(port eth1 copy_mode)"
else
    [[ $(refusal eth1) == *'zero-copy is required'* ]] || fail "of eth1 it says: $(refusal eth1)"
fi
into_pod 1400
out_of_pod 1400
audit
podlane_down
PODLANE_PID=''
printf 'a driver without zero-copy is refused by name\n'
