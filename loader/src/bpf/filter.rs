//! Translates a capture's filter from classic BPF into a program that the kernel runs in front of ours (`bpf/capture.h`).
//!
//! Every classic instruction becomes a few of today's. Loads look into the linear part of the frame first and ask a helper
//! for what lies behind it. The translated program notes in the scratch map whether the frame matches and calls on to the
//! next stage. What it means is the meaning of [`Filter::matches`]; a test runs both on random programs and frames.

use podlane_dataplane::tap::filter::{MEMORY_WORDS, code, read_bytes};
use podlane_dataplane::tap::{Filter, Instruction as Classic};

/// What kind of program a translated one stands in front of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Hook {
    /// XDP.
    Xdp,
    /// tc.
    Tc,
}

impl Hook {
    /// Offset of `data` in the context; `data_end` follows it.
    fn data(self) -> i16 {
        match self {
            Hook::Xdp => 0,
            Hook::Tc => 76,
        }
    }

    /// `bpf_xdp_load_bytes`, `bpf_skb_load_bytes`.
    fn load_bytes(self) -> i32 {
        match self {
            Hook::Xdp => 189,
            Hook::Tc => 26,
        }
    }

    /// `XDP_PASS`, `TCX_NEXT`: if the next stage is not there, the frame is the kernel's.
    fn leave_alone(self) -> i32 {
        match self {
            Hook::Xdp => 2,
            Hook::Tc => -1,
        }
    }
}

/// One instruction of today's BPF (`struct bpf_insn`).
pub(crate) type Instruction = [u8; 8];

// Registers, by what they hold throughout: helpers keep 6 to 9.
const R0: u8 = 0;
const R1: u8 = 1;
const R2: u8 = 2;
const R3: u8 = 3;
const R4: u8 = 4;
const CONTEXT: u8 = 6;
const A: u8 = 7;
const X: u8 = 8;
const DATA: u8 = 9;
const FRAME: u8 = 10;

/// 32-bit arithmetic: the upper half of the result is zero.
const ALU: u8 = code::ALU as u8;
// Instruction codes that classic BPF does not have (linux/bpf.h).
const ALU64: u8 = 0x07;
const JMP64: u8 = 0x05;
const JMP32: u8 = 0x06;
const LOAD: u8 = 0x61;
const STORE: u8 = 0x63;
const STORE_IMMEDIATE: u8 = 0x62;
const LOAD_MAP: u8 = 0x18;
const MOV: u8 = 0xb0;
const TO_BIG_ENDIAN: u8 = 0xdc;
const JNE: u8 = 0x50;
const JLT: u8 = 0xa0;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
const IMMEDIATE: u8 = 0;
const REGISTER: u8 = 8;
const PSEUDO_MAP_FD: u8 = 1;
const MAP_LOOKUP: i32 = 1;
const TAIL_CALL: i32 = 12;
const XDP_BUFF_LEN: i32 = 188;

/// Where a load's bytes land on the stack, and where the classic scratch memory begins.
const LOADED: i16 = -8;
const MEMORY: i16 = LOADED - 4 * MEMORY_WORDS as i16;
/// Frames end before this, so that a sum beyond it need not be read.
const FAR: i32 = 0xfffff;

fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    let [low, high] = offset.to_ne_bytes();
    let [a, b, c, d] = immediate.to_ne_bytes();
    let registers = if cfg!(target_endian = "big") { to << 4 | from } else { to | from << 4 };
    [code, registers, low, high, a, b, c, d]
}

/// `BPF_LDX | BPF_MEM` of so many bytes.
fn load_of(bytes: u32) -> u8 {
    match bytes {
        1 => 0x71,
        2 => 0x69,
        _ => LOAD,
    }
}

/// Where a jump leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Target {
    /// To a classic instruction.
    Classic(usize),
    /// To the instruction of this number.
    Here(usize),
    /// The frame does not match.
    Reject,
    /// It does.
    Accept,
}

