//! The machine: kernel, privileges, memory, BPF and AF_XDP.

use std::fs;
use std::io;
use std::path::Path;

use nix::errno::Errno;
use socket2::{Domain, Socket, Type};

use super::Line;
use super::privileges::{MEMLOCK_CURE, Memlock, NEEDED_CAPABILITIES, capability_cure, mebibytes, missing_capabilities};
use crate::config::{Host, format_list};

/// Address family of AF_XDP sockets (`linux/socket.h`).
const AF_XDP: i32 = 44;
/// The only type that AF_XDP sockets have.
const SOCK_RAW: i32 = 3;
/// The oldest kernel that Podlane promises to work on.
const OLDEST: (u32, u32) = (6, 1);

/// Looks at the machine; `umem_bytes` is the locked memory that a daemon would need.
pub fn lines(umem_bytes: u64) -> Vec<Line> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let uid_map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let jit = fs::read_to_string("/proc/sys/net/core/bpf_jit_enable").ok();
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let socket = Socket::new(Domain::from(AF_XDP), Type::from(SOCK_RAW), None).map(drop);
    let mut lines = vec![
        kernel(release.trim()),
        capabilities(&missing_capabilities(), &uid_map),
        af_xdp(socket),
        locked_memory(umem_bytes, Memlock::read(umem_bytes)),
        memory(umem_bytes, &meminfo),
        bpf_jit(jit.as_deref().map(str::trim)),
        btf(Path::new("/sys/kernel/btf/vmlinux").exists()),
    ];
    lines.push(match Host::read() {
        Ok(host) => cpus(&host),
        Err(error) => Line::fail("CPUs", format!("the kernel does not tell them: {}", error.desc()), "report this"),
    });
    lines
}

/// Whether this machine's kernel is of a release or newer; not if it does not tell.
pub fn kernel_is_at_least(wanted: (u32, u32)) -> bool {
    fs::read_to_string("/proc/sys/kernel/osrelease")
        .is_ok_and(|release| version(&release).is_some_and(|found| found >= wanted))
}

/// `6.18.4-amd64` as (6, 18).
pub(super) fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

pub(super) fn kernel(release: &str) -> Line {
    let subject = "kernel";
    let (major, minor) = OLDEST;
    let Some(version) = version(release) else {
        let found = format!("the release {release:?} has no number");
        return Line::warn(subject, found, format!("make sure that it is Linux {major}.{minor} or newer"));
    };
    if version < OLDEST {
        let found = format!("Linux {release}; Podlane needs {major}.{minor} or newer");
        return Line::fail(subject, found, "boot a newer kernel");
    }
    let features = [
        ((6, 6), "multi-buffer AF_XDP (without it frames over 4 KiB stay with the kernel)"),
        (
            (6, 6),
            "tcx (without it the kernel path is a clsact filter, which a killed daemon leaves behind, passing; when a port first \
             takes that path, what the kernel itself sends there meanwhile is lost, some milliseconds of it)",
        ),
        ((6, 8), "AF_XDP TX metadata (without it workers compute checksums)"),
    ];
    let missing: Vec<_> = features
        .iter()
        .filter(|(since, _)| version < *since)
        .map(|((a, b), what)| format!("{a}.{b}: {what}"))
        .collect();
    if missing.is_empty() {
        Line::ok(subject, format!("Linux {release}, with multi-buffer AF_XDP and TX metadata"))
    } else {
        let cure = format!("newer kernels have more. Since {}", missing.join("; since "));
        Line::warn(subject, format!("Linux {release}"), cure)
    }
}

