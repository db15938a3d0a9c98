//! The command line: what can be asked for, and how the program ends.
//!
//! Exit codes: 0 done, 1 failed at run time, 2 bad usage or configuration.

use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::bugreport;
use crate::capture::client::CaptureError;
use crate::capture::command::{self as capturing, CaptureOptions};
use crate::capture::live::{self, LiveQuestion};
use crate::check;
use crate::config::{Config, ConfigError, Given, Host, InstanceName, Origin, PathChoice, Settings};
use crate::control;
use crate::detach;
use crate::explain;
use crate::generate;
use crate::log::{self, Format};
use crate::printable;
use crate::status;
use crate::takeover::Start;
use crate::top::{self, TopError};
use crate::trace::{self, Protocol, Question};
use crate::watch;

/// The command was carried out.
pub const DONE: u8 = 0;
/// Something went wrong at run time.
pub const FAILED: u8 = 1;
/// The command line or the configuration is wrong.
pub const MISUSED: u8 = 2;

/// A Kubernetes node dataplane on AF_XDP: forwards the traffic between pods past the kernel's network stack.
///
/// Podlane takes over the frames of pods that hang on a Linux bridge, and leaves everything that it does not fully
/// understand to the kernel. Stop it, and the kernel does all of it again.
#[derive(Debug, Parser)]
#[command(name = "podlane", version, propagate_version = true, max_term_width = 100)]
pub(crate) struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Forward, in the foreground, until SIGTERM or SIGINT; log to stderr
    ///
    /// Looks first whether the node has what is needed, and ends with a sentence if not, before anything is touched. Says
    /// "podlane is ready" when every port is attached. On SIGHUP it reads its configuration again (see `podlane reload`). When it
    /// ends, its programs stay and pass everything to the kernel, until it is started again or `podlane detach` takes them off.
    Run(RunOptions),
    /// Show ports, workers, tables and every frame's whereabouts of a running daemon
    Status(StatusOptions),
    /// Watch ports, workers and drops of a running daemon in packets and bits a second
    ///
    /// Keys sort, filter and change what is shown; `h` lists them. Where there is no terminal to draw on, it prints text, as with
    /// --batch.
    Top(TopOptions),
    /// Change the path of all ports of a running daemon, or of some, without losing a packet
    ///
    /// Holds until the daemon ends; the configuration says what holds from the start.
    Path(PathOptions),
    /// Read the configuration again, without losing a packet
    ///
    /// The file is judged as a whole first, also against this node: if anything is wrong, nothing changes, and this ends with 2.
    /// Otherwise everything that can change while the daemon runs is in force when this ends; settings that cannot are
    /// named, and keep their value until the restart. SIGHUP does the same.
    Reload(ReloadOptions),
    /// Tell what this node does with a packet, step by step, from the daemon's live tables
    ///
    /// FROM and TO are pods, by IP address, by name (namespace/pod, or pod if only one here has it) or by the interface of their
    /// veth on this node; FROM may also be the address of a pod of another node, whose packets come in through the uplink, and TO any address. No packet is sent, but the kernel may ask by ARP
    /// or neighbour discovery who has an address.
    Trace(TraceOptions),
    /// Capture packets as Podlane receives and sends them, with what became of each
    ///
    /// tcpdump does not see what Podlane forwards; this does, on both paths. Writes pcapng, in which each packet has its
    /// interface, its direction and a comment; or prints a line for each. Packets may be missing from the capture, and are
    /// counted then; the traffic itself loses none.
    Capture(CaptureOptions),
    /// Tell what a reason in `podlane status` means, what usually causes it, and what to do
    Explain(ExplainOptions),
    /// Look what this node has and lacks, each with its cure; changes nothing
    ///
    /// Ends with 1 if something is lacking without which `podlane run` would not work.
    Check(CheckOptions),
    /// Take back everything that a daemon has left on this node: programs, pins, host port, offloads, MTUs and routes
    ///
    /// Refuses while the daemon runs, unless --stop says to have it stop first. Can be repeated. Run it as root, in the node's
    /// network namespace.
    Detach(DetachOptions),
    /// Collect what somebody far away needs to find a fault into one archive; changes nothing
    ///
    /// Versions, configuration, tables, counters, metrics, programs and maps, interfaces and routes, limits and switches, and
    /// the recent log. No packets. Works as well when the daemon is dead or stuck, and says so. What could not be had is
    /// listed with the reason in MANIFEST, in the archive. Run it as root, on the node (in its network namespace).
    Bugreport(BugreportOptions),
    /// Make manual pages or shell completions
    #[command(hide = true)]
    Generate(GenerateOptions),
}

#[derive(Debug, Args)]
struct RunOptions {
    #[command(flatten)]
    node: NodeOptions,
    /// Take over from the daemon of this name that runs: prepare everything, have it let go, go on with its counters
    #[arg(long)]
    take_over: bool,
}

