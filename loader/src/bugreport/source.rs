//! Where parts come from: files and programs of the node, each read up to a limit and waited for no longer than said.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::archive::{Content, MAX_PART};

/// How long a program may take.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// How long all of them may take.
pub const PATIENCE_FOR_ALL: Duration = Duration::from_secs(60);
/// How often it is looked at whether it has ended.
const TICK: Duration = Duration::from_millis(2);
/// Where programs are looked for, whatever the caller's environment says.
const PROGRAMS: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Characters of a program's complaint that are kept.
const COMPLAINT: usize = 300;

/// The content of a file.
pub fn file(path: &Path) -> Result<Content, String> {
    read(File::open(path).map_err(|error| told(&error))?).map(Content::from).map_err(|error| told(&error))
}

/// The text of a short file without blanks around it; nothing if it cannot be read.
pub fn short(path: impl AsRef<Path>) -> Option<String> {
    let content = file(path.as_ref()).ok()?;
    Some(String::from_utf8_lossy(&content.bytes).trim().to_owned())
}

fn told(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "permission denied; run this as root".to_owned(),
        io::ErrorKind::NotFound => "there is none".to_owned(),
        _ => error.to_string(),
    }
}

/// One byte more than a part may have, so that the archive sees that something was cut off.
fn read(from: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(MAX_PART as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Programs of the node, which have a time for all of them together.
#[derive(Clone, Copy, Debug)]
pub struct Programs {
    deadline: Instant,
}

impl Programs {
    /// From now on.
    pub fn new(time: Duration) -> Self {
        Programs { deadline: Instant::now() + time }
    }

    /// What a program prints within [`PATIENCE`]. If it fails, what it printed up to then and its complaint.
    pub fn run(&self, words: &[&str]) -> Result<Content, String> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err("left out: the programs before it took too long".to_owned());
        }
        program(words, left.min(PATIENCE))
    }
}

/// What a program prints. If it fails, what it printed up to then and its complaint.
pub(super) fn program(words: &[&str], patience: Duration) -> Result<Content, String> {
    let (program, arguments) = words.split_first().ok_or("no program is named")?;
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .envs([("PATH", PROGRAMS), ("LC_ALL", "C"), ("SYSTEMD_PAGER", ""), ("SYSTEMD_COLORS", "0")])
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => format!("`{program}` is not installed"),
            _ => format!("`{program}` cannot be started: {error}"),
        })?;
    let (out, err) = (gather(child.stdout.take()), gather(child.stderr.take()));
    let ended = wait(&mut child, patience);
    let bytes = out.join().unwrap_or_default();
    let said = String::from_utf8_lossy(&err.join().unwrap_or_default()).trim().to_owned();
    let said: String = said.lines().collect::<Vec<_>>().join("; ").chars().take(COMPLAINT).collect();
    let wrong = match ended {
        // What is longer than a part may be ends by SIGPIPE.
        Ok(_) if bytes.len() > MAX_PART => None,
        Ok(status) if status.success() => None,
        Ok(status) if said.is_empty() => Some(format!("`{program}` ended with {status}")),
        Ok(_) => Some(said),
        Err(why) => Some(format!("`{program}` {why}")),
    };
    match wrong {
        Some(why) if bytes.is_empty() => Err(why),
        wrong => Ok(Content { bytes, wrong }),
    }
}

fn gather(from: Option<impl Read + Send + 'static>) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || from.and_then(|from| read(from).ok()).unwrap_or_default())
}

fn wait(child: &mut Child, patience: Duration) -> Result<std::process::ExitStatus, String> {
    let deadline = Instant::now() + patience;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status),
            Ok(None) if Instant::now() < deadline => std::thread::sleep(TICK),
            result => {
                // The whole group: whoever else holds the pipes would be waited for otherwise.
                let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
                let _ = child.wait();
                return Err(match result {
                    Err(error) => format!("cannot be waited for: {error}"),
                    _ => format!("was not done within {} s", patience.as_secs_f32()),
                });
            }
        }
    }
}
