//! Calls a CNI plugin as a runtime does, many times, and tells how long each call took.
//!
//! `cni-driver PLUGIN CONFIGURATION CONCURRENT NAMESPACE...`, in the node's network namespace and with `CNI_PATH` set: ADD
//! for each namespace, so many at once, then DEL for each. Prints one line of JSON for each call.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::json;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [plugin, file, concurrent, namespaces @ ..] = words.as_slice() else {
        bail!("usage: cni-driver PLUGIN CONFIGURATION CONCURRENT NAMESPACE...");
    };
    let text = std::fs::read(file).with_context(|| format!("reading {file}"))?;
    let concurrent: usize = concurrent.parse().context("how many at once")?;
    for command in ["ADD", "DEL"] {
        for milliseconds in run_all(plugin, &text, command, concurrent, namespaces)? {
            println!("{}", json!({ "command": command, "concurrent": concurrent, "ms": milliseconds }));
        }
    }
    Ok(())
}

/// Calls the plugin for every namespace. Returns the milliseconds that each call took, from its start to its end.
fn run_all(plugin: &str, text: &[u8], command: &str, concurrent: usize, namespaces: &[String]) -> Result<Vec<f64>> {
    let next = AtomicUsize::new(0);
    let times = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..concurrent)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    while let Some(namespace) = namespaces.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let milliseconds = call(plugin, text, command, namespace)?;
                        times.lock().expect("no holder panics").push(milliseconds);
                    }
                    Ok(())
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("no worker panics"))
    })?;
    Ok(times.into_inner().expect("no holder panics"))
}

fn call(plugin: &str, text: &[u8], command: &str, namespace: &str) -> Result<f64> {
    let begin = Instant::now();
    let mut child = Command::new(plugin)
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", namespace)
        .env("CNI_NETNS", format!("/run/netns/{namespace}"))
        .env("CNI_IFNAME", "eth0")
        .env("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=bench;K8S_POD_NAME={namespace}"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {plugin}"))?;
    child.stdin.take().context("its input")?.write_all(text)?;
    let output = child.wait_with_output()?;
    let milliseconds = begin.elapsed().as_secs_f64() * 1e3;
    if !output.status.success() {
        bail!("{plugin} {command} {namespace}: {}", String::from_utf8_lossy(&output.stdout));
    }
    Ok(milliseconds)
}
