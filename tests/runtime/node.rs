//! A container runtime in one node of the testbed, and the containers that it runs.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use podlane_tests::bed::Bed;
use podlane_tests::command::{self, Background, wait_for};
use podlane_tests::{cni, leftovers, stock};
use serde_json::Value;

/// How long containerd may take to start, and a container to run, on a busy machine.
const START: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_secs(60);
/// The name in the image that `image.sh` makes.
const IMAGE: &str = "podlane.test/pod:1";

/// How a container is run: the traffic tool wants a larger receive buffer than the system's limit.
const RUN: [&str; 6] = ["run", "--rm", "--snapshotter", "native", "--cap-add", "CAP_NET_ADMIN"];

/// A line of shell that runs the traffic tool as a child: it ends with its parent, and the one that a container's processes begin
/// with goes as soon as they run.
pub fn as_child(words: &str) -> String {
    format!("podlane-probe --deadline-s 120 {words}; exit $?")
}

/// containerd. Its processes, mounts and files go with it, however it ends.
pub struct Runtime {
    child: Child,
    /// What containerd calls a namespace, and the parent of its containers' cgroups.
    name: String,
    place: PathBuf,
    netns: PathBuf,
    log: PathBuf,
    tools: PathBuf,
    running: Vec<(String, Child)>,
}

