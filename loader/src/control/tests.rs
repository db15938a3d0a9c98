use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::poll::{PollTimeout, poll};
use proptest::prelude::*;

use super::*;

fn open(directory: &Path) -> Control {
    Control::open_at("test", &directory.join("run/test.sock")).unwrap()
}

fn answer(request: Request) -> Response {
    match request {
        Request::Ping => Response::Pong { pid: 7 },
        _ => Response::Error("no status in this test".to_owned()),
    }
}

#[test]
fn a_client_that_wants_a_capture_is_handed_over_with_its_stream() {
    let directory = tempfile::tempdir().unwrap();
    let mut control = open(directory.path());
    let path = control.path().to_owned();
    let question = crate::capture::Question::new(&podlane_dataplane::tap::Filter::everything());
    let asked = question.clone();
    let told = while_serving(&mut control, answer, move || {
        let mut stream = UnixStream::connect(path).unwrap();
        stream.write_all(Request::Capture(asked).line().as_bytes()).unwrap();
        stream
    });
    let (mut taken, deadline) = (None, Instant::now() + Duration::from_secs(5));
    while taken.is_none() && Instant::now() < deadline {
        control.serve(answer);
        taken = control.take_capture();
    }
    let (read, mut stream) = taken.expect("it was not handed over");
    assert_eq!(read, question);
    assert_eq!(control.clients(), 0);
    stream.write_all(b"here").unwrap();
    drop(stream);
    let mut heard = String::new();
    (&told).read_to_string(&mut heard).unwrap();
    assert_eq!(heard, "here");
}

/// Serves on this thread, waiting as a daemon does, while `client` runs on another.
fn while_serving<T: Send>(
    control: &mut Control,
    mut handler: impl FnMut(Request) -> Response,
    client: impl FnOnce() -> T + Send,
) -> T {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            let result = client();
            done.store(true, Ordering::Release);
            result
        });
        while !done.load(Ordering::Acquire) && !client.is_finished() {
            poll(&mut control.poll_fds().collect::<Vec<_>>(), PollTimeout::from(10u8)).unwrap();
            let start = Instant::now();
            control.serve(&mut handler);
            assert!(start.elapsed() < Duration::from_secs(1), "the daemon was kept waiting");
        }
        client.join().unwrap()
    })
}

fn talk(path: &Path, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(bytes).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn a_question_is_answered() {
    let directory = tempfile::tempdir().unwrap();
    let mut control = open(directory.path());
    let path = control.path().to_owned();
    let line = while_serving(&mut control, answer, || ask("test", &path, Request::Ping, PATIENCE).unwrap());
    assert_eq!(line, "{\"pid\":7}");
    let error = while_serving(&mut control, answer, || ask("test", &path, Request::Status, PATIENCE).unwrap_err());
    assert_eq!(error.to_string(), "podlane instance \"test\" says: no status in this test");
}

#[test]
fn the_socket_is_roots_alone_and_goes_with_the_daemon() {
    let directory = tempfile::tempdir().unwrap();
    let control = open(directory.path());
    let path = control.path().to_owned();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(path.parent().unwrap()) & 0o700, 0o700);
    drop(control);
    assert!(!path.exists());
    assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 0, "nothing else is left");
}

#[test]
fn a_living_daemon_keeps_its_socket() {
    let directory = tempfile::tempdir().unwrap();
    let mut control = open(directory.path());
    let path = control.path().to_owned();
    let error = Control::open_at("test", &path).unwrap_err().to_string();
    let pid = std::process::id();
    assert!(
        error.starts_with(&format!("podlane instance \"test\" runs already as process {pid}; stop it first")),
        "{error}"
    );
    let line = while_serving(&mut control, answer, || ask("test", &path, Request::Ping, PATIENCE).unwrap());
    assert_eq!(line, "{\"pid\":7}", "and still answers");
}

#[test]
fn the_socket_of_a_dead_daemon_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("test.sock");
    drop(UnixListener::bind(&path).unwrap());
    assert_eq!(occupant(&path), Ok(Occupant::Dead));
    let mut control = Control::open_at("test", &path).unwrap();
    let pid = i32::try_from(std::process::id()).unwrap();
    assert_eq!(occupant(&path), Ok(Occupant::Alive { pid: Some(pid) }));
    let line = while_serving(&mut control, answer, || ask("test", &path, Request::Ping, PATIENCE).unwrap());
    assert_eq!(line, "{\"pid\":7}");
    drop(control);
    assert_eq!(occupant(&path), Ok(Occupant::Nobody));
}

#[test]
fn a_file_of_a_successor_is_not_removed() {
    let directory = tempfile::tempdir().unwrap();
    let first = open(directory.path());
    let path = first.path().to_owned();
    std::fs::remove_file(&path).unwrap();
    let second = Control::open_at("test", &path).unwrap();
    drop(first);
    assert!(path.exists());
    drop(second);
    assert!(!path.exists());
}

