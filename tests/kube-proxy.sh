#!/usr/bin/env bash
# Writes the rules that kube-proxy (iptables and nftables mode, Kubernetes 1.31), and for host ports the portmap plugin, would
# write on a node, in the form of `iptables-restore` or `nft -f`. For the system tests.
#
#   kube-proxy.sh rules iptables|nftables v4|v6 CLUSTER_CIDR SERVICE…   rules on the standard output
#   kube-proxy.sh remove iptables|nftables v4|v6                        the commands that remove them, for `nft -f`
#
# SERVICE is NAME/PROTOCOL/KIND/ADDRESS/PORT/POLICY/BACKENDS with
#   PROTOCOL  tcp or udp
#   KIND      cluster (a ClusterIP), node (a NodePort), host (a host port)
#   ADDRESS   of a ClusterIP; - otherwise
#   POLICY    Cluster: sources are masqueraded; Local: they are kept
#   BACKENDS  ADDRESS:PORT (IPv6: [ADDRESS]:PORT), joined by commas
set -euo pipefail

host_of() { local host=${1%:*}; host=${host#[}; printf '%s' "${host%]}"; }
port_of() { printf '%s' "${1##*:}"; }

iptables_filter() {
    cat <<'END'
*filter
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SERVICES - [0:0]
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A INPUT -m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -j KUBE-FIREWALL
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
*mangle
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-PROXY-CANARY - [0:0]
COMMIT
END
}

# The chains of one service, and the rules that lead to them.
iptables_service() { # NUMBER NAME PROTOCOL KIND ADDRESS PORT POLICY BACKENDS
    local number=$1 name=$2 protocol=$3 kind=$4 address=$5 port=$6 policy=$7 backend count index=0
    local -a backends
    IFS=, read -ra backends <<<"$8"
    count=${#backends[@]}
    if [[ $kind == host ]]; then
        LEAD_HOST+="-A CNI-HOSTPORT-DNAT -p $protocol -m comment --comment \"dnat name: $name\" -m multiport --dports $port -j CNI-DN-$number"$'\n'
        CHAINS+=":CNI-DN-$number - [0:0]"$'\n'
        RULES+="-A CNI-DN-$number -s $CIDR -p $protocol -m $protocol --dport $port -j CNI-HOSTPORT-SETMARK"$'\n'
        RULES+="-A CNI-DN-$number -p $protocol -m $protocol --dport $port -j DNAT --to-destination ${backends[0]}"$'\n'
        return
    fi
    CHAINS+=":KUBE-SVC-$number - [0:0]"$'\n'
    if [[ $kind == cluster ]]; then
        LEAD+="-A KUBE-SERVICES -d $address -p $protocol -m comment --comment \"$name cluster IP\" -m $protocol --dport $port -j KUBE-SVC-$number"$'\n'
        RULES+="-A KUBE-SVC-$number ! -s $CIDR -d $address -p $protocol -m comment --comment \"$name cluster IP\" -m $protocol --dport $port -j KUBE-MARK-MASQ"$'\n'
    else
        CHAINS+=":KUBE-EXT-$number - [0:0]"$'\n'
        LEAD_NODE+="-A KUBE-NODEPORTS -p $protocol -m comment --comment $name -m $protocol --dport $port -j KUBE-EXT-$number"$'\n'
        if [[ $policy == Cluster ]]; then
            RULES+="-A KUBE-EXT-$number -m comment --comment \"masquerade traffic for $name external destinations\" -j KUBE-MARK-MASQ"$'\n'
        else
            RULES+="-A KUBE-EXT-$number -s $CIDR -m comment --comment \"pod traffic for $name external destinations\" -j KUBE-SVC-$number"$'\n'
            RULES+="-A KUBE-EXT-$number -m comment --comment \"masquerade LOCAL traffic for $name external destinations\" -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ"$'\n'
        fi
        RULES+="-A KUBE-EXT-$number -j KUBE-SVC-$number"$'\n'
    fi
    for backend in "${backends[@]}"; do
        CHAINS+=":KUBE-SEP-$number-$index - [0:0]"$'\n'
        local choice=""
        ((index == count - 1)) ||
            choice="-m statistic --mode random --probability $(awk "BEGIN { printf \"%.10f\", 1 / ($count - $index) }")"
        RULES+="-A KUBE-SVC-$number -m comment --comment \"$name -> $backend\" $choice -j KUBE-SEP-$number-$index"$'\n'
        RULES+="-A KUBE-SEP-$number-$index -s $(host_of "$backend") -m comment --comment $name -j KUBE-MARK-MASQ"$'\n'
        RULES+="-A KUBE-SEP-$number-$index -p $protocol -m comment --comment $name -m $protocol -j DNAT --to-destination $backend"$'\n'
        ((++index))
    done
}

iptables_rules() {
    local number=0 service
    local -a words
    CHAINS="" LEAD="" LEAD_NODE="" LEAD_HOST="" RULES=""
    for service; do
        IFS=/ read -ra words <<<"$service"
        iptables_service $((++number)) "${words[@]}"
    done
    iptables_filter
    cat <<END
*nat
:CNI-HOSTPORT-DNAT - [0:0]
:CNI-HOSTPORT-MASQ - [0:0]
:CNI-HOSTPORT-SETMARK - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-SERVICES - [0:0]
$CHAINS-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A POSTROUTING -m comment --comment "CNI portfwd requiring masquerade" -j CNI-HOSTPORT-MASQ
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
${LEAD_HOST}-A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE
-A CNI-HOSTPORT-SETMARK -m comment --comment "CNI portfwd masquerade mark" -j MARK --set-xmark 0x2000/0x2000
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
${LEAD}-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
${LEAD_NODE}${RULES}COMMIT
END
}

nftables_service() { # NUMBER NAME PROTOCOL KIND ADDRESS PORT POLICY BACKENDS
    local number=$1 name=$2 protocol=$3 kind=$4 address=$5 port=$6 policy=$7 backend choice="" index=0
    local -a backends
    IFS=, read -ra backends <<<"$8"
    if [[ $kind == host ]]; then
        HOST_RULES+="        $protocol dport $port ip$SIX saddr $CIDR meta mark set mark or 0x2000
        $protocol dport $port dnat to ${backends[0]}
"
        return
    fi
    for backend in "${backends[@]}"; do
        ENDPOINTS+="    chain endpoint-$number-$index {
        ip$SIX saddr $(host_of "$backend") jump mark-for-masquerade
        meta l4proto $protocol dnat to $backend
    }
"
        choice+="${choice:+, }$index : goto endpoint-$number-$index"
        ((++index))
    done
    if [[ $kind == cluster ]]; then
        CLUSTER_IPS+="${CLUSTER_IPS:+, }$address"
        SERVICES+="${SERVICES:+, }$address . $protocol . $port : goto service-$number"
        SERVICE_CHAINS+="    chain service-$number {
        ip$SIX daddr $address $protocol dport $port ip$SIX saddr != $CIDR jump mark-for-masquerade
        numgen random mod $index vmap { $choice }
    }
"
        return
    fi
    NODEPORTS+="${NODEPORTS:+, }$protocol . $port : goto external-$number"
    SERVICE_CHAINS+="    chain service-$number {
        numgen random mod $index vmap { $choice }
    }
    chain external-$number {
"
    if [[ $policy == Cluster ]]; then
        SERVICE_CHAINS+="        jump mark-for-masquerade
"
    else
        SERVICE_CHAINS+="        ip$SIX saddr $CIDR goto service-$number comment \"short-circuit pod traffic\"
        fib saddr type local jump mark-for-masquerade comment \"masquerade local traffic\"
"
    fi
    SERVICE_CHAINS+="        goto service-$number
    }
"
}

