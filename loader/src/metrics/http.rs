//! The metrics over HTTP: `GET /metrics`.
//!
//! A thread of its own answers one request after the other. It asks the daemon through the control socket like any other
//! program, so a scrape costs the daemon what `podlane status` costs it, and a slow or hostile reader holds up nobody but other
//! readers. The address is not on the pod network unless somebody configures one that is.

use std::io::Cursor;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use tiny_http::{Header, Method, Request, Response};

use crate::control;
use crate::privileges;

/// Where metrics are told if the configuration says nothing.
pub const DEFAULT_ADDRESS: &str = "127.0.0.1:9477";
/// How long the daemon may take to answer a scrape; Prometheus itself waits ten seconds.
const PATIENCE: Duration = Duration::from_secs(4);

/// The address cannot be used.
#[derive(Debug, thiserror::Error)]
#[error(
    "metrics are not served: {address}: {source}; set `metrics_address` to an address of this node and a free port, or \
     to \"off\""
)]
pub struct HttpError {
    address: SocketAddr,
    source: Box<dyn std::error::Error + Send + Sync>,
}

/// The server; it ends when this is dropped, after the answer that it is at. Nobody waits for that, since the answer may wait
/// for whoever drops this.
pub struct Server {
    http: Arc<tiny_http::Server>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Server").field("address", &self.http.server_addr().to_ip()).finish()
    }
}

impl Server {
    /// Serves the metrics of the daemon `instance` at `address`; port 0 is any.
    ///
    /// # Errors
    /// If the address cannot be listened at.
    pub fn start(address: SocketAddr, instance: &str) -> Result<Self, HttpError> {
        let failed = |source| HttpError { address, source };
        // Listening may take a capability; the threads, which inherit what their maker has, need none.
        let listener = TcpListener::bind(address).map_err(|error| failed(error.into()))?;
        let (report, made) = mpsc::sync_channel(1);
        let instance = instance.to_owned();
        let serve = move || {
            privileges::renounce();
            match tiny_http::Server::from_listener(listener, None).map(Arc::new) {
                Ok(http) => {
                    let _ = report.send(Ok(Arc::clone(&http)));
                    http.incoming_requests().for_each(|request| answer(request, &instance));
                }
                Err(error) => {
                    let _ = report.send(Err(error));
                }
            }
        };
        let thread = std::thread::Builder::new().name("podlane-metrics".to_owned()).spawn(serve);
        thread.map_err(|error| failed(error.into()))?;
        let http = made.recv().map_err(|error| failed(error.into()))?.map_err(failed)?;
        Ok(Server { http })
    }

    /// Where it listens.
    pub fn address(&self) -> Option<SocketAddr> {
        self.http.server_addr().to_ip()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.http.unblock();
    }
}

fn answer(request: Request, instance: &str) {
    let response = match (request.method(), request.url()) {
        (Method::Get | Method::Head, "/metrics") => scrape(instance, knows_openmetrics(&request)),
        (Method::Get | Method::Head, "/") => {
            text(200, "text/plain; charset=utf-8", "Podlane. Metrics are at /metrics.\n")
        }
        (Method::Get | Method::Head, _) => text(404, "text/plain; charset=utf-8", "There is only /metrics here.\n"),
        _ => text(405, "text/plain; charset=utf-8", "Only GET is understood here.\n"),
    };
    if let Err(error) = request.respond(response) {
        tracing::debug!(%error, "a reader of the metrics left early");
    }
}

/// Whether the reader takes OpenMetrics; one that does not say what it takes, does.
fn knows_openmetrics(request: &Request) -> bool {
    let accepts = |kind: &str| {
        let mut headers = request.headers().iter().filter(|header| header.field.equiv("Accept"));
        headers.any(|header| header.value.as_str().contains(kind))
    };
    accepts("application/openmetrics-text") || !accepts("text/plain")
}

fn scrape(instance: &str, openmetrics: bool) -> Response<Cursor<Vec<u8>>> {
    let told = control::ask_status(instance, PATIENCE).map_err(|error| error.to_string());
    match told.and_then(|(_, status)| super::encode(status).map_err(|error| error.to_string())) {
        Ok(metrics) if openmetrics => text(200, super::MEDIA_TYPE, &metrics),
        Ok(metrics) => text(200, super::CLASSIC_MEDIA_TYPE, &super::classic(&metrics)),
        Err(sentence) => text(503, "text/plain; charset=utf-8", &format!("{sentence}\n")),
    }
}

fn text(code: u16, kind: &'static str, body: &str) -> Response<Cursor<Vec<u8>>> {
    let response = Response::from_string(body).with_status_code(code);
    match Header::from_bytes("Content-Type", kind) {
        Ok(header) => response.with_header(header),
        Err(()) => response,
    }
}