struct Translation {
    hook: Hook,
    program: Vec<Instruction>,
    /// Where each classic instruction begins.
    places: Vec<usize>,
    jumps: Vec<(usize, Target)>,
}

/// Translates `filter`. `scratch` and `stages` are the maps of `bpf/capture.h`; the program goes on with stage `next`.
pub(crate) fn translate(filter: &Filter, hook: Hook, scratch: i32, stages: i32, next: i32) -> Vec<Instruction> {
    let mut all = Translation { hook, program: Vec::new(), places: Vec::new(), jumps: Vec::new() };
    all.begin(filter);
    let reachable = reachable(filter.instructions());
    for (at, classic) in filter.instructions().iter().enumerate() {
        all.places.push(all.program.len());
        // The kernel refuses programs with instructions that no jump leads to.
        if reachable[at] {
            all.one(at, *classic);
        }
    }
    all.end(scratch, stages, next);
    all.program
}

/// Which instructions can be come to.
fn reachable(program: &[Classic]) -> Vec<bool> {
    let mut reachable = vec![false; program.len()];
    reachable[0] = true;
    for (at, &Classic { code, jt, jf, k }) in program.iter().enumerate() {
        let skips: &[usize] = match code & 0x07 {
            code::RET => &[],
            code::JMP if code & 0xf0 == code::JA => &[k as usize],
            code::JMP => &[jt.into(), jf.into()],
            _ => &[0],
        };
        if reachable[at] {
            skips.iter().for_each(|skip| reachable[at + 1 + skip] = true);
        }
    }
    reachable
}

impl Translation {
    fn put(&mut self, code: u8, to: u8, from: u8, offset: i16, immediate: i32) {
        self.program.push(instruction(code, to, from, offset, immediate));
    }

    fn jump(&mut self, code: u8, to: u8, from: u8, immediate: i32, target: Target) {
        self.jumps.push((self.program.len(), target));
        self.put(code, to, from, 0, immediate);
    }

    fn begin(&mut self, filter: &Filter) {
        self.put(ALU64 | MOV | REGISTER, CONTEXT, R1, 0, 0);
        self.put(LOAD, DATA, CONTEXT, self.hook.data(), 0);
        self.put(ALU | MOV, A, 0, 0, 0);
        self.put(ALU | MOV, X, 0, 0, 0);
        // Never taken, but now there is a way to both ends whatever the filter does.
        self.jump(JMP32 | JNE, A, 0, 0, Target::Reject);
        self.jump(JMP32 | JNE, A, 0, 0, Target::Accept);
        let uses_memory =
            |one: &Classic| matches!(one.code & 0x07, code::LD | code::LDX) && one.code & 0xe0 == code::MEM;
        if filter.instructions().iter().any(uses_memory) {
            for word in 0..MEMORY_WORDS as i16 {
                self.put(STORE_IMMEDIATE, FRAME, 0, MEMORY + 4 * word, 0);
            }
        }
    }

    fn one(&mut self, at: usize, classic: Classic) {
        let Classic { code, k, .. } = classic;
        let word = MEMORY + 4 * (k as usize % MEMORY_WORDS) as i16;
        let to = if code & 0x07 == code::LDX { X } else { A };
        match code & 0x07 {
            code::LD | code::LDX => match code & 0xe0 {
                code::IMM => self.put(ALU | MOV, to, 0, 0, k as i32),
                code::MEM => self.put(LOAD, to, FRAME, word, 0),
                code::LEN => self.length(to),
                code::IND => {
                    // In 64 bits, so that the sum does not wrap around to a place in the frame.
                    self.put(ALU | MOV, R2, 0, 0, k as i32);
                    self.put(ALU64 | REGISTER, R2, X, 0, 0);
                    self.jump(JMP64 | code::JGT as u8, R2, 0, FAR, Target::Reject);
                    self.ask(read_bytes(code), to);
                }
                mode => {
                    self.read(k, read_bytes(code), to);
                    if mode == code::MSH {
                        self.put(ALU | code::AND as u8, X, 0, 0, 0xf);
                        self.put(ALU | code::LSH as u8, X, 0, 0, 2);
                    }
                }
            },
            code::ST => self.put(STORE, FRAME, A, word, 0),
            code::STX => self.put(STORE, FRAME, X, word, 0),
            code::ALU => self.compute(code, k),
            code::JMP => self.branch(at, classic),
            code::RET if code & 0x18 == code::A => {
                self.jump(JMP32 | JNE, A, 0, 0, Target::Accept);
                self.jump(JMP64, 0, 0, 0, Target::Reject);
            }
            code::RET => self.jump(JMP64, 0, 0, 0, if k == 0 { Target::Reject } else { Target::Accept }),
            _ if code & 0xf8 == code::TAX => self.put(ALU | MOV | REGISTER, X, A, 0, 0),
            _ => self.put(ALU | MOV | REGISTER, A, X, 0, 0),
        }
    }

