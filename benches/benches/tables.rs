//! What the parts of a forwarding decision cost, one item at a time out of many: look-ups, parsing, deciding, rewriting,
//! checksums; and what a table costs to compile.
//!
//! Every figure is time per item that this thread had a processor, so that what else runs on the machine counts little
//! (it still takes its share of the caches). Items differ from one to the next and do not depend on each other, as in a batch
//! of received packets. `cargo bench -p podlane-benches --bench tables -- fib4` runs a part of it.

use std::hint::black_box;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use criterion::{Bencher, BenchmarkId, Criterion, criterion_group, criterion_main};
use nix::time::{ClockId, clock_gettime};
use podlane_dataplane::forward::{Rewrite, Verdict, decide};
use podlane_dataplane::packet::{Headers, checksum, parse, rewrite};
use podlane_dataplane::table::{
    Adjacency, Cluster, Fdb, FdbEntry, Fib, FibKey, HostTable, LinkId, NextHop, NextHopAction, Path, Port, PortKind,
    PortTable, Tables,
};
use podlane_dataplane::{MacAddr, PortId, limits};

/// Look-ups are done for this many different keys in turn, so that branch prediction cannot learn them.
const KEYS: usize = 1 << 15;
const ROUTES: [usize; 4] = [10, 1_000, 15_000, 200_000];
const PODS: u16 = 100;
const BRIDGE_MAC: MacAddr = MacAddr::new([2, 0xcb, 0, 0, 0, 0]);
const UPLINK_MAC: MacAddr = MacAddr::new([2, 0xee, 0, 0, 0, 0]);
const UPLINK: PortId = PortId(PODS);

/// A xorshift generator: the same numbers on every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn address4(&mut self) -> u32 {
        self.next() as u32
    }

    fn address6(&mut self) -> u128 {
        u128::from(self.next()) << 64 | u128::from(self.next())
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.next() as usize % from.len()]
    }
}

/// Processor time of this thread.
fn thread_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("Linux has this clock").into()
}

/// Times `work` per item.
fn per_item<T, R>(bencher: &mut Bencher<'_>, items: &[T], mut work: impl FnMut(&T) -> R) {
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

type Routes<K> = Vec<(K, u8, u32)>;

/// One block per node, side by side, and a default route: what a cluster has.
fn node_blocks4(count: usize) -> Routes<u32> {
    (0..count as u32).map(|node| (0x0a00_0000 + (node << 8), 24, node)).chain([(0, 0, 1)]).collect()
}

fn node_blocks6(count: usize) -> Routes<u128> {
    (0..count as u128)
        .map(|node| ((0xfd00_0010_0244 << 80) + (node << 64), 64, node as u32))
        .chain([(0, 0, 1)])
        .collect()
}

/// Blocks and single hosts scattered over 10.0.0.0/8: what moving pods and small blocks make of it.
fn scattered4(count: usize, random: &mut Random) -> Routes<u32> {
    let route = |number| {
        let length = random.pick(&[24, 24, 26, 26, 26, 26, 32, 32]);
        (0x0a00_0000 | random.address4() & 0x00ff_ffff, length, number)
    };
    (0..count as u32).map(route).collect()
}

fn scattered6(count: usize, random: &mut Random) -> Routes<u128> {
    let route = |number| {
        let length = random.pick(&[64, 64, 112, 122, 122, 122, 128, 128]);
        let noise = random.address6() & ((1 << 80) - 1);
        ((0xfd00_0010_0244 << 80) | noise, length, number)
    };
    (0..count as u32).map(route).collect()
}

/// Addresses that some route other than the default covers, all routes being equally popular.
fn hits<K: FibKey>(routes: &[(K, u8, u32)], random: &mut Random, noise: fn(&mut Random) -> K) -> Vec<K> {
    (0..KEYS)
        .map(|_| {
            let (prefix, length, _) = random.pick(routes);
            let block = if length == 0 { K::ZERO } else { !K::ZERO << u32::from(K::BITS - length) };
            prefix & block | noise(random) & !block
        })
        .collect()
}

fn fib_family<K: FibKey>(
    criterion: &mut Criterion,
    family: &str,
    tables: &[(&str, usize, Routes<K>)],
    noise: fn(&mut Random) -> K,
) {
    let random = &mut Random(0x9e37_79b9_7f4a_7c15);
    let mut group = criterion.benchmark_group(family);
    for (shape, count, routes) in tables {
        let fib = Fib::new(routes.iter().copied());
        let id = format!("{shape}/{count}");
        println!("{family} {id}: {} KiB for look-ups, depth {}", fib.lookup_bytes() / 1024, fib.depth());
        let hits = hits(routes, random, noise);
        group.bench_function(BenchmarkId::new("hit", &id), |b| per_item(b, &hits, |key| fib.lookup(*key)));
        let misses: Vec<K> = (0..KEYS).map(|_| noise(random)).collect();
        group.bench_function(BenchmarkId::new("miss", &id), |b| per_item(b, &misses, |key| fib.lookup(*key)));
        group.bench_function(BenchmarkId::new("compile", &id), |b| {
            per_item(b, &[routes], |routes| Fib::new(routes.iter().copied()));
        });
    }
}

fn fib(criterion: &mut Criterion) {
    let random = &mut Random(88_172_645_463_325_252);
    let mut tables4 = Vec::new();
    let mut tables6 = Vec::new();
    for count in ROUTES {
        // A /8 holds 65,536 blocks of /24.
        tables4.push(("node-blocks", count.min(65_535), node_blocks4(count.min(65_535))));
        tables4.push(("scattered", count, scattered4(count, random)));
        tables6.push(("node-blocks", count, node_blocks6(count)));
        tables6.push(("scattered", count, scattered6(count, random)));
    }
    fib_family(criterion, "fib4", &tables4, Random::address4);
    fib_family(criterion, "fib6", &tables6, Random::address6);
}

fn pod_mac(pod: u16) -> MacAddr {
    let [high, low] = pod.to_be_bytes();
    MacAddr::new([2, 0, 10, 244, high, low])
}

fn pod_address4(pod: u16) -> Ipv4Addr {
    let [high, low] = (pod + 2).to_be_bytes();
    Ipv4Addr::new(10, 0, high, low)
}

fn pod_address6(pod: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, pod + 2)
}

