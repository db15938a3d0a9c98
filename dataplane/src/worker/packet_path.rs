//! The way of one packet through a worker: guard, parse, decide, rewrite, checksum, transmit.

use super::watch::{Ended, Handed, Nobody, Tapping, View, Watch};
use super::{Egress, Worker};
use crate::addr::PortId;
use crate::afxdp::{FrameMemory, Piece, QueueIo};
use crate::forward::{DropReason, PassReason, Rewrite, Verdict, decide, guard};
use crate::limits;
use crate::packet::rewrite::PartialChecksum;
use crate::packet::{self, Headers, rewrite};
use crate::table::learn::{LearnReport, Sighting};
use crate::table::{Port, PortKind, Tables};
use crate::tap::Tap;

/// What the packets of a batch have in common.
#[derive(Clone, Copy)]
pub(super) struct Batch<'a> {
    /// Where they came in.
    pub ingress: PortId,
    /// The entry of that port; it may have gone in the meantime.
    pub from: Option<&'a Port>,
    /// The snapshot that all of them are decided by.
    pub tables: &'a Tables,
    /// Seconds of the monotonic clock.
    pub now_s: u32,
}

/// Whether a place on the way out that holds so many frames may take more: a port whose packets linger must not collect the
/// frames that the others need. A single packet is always taken.
#[inline(always)]
fn has_room(held: usize, more: usize, most: usize, share: usize) -> bool {
    held == 0 || held + more <= most.min(share)
}

/// Puts a packet into a TX ring, unless it is full or may not hold another packet.
#[inline(always)]
fn offer(queue: &mut impl QueueIo, packet: &mut Vec<Piece>, share: usize) -> bool {
    has_room(queue.tx_outstanding(), packet.len(), limits::MAX_TX_OUTSTANDING, share) && queue.transmit(packet)
}

/// Finishes the checksum that a packet's transmitter was asked for. It was asked only for frames without padding.
#[cold]
fn finish_requested(memory: &FrameMemory, packet: &mut [Piece]) {
    let Some((start, offset)) = packet.first_mut().and_then(|piece| memory.withdraw_request(piece)) else { return };
    let location = PartialChecksum { start, offset };
    let checksum = rewrite::completed_up_to(packet.iter().map(|piece| memory.bytes(piece)), location, usize::MAX);
    rewrite::set_checksum(memory.bytes_mut(&mut packet[0]), location, checksum);
}

impl<Q: QueueIo> Worker<Q> {
    /// Forwards a batch of whole packets; `received` is empty afterwards.
    pub(super) fn forward_batch(&mut self, batch: Batch<'_>, received: &mut Vec<Piece>) {
        self.handoff_limits.fill(0);
        match &batch.tables.tap {
            None => self.forward_each(batch, received, &mut Nobody),
            Some(tap) => self.forward_tapped(batch, received, tap),
        }
        self.count_forwarded(batch.ingress);
    }

    #[cold]
    fn forward_tapped(&mut self, batch: Batch<'_>, received: &mut Vec<Piece>, tap: &Tap) {
        match Tapping::new(tap, self.id, batch) {
            Some(mut tapping) => self.forward_each(batch, received, &mut tapping),
            None => self.forward_each(batch, received, &mut Nobody),
        }
    }

    #[inline]
    fn forward_each(&mut self, batch: Batch<'_>, received: &mut Vec<Piece>, watch: &mut impl Watch) {
        for piece in received.drain(..) {
            let last = !piece.more;
            self.packet.push(piece);
            if last {
                self.forward_packet(batch, watch);
            }
        }
    }

