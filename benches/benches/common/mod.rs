//! What the benches share: numbers that look random, the clock, a node's tables, and frames of every kind.
//!
//! Every figure is the time per item that this thread had a processor, so that what else runs on the machine counts little (it
//! still takes its share of the caches). Items differ from one to the next and do not depend on each other, as in a batch of
//! received packets.

#![allow(dead_code)] // each bench is a program of its own and uses a part

use std::hint::black_box;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use criterion::{Bencher, Criterion};
use nix::time::{ClockId, clock_gettime};
use podlane_dataplane::forward::PassReason;
use podlane_dataplane::packet::checksum;
use podlane_dataplane::table::{
    Adjacency, Cluster, Fdb, FdbEntry, Fib, FibKey, HostTable, LinkId, NextHop, NextHopAction, Path, Port, PortKind,
    PortTable, Tables,
};
use podlane_dataplane::{MacAddr, PortId, limits};

/// Look-ups are done for this many different keys in turn, so that branch prediction cannot learn them.
pub const KEYS: usize = 1 << 15;
/// Pods of a large node.
pub const PODS: u16 = 250;
pub const BRIDGE_MAC: MacAddr = MacAddr::new([2, 0xcb, 0, 0, 0, 0]);
pub const UPLINK_MAC: MacAddr = MacAddr::new([2, 0xee, 0, 0, 0, 0]);
pub const UPLINK: PortId = PortId(PODS);

/// A xorshift generator: the same numbers on every run.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn address4(&mut self) -> u32 {
        (self.next() >> 16) as u32
    }

    pub fn address6(&mut self) -> u128 {
        u128::from(self.next()) << 64 | u128::from(self.next())
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() >> 16) as usize % end
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// Processor time of this thread.
pub fn thread_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("Linux has this clock").into()
}

/// Times `work` per item.
pub fn per_item<T, R>(bencher: &mut Bencher<'_>, items: &[T], mut work: impl FnMut(&T) -> R) {
    bencher.iter_custom(|iterations| {
        let mut left = iterations as usize;
        let start = thread_time();
        while left > 0 {
            let round = left.min(items.len());
            for item in &items[..round] {
                black_box(work(item));
            }
            left -= round;
        }
        thread_time() - start
    });
}

/// Times `work` per item of the `items` that it does at once, like a batch.
pub fn per_batch(bencher: &mut Bencher<'_>, items: usize, mut work: impl FnMut()) {
    bencher.iter_custom(|iterations| {
        let rounds = (iterations as usize).div_ceil(items);
        let start = thread_time();
        (0..rounds).for_each(|_| work());
        (thread_time() - start).mul_f64(iterations as f64 / (rounds * items) as f64)
    });
}

/// Short enough that all of a bench is done in a few minutes.
pub fn short() -> Criterion {
    Criterion::default()
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(400))
        .sample_size(15)
        .without_plots()
}

pub type Routes<K> = Vec<(K, u8, u32)>;

/// One block per node, side by side, and a default route: what a cluster has.
pub fn node_blocks4(count: usize) -> Routes<u32> {
    (0..count as u32).map(|node| (0x0a00_0000 + (node << 8), 24, node)).chain([(0, 0, 1)]).collect()
}

/// The same for IPv6, a /64 for each node.
pub fn node_blocks6(count: usize) -> Routes<u128> {
    (0..count as u128)
        .map(|node| ((0xfd00_0010_0244 << 80) + (node << 64), 64, node as u32))
        .chain([(0, 0, 1)])
        .collect()
}

/// Blocks and single hosts scattered over 10.0.0.0/8: what moving pods and small blocks make of it.
pub fn scattered4(count: usize, random: &mut Random) -> Routes<u32> {
    let route = |number| {
        let length = random.pick(&[24, 24, 26, 26, 26, 26, 32, 32]);
        (0x0a00_0000 | random.address4() & 0x00ff_ffff, length, number)
    };
    (0..count as u32).map(route).collect()
}

/// The same for IPv6, in one /48.
pub fn scattered6(count: usize, random: &mut Random) -> Routes<u128> {
    let route = |number| {
        let length = random.pick(&[64, 64, 112, 122, 122, 122, 128, 128]);
        let noise = random.address6() & ((1 << 80) - 1);
        ((0xfd00_0010_0244 << 80) | noise, length, number)
    };
    (0..count as u32).map(route).collect()
}

/// Neighbours of a router of the Internet.
const PEERS: usize = 64;

/// Lengths as they are common among the routes of the Internet (most are /24, then /22 and /23), nested, over all of unicast
/// space, to a few neighbours.
pub fn internet4(count: usize, random: &mut Random) -> Routes<u32> {
    const LENGTHS: [u8; 20] = [24, 24, 24, 24, 24, 24, 24, 24, 24, 24, 24, 24, 23, 23, 22, 22, 21, 20, 19, 16];
    let route = |_| {
        let address = 0x0100_0000 + random.address4() % 0xdf00_0000;
        (address, random.pick(&LENGTHS), random.below(PEERS) as u32)
    };
    (0..count).map(route).collect()
}

