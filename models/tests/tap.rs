//! The ring of captured frames: a record comes with its own bytes, none twice, and every slot comes back.

use std::sync::Arc;

use loom::thread;
use podlane_models::addr::PortId;
use podlane_models::tap::Record;
use podlane_models::tap::ring::Ring;

/// A worker records two frames, the second of two slots, while the reader reads.
#[test]
fn a_record_comes_with_its_own_bytes() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let ring = Arc::new(Ring::new(0, 0, 2));
        let writer = Arc::clone(&ring);
        let worker = thread::spawn(move || {
            for number in 1..=2_u8 {
                let copied = writer.copy(&[number; 2][..usize::from(number)], 2, PortId(0)).expect("there is room");
                writer.commit(copied, Record { packet: number.into(), ..Record::EMPTY });
            }
        });
        let mut expected = 1;
        while expected <= 2 {
            let mut bytes = Vec::new();
            match ring.take(&mut bytes) {
                Some(record) => {
                    assert_eq!((record.packet, bytes), (u64::from(expected), vec![expected; expected.into()]));
                    expected += 1;
                }
                None => thread::yield_now(),
            }
        }
        worker.join().unwrap();
        assert_eq!(ring.lost(PortId(0)), 0);
    });
}
