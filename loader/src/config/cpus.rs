//! CPUs: which there are, which this process may use, and the list format in which people write them.

use std::collections::BTreeSet;
use std::fmt::Write;

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

/// The highest CPU number that a thread can be pinned to (`CPU_SETSIZE` - 1 of the C library).
pub const MAX_CPU: usize = 1023;

/// The CPUs of this machine as a configuration is checked against them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// CPUs that this process may run on, ascending: `sched_getaffinity`.
    pub allowed_cpus: Vec<usize>,
    /// CPUs that are online, ascending: `/sys/devices/system/cpu/online`.
    pub online_cpus: Vec<usize>,
}

impl Host {
    /// Asks the kernel.
    ///
    /// # Errors
    /// The kernel's, if it does not tell the affinity.
    pub fn read() -> Result<Self, nix::Error> {
        let set = sched_getaffinity(Pid::from_raw(0))?;
        let allowed_cpus: Vec<_> = (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false)).collect();
        let online_cpus = std::fs::read_to_string("/sys/devices/system/cpu/online")
            .ok()
            .and_then(|list| parse_list(list.trim()).ok())
            .unwrap_or_else(|| allowed_cpus.clone());
        Ok(Host { allowed_cpus, online_cpus })
    }
}

/// Why a text is no list of CPUs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadCpuList {
    /// Not numbers and ranges.
    #[error("\"{0}\" is not a list of CPUs; write numbers and ranges, for example \"0,2-3\"")]
    Malformed(String),
    /// A range that runs downwards.
    #[error("the range {0}-{1} runs backwards; write {1}-{0}")]
    Backwards(usize, usize),
    /// Beyond [`MAX_CPU`].
    #[error("CPU {0} is beyond the highest number that a thread can be pinned to, {MAX_CPU}")]
    TooHigh(usize),
    /// Named twice.
    #[error("CPU {0} is named twice; every worker needs a CPU of its own")]
    Twice(usize),
}

/// Reads a list such as `0,2-3`, keeping its order.
pub fn parse_list(text: &str) -> Result<Vec<usize>, BadCpuList> {
    let malformed = || BadCpuList::Malformed(text.to_owned());
    let number = |text: &str| {
        let text = text.trim();
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(malformed());
        }
        text.parse::<usize>().map_err(|_| malformed())
    };
    let mut cpus = Vec::new();
    let mut seen = BTreeSet::new();
    for item in text.split(',') {
        let (first, last) = match item.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(item)?, number(item)?),
        };
        if first > last {
            return Err(BadCpuList::Backwards(first, last));
        }
        if last > MAX_CPU {
            return Err(BadCpuList::TooHigh(last));
        }
        for cpu in first..=last {
            if !seen.insert(cpu) {
                return Err(BadCpuList::Twice(cpu));
            }
            cpus.push(cpu);
        }
    }
    Ok(cpus)
}

/// Writes a list such as `0,2-3`; ascending runs of two and more become ranges.
pub fn format_list(cpus: &[usize]) -> String {
    let mut text = String::new();
    let mut rest = cpus;
    while let Some(&first) = rest.first() {
        let length = rest.iter().enumerate().take_while(|&(index, &cpu)| cpu == first + index).count();
        if !text.is_empty() {
            text.push(',');
        }
        let _ = write!(text, "{first}");
        if length > 1 {
            let _ = write!(text, "-{}", first + length - 1);
        }
        rest = &rest[length..];
    }
    text
}

/// A sentence if `cpu` cannot carry a worker on this machine.
pub fn unusable(cpu: usize, host: &Host) -> Option<String> {
    let allowed = format_list(&host.allowed_cpus);
    if host.allowed_cpus.contains(&cpu) {
        None
    } else if host.online_cpus.contains(&cpu) {
        Some(format!(
            "CPU {cpu} is not allowed for this process; allowed: {allowed} (taskset, CPUAffinity= or a cpuset \
             narrows them)"
        ))
    } else {
        Some(format!("CPU {cpu} does not exist on this machine; allowed: {allowed}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_in_their_order() {
        assert_eq!(parse_list("0"), Ok(vec![0]));
        assert_eq!(parse_list("3, 0-1"), Ok(vec![3, 0, 1]));
        assert_eq!(parse_list("0-1023").map(|cpus| cpus.len()), Ok(1024));
        assert_eq!(parse_list("3-1"), Err(BadCpuList::Backwards(3, 1)));
        assert_eq!(parse_list("0,0"), Err(BadCpuList::Twice(0)));
        assert_eq!(parse_list("0-99999999999"), Err(BadCpuList::TooHigh(99_999_999_999)));
        for bad in ["", ",", "0,", "-1", "1-", "a", "0x1", "+1", "1-2-3", "99999999999999999999999"] {
            assert_eq!(parse_list(bad), Err(BadCpuList::Malformed(bad.to_owned())));
        }
    }

    #[test]
    fn lists_are_written_as_ranges() {
        assert_eq!(format_list(&[]), "");
        assert_eq!(format_list(&[0, 1, 2, 5, 7, 8]), "0-2,5,7-8");
        assert_eq!(format_list(&[3, 0, 1]), "3,0-1");
    }

    #[test]
    fn this_machine_has_cpus() {
        let host = Host::read().unwrap();
        assert!(!host.allowed_cpus.is_empty());
        assert!(host.allowed_cpus.iter().all(|cpu| host.online_cpus.contains(cpu)), "{host:?}");
    }

    #[test]
    fn missing_and_forbidden_cpus_are_told_apart() {
        let host = Host { allowed_cpus: vec![0, 1], online_cpus: vec![0, 1, 2, 3] };
        assert_eq!(unusable(1, &host), None);
        assert!(unusable(2, &host).unwrap().starts_with("CPU 2 is not allowed for this process; allowed: 0-1"));
        assert_eq!(unusable(4, &host).unwrap(), "CPU 4 does not exist on this machine; allowed: 0-1");
    }
}