#[derive(Debug, Args)]
struct DetachOptions {
    /// Name of the daemon whose traces are removed
    #[arg(long, value_name = "NAME", default_value = "default")]
    instance: String,
    /// Have the daemon stop first if it runs
    #[arg(long)]
    stop: bool,
    /// Directory on bpffs in which its programs are pinned, if that is not where bpffs is mounted
    #[arg(long, value_name = "DIR", default_value = "auto")]
    bpffs: String,
    /// Print JSON for programs instead of lines
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct BugreportOptions {
    /// The archive, a compressed tar file that must not exist yet [default: podlane-bugreport-INSTANCE-TIME.tar.gz here]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Name of the daemon to ask
    #[arg(long, value_name = "NAME", default_value = "default")]
    instance: String,
    /// Configuration file to judge and copy [default: the daemon's own, or /etc/podlane/podlane.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Copy the rules of the firewall instead of only counting them
    #[arg(long)]
    include_firewall: bool,
}

#[derive(Debug, Args)]
struct GenerateOptions {
    #[command(subcommand)]
    what: Generate,
}

#[derive(Debug, Subcommand)]
enum Generate {
    /// Manual pages
    Man {
        /// The directory that they are written into
        directory: PathBuf,
    },
    /// Completions, to standard output
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Args)]
struct StatusOptions {
    /// Name of the daemon to ask
    #[arg(long, value_name = "NAME", default_value = "default")]
    instance: String,
    /// Print JSON for programs (docs/status.md describes it) instead of tables
    #[arg(long)]
    json: bool,
    /// Print the JSON Schema of what --json prints (docs/status.schema.json); no daemon is asked
    #[arg(long, conflicts_with_all = ["json", "watch"])]
    schema: bool,
    /// Show it again every so many seconds, 0.1 to 3600, until interrupted [default without a number: 2]
    #[arg(
        long,
        value_name = "SECONDS",
        num_args = 0..=1,
        default_missing_value = "2",
        value_parser = seconds,
        allow_negative_numbers = true
    )]
    watch: Option<f64>,
}

#[derive(Debug, Args)]
struct TopOptions {
    /// Name of the daemon to ask
    #[arg(long, value_name = "NAME", default_value = "default")]
    instance: String,
    /// Seconds between two samples, 0.1 to 3600
    #[arg(
        short = 'd',
        long,
        value_name = "SECONDS",
        default_value_t = top::app::DEFAULT_INTERVAL,
        value_parser = seconds,
        allow_negative_numbers = true
    )]
    interval: f64,
    /// Print text instead of drawing: so many samples [default without a number: no end]
    #[arg(short = 'b', long, value_name = "N", num_args = 0..=1, default_missing_value = "0")]
    batch: Option<u64>,
    /// Print one sample as text, the same as --batch 1
    #[arg(long, conflicts_with = "batch")]
    once: bool,
    /// Show only pods, interfaces and reasons with these letters
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,
    /// Use no colours; so does a NO_COLOR in the environment
    #[arg(long)]
    no_color: bool,
}

/// A time between two samples.
fn seconds(text: &str) -> Result<f64, String> {
    let (least, most) = (top::app::MIN_INTERVAL, top::app::MAX_INTERVAL);
    let number = text.parse::<f64>().map_err(|_| "not a number of seconds".to_owned())?;
    if (least..=most).contains(&number) { Ok(number) } else { Err(format!("allowed are {least} to {most} seconds")) }
}