elements() { # ELEMENTS
    [[ -z $1 ]] || printf 'elements = { %s }' "$1"
}

nftables_rules() {
    local number=0 service address=ipv${FAMILY#v}_addr
    local -a words
    SIX=${SIX_OF[$FAMILY]} HOST_RULES="" ENDPOINTS="" CLUSTER_IPS="" SERVICES="" SERVICE_CHAINS="" NODEPORTS=""
    for service; do
        IFS=/ read -ra words <<<"$service"
        nftables_service $((++number)) "${words[@]}"
    done
    cat <<END
table ip$SIX kube-proxy {
    comment "rules for kube-proxy"
    set cluster-ips {
        type $address
        $(elements "$CLUSTER_IPS")
    }
    map firewall-ips {
        type $address . inet_proto . inet_service : verdict
    }
    map no-endpoint-services {
        type $address . inet_proto . inet_service : verdict
    }
    map no-endpoint-nodeports {
        type inet_proto . inet_service : verdict
    }
    map service-ips {
        type $address . inet_proto . inet_service : verdict
    }
    map service-nodeports {
        type inet_proto . inet_service : verdict
    }
$ENDPOINTS$SERVICE_CHAINS
    chain mark-for-masquerade {
        meta mark set mark or 0x4000
    }
    chain masquerading {
        mark and 0x4000 == 0 return
        meta mark set mark xor 0x4000
        masquerade fully-random
    }
    chain firewall-check {
        ip$SIX daddr . meta l4proto . th dport vmap @firewall-ips
    }
    chain reject-chain {
        reject
    }
    chain cluster-ips-check {
        ip$SIX daddr @cluster-ips reject comment "Reject traffic to invalid ports of ClusterIPs"
    }
    chain service-endpoints-check {
        ip$SIX daddr . meta l4proto . th dport vmap @no-endpoint-services
    }
    chain nodeport-endpoints-check {
        fib daddr type local meta l4proto . th dport vmap @no-endpoint-nodeports
    }
    chain services {
        ip$SIX daddr . meta l4proto . th dport vmap @service-ips
        fib daddr type local meta l4proto . th dport vmap @service-nodeports
    }
    chain filter-prerouting {
        type filter hook prerouting priority -110; policy accept;
        ct state new jump firewall-check
    }
    chain filter-input {
        type filter hook input priority -110; policy accept;
        ct state new jump nodeport-endpoints-check
        ct state new jump service-endpoints-check
    }
    chain filter-forward {
        type filter hook forward priority -110; policy accept;
        ct state new jump service-endpoints-check
        ct state new jump cluster-ips-check
    }
    chain filter-output {
        type filter hook output priority -110; policy accept;
        ct state new jump service-endpoints-check
        ct state new jump firewall-check
    }
    chain filter-output-post-dnat {
        type filter hook output priority -90; policy accept;
        ct state new jump cluster-ips-check
    }
    chain nat-prerouting {
        type nat hook prerouting priority -100; policy accept;
        jump services
    }
    chain nat-output {
        type nat hook output priority -100; policy accept;
        jump services
    }
    chain nat-postrouting {
        type nat hook postrouting priority 100; policy accept;
        jump masquerading
    }
}
table ip$SIX cni_hostport {
    chain hostports {
        type nat hook prerouting priority -99; policy accept;
        fib daddr type local jump ports
    }
    chain ports {
$HOST_RULES    }
    chain masquerading {
        type nat hook postrouting priority 100; policy accept;
        mark and 0x2000 == 0x2000 masquerade
    }
}
END
    # The maps refer to chains, which must be there first.
    [[ -z $SERVICES ]] || printf 'add element ip%s kube-proxy service-ips { %s }\n' "$SIX" "$SERVICES"
    [[ -z $NODEPORTS ]] || printf 'add element ip%s kube-proxy service-nodeports { %s }\n' "$SIX" "$NODEPORTS"
}

declare -A SIX_OF=([v4]="" [v6]=6)
ACTION=$1 MODE=$2 FAMILY=$3
case $ACTION:$MODE in
    rules:iptables) CIDR=$4; iptables_rules "${@:5}" ;;
    rules:nftables) CIDR=$4; nftables_rules "${@:5}" ;;
    remove:iptables) for table in filter mangle nat; do printf 'delete table ip%s %s\n' "${SIX_OF[$FAMILY]}" $table; done ;;
    remove:nftables) for table in kube-proxy cni_hostport; do printf 'delete table ip%s %s\n' "${SIX_OF[$FAMILY]}" $table; done ;;
    *) printf 'kube-proxy.sh: see the comment at its beginning\n' >&2; exit 2 ;;
esac
