//! Writing snapshots into the BPF maps: only the difference to what is there, into the copy that no program reads, which is
//! made current when it is complete.
//!
//! The maps have one writer, so what they hold is known without reading them back: every table keeps a note of what was
//! successfully written. A call that fails half-way leaves that note true and the old snapshot in force, and the next call
//! goes on from there.

use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::os::fd::AsFd;
use std::sync::Arc;

use hashbrown::HashMap;
use libbpf_rs::{ErrorKind, MapCore, MapFlags, MapHandle};
use podlane_dataplane::table::{Guard, Tables};
use podlane_dataplane::{MacAddr, PortId, limits};

use super::error::BpfError;
use super::generation::Generations;
use super::layout::{self, COPIES};

/// How much a call of [`super::Steering::sync`] wrote.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Writes {
    /// Entries that were added or changed.
    pub updated: usize,
    /// Entries that were removed.
    pub removed: usize,
}

/// The map of a keyed table and what is in it.
#[derive(Debug)]
struct Keyed<const K: usize, const V: usize> {
    map: Arc<MapHandle>,
    table: &'static str,
    /// Key to value and the round of planning that last saw it.
    written: HashMap<[u8; K], ([u8; V], u32)>,
    round: u32,
}

/// What has to happen to a keyed table. Empty: nothing.
#[derive(Debug)]
struct Changes<const K: usize, const V: usize> {
    put: Vec<([u8; K], [u8; V])>,
    added: usize,
    remove: Vec<[u8; K]>,
}

impl<const K: usize, const V: usize> Default for Changes<K, V> {
    fn default() -> Self {
        Changes { put: Vec::new(), added: 0, remove: Vec::new() }
    }
}

impl<const K: usize, const V: usize> Keyed<K, V>
where
    [u8; K]: Hash + Eq,
{
    fn new(map: &Arc<MapHandle>, table: &'static str) -> Result<Self, BpfError> {
        check_sizes(map, K, V)?;
        Ok(Keyed { map: Arc::clone(map), table, written: HashMap::new(), round: 0 })
    }

    /// Notes what an earlier writer has left of copy `copy`; `copy_of` tells the copy of a key.
    fn adopt(&mut self, left: &[Element<K, V>], copy: usize, copy_of: impl Fn(&[u8; K]) -> usize) {
        let own = left.iter().filter(|(key, _)| copy_of(key) == copy);
        self.written = own.map(|(key, value)| (*key, (*value, self.round))).collect();
    }

    /// Entries of one copy at most.
    fn limit(&self) -> usize {
        self.map.max_entries() as usize / COPIES
    }

    /// Compares with what is written; refuses more entries than fit.
    fn plan(&mut self, entries: impl Iterator<Item = ([u8; K], [u8; V])>) -> Result<Changes<K, V>, BpfError> {
        self.round = self.round.wrapping_add(1);
        let mut changes = Changes::default();
        let mut kept = 0;
        for (key, value) in entries {
            match self.written.get_mut(&key) {
                None => {
                    changes.added += 1;
                    changes.put.push((key, value));
                }
                Some((old, round)) => {
                    kept += usize::from(*round != self.round);
                    *round = self.round;
                    if *old != value {
                        changes.put.push((key, value));
                    }
                }
            }
        }
        let (count, limit) = (kept + changes.added, self.limit());
        if count > limit {
            return Err(BpfError::Full { table: self.table, count, limit });
        }
        if kept < self.written.len() {
            let stale = self.written.iter().filter(|(_, (_, round))| *round != self.round);
            changes.remove = stale.map(|(key, _)| *key).collect();
        }
        Ok(changes)
    }

    /// The same for a table whose rows have an order, from the rows that are written, which the caller knows: one walk along
    /// both, instead of a look-up for each row. `entry` makes key and value of a row.
    fn plan_ordered<R: Copy, O: Ord>(
        &self,
        written: impl ExactSizeIterator<Item = R>,
        rows: impl ExactSizeIterator<Item = R>,
        order: impl Fn(R) -> O,
        entry: impl Fn(R) -> ([u8; K], [u8; V]),
    ) -> Result<Changes<K, V>, BpfError> {
        let (count, limit) = (rows.len(), self.limit());
        if count > limit {
            return Err(BpfError::Full { table: self.table, count, limit });
        }
        let mut changes = Changes::default();
        let mut written = written.peekable();
        for row in rows {
            while let Some(old) = written.next_if(|old| order(*old) < order(row)) {
                changes.remove.push(entry(old).0);
            }
            match written.next_if(|old| order(*old) == order(row)).map(&entry) {
                None => {
                    changes.added += 1;
                    changes.put.push(entry(row));
                }
                Some(old) if old != entry(row) => changes.put.push(entry(row)),
                Some(_) => {}
            }
        }
        changes.remove.extend(written.map(|old| entry(old).0));
        Ok(changes)
    }

    /// Adds and changes. In a map that is too full to hold old and new entries together, the old ones go first.
    fn put(&mut self, changes: &mut Changes<K, V>, writes: &mut Writes) -> Result<(), BpfError> {
        if self.written.len() + changes.added > self.limit() {
            self.remove(changes, writes)?;
        }
        for (key, value) in &changes.put {
            self.map.update(key, value, MapFlags::ANY).map_err(|source| self.failed(source))?;
            self.written.insert(*key, (*value, self.round));
            writes.updated += 1;
        }
        Ok(())
    }

    fn remove(&mut self, changes: &mut Changes<K, V>, writes: &mut Writes) -> Result<(), BpfError> {
        for key in changes.remove.drain(..) {
            match self.map.delete(&key) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(self.failed(error)),
                _ => writes.removed += 1,
            }
            self.written.remove(&key);
        }
        Ok(())
    }

    fn failed(&self, source: libbpf_rs::Error) -> BpfError {
        BpfError::Map { table: self.table, source }
    }
}

