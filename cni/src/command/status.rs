//! STATUS: could a container be connected now?
//!
//! The specification wants exactly that answered: success if ADD would work, an error if not. Podlane's daemon is not needed
//! for it, the kernel forwards without it; so its absence is said on standard error, where runtimes put it into their log,
//! and is a failure only where the configuration asks for that (`requireDaemon`).

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::delegate;
use crate::ipam::Store;
use crate::link::Links;
use crate::protocol::{Call, Command, Config, Failure, Version, code};

/// Time that the daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// Bytes of its answer.
const MOST_ANSWER: u64 = 4096;

/// Looks.
///
/// # Errors
/// Code 50: ADD would fail, and why; 51: so it would, or the pods that are there are cut off; the IPAM plugin's own.
pub fn status(call: &Call, config: &Config) -> Result<(), Failure> {
    if config.version < Version::V1_1_0 {
        return Err(super::no_such_command("STATUS", config.version));
    }
    config.judge()?;
    let unavailable = |failure: Failure| Failure { code: code::NOT_AVAILABLE, ..failure };
    match &config.delegate {
        Some(plugin) => drop(delegate::run(plugin, Command::Status, call, config)?),
        None => {
            let plan = config.plan()?;
            Store::open(&config.data).and_then(|store| store.has_room(&plan)).map_err(unavailable)?;
        }
    }
    judge_bridge(config)
        .map_err(|failure| if failure.code == code::LIMITED { failure } else { unavailable(failure) })?;
    let Err(why) = ask_daemon(&config.control_socket) else { return Ok(()) };
    let message = format!("Podlane's daemon does not answer at {} ({why})", config.control_socket.display());
    if config.require_daemon {
        let details = "start it (systemctl start podlane), or set \"requireDaemon\" to false";
        return Err(Failure::new(code::NOT_AVAILABLE, message).with_details(details));
    }
    eprintln!("podlane-cni: {message}: pods are connected, and the kernel forwards for them until it runs");
    Ok(())
}

/// One that is missing is made by the first ADD. Pods that were connected before it went stay without it: the runtime has to hear
/// of that, and not to add others beside them.
fn judge_bridge(config: &Config) -> Result<(), Failure> {
    let bridge = Links::open().and_then(|mut links| Ok(links.find(&config.bridge)?))?;
    let what = match bridge {
        Some(bridge) if bridge.kind == "bridge" => return Ok(()),
        Some(_) => "exists and is no bridge; name another, or remove it",
        None => "is gone",
    };
    let cut_off = Store::open(&config.data)?.of_network(&config.name)?.len();
    match cut_off {
        0 if what == "is gone" => Ok(()),
        0 => Err(Failure::new(code::NOT_AVAILABLE, format!("\"bridge\": {} {what}", config.bridge))),
        pods => {
            let message = format!("\"bridge\": {} {what}; pods that were connected to it: {pods}", config.bridge);
            Err(Failure::new(code::LIMITED, message).with_details("they are cut off: recreate them, DEL and ADD"))
        }
    }
}

/// Asks the daemon whether it is there.
fn ask_daemon(socket: &Path) -> Result<(), String> {
    let ask = || -> std::io::Result<Vec<u8>> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.write_all(b"{\"request\":\"ping\"}\n")?;
        let mut answer = Vec::new();
        stream.take(MOST_ANSWER).read_to_end(&mut answer)?;
        Ok(answer)
    };
    let answer = ask().map_err(|error| error.to_string())?;
    let answer: Value = serde_json::from_slice(&answer).map_err(|_| "its answer is nonsense".to_owned())?;
    answer.get("pid").map(drop).ok_or_else(|| "something else listens there".to_owned())
}
