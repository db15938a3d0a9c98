use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::record::clean;
use super::*;

const SECOND: Duration = Duration::from_secs(1);
const NOWHERE: &str = "/nonexistent/journal";

fn record(message: &str) -> Record {
    Record {
        time: "2026-11-23T01:02:03.000004Z".to_owned(),
        level: Level::WARN,
        target: "podlane::ports".to_owned(),
        message: message.to_owned(),
        fields: Vec::new(),
        place: None,
    }
}

/// What `tracing`'s macros make of `speak`.
fn heard(speak: impl FnOnce()) -> Vec<Record> {
    struct Collect(Arc<Mutex<Vec<Record>>>);
    impl<S: Subscriber> Layer<S> for Collect {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            self.0.lock().unwrap().push(Record::of(event));
        }
    }
    let records = Arc::new(Mutex::new(Vec::new()));
    let subscriber = tracing_subscriber::registry().with(Collect(Arc::clone(&records)));
    tracing::subscriber::with_default(subscriber, speak);
    let mut records = records.lock().unwrap();
    std::mem::take(&mut *records)
}

#[test]
fn a_complaint_is_said_at_once_and_then_once_in_a_period_with_the_number_of_the_others() {
    let (mut limiter, start) = (Limiter::default(), Instant::now());
    let mut at = |seconds: u32| limiter.judge((1, 1), record("x"), start + SECOND * seconds);
    assert_eq!(at(0), Verdict::Say(record("x")));
    assert!((1..=59).map(&mut at).all(|verdict| verdict == Verdict::Hold));
    let Verdict::Say(told) = at(60) else { panic!("held for ever") };
    assert_eq!(told.message, "x (… 59 more like this in the last 60 s)");
    assert_eq!(told.fields, [("more", json!(59))]);
    assert_eq!(at(61), Verdict::Hold);
    assert!(limiter.due(start + SECOND * 119).is_empty());
    let due = limiter.due(start + SECOND * 120);
    assert_eq!(due, [record("x (again in the last 60 s)")]);
    assert!(limiter.due(start + SECOND * 179).is_empty() && limiter.keys() == 1);
    assert!(
        limiter.due(start + SECOND * 180).is_empty() && limiter.keys() == 0,
        "what has not come again is forgotten"
    );
}

#[test]
fn what_is_held_is_said_without_a_further_one_and_at_the_end() {
    let (mut limiter, start) = (Limiter::default(), Instant::now());
    for second in 0..5 {
        limiter.judge((1, 1), record(&format!("number {second}")), start + SECOND * second);
    }
    let due: Vec<String> = limiter.due(start + PERIOD).into_iter().map(|record| record.message).collect();
    assert_eq!(due, ["number 4 (… 3 more like this in the last 60 s)"], "the last one, and how many others");
    limiter.judge((1, 1), record("late"), start + PERIOD + SECOND);
    let rest = limiter.finish();
    assert!(rest.len() == 1 && rest[0].message.starts_with("late (again in the last "), "{rest:?}");
    assert!(limiter.finish().is_empty());
}

#[test]
fn others_are_not_held_back_and_the_number_of_keys_is_bounded() {
    let (mut limiter, start) = (Limiter::default(), Instant::now());
    let said = (0..100_000u64)
        .filter(|&what| matches!(limiter.judge((what % 3, what + 1), record("x"), start), Verdict::Say(_)));
    // Beyond the bound, each of the three places says one more for everybody.
    assert_eq!(said.count(), MAX_KEYS + 3);
    assert_eq!(limiter.keys(), MAX_KEYS + 3);
    assert_eq!(limiter.due(start + PERIOD).len(), 3, "those that were counted for everybody");
    assert_eq!(limiter.keys(), 3);
    let later = start + PERIOD * 3;
    assert_eq!(limiter.judge((7, 7), record("y"), later), Verdict::Say(record("y")), "there is room again");
}

#[test]
fn time_that_goes_backwards_is_harmless() {
    let (mut limiter, start) = (Limiter::default(), Instant::now() + PERIOD);
    limiter.judge((1, 1), record("x"), start);
    assert_eq!(limiter.judge((1, 1), record("x"), start - SECOND * 30), Verdict::Hold);
    assert!(limiter.due(start - SECOND).is_empty());
}

#[test]
fn the_ring_forgets_the_oldest() {
    let mut ring = Ring::default();
    assert_eq!(ring.recent(), Recent::default());
    for number in 0..MAX_LINES + 5 {
        ring.push(format!("line {number}"));
    }
    let recent = ring.recent();
    assert_eq!((recent.lines.len(), recent.forgotten), (MAX_LINES, 5));
    assert_eq!((recent.lines[0].as_str(), recent.lines[MAX_LINES - 1].as_str()), ("line 5", "line 1004"));
    for _ in 0..100 {
        ring.push("x".repeat(MAX_BYTES / 10));
        assert!(ring.recent().lines.iter().map(String::len).sum::<usize>() <= MAX_BYTES);
    }
    assert_eq!(ring.recent().lines.len(), 10);
}

