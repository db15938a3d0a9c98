#!/usr/bin/env bash
#
# A Kubernetes network of nodes and pods, in network namespaces of one machine.
#
# Every node is a namespace with a bridge (cbr0), its pods' veths on it and an uplink (eth0); every pod is a namespace
# with an eth0. The plain kernel forwards everything: what a test sees here without Podlane is what Podlane has to keep.
#
# Three rules hold everywhere below:
#  - No interface ever exists in the root namespace, not even for a moment: each veth pair is created with both ends
#    already in their namespaces. So several testbeds can come and go side by side.
#  - A namespace's sysctls are written before its interfaces are created, because interfaces copy them at birth.
#  - `up` returns when the network is usable: no duplicate address detection, no bridge port still coming up.

set -euo pipefail

readonly PROGRAM=${0##*/}
readonly STATE_ROOT=/run/podlane-testbed
readonly MAX_NODES=16
readonly MAX_PODS=250          # per node, at `up`
readonly LAST_POD_HOST=254     # add-pod may go on until the /24 is full
readonly MAX_POD_NUMBER=65535  # a pod's number is the last two bytes of its MAC
readonly MAX_QUEUES=64

# What `up` remembers for the later subcommands, with the defaults.
readonly REMEMBERED=(nodes pods topology family mtu uplink_mtu queues uplink_queues masquerade route_outside
    pods_checksum_offload bridge_netfilter)
declare -A OPT=(
    [nodes]=2 [pods]=2 [topology]=direct [family]=dual [mtu]=1500 [uplink_mtu]='' [queues]=1 [uplink_queues]=1
    [masquerade]=on [route_outside]=off [pods_checksum_offload]=on [bridge_netfilter]=on
)
INSTANCE=pl
COMMAND=''
ARGS=()              # what is left of the command line: NODE, POD, CMD…
UP_OPTION=''         # an option that only `up` knows, to refuse it elsewhere
POD_MAC=''           # add-pod --mac
JSON=off             # status --json

usage() {
    cat <<END
$PROGRAM: nodes and pods of a Kubernetes network, in network namespaces

Usage:
  $PROGRAM up [OPTIONS]                   build the testbed
  $PROGRAM down                           remove all of it, and end what still runs inside
  $PROGRAM status [--json]                show nodes, pods, addresses (exit code 1: not up)
  $PROGRAM exec WHERE CMD…                run a command in node1, pod3, router, segment or outside
  $PROGRAM add-pod NODE [POD] [--mac MAC] add a pod; one that was there before gets its addresses back
  $PROGRAM del-pod POD                    remove a pod

Every subcommand:
  --name INSTANCE             which testbed, [a-z0-9], up to 8 characters (default: pl)

Size and shape (up):
  --nodes N                   nodes, 1 to $MAX_NODES (default: 2)
  --pods M                    pods on each node, 0 to $MAX_PODS (default: 2)
  --topology direct           nodes share one L2 segment and route pod CIDRs to each other (default)
  --topology cloud            nodes know only a default gateway; a router holds the pod CIDR routes
  --ipv4 | --ipv6 | --dual    address families (default: --dual)
  --mtu BYTES                 MTU of pods, cbr0 and uplinks, 1280 to 65000 (default: 1500)
  --uplink-mtu BYTES          MTU from the nodes' uplinks outwards (default: as --mtu)
  --queues N                  TX and RX queues of a pod's veth, both ends, 1 to $MAX_QUEUES (default: 1)
  --uplink-queues N           the same for a node's uplink (default: 1)

Behaviour (up):
  --masquerade                traffic from pods out of the cluster leaves with the node's address (default)
  --no-masquerade             it leaves with the pod's address
  --route-outside             the host outside of the cluster gets a route back to the pods
  --pods-checksum-offload on|off
                              off: pods finish their checksums themselves (default: on)
  --bridge-netfilter on|off   on: frames that cbr0 bridges pass iptables/nftables too, as Kubernetes asks of a
                              node (default: on; where the kernel has no br_netfilter, it is off)

What there is, with two pods per node:
  namespace         inside
  pl-node1          eth0 (uplink)   direct: 192.168.100.1/24   fd00:192:168:100::1/64
                                    cloud:  192.168.101.2/24   fd00:192:168:101::2/64
                    cbr0 (gateway)  10.244.1.1/24              fd00:10:244:1::1/64
                    veth-pod1 …     host ends of the pods, on cbr0
  pl-pod1, pl-pod2  eth0            10.244.1.2/24, .3          fd00:10:244:1::2/64, ::3
  pl-pod3, pl-pod4  eth0            10.244.2.2/24, .3          fd00:10:244:2::2/64, ::3
  pl-segment        seg0            192.168.100.254/24         fd00:192:168:100::254/64        (direct)
  pl-router         node1, node2 …  192.168.101.1/24           fd00:192:168:101::1/64          (cloud)
  pl-outside        eth0            198.51.100.2/24            2001:db8:ffff::2/64
The digits of the IPv6 addresses are those of the IPv4 ones: 10.244.1.12 goes with fd00:10:244:1::12.
The cluster is 10.244.0.0/16 and fd00:10:244::/48. Pods are numbered across the nodes.

Examples:
  $PROGRAM up --topology cloud --mtu 9000
  $PROGRAM exec pod1 ping -c 1 10.244.2.2
  $PROGRAM del-pod pod2 && $PROGRAM add-pod node1 pod2 --mac 02:00:00:00:00:99
  $PROGRAM down

Exit codes: 0 done, 1 failed or not up, 2 wrong options. \`exec\` exits as its command does.
END
}

# ---------------------------------------------------------------------------------------------------------------------
# Saying what is wrong

fail() {
    printf '%s: %s\n' "$PROGRAM" "$*" >&2
    exit 1
}

refuse() { # for a wrong command line
    printf '%s: %s\n' "$PROGRAM" "$*" >&2
    exit 2
}

need_tool() { # TOOL PACKAGE
    command -v "$1" >/dev/null || fail "'$1' is missing: install the package '$2' (apt-get install $2)."
}

need_tools_and_root() {
    need_tool ip iproute2
    need_tool bridge iproute2
    need_tool nsenter util-linux
    need_tool flock util-linux
    [[ $EUID -eq 0 ]] || fail "network namespaces need root: run it again with sudo."
}

# ---------------------------------------------------------------------------------------------------------------------
# The command line

parse_command_line() {
    local option value
    while (($#)); do
        # After `exec WHERE`, everything belongs to the command that is to be run.
        if [[ $COMMAND == exec && ${#ARGS[@]} -gt 0 ]]; then
            ARGS+=("$@")
            return
        fi
        if [[ $1 == --*=* ]]; then
            option=${1%%=*} value=${1#*=}
            takes_value "$option" || refuse "'$option' is a switch and takes no value: write it without '=$value'."
            set -- "$option" "$value" "${@:2}"
        fi
        if takes_value "$1"; then
            (($# >= 2)) || refuse "'$1' needs a value after it; see --help."
            set_option "$1" "$2"
            shift 2
        elif [[ $1 == -* ]]; then
            set_switch "$1"
            shift
        else
            if [[ -z $COMMAND ]]; then COMMAND=$1; else ARGS+=("$1"); fi
            shift
        fi
    done
}

takes_value() {
    case $1 in
        --name | --mac | --nodes | --pods | --topology | --mtu | --uplink-mtu | --queues | --uplink-queues | \
            --pods-checksum-offload | --bridge-netfilter) return 0 ;;
        *) return 1 ;;
    esac
}

set_option() { # OPTION VALUE
    local key=${1#--}
    key=${key//-/_}
    case $1 in
        --name)
            [[ $2 =~ ^[a-z0-9]{1,8}$ ]] || refuse "--name takes 1 to 8 of a-z and 0-9, not '$2'."
            INSTANCE=$2
            return
            ;;
        --mac) POD_MAC=$(checked_mac "$2") || exit 2; return ;;
        --nodes) need_number "$1" "$2" 1 "$MAX_NODES" ;;
        --pods) need_number "$1" "$2" 0 "$MAX_PODS" ;;
        --mtu | --uplink-mtu) need_number "$1" "$2" 1280 65000 ;;
        --queues | --uplink-queues) need_number "$1" "$2" 1 "$MAX_QUEUES" ;;
        --topology) need_word "$1" "$2" direct cloud ;;
        --pods-checksum-offload | --bridge-netfilter) need_word "$1" "$2" on off ;;
    esac
    OPT[$key]=$2
    UP_OPTION=$1
}

set_switch() { # OPTION
    case $1 in
        -h | --help) usage; exit 0 ;;
        --json) JSON=on; return ;;
        --ipv4 | --ipv6 | --dual) OPT[family]=${1#--} ;;
        --masquerade) OPT[masquerade]=on ;;
        --no-masquerade) OPT[masquerade]=off ;;
        --route-outside) OPT[route_outside]=on ;;
        *) refuse "there is no option '$1'; see $PROGRAM --help." ;;
    esac
    UP_OPTION=$1
}

need_number() { # OPTION VALUE FROM TO
    # The length is looked at first: bash counts in 64 bits, and 010 would be eight.
    if [[ ! $2 =~ ^(0|[1-9][0-9]{0,5})$ ]] || (($2 < $3 || $2 > $4)); then
        refuse "$1 takes a number from $3 to $4, not '$2'."
    fi
}

need_word() { # OPTION VALUE WORD WORD
    [[ $2 == "$3" || $2 == "$4" ]] || refuse "$1 takes '$3' or '$4', not '$2'."
}

checked_mac() { # MAC; prints it in small letters
    local mac=${1,,}
    [[ $mac =~ ^([0-9a-f]{2}:){5}[0-9a-f]{2}$ ]] ||
        refuse "--mac takes six hexadecimal bytes such as 02:00:00:00:00:99, not '$1'."
    ((16#${mac:0:2} % 2 == 0)) || refuse "--mac $mac is a multicast address: make the first byte even, such as 02."
    [[ $mac != 00:00:00:00:00:00 ]] || refuse "--mac must not be all zeros: take one such as 02:00:00:00:00:99."
    printf '%s' "$mac"
}

# An option at the wrong subcommand is a misunderstanding that is better cleared up than passed over.
check_command_line() {
    local count=${#ARGS[@]}
    case $COMMAND in
        up | down | status) ((count == 0)) || refuse "'$COMMAND' takes no '${ARGS[0]}'; see $PROGRAM --help." ;;
        exec) ((count >= 2)) || refuse "'exec' needs a place and a command, such as: $PROGRAM exec pod1 ip addr" ;;
        add-pod) ((count == 1 || count == 2)) || refuse "'add-pod' needs a node, such as: $PROGRAM add-pod node1" ;;
        del-pod) ((count == 1)) || refuse "'del-pod' needs one pod, such as: $PROGRAM del-pod pod2" ;;
        '') refuse "say what to do: up, down, status, exec, add-pod or del-pod; see $PROGRAM --help." ;;
        *) refuse "there is no subcommand '$COMMAND': it is up, down, status, exec, add-pod or del-pod." ;;
    esac
    [[ $COMMAND == up || -z $UP_OPTION ]] ||
        refuse "$UP_OPTION belongs to 'up', which remembers it: leave it out here (only --name is needed)."
    [[ $COMMAND == add-pod || -z $POD_MAC ]] || refuse "--mac belongs to 'add-pod': leave it out here."
    [[ $COMMAND == status || $JSON == off ]] || refuse "--json belongs to 'status': leave it out here."
    OPT[uplink_mtu]=${OPT[uplink_mtu]:-${OPT[mtu]}}
}

# "node2", "2" → 2
number_of() { # KIND TEXT LAST
    local digits=${2#"$1"}
    if [[ ! $digits =~ ^[1-9][0-9]{0,4}$ ]] || ((digits > $3)); then
        refuse "'$2' is no $1 of this testbed: write ${1}1 to ${1}$3."
    fi
    printf '%s' "$digits"
}

# ---------------------------------------------------------------------------------------------------------------------
# Names and addresses: everything follows from a node's number, and a pod's number and place on its node

is_cloud() { [[ ${OPT[topology]} == cloud ]]; }
fabric() { if is_cloud; then printf router; else printf segment; fi; }
has_ipv4() { [[ ${OPT[family]} != ipv6 ]]; }
has_ipv6() { [[ ${OPT[family]} != ipv4 ]]; }

# Put together in place: $PODS4.NODE.HOST/24 and $PODS6:NODE::HOST/64, $OUTSIDE4.HOST and $OUTSIDE6::HOST.
readonly PODS4=10.244 PODS6=fd00:10:244
readonly CLUSTER4=$PODS4.0.0/16 CLUSTER6=$PODS6::/48
readonly OUTSIDE4=198.51.100 OUTSIDE6=2001:db8:ffff

# The node's own end of its uplink network, and the gateway's.
uplink_net4() { if is_cloud; then printf '192.168.%d' $((100 + $1)); else printf '192.168.100'; fi; }
uplink_net6() { if is_cloud; then printf 'fd00:192:168:%d:' $((100 + $1)); else printf 'fd00:192:168:100:'; fi; }
uplink_host() { if is_cloud; then printf 2; else printf '%d' "$1"; fi; }
gateway_host() { if is_cloud; then printf 1; else printf 254; fi; }

# MACs are the same in every testbed and tell what they belong to: the middle bytes are letters ("pod", "cbr", …).
mac() { # KIND NUMBER
    local letters
    case $1 in
        pod) letters=70:6f:64 ;;
        host) letters=76:65:74 ;;      # "vet": host end of a pod's veth
        bridge) letters=63:62:72 ;;    # "cbr"
        uplink) letters=6e:6f:64 ;;    # "nod"
        fabric) letters=66:61:62 ;;    # "fab": the router's or the segment's end of an uplink
        segment) letters=73:65:67 ;;   # "seg"
        outside) letters=6f:75:74 ;;   # "out"
    esac
    printf '02:%s:%02x:%02x' "$letters" $(($2 >> 8)) $(($2 & 255))
}

# The link-local address that the kernel will derive from a MAC (EUI-64). It is set by hand as well, because the
# kernel does that only once the carrier is up, and a router without one cannot ask for its neighbours.
link_local() { # MAC
    local b
    IFS=: read -ra b <<<"$1"
    printf 'fe80::%x:%x:%x:%x' \
        $(((16#${b[0]} ^ 2) << 8 | 16#${b[1]})) $((16#${b[2]} << 8 | 255)) $((0xfe00 | 16#${b[3]})) \
        $((16#${b[4]} << 8 | 16#${b[5]}))
}

# ---------------------------------------------------------------------------------------------------------------------
# Lines for `ip -batch`, in the families that the testbed has

add_address4() { ! has_ipv4 || printf 'addr add %s/%s dev %s\n' "$1" "$2" "$3"; }           # ADDRESS LENGTH DEVICE
# "replace": the kernel may have been quicker with the link-local address.
add_address6() { ! has_ipv6 || printf 'addr replace %s/%s dev %s nodad\n' "$1" "$2" "$3"; }
add_route4() { ! has_ipv4 || printf 'route add %s via %s\n' "$1" "$2"; }                    # PREFIX VIA
add_route6() { ! has_ipv6 || printf 'route add %s via %s\n' "$1" "$2"; }

# A veth pair whose ends are born where they belong.
add_veth() { # DEVICE MAC PEER-DEVICE PEER-MAC PEER-NAMESPACE MTU QUEUES
    printf 'link add %s address %s mtu %d numtxqueues %d numrxqueues %d type veth' "$1" "$2" "$6" "$7" "$7"
    printf ' peer name %s address %s mtu %d numtxqueues %d numrxqueues %d netns %s\n' "$3" "$4" "$6" "$7" "$7" "$5"
}

# STP off and no forward delay: a new port forwards at once. MLD/IGMP snooping off: multicast is flooded, as on a
# plain switch, and no querier is missing. (vlan_filtering stays 0, the kernel's default; some kernels are built
# without it and refuse to hear of it.) The MTU is set afterwards, so that the bridge takes it for the user's wish and
# does not follow its ports.
add_bridge() { # DEVICE MAC MTU
    printf 'link add %s address %s type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n' "$1" "$2"
    printf 'link set %s mtu %d\n' "$1" "$3"
    printf 'link set %s up\n' "$1"
}

# A bridge port has no addresses of its own.
add_port() { # DEVICE BRIDGE
    printf 'link set %s addrgenmode none\n' "$1"
    printf 'link set %s master %s up\n' "$1" "$2"
}

# ---------------------------------------------------------------------------------------------------------------------
# Sysctls, as a small shell script to be run inside of a namespace

# set FILE VALUE: what a kernel does not have needs no setting.
# shellcheck disable=SC2016 # the inner shell expands it
readonly SET_SYSCTL='cd /proc/sys/net; set_() { [ ! -e "$1" ] || echo "$2" >"$1"; };'

# accept_dad 0: an IPv6 address is usable at once. accept_ra, autoconf, router_solicitations 0: hosts neither ask for
# routers nor follow them. arp_notify, ndisc_notify: an interface whose MAC changes says so (see announce_pod).
# rp_filter 0: routing here is symmetrical, so the check would only hide what a test is looking for.
sysctls_for_all() {
    local scope
    printf '%s' "$SET_SYSCTL"
    for scope in all default; do
        printf 'set_ ipv4/conf/%s/rp_filter 0;' $scope
        printf 'set_ ipv4/conf/%s/accept_redirects 0; set_ ipv4/conf/%s/send_redirects 0;' $scope $scope
        printf 'set_ ipv4/conf/%s/arp_notify 1;' $scope
        if has_ipv6; then
            printf 'set_ ipv6/conf/%s/disable_ipv6 0; set_ ipv6/conf/%s/accept_dad 0;' $scope $scope
            printf 'set_ ipv6/conf/%s/accept_ra 0; set_ ipv6/conf/%s/autoconf 0;' $scope $scope
            printf 'set_ ipv6/conf/%s/router_solicitations 0; set_ ipv6/conf/%s/accept_redirects 0;' $scope $scope
            printf 'set_ ipv6/conf/%s/ndisc_notify 1; set_ ipv6/conf/%s/addr_gen_mode 0;' $scope $scope
        else
            printf 'set_ ipv6/conf/%s/disable_ipv6 1;' $scope
        fi
    done
}

sysctls_for_routers() {
    sysctls_for_all
    ! has_ipv4 || printf 'set_ ipv4/ip_forward 1;'
    ! has_ipv6 || printf 'set_ ipv6/conf/all/forwarding 1;'
}

sysctls_for_bridge_netfilter() { # on|off
    local value=0
    [[ $1 == off ]] || value=1
    printf 'set_ bridge/bridge-nf-call-iptables %d; set_ bridge/bridge-nf-call-ip6tables %d;' $value $value
    printf 'set_ bridge/bridge-nf-call-arptables 0;'
}

# `nsenter` instead of `ip netns exec`: it mounts nothing, and that is most of the time of `ip netns exec`.
in_namespace() { # NAMESPACE CMD…
    nsenter --net="/run/netns/$1" "${@:2}"
}

# Sysctls first, then `ip -batch` with the lines on the standard input: one way into the namespace for both.
configure() { # NAMESPACE SYSCTLS
    in_namespace "$1" sh -c "$2 exec ip -batch -" || fail "configuring the namespace $1 failed; the reason is above."
}

# ---------------------------------------------------------------------------------------------------------------------
# up

start() {
    local node
    check_ready_for_up
    claim_instance
    create_namespaces
    build_fabric
    build_outside
    for ((node = 1; node <= OPT[nodes]; node++)); do
        build_node "$node"
        build_pods_of "$node"
    done
    plug_into_fabric
    wait_until_ports_forward "$INSTANCE-$(fabric)"
    for ((node = 1; node <= OPT[nodes]; node++)); do
        wait_until_ports_forward "$INSTANCE-node$node"
    done
    BUILDING=no
    printf "Testbed '%s' is up: %s, %s, %d nodes with %d pods each. Look at it: %s status%s\n" "$INSTANCE" \
        "${OPT[topology]}" "${OPT[family]}" "${OPT[nodes]}" "${OPT[pods]}" "$PROGRAM" "$(name_option)"
}

name_option() { [[ $INSTANCE == pl ]] || printf ' --name %s' "$INSTANCE"; }

check_ready_for_up() {
    [[ ${OPT[masquerade]} == off ]] || need_tool nft nftables
    [[ ${OPT[pods_checksum_offload]} == on ]] || need_tool ethtool ethtool
    [[ ! -e $STATE_DIR ]] ||
        fail "the testbed '$INSTANCE' is up already: remove it first ($PROGRAM down$(name_option)) or choose a --name."
    [[ -z $(own_namespaces) ]] ||
        fail "namespaces of a former testbed '$INSTANCE' are left over: remove them with $PROGRAM down$(name_option)."
}

# Making the state directory is what claims the name: of two `up` at the same time, one succeeds. From there on,
# leaving in any way but a finished `up` takes everything down again.
claim_instance() {
    local key
    # Again, if the last testbed's `down` has just removed the directory above it.
    until mkdir "$STATE_DIR" 2>/dev/null; do
        [[ ! -d $STATE_DIR ]] || fail "the testbed '$INSTANCE' is being set up by somebody else: take another --name."
        mkdir -p "$STATE_ROOT"
    done
    BUILDING=yes
    for key in "${REMEMBERED[@]}"; do
        printf '%s=%s\n' "$key" "${OPT[$key]}"
    done >"$STATE_DIR/options"
    : >"$STATE_DIR/pods"
}

clean_up_after_failure() {
    if [[ $BUILDING == yes ]]; then
        BUILDING=no
        printf "%s: taking the unfinished testbed '%s' down again.\n" "$PROGRAM" "$INSTANCE" >&2
        remove_everything
    fi
}

create_namespaces() {
    local node pod
    {
        printf 'netns add %s\n' "$INSTANCE-outside" "$INSTANCE-$(fabric)"
        for ((node = 1; node <= OPT[nodes]; node++)); do printf 'netns add %s-node%d\n' "$INSTANCE" "$node"; done
        for ((pod = 1; pod <= OPT[nodes] * OPT[pods]; pod++)); do printf 'netns add %s-pod%d\n' "$INSTANCE" "$pod"; done
    } | ip -batch - || fail "creating the namespaces failed; the reason is above."
}

# Router or segment: a router has nothing yet; the segment has the switch that the nodes will be plugged into, with the
# address that is their way out. A switch has no firewall, so its bridge never calls netfilter.
build_fabric() {
    local seg_mac
    seg_mac=$(mac segment 0)
    {
        printf 'link set lo up\n'
        if ! is_cloud; then
            add_bridge seg0 "$seg_mac" "${OPT[uplink_mtu]}"
            add_address4 "$(uplink_net4 0).254" 24 seg0
            add_address6 "$(uplink_net6 0):254" 64 seg0
            add_address6 "$(link_local "$seg_mac")" 64 seg0
        fi
    } | configure "$INSTANCE-$(fabric)" "$(sysctls_for_routers) $(sysctls_for_bridge_netfilter off)"
}

# The outside knows the nodes' networks only, and has no default route: an answer to a pod's own address dies here,
# which is what makes a missing masquerade visible.
build_outside() {
    local node mtu=${OPT[uplink_mtu]} out_mac
    out_mac=$(mac outside 2)
    {
        printf 'link set lo up\n'
        add_veth eth0 "$out_mac" outside "$(mac outside 1)" "$INSTANCE-$(fabric)" "$mtu" 1
        printf 'link set eth0 up\n'
        add_address4 $OUTSIDE4.2 24 eth0
        add_address6 $OUTSIDE6::2 64 eth0
        add_address6 "$(link_local "$out_mac")" 64 eth0
        for ((node = 1; node <= OPT[nodes]; node++)); do
            if is_cloud || ((node == 1)); then # the direct segment is one network for all nodes
                add_route4 "$(uplink_net4 "$node").0/24" $OUTSIDE4.1
                add_route6 "$(uplink_net6 "$node"):/64" $OUTSIDE6::1
            fi
        done
        if [[ ${OPT[route_outside]} == on ]]; then
            add_route4 $CLUSTER4 $OUTSIDE4.1
            add_route6 $CLUSTER6 $OUTSIDE6::1
        fi
    } | configure "$INSTANCE-outside" "$(sysctls_for_all)"
}

build_node() { # NODE
    local node=$1 other uplink_mac bridge_mac
    uplink_mac=$(mac uplink "$node") bridge_mac=$(mac bridge "$node")
    {
        printf 'link set lo up\n'
        add_veth eth0 "$uplink_mac" "node$node" "$(mac fabric "$node")" "$INSTANCE-$(fabric)" \
            "${OPT[uplink_mtu]}" "${OPT[uplink_queues]}"
        printf 'link set eth0 up\n'
        add_address4 "$(uplink_net4 "$node").$(uplink_host "$node")" 24 eth0
        add_address6 "$(uplink_net6 "$node"):$(uplink_host "$node")" 64 eth0
        add_address6 "$(link_local "$uplink_mac")" 64 eth0
        add_bridge cbr0 "$bridge_mac" "${OPT[mtu]}"
        add_address4 "$PODS4.$node.1" 24 cbr0
        add_address6 "$PODS6:$node::1" 64 cbr0
        add_address6 "$(link_local "$bridge_mac")" 64 cbr0
        add_route4 default "$(uplink_net4 "$node").$(gateway_host)"
        add_route6 default "$(uplink_net6 "$node"):$(gateway_host)"
        for ((other = 1; other <= OPT[nodes]; other++)); do
            if ! is_cloud && ((other != node)); then
                add_route4 "$PODS4.$other.0/24" "$(uplink_net4 "$other").$other"
                add_route6 "$PODS6:$other::/64" "$(uplink_net6 "$other"):$other"
            fi
        done
    } | configure "$INSTANCE-node$node" \
        "$(sysctls_for_routers) $(sysctls_for_bridge_netfilter "${OPT[bridge_netfilter]}")"
    [[ ${OPT[masquerade]} == off ]] || masquerade "$node"
}

# Whatever leaves the cluster by the uplink gets the node's address, as kubenet and flannel do it.
masquerade() { # NODE
    in_namespace "$INSTANCE-node$1" nft -f - <<END || fail "the masquerade rules of node$1 failed; the reason is above."
table inet testbed {
    chain postrouting {
        type nat hook postrouting priority srcnat; policy accept;
        oifname "eth0" ip saddr $PODS4.$1.0/24 ip daddr != $CLUSTER4 masquerade
        oifname "eth0" ip6 saddr $PODS6:$1::/64 ip6 daddr != $CLUSTER6 masquerade
    }
}
END
}

# The far ends of the links that have come since, and the table of a cloud provider: which node has which pods. A
# segment knows the pods only if the outside is to reach them.
plug_into_fabric() {
    local node
    {
        printf 'link set outside up\n'
        add_address4 $OUTSIDE4.1 24 outside
        add_address6 $OUTSIDE6::1 64 outside
        add_address6 "$(link_local "$(mac outside 1)")" 64 outside
        for ((node = 1; node <= OPT[nodes]; node++)); do
            if is_cloud; then
                printf 'link set node%d up\n' "$node"
                add_address4 "$(uplink_net4 "$node").1" 24 "node$node"
                add_address6 "$(uplink_net6 "$node"):1" 64 "node$node"
                add_address6 "$(link_local "$(mac fabric "$node")")" 64 "node$node"
            else
                add_port "node$node" seg0
            fi
            if is_cloud || [[ ${OPT[route_outside]} == on ]]; then
                add_route4 "$PODS4.$node.0/24" "$(uplink_net4 "$node").$(uplink_host "$node")"
                add_route6 "$PODS6:$node::/64" "$(uplink_net6 "$node"):$(uplink_host "$node")"
            fi
        done
    } | ip -n "$INSTANCE-$(fabric)" -batch - || fail "plugging the uplinks in failed; the reason is above."
}

build_pods_of() { # NODE
    local node=$1 place pod sysctls
    sysctls=$(sysctls_for_all)
    for ((place = 1; place <= OPT[pods]; place++)); do
        pod=$(((node - 1) * OPT[pods] + place))
        build_pod "$pod" "$node" $((place + 1)) "$(mac pod "$pod")" "$sysctls"
        remember_pod "$pod" "$node" $((place + 1))
    done
    for ((place = 1; place <= OPT[pods]; place++)); do
        add_port "veth-pod$(((node - 1) * OPT[pods] + place))" cbr0
    done | ip -n "$INSTANCE-node$node" -batch - || fail "putting node$node's pods on cbr0 failed; the reason is above."
}

build_pod() { # POD NODE HOST MAC SYSCTLS
    local pod=$1 node=$2 host=$3 pod_mac=$4 sysctls=$5
    {
        printf 'link set lo up\n'
        add_veth eth0 "$pod_mac" "veth-pod$pod" "$(mac host "$pod")" "$INSTANCE-node$node" \
            "${OPT[mtu]}" "${OPT[queues]}"
        printf 'link set eth0 up\n'
        add_address4 "$PODS4.$node.$host" 24 eth0
        add_address6 "$PODS6:$node::$host" 64 eth0
        add_address6 "$(link_local "$pod_mac")" 64 eth0
        add_route4 default "$PODS4.$node.1"
        add_route6 default "$PODS6:$node::1"
    } | configure "$INSTANCE-pod$pod" "$sysctls"
    if [[ ${OPT[pods_checksum_offload]} == off ]]; then
        in_namespace "$INSTANCE-pod$pod" ethtool -K eth0 tx off >/dev/null ||
            fail "switching pod$pod's checksum offload off failed; the reason is above."
    fi
}

# The kernel brings a bridge port up a moment after its carrier. A frame sent before that is lost, and the ARP request
# in it is repeated only a second later.
wait_until_ports_forward() { # NAMESPACE
    local tries ports
    for ((tries = 0; tries < 500; tries++)); do
        ports=$(bridge -n "$1" link show)
        # Lines of ports that do not forward yet.
        [[ $(grep -c -v 'state forwarding' <<<"$ports") -gt 0 && -n $ports ]] || return 0
        sleep 0.01
    done
    fail "the bridge ports in $1 did not come up within 5 seconds: see 'bridge -n $1 link'."
}

# ---------------------------------------------------------------------------------------------------------------------
# What is remembered: "options" has key=value, "pods" has one line "POD NODE HOST" for each pod that ever was

declare -A POD_NODE=() POD_HOST=()

remember_pod() { # POD NODE HOST
    printf '%d %d %d\n' "$1" "$2" "$3" >>"$STATE_DIR/pods"
}

recall() {
    local key value pod node host
    [[ -r $STATE_DIR/options ]] ||
        fail "the testbed '$INSTANCE' is not up: build it with $PROGRAM up$(name_option)."
    while IFS='=' read -r key value; do
        OPT[$key]=$value
    done <"$STATE_DIR/options"
    while read -r pod node host; do
        POD_NODE[$pod]=$node POD_HOST[$pod]=$host
    done <"$STATE_DIR/pods"
}

exists() { [[ -e /run/netns/$1 ]]; }

# One change at a time. The lock ends with this process.
lock_state() {
    [[ -d $STATE_DIR ]] || fail "the testbed '$INSTANCE' is not up: build it with $PROGRAM up$(name_option)."
    exec {LOCK}<"$STATE_DIR"
    flock "$LOCK"
}

# ---------------------------------------------------------------------------------------------------------------------
# add-pod, del-pod

add_pod() {
    local node pod host pod_mac
    lock_state
    recall
    node=$(number_of node "${ARGS[0]}" "${OPT[nodes]}") || exit
    pod=$(pod_to_add) || exit
    if exists "$INSTANCE-pod$pod"; then fail "pod$pod is there already: remove it first with del-pod."; fi
    if [[ -n ${POD_NODE[$pod]:-} && ${POD_NODE[$pod]} != "$node" ]]; then
        fail "pod$pod has its addresses on node${POD_NODE[$pod]}: add it there, or take another number."
    fi
    host=${POD_HOST[$pod]:-$(free_host_on "$node")}
    [[ -n $host ]] || fail "node$node has no free pod address left."
    pod_mac=${POD_MAC:-$(mac pod "$pod")}
    [[ -n ${POD_NODE[$pod]:-} ]] || remember_pod "$pod" "$node" "$host"
    ADDING=$pod ADDING_ON=$node
    ip netns add "$INSTANCE-pod$pod"
    build_pod "$pod" "$node" "$host" "$pod_mac" "$(sysctls_for_all)"
    add_port "veth-pod$pod" cbr0 | ip -n "$INSTANCE-node$node" -batch - ||
        fail "putting pod$pod on node$node's cbr0 failed; the reason is above."
    wait_until_ports_forward "$INSTANCE-node$node"
    announce_pod "$pod" "$pod_mac"
    ADDING=''
    printf 'pod%d on node%d:' "$pod" "$node"
    ! has_ipv4 || printf ' %s.%d' "$PODS4.$node" "$host"
    ! has_ipv6 || printf ' %s:%d' "$PODS6:$node:" "$host"
    printf ' %s\n' "$pod_mac"
}

pod_to_add() { # the number that was asked for, or the first that never was used
    local pod last=0
    if ((${#ARGS[@]} == 2)); then
        number_of pod "${ARGS[1]}" "$MAX_POD_NUMBER"
        return
    fi
    for pod in "${!POD_NODE[@]}"; do ((pod <= last)) || last=$pod; done
    ((last < MAX_POD_NUMBER)) || fail "all pod numbers are used: name the pod to add again."
    printf '%d' $((last + 1))
}

# Addresses of removed pods stay theirs, so that they can come back.
free_host_on() { # NODE
    local pod host taken=' '
    for pod in "${!POD_NODE[@]}"; do
        [[ ${POD_NODE[$pod]} != "$1" ]] || taken+="${POD_HOST[$pod]} "
    done
    for ((host = 2; host <= LAST_POD_HOST; host++)); do
        [[ $taken == *" $host "* ]] || { printf '%d' "$host"; return; }
    done
}

# A pod that comes back with another MAC tells it to everybody on the bridge, as a CNI plugin does: setting the
# address, even the one that it has, makes the kernel send a gratuitous ARP and an unsolicited neighbour advertisement.
announce_pod() { # POD MAC
    ip -n "$INSTANCE-pod$1" link set eth0 address "$2"
}

del_pod() {
    local pod
    lock_state
    recall
    pod=$(number_of pod "${ARGS[0]}" "$MAX_POD_NUMBER") || exit
    exists "$INSTANCE-pod$pod" ||
        fail "there is no pod$pod in the testbed '$INSTANCE' ($PROGRAM status$(name_option) shows what there is)."
    remove_pod "$pod" "${POD_NODE[$pod]}"
}

# The veth goes first: removing a namespace only starts its end, removing a link has happened when it returns.
remove_pod() { # POD NODE
    end_processes_in "$INSTANCE-pod$1"
    ip -n "$INSTANCE-node$2" link del "veth-pod$1" 2>/dev/null || true
    ip netns del "$INSTANCE-pod$1"
}

clean_up_after_add_pod() {
    [[ -z $ADDING ]] || ! exists "$INSTANCE-pod$ADDING" || remove_pod "$ADDING" "$ADDING_ON"
}

# ---------------------------------------------------------------------------------------------------------------------
# down

stop() {
    local was
    was=$(own_namespaces)
    [[ ! -d $STATE_DIR ]] || was+=state
    remove_everything
    if [[ -n $was ]]; then
        printf "Testbed '%s' is down.\n" "$INSTANCE"
    else
        printf "Testbed '%s' was not up: nothing to do.\n" "$INSTANCE"
    fi
}

# By their names, not by what is remembered: so it also works after a crash.
own_namespaces() {
    local path name
    for path in /run/netns/"$INSTANCE"-*; do
        name=${path##*/}
        [[ ! $name =~ ^"$INSTANCE"-(node[0-9]+|pod[0-9]+|router|segment|outside)$ ]] || printf '%s\n' "$name"
    done
}

# What Podlane has pinned for interfaces of these namespaces, whatever its instances are called (docs/survival.md).
remove_pins_of() { # NAMESPACE…
    local namespace number directory
    for namespace; do
        number=$(stat -Lc %i "/run/netns/$namespace" 2>/dev/null) || continue
        for directory in /sys/fs/bpf/podlane/*/"$number"; do
            [[ ! -d $directory ]] || rm -rf "$directory"
            rmdir "${directory%/*}" /sys/fs/bpf/podlane 2>/dev/null || true
        done
    done
}

remove_everything() {
    local namespaces
    mapfile -t namespaces < <(own_namespaces)
    if ((${#namespaces[@]})); then
        end_processes_in "${namespaces[@]}"
        remove_pins_of "${namespaces[@]}"
        printf 'netns del %s\n' "${namespaces[@]}" | ip -force -batch - || true
    fi
    rm -rf "$STATE_DIR"
    rmdir --ignore-fail-on-non-empty "$STATE_ROOT" 2>/dev/null || true
    [[ -z $(own_namespaces) ]] || fail "some namespaces could not be removed: $(own_namespaces | tr '\n' ' ')"
}

# First they are asked to end; what is still there after a second is killed.
end_processes_in() { # NAMESPACE…
    local tries pids signal=TERM
    for ((tries = 0; tries < 60; tries++)); do
        mapfile -t pids < <(processes_in "$@")
        ((${#pids[@]})) || return 0
        ((tries < 20)) || signal=KILL
        if ((tries == 0 || tries >= 20)); then kill -$signal "${pids[@]}" 2>/dev/null || true; fi
        sleep 0.05
    done
    fail "processes in the testbed do not end: ${pids[*]}"
}

# What `ip netns pids` does, for all namespaces in one look at /proc: with hundreds of pods that is the difference
# between milliseconds and a minute. Processes and namespaces are matched by device and inode.
processes_in() { # NAMESPACE…
    local id path pid
    local -A wanted=()
    while read -r id path; do
        wanted[$id]=1
    done < <(stat -L -c '%d:%i %n' "${@/#//run/netns/}" 2>/dev/null)
    while read -r id path; do
        pid=${path#/proc/} pid=${pid%%/*}
        # Never this script itself, should somebody have started it inside.
        if [[ -n ${wanted[$id]:-} && $pid != "$$" && $pid != "$BASHPID" ]]; then printf '%d\n' "$pid"; fi
    done < <(stat -L -c '%d:%i %n' /proc/[0-9]*/ns/net 2>/dev/null)
}

# ---------------------------------------------------------------------------------------------------------------------
# exec

run_inside() {
    local where=${ARGS[0]}
    recall
    [[ $where =~ ^(node[0-9]+|pod[0-9]+|router|segment|outside)$ ]] ||
        refuse "'$where' is no place of a testbed: it is node1, pod3, $(fabric) or outside."
    exists "$INSTANCE-$where" ||
        fail "there is no $where in the testbed '$INSTANCE' ($PROGRAM status$(name_option) shows what there is)."
    exec ip netns exec "$INSTANCE-$where" "${ARGS[@]:1}"
}

# ---------------------------------------------------------------------------------------------------------------------
# status: what the kernel says now, not what `up` wanted

declare -A LINK=() # "PLACE DEVICE WHAT", such as "pod1 eth0 mtu" → value
PODS=()            # those that are there, in the order of their numbers

read_links() { # PLACE
    local line link=''
    while read -r -a line; do
        case ${line[0]} in
            [0-9]*:)
                link=${line[1]%:} link="$1 ${link%@*}"
                LINK[$link index]=${line[0]%:}
                [[ ! ${line[*]} =~ ' mtu '([0-9]+) ]] || LINK[$link mtu]=${BASH_REMATCH[1]}
                [[ ! ${line[*]} =~ ' state '([A-Z]+) ]] || LINK[$link state]=${BASH_REMATCH[1],,}
                ;;
            link/ether) LINK[$link mac]=${line[1]} ;;
            inet) LINK[$link ipv4]=${line[1]} ;;
            inet6)
                if [[ ${line[1]} == fe80:* ]]; then
                    LINK[$link link_local]=${line[1]}
                else
                    LINK[$link ipv6]=${line[1]}
                fi
                ;;
        esac
    done < <(ip -n "$INSTANCE-$1" addr show)
}

# Each namespace is read once: with hundreds of them, `ip` looks up by name what each of its links is connected to.
read_all_links() {
    local node pod
    read_links "$(fabric)"
    read_links outside
    for ((node = 1; node <= OPT[nodes]; node++)); do read_links "node$node"; done
    mapfile -t PODS < <(printf '%s\n' "${!POD_NODE[@]}" | sort -n)
    for pod in "${!PODS[@]}"; do
        if exists "$INSTANCE-pod${PODS[pod]}"; then read_links "pod${PODS[pod]}"; else unset "PODS[pod]"; fi
    done
}

status() {
    if [[ ! -r $STATE_DIR/options && $JSON == on ]]; then
        printf '{"name":"%s","up":false}\n' "$INSTANCE"
        exit 1
    fi
    recall
    read_all_links
    if [[ $JSON == on ]]; then status_json; else status_table; fi
}

readonly ROW='%-9s %-18s %-9s %-18s %-25s %-17s %-6s %s\n'

status_table() {
    local node pod
    printf "Testbed '%s': %s, %s, MTU %d (uplinks %d), masquerade %s, route from outside %s\n" "$INSTANCE" \
        "${OPT[topology]}" "${OPT[family]}" "${OPT[mtu]}" "${OPT[uplink_mtu]}" "${OPT[masquerade]}" \
        "${OPT[route_outside]}"
    # shellcheck disable=SC2059 # the format is ours
    printf "$ROW" PLACE NAMESPACE INTERFACE IPV4 IPV6 MAC MTU STATE
    for ((node = 1; node <= OPT[nodes]; node++)); do
        print_link "node$node" eth0 ''
        print_link "node$node" cbr0 ''
    done
    for pod in "${PODS[@]}"; do
        print_link "pod$pod" eth0 ", to veth-pod$pod on node${POD_NODE[$pod]}"
    done
    is_cloud || print_link segment seg0 ''
    for ((node = 1; node <= OPT[nodes]; node++)); do
        ! is_cloud || print_link router "node$node" ", to node$node"
    done
    print_link "$(fabric)" outside ', to outside'
    print_link outside eth0 ''
}

print_link() { # PLACE DEVICE REMARK
    local link="$1 $2"
    # shellcheck disable=SC2059 # the format is ours
    printf "$ROW" "$1" "$INSTANCE-$1" "$2" "${LINK[$link ipv4]:--}" "${LINK[$link ipv6]:--}" "${LINK[$link mac]:--}" \
        "${LINK[$link mtu]:--}" "${LINK[$link state]:-gone}$3"
}

status_json() {
    local node comma=''
    printf '{"name":"%s","up":true,"topology":"%s","family":"%s",' "$INSTANCE" "${OPT[topology]}" "${OPT[family]}"
    printf '"mtu":%d,"uplink_mtu":%d,"queues":%d,"uplink_queues":%d,' \
        "${OPT[mtu]}" "${OPT[uplink_mtu]}" "${OPT[queues]}" "${OPT[uplink_queues]}"
    printf '"masquerade":%s,"route_outside":%s,"pods_checksum_offload":%s,"bridge_netfilter":%s,' \
        "$(json_bool masquerade)" "$(json_bool route_outside)" "$(json_bool pods_checksum_offload)" \
        "$(json_bool bridge_netfilter)"
    printf '"cluster_cidrs":%s,"nodes":[' "$(json_families $CLUSTER4 $CLUSTER6)"
    for ((node = 1; node <= OPT[nodes]; node++)); do
        printf '%s{"name":"node%d","namespace":"%s","pod_cidrs":%s,"uplink":%s,"bridge":%s,"pods":[' "$comma" "$node" \
            "$INSTANCE-node$node" "$(json_families "$PODS4.$node.0/24" "$PODS6:$node::/64")" \
            "$(json_link "node$node" eth0)" "$(json_link "node$node" cbr0)"
        json_pods_of "$node"
        printf ']}'
        comma=','
    done
    printf '],"fabric":{"name":"%s","namespace":"%s"},' "$(fabric)" "$INSTANCE-$(fabric)"
    printf '"outside":{"name":"outside","namespace":"%s","interface":%s}}\n' "$INSTANCE-outside" \
        "$(json_link outside eth0)"
}

json_pods_of() { # NODE
    local pod comma=''
    for pod in "${PODS[@]}"; do
        [[ ${POD_NODE[$pod]} == "$1" ]] || continue
        printf '%s{"name":"pod%d","namespace":"%s","interface":%s,"host_interface":%s}' "$comma" "$pod" \
            "$INSTANCE-pod$pod" "$(json_link "pod$pod" eth0)" "$(json_link "node$1" "veth-pod$pod")"
        comma=','
    done
}

json_bool() { if [[ ${OPT[$1]} == on ]]; then printf true; else printf false; fi; }

json_families() { # IPV4 IPV6
    case ${OPT[family]} in
        ipv4) printf '["%s"]' "$1" ;;
        ipv6) printf '["%s"]' "$2" ;;
        *) printf '["%s","%s"]' "$1" "$2" ;;
    esac
}

json_text() { if [[ -n $1 ]]; then printf '"%s"' "$1"; else printf null; fi; }

json_link() { # PLACE DEVICE
    local link="$1 $2"
    [[ -n ${LINK[$link index]:-} ]] || { printf null; return; }
    printf '{"name":"%s","ifindex":%d,"mac":"%s","mtu":%d,"state":"%s","ipv4":%s,"ipv6":%s,"link_local":%s}' "$2" \
        "${LINK[$link index]}" "${LINK[$link mac]}" "${LINK[$link mtu]}" "${LINK[$link state]}" \
        "$(json_text "${LINK[$link ipv4]:-}")" "$(json_text "${LINK[$link ipv6]:-}")" \
        "$(json_text "${LINK[$link link_local]:-}")"
}

# ---------------------------------------------------------------------------------------------------------------------

BUILDING=no ADDING='' ADDING_ON=''

leave() {
    local code=$?
    trap - EXIT
    set +e
    clean_up_after_failure
    clean_up_after_add_pod
    exit "$code"
}

main() {
    parse_command_line "$@"
    check_command_line
    readonly STATE_DIR=$STATE_ROOT/$INSTANCE
    need_tools_and_root
    trap leave EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    case $COMMAND in
        up) start ;;
        down) stop ;;
        status) status ;;
        exec) run_inside ;;
        add-pod) add_pod ;;
        del-pod) del_pod ;;
    esac
}

main "$@"
