//! The picture: two lines about the daemon, one about the view, the sheet, and a line of keys. Whatever the terminal's size, the
//! most important is shown first; without colour, what matters is bold or reversed.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::app::{App, Link};
use super::sheet::{Tone, human};
use super::views::View;
use crate::printable;
use crate::status::{WIDTH, uptime, wrap_to};

/// Lines of a terminal from which on there is room for the totals and for the keys.
const ROOM: u16 = 8;

/// The keys in one line.
const KEYS: &str = "h help  q quit  1 2 3 view  < > sort  r reverse  / filter  space pause  + - pace";

/// The keys with their meaning.
const HELP: [(&str, &str); 12] = [
    ("1 2 3", "ports, workers, drops; Tab: the next"),
    ("< >", "sort by the column to the left, right; arrow keys too"),
    ("r", "reverse the order"),
    ("/", "show only rows with these letters; Enter: done, Esc: show all"),
    ("j k", "scroll by a line; arrows, PgUp, PgDn, Home, End"),
    ("space", "pause, go on"),
    ("+ -", "ask twice, half as often"),
    ("h", "this help"),
    ("q", "quit"),
    ("", "PPS packets a second; k M G thousands, millions, …; - not known yet"),
    ("", "PASSED left to the kernel: nothing is lost. DROPPED lost"),
    ("", "LOAD share of time with packets; RXQ TXQ FILL frames in rings"),
];

/// How things look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Theme {
    /// Whether colours are used besides bold and reversed.
    pub is_coloured: bool,
}

impl Theme {
    fn of(self, tone: Tone) -> Style {
        let style = Style::new();
        match (tone, self.is_coloured) {
            (Tone::Plain, _) | (Tone::Dim, false) => style,
            (Tone::Dim, true) => style.fg(Color::DarkGray),
            (Tone::Warn, true) => style.fg(Color::Yellow).add_modifier(Modifier::BOLD),
            (Tone::Bad, true) => style.fg(Color::Red).add_modifier(Modifier::BOLD),
            (Tone::Warn | Tone::Bad, false) => style.add_modifier(Modifier::BOLD),
        }
    }

    fn title(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    fn header(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }
}

/// Draws all of it.
pub fn draw(frame: &mut Frame<'_>, app: &mut App, theme: Theme) {
    let area = frame.area();
    let width = usize::from(area.width);
    let has_room = area.height >= ROOM;
    let mut top = vec![Line::styled(title(app), theme.title())];
    if has_room {
        top.push(Line::raw(totals(app, width)));
    }
    top.push(view_line(app, theme));
    let keys = u16::from(has_room);
    let head = top.len() as u16;
    let room = area.height.saturating_sub(head + keys);
    let body = body(app, theme, width, usize::from(room));
    let place = |y: u16, height: u16| Rect { x: area.x, y: area.y + y, width: area.width, height }.intersection(area);
    frame.render_widget(Paragraph::new(top), place(0, head));
    frame.render_widget(Paragraph::new(body), place(head, room));
    if has_room {
        frame.render_widget(Paragraph::new(KEYS), place(head + room, keys));
    }
}

/// Who is shown and how busy it is, in one line; what matters most comes first.
pub fn title(app: &App) -> String {
    let pause = if app.is_paused { "  PAUSED" } else { "" };
    let Some(status) = &app.status else {
        let state = if app.link == Link::Waiting { "" } else { "  DOES NOT ANSWER" };
        return format!("podlane {}{pause}{state}", app.instance);
    };
    let load: Option<f64> = app.rates.workers.iter().map(|worker| worker.load).sum();
    let load = load.filter(|_| !app.rates.workers.is_empty());
    format!(
        "podlane {}{pause}  load {}  up {}  path {}  process {}  version {}",
        printable::line(&status.instance),
        load.map_or("-".to_owned(), |load| format!("{:.0} %", load * 100.0)),
        uptime(status.uptime_s),
        printable::line(&status.path),
        status.pid,
        printable::line(&status.version)
    )
}

/// What comes in at all ports together and what becomes of it: as much of that as `width` columns hold.
pub fn totals(app: &App, width: usize) -> String {
    let total = &app.rates.total;
    let show = |rate: Option<f64>| rate.map_or("-".to_owned(), human);
    let mut line = format!("in {} pps {} bit/s", show(total.rx_packets), show(total.rx_bits));
    let fates = [
        ("dropped", total.dropped),
        ("passed", total.passed),
        ("by workers", total.by_workers),
        ("by kernel path", total.in_kernel),
    ];
    for (fate, rate) in fates {
        let part = format!(", {fate} {}", show(rate));
        if line.chars().count() + part.chars().count() > width {
            break;
        }
        line.push_str(&part);
    }
    line
}

fn view_line(app: &App, theme: Theme) -> Line<'static> {
    let mut spans = Vec::new();
    for (index, view) in View::ALL.into_iter().enumerate() {
        let text = format!("{} {}", index + 1, view.name());
        let style = if view == app.view { theme.header() } else { Style::new() };
        spans.extend([Span::styled(text, style), Span::raw("  ")]);
    }
    let cursor = if app.is_typing { "_" } else { "" };
    if app.is_typing || !app.filter.is_empty() {
        spans.push(Span::styled(format!("filter: {}{cursor}", app.filter), theme.title()));
    } else {
        spans.push(Span::raw(format!("every {} s", app.interval)));
    }
    Line::from(spans)
}

