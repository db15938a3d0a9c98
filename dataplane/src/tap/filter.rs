//! Filters: classic BPF programs, as libpcap compiles them from pcap-filter expressions, checked once and then interpreted.
//!
//! A checked program cannot loop (it only jumps forward) and reads nothing but the frame: a read beyond its end rejects the
//! frame, as `bpf_filter(3)` does. The loader translates the same programs for the kernel's side.

/// Instructions of a filter at most.
pub const MAX_INSTRUCTIONS: usize = 1024;
/// Words of a program's scratch memory (`BPF_MEMWORDS`).
pub const MEMORY_WORDS: usize = 16;

/// Instruction codes: class, size and mode or operation and source (`linux/filter.h`, `linux/bpf_common.h`).
#[allow(missing_docs)]
pub mod code {
    pub const LD: u16 = 0x00;
    pub const LDX: u16 = 0x01;
    pub const ST: u16 = 0x02;
    pub const STX: u16 = 0x03;
    pub const ALU: u16 = 0x04;
    pub const JMP: u16 = 0x05;
    pub const RET: u16 = 0x06;
    pub const MISC: u16 = 0x07;
    pub const W: u16 = 0x00;
    pub const H: u16 = 0x08;
    pub const B: u16 = 0x10;
    pub const IMM: u16 = 0x00;
    pub const ABS: u16 = 0x20;
    pub const IND: u16 = 0x40;
    pub const MEM: u16 = 0x60;
    pub const LEN: u16 = 0x80;
    pub const MSH: u16 = 0xa0;
    pub const ADD: u16 = 0x00;
    pub const SUB: u16 = 0x10;
    pub const MUL: u16 = 0x20;
    pub const DIV: u16 = 0x30;
    pub const OR: u16 = 0x40;
    pub const AND: u16 = 0x50;
    pub const LSH: u16 = 0x60;
    pub const RSH: u16 = 0x70;
    pub const NEG: u16 = 0x80;
    pub const MOD: u16 = 0x90;
    pub const XOR: u16 = 0xa0;
    pub const JA: u16 = 0x00;
    pub const JEQ: u16 = 0x10;
    pub const JGT: u16 = 0x20;
    pub const JGE: u16 = 0x30;
    pub const JSET: u16 = 0x40;
    pub const K: u16 = 0x00;
    pub const X: u16 = 0x08;
    pub const A: u16 = 0x10;
    pub const TAX: u16 = 0x00;
    pub const TXA: u16 = 0x80;
}

use code::*;

/// One instruction (`struct sock_filter`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Instruction {
    /// See [`code`].
    pub code: u16,
    /// Instructions to skip if a comparison holds.
    pub jt: u8,
    /// Instructions to skip if not.
    pub jf: u8,
    /// The operand.
    pub k: u32,
}

/// A program that is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FilterError {
    /// Empty.
    #[error("the filter is empty")]
    Empty,
    /// Longer than [`MAX_INSTRUCTIONS`].
    #[error("the filter has {0} instructions, more than {MAX_INSTRUCTIONS}: simplify the expression")]
    TooLong(usize),
    /// An instruction that there is not.
    #[error("instruction {0} of the filter is unknown")]
    Unknown(usize),
    /// A jump behind the end, or no return at the end.
    #[error("instruction {0} of the filter leads beyond its end")]
    Beyond(usize),
    /// An operand that cannot be: a memory word that there is not, or a division by zero.
    #[error("instruction {0} of the filter has an impossible operand")]
    Operand(usize),
}

/// The bytes of a frame, in one or more pieces.
pub trait Bytes {
    /// Bytes of all pieces together.
    fn len(&self) -> u32;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies the bytes from `at` on to `out`, as many as it holds. False, and `out` undefined, if there are not so many.
    fn read(&self, at: u32, out: &mut [u8]) -> bool;
}

impl Bytes for [u8] {
    fn len(&self) -> u32 {
        <[u8]>::len(self) as u32
    }

    #[inline]
    fn read(&self, at: u32, out: &mut [u8]) -> bool {
        let from = self.get(at as usize..).and_then(|from| from.get(..out.len()));
        from.map(|from| out.copy_from_slice(from)).is_some()
    }
}

/// A checked filter.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Filter {
    instructions: Box<[Instruction]>,
}