pub(super) fn capabilities(missing: &[&str], uid_map: &str) -> Line {
    let subject = "capabilities";
    // BPF asks for capabilities in the initial user namespace, whose map is the identity over all of 32 bits.
    let initial = uid_map.split_whitespace().eq(["0", "0", "4294967295"]);
    if !missing.is_empty() {
        let purposes: Vec<_> = NEEDED_CAPABILITIES
            .iter()
            .filter_map(|(capability, purpose)| {
                let name = capability.to_string();
                missing.contains(&name.as_str()).then(|| format!("{name} (to {purpose})"))
            })
            .collect();
        return Line::fail(subject, format!("missing: {}", purposes.join(", ")), capability_cure());
    }
    if !initial && !uid_map.is_empty() {
        let found = "all of them, but in a user namespace, where BPF does not accept them";
        return Line::fail(subject, found, "run it outside of the user namespace");
    }
    Line::ok(subject, "all that are needed")
}

pub(super) fn af_xdp(socket: io::Result<()>) -> Line {
    let subject = "AF_XDP";
    let Err(error) = socket else { return Line::ok(subject, "a socket can be opened") };
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EPERM | Errno::EACCES) => {
            Line::fail(subject, "a socket may not be opened", "run it as root or add CAP_NET_RAW")
        }
        Some(Errno::EAFNOSUPPORT) => Line::fail(
            subject,
            "the kernel has no AF_XDP sockets",
            "use a kernel that is built with CONFIG_XDP_SOCKETS=y",
        ),
        _ => Line::fail(subject, format!("a socket cannot be opened: {error}"), "see the kernel's log"),
    }
}

pub(super) fn locked_memory(needed: u64, memlock: Memlock) -> Line {
    let subject = "locked memory";
    let need = format!("{} are needed", mebibytes(needed));
    match memlock {
        Memlock::Unlimited => Line::ok(subject, format!("{need}; the limit does not apply (CAP_IPC_LOCK)")),
        Memlock::Enough { limit } => Line::ok(subject, format!("{need}; the limit is {}", mebibytes(limit))),
        Memlock::Raisable { limit } => {
            Line::ok(subject, format!("{need}; the limit is {} and podlane may raise it", mebibytes(limit)))
        }
        Memlock::TooLow { limit } => {
            Line::fail(subject, format!("{need}; the limit is {}", mebibytes(limit)), MEMLOCK_CURE)
        }
    }
}

pub(super) fn memory(needed: u64, meminfo: &str) -> Line {
    let subject = "memory";
    let kibibytes = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    let Some(available) = kibibytes.map(|kibibytes| kibibytes << 10) else {
        return Line::warn(subject, "the kernel does not tell how much is available", "mount /proc");
    };
    let found = format!("{} are available", mebibytes(available));
    if needed > available {
        Line::fail(subject, format!("{found}, and the UMEM needs {}", mebibytes(needed)), "lower `frames`")
    } else if needed > available / 2 {
        let found = format!("{found}, of which the UMEM takes {}", mebibytes(needed));
        Line::warn(subject, found, "lower `frames` if other programs run short")
    } else {
        Line::ok(subject, found)
    }
}

pub(super) fn bpf_jit(enabled: Option<&str>) -> Line {
    let subject = "BPF compiler";
    match enabled {
        Some("0") => Line::warn(
            subject,
            "BPF programs are interpreted, which is several times slower",
            "sysctl -w net.core.bpf_jit_enable=1",
        ),
        Some(_) => Line::ok(subject, "BPF programs are compiled"),
        // Only the first network namespace shows it, and distributions' kernels compile always.
        None => Line::ok(subject, "not to be seen in this network namespace (net.core.bpf_jit_enable)"),
    }
}

pub(super) fn btf(present: bool) -> Line {
    let subject = "kernel types";
    if present {
        Line::ok(subject, "/sys/kernel/btf/vmlinux is there")
    } else {
        Line::warn(
            subject,
            "/sys/kernel/btf/vmlinux is absent, so generic XDP mode is not possible",
            "mount /sys, or use a kernel that is built with CONFIG_DEBUG_INFO_BTF=y",
        )
    }
}

pub(super) fn cpus(host: &Host) -> Line {
    let found = format!("this process may use {} of {}", host.allowed_cpus.len(), host.online_cpus.len());
    Line::ok("CPUs", format!("{found} ({})", format_list(&host.allowed_cpus)))
}
