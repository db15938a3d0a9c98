//! Capture by the programs: what is recorded, that filters mean what the engine's interpreter says, and that frames take the
//! very same way whether somebody captures or not.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use libbpf_rs::{PerfBuffer, PerfBufferBuilder};
use podlane::bpf::{Place, ProgramRecord, RECORD_BYTES, Steering};
use podlane_dataplane::PortId;
use podlane_dataplane::forward::PassReason;
use podlane_dataplane::table::Path as ServedBy;
use podlane_dataplane::tap::filter::code::*;
use podlane_dataplane::tap::{Direction, Filter, Instruction, Outcome as Fate, Wish};

use crate::differential::Random;
use crate::frames::*;
use crate::net;
use crate::world::{A as POD_PORT, B as OTHER_PORT, C as THIRD_PORT, INGRESS, MAX_LINEAR, UPLINK, World};

type Kept = Rc<RefCell<Vec<(ProgramRecord, Vec<u8>)>>>;

/// Reads what the programs record.
struct Listener {
    kept: Kept,
    buffer: PerfBuffer<'static>,
}

impl Listener {
    fn new(steering: &Steering) -> Self {
        let kept = Kept::default();
        let keep = Rc::clone(&kept);
        let sample = move |_, bytes: &[u8]| {
            let record = ProgramRecord::read(bytes).expect("a record");
            keep.borrow_mut().push((record, bytes[RECORD_BYTES..].to_vec()));
        };
        let records = steering.records();
        let buffer = PerfBufferBuilder::new(&*records.events).pages(64).sample_cb(sample).build().unwrap();
        Listener { kept, buffer }
    }

    /// Everything since the last call. The kernel pads a sample, so bytes beyond what was kept are cut off.
    fn take(&self, snap_bytes: u32) -> Vec<(ProgramRecord, Vec<u8>)> {
        self.buffer.poll(Duration::ZERO).unwrap();
        let mut all = std::mem::take(&mut *self.kept.borrow_mut());
        for (record, bytes) in &mut all {
            bytes.truncate(record.record.frame_bytes.min(snap_bytes) as usize);
        }
        all
    }
}

fn everything() -> Wish {
    Wish { filter: Filter::everything(), snap_bytes: 2000, rx: true, tx: true, interfaces: None }
}

fn program(instructions: &[(u16, u8, u8, u32)]) -> Filter {
    let one = |&(code, jt, jf, k): &(u16, u8, u8, u32)| Instruction { code, jt, jf, k };
    Filter::new(instructions.iter().map(one).collect()).unwrap()
}

/// A world all of whose ports take the kernel path.
fn repeated_world() -> World {
    let mut world = World::new();
    for port in INGRESS {
        world.change_port(port, |port| port.path = ServedBy::Kernel);
    }
    world
}

fn ifindex(world: &World, port: PortId) -> u32 {
    world.tables.ports.get(port).unwrap().ifindex
}

#[test]
fn the_tc_program_records_a_frame_as_it_came_and_as_it_goes() {
    net::test("the_tc_program_records_a_frame_as_it_came_and_as_it_goes", || {
        let mut world = repeated_world();
        let listener = Listener::new(&world.steering);
        world.steering.start_capture(&everything()).unwrap();
        let (a, b, uplink) = (ifindex(&world, POD_PORT), ifindex(&world, OTHER_PORT), ifindex(&world, UPLINK));
        for (path, to, routed) in [(BRIDGED, b, false), (ROUTED, uplink, true)] {
            for family in FAMILIES {
                let frame = tcp(family, path, 100);
                let (_, out) = world.steering.test_repeat(&frame, a, 0, 1).unwrap();
                let records = listener.take(2000);
                let [(received, before), (sent, after)] = &records[..] else { panic!("{records:?}") };
                assert_eq!((before, after), (&frame, &out));
                assert_eq!(before != after, routed);
                assert_eq!((received.place, received.gso_size, received.vlan), (Place::Tc, 0, None));
                assert_eq!((received.record.ifindex, received.record.direction), (a, Direction::Rx));
                assert_eq!(received.record.outcome, Fate::Forwarded { to, routed });
                assert_eq!((sent.record.ifindex, sent.record.direction), (to, Direction::Tx));
                assert_eq!(sent.record.outcome, Fate::Sent { from: a });
                assert_eq!(received.record.packet, sent.record.packet);
                let times = [received.record.first_ns, received.record.second_ns, sent.record.first_ns];
                assert!(times.is_sorted() && times[0] != 0, "{times:?}");
            }
        }
        let (_, out) = world.steering.test_repeat(&tcp(Family::V4, ROUTED, 3000), a, 1400, 1).unwrap();
        let records = listener.take(2000);
        assert_eq!((records[0].0.gso_size, records[1].0.gso_size), (1400, 1400));
        assert_eq!((records[1].0.record.frame_bytes as usize, &records[1].1[..]), (out.len(), &out[..2000]));

        let arp = [&[0xff; 6][..], &POD_A.octets(), &[8, 6], &[0; 46]].concat();
        world.steering.test_repeat(&arp, a, 0, 1).unwrap();
        let records = listener.take(2000);
        let [(passed, bytes)] = &records[..] else { panic!("{records:?}") };
        assert_eq!((passed.record.outcome, bytes), (Fate::Passed(PassReason::Group), &arp));

        world.steering.stop_capture();
        world.steering.test_repeat(&arp, a, 0, 1).unwrap();
        world.steering.test_repeat(&tcp(Family::V4, ROUTED, 10), a, 0, 1).unwrap();
        assert_eq!(listener.take(2000), []);
    });
}

