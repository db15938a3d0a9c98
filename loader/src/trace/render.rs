//! A trace as a drawing.

use super::{Handler, Protocol, Trace};
use crate::printable;
use crate::status::wrap;

impl Trace {
    /// For people: the packet, its way from top to bottom, and who handles it.
    pub fn render(&self) -> String {
        let port = if self.protocol == Protocol::Icmp { String::new() } else { format!(" to port {}", self.port) };
        let mut text = format!(
            "{} to {}: {}{port}, {} bytes, TTL {}\n\n",
            self.from,
            self.to,
            self.protocol.word(),
            self.bytes,
            self.ttl
        );
        let width = self.steps.iter().map(|step| step.at.chars().count()).max().unwrap_or(0);
        for (index, step) in self.steps.iter().enumerate() {
            if index > 0 {
                text.push_str(&format!("  {:>width$}  │\n", ""));
            }
            let mark = if index + 1 == self.steps.len() { "▼" } else { "│" };
            let first = format!("  {:>width$}  {mark}  ", step.at);
            text.push_str(&wrap(&first, &step.what).join("\n"));
            text.push('\n');
        }
        text.push('\n');
        text.push_str(&self.summary());
        printable::lines(&text).into_owned()
    }

    fn summary(&self) -> String {
        match (self.handled_by, &self.egress, &self.reason) {
            (Handler::Podlane, Some(egress), _) => format!("Podlane forwards it: {} to {egress}.\n", self.ingress),
            (Handler::Dropped, _, Some(reason)) => {
                format!("The source guard drops it; see `podlane explain {reason}`.\n")
            }
            (_, _, Some(reason)) => {
                format!("The kernel handles it, as it would without Podlane; see `podlane explain {reason}`.\n")
            }
            _ => String::new(),
        }
    }
}
