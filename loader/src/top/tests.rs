use proptest::prelude::*;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::style::{Color, Modifier};

use super::app::{MAX_INTERVAL, MIN_INTERVAL, Reaction};
use super::rates::between;
use super::sheet::{Cell, Column, Row, Sheet, Tone, cut, human};
use super::view::{Theme, draw, text};
use super::views::View;
use super::*;
use crate::names::NamedBy;
use crate::status::tests::example;
use crate::status::{Breakdown, PortKind, PortStatus, WIDTH, WorkerStatus};

fn named(port: &PortStatus, id: u32, interface: &str, name: Option<(&str, &str)>) -> PortStatus {
    PortStatus {
        id,
        ifindex: 20 + id,
        name: interface.to_owned(),
        namespace: name.map(|(namespace, _)| namespace.to_owned()),
        pod: name.map(|(_, pod)| pod.to_owned()),
        named_by: name.map(|_| NamedBy::Cni),
        ..port.clone()
    }
}

/// A node with two pods that are named, one that is not, one that is down, an uplink and two workers.
fn before() -> Status {
    let mut status = example();
    let [host, pod, uplink] = &status.ports[..] else { panic!("the example has other ports") };
    let mut down = named(pod, 5, "veth77", None);
    down.state = "no_carrier".to_owned();
    let mut eth0 = named(uplink, 2, "eth0", None);
    eth0.state = "forwarding".to_owned();
    let mut kernel = named(pod, 4, "veth3ab9c01d", None);
    kernel.path = "kernel".to_owned();
    status.ports = vec![
        host.clone(),
        named(pod, 1, "veth5e1f0a2b", Some(("shop", "web-0"))),
        eth0,
        named(pod, 3, "vethc0ffee12", Some(("kube-system", "coredns-5d78c9869d-x7k2p"))),
        kernel,
        down,
    ];
    status.workers.push(WorkerStatus { id: 1, cpu: 1, busy_ns: 0, rx: 0, batches: 0, ..status.workers[0].clone() });
    status
}

/// Two seconds later.
fn after() -> Status {
    let mut status = before();
    status.uptime_s += 2.0;
    let [_, web, uplink, dns, kernel, _] = &mut status.ports[..] else { panic!("other ports") };
    web.rx_packets += 1_600_000;
    web.rx_bytes += 2_422_400_000;
    web.forwarded += 1_599_000;
    web.dropped = Breakdown::of([("tx_ring_full", 5 + 900), ("handoff_full", 100)]);
    web.tx_packets += 20;
    web.tx_bytes += 2000;
    uplink.rx_packets += 21;
    uplink.rx_bytes += 2100;
    uplink.tx_packets += 1_599_000;
    uplink.tx_bytes += 2_420_886_000;
    dns.rx_packets += 3;
    dns.rx_bytes += 300;
    dns.passed = Breakdown::of([("not_ip", 26), ("outside_cluster", 563)]);
    kernel.rx_packets += 300;
    kernel.rx_bytes += 19_800;
    kernel.repeated += 300;
    status.workers[0].rx += 1_600_000;
    status.workers[0].batches += 50_000;
    status.workers[0].busy_ns += 1_900_000_000;
    status.workers[0].dropped += 1000;
    status.workers[0].tx_syscalls += 60_000;
    status.workers[1].sleeps += 20;
    status
}

fn app() -> App {
    let mut app = App::new("default", 2.0, "");
    app.sample(Ok(Box::new(before())));
    app.sample(Ok(Box::new(after())));
    app
}

fn picture(app: &mut App, width: u16, height: u16, is_coloured: bool) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, app, Theme { is_coloured })).unwrap();
    terminal.backend().buffer().clone()
}

fn lines(buffer: &Buffer) -> String {
    let row = |y| -> String { (0..buffer.area.width).map(|x| buffer[(x, y)].symbol()).collect() };
    (0..buffer.area.height).map(|y| row(y).trim_end().to_owned() + "\n").collect()
}

fn shown(app: &mut App, width: u16, height: u16) -> String {
    lines(&picture(app, width, height, false))
}

fn key(code: KeyCode) -> KeyEvent {
    KeyEvent::new(code, KeyModifiers::NONE)
}

fn press(app: &mut App, keys: &str) -> Vec<Reaction> {
    keys.chars().map(|character| app.key(key(KeyCode::Char(character)))).collect()
}

