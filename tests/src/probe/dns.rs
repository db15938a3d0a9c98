//! A name server for one name: what pods ask before everything else.

use std::net::{IpAddr, UdpSocket};
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{DnsServe, print, standard_input_closed};

/// How often it looks whether it is enough.
const TICK: Duration = Duration::from_millis(50);
const HEADER: usize = 12;
const A: u16 = 1;
const AAAA: u16 = 28;

/// Answers until the standard input is closed, then says how many questions there were.
pub fn serve(options: &DnsServe) -> Result<Value> {
    let socket = UdpSocket::bind(options.bind).with_context(|| format!("listening on {}", options.bind))?;
    socket.set_read_timeout(Some(TICK))?;
    print(&json!({ "event": "ready", "port": socket.local_addr()?.port() }));
    let enough = standard_input_closed();
    let mut questions = 0_u64;
    let mut buffer = [0; 512];
    while !enough.load(Ordering::Acquire) {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        if let Some(answer) = answer(&buffer[..length], &options.name, &options.address) {
            questions += 1;
            // Who does not get it asks again.
            let _ = socket.send_to(&answer, from);
        }
    }
    Ok(json!({ "questions": questions }))
}

/// The answer to a question (RFC 1035, 4.1); `None` for what is none.
fn answer(question: &[u8], name: &str, addresses: &[IpAddr]) -> Option<Vec<u8>> {
    let (asked, end) = read_name(question)?;
    let kind = u16::from_be_bytes(question.get(end..end + 2)?.try_into().ok()?);
    let known = asked.eq_ignore_ascii_case(name);
    let records: Vec<Vec<u8>> = addresses
        .iter()
        .filter(|_| known)
        .filter_map(|address| match (address, kind) {
            (IpAddr::V4(address), A) => Some(address.octets().to_vec()),
            (IpAddr::V6(address), AAAA) => Some(address.octets().to_vec()),
            _ => None,
        })
        .collect();
    let mut said = question.get(..end + 4)?.to_vec();
    // An answer, with authority; no such name otherwise. One question, no other sections.
    said[2..4].copy_from_slice(&[0x84, if known { 0 } else { 3 }]);
    said[4..HEADER].copy_from_slice(&[0, 1, 0, records.len() as u8, 0, 0, 0, 0]);
    for record in records {
        // The name of the question, the same kind, class IN, five seconds.
        said.extend([0xc0, HEADER as u8]);
        said.extend(kind.to_be_bytes());
        said.extend([0, 1, 0, 0, 0, 5]);
        said.extend((record.len() as u16).to_be_bytes());
        said.extend(record);
    }
    Some(said)
}

/// The name that is asked for, and where it ends.
fn read_name(question: &[u8]) -> Option<(String, usize)> {
    let mut labels = Vec::new();
    let mut at = HEADER;
    loop {
        let length = usize::from(*question.get(at)?);
        at += 1;
        if length == 0 {
            return Some((labels.join("."), at));
        }
        labels.push(String::from_utf8_lossy(question.get(at..at + length)?).into_owned());
        at += length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(kind: u16) -> Vec<u8> {
        let mut bytes = vec![7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        bytes.extend(b"\x03web\x04test\0");
        bytes.extend(kind.to_be_bytes());
        bytes.extend([0, 1]);
        bytes
    }

    #[test]
    fn it_knows_its_name_and_no_other() {
        let addresses = ["10.96.0.20".parse().unwrap(), "fd00::14".parse().unwrap()];
        let said = answer(&question(A), "web.test", &addresses).unwrap();
        assert_eq!((said[..4].to_vec(), said[7]), (vec![7, 7, 0x84, 0], 1));
        assert!(said.ends_with(&[0, 4, 10, 96, 0, 20]));
        assert_eq!(answer(&question(AAAA), "web.test", &addresses).unwrap()[7], 1);
        let other = answer(&question(A), "db.test", &addresses).unwrap();
        assert_eq!((other[3], other[7]), (3, 0));
        for length in 0..question(A).len() - 2 {
            assert_eq!(answer(&question(A)[..length], "web.test", &addresses), None, "{length} bytes");
        }
    }
}