/// The map of a table whose keys are its indices, and what is in it. A slot of zeros is empty.
#[derive(Debug)]
struct Slots<const V: usize> {
    map: Arc<MapHandle>,
    table: &'static str,
    copy: usize,
    written: Vec<[u8; V]>,
}

/// What has to happen to an indexed table: slots to fill, and slots to empty. Empty: nothing.
#[derive(Debug, Default)]
struct SlotChanges<const V: usize> {
    put: Vec<(usize, [u8; V])>,
    clear: Vec<usize>,
}

impl<const V: usize> Slots<V> {
    fn new(map: &Arc<MapHandle>, table: &'static str, copy: usize) -> Result<Self, BpfError> {
        check_sizes(map, 4, V)?;
        Ok(Slots { map: Arc::clone(map), table, copy, written: Vec::new() })
    }

    /// Notes what an earlier writer has left.
    fn adopt(&mut self, left: &[Element<4, V>]) {
        let limit = self.limit();
        let own = left.iter().map(|(_, value)| *value).skip(self.copy * limit).take(limit);
        self.written = own.collect();
        while self.written.last() == Some(&[0; V]) {
            self.written.pop();
        }
    }

    /// Slots of one copy.
    fn limit(&self) -> usize {
        self.map.max_entries() as usize / COPIES
    }

    fn plan(&mut self, slots: impl Iterator<Item = [u8; V]>) -> Result<SlotChanges<V>, BpfError> {
        let mut changes = SlotChanges::default();
        let mut count = 0;
        for (index, value) in slots.enumerate() {
            count = index + 1;
            let old = self.written.get(index).unwrap_or(&[0; V]);
            if *old == value {
                continue;
            }
            if value == [0; V] { changes.clear.push(index) } else { changes.put.push((index, value)) }
        }
        let limit = self.limit();
        if count > limit {
            return Err(BpfError::Full { table: self.table, count, limit });
        }
        changes.clear.extend((count..self.written.len()).filter(|&index| self.written[index] != [0; V]));
        Ok(changes)
    }