/// The same for IPv6: half are /48, the rest allocations of /29 to /44, in the parts of 2000::/3 that are in use.
pub fn internet6(count: usize, random: &mut Random) -> Routes<u128> {
    const LENGTHS: [u8; 16] = [48, 48, 48, 48, 48, 48, 48, 48, 46, 44, 44, 40, 36, 32, 32, 29];
    const REGISTRIES: [u128; 6] = [0x2001, 0x2400, 0x2600, 0x2800, 0x2a00, 0x2c0f];
    let route = |_| {
        let noise = random.address6() & ((1 << 107) - 1);
        (random.pick(&REGISTRIES) << 112 | noise, random.pick(&LENGTHS), random.below(PEERS) as u32)
    };
    (0..count).map(route).collect()
}

/// Addresses that some route covers, all routes being equally popular.
pub fn hits<K: FibKey>(routes: &[(K, u8, u32)], random: &mut Random, noise: fn(&mut Random) -> K) -> Vec<K> {
    (0..KEYS)
        .map(|_| {
            let (prefix, length, _) = random.pick(routes);
            let block = if length == 0 { K::ZERO } else { !K::ZERO << u32::from(K::BITS - length) };
            prefix & block | noise(random) & !block
        })
        .collect()
}

pub fn pod_mac(pod: u16) -> MacAddr {
    let [high, low] = pod.to_be_bytes();
    MacAddr::new([2, 0, 10, 244, high, low])
}

pub fn pod_address4(pod: u16) -> Ipv4Addr {
    let [high, low] = (pod + 2).to_be_bytes();
    Ipv4Addr::new(10, 0, high, low)
}

pub fn pod_address6(pod: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, pod + 2)
}

pub fn fdb_entry(pod: u16) -> FdbEntry {
    FdbEntry { port: PortId(pod), is_static: false, activity: u32::from(pod) }
}

/// A node with [`PODS`] pods in a cluster of 15,000 nodes.
pub fn node() -> Tables {
    let port = |kind, router_mac| Port {
        ifindex: 1,
        kind,
        router_mac,
        mtu: 1500,
        max_frame: limits::MAX_FRAME as u32,
        forwarding: true,
        learning: true,
        isolated: false,
        partial_checksums: kind == PortKind::Pod,
        path: Path::AfXdp,
        peer: kind == PortKind::Pod,
    };
    let pods = (0..PODS).map(|pod| (PortId(pod), port(PortKind::Pod, BRIDGE_MAC)));
    let mut hosts = HostTable::default();
    let mut adjacencies =
        vec![Adjacency { port: UPLINK, destination: MacAddr::new([2; 6]), source: UPLINK_MAC, activity: 0 }];
    for pod in 0..PODS {
        hosts.insert4(LinkId::BRIDGE, pod_address4(pod), adjacencies.len() as u32);
        hosts.insert6(LinkId::BRIDGE, pod_address6(pod), adjacencies.len() as u32);
        adjacencies.push(Adjacency {
            port: PortId(pod),
            destination: pod_mac(pod),
            source: BRIDGE_MAC,
            activity: 1 + u32::from(pod),
        });
    }
    let next_hops = [NextHopAction::OnLink(LinkId::BRIDGE), NextHopAction::Gateway(0)];
    let block_of = |node: u32| u32::from(node != 0);
    Tables {
        generation: 1,
        ports: Arc::new(PortTable::new(pods.chain([(UPLINK, port(PortKind::Uplink, UPLINK_MAC))]))),
        fdb: Arc::new(Fdb::new((0..PODS).map(|pod| (pod_mac(pod), fdb_entry(pod)))).0),
        fib4: Arc::new(Fib::new((0..15_000).map(|node| (0x0a00_0000 + (node << 8), 24, block_of(node))))),
        fib6: Arc::new(Fib::new(
            (0..15_000_u32).map(|node| ((0xfd00_0010_0244 << 80) + (u128::from(node) << 64), 64, block_of(node))),
        )),
        next_hops: Arc::new(next_hops.map(|action| NextHop { action, mtu: u32::MAX }).to_vec()),
        hosts: Arc::new(hosts),
        adjacencies: Arc::new(adjacencies),
        guards: Arc::default(),
        cluster: Arc::new(
            Cluster::new([(Ipv4Addr::new(10, 0, 0, 0), 8)], [("fd00:10:244::".parse().expect("an address"), 48)])
                .expect("two CIDRs"),
        ),
        routing: Default::default(),
        tap: None,
    }
}

