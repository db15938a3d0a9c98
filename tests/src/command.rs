//! Running programs with deadlines, and waiting for conditions.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// How often a condition is looked at.
const TICK: Duration = Duration::from_millis(5);

/// What a program said.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// How many times as long as on an ordinary machine everything may take, from 1 to 99: `PODLANE_TEST_SLOW`, for one that is
/// emulated. Waits are for conditions, so more of it makes no run longer that passes.
///
/// # Panics
/// If the variable is none of these numbers.
pub fn slowness() -> u32 {
    static SLOWNESS: OnceLock<u32> = OnceLock::new();
    *SLOWNESS.get_or_init(|| match std::env::var("PODLANE_TEST_SLOW") {
        Ok(text) => match text.parse() {
            Ok(times) if (1..=99).contains(&times) => times,
            _ => panic!("PODLANE_TEST_SLOW is a number from 1 to 99, not '{text}'"),
        },
        Err(_) => 1,
    })
}

/// Waits until `condition` gives a value, `deadline` times [`slowness`] at most; `what` says what is waited for.
pub fn wait_for<T>(what: &str, deadline: Duration, mut condition: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = deadline * slowness();
    let start = Instant::now();
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        if start.elapsed() > deadline {
            bail!("waited {} s in vain for: {what}", deadline.as_secs_f64());
        }
        std::thread::sleep(TICK);
    }
}

/// A command line as a person would type it.
fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

fn gather(mut from: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Runs a program to its end, which it must reach within `deadline`.
///
/// # Errors
/// If it cannot be started or is not done in time (it is killed then). How it ended is for the caller to judge.
pub fn output(command: &mut Command, deadline: Duration) -> Result<Output> {
    output_with(command.stdin(Stdio::null()), String::new(), deadline)
}

/// What is written to its standard input is nothing where the command has none.
fn output_with(command: &mut Command, input: String, deadline: Duration) -> Result<Output> {
    let text = line(command);
    let mut child =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().with_context(|| format!("starting: {text}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read all of it says why, and how it ended.
        std::thread::spawn(move || std::io::Write::write_all(&mut stdin, input.as_bytes()));
    }
    let stdout = gather(child.stdout.take().expect("piped"));
    let stderr = gather(child.stderr.take().expect("piped"));
    let status = match wait_for("its end", deadline, || Ok(child.try_wait()?)) {
        Ok(status) => status,
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            let said = stderr.join().unwrap_or_default();
            return Err(error.context(format!("running: {text}\n{said}")));
        }
    };
    let text = |thread: JoinHandle<String>| thread.join().unwrap_or_default();
    Ok(Output { status, stdout: text(stdout), stderr: text(stderr) })
}

/// Runs a program that must succeed; gives its standard output.
///
/// # Errors
/// If it fails, with what it said on both channels.
pub fn run(command: &mut Command, deadline: Duration) -> Result<String> {
    let output = output(command, deadline)?;
    succeeded(command, output)
}

fn succeeded(command: &Command, output: Output) -> Result<String> {
    if !output.status.success() {
        bail!("{}: {}\n{}{}", line(command), output.status, output.stdout, output.stderr);
    }
    Ok(output.stdout)
}

/// Runs a program that reads `input` and must succeed; gives its standard output.
///
/// # Errors
/// If it fails, with what it said on both channels.
pub fn run_with_input(command: &mut Command, input: String, deadline: Duration) -> Result<String> {
    let output = output_with(command.stdin(Stdio::piped()), input, deadline)?;
    succeeded(command, output)
}

/// Sends a signal to a child that has not been waited for.
///
/// # Errors
/// If there is no such process.
pub fn signal(child: &Child, signal: Signal) -> Result<()> {
    kill(Pid::from_raw(child.id() as i32), signal)
        .with_context(|| format!("sending {signal} to process {}", child.id()))
}

/// A program that runs in the background and prints JSON lines: a probe.
pub struct Background {
    child: Child,
    lines: Receiver<String>,
    stderr: Option<JoinHandle<String>>,
    text: String,
    /// The line with `"event":"ready"`, once it has been waited for.
    pub ready: Value,
}

impl Background {
    /// Starts it; its standard input stays open until [`Background::finish`].
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(command: &mut Command) -> Result<Background> {
        let text = line(command);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting: {text}"))?;
        let (send, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| send.send(line).ok()));
        let stderr = Some(gather(child.stderr.take().expect("piped")));
        Ok(Background { child, lines, stderr, text, ready: Value::Null })
    }

    /// Starts it and waits until it says that it is ready.
    ///
    /// # Errors
    /// If it cannot be started or does not become ready within five seconds.
    pub fn start_ready(command: &mut Command) -> Result<Background> {
        let mut background = Background::start(command)?;
        background.ready = background.event("ready", Duration::from_secs(5))?;
        Ok(background)
    }

    /// The port that it listens on.
    ///
    /// # Errors
    /// If it did not say one.
    pub fn port(&self) -> Result<u16> {
        self.ready["port"].as_u64().and_then(|port| port.try_into().ok()).context("no port in the ready line")
    }

    /// Writes to its standard input.
    ///
    /// # Errors
    /// If it does not read any more.
    pub fn write(&mut self, text: &str) -> Result<()> {
        use std::io::Write;
        let stdin = self.child.stdin.as_mut().context("the standard input is closed already")?;
        stdin.write_all(text.as_bytes()).with_context(|| format!("writing to: {}", self.text))
    }

    /// Closes its standard input (which ends what runs "until told") and waits for its result.
    ///
    /// # Errors
    /// If it fails or is not done in time.
    pub fn finish(mut self, deadline: Duration) -> Result<Value> {
        drop(self.child.stdin.take());
        self.event("result", deadline)
    }

    fn event(&mut self, wanted: &str, deadline: Duration) -> Result<Value> {
        let deadline = deadline * slowness();
        let end = Instant::now() + deadline;
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    let value: Value =
                        serde_json::from_str(&line).with_context(|| format!("{} said: {line}", self.text))?;
                    match value["event"].as_str() {
                        Some(event) if event == wanted => return Ok(value),
                        Some("error") => bail!("{}: {}", self.text, value["error"].as_str().unwrap_or("?")),
                        _ => {}
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    bail!("no {wanted} within {} s from: {}", deadline.as_secs_f64(), self.text)
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let said = self.stderr.take().and_then(|thread| thread.join().ok()).unwrap_or_default();
                    bail!("{} ended without {wanted}: {said}", self.text)
                }
            }
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