    fn put(&mut self, changes: &SlotChanges<V>, writes: &mut Writes) -> Result<(), BpfError> {
        for (index, value) in &changes.put {
            self.write(*index, *value)?;
            writes.updated += 1;
        }
        Ok(())
    }

    fn clear(&mut self, changes: &SlotChanges<V>, writes: &mut Writes) -> Result<(), BpfError> {
        for &index in &changes.clear {
            self.write(index, [0; V])?;
            writes.removed += 1;
        }
        Ok(())
    }

    fn write(&mut self, index: usize, value: [u8; V]) -> Result<(), BpfError> {
        let table = self.table;
        let slot = self.copy * self.limit() + index;
        let updated = self.map.update(&(slot as u32).to_ne_bytes(), &value, MapFlags::ANY);
        updated.map_err(|source| BpfError::Map { table, source })?;
        if self.written.len() <= index {
            self.written.resize(index + 1, [0; V]);
        }
        self.written[index] = value;
        Ok(())
    }
}

/// Refuses a map whose keys and values are not of the expected sizes.
pub(super) fn check_sizes(map: &MapHandle, key: usize, value: usize) -> Result<(), BpfError> {
    let (found, expected) = (map.key_size() + map.value_size(), (key + value) as u32);
    if map.key_size() as usize == key && map.value_size() as usize == value {
        return Ok(());
    }
    Err(BpfError::Layout { map: map.name().to_string_lossy().into_owned(), found, expected })
}

/// A key and its value.
type Element<const K: usize, const V: usize> = ([u8; K], [u8; V]);

/// All elements of a map. Nobody else writes it.
fn read<const K: usize, const V: usize>(map: &MapHandle) -> Result<Vec<Element<K, V>>, BpfError> {
    check_sizes(map, K, V)?;
    if let Ok((keys, values)) = super::sys::read_map(map.as_fd(), K, V, map.max_entries() as usize) {
        let pairs = keys.as_chunks::<K>().0.iter().copied().zip(values.as_chunks::<V>().0.iter().copied());
        return Ok(pairs.collect());
    }
    // A kernel that cannot read this type at once.
    let failed = |source| BpfError::Map { table: "tables of an earlier daemon", source };
    let mut left = Vec::new();
    for key in map.keys() {
        let value = map.lookup(&key, MapFlags::ANY).map_err(failed)?;
        if let (Ok(key), Some(Ok(value))) = (key.try_into(), value.map(TryInto::try_into)) {
            left.push((key, value));
        }
    }
    Ok(left)
}

/// The maps that mirror snapshots.
#[derive(Debug)]
pub(super) struct MirroredMaps {
    pub generations: Arc<MapHandle>,
    pub near_interfaces: Arc<MapHandle>,
    pub interfaces: Arc<MapHandle>,
    pub ports: Arc<MapHandle>,
    pub guards: Arc<MapHandle>,
    pub near_stations: Arc<MapHandle>,
    pub fdb: Arc<MapHandle>,
    pub hosts4: Arc<MapHandle>,
    pub hosts6: Arc<MapHandle>,
    pub adjacencies: Arc<MapHandle>,
    pub next_hops: Arc<MapHandle>,
    pub fib4: Arc<MapHandle>,
    pub fib6: Arc<MapHandle>,
    pub nodes: Arc<MapHandle>,
}

/// The maps and what is in them.
#[derive(Debug)]
pub(super) struct Mirrored {
    pub(super) maps: MirroredMaps,
    pub(super) generations: Generations,
    copies: [Snapshot; COPIES],
    /// Of `struct node`.
    secret: u64,
}

