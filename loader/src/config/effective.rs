//! A configuration as it is in force, in the words of the file.

use serde_json::{Value, json};

use super::{ChecksumMetadata, Config, XdpMode, format_list};
use crate::engine::ZeroCopy;
use crate::log::Format;

impl Config {
    /// Every key of the file with the value in force, defaults included, and the file itself under `file`.
    pub fn effective(&self) -> Value {
        let texts = |list: &[super::InterfaceName]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        let port_paths: Vec<_> = self.port_paths.iter().map(|(name, path)| format!("{name}={}", path.word())).collect();
        let guards = self.port_guards.iter().map(|(name, guard)| format!("{name}={}", guard.word()));
        let port_guards: Vec<_> = guards.collect();
        let format = Format::WORDS.iter().find(|(_, format)| *format == self.log_format).map(|(word, _)| *word);
        json!({
            "file": self.file,
            "instance": self.instance.as_str(),
            "path": self.path.word(),
            "port_paths": port_paths,
            "source_guard": self.source_guard.word(),
            "port_guards": port_guards,
            "bypass_netfilter": self.bypass_netfilter,
            "bridge": self.bridge.as_str(),
            "uplinks": texts(&self.uplinks),
            "cluster_cidrs": self.cluster_cidrs,
            "workers": self.workers(),
            "cpus": format_list(&self.cpus),
            "frames": self.frames,
            "xdp_mode": match self.xdp_mode {
                XdpMode::Native => "native",
                XdpMode::Generic => "generic",
            },
            "zero_copy": match self.zero_copy {
                ZeroCopy::Auto => "auto",
                ZeroCopy::Require => "require",
                ZeroCopy::Off => "off",
            },
            "checksum_metadata": match self.checksum_metadata {
                ChecksumMetadata::Auto => "auto",
                ChecksumMetadata::Off => "off",
            },
            "idle_spin_us": self.idle_spin.as_micros() as u64,
            "big_tcp": self.large.big_tcp.unwrap_or(0),
            "local_mtu": self.large.local_mtu.unwrap_or(0),
            "metrics_address": self.metrics_address.map_or_else(|| "off".to_owned(), |address| address.to_string()),
            "cni_cache": self.cni_cache.as_ref().map_or_else(|| "off".to_owned(), |path| path.display().to_string()),
            "bpffs": self.bpffs.to_string(),
            "skip": texts(&self.skip),
            "log": self.log.to_string(),
            "log_format": format,
        })
    }
}
