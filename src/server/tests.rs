use super::*;
use crate::server::readiness::reason;
use crate::server::views_api::{AlertCount, LastValue, RuleSeries, ViewAnswer, ViewRequest, WorkerView};

/// A server on a free port with two workers that answer from what they are given, stopped when dropped.
struct Served {
    url: String,
    state: ServerState,
    shutdown: watch::Sender<bool>,
    _runtime: tokio::runtime::Runtime,
}

fn alert(sensor: &str, severity: &str, since: i64) -> FiringAlert {
    FiringAlert {
        alert: format!("{since:032x}"),
        rule: "too-hot".into(),
        severity: severity.into(),
        sensor: sensor.into(),
        metric: "temperature".into(),
        site: Some("north".into()),
        start: since,
        since,
        value: Some(36.5),
    }
}

fn answer(worker: i64, query: &ViewQuery) -> ViewAnswer {
    match query {
        ViewQuery::Alerts => ViewAnswer::Alerts(vec![
            alert(&format!("s-{worker}"), "warning", 1_700_000_000_000_000 + worker),
            alert("<img src=x onerror=alert(1)>", "critical", 1_700_000_000_000_010 + worker),
        ]),
        ViewQuery::AlertCounts => ViewAnswer::AlertCounts(vec![AlertCount {
            rule: "too-hot".into(),
            site: Some("north".into()),
            severity: "warning".into(),
            firing: 2,
        }]),
        ViewQuery::Rules => ViewAnswer::Rules(vec![RuleSeries { rule: "too-hot".into(), series: 7 }]),
        ViewQuery::Last { sensor, .. } => ViewAnswer::Last(vec![LastValue {
            sensor: sensor.clone().unwrap_or_else(|| format!("s-{worker}")),
            metric: format!("m-{worker}"),
            time: worker,
            value: 0.5,
        }]),
    }
}

fn serve_here(workers: i64) -> Served {
    let views = Arc::new(Views::new(2));
    for worker in 0..workers {
        let (view, requests) = WorkerView::new(Arc::new(|| ()));
        views.attach(view);
        std::thread::spawn(move || {
            for ViewRequest { query, reply } in requests {
                let _ = reply.send(answer(worker, &query));
            }
        });
    }
    let process = Process { process: 0, processes: 1, workers: 2, started_ms: 1_700_000_000_000, term: 3 };
    let state = ServerState { metrics: Metrics::new().unwrap(), readiness: Arc::default(), views, process };
    let listener = bind("127.0.0.1:0".parse().unwrap(), 1).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (shutdown, stop) = watch::channel(false);
    runtime.spawn(serve(listener, state.clone(), stop));
    Served { url, state, shutdown, _runtime: runtime }
}

impl Served {
    fn request(&self, path: &str, host: Option<&str>) -> ureq::http::Response<ureq::Body> {
        let agent = ureq::Agent::config_builder().http_status_as_error(false).proxy(None).build().new_agent();
        let mut request = agent.get(format!("{}{path}", self.url));
        if let Some(host) = host {
            request = request.header("host", host);
        }
        request.call().unwrap()
    }
    fn text(&self, path: &str) -> (u16, String) {
        let mut response = self.request(path, None);
        (response.status().as_u16(), response.body_mut().read_to_string().unwrap())
    }
    fn json(&self, path: &str) -> (u16, serde_json::Value) {
        let (status, text) = self.text(path);
        (status, serde_json::from_str(&text).unwrap_or_else(|e| panic!("{path}: {e}: {text}")))
    }
}

