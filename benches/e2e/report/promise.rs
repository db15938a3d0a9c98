//! What Podlane promises of its speed, as ratios to peers in the same run, and how a run stands to it.

use crate::run::{Run, Samples, Summary};

/// Which way a measure should go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Better {
    Higher,
    Lower,
}

/// What a figure is held against.
pub enum Against {
    /// The best of these peers' medians: their ratio counts.
    Peers(&'static [&'static str]),
    /// Nothing: the figure itself counts.
    Itself,
    /// Its own first place: the cost of a frame at the end of a curve. The measure is the curve's name.
    Start,
}

/// One promise: at least, or at most, `factor`.
pub struct Promise {
    pub title: &'static str,
    pub of: &'static str,
    pub measure: &'static str,
    pub against: Against,
    pub better: Better,
    pub factor: f64,
}

const fn more(
    title: &'static str,
    of: &'static str,
    measure: &'static str,
    peers: &'static [&'static str],
    factor: f64,
) -> Promise {
    Promise { title, of, measure, against: Against::Peers(peers), better: Better::Higher, factor }
}

const fn less(
    title: &'static str,
    of: &'static str,
    measure: &'static str,
    peers: &'static [&'static str],
    factor: f64,
) -> Promise {
    Promise { title, of, measure, against: Against::Peers(peers), better: Better::Lower, factor }
}

const fn at_most(
    title: &'static str,
    of: &'static str,
    measure: &'static str,
    against: Against,
    factor: f64,
) -> Promise {
    Promise { title, of, measure, against, better: Better::Lower, factor }
}

const AF_XDP: &str = "podlane";
const KERNEL: &str = "podlane-kernel";
const NODES: &str = "nodes-podlane";
const NODES_AF_XDP: &str = "nodes-podlane-af";
const NODES_PLAIN: &str = "nodes-podlane-plain";
const BRIDGE: &[&str] = &["bridge"];
const OVS: &[&str] = &["ovs"];
const LOOPS: &[&str] = &["loop", "loop-spin"];
const ROUTING: &[&str] = &["nodes-kernel"];
const ROUTING_PLAIN: &[&str] = &["nodes-kernel-plain"];

/// All of them.
pub const PROMISES: [Promise; 34] = [
    more("64 bytes xdp, af_xdp path / Open vSwitch", AF_XDP, "xdp_mpps", OVS, 1.0),
    more("64 bytes skb, af_xdp path / Open vSwitch", AF_XDP, "skb_mpps", OVS, 1.2),
    more("64 bytes skb, af_xdp path / bridge", AF_XDP, "skb_mpps", BRIDGE, 1.0),
    more("64 bytes xdp, af_xdp path / bare loop", AF_XDP, "xdp_mpps", LOOPS, 0.9),
    more("TCP, af_xdp path / Open vSwitch", AF_XDP, "tcp_gbit", OVS, 1.0),
    more("TCP, af_xdp path with local_mtu / Open vSwitch", "podlane-local", "tcp_gbit", OVS, 1.5),
    at_most("idle CPU of a core in %, af_xdp path", AF_XDP, "idle_cpu_percent", Against::Itself, 1.0),
    at_most("idle CPU of a core in %, kernel path", KERNEL, "idle_cpu_percent", Against::Itself, 1.0),
    more("64 bytes xdp, kernel path / bridge", KERNEL, "xdp_mpps", BRIDGE, 1.8),
    more("64 bytes skb, kernel path / bridge", KERNEL, "skb_mpps", BRIDGE, 1.4),
    more("64 bytes xdp, kernel path / bare redirect", KERNEL, "xdp_mpps", &["peer"], 0.9),
    more("64 bytes skb, kernel path / bare redirect", KERNEL, "skb_mpps", &["peer"], 0.9),
    more("TCP, kernel path / bridge", KERNEL, "tcp_gbit", BRIDGE, 1.0),
    more("TCP, 1 MiB writes, kernel path with big_tcp / bridge", "podlane-big", "tcp_large_gbit", BRIDGE, 1.5),
    less("ping time, kernel path / bridge", KERNEL, "ping_us", BRIDGE, 0.9),
    less("TCP request/response time, kernel path / bridge", KERNEL, "rr_us", BRIDGE, 0.9),
    less("CPU per gigabyte, kernel path / bridge", KERNEL, "tcp_cost", BRIDGE, 0.9),
    less("CPU per million packets, kernel path / bridge", KERNEL, "skb_cost", BRIDGE, 0.9),
    more("two nodes, 64 bytes skb / kernel routing", NODES, "skb_mpps", ROUTING, 1.2),
    more("two nodes, TCP / kernel routing", NODES, "tcp_gbit", ROUTING, 1.0),
    less("two nodes, ping time / kernel routing", NODES, "ping_us", ROUTING, 0.95),
    more("plain uplink, 64 bytes skb / kernel routing", NODES_PLAIN, "skb_mpps", ROUTING_PLAIN, 1.2),
    more("plain uplink, TCP / kernel routing", NODES_PLAIN, "tcp_gbit", ROUTING_PLAIN, 1.0),
    less("plain uplink, ping time / kernel routing", NODES_PLAIN, "ping_us", ROUTING_PLAIN, 0.95),
    at_most("cost of a frame, 250 pods / 2, af_xdp path", AF_XDP, "pods", Against::Start, 1.1),
    at_most("cost of a frame, 250 pods / 2, kernel path", KERNEL, "pods", Against::Start, 1.1),
    at_most("cost of a frame, 100,000 flows / 1, af_xdp path", AF_XDP, "flows", Against::Start, 1.1),
    at_most("cost of a frame, 100,000 flows / 1, kernel path", KERNEL, "flows", Against::Start, 1.1),
    at_most("cost of a frame, 15,000 routes / 1, af_xdp path", NODES_AF_XDP, "routes", Against::Start, 1.1),
    at_most("cost of a frame, 15,000 routes / 1, kernel path", NODES, "routes", Against::Start, 1.1),
    at_most(
        "a route more at 15,000, in force after ms, af_xdp path",
        NODES_AF_XDP,
        "route_change_ms",
        Against::Itself,
        5.0,
    ),
    at_most("a route more at 15,000, in force after ms, kernel path", NODES, "route_change_ms", Against::Itself, 5.0),
    more("loss-free 64 bytes skb, kernel path / bridge", KERNEL, "skb_ndr_mpps", BRIDGE, 1.2),
    more("loss-free 64 bytes skb, af_xdp path / Open vSwitch", AF_XDP, "skb_ndr_mpps", OVS, 1.0),
];