    /// Bytes of the frame.
    fn length(&mut self, to: u8) {
        match self.hook {
            // The first member of struct __sk_buff.
            Hook::Tc => self.put(LOAD, to, CONTEXT, 0, 0),
            Hook::Xdp => {
                self.put(ALU64 | MOV | REGISTER, R1, CONTEXT, 0, 0);
                self.put(CALL, 0, 0, 0, XDP_BUFF_LEN);
                self.put(ALU | MOV | REGISTER, to, R0, 0, 0);
            }
        }
    }

    /// Loads `bytes` at `k` into a register: out of the linear part if it is there.
    fn read(&mut self, k: u32, bytes: u32, to: u8) {
        /// Up to where the verifier lets a constant be added to a packet pointer and used as an offset.
        const NEAR: u32 = 0x7f00;
        if k > FAR as u32 {
            // A comparison, so that there is a way to what follows.
            self.put(ALU | MOV, to, 0, 0, 0);
            return self.jump(JMP32 | code::JEQ as u8, to, 0, 0, Target::Reject);
        }
        let loaded = if k < NEAR {
            self.put(LOAD, R3, CONTEXT, self.hook.data() + 4, 0);
            self.put(ALU64 | MOV | REGISTER, R2, DATA, 0, 0);
            self.put(ALU64, R2, 0, 0, (k + bytes) as i32);
            // Beyond the linear part: over the load and the jump behind it.
            let here = self.program.len();
            self.jump(JMP64 | code::JGT as u8 | REGISTER, R2, R3, 0, Target::Here(here + 3));
            self.put(load_of(bytes), to, DATA, k as i16, 0);
            Some(self.program.len())
        } else {
            None
        };
        if let Some(at) = loaded {
            self.jump(JMP64, 0, 0, 0, Target::Here(at));
        }
        self.put(ALU | MOV, R2, 0, 0, k as i32);
        self.ask_raw(bytes, to);
        if let Some(at) = loaded
            && let Some((_, target)) = self.jumps.iter_mut().find(|(place, _)| *place == at)
        {
            *target = Target::Here(self.program.len());
        }
        self.swap(bytes, to);
    }

    /// Loads `bytes` at the offset in R2 into a register, wherever in the frame they are.
    fn ask(&mut self, bytes: u32, to: u8) {
        self.ask_raw(bytes, to);
        self.swap(bytes, to);
    }

    fn ask_raw(&mut self, bytes: u32, to: u8) {
        self.put(ALU64 | MOV | REGISTER, R1, CONTEXT, 0, 0);
        self.put(ALU64 | MOV | REGISTER, R3, FRAME, 0, 0);
        self.put(ALU64, R3, 0, 0, i32::from(LOADED));
        self.put(ALU | MOV, R4, 0, 0, bytes as i32);
        self.put(CALL, 0, 0, 0, self.hook.load_bytes());
        self.jump(JMP64 | JNE, R0, 0, 0, Target::Reject);
        self.put(load_of(bytes), to, FRAME, LOADED, 0);
    }