#[test]
fn the_xdp_program_records_what_it_leaves_to_the_kernel() {
    net::test("the_xdp_program_records_what_it_leaves_to_the_kernel", || {
        let mut world = World::new();
        let listener = Listener::new(&world.steering);
        world.steering.start_capture(&everything()).unwrap();
        let a = ifindex(&world, POD_PORT);
        let run = |frame: &[u8]| world.steering.test_run(frame, frame.len().min(MAX_LINEAR), a, 0, 1).unwrap();
        run(&tcp(Family::V4, BRIDGED, 100));
        assert_eq!(listener.take(2000), [], "a worker records what it gets");
        let long = tcp(Family::V6, ROUTED, 3000);
        run(&long);
        let records = listener.take(2000);
        let [(passed, bytes)] = &records[..] else { panic!("{records:?}") };
        assert_eq!(passed.record.outcome, Fate::Passed(PassReason::TooBig));
        assert_eq!((passed.place, passed.record.ifindex, passed.record.direction), (Place::Xdp, a, Direction::Rx));
        assert_eq!((passed.record.frame_bytes as usize, &bytes[..]), (long.len(), &long[..2000]));
    });
}

#[test]
fn ports_directions_and_lengths_are_chosen() {
    net::test("ports_directions_and_lengths_are_chosen", || {
        let mut world = repeated_world();
        let listener = Listener::new(&world.steering);
        let (a, b) = (ifindex(&world, POD_PORT), ifindex(&world, OTHER_PORT));
        let frame = tcp(Family::V4, BRIDGED, 100);
        for (interfaces, rx, tx, expected) in [
            (None, true, true, vec![a, b]),
            (None, true, false, vec![a]),
            (None, false, true, vec![b]),
            (Some(vec![a]), true, true, vec![a]),
            (Some(vec![b]), true, true, vec![b]),
            (Some(vec![b]), true, false, vec![]),
            (Some(vec![9999]), true, true, vec![]),
            (Some(vec![9999, b, a]), true, true, vec![a, b]),
        ] {
            let wish = Wish { interfaces, rx, tx, snap_bytes: 60, ..everything() };
            world.steering.start_capture(&wish).unwrap();
            world.steering.test_repeat(&frame, a, 0, 1).unwrap();
            let records = listener.take(60);
            let seen: Vec<u32> = records.iter().map(|(record, _)| record.record.ifindex).collect();
            assert_eq!(seen, expected, "{wish:?}");
            assert!(records.iter().all(|(_, bytes)| bytes[..] == frame[..60]));
        }
    });
}

/// A filter on what routing changes sees each record as it is.
#[test]
fn what_is_sent_is_filtered_as_it_is_sent() {
    net::test("what_is_sent_is_filtered_as_it_is_sent", || {
        let mut world = repeated_world();
        let listener = Listener::new(&world.steering);
        let a = ifindex(&world, POD_PORT);
        for (ttl, direction) in [(64, Direction::Rx), (63, Direction::Tx)] {
            let filter = program(&[(LD | B | ABS, 0, 0, 22), (JMP | JEQ, 0, 1, ttl), (RET, 0, 0, 1), (RET, 0, 0, 0)]);
            world.steering.start_capture(&Wish { filter, ..everything() }).unwrap();
            world.steering.test_repeat(&tcp(Family::V4, ROUTED, 100), a, 0, 1).unwrap();
            let records = listener.take(2000);
            let [(only, _)] = &records[..] else { panic!("{records:?}") };
            assert_eq!(only.record.direction, direction);
            assert_ne!(only.record.packet, 0);
        }
    });
}

#[test]
fn without_a_reader_records_are_lost_and_counted_and_frames_are_not() {
    net::test("without_a_reader_records_are_lost_and_counted_and_frames_are_not", || {
        let mut world = repeated_world();
        world.steering.start_capture(&everything()).unwrap();
        let a = ifindex(&world, POD_PORT);
        for _ in 0..50 {
            world.repeats(POD_PORT, &tcp(Family::V4, BRIDGED, 10), 0).unwrap();
        }
        let lost = world.steering.records().lost().unwrap();
        assert_eq!((lost[POD_PORT.index()], lost[OTHER_PORT.index()], lost.iter().sum::<u64>()), (50, 50, 100));
        let listener = Listener::new(&world.steering);
        world.steering.start_capture(&everything()).unwrap();
        world.steering.test_repeat(&tcp(Family::V4, BRIDGED, 10), a, 0, 1).unwrap();
        assert_eq!(listener.take(2000).len(), 2);
        assert_eq!(world.steering.records().lost().unwrap().iter().sum::<u64>(), 0, "a new capture counts anew");
    });
}