#[test]
fn an_event_becomes_clean_text_with_fields() {
    let name = "veth\n<0>podlane: all is lost\x1b[2J\u{202e}";
    let error = std::io::Error::other("no \"room\"");
    let records = heard(|| tracing::warn!(%error, interface = name, queues = 2, up = true, "left to {name}"));
    let [record] = records.as_slice() else { panic!("{records:?}") };
    let text = "left to veth\\n<0>podlane: all is lost\\u{1b}[2J\\u{202e} error=\"no \\\"room\\\"\" \
                interface=\"veth\\\\n<0>podlane: all is lost\\\\u{1b}[2J\\\\u{202e}\" queues=2 up=true";
    assert_eq!(record.sentence(), text);
    assert_eq!(record.text(), format!("{}  WARN podlane::log::tests: {text}", record.time));
    assert!(record.time.len() == 27 && record.time.ends_with('Z'), "{}", record.time);
    assert_eq!(record.prefixed(), format!("<4>podlane::log::tests: {text}"));
    let line: Value = serde_json::from_str(&record.json()).unwrap();
    assert_eq!((&line["level"], &line["target"]), (&json!("warn"), &json!("podlane::log::tests")));
    assert_eq!((&line["fields"]["queues"], &line["fields"]["error"]), (&json!(2), &json!("no \"room\"")));
    let journal = record.journal();
    assert!(journal.starts_with(&format!("MESSAGE={text}\nPRIORITY=4\n")), "{journal}");
    assert!(
        journal.contains("\nPODLANE_QUEUES=2\n") && journal.contains("\nCODE_FILE=loader/src/log/tests.rs\n"),
        "{journal}"
    );
    assert!(journal.lines().all(|line| line.contains('=')), "{journal}");
}

#[test]
fn complaints_about_different_subjects_are_told_apart() {
    let records = heard(|| {
        for (interface, error) in [("veth1", "a"), ("veth2", "a"), ("veth1", "b")] {
            tracing::warn!(interface, error, "left to the kernel");
        }
    });
    let subjects: Vec<_> = records.iter().map(|record| record.subject(&SUBJECTS)).collect();
    assert!(subjects[0] != subjects[1] && subjects[0] == subjects[2], "{subjects:?}");
}

#[test]
fn complaints_of_one_place_are_held_back_and_news_are_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let sink = Sink::new(File::create(&path).ok(), None, false, "", Path::new(NOWHERE));
    let log: &'static Log = Box::leak(Box::new(Log::new(sink, false)));
    tracing::subscriber::with_default(tracing_subscriber::registry().with(ToLog(log)), || {
        for number in 0..50 {
            tracing::warn!(interface = format!("veth{}", number % 3), error = number, "left to the kernel");
            tracing::info!("news");
            tracing::warn!(target: "libbpf", "line of the verifier");
        }
    });
    let text = std::fs::read_to_string(&path).unwrap();
    let count = |what: &str| text.lines().filter(|line| line.contains(what)).count();
    assert_eq!((count("left to the kernel"), count("news"), count("verifier")), (3, 50, 50), "{text}");
    let recent = log.parts().ring.recent();
    assert_eq!(recent.lines.join("\n") + "\n", text, "what is written is remembered");
    let rest = log.parts().limiter.finish();
    let more: Vec<_> = rest.iter().filter_map(|record| record.fields.last()).collect();
    assert!(
        more.len() == 3 && more.iter().all(|(name, value)| *name == "more" && value.as_u64() >= Some(14)),
        "{rest:?}"
    );
}

#[test]
fn what_is_too_long_is_cut() {
    let long = "é".repeat(MAX_MESSAGE * 2);
    let records = heard(|| tracing::info!(why = long, "{long}"));
    assert_eq!(records[0].message.chars().count(), MAX_MESSAGE + 1);
    assert_eq!(records[0].fields[0].1.as_str().unwrap().chars().count(), MAX_FIELD + 1);
}

#[test]
fn lines_reach_a_file_in_every_format() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    for (format, coloured, expected) in [
        (None, false, "2026-11-23T01:02:03.000004Z  WARN podlane::ports: x\n"),
        (Some(Format::Journal), false, "<4>podlane::ports: x\n"),
        (
            Some(Format::Json),
            true,
            "{\"level\":\"warn\",\"message\":\"x\",\"target\":\"podlane::ports\",\"time\":\"2026-11-23T01:02:03.000004Z\"}\n",
        ),
    ] {
        let mut sink = Sink::new(File::create(&path).ok(), format, coloured, "", Path::new(NOWHERE));
        sink.write(&record("x"));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);
    }
    let mut sink = Sink::new(File::create(&path).ok(), None, true, "", Path::new(NOWHERE));
    sink.write(&record("x"));
    assert!(std::fs::read_to_string(&path).unwrap().contains("\x1b[33m WARN\x1b[0m"));
    Sink::new(None, None, false, "", Path::new(NOWHERE)).write(&record("x"));
}

