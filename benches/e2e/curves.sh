# Cost against the number of pods and of routes. Read by run.sh. (Flows are in measure.sh: they need no other rig.)
# shellcheck shell=bash

readonly OTHERS=$PREFIX-others # the ends of the pods that only are there

# others_up COUNT: as many more pods on the bridge, with interfaces of one namespace.
others_up() {
    local i batch=$WORK/others.batch
    [[ -e /run/netns/$OTHERS ]] || ip netns add "$OTHERS" || return 1
    for ((i = OTHERS_COUNT + 1; i <= $1; i++)); do
        echo "link add o$i type veth peer name pod$i netns $OTHERS"
        echo "link set o$i master cbr0 up"
    done >"$batch"
    ip -n "$NODE" -batch "$batch" || return 1
    for ((i = OTHERS_COUNT + 1; i <= $1; i++)); do echo "link set pod$i addrgenmode none up"; done >"$batch"
    ip -n "$OTHERS" -batch "$batch" || return 1
    OTHERS_COUNT=$1
    wait_for 20 others_are_served
}

# shellcheck disable=SC2317
others_are_served() {
    [[ $(in_ns "$NODE" bridge link | grep -c 'state forwarding') -ge $((OTHERS_COUNT + 2)) ]] || return 1
    [[ $PEER != podlane* ]] || (($(podlane_status '[.ports[] | select(.kind == "pod")] | length') == OTHERS_COUNT + 2))
}

podlane_status() { # JQ-EXPRESSION [NODE INSTANCE]
    in_ns "${2:-$NODE}" "$PODLANE_BIN" status --instance "${3:-$PREFIX}" --json | jq "$1"
}

# The rate between two pods while others hang on the bridge.
curve_pods() {
    local pods
    WHY='the pods could not be made'
    OTHERS_COUNT=0
    net_up && "start_$PEER" || return 1
    xdp_frames_possible on
    load source=xdp warmup="$WARMUP_SECONDS" seconds="$SECONDS_MEASURED" || return 1 # the first is often slower
    for pods in "${PODS[@]}"; do
        others_up $((pods - 2)) || { WHY="with $pods pods not all were served" && return 1; }
        load source=xdp warmup="$WARMUP_SECONDS" seconds="$SECONDS_MEASURED" || return 1
        curve_point pods "$pods"
    done
}

# The rate out of a node, whose uplink leads to all destinations by as many routes; the other node only counts.
curve_routes() {
    local routes had=0 targets settled
    WHY='the two nodes could not be made'
    NODES_SERVED=(1)
    nodes_up && "start_$PEER" || return 1
    in_ns "${NODES[1]}" ethtool -K veth-pod1 gro on >/dev/null
    for routes in "${ROUTES[@]}"; do
        routes_up "$had" "$routes" || { WHY="$routes routes could not be made" && return 1; }
        had=$routes
        settled=podlane_has_routes
        [[ $PEER == nodes-podlane* ]] || settled=true
        wait_for 20 $settled "$routes" || { WHY="Podlane did not follow to $routes routes" && return 1; }
        for ((targets = 1; targets * 2 <= routes; targets *= 2)); do :; done
        load_between "${POD[1]}/eth0" "${NODES[2]}/up0" "${MAC[1]} ${NODES_BRIDGE_MAC[1]} ${NODES_POD_IP[1]} 10.128.0.1" \
            source=xdp varied=1 targets=$targets stride=16 warmup="$WARMUP_SECONDS" seconds="$SECONDS_MEASURED" || return 1
        curve_point routes "$routes"
    done
    measure_route_change
}

# shellcheck disable=SC2317
podlane_has_routes() { (($(podlane_status .tables.routes_ipv4 "${NODES[1]}" "$PREFIX-1") >= $1)); }

routes_up() { # FROM TO: blocks of 16 addresses from 10.128.0.0 on
    local i batch=$WORK/routes.batch
    for ((i = $1; i < $2; i++)); do
        echo "route add 10.$((128 + (i >> 12))).$(((i >> 4) & 255)).$(((i & 15) * 16))/28 via ${NODES_UPLINK[2]} dev up0"
    done >"$batch"
    ip -n "${NODES[1]}" -batch "$batch"
}

# What Podlane says of one more route: from the kernel's message to both paths deciding by it.
measure_route_change() {
    local i
    [[ $PEER == nodes-podlane* ]] || return 0
    for ((i = 0; i < 5; i++)); do
        ip -n "${NODES[1]}" route add "10.250.$i.0/24" via "${NODES_UPLINK[2]}" dev up0 || return 1
        wait_for 5 podlane_has_routes $((${ROUTES[-1]} + i + 1)) || return 1
        sample "$PEER" "$((REPEAT * 10 + i))" route_change_ms "$(podlane_status .mirror.last_change_us "${NODES[1]}" "$PREFIX-1" |
            awk '{ printf "%.3f", $1 / 1000 }')"
    done
}

curves() {
    local curve
    for curve in pods routes; do
        local peers=("${PEERS_CURVES[@]}")
        [[ $curve != routes ]] || peers=("${PEERS_ROUTES[@]}")
        for PEER in "${peers[@]}"; do
            say "repeat $REPEAT of $REPEATS: $curve, ${TITLE[$PEER]}"
            if ! "curve_$curve"; then
                say "  failed: $WHY"
                printf 'failed\t%s\t%s\t%s\n' "$PEER" 1 "curve of $curve: $WHY" >>"$WORK/results"
            fi
            NODES_SERVED=(1 2)
            end_all
            net_down
        done
    done
}
