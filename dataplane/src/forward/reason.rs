//! Why a frame went where it went: one named reason for every frame that Podlane does not forward.
//!
//! The numbers are shared with `bpf/reason.h` (a test compares the two), the names appear in `podlane status`, and each has
//! a sentence that tells a person what it means.

macro_rules! reasons {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $number:literal, $text:literal, $sentence:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u8)]
        pub enum $name {
            $(#[doc = $sentence] $variant = $number,)*
        }

        impl $name {
            /// Every reason, in the order of its number, which starts at 0 and has no gaps.
            pub const ALL: &'static [$name] = &[$($name::$variant,)*];
            /// How many reasons there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The name that `podlane status` prints; lower case, words joined by `_`, stable.
            pub const fn name(self) -> &'static str {
                match self { $($name::$variant => $text,)* }
            }

            /// One sentence: what happened.
            pub const fn sentence(self) -> &'static str {
                match self { $($name::$variant => $sentence,)* }
            }
        }
    };
}

reasons! {
    /// Why a frame was left to the kernel, which handles it exactly as it would without Podlane.
    PassReason {
        NotIp = 0, "not_ip", "Not IPv4 or IPv6: ARP, LLDP and other Ethernet types are the kernel's.";
        Vlan = 1, "vlan", "The frame carries a VLAN tag.";
        Group = 2, "group", "Broadcast or multicast: the kernel's bridge floods it.";
        Malformed = 3, "malformed", "Short, with lying lengths, with a bad header checksum, or not from a station address.";
        Options = 4, "options", "IPv4 options or an IPv6 extension header.";
        Fragment = 5, "fragment", "An IP fragment.";
        Ttl = 6, "ttl", "TTL or hop limit is 1 or 0: the kernel answers with time exceeded.";
        Protocol = 7, "protocol", "Neither TCP, UDP nor ICMP.";
        NeighbourDiscovery = 8, "nd", "IPv6 neighbour or router discovery.";
        OutsideCluster = 9, "outside_cluster", "Source or destination lies outside of the cluster's CIDRs.";
        ForNode = 10, "for_node", "Addressed to the node itself.";
        UnknownMac = 11, "unknown_mac", "The destination MAC address is not in the forwarding database: the kernel's bridge floods it.";
        NoRoute = 12, "no_route", "No route leads to the destination.";
        RouteKind = 13, "route_kind", "The route is not a plain unicast route (blackhole, unreachable, multipath, encapsulation, TOS).";
        PolicyRules = 14, "policy_rules", "The node has routing rules (ip rule) or IPsec policies (ip xfrm policy), which Podlane does not mirror.";
        Unresolved = 15, "unresolved", "The next hop's MAC address is not known yet: the kernel resolves it.";
        TooBig = 16, "too_big", "Larger than the MTU on the way out: the kernel answers the sender.";
        Hairpin = 17, "hairpin", "It would leave through the port on which it came.";
        PortState = 18, "port_state", "A port on the way is down, blocked, isolated or not Podlane's.";
        ForwardingOff = 19, "forwarding_off", "The node's kernel has IP forwarding switched off.";
        NoSocket = 20, "no_socket", "The receiving queue has no AF_XDP socket.";
        WorkerStalled = 21, "worker_stalled", "The worker of this queue has stopped writing its heartbeat.";
        SuperFrame = 22, "super_frame", "A segmentation super-frame whose segments cannot be measured, or whose size AF_XDP would lose (generic mode).";
        FrameSize = 23, "frame_size", "Larger than the AF_XDP sockets on the way can carry.";
        HiddenChecksum = 24, "hidden_checksum", "A UDP tunnel that may hide an unfinished inner checksum.";
        BridgeFeature = 25, "bridge_feature", "The bridge uses a feature that Podlane leaves to it (VLAN filtering, 802.1X locking).";
        UnknownSource = 26, "unknown_source", "The bridge does not know the sender on this port yet: it learns the address from this frame.";
        TablesChanged = 27, "tables_changed", "The tables changed twice while the frame was being looked at.";
        TablesStale = 28, "tables_stale", "The daemon has stopped following the kernel's tables (hung or stopped), so its own are not trusted.";
        Translated = 29, "translated", "Of a connection that conntrack translates (a service, a masquerade), or, of TCP, has followed from its start.";
        Netfilter = 30, "netfilter", "The node has netfilter rules that may drop, hold or change it, and that Podlane would bypass.";
    }
}

reasons! {
    /// Why a frame was dropped: by a worker, for an overload or a port that went away, or by the source guard
    /// ([`super::guard()`]), wherever it stands. The guard's are the last ones; `bpf/reason.h` has them again.
    DropReason {
        TxRingFull = 0, "tx_ring_full", "The egress socket's TX ring was full.";
        HandoffFull = 1, "handoff_full", "The ring to the worker that owns the egress queue was full.";
        EgressGone = 2, "egress_gone", "The egress port was removed between the decision and the transmission.";
        HostPortGone = 3, "host_port_gone", "The frame belongs to the kernel but the host port could not take it.";
        TooManyPieces = 4, "too_many_pieces", "The frame arrived in more pieces than a packet may have.";
        PortBlocked = 5, "port_blocked", "Its ports stopped talking to each other (blocked, isolated, moved) while it was on its way.";
        DaemonEnded = 6, "daemon_ended", "It was with a worker or on the way to one when the daemon ended or closed the port.";
        ForeignMac = 7, "foreign_mac", "A guarded pod sent it from a MAC address that is not its own.";
        ForeignAddress = 8, "foreign_address", "A guarded pod sent it from an IP address that is not its own.";
        FalseNeighbour = 9, "false_neighbour", "A guarded pod spoke in ARP or neighbour discovery for an address that is not its own, or as a router.";
        HiddenSource = 10, "hidden_source", "A guarded pod hid the sender: behind a VLAN tag, beyond the frame's end, or behind extension headers of a packet that can be neighbour discovery.";
    }
}

impl DropReason {
    /// The first one of the source guard; all from here on are.
    pub const FIRST_OF_GUARD: usize = DropReason::ForeignMac as usize;
    /// How many the source guard has.
    pub const OF_GUARD: usize = DropReason::COUNT - DropReason::FIRST_OF_GUARD;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_dense_and_names_are_unique() {
        for (number, reason) in PassReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, number);
            assert!(reason.sentence().ends_with('.'), "{reason:?}");
        }
        for (number, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, number);
            assert!(reason.sentence().ends_with('.'), "{reason:?}");
        }
        let mut names: Vec<_> = PassReason::ALL.iter().map(|reason| reason.name()).collect();
        names.extend(DropReason::ALL.iter().map(|reason| reason.name()));
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