impl Filter {
    /// Checks a program.
    ///
    /// # Errors
    /// [`FilterError`]: it could do anything but look at a frame and end.
    pub fn new(instructions: Vec<Instruction>) -> Result<Self, FilterError> {
        match instructions.len() {
            0 => return Err(FilterError::Empty),
            count if count > MAX_INSTRUCTIONS => return Err(FilterError::TooLong(count)),
            _ => {}
        }
        for (at, instruction) in instructions.iter().enumerate() {
            check(at, *instruction, instructions.len())?;
        }
        Ok(Filter { instructions: instructions.into() })
    }

    /// The filter that every frame matches.
    pub fn everything() -> Self {
        Filter { instructions: [Instruction { code: RET | K, jt: 0, jf: 0, k: u32::MAX }].into() }
    }

    /// The program.
    pub fn instructions(&self) -> &[Instruction] {
        &self.instructions
    }

    /// Whether it looks at anything that routing changes (MAC addresses, TTL or hop limit, IPv4 header checksum), so that a
    /// frame may match before and not after. True when in doubt.
    pub fn looks_at_rewritten_bytes(&self) -> bool {
        /// Behind the IPv4 header checksum nothing is changed.
        const REWRITTEN: u32 = 26;
        /// The EtherType, which stays.
        const ETHERTYPE: std::ops::Range<u32> = 12..14;
        // In a packet that is routed, X is then 20 wherever libpcap's programs use it.
        let x_is_header_length = self.instructions.iter().all(|one| match one.code & 0x07 {
            LDX => one.code & 0xe0 == MSH && one.k == ETHERTYPE.end,
            MISC => one.code & 0xf8 == TXA,
            _ => true,
        });
        self.instructions.iter().any(|instruction| {
            let (class, mode) = (instruction.code & 0x07, instruction.code & 0xe0);
            let bytes = read_bytes(instruction.code);
            let stays =
                |at: u32| at >= REWRITTEN || (at >= ETHERTYPE.start && at + bytes <= 21) || (at == 23 && bytes == 1);
            match (class, mode) {
                (LD, ABS) => !stays(instruction.k),
                (LD, IND) => instruction.k < REWRITTEN && !(x_is_header_length && instruction.k >= ETHERTYPE.end),
                (LDX, MSH) => !stays(instruction.k),
                _ => false,
            }
        })
    }

    /// Whether a frame matches.
    pub fn matches<F: Bytes + ?Sized>(&self, frame: &F) -> bool {
        let (mut a, mut x, mut memory) = (0u32, 0u32, [0u32; MEMORY_WORDS]);
        let mut at = 0;
        // Jumps lead forward and a return ends it, so this comes to an end, and never leaves the program.
        while let Some(&Instruction { code, jt, jf, k }) = self.instructions.get(at) {
            at += 1;
            let operand = if code & X == 0 { k } else { x };
            match code & 0x07 {
                LD | LDX => {
                    let Some(value) = load(code, k, x, &memory, frame) else { return false };
                    *(if code & 0x07 == LD { &mut a } else { &mut x }) = value;
                }
                ST => memory[k as usize % MEMORY_WORDS] = a,
                STX => memory[k as usize % MEMORY_WORDS] = x,
                ALU => match compute(code, a, operand) {
                    Some(value) => a = value,
                    None => return false,
                },
                JMP if code & 0xf0 == JA => at += k as usize,
                JMP => at += usize::from(if holds(code, a, operand) { jt } else { jf }),
                RET => return if code & 0x18 == A { a != 0 } else { k != 0 },
                _ => {
                    if code & 0xf8 == TAX {
                        x = a;
                    } else {
                        a = x;
                    }
                }
            }
        }
        false
    }
}

/// Bytes that a load from the frame takes.
pub fn read_bytes(code: u16) -> u32 {
    match code & 0x18 {
        H => 2,
        B => 1,
        _ => 4,
    }
}

#[inline]
fn load<F: Bytes + ?Sized>(code: u16, k: u32, x: u32, memory: &[u32; MEMORY_WORDS], frame: &F) -> Option<u32> {
    let at = match code & 0xe0 {
        IMM => return Some(k),
        LEN => return Some(frame.len()),
        MEM => return Some(memory[k as usize % MEMORY_WORDS]),
        IND => k.checked_add(x)?,
        _ => k,
    };
    let mut bytes = [0; 4];
    let read = &mut bytes[4 - read_bytes(code) as usize..];
    if !frame.read(at, read) {
        return None;
    }
    let value = u32::from_be_bytes(bytes);
    Some(if code & 0xe0 == MSH { (value & 0xf) << 2 } else { value })
}

