//! Capture filters: any classic program, checked; what it means by the interpreter and by the translation for the kernel.
//!
//! The kernel is not needed: a small machine runs the translated program and objects to what the kernel's verifier would
//! object to: a jump backwards or out of the program, an instruction that no jump leads to, a read of what nobody wrote, of
//! what lies outside of the frame's linear part, or of a register that a helper may have changed.
//!
//! Input: how many instructions there are (8 bits), each as code, jt, jf (8 bits each) and k (32 bits, little-endian); bytes of
//! the frame's linear part (8 bits); and the frame.

use std::collections::BTreeSet;

use podlane::outside;
use podlane_dataplane::tap::{Filter, Instruction};

use crate::Seeds;
use crate::decide::frames;

/// Bytes of an instruction in the input.
const INSTRUCTION: usize = 7;

/// Checks the program, and runs it both ways if it is one.
///
/// # Panics
/// If the two ways differ, or the translation is none that a verifier would take.
pub fn run(bytes: &[u8]) {
    let Some((count, rest)) = bytes.split_first() else { return };
    let Some((program, rest)) = rest.split_at_checked(usize::from(*count) * INSTRUCTION) else { return };
    let Some((linear, frame)) = rest.split_first() else { return };
    let instruction = |bytes: &[u8]| Instruction {
        code: bytes[0].into(),
        jt: bytes[1],
        jf: bytes[2],
        k: u32::from_le_bytes([bytes[3], bytes[4], bytes[5], bytes[6]]),
    };
    let program: Vec<_> = program.chunks_exact(INSTRUCTION).map(instruction).collect();
    let filter = match Filter::new(program) {
        Ok(filter) => filter,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let expected = filter.matches(frame);
    filter.looks_at_rewritten_bytes();
    for for_tc in [false, true] {
        let translated = outside::filter(&filter, for_tc);
        check_shape(&translated);
        let machine = Machine::new(frame, frame.len().min(usize::from(*linear)), for_tc);
        assert_eq!(machine.run(&translated), expected, "for tc: {for_tc}, {filter:?}");
    }
}

/// Fields of a translated instruction.
struct Decoded {
    code: u8,
    to: usize,
    from: usize,
    offset: i16,
    immediate: i32,
}

fn decode(bytes: &[u8; 8]) -> Decoded {
    let (high, low) = (usize::from(bytes[1] >> 4), usize::from(bytes[1] & 15));
    let (to, from) = if cfg!(target_endian = "big") { (high, low) } else { (low, high) };
    Decoded {
        code: bytes[0],
        to,
        from,
        offset: i16::from_ne_bytes([bytes[2], bytes[3]]),
        immediate: i32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
    }
}

const LOAD_MAP: u8 = 0x18;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
const ALWAYS: u8 = 0x05;

/// Jumps lead forward and to instructions, and one of them or the one before leads to every instruction.
fn check_shape(program: &[[u8; 8]]) {
    assert!(program.len() < usize::from(u16::MAX / 2), "distances fit");
    let mut led_to = BTreeSet::from([0]);
    let mut at = 0;
    while at < program.len() {
        assert!(led_to.contains(&at), "nothing leads to instruction {at}");
        let one = decode(&program[at]);
        let next = at + if one.code == LOAD_MAP { 2 } else { 1 };
        let is_jump = matches!(one.code & 7, 5 | 6) && !matches!(one.code, CALL | EXIT);
        if is_jump {
            assert!(one.offset >= 0, "instruction {at} jumps backwards");
            led_to.insert(next + one.offset as usize);
        }
        if !matches!(one.code, EXIT | ALWAYS) {
            led_to.insert(next);
        }
        at = next;
    }
    assert!(led_to.iter().all(|to| *to < program.len()), "a jump leads out of the program");
}

// Where things lie in the machine's memory.
const CONTEXT_AT: u64 = 0x1000_0000;
const FRAME_AT: u64 = 0x2000_0000;
const STACK_AT: u64 = 0x3000_0000;
const SCRATCH_AT: u64 = 0x4000_0000;
const STACK: usize = 512;

/// As much of a BPF machine as translated programs use.
struct Machine<'a> {
    /// `None`: nothing that may be read.
    registers: [Option<u64>; 11],
    stack: [Option<u8>; STACK],
    frame: &'a [u8],
    linear: usize,
    for_tc: bool,
    /// What the program noted.
    noted: Option<u32>,
}

impl<'a> Machine<'a> {
    fn new(frame: &'a [u8], linear: usize, for_tc: bool) -> Self {
        let mut registers = [None; 11];
        registers[1] = Some(CONTEXT_AT);
        registers[10] = Some(STACK_AT + STACK as u64);
        Machine { registers, stack: [None; STACK], frame, linear, for_tc, noted: None }
    }

    fn get(&self, register: usize) -> u64 {
        self.registers[register].expect("a register that holds something")
    }