#[derive(Debug, Args)]
struct PathOptions {
    /// Through AF_XDP and a worker, repeated in the kernel, or whichever suits each port
    #[arg(value_name = "PATH", value_parser = PathChoice::words())]
    path: String,
    /// Only these ports, by interface [default: all, and forget what was said of single ones]
    #[arg(value_name = "IFACE")]
    ports: Vec<String>,
    /// Name of the daemon to ask
    #[arg(long, value_name = "NAME", default_value = "default")]
    instance: String,
    /// Print JSON for programs instead of lines
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct ReloadOptions {
    /// Change nothing, only say what would change and what is wrong
    #[arg(long)]
    check: bool,
    /// Name of the daemon to tell
    #[arg(long, value_name = "NAME", default_value = "default")]
    instance: String,
    /// Print JSON for programs instead of lines
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct TraceOptions {
    /// Who sends: IP address, pod or interface
    from: String,
    /// Who shall receive: IP address, pod or interface
    to: String,
    /// Protocol of the packet [default: icmp; of live packets, any]
    #[arg(long, value_name = "NAME", value_parser = Protocol::words())]
    protocol: Option<String>,
    /// Destination port of TCP or UDP; UDP tunnels are treated specially [default: 80; of live packets, any port]
    #[arg(long, value_name = "N")]
    port: Option<u16>,
    /// Bytes of the IP packet, header included
    #[arg(long, value_name = "BYTES", conflicts_with = "live", default_value_t = trace::DEFAULT_BYTES, value_parser = clap::value_parser!(u32).range(..=i64::from(trace::MAX_BYTES)))]
    size: u32,
    /// Time to live or hop limit with which it leaves the pod
    #[arg(long, value_name = "N", conflicts_with = "live", default_value_t = trace::DEFAULT_TTL)]
    ttl: u8,
    /// Prefer IPv6 where an interface has addresses of both families
    #[arg(short = '6', long)]
    ipv6: bool,
    /// Name of the daemon to ask
    #[arg(long, value_name = "NAME", default_value = "default")]
    instance: String,
    /// Print JSON for programs instead of a drawing; with --live, a line for each packet
    #[arg(long)]
    json: bool,
    /// Follow real packets between the two, stage by stage, and the answers
    #[arg(long)]
    live: bool,
    /// Not the answers
    #[arg(long, requires = "live")]
    one_way: bool,
    /// End after so many packets
    #[arg(short = 'c', long, value_name = "N", requires = "live", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End after so many seconds
    #[arg(long, value_name = "SECONDS", requires = "live", value_parser = capturing::seconds)]
    duration: Option<Duration>,
}

#[derive(Debug, Args)]
struct ExplainOptions {
    /// The reason, such as too_big [default: list them all]
    reason: Option<String>,
    /// Print JSON for programs instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct CheckOptions {
    #[command(flatten)]
    node: NodeOptions,
    /// Print JSON for programs instead of lines
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Default, Args)]
struct NodeOptions {
    /// Configuration file in TOML; options of the command line win over it [default: /etc/podlane/podlane.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Linux bridge whose members are the pods' veths, such as cbr0 or cni0 [required here or in the file]
    #[arg(long, value_name = "IFACE")]
    bridge: Option<String>,
    /// Interface towards the other nodes; may be repeated [required here or in the file]
    #[arg(long, value_name = "IFACE", value_delimiter = ',')]
    uplink: Vec<String>,
    /// Network of the cluster's pods, such as 10.244.0.0/16; may be repeated. Frames are taken only if both ends lie in one
    /// [default: this node's own pod subnets]
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    cluster_cidr: Vec<String>,
    /// How frames are forwarded: through AF_XDP and a worker, repeated in the kernel, or whichever suits each port [default:
    /// af_xdp]
    #[arg(long, value_name = "PATH", value_parser = PathChoice::words())]
    path: Option<String>,
    /// The path of one port, such as veth0=kernel; may be repeated
    #[arg(long, value_name = "IFACE=PATH", value_delimiter = ',')]
    port_path: Vec<String>,
    /// Name of this daemon, for its control socket [default: default]
    #[arg(long, value_name = "NAME")]
    instance: Option<String>,
    /// Worker threads, 1 to 16 [default: one for each usable CPU, at most 4]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    workers: Option<i64>,
    /// CPUs of the workers, one each, such as 0,2-3 [default: the usable ones in ascending order]
    #[arg(long, value_name = "LIST", allow_hyphen_values = true)]
    cpus: Option<String>,
    /// UMEM frames of 4096 bytes, a power of two from 2048 to 262144; it is locked memory [default: 16384, that is 64 MiB]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    frames: Option<i64>,
    /// How XDP programs are attached: by the driver, or by the network stack where a driver cannot [default: native]
    #[arg(long, value_name = "MODE", value_parser = ["native", "generic"])]
    xdp_mode: Option<String>,
    /// Have the uplinks' driver itself read and write frames: where it can, or else leave the uplink to the kernel, or never
    /// [default: auto]
    #[arg(long, value_name = "WHEN", value_parser = ["auto", "require", "off"])]
    zero_copy: Option<String>,
    /// The same as --zero-copy require
    #[arg(long, conflicts_with = "zero_copy")]
    require_zero_copy: bool,
    /// Leave checksums to the kernel through AF_XDP TX metadata where it can, or always compute them [default: auto]
    #[arg(long, value_name = "WHEN", value_parser = ["auto", "off"])]
    checksum_metadata: Option<String>,
    /// Microseconds that a worker without traffic keeps looking before it sleeps, 0 to 1000000 [default: 50]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    idle_spin_us: Option<i64>,
    /// Give pods whose port takes the kernel path segmentation sizes of so many bytes (BIG TCP), 65537 to 524280, 0 for off
    /// [default: off]
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true)]
    big_tcp: Option<i64>,
    /// Give pods this MTU for each other, 1280 to 65000, 0 for off; their traffic to elsewhere keeps its size [default: off]
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true)]
    local_mtu: Option<i64>,
    /// Where metrics are told over HTTP, such as 127.0.0.1:9477, or off [default: 127.0.0.1:9477]
    #[arg(long, value_name = "ADDRESS")]
    metrics_address: Option<String>,
    /// Where the container runtime keeps its CNI results, which tell pods' names, or off [default: /var/lib/cni/results]
    #[arg(long, value_name = "DIR")]
    cni_cache: Option<String>,
    /// Directory on bpffs in which programs, links and maps outlive the daemon, auto (where bpffs is mounted), or off [default:
    /// auto]
    #[arg(long, value_name = "DIR")]
    bpffs: Option<String>,
    /// Member of the bridge that is left to the kernel; may be repeated
    #[arg(long, value_name = "IFACE", value_delimiter = ',')]
    skip: Vec<String>,
    /// What pods may send from, where their addresses are known: anything (off), only their own of the cluster's addresses
    /// (cluster), or only their own (strict); auto: cluster for pods of Podlane's own network plugin [default: auto]
    #[arg(long, value_name = "GUARD", value_parser = ["auto", "off", "cluster", "strict"])]
    source_guard: Option<String>,
    /// The source guard of one port, such as veth0=off; may be repeated
    #[arg(long, value_name = "IFACE=GUARD", value_delimiter = ',')]
    port_guard: Vec<String>,
    /// Take packets past netfilter rules that may drop, hold or change them, in place of leaving what they concern to the
    /// kernel [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    bypass_netfilter: Option<bool>,
    /// What is logged [default: the environment variable PODLANE_LOG, else info]
    #[arg(long, visible_alias = "log-level", value_name = "LEVEL", value_parser = ["error", "warn", "info", "debug", "trace"])]
    log: Option<String>,
    /// How lines of the log look: for people, for programs, or for systemd's journal [default: auto, which is journal where
    /// stderr leads there, else text]
    #[arg(long, value_name = "FORMAT", value_parser = Format::words())]
    log_format: Option<String>,
}