/// One copy of every table.
#[derive(Debug)]
struct Snapshot {
    copy: usize,
    near_interfaces: Slots<{ layout::PORT_BYTES }>,
    interfaces: Keyed<4, 4>,
    ports: Slots<{ layout::PORT_BYTES }>,
    guards: Slots<{ layout::GUARD_BYTES }>,
    near_stations: Slots<{ layout::NEAR_STATION_BYTES }>,
    fdb: Keyed<8, 8>,
    hosts4: Keyed<8, 4>,
    hosts6: Keyed<20, 4>,
    adjacencies: Slots<{ layout::ADJACENCY_BYTES }>,
    next_hops: Slots<{ layout::NEXT_HOP_BYTES }>,
    fib4: Keyed<12, 4>,
    fib6: Keyed<24, 4>,
    node: Slots<{ layout::NODE_BYTES }>,
    /// The snapshot that was last written to it completely: parts that are still the same need no look.
    last: Option<Tables>,
}

/// The changes of every table.
#[derive(Default)]
struct Plan {
    near_interfaces: SlotChanges<{ layout::PORT_BYTES }>,
    interfaces: Changes<4, 4>,
    ports: SlotChanges<{ layout::PORT_BYTES }>,
    guards: SlotChanges<{ layout::GUARD_BYTES }>,
    near_stations: SlotChanges<{ layout::NEAR_STATION_BYTES }>,
    fdb: Changes<8, 8>,
    hosts4: Changes<8, 4>,
    hosts6: Changes<20, 4>,
    adjacencies: SlotChanges<{ layout::ADJACENCY_BYTES }>,
    next_hops: SlotChanges<{ layout::NEXT_HOP_BYTES }>,
    fib4: Changes<12, 4>,
    fib6: Changes<24, 4>,
    node: SlotChanges<{ layout::NODE_BYTES }>,
}

impl Mirrored {
    pub(super) fn new(maps: MirroredMaps) -> Result<Self, BpfError> {
        let generations = Generations::map(&maps.generations)?;
        let copies = [Snapshot::new(&maps, 0)?, Snapshot::new(&maps, 1)?];
        // What the standard library gives hash tables is the operating system's random number.
        let secret = RandomState::new().build_hasher().finish() | 1;
        Ok(Mirrored { maps, generations, copies, secret })
    }

    /// Begins with what an earlier writer has left in the maps, complete or not: generations go on from its, what it has put
    /// in force stays so until the next snapshot is written, and nothing that it wrote stays behind then.
    pub(super) fn adopt(&mut self) -> Result<(), BpfError> {
        let maps = &self.maps;
        let near_interfaces = read(&maps.near_interfaces)?;
        let interfaces = read(&maps.interfaces)?;
        let ports = read(&maps.ports)?;
        let guards = read(&maps.guards)?;
        let near_stations = read(&maps.near_stations)?;
        let fdb = read(&maps.fdb)?;
        let (hosts4, hosts6) = (read(&maps.hosts4)?, read(&maps.hosts6)?);
        let (adjacencies, next_hops) = (read(&maps.adjacencies)?, read(&maps.next_hops)?);
        let (fib4, fib6) = (read(&maps.fib4)?, read(&maps.fib6)?);
        let nodes = read(&maps.nodes)?;
        let word = |bytes: &[u8]| bytes.first_chunk().map_or(0, |word| u32::from_ne_bytes(*word)) as usize;
        for (copy, snapshot) in self.copies.iter_mut().enumerate() {
            snapshot.near_interfaces.adopt(&near_interfaces);
            snapshot.interfaces.adopt(&interfaces, copy, |key| word(key) % COPIES);
            snapshot.ports.adopt(&ports);
            snapshot.guards.adopt(&guards);
            snapshot.near_stations.adopt(&near_stations);
            snapshot.fdb.adopt(&fdb, copy, |key| usize::from(key[0]));
            snapshot.hosts4.adopt(&hosts4, copy, |key| word(key) % COPIES);
            snapshot.hosts6.adopt(&hosts6, copy, |key| word(key) % COPIES);
            snapshot.adjacencies.adopt(&adjacencies);
            snapshot.next_hops.adopt(&next_hops);
            snapshot.fib4.adopt(&fib4, copy, |key| word(&key[4..]));
            snapshot.fib6.adopt(&fib6, copy, |key| word(&key[4..]));
            snapshot.node.adopt(&nodes);
            if let Some(secret) = snapshot.node.written.first().map(layout::secret).filter(|secret| *secret != 0) {
                self.secret = secret;
            }
        }
        Ok(())
    }

