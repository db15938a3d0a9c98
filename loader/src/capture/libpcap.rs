//! Compiling pcap-filter expressions by libpcap, which is looked for when the first expression is given: a node without it
//! runs and captures as well, only without filters.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};

use libloading::{Library, Symbol};
use podlane_dataplane::tap::{Filter, FilterError, Instruction};

/// Debian's name, everybody's name, and the one of the development package.
const NAMES: [&str; 3] = ["libpcap.so.0.8", "libpcap.so.1", "libpcap.so"];
/// `DLT_EN10MB`.
const ETHERNET: c_int = 1;
/// Any length: it only becomes the value that a matching program returns.
const SNAP_BYTES: c_int = 262_144;
/// `PCAP_NETMASK_UNKNOWN`.
const NO_NETMASK: u32 = u32::MAX;

/// An expression cannot be compiled.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// No library.
    #[error("filters need libpcap, which is not installed ({0}); install it (Debian: apt-get install libpcap0.8)")]
    Missing(String),
    /// libpcap's words.
    #[error("the filter {expression:?} is wrong: {reason} (man pcap-filter)")]
    Wrong {
        /// What was given.
        expression: String,
        /// Why not.
        reason: String,
    },
    /// It compiles, but is too long for us.
    #[error(transparent)]
    Unfit(#[from] FilterError),
}

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy)]
struct RawInstruction {
    code: u16,
    jt: u8,
    jf: u8,
    k: u32,
}

/// `struct bpf_program`.
#[repr(C)]
struct RawProgram {
    length: c_uint,
    instructions: *mut RawInstruction,
}

type OpenDead = unsafe extern "C" fn(c_int, c_int) -> *mut c_void;
type Close = unsafe extern "C" fn(*mut c_void);
type Compile = unsafe extern "C" fn(*mut c_void, *mut RawProgram, *const c_char, c_int, u32) -> c_int;
type FreeCode = unsafe extern "C" fn(*mut RawProgram);
type GetError = unsafe extern "C" fn(*mut c_void) -> *const c_char;

fn open() -> Result<Library, CompileError> {
    let mut failure = String::new();
    for name in NAMES {
        // SAFETY: the library's initialisers are those of the node's own libpcap, which every capture program loads.
        match unsafe { Library::new(name) } {
            Ok(library) => return Ok(library),
            Err(error) if failure.is_empty() => failure = error.to_string(),
            Err(_) => {}
        }
    }
    Err(CompileError::Missing(failure))
}