/// A node with 100 pods in a cluster of 15,000 nodes.
fn node() -> Tables {
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
    let fdb_entry = |pod| FdbEntry { port: PortId(pod), is_static: false, activity: u32::from(pod) };
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
        cluster: Arc::new(
            Cluster::new([(Ipv4Addr::new(10, 0, 0, 0), 8)], [("fd00:10:244::".parse().expect("an address"), 48)])
                .expect("two CIDRs"),
        ),
        routing: Default::default(),
        tap: None,
    }
}

/// A frame of 64 bytes of UDP from the first pod.
fn frame(destination_mac: MacAddr, source_mac: MacAddr, addresses: (&[u8], &[u8])) -> Vec<u8> {
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

/// Batches of 64 frames of one kind: (name, ingress, frames).
fn batches(random: &mut Random) -> Vec<(&'static str, PortId, Vec<Vec<u8>>)> {
    let source = PortId(0);
    let mut batches = Vec::new();
    let mut batch = |name, ingress, mut make: Box<dyn FnMut() -> Vec<u8> + '_>| {
        batches.push((name, ingress, (0..limits::BATCH).map(|_| make()).collect()));
    };
    let other = |random: &mut Random| 1 + (random.next() % u64::from(PODS - 1)) as u16;
    let (own4, own6) = (pod_address4(0).octets(), pod_address6(0).octets());
    batch(
        "bridge-ipv4",
        source,
        Box::new(|| {
            let pod = other(random);
            frame(pod_mac(pod), pod_mac(0), (&own4, &pod_address4(pod).octets()))
        }),
    );
    batch(
        "bridge-ipv6",
        source,
        Box::new(|| {
            let pod = other(random);
            frame(pod_mac(pod), pod_mac(0), (&own6, &pod_address6(pod).octets()))
        }),
    );
    batch(
        "route-out-ipv4",
        source,
        Box::new(|| {
            let address = 0x0a00_0002 + ((1 + random.address4() % 14_999) << 8);
            frame(BRIDGE_MAC, pod_mac(0), (&own4, &address.to_be_bytes()))
        }),
    );
    batch(
        "route-out-ipv6",
        source,
        Box::new(|| {
            let node = 1 + random.address6() % 14_999;
            let address = (0xfd00_0010_0244_u128 << 80) + (node << 64) + 2;
            frame(BRIDGE_MAC, pod_mac(0), (&own6, &address.to_be_bytes()))
        }),
    );
    batch(
        "route-in-ipv4",
        UPLINK,
        Box::new(|| {
            let pod = other(random);
            frame(UPLINK_MAC, MacAddr::new([2; 6]), (&[10, 0, 9, 9], &pod_address4(pod).octets()))
        }),
    );
    batch(
        "route-in-ipv6",
        UPLINK,
        Box::new(|| {
            let pod = other(random);
            let far = (0xfd00_0010_0244_u128 << 80) + (9 << 64) + 9;
            frame(UPLINK_MAC, MacAddr::new([2; 6]), (&far.to_be_bytes(), &pod_address6(pod).octets()))
        }),
    );
    batches
}