    /// The ports of the snapshot in force, as it was found: interface and number.
    pub(super) fn ports_in_force(&self) -> Vec<(u32, PortId)> {
        let ports = &self.copies[self.generations.current() as usize % COPIES].ports.written;
        let numbered = ports.iter().enumerate().filter(|(_, port)| **port != [0; layout::PORT_BYTES]);
        numbered.map(|(number, port)| (layout::port_ifindex(port), PortId(number as u16))).collect()
    }

    /// The guards of that snapshot, by their ports' interfaces.
    pub(super) fn guards_in_force(&self) -> Vec<(u32, Guard)> {
        let snapshot = &self.copies[self.generations.current() as usize % COPIES];
        let guard = |(number, port)| {
            let guard = snapshot.guards.written.get(number).unwrap_or(&[0; layout::GUARD_BYTES]);
            Some((layout::port_ifindex(port), layout::written_guard(port, guard)?))
        };
        snapshot.ports.written.iter().enumerate().filter_map(guard).collect()
    }

    /// Writes `tables` into the copy that is not current and makes it current.
    pub(super) fn sync(&mut self, tables: &Tables) -> Result<Writes, BpfError> {
        let generation = self.generations.current() + 1;
        let snapshot = &mut self.copies[generation as usize % COPIES];
        let mut plan = snapshot.plan(tables, self.secret)?;
        let mut writes = Writes::default();
        self.generations.begin(generation);
        snapshot.put(&mut plan, &mut writes)?;
        snapshot.remove(&mut plan, &mut writes)?;
        snapshot.last = Some(tables.clone());
        self.generations.make_current(generation);
        Ok(writes)
    }
}

impl Snapshot {
    fn new(maps: &MirroredMaps, copy: usize) -> Result<Self, BpfError> {
        Ok(Snapshot {
            copy,
            near_interfaces: Slots::new(&maps.near_interfaces, "interfaces", copy)?,
            interfaces: Keyed::new(&maps.interfaces, "interfaces")?,
            ports: Slots::new(&maps.ports, "ports", copy)?,
            guards: Slots::new(&maps.guards, "guards", copy)?,
            near_stations: Slots::new(&maps.near_stations, "MAC addresses", copy)?,
            fdb: Keyed::new(&maps.fdb, "MAC addresses in the forwarding database")?,
            hosts4: Keyed::new(&maps.hosts4, "IPv4 neighbours")?,
            hosts6: Keyed::new(&maps.hosts6, "IPv6 neighbours")?,
            adjacencies: Slots::new(&maps.adjacencies, "adjacencies", copy)?,
            next_hops: Slots::new(&maps.next_hops, "next hops", copy)?,
            fib4: Keyed::new(&maps.fib4, "IPv4 routes")?,
            fib6: Keyed::new(&maps.fib6, "IPv6 routes")?,
            node: Slots::new(&maps.nodes, "settings of the node", copy)?,
            last: None,
        })
    }

