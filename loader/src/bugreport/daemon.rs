//! What the daemon tells of itself, if one answers, and what the kernel tells of its process otherwise.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::archive::{Archive, Content, MAX_PART};
use super::{node, pretty, source};
use crate::control::{self, AskError, Occupant, Request};
use crate::status::Status;
use crate::tables::Table;

/// Entries of one table in the archive.
const MAX_ENTRIES: usize = 16_384;
/// How long the metrics may take.
const SCRAPE: Duration = Duration::from_secs(5);

/// A daemon, alive or not.
pub struct Daemon {
    instance: String,
    pid: Option<i32>,
    /// Its status as it was and as it was understood, or why there is none. A daemon that does not answer this is not asked
    /// anything else.
    status: Result<(String, Status), AskError>,
}

impl Daemon {
    /// Looks for it.
    pub fn find(instance: &str) -> Daemon {
        let pid = match control::occupant(&control::socket_path(instance)) {
            Ok(Occupant::Alive { pid }) => pid,
            _ => None,
        };
        let status = control::ask_status(instance, control::PATIENCE);
        Daemon { instance: instance.to_owned(), pid, status }
    }

    /// Its process.
    pub fn pid(&self) -> Option<i32> {
        self.pid
    }

    /// Its ports' interfaces.
    pub fn ports(&self) -> Vec<String> {
        let ports = self.status.as_ref().map(|(_, status)| status.ports.iter().map(|port| port.name.clone()).collect());
        ports.unwrap_or_default()
    }

    /// How it is.
    pub fn sentence(&self) -> String {
        match (&self.status, self.pid) {
            (Ok((_, status)), _) => {
                format!("Instance \"{}\" runs as process {} and answers.", self.instance, status.pid)
            }
            (Err(error), Some(pid)) => {
                format!("Instance \"{}\" is there as process {pid}, but: {error}.", self.instance)
            }
            (Err(error), None) => format!("No daemon was asked: {error}."),
        }
    }

    /// The words of its command line, without the program's name.
    pub fn arguments(&self) -> Vec<String> {
        let Some(pid) = self.pid else { return Vec::new() };
        let path = Path::new("/proc").join(pid.to_string()).join("cmdline");
        let bytes = source::file(&path).map(|content| content.bytes).unwrap_or_default();
        let words = bytes.split(|&byte| byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
        words.skip(1).filter(|word| !word.is_empty()).collect()
    }

    /// Puts all of it into the archive.
    pub fn collect(&self, archive: &mut Archive<impl Write>) -> io::Result<()> {
        let status = self.status.as_ref().map(|(answer, _)| reformatted(answer)).map_err(ToString::to_string);
        archive.add("daemon/status.json", "the daemon: status", status)?;
        let config = self.ask(Request::Config).map(|answer| reformatted(&answer));
        let address = config.as_ref().ok().and_then(metrics_address);
        archive.add("config/effective.json", "the daemon: config", config)?;
        archive.add("daemon/metrics.txt", "GET /metrics", self.metrics(address.as_deref()))?;
        for (word, table) in Table::WORDS {
            let source = format!("the daemon: tables, {word}");
            archive.add(&format!("daemon/tables/{word}.json"), &source, self.table(table))?;
        }
        archive.add("log/daemon.txt", "the daemon: log, its last lines", self.ask(Request::Log).and_then(lines))?;
        let process = self.pid.ok_or_else(|| "no process is known".to_owned());
        archive.add("daemon/process.txt", "/proc/PID", process.clone().and_then(node::process))?;
        archive.add("daemon/threads.txt", "/proc/PID/task", process.and_then(node::threads))
    }

    fn ask(&self, request: Request) -> Result<String, String> {
        if self.status.is_err() {
            return Err("not asked: the daemon does not answer".to_owned());
        }
        let path = control::socket_path(&self.instance);
        control::ask(&self.instance, &path, request, control::PATIENCE).map_err(|error| error.to_string())
    }

    /// A whole table, page by page.
    fn table(&self, table: Table) -> Result<Content, String> {
        let mut entries: Vec<Value> = Vec::new();
        let (mut generations, mut total) = (Vec::new(), 0);
        loop {
            let answer = self.ask(Request::Tables { table, offset: entries.len() })?;
            let page: Value = serde_json::from_str(&answer).map_err(|error| error.to_string())?;
            let more = page["entries"].as_array().cloned().unwrap_or_default();
            total = page["total"].as_u64().unwrap_or(total);
            if !generations.contains(&page["generation"]) {
                generations.push(page["generation"].clone());
            }
            let is_last = more.is_empty() || (entries.len() + more.len()) as u64 >= total;
            entries.extend(more);
            if is_last || entries.len() >= MAX_ENTRIES {
                break;
            }
        }
        let wrong = if (entries.len() as u64) < total {
            Some(format!("the first {} of {total} entries", entries.len()))
        } else if generations.len() > 1 {
            Some("the table changed while it was read".to_owned())
        } else {
            None
        };
        let told = json!({ "table": table.word(), "generations": generations, "total": total });
        let mut text = format!("{{\"about\":{told},\"entries\":[\n");
        let rows: Vec<String> = entries.iter().map(Value::to_string).collect();
        text.push_str(&rows.join(",\n"));
        text.push_str("\n]}\n");
        Ok(Content { bytes: text.into_bytes(), wrong })
    }

    fn metrics(&self, address: Option<&str>) -> Result<Content, String> {
        match address {
            None => Err("not asked: the daemon does not answer".to_owned()),
            Some("off") => Err("metrics are switched off".to_owned()),
            Some(address) => scrape(address).map(Content::from).map_err(|error| format!("{address}: {error}")),
        }
    }
}

fn reformatted(answer: &str) -> Content {
    serde_json::from_str(answer).map_or_else(|_| Content::from(answer), |value: Value| Content::from(pretty(&value)))
}

fn metrics_address(config: &Content) -> Option<String> {
    let config: Value = serde_json::from_slice(&config.bytes).ok()?;
    config["metrics_address"].as_str().map(str::to_owned)
}

fn lines(answer: String) -> Result<Content, String> {
    let value: Value = serde_json::from_str(&answer).map_err(|error| error.to_string())?;
    let lines = value["lines"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut text: String = lines.iter().filter_map(Value::as_str).map(|line| format!("{line}\n")).collect();
    if let Some(forgotten @ 1..) = value["forgotten"].as_u64() {
        text.insert_str(0, &format!("({forgotten} lines before these are forgotten)\n"));
    }
    Ok(Content::from(text))
}

/// The body of `GET /metrics`.
fn scrape(address: &str) -> io::Result<Vec<u8>> {
    let mut address: SocketAddr = address.parse().map_err(io::Error::other)?;
    if address.ip().is_unspecified() {
        let local: std::net::IpAddr =
            if address.is_ipv4() { [127, 0, 0, 1].into() } else { std::net::Ipv6Addr::LOCALHOST.into() };
        address.set_ip(local);
    }
    let mut stream = TcpStream::connect_timeout(&address, SCRAPE)?;
    stream.set_read_timeout(Some(SCRAPE))?;
    stream.set_write_timeout(Some(SCRAPE))?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: podlane\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(MAX_PART as u64 + 4096).read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n");
    match end {
        Some(end) if answer.starts_with(b"HTTP/1.") && answer.get(9..12) == Some(b"200") => {
            Ok(answer.split_off(end + 4))
        }
        _ => Err(io::Error::other("the answer is not 200 OK")),
    }
}