    /// Runs to the call of the next stage; whether the frame matches.
    fn run(mut self, program: &[[u8; 8]]) -> bool {
        let mut at = 0;
        loop {
            let one = decode(&program[at]);
            at += 1;
            match (one.code, one.code & 7) {
                (LOAD_MAP, _) => {
                    self.registers[one.to] = Some(one.immediate as u64);
                    at += 1;
                }
                (CALL, _) if one.immediate == 12 => {
                    assert_eq!((self.get(1), self.get(2), self.get(3)), (CONTEXT_AT, 4, 1), "the next stage");
                    return self.noted.expect("the outcome was noted") != 0;
                }
                (CALL, _) => self.call(one.immediate),
                (0xdc, _) => {
                    let value = self.get(one.to);
                    self.registers[one.to] = Some(match one.immediate {
                        16 => u64::from((value as u16).to_be()),
                        32 => u64::from((value as u32).to_be()),
                        bits => panic!("{bits} bits"),
                    });
                }
                (_, 1) => self.registers[one.to] = Some(self.load(&one)),
                (_, 2) => self.store(&one, one.immediate as u32),
                (_, 3) => self.store(&one, self.get(one.from) as u32),
                (_, 4 | 7) => self.compute(&one),
                (_, 5 | 6) => at += if self.holds(&one) { one.offset as usize } else { 0 },
                (code, _) => panic!("no instruction {code:#x}"),
            }
        }
    }

    fn load(&self, one: &Decoded) -> u64 {
        let bytes = match one.code & 0x18 {
            0x08 => 2,
            0x10 => 1,
            _ => 4,
        };
        let at = self.get(one.from).wrapping_add_signed(one.offset.into());
        if at >= STACK_AT {
            let start = (at - STACK_AT) as usize;
            let read = &self.stack[start..start + bytes];
            return as_number(read.iter().map(|byte| byte.expect("stack that was written")));
        }
        if at >= FRAME_AT {
            let start = (at - FRAME_AT) as usize;
            assert!(start + bytes <= self.linear, "a read behind the linear part");
            return as_number(self.frame[start..start + bytes].iter().copied());
        }
        let data = if self.for_tc { 76 } else { 0 };
        match at - CONTEXT_AT {
            0 if self.for_tc => self.frame.len() as u64,
            offset if offset == data => FRAME_AT,
            offset if offset == data + 4 => FRAME_AT + self.linear as u64,
            offset => panic!("a read of the context at {offset}"),
        }
    }

    fn store(&mut self, one: &Decoded, value: u32) {
        let at = self.get(one.to).wrapping_add_signed(one.offset.into());
        if at == SCRATCH_AT {
            self.noted = Some(value);
            return;
        }
        self.write((at - STACK_AT) as usize, &value.to_ne_bytes());
    }

    fn write(&mut self, start: usize, bytes: &[u8]) {
        for (place, byte) in self.stack[start..start + bytes.len()].iter_mut().zip(bytes) {
            *place = Some(*byte);
        }
    }

    fn compute(&mut self, one: &Decoded) {
        let wide = one.code & 7 == 7;
        let operand = if one.code & 8 == 0 { one.immediate as i64 as u64 } else { self.get(one.from) };
        let before = if one.code & 0xf0 == 0xb0 { 0 } else { self.get(one.to) };
        let (a, b) = (before as u32, operand as u32);
        let value = match (wide, one.code & 0xf0) {
            (true, 0x00) => before.wrapping_add(operand),
            (true, 0xb0) => operand,
            (true, operation) => panic!("no wide operation {operation:#x}"),
            (false, 0x00) => a.wrapping_add(b).into(),
            (false, 0x10) => a.wrapping_sub(b).into(),
            (false, 0x20) => a.wrapping_mul(b).into(),
            (false, 0x30) => a.checked_div(b).unwrap_or(0).into(),
            (false, 0x40) => (a | b).into(),
            (false, 0x50) => (a & b).into(),
            (false, 0x60) => a.wrapping_shl(b).into(),
            (false, 0x70) => a.wrapping_shr(b).into(),
            (false, 0x80) => a.wrapping_neg().into(),
            (false, 0x90) => a.checked_rem(b).unwrap_or(a).into(),
            (false, 0xa0) => (a ^ b).into(),
            (false, 0xb0) => b.into(),
            (false, operation) => panic!("no operation {operation:#x}"),
        };
        self.registers[one.to] = Some(value);
    }

    fn holds(&self, one: &Decoded) -> bool {
        if one.code == ALWAYS {
            return true;
        }
        let mask = if one.code & 7 == 6 { u64::from(u32::MAX) } else { u64::MAX };
        let operand = if one.code & 8 == 0 { one.immediate as i64 as u64 } else { self.get(one.from) };
        let (a, b) = (self.get(one.to) & mask, operand & mask);
        match one.code & 0xf0 {
            0x10 => a == b,
            0x20 => a > b,
            0x30 => a >= b,
            0x40 => a & b != 0,
            0x50 => a != b,
            0xa0 => a < b,
            condition => panic!("no condition {condition:#x}"),
        }
    }

