//! Pictures as SVG: bars with their spread, and curves. Colours and sizes stand in the elements themselves, so that a picture is
//! the same inside of the page and as a file of its own.

use std::fmt::Write as _;

use crate::run::Summary;

const FONT: &str = "font-family=\"system-ui, sans-serif\"";
const INK: &str = "#1f2430";
const SOFT: &str = "#6b7280";
const GRID: &str = "#e5e7eb";
const WIDTH: f64 = 560.0;
const LABEL_WIDTH: f64 = 204.0;
const ROW: f64 = 24.0;

/// How a forwarder is drawn.
pub struct Style {
    pub colour: &'static str,
    /// A limit, not a rival: hollow.
    pub hollow: bool,
}

/// The style of a peer by its name.
pub fn style(peer: &str) -> Style {
    let (colour, hollow) = match peer {
        "podlane" | "nodes-podlane-af" => ("#2563eb", false),
        "podlane-local" => ("#60a5fa", false),
        "podlane-kernel" | "nodes-podlane" | "nodes-podlane-plain" => ("#0d9488", false),
        "podlane-big" => ("#5eead4", false),
        "ovs" => ("#d97706", false),
        "dpdk" => ("#b45309", false),
        "bridge" | "nodes-kernel" | "nodes-kernel-plain" => ("#4b5563", false),
        "bridge-plain" => ("#9ca3af", false),
        "loop" | "loop-spin" => ("#3b82f6", true),
        "peer" => ("#0f766e", true),
        _ => ("#7c3aed", true),
    };
    Style { colour, hollow }
}

/// Text for inside of an element.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A number with as many digits as it deserves.
pub fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// The next of 1, 2, 2.5, 5, 10 times a power of ten.
fn round_up(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf(value.log10().floor());
    let steps = [1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0];
    steps.into_iter().map(|step| step * power).find(|step| *step >= value).unwrap_or(10.0 * power)
}

fn open(height: f64, title: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         role=\"img\" aria-label=\"{title}\" {FONT} font-size=\"12\">\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\
         <text x=\"12\" y=\"20\" font-size=\"14\" font-weight=\"600\" fill=\"{INK}\">{title}</text>\n",
        title = escape(title)
    )
}

/// One bar: peer, label, figure.
pub type Bar<'a> = (&'a str, &'a str, Summary);

/// Horizontal bars, the spread as a thin line. `hint` says which way is good.
pub fn bars(title: &str, hint: &str, rows: &[Bar<'_>]) -> String {
    let height = 44.0 + ROW * rows.len() as f64;
    let scale = round_up(rows.iter().map(|row| row.2.max).fold(0.0, f64::max));
    let span = WIDTH - LABEL_WIDTH - 66.0;
    let mut svg = open(height, title);
    let _ = writeln!(
        svg,
        "<text x=\"{}\" y=\"20\" text-anchor=\"end\" fill=\"{SOFT}\">{}</text>",
        WIDTH - 12.0,
        escape(hint)
    );
    for (index, (peer, label, figure)) in rows.iter().enumerate() {
        let (top, Style { colour, hollow }) = (34.0 + ROW * index as f64, style(peer));
        let x = |value: f64| LABEL_WIDTH + value / scale * span;
        let fill = if hollow {
            format!("fill=\"{colour}22\" stroke=\"{colour}\" stroke-dasharray=\"4 3\"")
        } else {
            format!("fill=\"{colour}\"")
        };
        let middle = top + ROW / 2.0;
        let weight = if peer.contains("podlane") { " font-weight=\"600\"" } else { "" };
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"{INK}\"{weight}>{}</text>\
             <rect x=\"{LABEL_WIDTH}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"2\" {fill}/>\
             <path d=\"M{:.1} {middle:.1}H{:.1}\" stroke=\"{INK}\" stroke-width=\"1.2\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" fill=\"{INK}\">{}</text>",
            LABEL_WIDTH - 8.0,
            middle + 4.0,
            escape(label),
            top + 4.0,
            x(figure.median) - LABEL_WIDTH,
            ROW - 8.0,
            x(figure.min),
            x(figure.max),
            x(figure.max.max(figure.median)) + 6.0,
            middle + 4.0,
            number(figure.median),
        );
    }
    svg.push_str("</svg>\n");
    svg
}