#[test]
fn a_program_that_is_loaded_later_is_captured_as_well() {
    net::test("a_program_that_is_loaded_later_is_captured_as_well", || {
        let mut world = World::new();
        let listener = Listener::new(&world.steering);
        world.steering.start_capture(&everything()).unwrap();
        for port in [POD_PORT, OTHER_PORT, THIRD_PORT] {
            world.change_port(port, |port| port.path = ServedBy::Kernel);
        }
        world.steering.test_repeat(&tcp(Family::V6, BRIDGED, 10), ifindex(&world, POD_PORT), 0, 1).unwrap();
        assert_eq!(listener.take(2000).len(), 2);
    });
}

/// An instruction of a random program, whose jumps stay within `left` instructions behind it.
fn random_instruction(random: &mut Random, left: u64) -> (u16, u8, u8, u32) {
    let loads = [
        LD | W | ABS,
        LD | H | ABS,
        LD | B | ABS,
        LD | W | IND,
        LD | H | IND,
        LD | B | IND,
        LD | IMM,
        LD | LEN,
        LD | MEM,
        LDX | IMM,
        LDX | LEN,
        LDX | MEM,
        LDX | B | MSH,
        ST,
        STX,
        MISC | TAX,
        MISC | TXA,
    ];
    let operations = [ADD, SUB, MUL, DIV, OR, AND, LSH, RSH, NEG, MOD, XOR];
    let offset = match random.below(12) {
        0 => random.next() as u32,
        1 => u32::MAX - random.below(20) as u32,
        2 => 0x7efc + random.below(10) as u32,
        _ => random.below(70) as u32,
    };
    match random.below(10) {
        0..4 => {
            let code = random.pick(&loads);
            let is_word = matches!(code & 0xe0, MEM) || matches!(code & 7, ST | STX);
            (code, 0, 0, if is_word { offset % 16 } else { offset })
        }
        4..6 => {
            let operation = random.pick(&operations);
            let source = if operation == NEG { K } else { random.pick(&[K, X]) };
            let k = match (operation, source) {
                (LSH | RSH, K) => offset % 32,
                (DIV | MOD, K) => offset.max(1),
                _ => offset,
            };
            (ALU | operation | source, 0, 0, k)
        }
        6 if random.one_in(4) => (JMP | JA, 0, 0, random.below(left) as u32),
        6..9 => {
            let (jt, jf) = (random.below(left.min(6)) as u8, random.below(left.min(6)) as u8);
            let k = if random.one_in(2) { random.below(256) as u32 } else { offset };
            (JMP | random.pick(&[JEQ, JGT, JGE, JSET]) | random.pick(&[K, X]), jt, jf, k)
        }
        _ => (RET | random.pick(&[K, A]), 0, 0, random.below(2) as u32),
    }
}

#[test]
fn filters_in_the_kernel_mean_what_the_interpreter_says() {
    net::test("filters_in_the_kernel_mean_what_the_interpreter_says", || {
        let number =
            |name: &str, default| std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default);
        let mut random = Random(number("PODLANE_SEED", 1));
        let mut world = repeated_world();
        let listener = Listener::new(&world.steering);
        let a = ifindex(&world, POD_PORT);
        let frames: Vec<Vec<u8>> = FAMILIES
            .into_iter()
            .flat_map(|family| [tcp(family, BRIDGED, 0), udp(family, BRIDGED, (7, 53), 9), echo(family, BRIDGED, 1200)])
            .collect();
        let mut matched = [0, 0];
        for _ in 0..number("PODLANE_ROUNDS", 8) * 10 {
            let length = 2 + random.below(30);
            let mut instructions: Vec<_> =
                (0..length).map(|at| random_instruction(&mut random, length + 1 - at)).collect();
            instructions.extend([(RET | A, 0, 0, 0), (RET | K, 0, 0, 1)]);
            let filter = program(&instructions);
            for path in [ServedBy::Kernel, ServedBy::AfXdp] {
                // On the XDP side only what passes is recorded.
                world.change_port(POD_PORT, |port| (port.path, port.forwarding) = (path, path == ServedBy::Kernel));
                let wish = Wish { filter: filter.clone(), tx: false, ..everything() };
                world.steering.start_capture(&wish).unwrap_or_else(|error| panic!("{error}: {instructions:?}"));
                for frame in &frames {
                    match path {
                        ServedBy::Kernel => drop(world.steering.test_repeat(frame, a, 0, 1).unwrap()),
                        ServedBy::AfXdp => drop(world.steering.test_run(frame, frame.len().min(60), a, 0, 1)),
                    }
                    let recorded = listener.take(2000).len();
                    let expected = usize::from(filter.matches(frame.as_slice()));
                    assert_eq!(recorded, expected, "{path:?} {instructions:?}\n{frame:02x?}");
                    matched[expected] += 1;
                }
            }
        }
        assert!(matched.iter().all(|count| *count > 100), "too one-sided: {matched:?}");
    });
}