    /// Compares the parts that are not the very same as when this copy was last written.
    fn plan(&mut self, tables: &Tables, secret: u64) -> Result<Plan, BpfError> {
        let mut plan = Plan::default();
        let copy = self.copy;
        let last = self.last.take();
        let last = last.as_ref();
        let same_ports = last.is_some_and(|last| Arc::ptr_eq(&last.ports, &tables.ports));
        let same_guards = last.is_some_and(|last| Arc::ptr_eq(&last.guards, &tables.guards));
        if !same_guards {
            let count = tables.guards.iter().last().map_or(0, |(id, _)| id.index() + 1);
            let mut slots = vec![[0; layout::GUARD_BYTES]; count];
            tables.guards.iter().for_each(|(id, guard)| slots[id.index()] = layout::guard(guard));
            plan.guards = self.guards.plan(slots.into_iter())?;
        }
        let same_stations = last.is_some_and(|last| Arc::ptr_eq(&last.fdb, &tables.fdb));
        if !same_ports || !same_guards || !same_stations {
            let stations = only_stations(tables);
            let count = tables.ports.iter().last().map_or(0, |(id, _)| id.index() + 1);
            let mut slots = vec![[0; layout::PORT_BYTES]; count];
            for (id, port) in tables.ports.iter() {
                let station = stations.get(&id).copied().flatten();
                slots[id.index()] = layout::port(id, port, station, tables.guards.get(id));
            }
            plan.near_interfaces = self.near_interfaces.plan(near_interfaces(&slots).into_iter())?;
            plan.ports = self.ports.plan(slots.into_iter())?;
            plan.near_stations = self.near_stations.plan(near_stations(tables).into_iter())?;
        }
        if !same_ports {
            let numbers =
                tables.ports.iter().map(|(id, port)| (layout::interface(copy, port.ifindex), index(u32::from(id.0))));
            plan.interfaces = self.interfaces.plan(numbers)?;
        }
        if !same_stations {
            let entries = tables
                .fdb
                .iter()
                .map(|(mac, entry)| (layout::station_key(copy, mac), layout::station(entry.port, entry.activity)));
            plan.fdb = self.fdb.plan(entries)?;
        }
        if !last.is_some_and(|last| Arc::ptr_eq(&last.hosts, &tables.hosts)) {
            let hosts = tables.hosts.iter4();
            plan.hosts4 = self.hosts4.plan(hosts.map(|(link, ip, to)| (layout::host4(copy, link, ip), index(to))))?;
            let hosts = tables.hosts.iter6();
            plan.hosts6 = self.hosts6.plan(hosts.map(|(link, ip, to)| (layout::host6(copy, link, ip), index(to))))?;
        }
        if !last.is_some_and(|last| Arc::ptr_eq(&last.adjacencies, &tables.adjacencies)) {
            plan.adjacencies = self.adjacencies.plan(tables.adjacencies.iter().map(layout::adjacency))?;
        }
        if !last.is_some_and(|last| Arc::ptr_eq(&last.next_hops, &tables.next_hops)) {
            plan.next_hops = self.next_hops.plan(tables.next_hops.iter().map(layout::next_hop))?;
        }
        let entry4 = |(ip, length, to)| (layout::prefix4(copy, ip, length), index(to));
        match last.map(|last| &last.fib4) {
            Some(fib4) if Arc::ptr_eq(fib4, &tables.fib4) => {}
            Some(fib4) => plan.fib4 = self.fib4.plan_ordered(fib4.iter(), tables.fib4.iter(), prefix, entry4)?,
            None => plan.fib4 = self.fib4.plan(tables.fib4.iter().map(entry4))?,
        }
        let entry6 = |(ip, length, to)| (layout::prefix6(copy, ip, length), index(to));
        match last.map(|last| &last.fib6) {
            Some(fib6) if Arc::ptr_eq(fib6, &tables.fib6) => {}
            Some(fib6) => plan.fib6 = self.fib6.plan_ordered(fib6.iter(), tables.fib6.iter(), prefix, entry6)?,
            None => plan.fib6 = self.fib6.plan(tables.fib6.iter().map(entry6))?,
        }
        plan.node = self.node.plan(std::iter::once(layout::node(&tables.routing, &tables.cluster, secret)))?;
        Ok(plan)
    }