/// What a change must not break by far: wide margins, for machines that do other things too.
pub const GUARDS: [Promise; 7] = [
    more("64 bytes xdp, kernel path / bridge", KERNEL, "xdp_mpps", BRIDGE, 1.3),
    more("64 bytes skb, kernel path / bridge", KERNEL, "skb_mpps", BRIDGE, 1.1),
    more("64 bytes xdp, kernel path / bare redirect", KERNEL, "xdp_mpps", &["peer"], 0.55),
    more("TCP, kernel path / bridge", KERNEL, "tcp_gbit", BRIDGE, 0.6),
    more("64 bytes xdp, af_xdp path / bare loop", AF_XDP, "xdp_mpps", LOOPS, 0.5),
    more("TCP, af_xdp path / bare loop", AF_XDP, "tcp_gbit", LOOPS, 0.4),
    at_most("idle CPU of a core in %, af_xdp path", AF_XDP, "idle_cpu_percent", Against::Itself, 5.0),
];

/// How a promise stands in a run.
pub struct Verdict {
    pub promise: &'static Promise,
    /// `None` when one side was not measured.
    pub measured: Option<Measured>,
}

/// A figure that a promise speaks of.
pub struct Measured {
    /// The peer with the best median, if it is held against peers.
    pub rival: Option<String>,
    /// Of the medians.
    pub figure: f64,
    /// Of the single repeats.
    pub repeats: Summary,
}

impl Promise {
    /// Whether a figure keeps it.
    pub fn is_kept(&self, figure: f64) -> bool {
        match self.better {
            Better::Higher => figure >= self.factor,
            Better::Lower => figure <= self.factor,
        }
    }

    /// "≥ 1.5"
    pub fn wanted(&self) -> String {
        format!("{} {:?}", if self.better == Better::Higher { '≥' } else { '≤' }, self.factor)
    }
}

impl Verdict {
    /// In a word.
    pub fn word(&self) -> &'static str {
        match &self.measured {
            None => "not measured",
            Some(measured) if self.promise.is_kept(measured.figure) => "ok",
            Some(_) => "MISSED",
        }
    }

    /// Whether the better of the repeats keeps it too: what is asked of a guard on a busy machine.
    pub fn best_repeat_keeps_it(&self) -> bool {
        self.measured.as_ref().is_some_and(|measured| {
            let best = if self.promise.better == Better::Higher { measured.repeats.max } else { measured.repeats.min };
            self.promise.is_kept(best)
        })
    }
}

/// The ratio of two peers in every repeat that measured both.
fn paired_ratios(over: &Samples, under: &Samples) -> impl Iterator<Item = f64> {
    over.iter().filter_map(|(repeat, value)| Some(value / under.get(repeat).filter(|v| **v > 0.0)?))
}

