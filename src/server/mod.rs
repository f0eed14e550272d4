//! The page, the API and what Prometheus and a supervisor ask: read only, by default for this machine only.
//!
//! The port is taken before anything else starts, so that a port in use is a sentence and not half a program. Views are
//! answered by the workers (`views_api`); status comes from the metrics; nothing here keeps a copy of either.

pub mod readiness;
pub mod status;
pub mod views_api;

use crate::error::Failure;
use crate::metrics::Metrics;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use readiness::Readiness;
use serde::{Deserialize, Serialize};
use serde_json::json;
use status::{Process, Status};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use views_api::{AskError, FiringAlert, ViewQuery, Views};

/// Everything that the server reads.
#[derive(Clone)]
pub struct ServerState {
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// The problems.
    pub readiness: Arc<Readiness>,
    /// The ways to the workers.
    pub views: Arc<Views>,
    /// The process.
    pub process: Process,
}

/// Why the port could not be taken; the configuration's fault, exit code 2.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Too high a port for this process.
    #[error(
        "server.listen: process {index} would listen on port {port} + {index}, but ports end at 65535; choose a lower port"
    )]
    PortTooHigh {
        /// The configured port.
        port: u16,
        /// The process.
        index: usize,
    },
    /// The system refuses.
    #[error("server.listen: cannot listen on {address}: {error}; {help}")]
    Refused {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        error: io::Error,
        /// What would be right.
        help: &'static str,
    },
}

impl From<BindError> for Failure {
    fn from(error: BindError) -> Self {
        Self::configuration(error)
    }
}

/// Takes the port of process `index`: the configured one plus its index, or any if that is 0.
pub fn bind(listen: SocketAddr, index: usize) -> Result<TcpListener, BindError> {
    let mut address = listen;
    if listen.port() != 0 {
        let port = u16::try_from(index).ok().and_then(|index| listen.port().checked_add(index));
        address.set_port(port.ok_or(BindError::PortTooHigh { port: listen.port(), index })?);
    }
    TcpListener::bind(address).map_err(|error| {
        let help = match error.kind() {
            io::ErrorKind::AddrInUse => {
                "another program (or another streamgauge) has it; stop that or choose another port"
            }
            io::ErrorKind::PermissionDenied => "ports below 1024 are for root; choose a higher one",
            io::ErrorKind::AddrNotAvailable => {
                "this machine has no such address; 127.0.0.1 is this machine only, 0.0.0.0 all its networks"
            }
            _ => "choose another address",
        };
        BindError::Refused { address, error, help }
    })
}

/// Serves until `shutdown` becomes true (or its sender is gone); then what is under way has two seconds.
pub async fn serve(listener: TcpListener, state: ServerState, mut shutdown: watch::Receiver<bool>) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let local = listener.local_addr()?.ip().is_loopback();
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let mut stop = shutdown.clone();
    let stopped = async move {
        let _ = stop.wait_for(|stop| *stop).await;
    };
    let patience = async move {
        let _ = shutdown.wait_for(|stop| *stop).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
    };
    let server = axum::serve(listener, router(state, local)).with_graceful_shutdown(stopped);
    tokio::select! {
        result = server => result,
        () = patience => Ok(()),
    }
}

fn router(state: ServerState, local: bool) -> Router {
    let mut router = Router::new()
        .route("/", get(|| async { asset("text/html; charset=utf-8", include_str!("page.html")) }))
        .route("/page.js", get(|| async { asset("text/javascript; charset=utf-8", include_str!("page.js")) }))
        .route("/page.css", get(|| async { asset("text/css; charset=utf-8", include_str!("page.css")) }))
        .route("/icon.svg", get(|| async { asset("image/svg+xml", include_str!("icon.svg")) }))
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/api/v1/alerts", get(alerts))
        .route("/api/v1/alerts/counts", get(alert_counts))
        .route("/api/v1/rules", get(rules))
        .route("/api/v1/last", get(last))
        .route("/api/v1/status", get(status))
        .fallback(|uri: Uri| async move {
            let paths = "/ /metrics /healthz /readyz /api/v1/{status,alerts,alerts/counts,rules,last}";
            error(StatusCode::NOT_FOUND, format!("there is nothing at {}; there is {paths}", uri.path()))
        })
        .with_state(state);
    if local {
        router = router.layer(middleware::from_fn(only_this_machine));
    }
    router.layer(middleware::map_response(guard))
}

/// What keeps a browser from doing more with our answers than it should.
async fn guard(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
        ),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// On loopback, answers only to this machine's names: else any web page could point a name of its own at 127.0.0.1 and