/// `None` for a division by zero, which rejects the frame.
#[inline]
fn compute(code: u16, a: u32, operand: u32) -> Option<u32> {
    Some(match code & 0xf0 {
        ADD => a.wrapping_add(operand),
        SUB => a.wrapping_sub(operand),
        MUL => a.wrapping_mul(operand),
        DIV => a.checked_div(operand)?,
        MOD => a.checked_rem(operand)?,
        OR => a | operand,
        AND => a & operand,
        XOR => a ^ operand,
        LSH => a.checked_shl(operand).unwrap_or(0),
        RSH => a.checked_shr(operand).unwrap_or(0),
        _ => a.wrapping_neg(),
    })
}

#[inline]
fn holds(code: u16, a: u32, operand: u32) -> bool {
    match code & 0xf0 {
        JEQ => a == operand,
        JGT => a > operand,
        JGE => a >= operand,
        _ => a & operand != 0,
    }
}

fn check(at: usize, instruction: Instruction, length: usize) -> Result<(), FilterError> {
    let Instruction { code, jt, jf, k } = instruction;
    let inside = |skip: u64| at as u64 + 1 + skip < length as u64;
    let (known, fits, possible) = match code & 0x07 {
        LD | LDX if code & 0xe0 == MEM && code & 0x18 == 0 => (true, inside(0), (k as usize) < MEMORY_WORDS),
        LD => (LOADS.contains(&code), inside(0), true),
        LDX => (X_LOADS.contains(&code), inside(0), true),
        ST | STX => (code <= STX, inside(0), (k as usize) < MEMORY_WORDS),
        ALU => {
            let divides = matches!(code & 0xf0, DIV | MOD) && code & X == 0;
            let shifts = matches!(code & 0xf0, LSH | RSH) && code & X == 0;
            let known = code <= (ALU | XOR | X) && !(code & 0xf0 == NEG && code & X != 0);
            (known, inside(0), !(divides && k == 0 || shifts && k > 31))
        }
        JMP if code == JMP | JA => (true, inside(u64::from(k)), true),
        JMP => {
            let known = matches!(code & 0xf0, JEQ | JGT | JGE | JSET) && code <= (JMP | JSET | X);
            (known, inside(u64::from(jt)) && inside(u64::from(jf)), true)
        }
        RET => (code == RET | K || code == RET | A, true, true),
        _ => (code == MISC | TAX || code == MISC | TXA, inside(0), true),
    };
    match (known, fits, possible) {
        (false, ..) => Err(FilterError::Unknown(at)),
        (_, false, _) => Err(FilterError::Beyond(at)),
        (_, _, false) => Err(FilterError::Operand(at)),
        _ => Ok(()),
    }
}

const LOADS: [u16; 8] =
    [LD | W | IMM, LD | W | LEN, LD | W | ABS, LD | H | ABS, LD | B | ABS, LD | W | IND, LD | H | IND, LD | B | IND];