/// A line of a chart: peer, label, and a figure for each place of the x axis that has one.
pub struct Line<'a> {
    pub peer: &'a str,
    pub label: &'a str,
    pub points: Vec<(usize, Summary)>,
}

/// The upright axis of a chart with lines.
#[derive(Clone, Copy)]
pub enum Scale {
    /// From zero.
    Linear,
    /// Every line of the grid is ten times the one below.
    Logarithmic,
}

/// Where figures stand in a chart with lines.
struct Axes {
    places: usize,
    low: f64,
    high: f64,
    scale: Scale,
}

const LEFT: f64 = 52.0;
const RIGHT: f64 = WIDTH - 16.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 250.0;
const LEGEND_ROW: f64 = 18.0;

impl Axes {
    fn new(places: usize, scale: Scale, series: &[Line<'_>]) -> Self {
        let figures = || series.iter().flat_map(|line| &line.points).map(|(_, figure)| figure);
        let highest = figures().map(|figure| figure.max).fold(0.0, f64::max);
        let lowest = figures().map(|figure| figure.min).filter(|low| *low > 0.0).fold(f64::INFINITY, f64::min);
        let (low, high) = match scale {
            Scale::Linear => (0.0, round_up(highest)),
            Scale::Logarithmic if highest > 0.0 => {
                let low = 10f64.powf(lowest.log10().floor());
                (low, 10f64.powf(highest.log10().ceil()).max(low * 10.0))
            }
            Scale::Logarithmic => (1.0, 10.0),
        };
        Axes { places, low, high, scale }
    }

    fn x(&self, place: usize) -> f64 {
        LEFT + 24.0 + place as f64 * (RIGHT - LEFT - 48.0) / (self.places.max(2) - 1) as f64
    }

    fn y(&self, value: f64) -> f64 {
        let share = match self.scale {
            Scale::Linear => value / self.high,
            Scale::Logarithmic => (value.max(self.low) / self.low).log10() / (self.high / self.low).log10(),
        };
        BOTTOM - share * (BOTTOM - TOP)
    }

    /// The figures at which the grid has a line.
    fn grid(&self) -> Vec<f64> {
        match self.scale {
            Scale::Linear => (0..=4).map(|step| self.high * f64::from(step) / 4.0).collect(),
            Scale::Logarithmic => {
                let decades = (self.high / self.low).log10().round() as i32;
                (0..=decades).map(|decade| self.low * 10f64.powi(decade)).collect()
            }
        }
    }
}

fn grid(svg: &mut String, axes: &Axes, places: &[String]) {
    for value in axes.grid() {
        let y = axes.y(value);
        let text = if value == 0.0 { "0".to_owned() } else { number(value) };
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {y:.1}H{RIGHT}\" stroke=\"{GRID}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"{SOFT}\">{text}</text>",
            LEFT - 6.0,
            y + 4.0
        );
    }
    for (place, name) in places.iter().enumerate() {
        let (x, y, name) = (axes.x(place), BOTTOM + 16.0, escape(name));
        let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\" fill=\"{SOFT}\">{name}</text>");
    }
}