/// Compiles an expression for Ethernet frames. The empty one matches everything.
///
/// # Errors
/// [`CompileError`].
pub fn compile(expression: &str) -> Result<Filter, CompileError> {
    if expression.trim().is_empty() {
        return Ok(Filter::everything());
    }
    let wrong = |reason: &str| CompileError::Wrong { expression: expression.to_owned(), reason: reason.to_owned() };
    let text = CString::new(expression).map_err(|_| wrong("it contains a zero byte"))?;
    let library = open()?;
    let missing = |error: libloading::Error| CompileError::Missing(error.to_string());
    // SAFETY: the types are those of pcap.h, stable since libpcap 0.8.
    let (open_dead, close, compile, free, error) = unsafe {
        let open_dead: Symbol<'_, OpenDead> = library.get(b"pcap_open_dead\0").map_err(missing)?;
        let close: Symbol<'_, Close> = library.get(b"pcap_close\0").map_err(missing)?;
        let compile: Symbol<'_, Compile> = library.get(b"pcap_compile\0").map_err(missing)?;
        let free: Symbol<'_, FreeCode> = library.get(b"pcap_freecode\0").map_err(missing)?;
        let error: Symbol<'_, GetError> = library.get(b"pcap_geterr\0").map_err(missing)?;
        (open_dead, close, compile, free, error)
    };
    let mut program = RawProgram { length: 0, instructions: std::ptr::null_mut() };
    // SAFETY: plain numbers; a null pointer is looked for.
    let handle = unsafe { open_dead(ETHERNET, SNAP_BYTES) };
    if handle.is_null() {
        return Err(wrong("libpcap has no memory"));
    }
    // SAFETY: `handle` is open, `program` is a valid structure to be filled in, `text` ends with a zero.
    let compiled = unsafe { compile(handle, &mut program, text.as_ptr(), 1, NO_NETMASK) };
    let result = if compiled == 0 {
        // SAFETY: libpcap has just filled the structure in: so many instructions, valid until they are freed below.
        let raw = unsafe { std::slice::from_raw_parts(program.instructions, program.length as usize) };
        let one = |raw: &RawInstruction| Instruction { code: raw.code, jt: raw.jt, jf: raw.jf, k: raw.k };
        let filter = Filter::new(raw.iter().map(one).collect()).map_err(CompileError::from);
        // SAFETY: compiled above, and not used any more.
        unsafe { free(&mut program) };
        filter
    } else {
        // SAFETY: a string that ends with a zero and lives as long as the handle.
        let reason = unsafe { CStr::from_ptr(error(handle)) };
        Err(wrong(&reason.to_string_lossy()))
    };
    // SAFETY: opened above, and not used any more.
    unsafe { close(handle) };
    result
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What libpcap itself says of a frame.
    fn by_libpcap(filter: &Filter, frame: &[u8]) -> bool {
        type Run = unsafe extern "C" fn(*const RawInstruction, *const u8, c_uint, c_uint) -> c_uint;
        let one = |one: &Instruction| RawInstruction { code: one.code, jt: one.jt, jf: one.jf, k: one.k };
        let raw: Vec<_> = filter.instructions().iter().map(one).collect();
        let library = open().unwrap();
        // SAFETY: the type is that of pcap/bpf.h; program and frame live during the call, of the lengths that are given.
        unsafe {
            let run: Symbol<'_, Run> = library.get(b"bpf_filter\0").unwrap();
            run(raw.as_ptr(), frame.as_ptr(), frame.len() as c_uint, frame.len() as c_uint) != 0
        }
    }

    const EXPRESSIONS: [&str; 16] = [
        "",
        "tcp",
        "icmp or icmp6",
        "host 10.0.0.1",
        "src net 10.0.0.0/8 and dst port 80",
        "tcp port 80 or udp port 53",
        "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0",
        "ip6 and tcp",
        "ip[8] < 5",
        "ether host 02:00:00:00:00:0a",
        "greater 100",
        "less 60",
        "vlan 5 and tcp",
        "portrange 1000-2000",
        "ip6 host fd00::1",
        "(ip[2:2] - ((ip[0] & 0xf) << 2)) % 7 = 3",
    ];

    fn frames() -> impl Strategy<Value = Vec<u8>> {
        let tail = || prop::collection::vec(any::<u8>(), 0..120);
        let types = prop::sample::select(vec![[8_u8, 0, 0x45], [0x86, 0xdd, 0x60], [8, 6, 0], [0x81, 0, 0]]);
        let ports = prop::sample::select(vec![80_u16, 53, 1500, 9]);
        (types, tail(), ports, prop::sample::select(vec![1_u8, 6, 17, 58])).prop_map(|(kind, tail, port, protocol)| {
            let mut frame = [&[2, 0, 0, 0, 0, 10, 2, 0, 0, 0, 0, 11], &kind[..], &tail].concat();
            for (at, value) in
                [(23, protocol), (20, protocol), (26, 10), (30, 10), (36, (port >> 8) as u8), (37, port as u8)]
            {
                if let Some(byte) = frame.get_mut(at) {
                    *byte = value;
                }
            }
            frame
        })
    }

    #[test]
    fn a_wrong_expression_is_told() {
        let error = compile("prot 80").unwrap_err().to_string();
        assert!(error.contains("\"prot 80\"") && error.contains("man pcap-filter"), "{error}");
        assert!(compile("tcp\0").is_err());
    }

    #[test]
    fn every_expression_compiles() {
        for expression in EXPRESSIONS {
            compile(expression).unwrap();
        }
        assert_eq!(compile("  ").unwrap(), Filter::everything());
        assert!(!compile("host 10.0.0.1").unwrap().looks_at_rewritten_bytes());
        assert!(compile("ip[8] < 5").unwrap().looks_at_rewritten_bytes());
        assert!(compile("ether host 02:00:00:00:00:0a").unwrap().looks_at_rewritten_bytes());
    }

    proptest! {
        #[test]
        fn the_interpreter_agrees_with_libpcap(
            expression in prop::sample::select(EXPRESSIONS.to_vec()),
            frame in frames(),
        ) {
            let filter = compile(expression).unwrap();
            prop_assert_eq!(filter.matches(frame.as_slice()), by_libpcap(&filter, &frame), "{}", expression);
        }
    }
}
