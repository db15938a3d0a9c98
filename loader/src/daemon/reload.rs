//! Bringing a changed configuration into force, in one turn of the loop.
//!
//! What can fail is tried first: reading and judging the file, interfaces that are named anew, an address to listen at. Then
//! everything is put in its place, and the ports and tables follow once. Ports that are ports before and after are not touched,
//! and tables are replaced as ever, so no packet is lost over it.

use podlane_dataplane::limits::MAX_UPLINKS;

use super::Daemon;
use crate::check;
use crate::config::{Config, ConfigError, Given, Host, Problem};
use crate::guard::GuardPolicy;
use crate::log;
use crate::metrics::http::Server;
use crate::mirror::Changes;
use crate::ports::PathPolicy;
use crate::reload::{Change, Outcome, changes, keep_fixed};

/// What a new configuration has ready before any of it applies.
struct Prepared {
    config: Config,
    changed: Vec<Change>,
    restart: Vec<Change>,
    metrics: Option<Server>,
}

impl Prepared {
    fn changes(&self, settings: &[&str]) -> bool {
        self.changed.iter().any(|change| settings.contains(&change.setting.as_str()))
    }
}

/// The paths that a configuration wants.
pub(super) fn policy(config: &Config) -> PathPolicy {
    let port_paths = config.port_paths.iter().map(|(name, choice)| (name.as_str().to_owned(), *choice));
    PathPolicy { all: config.path, ports: port_paths.collect(), said: false, zero_copy: config.zero_copy }
}

/// The source guards that a configuration wants.
pub(super) fn guard_policy(config: &Config) -> GuardPolicy {
    let port_guards = config.port_guards.iter().map(|(name, choice)| (name.as_str().to_owned(), *choice));
    GuardPolicy { all: config.source_guard, ports: port_guards.collect(), cluster: config.cluster_cidrs.clone() }
}

impl Daemon {
    /// Reads the configuration again and brings it into force, or says why not. With `only_check` nothing changes.
    pub(super) fn reload(&mut self, only_check: bool) -> Outcome {
        if !only_check {
            self.service.reloading();
        }
        let outcome = match self.prepare(only_check) {
            Err(problems) => Outcome { problems, only_checked: only_check, file: self.file(), ..Outcome::default() },
            Ok(new) if only_check => self.outcome(&new, true),
            Ok(new) => {
                let mut outcome = self.outcome(&new, false);
                outcome.remarks.extend(self.bring_into_force(new));
                outcome
            }
        };
        if !only_check {
            outcome.log();
            self.reloaded = outcome.clone();
            self.service.ready();
        }
        outcome
    }

    fn file(&self) -> Option<std::path::PathBuf> {
        self.config.said.file.clone().or_else(|| self.config.file.clone())
    }

    fn outcome(&self, new: &Prepared, only_checked: bool) -> Outcome {
        let said = self.policy.said && !new.changes(&["path", "port_paths"]);
        let remark = "what `podlane path` said of the ports' paths goes on";
        Outcome {
            file: new.config.file.clone(),
            only_checked,
            problems: Vec::new(),
            changed: new.changed.clone(),
            restart: new.restart.clone(),
            remarks: said.then(|| remark.to_owned()).into_iter().collect(),
        }
    }

    /// Everything that can be wrong, as sentences.
    fn prepare(&self, only_check: bool) -> Result<Prepared, Vec<String>> {
        let host =
            Host::read().map_err(|error| vec![format!("the kernel does not tell the CPUs: {}", error.desc())])?;
        let new = self.config.again(&host).map_err(|error| error.sentences())?;
        let problems = self.problems_here(&new);
        if !problems.is_empty() {
            return Err(ConfigError::new(new.file.as_deref(), problems).sentences());
        }
        let (changed, restart) = changes(&self.config, &new);
        let mut prepared = Prepared { config: keep_fixed(&self.config, new), changed, restart, metrics: None };
        if !only_check && let Some(address) = self.new_port(&prepared.config) {
            let started = Server::start(address, self.config.instance.as_str());
            prepared.metrics = Some(started.map_err(|error| vec![error.to_string()])?);
        }
        Ok(prepared)
    }

    /// Where metrics are to be told, if that can be tried beside the present place. The same port at another address cannot:
    /// the present one must be given up first.
    fn new_port(&self, new: &Config) -> Option<std::net::SocketAddr> {
        let (from, to) = (self.config.metrics_address, new.metrics_address?);
        (from.is_none_or(|from| from.port() != to.port())).then_some(to)
    }

    /// What is wrong on this node with interfaces that are named anew. One that was named before may come back.
    fn problems_here(&self, new: &Config) -> Vec<Problem> {
        let mut problems = Vec::with_capacity(1 + MAX_UPLINKS);
        let wanted = check::wanted(self.mirror.world(), new);
        let at = |given: Option<&Given<String>>, sentence: String| match given {
            Some(given) => Problem::at(given.origin, sentence),
            None => Problem::absent(sentence),
        };
        if new.bridge != self.config.bridge && wanted.bridge.is_none() {
            let cure = check::candidates(self.mirror.world(), true);
            let sentence = format!("{}; name the pods' bridge: {cure}", wanted.bridge_problem);
            problems.push(at(new.said.all.bridge.as_ref(), sentence));
        }
        let given = |name: &str| new.said.all.uplinks.iter().flatten().find(|given| given.value == name);
        let is_new = |name: &str| !self.config.uplinks.iter().any(|uplink| uplink.as_str() == name);
        for refusal in &wanted.refused {
            if new.uplinks.iter().any(|uplink| uplink.as_str() == refusal.name) && is_new(&refusal.name) {
                let cure = check::candidates(self.mirror.world(), false);
                let sentence = format!("{}; name an interface towards the other nodes: {cure}", refusal.why);
                problems.push(at(given(&refusal.name), sentence));
            }
        }
        problems
    }

    /// Puts everything in its place. Gives what did not go as it should.
    fn bring_into_force(&mut self, new: Prepared) -> Option<String> {
        let of = |settings: &[&str]| new.changes(settings);
        if of(&["log", "log_format"]) {
            log::change(&new.config.log, new.config.log_format);
        }
        if of(&["path", "port_paths"]) {
            self.policy = policy(&new.config);
        }
        if of(&["source_guard", "port_guards", "cluster_cidrs"]) {
            self.guards.wish_for(guard_policy(&new.config));
        }
        if of(&["cni_cache"]) {
            self.names.follow(new.config.cni_cache.clone());
        }
        if of(&["big_tcp", "local_mtu"]) {
            self.large.wish_for(new.config.large);
        }
        if of(&["idle_spin_us"])
            && let Some(engine) = &self.engine
        {
            engine.set_idle_spin(new.config.idle_spin.as_micros() as u32);
        }
        if of(&["metrics_address"]) {
            // At the same port as before, upkeep listens as soon as the old listener is gone.
            (self.metrics, self.metrics_note) = (new.metrics, None);
        }
        self.config = new.config;
        if new.changed.is_empty() {
            return None;
        }
        self.follow(Changes::LINKS).err().map(|error| format!("not all of it is in force: {error}"))
    }
}