impl NodeOptions {
    fn settings(self) -> Settings {
        fn one<T>(value: Option<T>, option: &'static str) -> Option<Given<T>> {
            value.map(|value| Given { value, origin: Origin::Option(option) })
        }
        fn list(values: Vec<String>, option: &'static str) -> Option<Vec<Given<String>>> {
            let given = |value| Given { value, origin: Origin::Option(option) };
            (!values.is_empty()).then(|| values.into_iter().map(given).collect())
        }
        Settings {
            instance: one(self.instance, "--instance"),
            path: one(self.path, "--path"),
            port_paths: list(self.port_path, "--port-path"),
            source_guard: one(self.source_guard, "--source-guard"),
            port_guards: list(self.port_guard, "--port-guard"),
            bypass_netfilter: one(self.bypass_netfilter, "--bypass-netfilter"),
            bridge: one(self.bridge, "--bridge"),
            uplinks: list(self.uplink, "--uplink"),
            cluster_cidrs: list(self.cluster_cidr, "--cluster-cidr"),
            workers: one(self.workers, "--workers"),
            cpus: one(self.cpus, "--cpus"),
            frames: one(self.frames, "--frames"),
            xdp_mode: one(self.xdp_mode, "--xdp-mode"),
            zero_copy: one(self.zero_copy, "--zero-copy")
                .or_else(|| one(self.require_zero_copy.then(|| "require".to_owned()), "--require-zero-copy")),
            checksum_metadata: one(self.checksum_metadata, "--checksum-metadata"),
            idle_spin_us: one(self.idle_spin_us, "--idle-spin-us"),
            big_tcp: one(self.big_tcp, "--big-tcp"),
            local_mtu: one(self.local_mtu, "--local-mtu"),
            metrics_address: one(self.metrics_address, "--metrics-address"),
            cni_cache: one(self.cni_cache, "--cni-cache"),
            bpffs: one(self.bpffs, "--bpffs"),
            skip: list(self.skip, "--skip"),
            log: one(self.log, "--log").or_else(|| one(log_variable(), log::LEVEL_VARIABLE)),
            log_format: one(self.log_format, "--log-format"),
        }
    }

    fn load(mut self) -> Result<Result<Config, ConfigError>, nix::Error> {
        let file = self.config.take();
        let host = Host::read()?;
        Ok(Config::load(self.settings(), file.as_deref(), &host))
    }
}

/// The program: reads the command line, carries it out with `run` as the daemon, and tells how it ended.
pub fn main<E: Display>(run: impl FnOnce(Config, Start) -> Result<(), E>) -> ExitCode {
    let (mut out, mut err) = (io::stdout(), io::stderr());
    ExitCode::from(execute(std::env::args_os(), &mut out, &mut err, run))
}

/// Carries out a command line (`arguments` begins with the program's name) and returns the exit code.
pub fn execute<E: Display>(
    arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>,
    out: &mut impl Write,
    err: &mut impl Write,
    run: impl FnOnce(Config, Start) -> Result<(), E>,
) -> u8 {
    let command = match CommandLine::try_parse_from(arguments) {
        Ok(line) => line.command,
        Err(answer) => return print_answer(&answer, out, err),
    };
    match command {
        Command::Run(options) => run_daemon(options, err, run),
        Command::Status(options) => show_status(&options, out, err),
        Command::Top(options) => show_top(options, out, err),
        Command::Path(options) => change_path(options, out, err),
        Command::Reload(options) => reload(&options, out, err),
        Command::Trace(options) => show_trace(options, out, err),
        Command::Capture(options) => run_capture(&options, out, err),
        Command::Explain(options) => show_explanation(options, out, err),
        Command::Check(options) => show_check(options, out, err),
        Command::Detach(options) => run_detach(options, out, err),
        Command::Bugreport(options) => write_bugreport(options, out, err),
        Command::Generate(options) => generate_files(&options.what, out, err),
    }
}

