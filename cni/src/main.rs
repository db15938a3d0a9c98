//! The program that a container runtime calls.

use std::io::{self, IsTerminal, Read, Write};
use std::process::ExitCode;

use serde_json::{Value, json};

use podlane_cni::command;
use podlane_cni::protocol::{Call, Command, Config, Failure, Version, code, config};

const USAGE: &str = "\
podlane-cni is Podlane's CNI plugin. Container runtimes call it, with what they want in environment variables (CNI_COMMAND, …)
and the network configuration on standard input. It lies in the runtime's plugin directory, usually /opt/cni/bin, and is
named as \"type\" in a configuration such as /etc/cni/net.d/10-podlane.conflist. See docs/cni.md.";

fn main() -> ExitCode {
    if std::env::args().nth(1).is_some_and(|word| word == "--version") {
        println!("podlane-cni {}", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    let variable = |name: &str| std::env::var(name).ok();
    if variable("CNI_COMMAND").is_none() && (std::env::args().len() > 1 || io::stdin().is_terminal()) {
        println!("{USAGE}");
        return ExitCode::FAILURE;
    }
    let mut version = Version::NEWEST.text().to_owned();
    match run(variable, &mut version) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // If nobody reads that either, the exit code is all that is left.
            let _ = print(&failure.json(&version));
            ExitCode::FAILURE
        }
    }
}

/// `version` is that of the configuration, once it is read.
fn run(variable: impl Fn(&str) -> Option<String>, version: &mut String) -> Result<(), Failure> {
    let text = read_input()?;
    if let Some(asked) = Config::version_of(&text) {
        *version = asked;
    }
    let (command, call) = Call::read(variable)?;
    if command == Command::Version {
        return print(&versions(version)).map_err(cannot_print);
    }
    let config = Config::read(text)?;
    match command {
        Command::Add => command::add(&call, &config, &|_| Ok(()), &mut |result| print(result).map_err(cannot_print)),
        Command::Del => command::del(&call, &config),
        Command::Check => command::check(&call, &config),
        Command::Gc => command::gc(&call, &config),
        Command::Status => command::status(&call, &config),
        Command::Version => Ok(()),
    }
}

fn versions(asked: &str) -> Value {
    json!({ "cniVersion": asked, "supportedVersions": Version::ALL.map(Version::text) })
}

fn read_input() -> Result<Vec<u8>, Failure> {
    let mut text = Vec::new();
    let read = io::stdin().lock().take(config::MOST_BYTES as u64 + 1).read_to_end(&mut text);
    read.map_err(|error| Failure::new(code::IO, format!("cannot read the configuration on standard input: {error}")))?;
    if text.len() > config::MOST_BYTES {
        let message = format!("the configuration on standard input has more than {} bytes", config::MOST_BYTES);
        return Err(Failure::new(code::IO, message));
    }
    Ok(text)
}

fn print(value: &Value) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    let mut out = io::stdout().lock();
    out.write_all(&line)?;
    out.flush()
}

fn cannot_print(error: io::Error) -> Failure {
    Failure::new(code::IO, format!("cannot write the answer to standard output: {error}"))
}