    /// From the wire's order to the machine's.
    fn swap(&mut self, bytes: u32, register: u8) {
        if bytes > 1 {
            self.put(TO_BIG_ENDIAN, register, 0, 0, 8 * bytes as i32);
        }
    }

    fn compute(&mut self, code: u16, k: u32) {
        let operation = (code & 0xf0) as u8;
        if code & code::X == 0 {
            return self.put(ALU | operation, A, 0, 0, if code & 0xf0 == code::NEG { 0 } else { k as i32 });
        }
        match code & 0xf0 {
            code::DIV | code::MOD => self.jump(JMP32 | code::JEQ as u8, X, 0, 0, Target::Reject),
            // Classic BPF shifts everything out; today's takes the number modulo 32.
            code::LSH | code::RSH => {
                let here = self.program.len();
                self.jump(JMP32 | JLT, X, 0, 32, Target::Here(here + 2));
                self.put(ALU | MOV, A, 0, 0, 0);
                let here = self.program.len();
                self.jump(JMP32 | code::JGE as u8, X, 0, 32, Target::Here(here + 2));
            }
            _ => {}
        }
        self.put(ALU | operation | REGISTER, A, X, 0, 0);
    }

    fn branch(&mut self, at: usize, classic: Classic) {
        let Classic { code, jt, jf, k } = classic;
        if code & 0xf0 == code::JA {
            return self.jump(JMP64, 0, 0, 0, Target::Classic(at + 1 + k as usize));
        }
        let (source, register, immediate) =
            if code & code::X == 0 { (IMMEDIATE, 0, k as i32) } else { (REGISTER, X, 0) };
        let (then, otherwise) = (Target::Classic(at + 1 + usize::from(jt)), Target::Classic(at + 1 + usize::from(jf)));
        self.jump(JMP32 | (code & 0xf0) as u8 | source, A, register, immediate, then);
        if jf != 0 {
            self.jump(JMP64, 0, 0, 0, otherwise);
        }
    }

    fn end(&mut self, scratch: i32, stages: i32, next: i32) {
        let accept = self.program.len();
        self.put(ALU | MOV, A, 0, 0, 1);
        self.put(JMP64, 0, 0, 1, 0);
        let reject = self.program.len();
        self.put(ALU | MOV, A, 0, 0, 0);
        self.put(STORE_IMMEDIATE, FRAME, 0, LOADED, 0);
        self.put(ALU64 | MOV | REGISTER, R2, FRAME, 0, 0);
        self.put(ALU64, R2, 0, 0, i32::from(LOADED));
        self.map(R1, scratch);
        self.put(CALL, 0, 0, 0, MAP_LOOKUP);
        self.put(JMP64 | code::JEQ as u8, R0, 0, 1, 0);
        self.put(STORE, R0, A, 0, 0);
        self.put(ALU64 | MOV | REGISTER, R1, CONTEXT, 0, 0);
        self.map(R2, stages);
        self.put(ALU | MOV, R3, 0, 0, next);
        self.put(CALL, 0, 0, 0, TAIL_CALL);
        self.put(ALU | MOV, R0, 0, 0, self.hook.leave_alone());
        self.put(EXIT, 0, 0, 0, 0);
        for (from, target) in std::mem::take(&mut self.jumps) {
            let to = match target {
                Target::Classic(at) => self.places[at],
                Target::Here(at) => at,
                Target::Reject => reject,
                Target::Accept => accept,
            };
            // A classic instruction becomes 20 of today's at most, so the distance fits for every length that is allowed.
            let [low, high] = ((to - from - 1) as i16).to_ne_bytes();
            self.program[from][2..4].copy_from_slice(&[low, high]);
        }
    }

    fn map(&mut self, register: u8, map: i32) {
        self.put(LOAD_MAP, register, PSEUDO_MAP_FD, 0, map);
        self.put(0, 0, 0, 0, 0);
    }
}