    /// A helper; registers 1 to 5 hold nothing afterwards.
    fn call(&mut self, helper: i32) {
        let load_bytes = if self.for_tc { 26 } else { 189 };
        let value = match helper {
            1 => {
                assert_eq!(self.get(1), 3, "the scratch map");
                let key = (self.get(2) - STACK_AT) as usize;
                assert!(self.stack[key..key + 4].iter().all(|byte| *byte == Some(0)), "its only element");
                SCRATCH_AT
            }
            188 if !self.for_tc => {
                assert_eq!(self.get(1), CONTEXT_AT);
                self.frame.len() as u64
            }
            helper if helper == load_bytes => self.load_bytes(),
            helper => panic!("no helper {helper}"),
        };
        self.registers[1..=5].fill(None);
        self.registers[0] = Some(value);
    }

    /// `bpf_xdp_load_bytes` and `bpf_skb_load_bytes`: offsets have 32 bits, and nothing is read by what fails.
    fn load_bytes(&mut self) -> u64 {
        assert_eq!(self.get(1), CONTEXT_AT);
        let (from, to, bytes) = (self.get(2) as u32 as usize, (self.get(3) - STACK_AT) as usize, self.get(4) as usize);
        assert!(matches!(bytes, 1 | 2 | 4));
        let Some(read) = self.frame.get(from..from + bytes) else { return -14_i64 as u64 };
        self.write(to, read);
        0
    }
}

/// Bytes in the machine's order.
fn as_number(bytes: impl ExactSizeIterator<Item = u8>) -> u64 {
    let place = |(at, count): (usize, usize)| if cfg!(target_endian = "big") { count - 1 - at } else { at };
    let count = bytes.len();
    bytes.enumerate().map(|(at, byte)| u64::from(byte) << (8 * place((at, count)))).sum()
}

/// Code, jt, jf and k.
type Classic = (u8, u8, u8, u32);

/// tcp port 80, as libpcap compiles it for IPv4.
const PORT: [Classic; 11] = [
    (0x28, 0, 0, 12),
    (0x15, 0, 8, 0x800),
    (0x30, 0, 0, 23),
    (0x15, 0, 6, 6),
    (0x28, 0, 0, 20),
    (0x45, 4, 0, 0x1fff),
    (0xb1, 0, 0, 14),
    (0x48, 0, 0, 16),
    (0x15, 0, 1, 80),
    (0x06, 0, 0, 262_144),
    (0x06, 0, 0, 0),
];

/// Both shifts and a division by X, the scratch memory, and X from the scratch memory.
const ARITHMETIC: [Classic; 15] = [
    (0x20, 0, 0, 26),
    (0x02, 0, 0, 3),
    (0x61, 0, 0, 3),
    (0x0c, 0, 0, 0),
    (0x54, 0, 0, 0x3f),
    (0x07, 0, 0, 0),
    (0x00, 0, 0, 77),
    (0x6c, 0, 0, 0),
    (0x3c, 0, 0, 0),
    (0x9c, 0, 0, 0),
    (0x84, 0, 0, 0),
    (0xa4, 0, 0, 5),
    (0x7c, 0, 0, 0),
    (0x03, 0, 0, 15),
    (0x16, 0, 0, 0),
];

/// Far offsets, and one that wraps around.
const FAR: [Classic; 6] = [
    (0x01, 0, 0, u32::MAX),
    (0x48, 0, 0, 20),
    (0x20, 0, 0, 0x7f00),
    (0x28, 0, 0, 0xf_ffff),
    (0x30, 0, 0, u32::MAX),
    (0x16, 0, 0, 0),
];

/// Jumps over instructions that nothing leads to.
const JUMPS: [Classic; 8] = [
    (0x05, 0, 0, 2),
    (0x06, 0, 0, 0),
    (0x87, 0, 0, 0),
    (0x1d, 1, 0, 0),
    (0x2d, 0, 0, 0),
    (0x3d, 0, 1, 0),
    (0x4d, 0, 0, 9),
    (0x06, 0, 0, 7),
];

/// Programs as libpcap compiles them, and odd ones, before different frames.
pub fn seeds() -> Seeds {
    let programs: [(&str, &[Classic]); 6] = [
        ("everything", &[(0x06, 0, 0, u32::MAX)]),
        ("port", &PORT),
        // greater 100
        ("length", &[(0x80, 0, 0, 0), (0x35, 0, 1, 100), (0x06, 0, 0, 1), (0x06, 0, 0, 0)]),
        ("arithmetic", &ARITHMETIC),
        ("far", &FAR),
        ("jumps", &JUMPS),
    ];
    let frames = frames(3);
    let mut all = Vec::new();
    for (name, program) in programs {
        for (number, (_, frame)) in frames.iter().enumerate() {
            let mut input = vec![program.len() as u8];
            for (code, jt, jf, k) in program {
                input.extend([*code, *jt, *jf]);
                input.extend(k.to_le_bytes());
            }
            input.push([255, 14, 40][number]);
            input.extend(frame);
            all.push((format!("{name}-{number}"), input));
        }
    }
    all
}
