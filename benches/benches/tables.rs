//! What tables cost: look-ups that hit and miss, changes, publication; beside the crates that one would take instead.
//!
//! `cargo bench -p podlane-benches --bench tables -- fib4` runs a part of it. Ours are compiled as a whole and published as a
//! whole, so that a look-up takes no lock: there, `change` is one route more in a table of that size, all work included. For the
//! crates `change` is one route put in and taken out again in place, which nobody could read meanwhile.

mod common;

use std::hint::black_box;
use std::sync::{Arc, RwLock};

use arc_swap::ArcSwap;
use common::*;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use dashmap::DashMap;
use podlane_dataplane::table::{Fdb, FdbEntry, Fib, FibKey, LinkId, channel};
use podlane_dataplane::{MacAddr, PortId, limits};
use poptrie::Poptrie;
use prefix_trie::PrefixMap;

const ROUTES: [usize; 4] = [10, 1_000, 15_000, 200_000];
/// The crate poptrie takes minutes to fill with more.
const MOST_FOR_POPTRIE: usize = 15_000;

fn fib_family<K>(
    criterion: &mut Criterion,
    family: &str,
    tables: &[(&str, usize, Routes<K>)],
    noise: fn(&mut Random) -> K,
) where
    K: FibKey + poptrie::Address,
    (K, u8): prefix_trie::Prefix,
{
    let bits = <K as FibKey>::BITS;
    let random = &mut Random(0x9e37_79b9_7f4a_7c15);
    let mut group = criterion.benchmark_group(family);
    for (shape, count, routes) in tables {
        let id = format!("{shape}/{count}");
        let fib = Fib::new(routes.iter().copied());
        println!("{family} {id}: {} KiB for look-ups, depth {}", fib.lookup_bytes() / 1024, fib.depth());
        let hits = hits(routes, random, noise);
        let misses: Vec<K> = (0..KEYS).map(|_| noise(random)).collect();
        group.bench_function(BenchmarkId::new("hit", &id), |b| per_item(b, &hits, |key| fib.lookup(*key)));
        group.bench_function(BenchmarkId::new("miss", &id), |b| per_item(b, &misses, |key| fib.lookup(*key)));
        group.bench_function(BenchmarkId::new("change", &id), |b| {
            per_item(b, &[routes], |routes| Fib::new(routes.iter().copied()));
        });

        let mut map: PrefixMap<(K, u8), u32> =
            routes.iter().map(|&(key, length, value)| ((key, length), value)).collect();
        group.bench_function(BenchmarkId::new("hit-prefix-trie", &id), |b| {
            per_item(b, &hits, |key| map.get_lpm(&(*key, bits)).map(|(_, value)| *value));
        });
        group.bench_function(BenchmarkId::new("change-prefix-trie", &id), |b| {
            per_item(b, &hits, |key| {
                map.insert((*key, bits), 7);
                map.remove(&(*key, bits))
            });
        });
        if *count > MOST_FOR_POPTRIE {
            continue;
        }
        let mut trie = Poptrie::new();
        for &(key, length, value) in routes {
            let block = if length == 0 { K::ZERO } else { !K::ZERO << u32::from(bits - length) };
            trie.insert((key & block, length), value);
        }
        group.bench_function(BenchmarkId::new("hit-poptrie", &id), |b| {
            per_item(b, &hits, |key| trie.lookup(*key).copied());
        });
        group.bench_function(BenchmarkId::new("change-poptrie", &id), |b| {
            per_item(b, &hits[..64], |key| {
                trie.insert((*key, bits), 7);
                trie.remove((*key, bits))
            });
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
    for count in [15_000, 200_000] {
        tables4.push(("internet", count, internet4(count, random)));
        tables6.push(("internet", count, internet6(count, random)));
    }
    fib_family(criterion, "fib4", &tables4, Random::address4);
    fib_family(criterion, "fib6", &tables6, Random::address6);
}

/// A map of MAC addresses for left-right.
#[derive(Clone, Default)]
struct Map(hashbrown::HashMap<u64, FdbEntry>);

/// Puts an entry in.
struct Put(u64, FdbEntry);

impl left_right::Absorb<Put> for Map {
    fn absorb_first(&mut self, Put(mac, entry): &mut Put, _: &Self) {
        self.0.insert(*mac, *entry);
    }

    fn sync_with(&mut self, first: &Self) {
        self.0.clone_from(&first.0);
    }
}

/// All peers find the same `pods` of one node.
fn fdb_peers(criterion: &mut Criterion, entries: &[(MacAddr, FdbEntry)], macs: &[MacAddr], strangers: &[MacAddr]) {
    let count = entries.len();
    let mut group = criterion.benchmark_group("fdb");
    let fdb = Fdb::new(entries.iter().copied()).0;
    group.bench_function(BenchmarkId::new("hit", count), |b| per_item(b, macs, |mac| fdb.get(*mac)));
    group.bench_function(BenchmarkId::new("miss", count), |b| per_item(b, strangers, |mac| fdb.get(*mac)));
    group.bench_function(BenchmarkId::new("change", count), |b| {
        per_item(b, &[entries], |entries| Fdb::new(entries.iter().copied()));
    });

    let map: hashbrown::HashMap<u64, FdbEntry> = entries.iter().map(|(mac, entry)| (mac.to_u64(), *entry)).collect();
    let locked = RwLock::new(map.clone());
    group.bench_function(BenchmarkId::new("hit-hashbrown-rwlock", count), |b| {
        per_item(b, macs, |mac| locked.read().expect("no panic").get(&mac.to_u64()).copied());
    });
    group.bench_function(BenchmarkId::new("change-hashbrown-rwlock", count), |b| {
        per_item(b, macs, |mac| locked.write().expect("no panic").insert(mac.to_u64(), fdb_entry(1)));
    });
    let swap = ArcSwap::from_pointee(map.clone());
    group.bench_function(BenchmarkId::new("hit-hashbrown-arc-swap", count), |b| {
        per_item(b, macs, |mac| swap.load().get(&mac.to_u64()).copied());
    });
    let dash: DashMap<u64, FdbEntry> = map.iter().map(|(mac, entry)| (*mac, *entry)).collect();
    group.bench_function(BenchmarkId::new("hit-dashmap", count), |b| {
        per_item(b, macs, |mac| dash.get(&mac.to_u64()).map(|entry| *entry));
    });
    group.bench_function(BenchmarkId::new("change-dashmap", count), |b| {
        per_item(b, macs, |mac| dash.insert(mac.to_u64(), fdb_entry(1)));
    });
    let (mut write, read) = left_right::new::<Map, Put>();
    for (mac, entry) in entries {
        write.append(Put(mac.to_u64(), *entry));
    }
    write.publish();
    group.bench_function(BenchmarkId::new("hit-left-right", count), |b| {
        per_item(b, macs, |mac| read.enter().and_then(|map| map.0.get(&mac.to_u64()).copied()));
    });
    group.bench_function(BenchmarkId::new("change-left-right", count), |b| {
        per_item(b, macs, |mac| {
            write.append(Put(mac.to_u64(), fdb_entry(1)));
            write.publish();
        });
    });
}

fn stations(criterion: &mut Criterion) {
    let random = &mut Random(3);
    let pods: Vec<u16> = (0..KEYS).map(|_| random.below(usize::from(PODS)) as u16).collect();
    let strangers: Vec<MacAddr> = (0..KEYS).map(|_| MacAddr::from_u64(random.next())).collect();
    let entries: Vec<_> = (0..PODS).map(|pod| (pod_mac(pod), fdb_entry(pod))).collect();
    let macs: Vec<MacAddr> = pods.iter().map(|&pod| pod_mac(pod)).collect();
    fdb_peers(criterion, &entries, &macs, &strangers);
    let entry = FdbEntry { port: PortId(1), is_static: false, activity: 0 };
    let mac = |number: usize| MacAddr::from_u64(0x0200_0000_0000 + number as u64 * 7);
    let entries: Vec<_> = (0..limits::MAX_FDB).map(|number| (mac(number), entry)).collect();
    let macs: Vec<MacAddr> = (0..KEYS).map(|_| mac(random.below(limits::MAX_FDB))).collect();
    fdb_peers(criterion, &entries, &macs, &strangers);

    let tables = node();
    let mut group = criterion.benchmark_group("hosts");
    let addresses4: Vec<_> = pods.iter().map(|&pod| pod_address4(pod)).collect();
    group.bench_function("hit4/250", |b| per_item(b, &addresses4, |ip| tables.hosts.get4(LinkId::BRIDGE, *ip)));
    let addresses6: Vec<_> = pods.iter().map(|&pod| pod_address6(pod)).collect();
    group.bench_function("hit6/250", |b| per_item(b, &addresses6, |ip| tables.hosts.get6(LinkId::BRIDGE, *ip)));
    let ports: Vec<_> = pods.iter().map(|&pod| PortId(pod)).collect();
    group.bench_function("port/250", |b| per_item(b, &ports, |port| tables.ports.get(*port).map(|port| port.mtu)));
}

/// What a reader pays for tables that can change under it, and what the writer pays to change them.
fn publication(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("publication");
    let (publisher, mut reader) = channel();
    publisher.publish(node());
    group.bench_function("read", |b| per_item(b, &[()], |()| reader.load().generation));
    group.bench_function("publish", |b| per_item(b, &[node()], |tables| publisher.publish(tables.clone())));
    group.bench_function("publish-and-read", |b| {
        per_item(b, &[node()], |tables| {
            publisher.publish(tables.clone());
            reader.load().generation
        });
    });
    let swap = ArcSwap::from_pointee(node());
    group.bench_function("read-arc-swap-guard", |b| per_item(b, &[()], |()| swap.load().generation));
    let lock = RwLock::new(Arc::new(node()));
    group.bench_function("read-rwlock", |b| per_item(b, &[()], |()| lock.read().expect("no panic").generation));
    let (mut write, read) = left_right::new::<Map, Put>();
    write.publish();
    group.bench_function("read-left-right", |b| per_item(b, &[()], |()| read.enter().map(|map| map.0.len())));
    group.bench_function("publish-left-right", |b| {
        per_item(b, &[()], |()| {
            write.append(Put(1, fdb_entry(1)));
            black_box(write.publish());
        });
    });
}

criterion_group! { name = benches; config = short(); targets = fib, stations, publication }
criterion_main!(benches);
