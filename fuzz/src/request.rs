//! The daemon's side of the control socket: any bytes as what a client sends, in pieces; and what is done with a request
//! before anything of the node is asked for.
//!
//! Input: bytes of each piece (8 bits; 0: all at once), and what the client sends.

use std::io::{self, Read};
use std::sync::LazyLock;

use podlane::control::{BadRequest, Request};
use podlane::mirror::World as Mirrored;
use podlane::outside;
use podlane::trace::{Names, trace};
use podlane_dataplane::PortId;
use podlane_dataplane::table::Tables;
use podlane_dataplane::tap::{Filter, Instruction};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;

use crate::Seeds;
use crate::shared::world::world;

/// A client's bytes, some at a time, with a pause ([`io::ErrorKind::WouldBlock`]) before each piece.
struct Client<'a> {
    left: &'a [u8],
    piece: usize,
    pause: bool,
}

impl Read for Client<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.pause = !self.pause;
        if self.pause && self.piece != 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let most = if self.piece == 0 { buffer.len() } else { self.piece.min(buffer.len()) };
        let (now, left) = self.left.split_at(most.min(self.left.len()));
        buffer[..now.len()].copy_from_slice(now);
        self.left = left;
        Ok(now.len())
    }
}

fn read(bytes: &[u8], piece: usize) -> Option<Result<Request, BadRequest>> {
    outside::request(&mut Client { left: bytes, piece, pause: false })
}

/// Reads a request, whole and in pieces, and answers as far as that takes no node.
///
/// # Panics
/// If pieces make a difference, or a request does not survive being written and read.
pub fn run(bytes: &[u8]) {
    let Some((piece, bytes)) = bytes.split_first() else { return };
    let whole = read(bytes, 0);
    assert_eq!(read(bytes, usize::from(*piece)), whole, "in pieces of {piece}");
    match whole {
        Some(Ok(request)) => {
            let line = request.line();
            assert!(line.ends_with('\n') && line.matches('\n').count() == 1);
            assert_eq!(Request::parse(line.as_bytes()).as_ref(), Ok(&request));
            answer(&request);
        }
        Some(Err(bad)) => assert!(!bad.to_string().is_empty()),
        None => assert!(bytes.is_empty()),
    }
}

/// A node that always is the same one, and has ports that questions can name.
static NODE: LazyLock<(Tables, Names)> = LazyLock::new(|| {
    let mut runner = TestRunner::deterministic();
    let mut worlds = std::iter::repeat_with(|| world().new_tree(&mut runner).expect("no world is refused").current());
    // One in which something can be asked for: with hosts, and without a switch that leaves all to the kernel.
    let asked = worlds.find(|world| world.hosts4.len() > 9 && world.routing.ipv4_off.is_none());
    let names = (0..8).map(|id| (PortId(id), format!("veth{id}"))).collect();
    (asked.expect("there is no end of worlds").tables(), names)
});

fn answer(request: &Request) {
    match request {
        Request::Trace(question) => {
            let (tables, names) = &*NODE;
            match trace(question, tables, names, &Mirrored::default()) {
                Ok(trace) => assert!(!trace.render().is_empty()),
                Err(error) => assert!(!error.to_string().is_empty()),
            }
        }
        Request::Capture(question) => {
            let one = |&(code, jt, jf, k): &(u16, u8, u8, u32)| Instruction { code, jt, jf, k };
            if let Ok(filter) = Filter::new(question.filter.iter().map(one).collect()) {
                filter.matches(&[0; 60][..]);
            }
        }
        _ => {}
    }
}

/// Every request, some with mistakes.
pub fn seeds() -> Seeds {
    let lines = [
        ("ping", r#"{"request":"ping"}"#),
        ("status", r#"{"request":"status","later":1}"#),
        ("log", r#"{"request":"log"}"#),
        ("config", r#"{"request":"config"}"#),
        ("path", r#"{"request":"path","path":"kernel","ports":["veth0","veth1"]}"#),
        ("tables", r#"{"request":"tables","table":"fib4","offset":100}"#),
        (
            "trace",
            r#"{"request":"trace","from":"10.244.0.1","to":"10.244.1.2","protocol":"tcp","port":80,"bytes":84,"ttl":64}"#,
        ),
        ("trace-ports", r#"{"request":"trace","from":"veth0","to":"veth1","protocol":"icmp"}"#),
        (
            "trace-ipv6",
            r#"{"request":"trace","from":"fd00:10:244::1","to":"fd00:10:244:1::2","protocol":"udp","ipv6":true,"may_resolve":true}"#,
        ),
        ("trace-large", r#"{"request":"trace","from":"10.244.0.1","to":"10.244.1.2","bytes":65535}"#),
        ("trace-too-large", r#"{"request":"trace","from":"10.244.0.1","to":"10.244.1.2","bytes":4294967295}"#),
        (
            "capture",
            r#"{"request":"capture","filter":[[40,0,0,12],[21,0,1,2048],[6,0,0,262144],[6,0,0,0]],"ports":["veth0"],"snap_bytes":64,"rx":true,"tx":false}"#,
        ),
        ("unknown", r#"{"request":"reboot"}"#),
        ("no-json", "status"),
    ];
    let with_pieces = |(number, (name, line)): (usize, (&str, &str))| {
        (name.to_owned(), [&[[0, 1, 7, 64][number % 4]], line.as_bytes(), b"\n"].concat())
    };
    let mut all: Seeds = lines.into_iter().enumerate().map(with_pieces).collect();
    all.push(("no-end".to_owned(), b"\x05{\"request\":\"ping\"}".to_vec()));
    all.push(("two-lines".to_owned(), b"\x00{\"request\":\"ping\"}\n{\"request\":\"status\"}\n".to_vec()));
    all
}