/// read along (DNS rebinding).
async fn only_this_machine(request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).map(|host| host.to_str().unwrap_or("").to_owned());
    if host.as_deref().is_none_or(is_this_machine) {
        return next.run(request).await;
    }
    let help = "this server listens on loopback and answers to localhost or an IP address only; a proxy before it sets \
                the header Host to one of them";
    error(StatusCode::MISDIRECTED_REQUEST, help.to_owned())
}

fn is_this_machine(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[').and_then(|host| host.split_once(']')) {
        Some((name, port)) => (name, port.strip_prefix(':')),
        None => host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port))),
    };
    let port = port.is_none_or(|port| port.parse::<u16>().is_ok());
    port && (name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok())
}

fn asset(kind: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

fn error(status: StatusCode, error: String) -> Response {
    (status, Json(json!({ "error": error }))).into_response()
}

impl IntoResponse for AskError {
    fn into_response(self) -> Response {
        error(StatusCode::SERVICE_UNAVAILABLE, self.to_string())
    }
}

async fn metrics(State(state): State<ServerState>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], state.metrics.render()).into_response()
}

async fn readyz(State(state): State<ServerState>) -> Response {
    let problems = state.readiness.problems();
    let status = if problems.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "ready": problems.is_empty(), "problems": problems }))).into_response()
}

async fn status(State(state): State<ServerState>) -> Json<Status> {
    Json(Status::now(&state.process, &state.metrics, &state.readiness))
}

/// The query of `/api/v1/alerts`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct AlertFilter {
    rule: Option<String>,
    site: Option<String>,
    severity: Option<String>,
    sensor: Option<String>,
    limit: Option<usize>,
}

impl AlertFilter {
    fn admits(&self, alert: &FiringAlert) -> bool {
        let is = |wanted: &Option<String>, found: &str| wanted.as_deref().is_none_or(|wanted| wanted == found);
        is(&self.rule, &alert.rule)
            && is(&self.site, alert.site.as_deref().unwrap_or(""))
            && is(&self.severity, &alert.severity)
            && is(&self.sensor, &alert.sensor)
    }
}

/// The query of `/api/v1/last`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct LastFilter {
    sensor: Option<String>,
    limit: Option<usize>,
}

/// An answer is never larger than this, whatever is asked for.
const LIMIT_MAX: usize = 10_000;

fn limit(asked: Option<usize>) -> usize {
    asked.unwrap_or(1000).min(LIMIT_MAX)
}

/// `total` alerts fire that the filter admits; the newest `limit` of them are here.
#[derive(Serialize)]
struct Alerts {
    total: usize,
    alerts: Vec<FiringAlert>,
}

async fn alerts(
    State(state): State<ServerState>,
    filter: Result<Query<AlertFilter>, QueryRejection>,
) -> Result<Response, Response> {
    let Query(filter) = filter.map_err(|rejection| error(StatusCode::BAD_REQUEST, rejection.body_text()))?;
    let answer = state.views.ask(ViewQuery::Alerts).await.map_err(IntoResponse::into_response)?;
    let mut alerts = answer.alerts().unwrap_or_default();
    alerts.retain(|alert| filter.admits(alert));
    let total = alerts.len();
    alerts.truncate(limit(filter.limit));
    Ok(Json(Alerts { total, alerts }).into_response())
}

async fn alert_counts(State(state): State<ServerState>) -> Result<Response, AskError> {
    let counts = state.views.ask(ViewQuery::AlertCounts).await?.alert_counts().unwrap_or_default();
    Ok(Json(json!({ "counts": counts })).into_response())
}

async fn rules(State(state): State<ServerState>) -> Result<Response, AskError> {
    let rules = state.views.ask(ViewQuery::Rules).await?.rules().unwrap_or_default();
    Ok(Json(json!({ "rules": rules })).into_response())
}

async fn last(
    State(state): State<ServerState>,
    filter: Result<Query<LastFilter>, QueryRejection>,
) -> Result<Response, Response> {
    let Query(LastFilter { sensor, limit: asked }) =
        filter.map_err(|rejection| error(StatusCode::BAD_REQUEST, rejection.body_text()))?;
    let query = ViewQuery::Last { sensor, limit: limit(asked) };
    let last = state.views.ask(query).await.map_err(IntoResponse::into_response)?;
    Ok(Json(json!({ "last": last.last().unwrap_or_default() })).into_response())
}

#[cfg(test)]
mod tests;