/// With `PODLANE_SNAPSHOTS` set, what is shown becomes what is expected.
fn is_as_in(file: &str, text: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/top/snapshots").join(file);
    if std::env::var_os("PODLANE_SNAPSHOTS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(text, expected, "{file}:\n{text}");
}

#[test]
fn the_views_are_as_they_were() {
    for (size, width, height) in [("80x24", 80, 24), ("200x50", 200, 50), ("40x10", 40, 10)] {
        let mut app = app();
        for view in View::ALL {
            app.view = view;
            is_as_in(&format!("{}-{size}.txt", view.name()), &shown(&mut app, width, height));
        }
    }
    let mut app = app();
    press(&mut app, "h");
    is_as_in("help-80x24.txt", &shown(&mut app, 80, 24));
    is_as_in("text-100.txt", &text(&app, WIDTH));
    is_as_in("text.txt", &text(&app, usize::MAX));
}

#[test]
fn colours_are_used_only_where_they_may_be() {
    let coloured = |buffer: &Buffer| {
        buffer.content.iter().filter(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset).count()
    };
    for view in View::ALL {
        let mut app = app();
        app.view = view;
        let (plain, colour) = (picture(&mut app, 80, 24, false), picture(&mut app, 80, 24, true));
        assert_eq!(lines(&plain), lines(&colour));
        assert_eq!(coloured(&plain), 0, "{view:?}");
        assert!(coloured(&colour) > 0, "{view:?}");
        let reversed = plain.content.iter().filter(|cell| cell.modifier.contains(Modifier::REVERSED)).count();
        assert!(reversed >= 80, "the titles and the view's name");
    }
    let app = &mut app();
    let plain = picture(app, 80, 24, false);
    let row = (0..24).find(|y| lines(&plain).lines().nth(*y).unwrap().starts_with("shop/web-0")).unwrap();
    let dropped = (0..80).filter(|x| plain[(*x, row as u16)].modifier.contains(Modifier::BOLD)).count();
    assert_eq!(dropped, 9, "drops are bold without colour");
}

#[test]
fn rates_are_what_changed_by_the_daemons_time() {
    let rates = between(Some(&before()), &after());
    let web = &rates.ports[1];
    assert_eq!(
        (web.label.as_str(), web.rx_packets, web.rx_bits),
        ("shop/web-0", Some(800_000.0), Some(9_689_600_000.0))
    );
    assert_eq!((web.tx_packets, web.tx_bits, web.dropped), (Some(10.0), Some(8000.0), Some(500.0)));
    assert_eq!(web.drop_reason, "tx_ring_full");
    let worker = &rates.workers[0];
    assert_eq!((worker.load, worker.batch, worker.ns_per_packet), (Some(0.95), Some(32.0), Some(1187.5)));
    let idle = &rates.workers[1];
    assert_eq!((idle.load, idle.packets, idle.batch, idle.ns_per_packet), (Some(0.0), Some(0.0), None, None));
    let full = rates.reasons.iter().find(|reason| reason.label == "shop/web-0" && reason.reason == "handoff_full");
    assert_eq!(full.map(|reason| (reason.rate, reason.total)), Some((Some(50.0), 100)), "it had not occurred before");
    assert_eq!(rates.total.in_kernel, Some(150.0));
    assert_eq!(rates.total.dropped, Some(500.0));
}

#[test]
fn counters_of_another_life_have_no_rates() {
    let none = |before: &Status, after: &Status| {
        let rates = between(Some(before), after);
        assert_eq!(rates.seconds, None);
        assert!(rates.ports.iter().all(|port| port.rx_packets.is_none() && port.dropped.is_none()));
        assert!(rates.workers.iter().all(|worker| worker.packets.is_none() && worker.load.is_none()));
        assert!(rates.reasons.iter().all(|reason| reason.rate.is_none() && reason.total > 0));
        assert_eq!(rates.total.rx_packets, None);
    };
    none(&before(), &Status { pid: 4712, ..after() });
    none(&before(), &Status { instance: "other".to_owned(), ..after() });
    none(&before(), &before());
    none(&after(), &Status { uptime_s: 1.0, ..before() });
    assert_eq!(between(None, &after()).seconds, None);
}

#[test]
fn a_port_that_was_opened_anew_has_no_rate() {
    let mut later = after();
    later.ports[1].rx_packets = 7;
    later.ports[3].ifindex = 99;
    later.workers[0].busy_ns = 5;
    let rates = between(Some(&before()), &later);
    assert_eq!((rates.ports[1].rx_packets, rates.ports[3].rx_packets), (None, None));
    assert_eq!(rates.workers[0].load, None);
    assert_eq!(rates.ports[4].rx_packets, Some(150.0), "the others have");
    assert_eq!(rates.total.rx_packets, Some((21.0 + 300.0) / 2.0));
}

#[test]
fn a_daemon_that_goes_is_said_and_one_that_comes_back_starts_anew() {
    let mut app = App::new("default", 2.0, "");
    assert!(shown(&mut app, 80, 24).contains("waiting for the daemon's answer"));
    app.sample(Ok(Box::new(after())));
    assert!(shown(&mut app, 80, 24).contains("shop/web-0"));
    app.sample(Err("no podlane instance \"default\" answers at /run/podlane/default.sock\u{1b}[2J".to_owned()));
    let gone = shown(&mut app, 80, 24);
    assert!(gone.contains("default.sock\u{fffd}[2J; asking\nagain every 2 s") && !gone.contains("web-0"), "{gone}");
    assert!(shown(&mut app, 40, 10).contains("no podlane instance"), "on a small screen as well");
    press(&mut app, "h");
    assert!(shown(&mut app, 40, 3).contains("podlane default  DOES NOT ANSWER"), "whatever else is shown");
    press(&mut app, "h");
    assert!(text(&app, WIDTH).contains("no podlane instance"));
    app.sample(Ok(Box::new(Status { pid: 9, uptime_s: 0.5, ..before() })));
    assert_eq!(app.rates.seconds, None);
    app.sample(Ok(Box::new(Status { pid: 9, uptime_s: 2.5, ..after() })));
    assert_eq!(app.rates.ports[1].rx_packets, Some(800_000.0));
}

#[test]
fn keys_do_what_the_help_says() {
    let mut app = app();
    for (character, view) in [('2', View::Workers), ('3', View::Drops), ('1', View::Ports)] {
        press(&mut app, &character.to_string());
        assert_eq!(app.view, view);
    }
    app.key(key(KeyCode::Tab));
    assert_eq!(app.view, View::Workers);
    app.key(key(KeyCode::BackTab));
    app.key(key(KeyCode::BackTab));
    assert_eq!(app.view, View::Drops);
    press(&mut app, "1");
    let (column, reversed) = app.sort();
    assert_eq!((View::Ports.columns()[column].title, reversed), ("RX BIT/S", false));
    press(&mut app, "<r");
    assert_eq!(app.sort(), (column - 1, true));
    press(&mut app, "2");
    assert_eq!(app.sort(), (0, true), "each view has its own order");
    assert_eq!(press(&mut app, "+"), [Reaction::Interval(Duration::from_secs(1))]);
    assert_eq!(press(&mut app, "--"), [2, 4].map(|seconds| Reaction::Interval(Duration::from_secs(seconds))));
    press(&mut app, &"+".repeat(50));
    assert_eq!(app.interval, MIN_INTERVAL);
    press(&mut app, &"-".repeat(50));
    assert_eq!(app.interval, MAX_INTERVAL);
    assert_eq!(press(&mut app, "hxq"), [Reaction::Redraw, Reaction::Nothing, Reaction::Quit]);
    assert_eq!(app.key(KeyEvent::new(KeyCode::Char('l'), KeyModifiers::CONTROL)), Reaction::Repaint);
    for end in ['c', 'd'] {
        assert_eq!(app.key(KeyEvent::new(KeyCode::Char(end), KeyModifiers::CONTROL)), Reaction::Quit);
    }
}

#[test]
fn typing_filters() {
    let mut app = app();
    assert_eq!(press(&mut app, "/WEBq"), [Reaction::Redraw; 5], "q is a letter here");
    assert!(app.is_typing && app.sheet(View::Ports).rows.is_empty());
    assert!(shown(&mut app, 80, 24).contains("filter: WEBq_"));
    app.key(key(KeyCode::Backspace));
    app.key(key(KeyCode::Enter));
    let rows = app.sheet(View::Ports).rows;
    assert_eq!((rows.len(), rows[0].cells[0].show()), (1, "shop/web-0".to_owned()));
    assert_eq!(app.sheet(View::Workers).rows.len(), 2, "workers have no names");
    assert!(app.sheet(View::Drops).rows.iter().all(|row| row.cells[0].show() == "shop/web-0"));
    app.key(key(KeyCode::Esc));
    assert_eq!((app.filter.as_str(), app.sheet(View::Ports).rows.len()), ("", 6));
    press(&mut app, "/");
    press(&mut app, &"x".repeat(500));
    app.key(key(KeyCode::Char('\u{202e}')));
    assert_eq!(app.filter.len(), 64);
    assert_eq!(app.key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)), Reaction::Quit);
}