    /// The packet in `self.packet`, to look at.
    #[inline(always)]
    pub(super) fn view(&self) -> View<'_> {
        View::new(&self.memory, &self.packet)
    }

    /// Forwards the packet in `self.packet`, which is empty afterwards.
    #[inline]
    fn forward_packet(&mut self, batch: Batch<'_>, watch: &mut impl Watch) {
        watch.received(self.view());
        if self.packet.len() > limits::MAX_PIECES {
            watch.ended(Ended::Dropped(DropReason::TooManyPieces));
            return self.drop_packet(batch.ingress, DropReason::TooManyPieces);
        }
        if let Err(reason) = guard(self.memory.bytes(&self.packet[0]), batch.ingress, batch.tables) {
            watch.ended(Ended::Dropped(reason));
            return self.drop_packet(batch.ingress, reason);
        }
        let frame_bytes = self.frame_bytes();
        let headers = match packet::parse(self.memory.bytes(&self.packet[0]), frame_bytes) {
            Ok(headers) => headers,
            Err(reason) => return self.pass_to_kernel(batch, None, reason, watch),
        };
        match decide(&headers, batch.ingress, batch.tables) {
            Verdict::Forward { port, rewrite, used } => {
                watch.decided(rewrite != Rewrite::None);
                self.learn_source(batch, &headers);
                if let Rewrite::Route { destination, source } = rewrite {
                    // Only a neighbour is kept by being sent to; an FDB entry, as on any bridge, by its own frames.
                    self.activity.touch(used, batch.now_s);
                    let bytes = self.memory.bytes_mut(&mut self.packet[0]);
                    rewrite::route(bytes, &headers, destination, source);
                }
                self.finish_checksum(batch, &headers);
                match self.send(port, frame_bytes, watch) {
                    Ok(()) => {
                        self.forwarded.add(frame_bytes);
                        watch.ended(Ended::Forwarded { to: port, routed: rewrite != Rewrite::None });
                    }
                    Err(reason) => {
                        watch.ended(Ended::Dropped(reason));
                        self.drop_packet(batch.ingress, reason);
                    }
                }
            }
            Verdict::Kernel(reason) => self.pass_to_kernel(batch, Some(&headers), reason, watch),
        }
    }

    /// A frame from a pod may carry a partial L4 checksum, which must not leave as it is: asks whoever transmits it to
    /// finish it, or finishes it here where nobody can be asked.
    #[inline(always)]
    fn finish_checksum(&mut self, batch: Batch<'_>, headers: &Headers) {
        if !batch.from.is_some_and(|port| port.partial_checksums) {
            return;
        }
        let Some(partial) = rewrite::partial_checksum(self.memory.bytes(&self.packet[0]), headers) else { return };
        // Whoever is asked sums to the end of the frame, so Ethernet padding would be counted in.
        let padded = headers.frame_bytes > headers.l3_bytes + packet::ETHERNET_BYTES as u32;
        let requested = self.umem.metadata()
            && !padded
            && self.memory.request_checksum(&mut self.packet[0], partial.start, partial.offset);
        if !requested {
            self.complete_checksum(partial, headers);
        }
    }

    #[cold]
    fn complete_checksum(&mut self, partial: PartialChecksum, headers: &Headers) {
        let pieces = self.packet.iter().map(|piece| self.memory.bytes(piece));
        let checksum = rewrite::completed_checksum(pieces, headers, partial);
        rewrite::set_checksum(self.memory.bytes_mut(&mut self.packet[0]), partial, checksum);
    }

    /// Bytes of the packet in `self.packet`, all pieces together.
    #[inline]
    fn frame_bytes(&self) -> u32 {
        self.packet.iter().map(|piece| u32::from(piece.bytes)).sum()
    }

    /// Puts the packet, of `frame_bytes`, into the TX ring of `port`, or hands it to the worker that does. On failure it stays
    /// in `self.packet`.
    #[inline(always)]
    fn send(&mut self, port: PortId, frame_bytes: u32, watch: &mut impl Watch) -> Result<(), DropReason> {
        match self.egress[port.index()] {
            Egress::Own => {
                watch.sending(self.view(), port);
                self.transmit(port, frame_bytes)
            }
            Egress::Worker(worker) => {
                let worker = usize::from(worker);
                let held = self.handoff.between(self.id, worker);
                if !has_room(held, self.packet.len(), limits::HANDOFF_RING, self.handoff_limit(held, worker)) {
                    return Err(DropReason::HandoffFull);
                }
                if !self.handoff.hand_over(self.id, worker, (port, self.stays.since_ns()), &mut self.packet) {
                    return Err(DropReason::HandoffFull);
                }
                self.woken[worker] = true;
                self.stays.away();
                self.counters.handoff_out.add(1);
                Ok(())
            }
            Egress::None => Err(DropReason::EgressGone),
        }
    }

    /// How full the ring to another worker may get in this batch, which is of one port.
    #[inline]
    fn handoff_limit(&mut self, held: usize, worker: usize) -> usize {
        let limit = &mut self.handoff_limits[worker];
        if *limit == 0 {
            *limit = self.pool.handoff_limit(held);
        }
        *limit
    }

    #[inline(always)]
    fn transmit(&mut self, port: PortId, frame_bytes: u32) -> Result<(), DropReason> {
        let slot = self.slots.get_mut(usize::from(self.own_slot[port.index()])).filter(|slot| slot.port == port);
        let slot = slot.ok_or(DropReason::EgressGone)?;
        // Only which port it is tells whether its socket can be asked.
        if self.packet.first().is_some_and(|piece| piece.metadata) && !slot.queue.checksum_metadata() {
            finish_requested(&self.memory, &mut self.packet);
        }
        if !offer(&mut slot.queue, &mut self.packet, self.pool.tx_share()) {
            // A full ring is often only waiting for its kick.
            self.counters.tx_syscalls.add(u64::from(slot.queue.kick()));
            slot.queue.complete(&mut self.returned);
            self.pool.put(&mut self.returned);
            if !offer(&mut slot.queue, &mut self.packet, self.pool.tx_share()) {
                slot.dirty = true;
                return Err(DropReason::TxRingFull);
            }
        }
        slot.dirty = true;
        slot.sent.add(frame_bytes);
        Ok(())
    }

    /// Transmits the packet in `self.packet` that another worker handed over. A drop is counted at the egress port, since
    /// the ingress port's counters here are not where the packet was counted as received. Whether it is in a TX ring now.
    pub(super) fn transmit_handed(&mut self, port: PortId, tables: &Tables) -> bool {
        let ifindex = || tables.ports.get(port).map_or(0, |port| port.ifindex);
        let tapped = tables.tap.as_ref().and_then(|tap| Handed::look(tap, self.id, self.view(), port, ifindex()));
        let sent = self.transmit(port, self.frame_bytes());
        if let Some(tapped) = tapped {
            tapped.ended(sent.err());
        }
        if let Err(reason) = sent {
            self.counters.port(port).tx_dropped[reason as usize].add(1);
            self.free_packet();
        }
        sent.is_ok()
    }

    /// Gives the packet in `self.packet` back to the kernel through the host port, which is a member of the bridge. One that
    /// came from an uplink and is addressed to that interface gets the bridge's own MAC address instead, so that the node's
    /// stack accepts it there.
    fn pass_to_kernel(
        &mut self,
        batch: Batch<'_>,
        headers: Option<&Headers>,
        reason: PassReason,
        watch: &mut impl Watch,
    ) {
        let Batch { ingress, from, tables, .. } = batch;
        watch.decided(true);
        // The kernel would see it come in through the host port, where such a port's state says nothing.
        if matches!(reason, PassReason::PortState | PassReason::Hairpin) {
            watch.ended(Ended::Dropped(DropReason::PortBlocked));
            return self.drop_packet(ingress, DropReason::PortBlocked);
        }
        let host = self.host_port.and_then(|id| Some((id, tables.ports.get(id)?)));
        let Some((host_id, host)) = host else {
            watch.ended(Ended::Dropped(DropReason::HostPortGone));
            return self.drop_packet(ingress, DropReason::HostPortGone);
        };
        if let Some(Port { kind: PortKind::Uplink, .. }) = from
            && let Some(destination) = self.memory.bytes_mut(&mut self.packet[0]).first_chunk_mut::<6>()
        {
            *destination = host.router_mac.octets();
        }
        if let Some(headers) = headers {
            self.finish_checksum(batch, headers);
        }
        match self.send(host_id, self.frame_bytes(), watch) {
            Ok(()) => {
                self.counters.port(ingress).kernel[reason as usize].add(1);
                watch.ended(Ended::Passed(reason));
            }
            Err(_) => {
                watch.ended(Ended::Dropped(DropReason::HostPortGone));
                self.drop_packet(ingress, DropReason::HostPortGone);
            }
        }
    }

    /// Counts what was forwarded since the last call, all of which came in through `ingress`.
    fn count_forwarded(&mut self, ingress: PortId) {
        let forwarded = std::mem::take(&mut self.forwarded);
        let counters = self.counters.port(ingress);
        counters.forwarded.add(forwarded.packets);
        counters.forwarded_bytes.add(forwarded.bytes);
    }

    #[cold]
    fn drop_packet(&mut self, port: PortId, reason: DropReason) {
        self.counters.port(port).dropped[reason as usize].add(1);
        self.stays.away();
        self.free_packet();
    }

    fn free_packet(&mut self) {
        for piece in self.packet.drain(..) {
            self.pool.put_one(piece.frame);
        }
    }

    /// What the bridge would have learned from the frame's source address: keeps a known one alive, reports a new one.
    #[inline]
    fn learn_source(&mut self, batch: Batch<'_>, headers: &Headers) {
        let Some(from) = batch.from else { return };
        if from.kind != PortKind::Pod {
            return;
        }
        match batch.tables.fdb.get(headers.source_mac) {
            Some(entry) if entry.port == batch.ingress => self.activity.touch(entry.activity, batch.now_s),
            Some(entry) if entry.is_static => {}
            _ if from.learning => self.report_source(batch, headers),
            _ => {}
        }
    }

    #[cold]
    fn report_source(&mut self, batch: Batch<'_>, headers: &Headers) {
        let report = LearnReport { port: batch.ingress, mac: headers.source_mac };
        match self.limiter.sight(report, batch.tables.generation, batch.now_s) {
            Sighting::Report if self.learn.push(report).is_ok() => self.counters.learn_reports.add(1),
            Sighting::Report | Sighting::Limited => self.counters.learn_limited.add(1),
            Sighting::Known => {}
        }
    }
}