    /// Nobody reads this copy, so the order does not matter.
    fn put(&mut self, plan: &mut Plan, writes: &mut Writes) -> Result<(), BpfError> {
        self.guards.put(&plan.guards, writes)?;
        self.ports.put(&plan.ports, writes)?;
        self.near_interfaces.put(&plan.near_interfaces, writes)?;
        self.adjacencies.put(&plan.adjacencies, writes)?;
        self.next_hops.put(&plan.next_hops, writes)?;
        self.hosts4.put(&mut plan.hosts4, writes)?;
        self.hosts6.put(&mut plan.hosts6, writes)?;
        self.fdb.put(&mut plan.fdb, writes)?;
        self.near_stations.put(&plan.near_stations, writes)?;
        self.fib4.put(&mut plan.fib4, writes)?;
        self.fib6.put(&mut plan.fib6, writes)?;
        self.node.put(&plan.node, writes)?;
        self.interfaces.put(&mut plan.interfaces, writes)
    }

    fn remove(&mut self, plan: &mut Plan, writes: &mut Writes) -> Result<(), BpfError> {
        self.near_interfaces.clear(&plan.near_interfaces, writes)?;
        self.interfaces.remove(&mut plan.interfaces, writes)?;
        self.fib6.remove(&mut plan.fib6, writes)?;
        self.fib4.remove(&mut plan.fib4, writes)?;
        self.near_stations.clear(&plan.near_stations, writes)?;
        self.fdb.remove(&mut plan.fdb, writes)?;
        self.hosts6.remove(&mut plan.hosts6, writes)?;
        self.hosts4.remove(&mut plan.hosts4, writes)?;
        self.node.clear(&plan.node, writes)?;
        self.next_hops.clear(&plan.next_hops, writes)?;
        self.adjacencies.clear(&plan.adjacencies, writes)?;
        self.ports.clear(&plan.ports, writes)?;
        self.guards.clear(&plan.guards, writes)
    }
}

/// The stations behind each port: the only one with its activity index, or `None` for several.
fn only_stations(tables: &Tables) -> HashMap<PortId, Option<(MacAddr, u32)>> {
    let mut stations = HashMap::new();
    for (mac, entry) in tables.fdb.iter() {
        stations.entry(entry.port).and_modify(|station| *station = None).or_insert(Some((mac, entry.activity)));
    }
    stations
}

/// Slots of [`limits::NEAR_INTERFACES`]: the first port that has a slot keeps it.
fn near_interfaces(ports: &[[u8; layout::PORT_BYTES]]) -> Vec<[u8; layout::PORT_BYTES]> {
    let mut slots = vec![[0; layout::PORT_BYTES]; limits::NEAR_INTERFACES];
    for port in ports {
        let slot = &mut slots[layout::port_ifindex(port) as usize % limits::NEAR_INTERFACES];
        if *slot == [0; layout::PORT_BYTES] {
            *slot = *port;
        }
    }
    slots
}

/// The same for MAC addresses: the first one that has a place keeps it.
fn near_stations(tables: &Tables) -> Vec<[u8; layout::NEAR_STATION_BYTES]> {
    let mut places = vec![[0; layout::NEAR_STATION_BYTES]; limits::NEAR_STATIONS];
    for (mac, entry) in tables.fdb.iter() {
        let place = &mut places[layout::near_place(mac)];
        if *place == [0; layout::NEAR_STATION_BYTES] {
            *place = layout::near_station(mac, entry.port, tables.ports.get(entry.port), entry.activity);
        }
    }
    places
}

/// What the routes of a FIB are sorted by.
fn prefix<K>((address, length, _): (K, u8, u32)) -> (K, u8) {
    (address, length)
}

fn index(value: u32) -> [u8; 4] {
    value.to_ne_bytes()
}