fn against_peers(run: &Run, promise: &Promise, peers: &[&str]) -> Option<Measured> {
    let own = run.peers.get(promise.of)?;
    let (rival, of_rival) = peers
        .iter()
        .filter_map(|name| Some((*name, run.summary(name, promise.measure)?)))
        .max_by(|a, b| match promise.better {
            Better::Higher => a.1.median.total_cmp(&b.1.median),
            Better::Lower => b.1.median.total_cmp(&a.1.median),
        })
        .filter(|(_, summary)| summary.median > 0.0)?;
    let ratios = paired_ratios(own.samples.get(promise.measure)?, run.peers[rival].samples.get(promise.measure)?);
    Some(Measured {
        figure: own.summary(promise.measure)?.median / of_rival.median,
        repeats: Summary::of(ratios)?,
        rival: Some(rival.to_owned()),
    })
}

fn against_start(run: &Run, promise: &Promise) -> Option<Measured> {
    let curve = run.curves.get(&(promise.measure.to_owned(), promise.of.to_owned())).filter(|curve| curve.len() > 1)?;
    let (start, end) = (curve.values().next()?, curve.values().next_back()?);
    let median = |samples: &Samples| Some(Summary::of(samples.values().copied())?.median);
    Some(Measured {
        rival: None,
        figure: median(&end.cost_ns)? / median(&start.cost_ns).filter(|cost| *cost > 0.0)?,
        repeats: Summary::of(paired_ratios(&end.cost_ns, &start.cost_ns))?,
    })
}

/// Holds a run against a promise.
pub fn judge(run: &Run, promise: &'static Promise) -> Verdict {
    let measured = match promise.against {
        Against::Peers(peers) => against_peers(run, promise, peers),
        Against::Start => against_start(run, promise),
        Against::Itself => run.summary(promise.of, promise.measure).map(|summary| Measured {
            rival: None,
            figure: summary.median,
            repeats: summary,
        }),
    };
    Verdict { promise, measured }
}

/// Those that a run is about, in their order.
pub fn verdicts(run: &Run, promises: &'static [Promise]) -> Vec<Verdict> {
    promises.iter().filter(|promise| run.peers.contains_key(promise.of)).map(|promise| judge(run, promise)).collect()
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;
    use crate::run::parse;

    fn run_of(samples: &[(&str, u32, &str, f64)]) -> Run {
        let mut text = String::new();
        for (name, repeat, measure, value) in samples {
            let _ = writeln!(text, "sample\t{name}\t{repeat}\t{measure}\t{value}");
        }
        parse(&text).expect("the lines are right")
    }

    fn promise(of: &str, title: &str) -> &'static Promise {
        PROMISES.iter().find(|promise| promise.of == of && promise.title.contains(title)).expect("there is one")
    }

    #[test]
    fn a_promise_is_judged_against_the_best_rival() {
        let run = run_of(&[
            ("podlane", 1, "xdp_mpps", 0.45),
            ("ovs", 1, "xdp_mpps", 0.40),
            ("loop", 1, "xdp_mpps", 0.40),
            ("loop-spin", 1, "xdp_mpps", 0.60),
        ]);
        assert_eq!(judge(&run, promise("podlane", "xdp, af_xdp path / Open")).word(), "ok");
        let loops = judge(&run, promise("podlane", "bare loop"));
        assert_eq!(loops.word(), "MISSED");
        assert_eq!(loops.measured.and_then(|m| m.rival).as_deref(), Some("loop-spin"));
        assert_eq!(judge(&run, promise("podlane", "TCP")).word(), "not measured");
    }

    #[test]
    fn ratios_of_repeats_are_taken_within_a_repeat() {
        let run = run_of(&[
            ("podlane", 1, "xdp_mpps", 1.0),
            ("podlane", 2, "xdp_mpps", 2.0),
            ("podlane", 3, "xdp_mpps", 9.0),
            ("ovs", 1, "xdp_mpps", 2.0),
            ("ovs", 2, "xdp_mpps", 2.0),
        ]);
        let verdict = judge(&run, promise("podlane", "xdp, af_xdp path / Open"));
        assert!(verdict.best_repeat_keeps_it());
        let measured = verdict.measured.expect("both were measured");
        assert_eq!(measured.figure, 1.0);
        assert_eq!((measured.repeats.min, measured.repeats.max), (0.5, 1.0), "repeat 3 has no partner");
    }

    #[test]
    fn a_curve_is_held_against_its_own_start() {
        let text = "point\tpods\tpodlane\t2\t1\t1\t1000\npoint\tpods\tpodlane\t250\t1\t0.5\t1300\n";
        let verdict = judge(&parse(text).expect("two points"), promise("podlane", "250 pods"));
        assert_eq!(verdict.word(), "MISSED");
        assert_eq!(verdict.measured.map(|m| m.figure), Some(1.3));
    }

    #[test]
    fn a_figure_can_be_held_against_a_limit() {
        let run = run_of(&[("podlane", 1, "idle_cpu_percent", 0.2)]);
        assert_eq!(judge(&run, promise("podlane", "idle")).word(), "ok");
    }
}