/// Help and version go to stdout and are no error; a wrong command line is one.
fn print_answer(answer: &clap::Error, out: &mut impl Write, err: &mut impl Write) -> u8 {
    let text = answer.render();
    if answer.use_stderr() {
        let coloured = io::stderr().is_terminal() && wants_colours();
        let _ = if coloured { write!(err, "{}", text.ansi()) } else { write!(err, "{text}") };
        return MISUSED;
    }
    let coloured = io::stdout().is_terminal() && wants_colours();
    let text = if coloured { text.ansi().to_string() } else { text.to_string() };
    print(&text, out, err)
}

fn run_daemon<E: Display>(
    options: RunOptions,
    err: &mut impl Write,
    run: impl FnOnce(Config, Start) -> Result<(), E>,
) -> u8 {
    let start = if options.take_over { Start::TakeOver } else { Start::Alone };
    let config = match options.node.load() {
        Ok(Ok(config)) => config,
        Ok(Err(error)) => return complain(err, MISUSED, error),
        Err(error) => {
            return complain(err, FAILED, format_args!("the kernel does not tell the CPUs: {}", error.desc()));
        }
    };
    log::start(&config.log, config.log_format, io::stderr().is_terminal() && wants_colours());
    if let Err(error) = check::preflight(&config, start) {
        return give_up(err, error);
    }
    for note in &config.notes {
        tracing::info!("{note}");
    }
    match run(config, start) {
        Ok(()) => DONE,
        Err(error) => give_up(err, format_args!("{error:#}")),
    }
}

/// The daemon's last word: a sentence for people, a line of the log where programs read it.
fn give_up(err: &mut impl Write, sentence: impl Display) -> u8 {
    if log::is_for_people() {
        return complain(err, FAILED, sentence);
    }
    tracing::error!("{sentence}");
    FAILED
}

/// What the environment says of the log.
fn log_variable() -> Option<String> {
    std::env::var(log::LEVEL_VARIABLE).ok().filter(|value| !value.is_empty())
}

/// <https://no-color.org>
fn wants_colours() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// The daemon that a question is for, or the exit code when its name is none.
fn instance_of(name: &str, err: &mut impl Write) -> Result<InstanceName, u8> {
    name.parse().map_err(|error| complain(err, MISUSED, format_args!("--instance: {error}")))
}

fn show_status(options: &StatusOptions, out: &mut impl Write, err: &mut impl Write) -> u8 {
    if options.schema {
        return print(&status::schema::text(), out, err);
    }
    let instance = match instance_of(&options.instance, err) {
        Ok(instance) => instance,
        Err(code) => return code,
    };
    let ask = || -> Result<String, control::AskError> {
        let (answer, status) = control::ask_status(instance.as_str(), control::PATIENCE)?;
        Ok(if options.json { format!("{}\n", printable::json(&answer)) } else { status.render() })
    };
    match (options.watch, ask()) {
        (None, Ok(text)) => print(&text, out, err),
        (Some(seconds), Ok(first)) => {
            let screen = !options.json && can_draw();
            let pause = Duration::from_secs_f64(seconds);
            match watch::watch(first, pause, watch::Style { screen, json: options.json }, out, ask) {
                Ok(()) => DONE,
                Err(error) => complain(err, FAILED, format_args!("writing the answer: {error}")),
            }
        }
        (_, Err(error)) => complain(err, FAILED, error),
    }
}

/// Whether stdout is a terminal that can be drawn on.
fn can_draw() -> bool {
    let is_dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
    io::stdout().is_terminal() && !is_dumb
}

fn show_top(options: TopOptions, out: &mut impl Write, err: &mut impl Write) -> u8 {
    let instance = match instance_of(&options.instance, err) {
        Ok(instance) => instance,
        Err(code) => return code,
    };
    let wish = top::Options {
        instance: instance.to_string(),
        interval: options.interval,
        filter: options.filter,
        is_coloured: wants_colours() && !options.no_color,
        width: io::stdout()
            .is_terminal()
            .then(|| ratatui::crossterm::terminal::size().map_or(80, |size| size.0.into())),
    };
    let result = match (options.once, options.batch) {
        (true, _) => top::print(&wish, 1, out),
        (false, Some(blocks)) => top::print(&wish, blocks, out),
        (false, None) if can_draw() => top::run(&wish),
        (false, None) => top::print(&wish, 0, out),
    };
    result.map_or_else(|error: TopError| complain(err, FAILED, error), |()| DONE)
}

/// How long a daemon may take to open and close ports, or to have them change their path: for the first it may have to load the
/// programs.
const PORTS_PATIENCE: Duration = Duration::from_secs(30);

fn change_path(options: PathOptions, out: &mut impl Write, err: &mut impl Write) -> u8 {
    let instance = match instance_of(&options.instance, err) {
        Ok(instance) => instance,
        Err(code) => return code,
    };
    match control::ask_path(instance.as_str(), &options.path, &options.ports, PORTS_PATIENCE) {
        Ok((answer, _)) if options.json => print(&format!("{answer}\n"), out, err),
        Ok((_, ports)) => {
            let line = |port: &control::PortPath| format!("{}: {} ({})\n", port.name, port.path, port.why);
            print(&ports.iter().map(line).collect::<String>(), out, err)
        }
        Err(error) => complain(err, FAILED, error),
    }
}