/// The sheet with its titles, or what there is to say instead.
fn body(app: &mut App, theme: Theme, width: usize, height: usize) -> Vec<Line<'static>> {
    if app.is_help {
        let line = |(key, meaning): &(&str, &str)| Line::raw(format!("  {key:<6} {meaning}"));
        return HELP.iter().map(line).collect();
    }
    if let Some(message) = message(app) {
        let lines = wrap_to("", &message, width);
        return lines.into_iter().map(|line| Line::styled(line, theme.of(Tone::Bad))).collect();
    }
    let sheet = app.sheet(app.view);
    let fit = sheet.fit(width);
    let header = format!("{:<width$}", sheet.header(&fit, Some(app.sort())));
    let mut lines = vec![Line::styled(header, theme.header())];
    let room = height.saturating_sub(1);
    app.scroll = app.scroll.min(sheet.rows.len().saturating_sub(room));
    for row in sheet.rows.iter().skip(app.scroll).take(room) {
        let spans = sheet.line(row, &fit).into_iter().map(|(text, tone)| Span::styled(text, theme.of(tone)));
        lines.push(Line::from_iter(spans));
    }
    if sheet.rows.is_empty() {
        lines.push(Line::raw(nothing(app)));
    }
    lines
}

/// Why there is nothing to show.
fn message(app: &App) -> Option<String> {
    match &app.link {
        Link::Waiting => Some("waiting for the daemon's answer".to_owned()),
        Link::Down(sentence) => Some(format!("{sentence}; asking again every {} s", app.interval)),
        Link::Up => None,
    }
}

fn nothing(app: &App) -> &'static str {
    match app.view {
        _ if !app.filter.is_empty() => "nothing here matches the filter",
        View::Ports => "no ports",
        View::Workers => "no workers",
        View::Drops => "everything was forwarded",
    }
}

/// All views as plain text, in lines of at most `width` columns where that is possible.
pub fn text(app: &App, width: usize) -> String {
    let mut out = format!("{}\n{}\n", title(app), totals(app, width));
    if let Some(message) = message(app) {
        return format!("{}\n{}\n", title(app), wrap_to("", &message, width.min(WIDTH)).join("\n"));
    }
    for view in View::ALL {
        let sheet = app.sheet(view);
        if sheet.rows.is_empty() {
            continue;
        }
        let fit = sheet.fit(width);
        out.push_str(&format!("\n{}\n", sheet.header(&fit, None).trim_end()));
        for row in &sheet.rows {
            let line: String = sheet.line(row, &fit).into_iter().map(|(text, _)| text).collect();
            out.push_str(line.trim_end());
            out.push('\n');
        }
    }
    out
}