impl Runtime {
    /// Starts it in a node, with a CNI configuration, and gives it the image.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start(bed: &Bed, node: usize, image: &Path, conflist: &Value) -> Result<Runtime> {
        let tools = stock::unpacked()?.to_owned();
        let name = leftovers::runtime_name(&bed.name, node);
        let place = std::env::temp_dir().join(&name);
        fs::create_dir(&place).with_context(|| format!("making {}", place.display()))?;
        let netns = PathBuf::from(format!("/run/netns/{}", bed.namespace(&format!("node{node}"))));
        let log = place.with_extension("log");
        let child = Command::new("nsenter")
            .arg(format!("--net={}", netns.display()))
            // Whatever happens to the tests, it does not outlive them.
            .args(["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private"])
            .args(["--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-euc", include_str!("node.sh"), "node.sh"])
            .args([place.as_path(), &tools, &tools.join("usr/lib/cni"), &cni::binary()?])
            .arg(conflist.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log)?)
            .spawn()
            .context("starting containerd")?;
        let mut runtime = Runtime { child, name, place, netns, log, tools, running: Vec::new() };
        runtime.wait_until_ready()?;
        let image = image.display().to_string();
        runtime.ctr(&["image", "import", "--snapshotter", "native", &image])?;
        Ok(runtime)
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let ready = wait_for("containerd to answer", START, || {
            if let Some(status) = self.child.try_wait()? {
                bail!("containerd ended with {status}");
            }
            let output = command::output(&mut self.ctr_command(&["version"]), SHORT)?;
            Ok(output.status.success().then_some(()))
        });
        ready.with_context(|| self.log_text())
    }

    fn log_text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// A program where containerd is.
    fn inside(&self, program: &str) -> Command {
        let of = |kind: &str| format!("/proc/{}/ns/{kind}", self.child.id());
        let path = std::env::var("PATH").unwrap_or_default();
        let tools = self.tools.display();
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--mount={}", of("mnt")))
            .arg(format!("--pid={}", of("pid_for_children")))
            .arg(format!("--net={}", self.netns.display()))
            .args(["--", program])
            .env("PATH", format!("{tools}/usr/bin:{tools}/usr/sbin:{path}"))
            .env("CONTAINERD_ADDRESS", "/run/containerd/containerd.sock")
            .env("CONTAINERD_NAMESPACE", &self.name);
        command
    }

    fn ctr_command(&self, words: &[&str]) -> Command {
        let mut command = self.inside(&self.tools.join("usr/bin/ctr").display().to_string());
        command.args(words);
        command
    }

    fn ctr(&self, words: &[&str]) -> Result<String> {
        command::run(&mut self.ctr_command(words), SHORT).with_context(|| self.log_text())
    }

    /// Where plugins of this runtime keep their reservations.
    pub fn ipam(place: &Path) -> PathBuf {
        place.join("ipam")
    }

    /// Files of the plugins' reservations.
    ///
    /// # Errors
    /// If they cannot be listed.
    pub fn reservations(&self) -> Result<String> {
        let mut find = self.inside("find");
        find.arg(Self::ipam(&self.place)).args(["-type", "f", "!", "-name", "lock", "!", "-name", "last*"]);
        command::run(&mut find, SHORT)
    }

    /// Runs a pod's first container, which is connected by CNI and keeps the pod's network: the sandbox.
    ///
    /// # Errors
    /// If it does not come to run.
    pub fn run_sandbox(&mut self, id: &str) -> Result<()> {
        self.run(id, &["--cni"], &["sleep", "100000"])
    }

    /// Runs a container in a sandbox.
    ///
    /// # Errors
    /// If it does not come to run.
    pub fn run_in(&mut self, sandbox: &str, id: &str, words: &[&str]) -> Result<()> {
        let network = self.network_of(sandbox)?;
        self.run(id, &["--with-ns", &network], words)
    }

    fn network_of(&self, sandbox: &str) -> Result<String> {
        Ok(format!("network:/proc/{}/ns/net", self.task(sandbox)?.context("the sandbox does not run")?))
    }

    fn run(&mut self, id: &str, options: &[&str], words: &[&str]) -> Result<()> {
        let mut run = self.ctr_command(&RUN);
        run.args(options).args([IMAGE, id]).args(words);
        let log = fs::File::options().append(true).open(&self.log)?;
        let child = run.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().context("starting ctr")?;
        self.running.push((id.to_owned(), child));
        wait_for(&format!("container {id} to run"), START, || {
            if self.task(id)?.is_some() {
                return Ok(Some(()));
            }
            let (_, child) = self.running.last_mut().context("just pushed")?;
            match child.try_wait()? {
                Some(status) => bail!("ctr run {id} ended with {status}: {}", self.log_text()),
                None => Ok(None),
            }
        })
    }

    /// The traffic tool as a container of its own in a sandbox, until it is finished.
    ///
    /// # Errors
    /// If it does not become ready.
    pub fn probe(&self, sandbox: &str, id: &str, words: &[&str]) -> Result<Background> {
        let network = self.network_of(sandbox)?;
        let mut run = self.ctr_command(&RUN);
        run.args(["--with-ns", &network, IMAGE, id]);
        Background::start_ready(run.args(["sh", "-c", &as_child(&words.join(" "))])).with_context(|| self.log_text())
    }

    /// The process of a running container, as the runtime numbers it.
    fn task(&self, id: &str) -> Result<Option<u32>> {
        let list = self.ctr(&["task", "ls"])?;
        let mut lines = list.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
        let found = lines.find(|words| matches!(words[..], [name, _, "RUNNING"] if name == id));
        found.map(|words| words[1].parse().context("a process number")).transpose()
    }

    /// Runs a command in a container; gives what it printed.
    ///
    /// # Errors
    /// If it fails.
    pub fn exec(&self, id: &str, words: &[&str]) -> Result<String> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = format!("e{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let mut exec = self.ctr_command(&["task", "exec", "--exec-id", &number, id]);
        command::run(exec.args(words), SHORT).with_context(|| format!("in container {id}"))
    }

    /// Kills a container; with a sandbox its network goes.
    ///
    /// # Errors
    /// If it does not end, or ctr cannot clean up behind it.
    pub fn kill(&mut self, id: &str) -> Result<()> {
        self.ctr(&["task", "kill", "--signal", "SIGKILL", id])?;
        let at = self.running.iter().position(|(name, _)| name == id).context("no such container")?;
        let (_, mut child) = self.running.swap_remove(at);
        // It ends as its container did, after DEL.
        wait_for(&format!("ctr run {id} to end"), SHORT, || Ok(child.try_wait()?)).map(drop)
    }

    /// Ends it. Its containers must be gone, and nothing may be left.
    ///
    /// # Errors
    /// If something is.
    pub fn end(mut self) -> Result<()> {
        let left = self.ctr(&["container", "ls", "-q"])?;
        ensure!(left.trim().is_empty(), "containers are left over: {left}");
        self.stop();
        let (name, place, log) = (self.name.clone(), self.place.clone(), self.log.clone());
        drop(self);
        ensure!(!place.exists() && !log.exists(), "{} is left over", place.display());
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        ensure!(!mounts.contains(&name), "mounts are left over: {mounts}");
        ensure!(leftovers::cgroups_of(&name).is_empty(), "cgroups are left over: {:?}", leftovers::cgroups_of(&name));
        Ok(())
    }

    /// With the first process of a process namespace all others go.
    fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for (_, child) in &mut self.running {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.stop();
        leftovers::remove_cgroups(&self.name);
        let _ = fs::remove_file(&self.log);
        // The mount goes with the last process, whose end the kernel may still be busy with.
        let gone = wait_for("the runtime's directory to be free", SHORT, || match fs::remove_dir(&self.place) {
            Err(error) if error.kind() == ErrorKind::ResourceBusy => Ok(None),
            _ => Ok(Some(())),
        });
        if let Err(error) = gone {
            eprintln!("{error:#}");
        }
    }
}
