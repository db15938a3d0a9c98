//! What the daemon does about the node's netfilter rules.

use podlane_dataplane::table::Translation;

use super::Daemon;

impl Daemon {
    /// Finds out what the rules mean for the ports that are wanted, and tells what is new.
    pub(super) fn judge_rules(&mut self) {
        let rules = self.rules.rules();
        let effects = rules.effects_here(self.mirror.world(), &self.config, &self.wanted, self.steering.can_look_up());
        for note in effects.notes.iter().filter(|note| !self.effects.notes.contains(note)) {
            tracing::warn!("{note}");
        }
        if effects.translation != self.effects.translation {
            match effects.translation {
                Translation::None => tracing::info!("conntrack need not be asked about frames any more"),
                Translation::Strict | Translation::Liberal => tracing::info!(
                    translating = rules.translating.join(", "),
                    "the node translates addresses or judges connections: conntrack is asked before a frame is taken"
                ),
            }
        }
        self.effects = effects;
    }
}