/// A frame of 64 bytes of UDP.
pub fn frame(destination_mac: MacAddr, source_mac: MacAddr, addresses: (&[u8], &[u8])) -> Vec<u8> {
    let (source, destination) = addresses;
    let payload = 22_u16;
    let l4_bytes = 8 + payload;
    let mut frame = [&destination_mac.octets()[..], &source_mac.octets()].concat();
    if source.len() == 4 {
        frame.extend([0x08, 0x00, 0x45, 0, 0, 20 + l4_bytes as u8, 0, 0, 0x40, 0, 64, 17, 0, 0]);
        frame.extend([source, destination].concat());
        let mut sum = checksum::Sum::new();
        sum.add(&frame[14..34]);
        let sum = sum.checksum().to_be_bytes();
        frame[24..26].copy_from_slice(&sum);
    } else {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, l4_bytes as u8, 17, 64]);
        frame.extend([source, destination].concat());
    }
    frame.extend([0x9c, 0x40, 0x00, 0x35, 0, l4_bytes as u8, 0x12, 0x34]);
    frame.resize(frame.len() + usize::from(payload), 0x55);
    frame
}

/// Frames of one kind of traffic.
pub struct Kind {
    pub name: &'static str,
    pub ingress: PortId,
    /// A batch of them.
    pub frames: Vec<Vec<u8>>,
    /// Why they are the kernel's; `None` for those that Podlane forwards.
    pub passed: Option<PassReason>,
}

fn kind(name: &'static str, ingress: PortId, passed: Option<PassReason>, make: impl FnMut(usize) -> Vec<u8>) -> Kind {
    Kind { name, ingress, frames: (0..limits::BATCH).map(make).collect(), passed }
}

fn other(random: &mut Random) -> u16 {
    1 + random.below(usize::from(PODS) - 1) as u16
}

fn far4(random: &mut Random) -> [u8; 4] {
    (0x0a00_0002 + ((1 + random.below(14_999) as u32) << 8)).to_be_bytes()
}

fn far6(random: &mut Random) -> [u8; 16] {
    ((0xfd00_0010_0244_u128 << 80) + ((1 + random.below(14_999) as u128) << 64) + 2).to_be_bytes()
}

/// Batches of 64 frames of every kind that is forwarded, out of the first pod or into the node.
pub fn forwarded(random: &mut Random) -> Vec<Kind> {
    let (source, own4, own6) = (PortId(0), pod_address4(0).octets(), pod_address6(0).octets());
    let gateway = MacAddr::new([2; 6]);
    vec![
        kind("bridge-ipv4", source, None, |_| {
            let pod = other(random);
            frame(pod_mac(pod), pod_mac(0), (&own4, &pod_address4(pod).octets()))
        }),
        kind("bridge-ipv6", source, None, |_| {
            let pod = other(random);
            frame(pod_mac(pod), pod_mac(0), (&own6, &pod_address6(pod).octets()))
        }),
        kind("route-out-ipv4", source, None, |_| frame(BRIDGE_MAC, pod_mac(0), (&own4, &far4(random)))),
        kind("route-out-ipv6", source, None, |_| frame(BRIDGE_MAC, pod_mac(0), (&own6, &far6(random)))),
        kind("route-in-ipv4", UPLINK, None, |_| {
            let pod = other(random);
            frame(UPLINK_MAC, gateway, (&far4(random), &pod_address4(pod).octets()))
        }),
        kind("route-in-ipv6", UPLINK, None, |_| {
            let pod = other(random);
            frame(UPLINK_MAC, gateway, (&far6(random), &pod_address6(pod).octets()))
        }),
    ]
}

/// Batches of 64 frames of kinds that go to the kernel, some found while parsing and some while deciding.
pub fn passed(random: &mut Random) -> Vec<Kind> {
    let (source, own4) = (PortId(0), pod_address4(0).octets());
    let bridged = |random: &mut Random| {
        let pod = other(random);
        frame(pod_mac(pod), pod_mac(0), (&own4, &pod_address4(pod).octets()))
    };
    let arp = [&[0xff; 6][..], &pod_mac(0).octets(), &[0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1], &[0; 36]].concat();
    vec![
        kind("pass-arp", source, Some(PassReason::Group), |_| arp.clone()),
        kind("pass-fragment", source, Some(PassReason::Fragment), |_| {
            let mut frame = bridged(random);
            // More fragments, in place of "don't fragment".
            frame[20] = 0x20;
            let mut sum = checksum::Sum::new();
            frame[24..26].fill(0);
            sum.add(&frame[14..34]);
            let sum = sum.checksum().to_be_bytes();
            frame[24..26].copy_from_slice(&sum);
            frame
        }),
        kind("pass-outside-cluster", source, Some(PassReason::OutsideCluster), |n| {
            frame(BRIDGE_MAC, pod_mac(0), (&own4, &[192, 0, 2, n as u8]))
        }),
        kind("pass-unknown-mac", source, Some(PassReason::UnknownMac), |n| {
            let pod = other(random);
            frame(MacAddr::new([2, 9, 9, 9, 9, n as u8]), pod_mac(0), (&own4, &pod_address4(pod).octets()))
        }),
        kind("pass-no-route", source, Some(PassReason::NoRoute), |n| {
            frame(BRIDGE_MAC, pod_mac(0), (&own4, &[10, 200, n as u8, 2]))
        }),
    ]
}
