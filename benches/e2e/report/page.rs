//! The report as one HTML page that needs nothing but itself: pictures first, the comparisons that Podlane loses among them.

use std::fmt::Write as _;

use crate::chart::{self, Bar, Line, Scale, escape, number};
use crate::promise::{PROMISES, verdicts};
use crate::run::{Run, Summary};
use crate::table::cell;

const STYLE: &str = "\
body{font:15px/1.5 system-ui,sans-serif;color:#1f2430;background:#f3f4f6;margin:0}\
main{max-width:1190px;margin:0 auto;padding:24px}\
h1{margin:0 0 4px;font-size:28px}h2{margin:36px 0 10px;font-size:20px}\
.facts{color:#6b7280;margin:0 0 18px}.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(480px,1fr));gap:14px}\
.card{background:#fff;border-radius:8px;box-shadow:0 1px 2px #0002;padding:10px;overflow-x:auto}\
.card svg{width:100%;height:auto;display:block}.lost{border-left:5px solid #dc2626}.won{border-left:5px solid #0d9488}\
.card ul{margin:4px 0 4px;padding-left:20px}.card h3{margin:2px 6px 6px;font-size:15px}\
table{border-collapse:collapse;width:100%;font-size:13.5px;font-variant-numeric:tabular-nums}\
th,td{padding:4px 8px;text-align:right;border-bottom:1px solid #e5e7eb;white-space:nowrap}\
th:first-child,td:first-child{text-align:left}tr.own td:first-child{font-weight:600}\
.ok{color:#0d9488;font-weight:600}.missed{color:#dc2626;font-weight:600}small{color:#6b7280}\
dt{font-weight:600}dd{margin:0 0 6px}";

/// Measures that are compared one by one: (name, what it is called, unit, more is better).
const COMPARED: [(&str, &str, &str, bool); 15] = [
    ("xdp_mpps", "64-byte xdp frames", "Mpps", true),
    ("skb_mpps", "64-byte skbs", "Mpps", true),
    ("xdp_imix_gbit", "IMIX of xdp frames", "Gbit/s", true),
    ("skb_imix_gbit", "IMIX of skbs", "Gbit/s", true),
    ("skb_ndr_mpps", "loss-free 64-byte skbs", "Mpps", true),
    ("tcp_gbit", "TCP, one flow", "Gbit/s", true),
    ("tcp8_gbit", "TCP, eight flows", "Gbit/s", true),
    ("rr_us", "TCP request/response", "µs", false),
    ("connect_us", "TCP connect, request, response", "µs", false),
    ("udp_rr_us", "UDP request/response", "µs", false),
    ("latency_0_p99_us", "one-way latency, idle, p99", "µs", false),
    ("latency_90_p99_us", "one-way latency at 90 % of PDR, p99", "µs", false),
    ("skb_cost", "CPU seconds per million skbs", "s", false),
    ("tcp_cost", "CPU seconds per gigabyte of TCP", "s", false),
    ("idle_cpu_percent", "idle CPU of a core", "%", false),
];
/// What somebody could use in Podlane's place on one node; the others are limits.
const RIVALS: [&str; 4] = ["bridge", "bridge-plain", "ovs", "dpdk"];
/// Both of Podlane's paths.
const PATHS: [&str; 2] = ["podlane-kernel", "podlane"];
/// Further apart than this is called different.
const EQUAL: f64 = 0.03;
const SIZES: [&str; 6] = ["64", "128", "256", "512", "1024", "1518"];

fn is_nodes(peer: &str) -> bool {
    peer.starts_with("nodes-")
}

fn bars_of(run: &Run, title: &str, hint: &str, measure: &str, nodes: bool) -> Option<String> {
    let rows: Vec<Bar<'_>> = run
        .order
        .iter()
        .filter(|name| is_nodes(name) == nodes)
        .filter_map(|name| Some((name.as_str(), run.peers[name].title.as_str(), run.summary(name, measure)?)))
        .collect();
    (rows.len() > 1).then(|| chart::bars(title, hint, &rows))
}