#[test]
fn a_stream_of_the_journal_is_found_out_and_its_socket_used() {
    let directory = tempfile::tempdir().unwrap();
    let (path, socket) = (directory.path().join("log"), directory.path().join("socket"));
    let out = File::create(&path).unwrap();
    let file = out.metadata().unwrap();
    let stream = format!("{}:{}", file.dev(), file.ino());
    let read = || std::fs::read_to_string(&path).unwrap();

    let mut sink = Sink::new(out.try_clone().ok(), None, false, &stream, &socket);
    sink.write(&record("without a socket"));
    assert_eq!(read(), "<4>podlane::ports: without a socket\n");

    let journal = UnixDatagram::bind(&socket).unwrap();
    let mut sink = Sink::new(out.try_clone().ok(), None, false, &stream, &socket);
    sink.write(&record("over the socket"));
    let mut buffer = [0; 1024];
    let count = journal.recv(&mut buffer).unwrap();
    assert!(buffer[..count].starts_with(b"MESSAGE=over the socket\nPRIORITY=4\nSYSLOG_IDENTIFIER=podlane\n"));
    // A journal that does not read: its queue is full at some time, and from then on lines go to the stream.
    let sent = (0..5000).take_while(|_| {
        sink.write(&record("y"));
        !read().contains('y')
    });
    assert!(sent.count() < 5000);
    drop(journal);
    sink.write(&record("the journal is gone"));
    assert!(read().ends_with("<4>podlane::ports: the journal is gone\n"));

    let mut sink = Sink::new(out.try_clone().ok(), Some(Format::Text), false, &stream, &socket);
    sink.write(&record("as asked for"));
    assert!(read().ends_with("Z  WARN podlane::ports: as asked for\n"));
}

#[test]
fn a_reader_that_is_stuck_holds_nobody_up_and_learns_what_it_has_missed() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let out = File::from(writer.as_fd().try_clone_to_owned().unwrap());
    drop(writer);
    let mut sink = Sink::new(Some(out), None, false, "", Path::new(NOWHERE));
    let start = Instant::now();
    (0..5000).for_each(|_| sink.write(&record(&"x".repeat(100))));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    let mut buffer = vec![0; 1 << 20];
    let count = reader.read(&mut buffer).unwrap();
    assert!(count < 100 * 5000);
    sink.write(&record("again"));
    drop(sink);
    let mut rest = String::new();
    reader.read_to_string(&mut rest).unwrap();
    let lines: Vec<_> = rest.lines().collect();
    assert!(lines[lines.len() - 2].contains(" lines of the log are lost: nobody read it"), "{lines:?}");
    assert!(lines[lines.len() - 1].ends_with("again"));
}

#[test]
fn filters_are_read_and_mistakes_named() {
    for (text, shown) in [
        ("warn", "warn"),
        ("DEBUG", "debug"),
        ("info, podlane::mirror=trace,libbpf=error", "info,podlane::mirror=trace,libbpf=error"),
        ("podlane::ports=debug", "info,podlane::ports=debug"),
    ] {
        assert_eq!(text.parse::<LogFilter>().unwrap().to_string(), shown);
    }
    for (text, sentence) in [
        ("loud", "\"loud\" is not one of error, warn, info, debug, trace"),
        ("inof", "\"inof\" is not one of error, warn, info, debug, trace; did you mean \"info\"?"),
        ("", "\"\" is not one of"),
        ("info,warn", "says twice"),
        ("podlanes=warn", "\"podlanes\" is no part of Podlane"),
        ("podlane::mirror=", "\"\" is not one of"),
        (&["podlane=warn"; 33].join(","), "at most 32 parts"),
    ] {
        let error = text.parse::<LogFilter>().unwrap_err().to_string();
        assert!(error.contains(sentence), "{text}: {error}");
    }
    let targets = "warn,podlane::mirror=debug".parse::<LogFilter>().unwrap().targets();
    assert!(targets.would_enable("podlane::mirror::world", &Level::DEBUG));
    assert!(!targets.would_enable("podlane::ports", &Level::INFO));
}

proptest! {
    #[test]
    fn nothing_breaks_a_line(text in proptest::collection::vec(any::<char>(), 0..100), most in 0..50usize) {
        let cleaned = clean(&String::from_iter(text), most);
        prop_assert!(cleaned.chars().all(|c| !c.is_control()));
        prop_assert!(cleaned.chars().count() <= most * 10 + 1);
    }

    #[test]
    fn any_filter_is_answered(text in "[a-z:=, ]{0,30}") {
        if let Ok(filter) = text.parse::<LogFilter>() {
            prop_assert_eq!(filter.to_string().parse::<LogFilter>().unwrap(), filter);
        }
    }
}