#[test]
fn daemons_that_start_at_one_time_do_not_both_win() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("test.sock");
    for _ in 0..20 {
        drop(UnixListener::bind(&path).unwrap());
        let barrier = std::sync::Barrier::new(4);
        let all: Vec<_> = std::thread::scope(|scope| {
            let start = || {
                barrier.wait();
                Control::open_at("test", &path)
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(start)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(all.iter().filter(|result| result.is_ok()).count(), 1);
        assert!(matches!(occupant(&path), Ok(Occupant::Alive { .. })), "the winner's socket is the one that is there");
    }
}

#[test]
fn places_that_cannot_hold_a_socket_are_named() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("file"), "").unwrap();
    let error = Control::open_at("test", &directory.path().join("file/test.sock")).unwrap_err().to_string();
    assert!(error.starts_with("cannot use ") && error.contains("PODLANE_RUN_DIR"), "{error}");
    let long = directory.path().join("x".repeat(120));
    let error = Control::open_at("test", &long).unwrap_err().to_string();
    assert!(error.starts_with("cannot open the control socket ") && error.ends_with("File name too long"), "{error}");
}

#[test]
fn nobody_at_home_is_said_with_the_cure() {
    let path = Path::new("/nonexistent/podlane/test.sock");
    let error = ask("test", path, Request::Ping, PATIENCE).unwrap_err().to_string();
    let expected = "no podlane instance \"test\" answers at /nonexistent/podlane/test.sock: is the service running?";
    assert!(error.starts_with(expected), "{error}");
}

#[test]
fn a_silent_daemon_is_not_waited_for_longer_than_said() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("test.sock");
    let _stuck = UnixListener::bind(&path).unwrap();
    let start = Instant::now();
    let error = ask("test", &path, Request::Ping, Duration::from_millis(100)).unwrap_err().to_string();
    assert!(start.elapsed() < Duration::from_secs(5));
    let pid = std::process::id();
    assert_eq!(
        error,
        format!("podlane instance \"test\" (process {pid}) has not answered within 0.1 s: it may be stopped or stuck")
    );
}

#[test]
fn a_daemon_with_a_full_queue_is_alive_and_silent() {
    let directory = tempfile::tempdir().unwrap();
    let control = open(directory.path());
    let queue: Vec<_> = std::iter::from_fn(|| socket::open_stream(control.path()).ok()).take(1000).collect();
    assert!(queue.len() < 1000, "the queue is bounded");
    assert_eq!(occupant(control.path()), Ok(Occupant::Alive { pid: None }));
    let error = ask("test", control.path(), Request::Ping, Duration::from_millis(50)).unwrap_err();
    assert!(matches!(error, AskError::Silent { .. }), "{error}");
}

#[test]
fn bad_requests_are_answered_with_a_sentence() {
    let directory = tempfile::tempdir().unwrap();
    let mut control = open(directory.path());
    let path = control.path().to_owned();
    for (bytes, expected) in [
        (&b"status\n"[..], "this is not a request; send one line such as {\"request\":\"status\"}"),
        (b"{\"request\":5}\n", "this is not a request; send one line such as {\"request\":\"status\"}"),
        (
            b"{\"request\":\"stop\"}\n",
            "there is no request \"stop\" in this version; there are \"ping\", \"status\", \"path\", \"trace\", \"tables\", \"log\", \
             \"config\", \"let_go\" and \"capture\"",
        ),
        (&[b'x'; MAX_REQUEST + 1], "a request has at most 32768 bytes"),
    ] {
        let text = while_serving(&mut control, answer, || talk(&path, bytes));
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["error"], expected);
    }
}

#[test]
fn a_request_may_come_in_pieces_and_end_with_the_stream() {
    let directory = tempfile::tempdir().unwrap();
    let mut control = open(directory.path());
    let path = control.path().to_owned();
    let text = while_serving(&mut control, answer, || {
        let mut stream = UnixStream::connect(&path).unwrap();
        for piece in ["{\"req", "uest\":", "\"ping\"}"] {
            stream.write_all(piece.as_bytes()).unwrap();
            std::thread::sleep(Duration::from_millis(20));
        }
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    });
    assert_eq!(text, "{\"pid\":7}\n");
}

#[test]
fn a_long_answer_arrives_whole_at_a_slow_reader() {
    let directory = tempfile::tempdir().unwrap();
    let mut control = open(directory.path());
    let path = control.path().to_owned();
    let sentence = "x".repeat(3 << 20);
    let text = while_serving(
        &mut control,
        |_| Response::Error(sentence.clone()),
        || {
            let mut stream = UnixStream::connect(&path).unwrap();
            stream.write_all(b"{\"request\":\"ping\"}\n").unwrap();
            let mut text = Vec::new();
            let mut buffer = vec![0; 1 << 18];
            loop {
                std::thread::sleep(Duration::from_millis(5));
                match stream.read(&mut buffer).unwrap() {
                    0 => break,
                    count => text.extend_from_slice(&buffer[..count]),
                }
            }
            text
        },
    );
    assert_eq!(text.len(), sentence.len() + "{\"error\":\"\"}\n".len());
}