const X_LOADS: [u16; 3] = [LDX | W | IMM, LDX | W | LEN, LDX | B | MSH];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> Instruction {
        Instruction { code, jt, jf, k }
    }

    /// `tcpdump -d -y EN10MB tcp port 80`, as libpcap 1.10 compiles it.
    fn tcp_port_80() -> Filter {
        let program = [
            (0x28, 0, 0, 12),
            (0x15, 0, 6, 0x86dd),
            (0x30, 0, 0, 20),
            (0x15, 0, 15, 6),
            (0x28, 0, 0, 54),
            (0x15, 12, 0, 80),
            (0x28, 0, 0, 56),
            (0x15, 10, 11, 80),
            (0x15, 0, 10, 0x800),
            (0x30, 0, 0, 23),
            (0x15, 0, 8, 6),
            (0x28, 0, 0, 20),
            (0x45, 6, 0, 0x1fff),
            (0xb1, 0, 0, 14),
            (0x48, 0, 0, 14),
            (0x15, 2, 0, 80),
            (0x48, 0, 0, 16),
            (0x15, 0, 1, 80),
            (0x06, 0, 0, 262_144),
            (0x06, 0, 0, 0),
        ];
        Filter::new(program.map(|(code, jt, jf, k)| instruction(code, jt, jf, k)).to_vec()).unwrap()
    }

    fn segment(to: u16) -> Vec<u8> {
        let builder = etherparse::PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
        let mut frame = Vec::new();
        builder.tcp(40_000, to, 1, 1000).write(&mut frame, &[0; 10]).unwrap();
        frame
    }

    #[test]
    fn a_port_is_found() {
        let filter = tcp_port_80();
        assert!(filter.matches(segment(80).as_slice()));
        assert!(!filter.matches(segment(81).as_slice()));
        assert!(!filter.matches(&segment(80)[..35]), "cut off before the port");
        assert!(Filter::everything().matches([].as_slice()));
    }

    #[test]
    fn what_could_do_harm_is_refused() {
        let end = instruction(RET | K, 0, 0, 1);
        let refused = |program: &[Instruction]| Filter::new(program.to_vec()).unwrap_err();
        assert_eq!(refused(&[]), FilterError::Empty);
        assert_eq!(refused(&vec![end; MAX_INSTRUCTIONS + 1]), FilterError::TooLong(MAX_INSTRUCTIONS + 1));
        assert_eq!(refused(&[instruction(LD | W | IMM, 0, 0, 1)]), FilterError::Beyond(0));
        assert_eq!(refused(&[instruction(JMP | JA, 0, 0, u32::MAX), end]), FilterError::Beyond(0));
        assert_eq!(refused(&[instruction(JMP | JEQ, 0, 1, 0), end]), FilterError::Beyond(0));
        assert_eq!(refused(&[instruction(ST, 0, 0, 16), end]), FilterError::Operand(0));
        assert_eq!(refused(&[instruction(LD | MEM, 0, 0, 16), end]), FilterError::Operand(0));
        assert_eq!(refused(&[instruction(ALU | DIV | K, 0, 0, 0), end]), FilterError::Operand(0));
        assert_eq!(refused(&[instruction(ALU | LSH | K, 0, 0, 32), end]), FilterError::Operand(0));
        for code in [RET | X, LD | W | MSH, LDX | H | IMM, ALU | 0xb0, ALU | NEG | X, JMP | 0x50, MISC | 0x08, 0x100] {
            assert_eq!(refused(&[instruction(code, 0, 0, 0), end]), FilterError::Unknown(0), "{code:#x}");
        }
    }

    #[test]
    fn it_is_known_what_routing_changes() {
        let looks = |code: u16, k: u32| {
            let program = vec![instruction(code, 0, 0, k), instruction(RET | K, 0, 0, 1)];
            Filter::new(program).unwrap().looks_at_rewritten_bytes()
        };
        for (code, k, expected) in [
            (LD | W | ABS, 0, true),
            (LD | H | ABS, 11, true),
            (LD | H | ABS, 12, false),
            (LD | B | ABS, 20, false),
            (LD | H | ABS, 20, true),
            (LD | B | ABS, 21, true),
            (LD | B | ABS, 22, true),
            (LD | B | ABS, 23, false),
            (LD | H | ABS, 24, true),
            (LD | W | ABS, 26, false),
            (LD | H | IND, 4, true),
            (LD | H | IND, 14, false),
            (LD | W | LEN, 0, false),
        ] {
            assert_eq!(looks(code, k), expected, "{code:#x} {k}");
        }
        assert!(!Filter::everything().looks_at_rewritten_bytes());
        // The fragment offset of IPv4 stands where IPv6 has its hop limit.
        assert!(tcp_port_80().looks_at_rewritten_bytes());
    }

    proptest! {
        #[test]
        fn no_program_that_passes_the_check_does_harm(
            program in prop::collection::vec((any::<u16>(), any::<u8>(), any::<u8>(), any::<u32>()), 1..40),
            frame in prop::collection::vec(any::<u8>(), 0..80),
        ) {
            let mut program: Vec<_> = program
                .into_iter()
                .map(|(code, jt, jf, k)| instruction(code & 0xff, jt % 8, jf % 8, if k % 2 == 0 { k % 100 } else { k }))
                .filter(|one| check(0, *one, 300).is_ok())
                .collect();
            program.extend([instruction(RET | A, 0, 0, 0); 9]);
            if let Ok(filter) = Filter::new(program) {
                filter.matches(frame.as_slice());
                filter.looks_at_rewritten_bytes();
            }
        }
    }
}