#[test]
fn metrics_are_served_as_text() {
    let served = serve_here(2);
    served.state.metrics.epochs_total.inc_by(5);
    let (status, text) = served.text("/metrics");
    assert_eq!(status, 200);
    assert!(text.contains("streamgauge_epochs_total 5"), "{text}");
    assert_eq!(served.request("/metrics", None).headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
}

#[test]
fn alive_and_ready_are_two_things_and_each_problem_is_named() {
    let served = serve_here(2);
    assert_eq!(served.text("/healthz"), (200, "ok\n".to_owned()));
    let (status, body) = served.json("/readyz");
    assert_eq!((status, &body["problems"][0]["reason"]), (503, &json!("starting")));
    let readiness = &served.state.readiness;
    readiness.set(reason::STARTING, None);
    assert_eq!(served.json("/readyz"), (200, json!({ "ready": true, "problems": [] })));
    readiness.set_for(reason::SOURCE_DOWN, "plant", Some("kafka1:9092 does not answer".into()));
    readiness.set_for(reason::SOURCE_DOWN, "other", Some("kafka2:9092 does not answer".into()));
    readiness.set_for(reason::SOURCE_DOWN, "other", None);
    let problem = json!({ "reason": "source_down", "about": "plant", "problem": "kafka1:9092 does not answer" });
    assert_eq!(served.json("/readyz"), (503, json!({ "ready": false, "problems": [problem] })));
    assert_eq!(served.text("/healthz").0, 200);
}

#[test]
fn alerts_are_asked_of_all_workers_sorted_and_filtered() {
    let served = serve_here(2);
    let (status, body) = served.json("/api/v1/alerts");
    assert_eq!((status, &body["total"]), (200, &json!(4)));
    let since: Vec<_> = body["alerts"].as_array().unwrap().iter().map(|a| a["since"].as_i64().unwrap()).collect();
    assert!(since.is_sorted_by(|a, b| a > b), "the newest first: {since:?}");
    assert_eq!(served.json("/api/v1/alerts?severity=warning&sensor=s-1").1["total"], 1);
    assert_eq!(served.json("/api/v1/alerts?rule=too-hot&site=north").1["total"], 4);
    assert_eq!(served.json("/api/v1/alerts?site=south").1["total"], 0);
    let (_, body) = served.json("/api/v1/alerts?limit=1");
    assert_eq!((body["alerts"].as_array().unwrap().len(), &body["total"]), (1, &json!(4)));
}

#[test]
fn the_other_views_are_merged_too() {
    let served = serve_here(2);
    let count = json!({ "rule": "too-hot", "site": "north", "severity": "warning", "firing": 4 });
    assert_eq!(served.json("/api/v1/alerts/counts").1, json!({ "counts": [count] }));
    assert_eq!(served.json("/api/v1/rules").1, json!({ "rules": [{ "rule": "too-hot", "series": 14 }] }));
    let (_, body) = served.json("/api/v1/last?sensor=b%2017");
    assert_eq!(body["last"][1], json!({ "sensor": "b 17", "metric": "m-1", "time": 1, "value": 0.5 }));
}

#[test]
fn bad_questions_get_a_sentence() {
    let served = serve_here(1);
    let (status, body) = served.json("/api/v1/alerts?colour=red");
    assert_eq!(status, 400);
    assert!(body["error"].as_str().unwrap().contains("unknown field `colour`"), "{body}");
    assert_eq!(served.json("/api/v1/last?limit=-1").0, 400);
    let (status, body) = served.json("/api/v2/alerts");
    assert_eq!(status, 404);
    assert!(body["error"].as_str().unwrap().starts_with("there is nothing at /api/v2/alerts"), "{body}");
    let (status, body) = served.json("/api/v1/rules");
    assert_eq!((status, body["error"].as_str().unwrap()), (503, "the workers are starting; try again in a moment"));
}

#[test]
fn status_is_what_the_metrics_say() {
    let served = serve_here(0);
    let metrics = &served.state.metrics;
    metrics.partition("plant", "t", 0).records.inc_by(4);
    metrics.partition("plant", "t", 1).records.inc_by(3);
    metrics.partition("plant", "t", 1).readings_imbalance.set(-2);
    metrics.readings_total.with_label_values(&["plant", "accepted"]).inc_by(6);
    metrics.alerts.with_label_values(&["too-hot", "warning", "firing"]).set(2);
    metrics.sink_up.with_label_values(&["redis"]).set(0);
    metrics.epoch_duration_seconds.observe(0.5);
    let (status, body) = served.json("/api/v1/status");
    assert_eq!(status, 200);
    assert_eq!((&body["records"], &body["imbalance"], &body["term"]), (&json!(7), &json!(2), &json!(3)));
    assert_eq!(body["readings"]["accepted"], 6);
    assert_eq!(body["alerts"]["firing"]["warning"], 2);
    assert_eq!(body["sinks_up"], json!({ "redis": false }));
    assert_eq!(body["epoch_duration_seconds_mean"], 0.5);
    assert_eq!(body["checkpoint_time"], json!(null));
}

#[test]
fn the_page_needs_nothing_from_elsewhere_and_runs_nothing_inline() {
    let served = serve_here(2);
    for path in ["/", "/page.js", "/page.css", "/icon.svg"] {
        let (status, text) = served.text(path);
        assert_eq!(status, 200, "{path}");
        let text = text.replace("http://www.w3.org/2000/svg", "");
        for foreign in ["http:", "https:", "//cdn", "@import", "url(", "innerHTML", "outerHTML", "document.write"] {
            assert!(!text.contains(foreign), "{path} has {foreign}");
        }
        for inline in ["<style", "style=", " onclick", " onload", "<script>"] {
            assert!(!text.contains(inline), "{path} has {inline}, which our own policy forbids");
        }
        let response = served.request(path, None);
        assert_eq!(response.headers()["x-content-type-options"], "nosniff");
        assert!(response.headers()["content-security-policy"].to_str().unwrap().starts_with("default-src 'self'"));
    }
}

#[test]
fn a_foreign_name_that_points_here_is_refused() {
    let served = serve_here(2);
    assert_eq!(served.request("/api/v1/status", Some("evil.example:7070")).status(), 421);
    for host in ["localhost:7070", "LOCALHOST", "127.0.0.1:7070", "[::1]:7070", "10.0.0.7"] {
        assert_eq!(served.request("/api/v1/status", Some(host)).status(), 200, "{host}");
    }
    assert!(!is_this_machine("localhost.evil.example") && !is_this_machine("") && !is_this_machine("localhost:x"));
}

#[test]
fn a_port_in_use_is_a_sentence_and_processes_take_the_next_ports() {
    let taken = bind("127.0.0.1:0".parse().unwrap(), 0).unwrap();
    let address = taken.local_addr().unwrap();
    let error = bind(address, 0).unwrap_err().to_string();
    assert!(error.starts_with(&format!("server.listen: cannot listen on {address}: ")), "{error}");
    assert!(error.ends_with("stop that or choose another port"), "{error}");
    let error = bind("127.0.0.1:65535".parse().unwrap(), 1).unwrap_err().to_string();
    assert!(error.contains("choose a lower port"), "{error}");
}

#[test]
fn the_server_ends_when_it_is_told_to() {
    let mut served = serve_here(2);
    assert_eq!(served.text("/healthz").0, 200);
    let listener = bind("127.0.0.1:0".parse().unwrap(), 0).unwrap();
    let (shutdown, stop) = watch::channel(false);
    let server = served._runtime.spawn(serve(listener, served.state.clone(), stop));
    served.shutdown = shutdown;
    served.shutdown.send(true).unwrap();
    served._runtime.block_on(server).unwrap().unwrap();
}
