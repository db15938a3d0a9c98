//! A ring over plain memory, for benchmarks: both of its ends are ours.

use std::io;
use std::sync::Arc;

use super::ring::{Consumer, Producer};
use super::sys::Mapping;

/// Entries start behind three cache lines, one for each counter and one for the flags, as the kernel lays a ring out.
const OFFSETS: libc::xdp_ring_offset = libc::xdp_ring_offset { producer: 0, consumer: 64, desc: 192, flags: 128 };

/// Both ends of a ring of `size` entries, a power of two.
pub fn plain_ring<T: Copy>(size: u32) -> io::Result<(Producer<T>, Consumer<T>)> {
    let bytes = OFFSETS.desc as usize + size as usize * size_of::<T>();
    let mapping = Arc::new(Mapping::anonymous(bytes)?);
    Ok((Producer::new(Arc::clone(&mapping), &OFFSETS, size), Consumer::new(mapping, &OFFSETS, size)))
}