#[test]
fn stuck_clients_never_keep_others_out_for_long() {
    let directory = tempfile::tempdir().unwrap();
    let mut control = open(directory.path());
    let path = control.path().to_owned();
    let start = Instant::now();
    let line = while_serving(&mut control, answer, || {
        let _stuck: Vec<_> = (0..MAX_CLIENTS).map(|_| UnixStream::connect(&path).unwrap()).collect();
        ask("test", &path, Request::Ping, Duration::from_secs(10)).unwrap()
    });
    assert_eq!(line, "{\"pid\":7}");
    assert!(start.elapsed() >= REQUEST_TIME && start.elapsed() < REQUEST_TIME * 3, "{:?}", start.elapsed());
    assert!(control.clients() <= 1);
}

#[test]
fn a_client_that_never_reads_is_ended() {
    let directory = tempfile::tempdir().unwrap();
    let mut control = open(directory.path());
    let mut stream = UnixStream::connect(control.path()).unwrap();
    stream.write_all(b"{\"request\":\"ping\"}\n").unwrap();
    control.serve(|_| Response::Error("x".repeat(3 << 20)));
    assert_eq!(control.clients(), 1);
    let deadline = control.next_deadline().unwrap();
    control.end_slow(deadline - Duration::from_millis(1));
    assert_eq!(control.clients(), 1);
    control.end_slow(deadline);
    assert_eq!((control.clients(), control.next_deadline()), (0, None));
}

#[test]
fn an_idle_socket_does_not_spin() {
    let directory = tempfile::tempdir().unwrap();
    let mut control = open(directory.path());
    let ready = |control: &Control| poll(&mut control.poll_fds().collect::<Vec<_>>(), PollTimeout::ZERO).unwrap();
    assert_eq!(ready(&control), 0);
    let _stuck: Vec<_> = (0..MAX_CLIENTS + 3).map(|_| UnixStream::connect(control.path()).unwrap()).collect();
    assert_eq!(ready(&control), 1);
    control.serve(answer);
    assert_eq!(control.clients(), MAX_CLIENTS);
    assert_eq!(ready(&control), 0, "those that wait for a place do not wake the daemon");
}

#[test]
fn a_status_of_another_schema_is_not_misread() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("test.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let answer = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 100]);
        stream.write_all(b"{\"schema\":2}\n").unwrap();
    });
    let line = ask("test", &path, Request::Status, PATIENCE).unwrap();
    answer.join().unwrap();
    let error = client::understand("test", &line).unwrap_err().to_string();
    assert!(error.contains("schema 2 instead of 1"), "{error}");
    assert!(client::understand("test", "{}").unwrap_err().to_string().contains("it has no schema"));
    assert!(client::understand("test", "{\"schema\":1}").unwrap_err().to_string().contains("missing field"));
}

#[test]
fn every_request_is_read_as_it_was_written() {
    let question = serde_json::from_str("{\"from\":\"a\",\"to\":\"b\"}").unwrap();
    for request in [
        Request::Ping,
        Request::Status,
        Request::Path { path: "kernel".to_owned(), ports: vec!["veth0".to_owned()] },
        Request::Trace(question),
        Request::Tables { table: crate::tables::Table::Neighbours, offset: 4096 },
        Request::Log,
        Request::Config,
    ] {
        assert_eq!(Request::parse(request.line().as_bytes()).as_ref(), Ok(&request));
    }
    for wrong in [
        "{\"request\":\"tables\"}",
        "{\"request\":\"tables\",\"table\":\"fib5\"}",
        "{\"request\":\"tables\",\"table\":\"fdb\",\"offset\":-1}",
    ] {
        assert_eq!(Request::parse(wrong.as_bytes()), Err(BadRequest::Malformed));
    }
}

proptest! {
    #[test]
    fn any_bytes_get_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Request::parse(&bytes);
    }

    #[test]
    fn any_bytes_over_the_socket_leave_it_working(bytes in proptest::collection::vec(any::<u8>(), 0..6000)) {
        let directory = tempfile::tempdir().unwrap();
        let mut control = open(directory.path());
        let path = control.path().to_owned();
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(&bytes).unwrap();
        drop(stream);
        let line = while_serving(&mut control, answer, || ask("test", &path, Request::Ping, PATIENCE).unwrap());
        prop_assert_eq!(line, "{\"pid\":7}");
    }
}
