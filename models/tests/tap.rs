//! The ring of captured frames: a record comes with its own bytes, none twice, and every slot comes back.

use std::sync::Arc;

use loom::thread;
use podlane_models::addr::PortId;
use podlane_models::tap::Record;
use podlane_models::tap::ring::Ring;

/// Bytes of the frames: the second takes two slots.
const FRAMES: [usize; 2] = [1, 2049];

/// A worker records two frames while the reader reads.
#[test]
fn a_record_comes_with_its_own_bytes() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let ring = Arc::new(Ring::new(0, 0, FRAMES[1]));
        let writer = Arc::clone(&ring);
        let worker = thread::spawn(move || {
            for bytes in FRAMES {
                let frame = vec![bytes as u8; bytes];
                let copied = writer.copy(&frame[..], bytes as u32, PortId(0)).expect("there is room");
                writer.commit(copied, Record { packet: bytes as u64, ..Record::EMPTY });
            }
        });
        for expected in FRAMES {
            let mut bytes = Vec::new();
            let record = loop {
                match ring.take(&mut bytes) {
                    Some(record) => break record,
                    None => thread::yield_now(),
                }
            };
            assert_eq!(record.packet, expected as u64);
            assert!(bytes == vec![expected as u8; expected], "{} bytes", bytes.len());
        }
        worker.join().unwrap();
        assert_eq!(ring.lost(PortId(0)), 0);
    });
}