fn reload(options: &ReloadOptions, out: &mut impl Write, err: &mut impl Write) -> u8 {
    let instance = match instance_of(&options.instance, err) {
        Ok(instance) => instance,
        Err(code) => return code,
    };
    match control::ask_reload(instance.as_str(), options.check, PORTS_PATIENCE) {
        Ok((answer, outcome)) if options.json => match print(&format!("{answer}\n"), out, err) {
            DONE if outcome.is_refused() => MISUSED,
            code => code,
        },
        Ok((_, outcome)) if outcome.is_refused() => complain(err, MISUSED, outcome.complaint()),
        Ok((_, outcome)) => print(&outcome.render(), out, err),
        Err(error) => complain(err, FAILED, error),
    }
}

fn show_trace(options: TraceOptions, out: &mut impl Write, err: &mut impl Write) -> u8 {
    let instance = match instance_of(&options.instance, err) {
        Ok(instance) => instance,
        Err(code) => return code,
    };
    let protocol = options.protocol.as_deref().and_then(Protocol::of);
    let question = Question {
        from: options.from,
        to: options.to,
        protocol: protocol.unwrap_or_default(),
        port: options.port.unwrap_or(80),
        bytes: options.size,
        ttl: options.ttl,
        ipv6: options.ipv6,
        may_resolve: true,
    };
    match control::ask_trace(instance.as_str(), &question, control::PATIENCE) {
        Ok((_, trace)) if options.live => {
            let question = LiveQuestion {
                from: trace.from,
                to: trace.to,
                protocol,
                port: options.port,
                one_way: options.one_way,
                count: options.count,
                duration: options.duration,
                json: options.json,
            };
            captured(live::follow(instance.as_str(), &question, out, err), err)
        }
        Ok((answer, _)) if options.json => print(&format!("{answer}\n"), out, err),
        Ok((_, trace)) => print(&trace.render(), out, err),
        Err(error) => complain(err, FAILED, error),
    }
}

fn run_capture(options: &CaptureOptions, out: &mut impl Write, err: &mut impl Write) -> u8 {
    if let Err(code) = instance_of(&options.instance, err) {
        return code;
    }
    captured(capturing::capture(options, out, err), err)
}

/// How a capture or a live trace has ended.
fn captured(outcome: Result<(), CaptureError>, err: &mut impl Write) -> u8 {
    match outcome {
        Ok(()) => DONE,
        Err(CaptureError::Misuse(error)) => complain(err, MISUSED, error),
        Err(error) => complain(err, FAILED, error),
    }
}

fn show_explanation(options: ExplainOptions, out: &mut impl Write, err: &mut impl Write) -> u8 {
    let text = match options.reason {
        None if options.json => pretty(&explain::all()),
        None => explain::render_all(),
        Some(name) => match explain::named(&name) {
            Ok(one) if options.json => pretty(&one),
            Ok(one) => one.render(),
            Err(error) => return complain(err, MISUSED, error),
        },
    };
    print(&text, out, err)
}

fn show_check(options: CheckOptions, out: &mut impl Write, err: &mut impl Write) -> u8 {
    let config = match options.node.load() {
        Ok(config) => config,
        Err(error) => {
            return complain(err, FAILED, format_args!("the kernel does not tell the CPUs: {}", error.desc()));
        }
    };
    let report = check::check(&config);
    let text =
        if options.json { pretty(&report) } else { report.render(io::stdout().is_terminal() && wants_colours()) };
    match print(&text, out, err) {
        DONE if !report.ok => FAILED,
        code => code,
    }
}

fn run_detach(options: DetachOptions, out: &mut impl Write, err: &mut impl Write) -> u8 {
    let instance = match instance_of(&options.instance, err) {
        Ok(instance) => instance.to_string(),
        Err(code) => return code,
    };
    let root = match options.bpffs.parse() {
        Ok(root) => root,
        Err(error) => return complain(err, MISUSED, format_args!("--bpffs: {error}")),
    };
    match detach::detach(&detach::Wish { instance, root, stop: options.stop }) {
        Ok(report) if options.json => print(&pretty(&report), out, err),
        Ok(report) => print(&report.render(), out, err),
        Err(error) => complain(err, FAILED, error),
    }
}

fn write_bugreport(options: BugreportOptions, out: &mut impl Write, err: &mut impl Write) -> u8 {
    let instance = match instance_of(&options.instance, err) {
        Ok(instance) => instance.to_string(),
        Err(code) => return code,
    };
    let BugreportOptions { output, config, include_firewall: firewall, .. } = options;
    let wish = bugreport::Wish { instance, output, config, firewall };
    match bugreport::write(&wish, &load_like) {
        Ok(report) => print(&report.render(), out, err),
        Err(error) => complain(err, FAILED, error),
    }
}

