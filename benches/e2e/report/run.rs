//! What a run saw: facts, peers, samples and points, as `run.sh` wrote them down.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};

/// The samples of one measure of one peer, by repeat.
pub type Samples = BTreeMap<u32, f64>;

/// One forwarder.
#[derive(Default)]
pub struct Peer {
    pub title: String,
    pub settings: String,
    pub failed: Option<Failed>,
    pub samples: BTreeMap<String, Samples>,
}

/// Repeats in which a peer could not be measured to the end, and the last reason.
#[derive(Clone)]
pub struct Failed {
    pub repeats: u32,
    pub reason: String,
}

impl Peer {
    /// The samples of a measure in one figure.
    pub fn summary(&self, measure: &str) -> Option<Summary> {
        Summary::of(self.samples.get(measure)?.values().copied())
    }
}

/// One place of a curve: what was seen there in each repeat.
#[derive(Default)]
pub struct Point {
    pub mpps: Samples,
    pub cost_ns: Samples,
}

/// A curve of one peer, by the number on its x axis.
pub type Curve = BTreeMap<u32, Point>;

/// Everything of one run; peers and facts in the order in which the script named them.
#[derive(Default)]
pub struct Run {
    pub facts: Vec<(String, String)>,
    pub order: Vec<String>,
    pub peers: BTreeMap<String, Peer>,
    /// By name and peer.
    pub curves: BTreeMap<(String, String), Curve>,
}

impl Run {
    /// A fact by its key.
    pub fn fact(&self, key: &str) -> &str {
        self.facts.iter().find(|(name, _)| name == key).map_or("", |(_, text)| text)
    }

    /// A measure of a peer.
    pub fn summary(&self, peer: &str, measure: &str) -> Option<Summary> {
        self.peers.get(peer)?.summary(measure)
    }
}

/// The middle of some values and how far they spread.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Summary {
    /// `None` without a value. The median of an even number of values is the mean of the two in the middle.
    pub fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
        Some(Summary { median, min, max })
    }
}

/// Reads a file of results.
pub fn parse(text: &str) -> Result<Run> {
    let mut run = Run::default();
    for (index, line) in text.lines().enumerate() {
        let fields: Vec<&str> = line.split('\t').collect();
        parse_line(&mut run, &fields).with_context(|| format!("line {}: \"{line}\"", index + 1))?;
    }
    Ok(run)
}

fn finite(text: &str) -> Result<f64> {
    let value: f64 = text.parse().context("the value is not a number")?;
    if !value.is_finite() {
        bail!("the value is not finite");
    }
    Ok(value)
}

fn parse_line(run: &mut Run, fields: &[&str]) -> Result<()> {
    match *fields {
        ["fact", key, text] => run.facts.push((key.to_owned(), text.to_owned())),
        ["peer", name, title, settings] => {
            run.order.push(name.to_owned());
            let peer = run.peers.entry(name.to_owned()).or_default();
            (peer.title, peer.settings) = (title.to_owned(), settings.to_owned());
        }
        ["failed", name, repeats, reason] => {
            let repeats = repeats.parse().context("the number of repeats is not a number")?;
            run.peers.entry(name.to_owned()).or_default().failed = Some(Failed { repeats, reason: reason.to_owned() });
        }
        ["sample", name, repeat, measure, value] => {
            let repeat = repeat.parse().context("the repeat is not a number")?;
            let peer = run.peers.entry(name.to_owned()).or_default();
            peer.samples.entry(measure.to_owned()).or_default().insert(repeat, finite(value)?);
        }
        ["point", curve, name, x, repeat, mpps, cost_ns] => {
            let repeat = repeat.parse().context("the repeat is not a number")?;
            let x = x.parse().context("the place on the x axis is not a number")?;
            run.peers.entry(name.to_owned()).or_default();
            let point = run.curves.entry((curve.to_owned(), name.to_owned())).or_default().entry(x).or_default();
            point.mpps.insert(repeat, finite(mpps)?);
            point.cost_ns.insert(repeat, finite(cost_ns)?);
        }
        _ => bail!("not a line that run.sh writes"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_is_the_middle_of_the_sorted_values() {
        assert_eq!(Summary::of([3.0, 1.0, 2.0].into_iter()), Some(Summary { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(Summary::of([4.0, 1.0].into_iter()), Some(Summary { median: 2.5, min: 1.0, max: 4.0 }));
        assert_eq!(Summary::of(std::iter::empty()), None);
    }

    #[test]
    fn a_line_that_is_not_understood_is_named() {
        for bad in [
            "sample\tx\t1\ty\tNaN",
            "sample\tx\tone\ty\t1",
            "something",
            "sample\tx\t1\ty\t",
            "point\tpods\tx\t1\t1\t1",
        ] {
            let error = parse(bad).err().map(|e| format!("{e:#}")).unwrap_or_default();
            assert!(error.contains("line 1"), "{bad}: {error}");
        }
    }

    #[test]
    fn points_of_a_curve_are_sorted_by_their_place() {
        let run = parse("point\tpods\tp\t250\t1\t0.9\t1100\npoint\tpods\tp\t2\t1\t1.0\t1000\n").expect("two points");
        let curve = &run.curves[&("pods".to_owned(), "p".to_owned())];
        assert_eq!(curve.keys().copied().collect::<Vec<_>>(), [2, 250]);
        assert_eq!(curve[&250].cost_ns[&1], 1100.0);
    }
}
