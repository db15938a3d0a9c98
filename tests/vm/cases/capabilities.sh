# seconds: 90
#
# A node that translates addresses, whose kernel has conntrack as a module: with what the unit grants, Podlane leaves everything
# to the kernel and says so; with what packaging/podlane-conntrack.conf adds it asks conntrack and forwards. Where conntrack is
# not a module the unit's own is enough.

COUNT=300
readonly UNIT=+net_admin,+net_raw,+bpf,+perfmon,+net_broadcast
# As the unit's LimitMEMLOCK.
ulimit -l unlimited
network_up
in_ns "$NODE" nft 'table ip nat { chain postrouting { type nat hook postrouting priority srcnat; ip daddr 203.0.113.0/24 masquerade; }; }'

with() { # CAPABILITIES
    LAUNCH=(setpriv --no-new-privs --inh-caps=-all --bounding-set="-all,$1")
    podlane_up --path kernel
}

translated_ways() { # LEAST-REPEATED
    local before
    before=$(port eth1 repeated)
    into_pod 1400
    out_of_pod 1400
    audit
    (($(port eth1 repeated) - before >= $1)) || fail "of $COUNT packets through eth1 the kernel path repeated $(port eth1 repeated)"
}

if [[ -e /sys/kernel/btf/nf_conntrack ]]; then
    with "$UNIT"
    [[ $(status '.notes[]') == *"cannot ask this kernel's conntrack"* ]] || fail "the notes: $(status '.notes[]')"
    translated_ways 0
    expect 'what was repeated without asking conntrack' 0 "$(port eth1 repeated)"
    podlane_down
    with "$UNIT,+sys_admin"
else
    with "$UNIT"
fi
[[ $(status '.notes[]') != *"cannot ask this kernel's conntrack"* ]] || fail "the notes: $(status '.notes[]')"
translated_ways "$COUNT"
podlane_down
PODLANE_PID=''
if [[ -e /sys/kernel/btf/nf_conntrack ]]; then kind='a module'; else kind='built in'; fi
printf 'conntrack is %s: asked with the capabilities of the unit%s\n' "$kind" "$([[ $kind == built* ]] || printf ' and its drop-in')"