fn draw_line(svg: &mut String, axes: &Axes, line: &Line<'_>) {
    let Style { colour, hollow } = style(line.peer);
    let dash = if hollow { " stroke-dasharray=\"5 4\"" } else { "" };
    let at = |(place, figure): &(usize, Summary)| format!("{:.1} {:.1}", axes.x(*place), axes.y(figure.median));
    let path: Vec<String> = line.points.iter().map(at).collect();
    let path = path.join("L");
    let _ = writeln!(svg, "<path d=\"M{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"{dash}/>");
    for (place, figure) in &line.points {
        let (x, y) = (axes.x(*place), axes.y(figure.median));
        let _ = writeln!(
            svg,
            "<path d=\"M{x:.1} {:.1}V{:.1}\" stroke=\"{colour}\"/><circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>",
            axes.y(figure.min),
            axes.y(figure.max)
        );
    }
}

fn legend(svg: &mut String, index: usize, line: &Line<'_>) {
    let Style { colour, hollow } = style(line.peer);
    let dash = if hollow { " stroke-dasharray=\"5 4\"" } else { "" };
    let (x, y) = (LEFT + (index % 2) as f64 * 250.0, BOTTOM + 38.0 + (index / 2) as f64 * LEGEND_ROW);
    let _ = writeln!(
        svg,
        "<path d=\"M{x} {}h22\" stroke=\"{colour}\" stroke-width=\"3\"{dash}/><text x=\"{}\" y=\"{y}\" fill=\"{INK}\">{}</text>",
        y - 4.0,
        x + 28.0,
        escape(line.label)
    );
}

/// Lines over equally spaced places of the x axis; the spread as thin vertical lines.
pub fn lines(title: &str, hint: &str, scale: Scale, places: &[String], series: &[Line<'_>]) -> String {
    let mut svg = open(BOTTOM + 34.0 + series.len().div_ceil(2) as f64 * LEGEND_ROW, title);
    let hint = escape(hint);
    let _ = writeln!(svg, "<text x=\"{RIGHT}\" y=\"20\" text-anchor=\"end\" fill=\"{SOFT}\">{hint}</text>");
    let axes = Axes::new(places.len(), scale, series);
    grid(&mut svg, &axes, places);
    for (index, line) in series.iter().enumerate() {
        draw_line(&mut svg, &axes, line);
        legend(&mut svg, index, line);
    }
    svg.push_str("</svg>\n");
    svg
}

/// Pictures under each other as one, with a line of text below.
pub fn stack(pictures: &[String], caption: &str) -> String {
    let height_of = |svg: &String| {
        let from = svg.find(" height=\"").map_or(0, |at| at + 9);
        svg[from..].split('"').next().and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0)
    };
    let total: f64 = pictures.iter().map(|svg| height_of(svg) + 8.0).sum::<f64>() + 24.0;
    let mut all = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {total}\" width=\"{WIDTH}\" height=\"{total}\" {FONT}>\
         <rect width=\"{WIDTH}\" height=\"{total}\" fill=\"#ffffff\"/>\n"
    );
    let mut top = 0.0;
    for svg in pictures {
        let _ = write!(all, "<g transform=\"translate(0 {top})\">{svg}</g>");
        top += height_of(svg) + 8.0;
    }
    let _ = writeln!(
        all,
        "<text x=\"12\" y=\"{}\" font-size=\"10\" fill=\"{SOFT}\">{}</text></svg>",
        top + 12.0,
        escape(caption)
    );
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(median: f64) -> Summary {
        Summary { median, min: median * 0.9, max: median * 1.1 }
    }

    #[test]
    fn axes_end_at_round_numbers() {
        for (value, wanted) in [(0.93, 1.0), (1.1, 1.5), (14.3, 15.0), (36.6, 40.0), (0.0, 1.0), (812.0, 1000.0)] {
            assert!((round_up(value) - wanted).abs() < 1e-9, "{value}: {}", round_up(value));
        }
    }

    #[test]
    fn text_of_others_cannot_become_markup() {
        let svg = bars("a < b", "", &[("ovs", "<script>", figure(1.0))]);
        assert!(!svg.contains("<script>") && svg.contains("&lt;script&gt;"));
    }

    #[test]
    fn a_logarithmic_axis_gives_each_decade_the_same_room() {
        let line = Line { peer: "ovs", label: "one", points: vec![(0, figure(2.0)), (1, figure(900.0))] };
        let axes = Axes::new(2, Scale::Logarithmic, &[line]);
        assert_eq!(axes.grid(), [1.0, 10.0, 100.0, 1000.0]);
        assert!((axes.y(1.0) - axes.y(10.0) - (axes.y(100.0) - axes.y(1000.0))).abs() < 1e-9);
        assert_eq!((axes.y(1.0), axes.y(1000.0)), (BOTTOM, TOP));
    }

    #[test]
    fn a_longer_bar_is_a_larger_figure() {
        let svg = bars("t", "", &[("ovs", "one", figure(1.0)), ("bridge", "two", figure(2.0))]);
        let widths: Vec<f64> = svg
            .split("<rect x=\"204\"")
            .skip(1)
            .filter_map(|piece| piece.split("width=\"").nth(1)?.split('"').next()?.parse().ok())
            .collect();
        assert_eq!(widths.len(), 2);
        assert!((widths[1] / widths[0] - 2.0).abs() < 0.01, "{widths:?}");
    }
}