#[test]
fn a_pause_keeps_what_is_shown() {
    let mut app = app();
    press(&mut app, " ");
    let rates = app.rates.clone();
    app.sample(Ok(Box::new(Status { uptime_s: 1e6, ..after() })));
    assert_eq!(app.rates, rates);
    assert!(shown(&mut app, 80, 24).contains("PAUSED"));
    press(&mut app, " ");
    app.sample(Ok(Box::new(Status { uptime_s: after().uptime_s + 4.0, ..after() })));
    assert_eq!(app.rates.ports[1].rx_packets, Some(0.0));
}

#[test]
fn rows_that_do_not_fit_are_scrolled_to() {
    let mut app = app();
    let rows = |app: &mut App| shown(app, 80, 7).lines().skip(3).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(rows(&mut app).len(), 4);
    let last = app.sheet(View::Ports).rows.last().unwrap().cells[0].show();
    app.key(key(KeyCode::End));
    assert!(rows(&mut app)[3].starts_with(&last));
    app.key(key(KeyCode::Up));
    assert!(!rows(&mut app)[3].starts_with(&last), "one line up at once, however far down was pressed");
    app.key(key(KeyCode::Home));
    assert!(rows(&mut app)[0].starts_with("shop/web-0"));
}

#[test]
fn titles_fit_with_the_mark_of_the_order() {
    for column in View::ALL.into_iter().flat_map(View::columns) {
        assert!(column.title.len() < column.width || column.width == 11, "{}", column.title);
    }
}

