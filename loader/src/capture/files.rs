//! Where a capture goes: standard output, a file, or a ring of files of which the oldest go.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::client::{Names, name_of};
use super::pcapng::{Blocks, Entry};
use super::print;
use super::wire::Packet;
use podlane_dataplane::tap::Direction;

/// A ring of files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RingOfFiles {
    /// How many are kept.
    pub files: u32,
    /// Bytes after which the next is begun.
    pub bytes: u64,
}

/// What an interface came to in the present file.
#[derive(Clone, Copy, Debug, Default)]
struct Interface {
    number: u32,
    written: u64,
    /// Lost since the capture began, when the file was begun and now.
    lost_before: u64,
    lost: u64,
}

/// Writes a capture.
pub struct Files {
    out: Box<dyn Write>,
    path: Option<PathBuf>,
    ring: Option<RingOfFiles>,
    old: VecDeque<PathBuf>,
    begun: u64,
    snap_bytes: u32,
    filter: String,
    blocks: Blocks,
    interfaces: BTreeMap<u32, Interface>,
    lost: BTreeMap<u32, u64>,
    /// Bytes in the present file.
    bytes: u64,
    /// Bytes in all files.
    total: u64,
}

fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64
}

impl Files {
    /// Begins the first file; `path` is `None` for standard output.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn begin(path: Option<&Path>, ring: Option<RingOfFiles>, snap_bytes: u32, filter: &str) -> io::Result<Self> {
        let mut files = Files {
            out: Box::new(io::sink()),
            path: path.map(Path::to_owned),
            ring,
            old: VecDeque::new(),
            begun: 0,
            snap_bytes,
            filter: filter.to_owned(),
            blocks: Blocks::default(),
            interfaces: BTreeMap::new(),
            lost: BTreeMap::new(),
            bytes: 0,
            total: 0,
        };
        files.begin_file()?;
        Ok(files)
    }

    /// Writes a packet.
    ///
    /// # Errors
    /// Writing fails.
    pub fn packet(&mut self, packet: &Packet<'_>, names: &Names) -> io::Result<()> {
        if self.ring.is_some_and(|ring| self.bytes >= ring.bytes) {
            self.end_file()?;
            self.begin_file()?;
        }
        let interface = self.interface(packet.ifindex, names)?;
        interface.written += 1;
        let number = interface.number;
        let entry = Entry {
            interface: number,
            time_ns: packet.time_ns(),
            frame_bytes: packet.frame_bytes,
            outbound: packet.direction == Direction::Tx,
            id: packet.id,
            comment: &print::verdict(packet, names),
            bytes: packet.bytes,
        };
        let written = self.blocks.packet(&mut self.out, &entry)?;
        self.count(written);
        Ok(())
    }

    /// Notes how many records of an interface were lost since the start.
    ///
    /// # Errors
    /// Writing fails.
    pub fn lost(&mut self, ifindex: u32, records: u64, names: &Names) -> io::Result<()> {
        self.lost.insert(ifindex, records);
        // What belongs to no interface any more cannot stand in the file.
        if ifindex != 0 {
            self.interface(ifindex, names)?.lost = records;
        }
        Ok(())
    }

    /// Hands everything on to whoever reads.
    ///
    /// # Errors
    /// Writing fails.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// Ends the last file. Returns the bytes of all.
    ///
    /// # Errors
    /// Writing fails.
    pub fn end(mut self) -> io::Result<u64> {
        self.end_file()?;
        Ok(self.total)
    }

    /// An interface of the present file, made known if it is new there.
    fn interface(&mut self, ifindex: u32, names: &Names) -> io::Result<&mut Interface> {
        if !self.interfaces.contains_key(&ifindex) {
            let name = name_of(names, ifindex);
            let written = self.blocks.interface(&mut self.out, &name, self.snap_bytes, &self.filter)?;
            self.count(written);
            let lost = self.lost.get(&ifindex).copied().unwrap_or(0);
            let number = self.interfaces.len() as u32;
            // Lost before the first file was begun is lost in it.
            let lost_before = if self.begun <= 1 { 0 } else { lost };
            self.interfaces.insert(ifindex, Interface { number, written: 0, lost_before, lost });
        }
        Ok(self.interfaces.entry(ifindex).or_default())
    }

    fn count(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        self.total += bytes as u64;
    }

    fn begin_file(&mut self) -> io::Result<()> {
        self.begun += 1;
        self.bytes = 0;
        self.interfaces.clear();
        self.out = match &self.path {
            None => Box::new(BufWriter::with_capacity(1 << 16, io::stdout())),
            Some(path) => {
                let path = match self.ring {
                    Some(_) => numbered(path, self.begun),
                    None => path.clone(),
                };
                let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
                // Packets are not for everybody's eyes.
                let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&path);
                let file = file.map_err(named)?;
                self.old.push_back(path);
                Box::new(BufWriter::with_capacity(1 << 16, file))
            }
        };
        while self.ring.is_some_and(|ring| self.old.len() > ring.files as usize) {
            if let Some(path) = self.old.pop_front() {
                std::fs::remove_file(path)?;
            }
        }
        let written = self.blocks.section(&mut self.out)?;
        self.count(written);
        Ok(())
    }

    fn end_file(&mut self) -> io::Result<()> {
        let now_ns = now_ns();
        for interface in std::mem::take(&mut self.interfaces).into_values() {
            let Interface { number, written, lost_before, lost } = interface;
            let bytes =
                self.blocks.statistics(&mut self.out, number, now_ns, written, lost.saturating_sub(lost_before))?;
            self.count(bytes);
        }
        self.out.flush()
    }
}

/// `name_00001.pcapng` for `name.pcapng`.
fn numbered(path: &Path, number: u64) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let name = match path.extension() {
        Some(extension) => format!("{stem}_{number:05}.{}", extension.to_string_lossy()),
        None => format!("{stem}_{number:05}"),
    };
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use podlane_dataplane::tap::Outcome;

    use super::super::wire::Seer;
    use super::*;

    #[test]
    fn a_ring_keeps_the_newest_files_each_of_them_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.pcapng");
        let ring = RingOfFiles { files: 2, bytes: 1000 };
        let mut files = Files::begin(Some(&path), Some(ring), 100, "tcp").unwrap();
        let names = Names::from([(7, "veth1".to_owned())]);
        for second in 0..40 {
            let packet = Packet {
                times_ns: [second * 1_000_000_000, 0],
                id: second,
                ifindex: 7,
                frame_bytes: 60,
                gso_size: 0,
                direction: Direction::Rx,
                outcome: Outcome::Sent { from: 0 },
                seer: Seer::Worker,
                bytes: &[1; 60],
            };
            files.packet(&packet, &names).unwrap();
        }
        let total = files.end().unwrap();
        let mut left: Vec<_> =
            std::fs::read_dir(directory.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left.len(), 2, "{left:?}");
        assert!(left[0].to_str().unwrap().starts_with("a_000"), "{left:?}");
        for name in left {
            let bytes = std::fs::read(directory.path().join(name)).unwrap();
            assert_eq!(bytes[..4], [0x0a, 0x0d, 0x0d, 0x0a]);
            assert!(bytes.len() < 1300 && total > 3000, "{} of {total}", bytes.len());
        }
    }

    #[test]
    fn names_are_numbered() {
        assert_eq!(numbered(Path::new("/x/y.pcapng"), 3), Path::new("/x/y_00003.pcapng"));
        assert_eq!(numbered(Path::new("y"), 12), Path::new("y_00012"));
    }
}
