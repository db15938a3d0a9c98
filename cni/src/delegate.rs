//! IPAM by another plugin: `"ipam": {"type": "host-local"}`.
//!
//! As the convention is: the program of that name in `CNI_PATH`, with the same environment and the same configuration on
//! its standard input. Its errors are passed on as they are.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command as Process, Stdio};

use serde_json::Value;

use crate::protocol::{Call, Command, Config, Failure, Outcome, code};

/// Bytes of the longest answer.
const MOST_ANSWER: u64 = 1 << 20;

/// Runs `plugin` for a call of ours.
///
/// # Errors
/// The plugin's own, as it said it; code 104: it could not be run, or its answer is nonsense; 4: it is not in `CNI_PATH`.
pub fn run(plugin: &str, command: Command, call: &Call, config: &Config) -> Result<Option<Outcome>, Failure> {
    let program = find(plugin, &call.path)?;
    let failed = |what: &str, error: std::io::Error| {
        Failure::new(code::DELEGATE, format!("the IPAM plugin {}: cannot {what}: {error}", program.display()))
    };
    let arguments: Vec<String> = call.arguments.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let path = std::env::join_paths(&call.path).unwrap_or_default();
    let mut child = Process::new(&program)
        .env("CNI_COMMAND", command.word())
        .env("CNI_CONTAINERID", &call.container)
        .env("CNI_NETNS", &call.netns)
        .env("CNI_IFNAME", &call.interface)
        .env("CNI_ARGS", arguments.join(";"))
        .env("CNI_PATH", path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(|error| failed("start it", error))?;
    if let Some(mut input) = child.stdin.take() {
        // One that does not read it all says why in its answer.
        let _ = input.write_all(&config.text);
    }
    let mut answer = Vec::new();
    let read = child.stdout.take().map(|output| output.take(MOST_ANSWER).read_to_end(&mut answer)).transpose();
    let status = child.wait().map_err(|error| failed("wait for its end", error))?;
    read.map_err(|error| failed("read its answer", error))?;
    let said: Option<Value> = serde_json::from_slice(&answer).ok();
    if !status.success() {
        return Err(refusal(plugin, said.as_ref()).unwrap_or_else(|| {
            Failure::new(code::DELEGATE, format!("the IPAM plugin {plugin} ended with {status} and without a reason"))
        }));
    }
    if command != Command::Add {
        return Ok(None);
    }
    let said =
        said.ok_or_else(|| Failure::new(code::DELEGATE, format!("the IPAM plugin {plugin} answered no JSON")))?;
    let outcome = Outcome::read(&said, &format!("the answer of the IPAM plugin {plugin}"))?;
    if outcome.ips.is_empty() {
        return Err(Failure::new(code::DELEGATE, format!("the IPAM plugin {plugin} gave no address")));
    }
    Ok(Some(outcome))
}

/// What a plugin said of its failure.
fn refusal(plugin: &str, said: Option<&Value>) -> Option<Failure> {
    let said = said?;
    let text = |key: &str| said.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let code = said.get("code")?.as_u64().and_then(|code| u32::try_from(code).ok())?;
    Some(Failure { code, message: format!("IPAM plugin {plugin}: {}", text("msg")), details: text("details") })
}

fn find(plugin: &str, path: &[PathBuf]) -> Result<PathBuf, Failure> {
    let mut programs = path.iter().map(|directory| directory.join(plugin));
    programs.find(|program| program.is_file()).ok_or_else(|| {
        let directories: Vec<String> = path.iter().map(|directory| directory.display().to_string()).collect();
        let message = format!("CNI_PATH: there is no IPAM plugin {plugin:?} in it ({})", directories.join(":"));
        Failure::new(code::ENVIRONMENT, message)
    })
}
