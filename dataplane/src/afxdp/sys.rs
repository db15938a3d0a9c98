//! Thin, checked wrappers of the system calls that AF_XDP needs; each turns a failure into an [`io::Error`].

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;

/// Allows more packets per transmit call than 32 in copy mode (`linux/if_xdp.h`, since 6.17).
pub const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;
/// Flag of [`XskTxMetadata::flags`]: finish the checksum (`linux/if_xdp.h`).
pub const XDP_TXMD_FLAGS_CHECKSUM: u64 = 1 << 1;
/// Descriptor option: metadata stands in front of the packet (`linux/if_xdp.h`).
pub const XDP_TX_METADATA: u32 = 1 << 1;
/// Descriptor option: the packet goes on in the next descriptor (`linux/if_xdp.h`).
pub const XDP_PKT_CONTD: u32 = 1 << 0;
/// Bind flag: packets may be spread over several descriptors (`linux/if_xdp.h`).
pub const XDP_USE_SG: u16 = 1 << 4;
/// Largest metadata that we write: `struct xsk_tx_metadata` with the checksum request, a multiple of 8.
pub const TX_METADATA_BYTES: usize = std::mem::size_of::<XskTxMetadata>();

/// `struct xsk_tx_metadata` with the checksum request (`linux/if_xdp.h`).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct XskTxMetadata {
    pub flags: u64,
    pub csum_start: u16,
    pub csum_offset: u16,
    pub padding: u32,
    /// `launch_time`, which newer kernels read only when its flag is set.
    pub launch_time: u64,
}

/// A new AF_XDP socket.
pub fn socket() -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the result is checked.
    let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    owned(fd)
}

/// Takes ownership of a descriptor that a call has just returned.
pub fn owned(fd: RawFd) -> io::Result<OwnedFd> {
    check(fd)?;
    // SAFETY: `fd` is not negative and was just made by the kernel for us, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Turns -1 into the error that `errno` names.
pub fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// `setsockopt` with a plain value.
pub fn set_option<T: Copy>(fd: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    let bytes = std::mem::size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` points to `bytes` readable bytes for the length of the call.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (value as *const T).cast(), bytes) }).map(drop)
}

/// `getsockopt` into a plain structure of integers, of which an older kernel may fill less than we know.
pub fn get_option<T: Copy>(fd: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int, zero: T) -> io::Result<T> {
    let mut value = zero;
    let mut bytes = std::mem::size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` has room for `bytes` bytes; the structures read here are plain integers, valid for any bit pattern.
    check(unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut bytes) })?;
    Ok(value)
}

/// Binds an AF_XDP socket.
pub fn bind(fd: BorrowedFd<'_>, address: &libc::sockaddr_xdp) -> io::Result<()> {
    let bytes = std::mem::size_of::<libc::sockaddr_xdp>() as libc::socklen_t;
    // SAFETY: `address` is a valid sockaddr_xdp of the length given.
    check(unsafe { libc::bind(fd.as_raw_fd(), (address as *const libc::sockaddr_xdp).cast(), bytes) }).map(drop)
}

/// Tells the kernel to work on a socket's TX ring. `Ok` when it has drained its share.
pub fn send_wakeup(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: an empty message: no pointers are followed.
    let sent = unsafe { libc::sendto(fd.as_raw_fd(), std::ptr::null(), 0, libc::MSG_DONTWAIT, std::ptr::null(), 0) };
    check(sent as libc::c_int).map(drop)
}

/// Tells the kernel to work on a socket's fill ring.
pub fn receive_wakeup(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: a buffer of no bytes: no pointers are followed.
    let got = unsafe {
        libc::recvfrom(
            fd.as_raw_fd(),
            std::ptr::null_mut(),
            0,
            libc::MSG_DONTWAIT,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
        )
    };
    check(got as libc::c_int).map(drop)
}

/// A mapping that is removed when it is dropped.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    bytes: usize,
    /// Whose memory it is, if not ours: dropped in place of removing the mapping.
    owner: Option<Box<dyn std::any::Any + Send + Sync>>,
}

// SAFETY: a mapping is only an address range; what is done with it is guarded by its users.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Plain memory in the place of a mapping: miri, which checks what is done with it, knows no `madvise`.
    #[cfg(miri)]
    pub fn anonymous(bytes: usize) -> io::Result<Self> {
        // SAFETY: the layout is valid and not of size 0: frames and pages have sizes.
        let base = unsafe { std::alloc::alloc_zeroed(Self::plain_layout(bytes)) };
        let base = NonNull::new(base).ok_or_else(|| io::Error::other("no memory"))?;
        Ok(Mapping { base, bytes, owner: None })
    }

    #[cfg(miri)]
    fn plain_layout(bytes: usize) -> std::alloc::Layout {
        std::alloc::Layout::from_size_align(bytes, 4096).expect("a layout")
    }

    /// Anonymous zeroed memory, present at once, so that no page fault happens later, and in huge pages where the kernel has
    /// them to give: every frame begins a page of 4 KiB, and each would be another address to translate.
    #[cfg(not(miri))]
    pub fn anonymous(bytes: usize) -> io::Result<Self> {
        let mapping = Self::map(bytes, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)?;
        // Only a wish: a kernel without huge pages refuses it, and ordinary ones do as well.
        let _ = mapping.advise(libc::MADV_HUGEPAGE);
        // A dump of the daemon must not hold the pods' packets.
        let _ = mapping.advise(libc::MADV_DONTDUMP);
        mapping.advise(libc::MADV_POPULATE_WRITE)?;
        Ok(mapping)
    }

    /// Memory that another library has mapped and that lives as long as `owner`.
    ///
    /// # Safety
    /// `bytes` bytes from `base` on are mapped for reading and writing while `owner` lives.
    #[cfg(feature = "bench")]
    pub unsafe fn foreign(base: NonNull<u8>, bytes: usize, owner: Box<dyn std::any::Any + Send + Sync>) -> Self {
        Mapping { base, bytes, owner: Some(owner) }
    }

    /// A shared mapping of a file.
    pub fn shared(fd: BorrowedFd<'_>, bytes: usize, offset: u64) -> io::Result<Self> {
        Self::map(bytes, libc::MAP_SHARED | libc::MAP_POPULATE, fd.as_raw_fd(), offset as libc::off_t)
    }

    fn map(bytes: usize, flags: libc::c_int, fd: RawFd, offset: libc::off_t) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice cannot overlap anything that Rust knows of.
        let base =
            unsafe { libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, fd, offset) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mmap returned a null address"))?;
        Ok(Mapping { base, bytes, owner: None })
    }

    #[cfg(not(miri))]
    fn advise(&self, advice: libc::c_int) -> io::Result<()> {
        // SAFETY: the range is our own mapping, and none of the advices that are given changes a byte of it.
        match unsafe { libc::madvise(self.base.as_ptr().cast(), self.bytes, advice) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// First byte.
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Length in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.owner.is_some() {
            return;
        }
        // SAFETY: this is the memory that `anonymous` made, and nobody uses it after its owner is gone.
        #[cfg(miri)]
        unsafe {
            std::alloc::dealloc(self.base.as_ptr(), Self::plain_layout(self.bytes))
        };
        // SAFETY: this is the mapping that `map` made, and nobody uses it after its owner is gone.
        #[cfg(not(miri))]
        unsafe {
            libc::munmap(self.base.as_ptr().cast(), self.bytes)
        };
    }
}