fn small_tables(criterion: &mut Criterion) {
    let tables = node();
    let random = &mut Random(3);
    let pods: Vec<u16> = (0..KEYS).map(|_| (random.next() % u64::from(PODS)) as u16).collect();
    let mut group = criterion.benchmark_group("hash-tables");
    let macs: Vec<MacAddr> = pods.iter().map(|&pod| pod_mac(pod)).collect();
    group.bench_function("fdb/hit/100", |b| per_item(b, &macs, |mac| tables.fdb.get(*mac)));
    let strangers: Vec<MacAddr> = (0..KEYS).map(|_| MacAddr::from_u64(random.next())).collect();
    group.bench_function("fdb/miss/100", |b| per_item(b, &strangers, |mac| tables.fdb.get(*mac)));
    let large = (0..limits::MAX_FDB as u64).map(|number| {
        (MacAddr::from_u64(0x0200_0000_0000 + number * 7), FdbEntry { port: PortId(1), is_static: false, activity: 0 })
    });
    let large = Fdb::new(large).0;
    let macs: Vec<MacAddr> =
        (0..KEYS).map(|_| MacAddr::from_u64(0x0200_0000_0000 + random.next() % limits::MAX_FDB as u64 * 7)).collect();
    group.bench_function("fdb/hit/16384", |b| per_item(b, &macs, |mac| large.get(*mac)));
    group.bench_function("hosts4/hit/100", |b| {
        per_item(b, &pods, |&pod| tables.hosts.get4(LinkId::BRIDGE, pod_address4(pod)));
    });
    group.bench_function("hosts6/hit/100", |b| {
        per_item(b, &pods, |&pod| tables.hosts.get6(LinkId::BRIDGE, pod_address6(pod)));
    });
}

fn frames(criterion: &mut Criterion) {
    let tables = node();
    for (name, ingress, batch) in batches(&mut Random(5)) {
        let mut group = criterion.benchmark_group(name);
        let parsed: Vec<Headers> =
            batch.iter().map(|frame| parse(frame, frame.len() as u32).expect("an ordinary frame")).collect();
        for headers in &parsed {
            assert!(matches!(decide(headers, ingress, &tables), Verdict::Forward { .. }), "{name}: {headers:?}");
        }
        group.bench_function("parse", |b| per_item(b, &batch, |frame| parse(frame, frame.len() as u32)));
        group.bench_function("decide", |b| per_item(b, &parsed, |headers| decide(headers, ingress, &tables)));
        let mut work = batch.clone();
        let mut next = 0;
        group.bench_function("parse+decide+rewrite", |b| {
            per_item(b, &batch, |frame| {
                let headers = parse(frame, frame.len() as u32).ok()?;
                let verdict = decide(&headers, ingress, &tables);
                next = (next + 1) % work.len();
                if let Verdict::Forward { rewrite: Rewrite::Route { destination, source }, .. } = verdict {
                    rewrite::route(&mut work[next], &headers, destination, source);
                }
                Some(verdict)
            });
        });
        group.bench_function("partial-checksum", |b| {
            let both: Vec<_> = batch.iter().zip(&parsed).collect();
            per_item(b, &both, |(frame, headers)| rewrite::partial_checksum(frame, headers));
        });
    }
}

fn checksums(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("checksum");
    let headers = [[0x45_u8; 20]; 64];
    group.bench_function("ipv4-header", |b| per_item(b, &headers, checksum::ipv4_header_is_right));
    for bytes in [64, 1_480, 65_000] {
        let data = [vec![0x5a_u8; bytes]];
        group.bench_function(BenchmarkId::new("sum", bytes), |b| {
            per_item(b, &data, |data| {
                let mut sum = checksum::Sum::new();
                sum.add(data);
                sum.fold()
            });
        });
    }
}

fn short() -> Criterion {
    Criterion::default()
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600))
        .sample_size(20)
        .without_plots()
}

criterion_group! { name = benches; config = short(); targets = fib, small_tables, frames, checksums }
criterion_main!(benches);