/// The configuration of a daemon that was started with these words, or, if they are none, of one that would be started now.
fn load_like(words: &[String], file: Option<&Path>) -> Result<Result<Config, ConfigError>, String> {
    let line = std::iter::once("podlane").chain(words.iter().map(String::as_str));
    let mut options = match CommandLine::try_parse_from(line) {
        Ok(CommandLine { command: Command::Run(options) }) => options.node,
        _ => NodeOptions::default(),
    };
    options.config = file.map(Path::to_owned).or(options.config);
    options.load().map_err(|error| format!("the kernel does not tell the CPUs: {}", error.desc()))
}

fn generate_files(what: &Generate, out: &mut impl Write, err: &mut impl Write) -> u8 {
    let command = CommandLine::command();
    let shell = match what {
        Generate::Completions { shell } => *shell,
        Generate::Man { directory } => {
            return match generate::write_pages(&command, directory) {
                Ok(_) => DONE,
                Err(error) => complain(err, FAILED, format_args!("writing into {}: {error}", directory.display())),
            };
        }
    };
    print(&generate::completions(&command, shell), out, err)
}

/// JSON for programs, which people can read as well.
fn pretty(value: &impl serde::Serialize) -> String {
    serde_json::to_string_pretty(value).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}")) + "\n"
}

/// Prints an answer. A reader that has had enough (`podlane status | head`) is no error.
fn print(text: &str, out: &mut impl Write, err: &mut impl Write) -> u8 {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            complain(err, FAILED, format_args!("writing the answer: {error}"))
        }
        _ => DONE,
    }
}

/// The long options of `podlane run`, with their dashes.
#[cfg(test)]
pub(crate) fn options_of_run() -> Vec<String> {
    let command = CommandLine::command();
    let run = command.find_subcommand("run").expect("there is such a command");
    run.get_arguments().filter_map(|argument| Some(format!("--{}", argument.get_long()?))).collect()
}