#[test]
fn numbers_are_short() {
    for (number, text) in [
        (0.0, "0"),
        (0.04, "0"),
        (0.05, "0.1"),
        (9.94, "9.9"),
        (9.96, "10"),
        (999.4, "999"),
        (999.6, "1.00k"),
        (1234.0, "1.23k"),
        (9996.0, "10.0k"),
        (99_960.0, "100k"),
        (999_600.0, "1.00M"),
        (9_689_600_000.0, "9.69G"),
        (f64::NAN, "-"),
        (-1.0, "-"),
        (1e30, "many"),
    ] {
        assert_eq!(human(number), text, "{number}");
    }
}

#[test]
fn long_names_keep_both_ends() {
    assert_eq!(cut("kube-system/coredns-5d78c9869d-x7k2p", 16), "kube-…869d-x7k2p");
    assert_eq!((cut("web", 3), cut("web-0", 1), cut("web", 0)), ("web".to_owned(), "…".to_owned(), String::new()));
}

#[test]
fn names_of_others_do_not_reach_the_terminal_as_they_are() {
    let mut status = after();
    status.ports[4].name = "veth\u{1b}[2J\u{202e}".to_owned();
    status.ports[4].state = "\u{9b}31m".to_owned();
    status.version = "\u{1b}c".to_owned();
    let mut app = App::new("default", 2.0, "");
    app.sample(Ok(Box::new(status)));
    let all = shown(&mut app, 200, 50) + &text(&app, 200);
    assert!(all.contains("veth\u{fffd}[2J\u{fffd}") && !all.contains(['\u{1b}', '\u{9b}', '\u{202e}']), "{all}");
}

const SOME: &[Column] = &[
    Column { title: "A", width: 4, rank: 0 },
    Column { title: "B", width: 4, rank: 2 },
    Column { title: "C", width: 4, rank: 1 },
];

#[test]
fn columns_give_way_by_rank_and_the_first_takes_the_rest() {
    let row = Row { cells: vec![Cell::Text("abcdefgh".to_owned()), Cell::Count(1), Cell::Number(None)], tones: vec![] };
    let sheet = Sheet { columns: SOME, rows: vec![row.clone()] };
    let fit = |width| sheet.fit(width);
    assert_eq!(fit(100), [(0, 8), (1, 4), (2, 4)]);
    assert_eq!(fit(15), [(0, 5), (1, 4), (2, 4)]);
    assert_eq!(fit(13), [(0, 8), (2, 4)]);
    assert_eq!(fit(1), [(0, 4)]);
    let line = sheet.line(&row, &fit(14));
    assert_eq!(
        line,
        [("a…gh".to_owned(), Tone::Plain), ("    1".to_owned(), Tone::Plain), ("    -".to_owned(), Tone::Plain)]
    );
    assert_eq!(sheet.header(&fit(14), Some((1, true))), "A      B^    C");
}

proptest! {
    /// Whatever the sizes of screen and numbers and whatever is pressed, it draws.
    #[test]
    fn it_always_draws(
        width in 1u16..250,
        height in 1u16..60,
        keys in "[123<>r/hjkgGabW +-]{0,20}",
        count in any::<u64>(),
        uptime in -1.0..1e9f64,
    ) {
        let mut status = after();
        status.ports[1].rx_bytes = count;
        status.ports[2].kind = PortKind::Uplink;
        status.workers[0].busy_ns = count;
        status.uptime_s = uptime;
        let mut app = app();
        app.sample(Ok(Box::new(status)));
        press(&mut app, &keys);
        let buffer = picture(&mut app, width, height, true);
        prop_assert_eq!(buffer.area.width, width);
        let widest = text(&app, WIDTH).lines().map(|line| line.chars().count()).max();
        prop_assert!(widest <= Some(WIDTH + 20), "{:?}", widest);
    }
}