/// The pictures of the first page, which are the README's too.
pub fn main_pictures(run: &Run) -> Vec<String> {
    [
        bars_of(run, "64-byte frames from pod to pod, skbs", "Mpps, more is better", "skb_mpps", false),
        bars_of(run, "64-byte frames from pod to pod, xdp frames", "Mpps, more is better", "xdp_mpps", false),
        bars_of(run, "TCP from pod to pod, one flow", "Gbit/s, more is better", "tcp_gbit", false),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// What stands below a picture that is shown alone.
pub fn caption(run: &Run) -> String {
    format!(
        "{}: {}, Linux {}. Dashed: limits that look at no frame.",
        run.fact("date"),
        run.fact("cpu"),
        run.fact("kernel")
    )
}

/// Sentences on where a path is behind a rival, and where it is ahead of all.
fn compare(run: &Run, path: &str) -> (Vec<String>, Vec<String>) {
    let (mut lost, mut won) = (Vec::new(), Vec::new());
    for (measure, what, unit, more) in COMPARED {
        let Some(own) = run.summary(path, measure) else { continue };
        // How many times better than the rival.
        let gain = |rival: &Summary| if more { own.median / rival.median } else { rival.median / own.median };
        let mut rivals: Vec<_> = RIVALS.iter().filter_map(|r| Some((*r, run.summary(r, measure)?))).collect();
        rivals.sort_by(|a, b| gain(&a.1).total_cmp(&gain(&b.1)));
        let Some((rival, best)) = rivals.first() else { continue };
        let factor = gain(best);
        let figures = format!(
            "{what}: {} against {} {unit} of {}",
            number(own.median),
            number(best.median),
            escape(&run.peers[*rival].title)
        );
        if factor < 1.0 - EQUAL {
            lost.push(format!("<li>{figures}</li>"));
        } else if factor > 1.0 + EQUAL {
            won.push(format!("<li>{figures}, the best of the rivals</li>"));
        }
    }
    (lost, won)
}

fn comparison(run: &Run) -> String {
    let mut html = String::new();
    for path in PATHS.iter().filter(|path| run.peers.contains_key(**path)) {
        let (lost, won) = compare(run, path);
        let title = escape(&run.peers[*path].title);
        for (class, words, items) in [("lost", "loses", lost), ("won", "wins", won)] {
            if !items.is_empty() {
                let _ = write!(
                    html,
                    "<div class=\"card {class}\"><h3>{title} {words}</h3><ul>{}</ul></div>",
                    items.concat()
                );
            }
        }
    }
    html
}

fn cards(pictures: impl IntoIterator<Item = Option<String>>) -> String {
    let cards: String = pictures.into_iter().flatten().map(|svg| format!("<div class=\"card\">{svg}</div>")).collect();
    if cards.is_empty() { cards } else { format!("<div class=\"grid\">{cards}</div>") }
}

fn section(title: &str, words: &str, body: String) -> String {
    if body.is_empty() { body } else { format!("<h2>{title}</h2><p>{words}</p>{body}") }
}

fn sizes(run: &Run, source: &str, unit: &str) -> Option<String> {
    let measure = |size: &str| match (size, unit) {
        ("64", "gbit") => None,
        ("64", _) => Some(format!("{source}_mpps")),
        _ => Some(format!("{source}_{size}_{unit}")),
    };
    let series: Vec<Line<'_>> = run
        .order
        .iter()
        .filter(|name| !is_nodes(name))
        .map(|name| {
            let point = |(place, size): (usize, &&str)| Some((place, run.summary(name, &measure(size)?)?));
            let points = SIZES.iter().enumerate().filter_map(point).collect();
            Line { peer: name, label: &run.peers[name].title, points }
        })
        .filter(|line: &Line<'_>| line.points.len() > 1)
        .collect();
    let places = SIZES.map(str::to_owned);
    let (title, hint) = match unit {
        "gbit" => ("Gbit/s by size of frame", "Gbit/s"),
        _ => ("Frames by their size", "Mpps"),
    };
    let source = if source == "xdp" { "xdp frames" } else { "skbs" };
    (!series.is_empty()).then(|| chart::lines(&format!("{title}, {source}"), hint, Scale::Linear, &places, &series))
}

fn curve(run: &Run, name: &str, title: &str) -> Option<String> {
    let mut places: Vec<u32> = run
        .curves
        .iter()
        .filter(|((curve, _), _)| curve == name)
        .flat_map(|(_, points)| points.keys().copied())
        .collect();
    places.sort_unstable();
    places.dedup();
    let series: Vec<Line<'_>> = run
        .curves
        .iter()
        .filter(|((curve, _), _)| curve == name)
        .map(|((_, peer), points)| {
            let figure = |x: &u32| Summary::of(points.get(x)?.cost_ns.values().copied());
            let points = places.iter().enumerate().filter_map(|(place, x)| Some((place, figure(x)?))).collect();
            Line { peer, label: &run.peers[peer].title, points }
        })
        .collect();
    let places: Vec<String> = places.iter().map(u32::to_string).collect();
    (!series.is_empty()).then(|| chart::lines(title, "CPU ns a frame, less is better", Scale::Linear, &places, &series))
}

fn latency(run: &Run, percentile: &str, title: &str) -> Option<String> {
    let loads = ["0", "10", "50", "90"];
    let series: Vec<Line<'_>> = run
        .order
        .iter()
        .filter(|name| !is_nodes(name))
        .map(|name| {
            let figure = |load: &str| run.summary(name, &format!("latency_{load}_{percentile}_us"));
            let points = loads.iter().enumerate().filter_map(|(place, load)| Some((place, figure(load)?))).collect();
            Line { peer: name, label: &run.peers[name].title, points }
        })
        .filter(|line: &Line<'_>| !line.points.is_empty())
        .collect();
    let places = ["idle".to_owned(), "10 %".to_owned(), "50 %".to_owned(), "90 % of PDR".to_owned()];
    (!series.is_empty()).then(|| chart::lines(title, "µs, less is better", Scale::Logarithmic, &places, &series))
}

/// A table of some measures over all peers that have one of them.
fn figures(run: &Run, measures: &[(&str, &str, usize)]) -> String {
    let measures: Vec<_> =
        measures.iter().filter(|(name, ..)| run.peers.values().any(|p| p.samples.contains_key(*name))).collect();
    if measures.is_empty() {
        return String::new();
    }
    let head: String = measures.iter().map(|(_, title, _)| format!("<th>{title}</th>")).collect();
    let mut html = format!("<div class=\"card\"><table><tr><th>median (min–max)</th>{head}</tr>");
    for name in &run.order {
        let cells: Vec<_> =
            measures.iter().map(|(measure, _, decimals)| (run.summary(name, measure), *decimals)).collect();
        if cells.iter().all(|(summary, _)| summary.is_none()) {
            continue;
        }
        let class = if name.contains("podlane") { " class=\"own\"" } else { "" };
        let cells: String =
            cells.iter().map(|(summary, decimals)| format!("<td>{}</td>", cell(*summary, *decimals))).collect();
        let _ = write!(html, "<tr{class}><td>{}</td>{cells}</tr>", escape(&run.peers[name].title));
    }
    html.push_str("</table></div>");
    html
}

fn promises(run: &Run) -> String {
    let mut html = String::from(
        "<div class=\"card\"><table><tr><th>what</th><th>measured</th><th>single repeats</th><th>wanted</th><th></th></tr>",
    );
    for verdict in verdicts(run, &PROMISES) {
        let (figure, repeats) = match &verdict.measured {
            None => ("–".to_owned(), String::new()),
            Some(m) => (format!("{:.2}", m.figure), format!("{:.2}–{:.2}", m.repeats.min, m.repeats.max)),
        };
        let word = verdict.word();
        let class = word.to_lowercase().replace(' ', "-");
        let _ = write!(
            html,
            "<tr><td>{}</td><td>{figure}</td><td>{repeats}</td><td>{}</td><td class=\"{class}\">{word}</td></tr>",
            escape(verdict.promise.title),
            verdict.promise.wanted()
        );
    }
    html + "</table></div>"
}

fn settings(run: &Run) -> String {
    let mut html = String::from("<div class=\"card\"><dl>");
    for name in &run.order {
        let peer = &run.peers[name];
        let failure = peer.failed.as_ref().map_or_else(String::new, |failed| {
            format!(
                " <span class=\"missed\">{} repeats could not be measured: {}</span>",
                failed.repeats,
                escape(&failed.reason)
            )
        });
        let _ = write!(html, "<dt>{}</dt><dd>{}{failure}</dd>", escape(&peer.title), escape(&peer.settings));
    }
    for (key, fact) in &run.facts {
        let _ = write!(html, "<dt>{}</dt><dd>{}</dd>", escape(&key.replace('_', " ")), escape(fact));
    }
    html + "</dl></div>"
}

fn traffic(run: &Run) -> String {
    let more = "Mpps, more is better";
    let search = cards([
        bars_of(run, "NDR (no loss), 64-byte skbs", more, "skb_ndr_mpps", false),
        bars_of(run, "PDR (loss below 0.5 %), 64-byte skbs", more, "skb_pdr_mpps", false),
        bars_of(run, "NDR (no loss), 64-byte xdp frames", more, "xdp_ndr_mpps", false),
        bars_of(run, "PDR (loss below 0.5 %), 64-byte xdp frames", more, "xdp_pdr_mpps", false),
    ]);
    let sizes = cards([
        sizes(run, "xdp", "mpps"),
        sizes(run, "skb", "mpps"),
        sizes(run, "xdp", "gbit"),
        sizes(run, "skb", "gbit"),
        bars_of(run, "IMIX, xdp frames", "Gbit/s, more is better", "xdp_imix_gbit", false),
        bars_of(run, "IMIX, skbs", "Gbit/s, more is better", "skb_imix_gbit", false),
    ]);
    let nodes = cards([
        bars_of(run, "Two nodes, 64-byte skbs", more, "skb_mpps", true),
        bars_of(run, "Two nodes, TCP, one flow", "Gbit/s, more is better", "tcp_gbit", true),
    ]);
    section(
        "Rates by size of frame",
        "Delivered while the source sends as fast as it can; IMIX is 64, 570 and 1518 bytes at 7:4:1.",
        sizes,
    ) + &section(
        "Rates that get through",
        "Found by bisection. A rate that loses is tried once more; one that the source cannot make does not count.",
        search,
    ) + &section(
        "Across two nodes",
        "A pod on each, a veth between the nodes as uplink; both nodes on the same two cores.",
        nodes,
    )
}

fn times(run: &Run) -> String {
    let latency = cards([
        latency(run, "p50", "One-way latency, median"),
        latency(run, "p99", "One-way latency, p99"),
        latency(run, "p999", "One-way latency, p99.9"),
    ]);
    let words = "From the source's system call to tc ingress in the receiving pod, 64-byte skbs, at a thousand a second and at shares of each \
                 forwarder's own PDR. Resolution 0.5 µs.";
    let requests = figures(
        run,
        &[
            ("rr_us", "TCP rr, µs", 1),
            ("rr_p99_us", "p99", 1),
            ("connect_us", "connect + rr, µs", 1),
            ("connect_p99_us", "p99", 1),
            ("udp_rr_us", "UDP rr, µs", 1),
            ("udp_rr_p99_us", "p99", 1),
            ("ping_us", "ping, µs", 1),
        ],
    );
    section("Latency", words, latency)
        + &section(
            "Requests and answers",
            "One byte there and one back, one at a time; client and server on a core each.",
            requests,
        )
}

fn costs(run: &Run) -> String {
    let bulk = figures(
        run,
        &[
            ("tcp_gbit", "TCP, Gbit/s", 2),
            ("tcp8_gbit", "8 flows", 2),
            ("tcp_back_gbit", "back", 2),
            ("tcp_large_gbit", "1 MiB writes", 2),
            ("tcp_cost", "CPU s per GB", 2),
        ],
    );
    let cost = figures(
        run,
        &[
            ("xdp_cost", "CPU s per million xdp frames", 2),
            ("skb_cost", "per million skbs", 2),
            ("xdp_busy_ns", "forwarder's CPU ns a frame", 0),
            ("idle_cpu_percent", "idle CPU, % of a core", 2),
            ("memory_mib", "memory, MiB", 0),
            ("route_change_ms", "a route in force after, ms", 2),
        ],
    );
    let curves = cards([
        curve(run, "pods", "Cost of a frame by pods on the node"),
        curve(run, "routes", "Cost of a frame by routes"),
        curve(run, "flows", "Cost of a frame by flows"),
    ]);
    section(
        "Does it stay flat?",
        "64-byte xdp frames. Where a process forwards, its CPU time for a frame; else the time of a frame at full rate. Workers are not \
             scaled here: there is one core for the forwarder.",
        curves,
    ) + &section("Bulk TCP", "iperf3, MTU 1500; the receiver shares the forwarder's core.", bulk)
        + &section("What it costs", "CPU seconds are the whole machine's, source and sink included.", cost)
}

/// The page.
pub fn page(run: &Run) -> String {
    let first = cards(main_pictures(run).into_iter().map(Some))
        + &format!("<div class=\"grid\" style=\"margin-top:14px\">{}</div>", comparison(run));
    let body = first
        + &section("Promises", "Ratios of medians in this run; what is missed stands here too.", promises(run))
        + &traffic(run)
        + &times(run)
        + &costs(run);
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>Podlane beside its peers, {date}</title><style>{STYLE}</style></head><body><main><h1>Podlane beside its peers</h1>\
         <p class=\"facts\">{caption} Bars are medians of interleaved repeats, thin lines their range. Both of Podlane's paths are \
         coloured; one run of one machine: read the order and the ratios.</p>{body}<h2>Settings and machine</h2>{settings}</main></body></html>\n",
        date = escape(run.fact("date")),
        caption = escape(&caption(run)),
        settings = settings(run),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::parse;

    #[test]
    fn what_is_lost_stands_on_the_first_page() {
        let text = "peer\tpodlane\tPodlane, af_xdp\t\npeer\tbridge\tLinux bridge\t\n\
                    sample\tpodlane\t1\ttcp_gbit\t3.6\nsample\tbridge\t1\ttcp_gbit\t14.2\n\
                    sample\tpodlane\t1\tskb_mpps\t0.5\nsample\tbridge\t1\tskb_mpps\t0.3\n";
        let page = page(&parse(text).expect("the lines are right"));
        assert!(page.contains("Podlane, af_xdp loses"), "{page}");
        assert!(page.contains("TCP, one flow: 3.60 against 14.2 Gbit/s of Linux bridge"), "{page}");
        assert!(page.contains("64-byte skbs: 0.50 against 0.30 Mpps of Linux bridge"), "{page}");
        let lost = page.find("af_xdp loses").expect("seen above");
        assert!(lost < page.find("<h2>Promises").expect("the second part"));
    }

    #[test]
    fn the_page_needs_nothing_from_elsewhere() {
        let page = page(&parse("fact\tkernel\t6.18\n").expect("a fact"));
        assert!(!page.contains("<script") && !page.contains("<link") && !page.contains("src="));
    }
}