fn complain(err: &mut impl Write, code: u8, sentence: impl Display) -> u8 {
    let _ = writeln!(err, "podlane: {}", printable::lines(&sentence.to_string()));
    code
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// Exit code, stdout and stderr of a command line, with a daemon that must not be reached.
    fn podlane(line: &str) -> (u8, String, String) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let arguments = ["podlane"].into_iter().chain(line.split_whitespace());
        let run = |_: Config, _: Start| -> Result<(), Infallible> { panic!("the daemon was started") };
        let code = execute(arguments, &mut out, &mut err, run);
        (code, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
    }

    #[test]
    fn the_definition_is_sound() {
        use clap::CommandFactory;
        CommandLine::command().debug_assert();
    }

    #[test]
    fn every_option_has_a_help_text_that_fits() {
        use clap::CommandFactory;
        for command in CommandLine::command().get_subcommands() {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{} {}", command.get_name(), argument.get_id());
            }
        }
        for line in [
            "--help",
            "run --help",
            "status --help",
            "top --help",
            "path --help",
            "reload --help",
            "trace --help",
            "explain --help",
            "capture --help",
            "check --help",
            "detach --help",
            "bugreport --help",
            "run -h",
        ] {
            let (code, out, err) = podlane(line);
            assert_eq!((code, err.as_str()), (DONE, ""));
            assert!(out.lines().all(|line| line.chars().count() <= 100), "{out}");
        }
    }

    #[test]
    fn every_option_sets_its_setting() {
        let line = "podlane run --bridge b --uplink u,v --uplink w --cluster-cidr c --instance i --workers 1 --cpus 0 \
                    --frames 2 --xdp-mode generic --zero-copy auto --checksum-metadata off --idle-spin-us 3 --skip s --log debug \
                    --config f --path auto --port-path a=kernel --big-tcp 4 --local-mtu 5 --metrics-address m --cni-cache n \
                    --log-format json --source-guard strict --port-guard a=off --bypass-netfilter --bpffs o";
        let parsed = CommandLine::try_parse_from(line.split_whitespace()).unwrap();
        let Command::Run(options) = parsed.command else { panic!("{parsed:?}") };
        assert!(!options.take_over);
        let options = options.node;
        assert_eq!(options.config, Some("f".into()));
        fn one<T>(value: T, option: &'static str) -> Given<T> {
            Given { value, origin: Origin::Option(option) }
        }
        let text = |value: &str, option| one(value.to_owned(), option);
        let expected = Settings {
            instance: Some(text("i", "--instance")),
            path: Some(text("auto", "--path")),
            port_paths: Some(vec![text("a=kernel", "--port-path")]),
            source_guard: Some(text("strict", "--source-guard")),
            port_guards: Some(vec![text("a=off", "--port-guard")]),
            bypass_netfilter: Some(one(true, "--bypass-netfilter")),
            bridge: Some(text("b", "--bridge")),
            uplinks: Some(vec![text("u", "--uplink"), text("v", "--uplink"), text("w", "--uplink")]),
            cluster_cidrs: Some(vec![text("c", "--cluster-cidr")]),
            workers: Some(one(1, "--workers")),
            cpus: Some(text("0", "--cpus")),
            frames: Some(one(2, "--frames")),
            xdp_mode: Some(text("generic", "--xdp-mode")),
            zero_copy: Some(text("auto", "--zero-copy")),
            checksum_metadata: Some(text("off", "--checksum-metadata")),
            idle_spin_us: Some(one(3, "--idle-spin-us")),
            big_tcp: Some(one(4, "--big-tcp")),
            local_mtu: Some(one(5, "--local-mtu")),
            metrics_address: Some(text("m", "--metrics-address")),
            cni_cache: Some(text("n", "--cni-cache")),
            bpffs: Some(text("o", "--bpffs")),
            skip: Some(vec![text("s", "--skip")]),
            log: Some(text("debug", "--log")),
            log_format: Some(text("json", "--log-format")),
        };
        assert_eq!(options.settings(), expected);
    }

    #[test]
    fn zero_copy_is_required_by_either_option_and_not_by_both() {
        let zero_copy = |line: &str| {
            let parsed = CommandLine::try_parse_from(line.split_whitespace()).unwrap();
            let Command::Run(options) = parsed.command else { panic!("{parsed:?}") };
            options.node.settings().zero_copy.map(|given| given.value)
        };
        assert_eq!(zero_copy("podlane run --require-zero-copy").as_deref(), Some("require"));
        assert_eq!(zero_copy("podlane run --zero-copy off").as_deref(), Some("off"));
        assert_eq!(zero_copy("podlane run"), None);
        assert!(CommandLine::try_parse_from(["podlane", "run", "--require-zero-copy", "--zero-copy", "off"]).is_err());
    }

    #[test]
    fn wrong_usage_ends_with_two() {
        for (line, expected) in [
            ("", "Usage: podlane"),
            ("fly", "unrecognized subcommand 'fly'"),
            ("run --brigde x", "'--bridge'"),
            ("run --xdp-mode fast", "[possible values: native, generic]"),
            ("run --workers two", "invalid value 'two'"),
            ("explain quux", "there is no reason \"quux\""),
            ("trace a", "<TO>"),
            ("trace a b --protocol gre", "[possible values: icmp, tcp, udp]"),
            ("trace a b --size 65536", "65536 is not in"),
            ("status --watch 0", "allowed are 0.1 to 3600 seconds"),
            ("status --schema --json", "cannot be used with"),
            ("top --interval never", "not a number of seconds"),
            ("top --once --batch 3", "cannot be used with"),
            ("top --instance A", "--instance: \"A\" is not an instance name"),
            ("status --instance A", "--instance: \"A\" is not an instance name"),
            ("run --config /dev/null", "no bridge is named"),
            ("run --config /dev/null --bridge b --uplink u --frames 5000", "--frames: 5000 is not a power of two"),
            ("run --config /dev/null --bridge b --uplink u --workers -1", "--workers: -1 is out of range"),
            ("run --config /dev/null --bridge b --uplink u --cpus -1", "--cpus: \"-1\" is not a list of CPUs"),
            ("run --config /dev/null --bridge b --uplink u --cpus 1023", "--cpus: CPU 1023 does not exist"),
            ("run --config /nonexistent", "cannot read /nonexistent: No such file"),
        ] {
            let (code, out, err) = podlane(line);
            assert_eq!((code, out.as_str()), (MISUSED, ""), "{line}");
            assert!(err.contains(expected), "{line}: {err}");
        }
    }

    #[test]
    fn a_daemon_that_is_not_there_ends_with_one() {
        let (code, out, err) = podlane("status --instance nobody-of-this-name");
        assert_eq!((code, out.as_str()), (FAILED, ""));
        assert!(err.starts_with("podlane: no podlane instance \"nobody-of-this-name\" answers at "), "{err}");
    }

    #[test]
    fn check_answers_for_people_and_programs() {
        let (code, out, err) = podlane("check --config /dev/null --json");
        assert_eq!(err, "");
        let report: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(code == DONE, report["ok"] == true);
        let (_, out, _) = podlane("check --config /dev/null");
        assert!(out.contains("no bridge and uplink are named") && !out.contains('\x1b'), "{out}");
        let (code, out, _) = podlane("check --config /dev/null --frames 7");
        assert!(code == FAILED && out.contains("FAIL  configuration"), "{out}");
    }

    #[test]
    fn version_is_told() {
        let (code, out, _) = podlane("--version");
        assert_eq!((code, out), (DONE, format!("podlane {}\n", env!("CARGO_PKG_VERSION"))));
    }

    #[test]
    fn a_reader_that_leaves_is_no_error_and_a_full_disk_is() {
        struct Broken(io::ErrorKind);
        impl Write for Broken {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(self.0.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let run = |_: Config, _: Start| Ok::<(), Infallible>(());
        let code = |kind| execute(["podlane", "--help"], &mut Broken(kind), &mut Vec::new(), run);
        assert_eq!(code(io::ErrorKind::BrokenPipe), DONE);
        assert_eq!(code(io::ErrorKind::StorageFull), FAILED);
    }
}
