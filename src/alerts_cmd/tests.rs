use super::*;
use clap::Parser;
use std::fs;
use std::io::Read;
use std::net::TcpListener;

fn args(args: &[&str]) -> Args {
    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }
    Cli::try_parse_from([&["alerts"], args].concat()).unwrap().args
}

fn line(epoch: u64, n: u32, state: &str, sensor: &str, start: i64, time: i64) -> String {
    let (alert, transition) = (format!("{sensor:0>32}"), u8::from(state == "resolved"));
    format!(
        "{{\"epoch\":{epoch},\"n\":{n},\"time\":{time},\"state\":\"{state}\",\"rule\":\"too-hot\",\"severity\":\"warning\",\
         \"sensor\":\"{sensor}\",\"metric\":\"temperature\",\"value\":36.25,\"start\":{start},\"ordinal\":0,\"behind\":false,\
         \"alert\":\"{alert}\",\"transition\":{transition},\"version\":\"00000000\"}}\n"
    )
}

const T: i64 = 1_700_000_000_000_000;

fn journal(lines: &[String]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("journal.jsonl"), lines.concat()).unwrap();
    dir
}

fn listed(wanted: &[&str], dir: &Path) -> String {
    let mut out = Vec::new();
    from_journal(&args(wanted), dir, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn the_journal_says_what_fires_and_with_all_what_fired() {
    let lines = [
        line(1000, 1, "firing", "a-1", T, T + 5_000_000),
        line(1000, 2, "firing", "b-2", T, T),
        line(1020, 1, "resolved", "b-2", T, T + 14_000_000),
    ];
    let dir = journal(&lines);
    let expected = "\
severity  rule     sensor  metric       value  since (UTC)          alert
warning   too-hot  a-1     temperature  36.25  2023-11-14 22:13:25  00000000
";
    assert_eq!(listed(&["--journal"], dir.path()), expected);
    let expected = "\
severity  rule     sensor  metric       value  start (UTC)          lasted  alert
warning   too-hot  b-2     temperature  36.25  2023-11-14 22:13:20  14 s    00000000
warning   too-hot  a-1     temperature  36.25  2023-11-14 22:13:20  fires   00000000
";
    assert_eq!(listed(&["--all"], dir.path()), expected);
    assert_eq!(listed(&["--journal", "--sensor", "b-2"], dir.path()), "no alert fires\n");
    assert_eq!(listed(&["--journal", "--json"], dir.path()), lines[0]);
    assert_eq!(listed(&["--all", "--json", "--sensor", "b-2"], dir.path()), lines[1..].concat());
}

#[test]
fn a_journal_that_is_cut_back_and_written_again_is_followed_without_repeating() {
    let lines: Vec<_> = (0..4).map(|i| line(1000 + i, 1, "firing", &format!("s-{i}"), T, T)).collect();
    let dir = journal(&lines[..3]);
    let path = dir.path().join("journal.jsonl");
    let mut journal = Journal::open(dir.path()).unwrap();
    let mut read = || {
        let mut sensors = Vec::new();
        let each = |line: Line, _: &str| {
            sensors.push(line.sensor);
            Ok(())
        };
        journal.read(each).unwrap();
        sensors
    };
    assert_eq!(read(), ["s-0", "s-1", "s-2"]);
    fs::write(&path, lines[..1].concat()).unwrap();
    assert!(read().is_empty());
    fs::write(&path, lines.concat() + "{\"epoch\":1004,\"n\"").unwrap();
    assert_eq!(read(), ["s-3"]);
    assert!(read().is_empty());
}

#[test]
fn no_journal_and_a_damaged_one_are_sentences() {
    let dir = tempfile::tempdir().unwrap();
    let error = from_journal(&args(&["--journal"]), dir.path(), &mut Vec::new()).unwrap_err().to_string();
    assert!(error.starts_with("there is no journal at "), "{error}");
    let dir = journal(&["{}\n".to_owned()]);
    let error = from_journal(&args(&["--journal"]), dir.path(), &mut Vec::new()).unwrap_err().to_string();
    assert!(error.ends_with("journal.jsonl at byte 0 is no line of a journal"), "{error}");
}

/// Answers one request with this and hands back what was asked.
fn answering(status: &'static str, body: &'static str) -> (String, std::thread::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = Vec::new();
        let mut byte = [0];
        while !request.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).unwrap();
            request.push(byte[0]);
        }
        write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
            .unwrap();
        String::from_utf8(request).unwrap().lines().next().unwrap().to_owned()
    });
    (url, thread)
}

#[test]
fn the_api_is_asked_with_the_filters_and_shown_as_a_table() {
    let body = r#"{"total":2,"alerts":[{"alert":"a1f3c9d2e4","rule":"too-hot","severity":"warning","sensor":"b\u009b17",
        "metric":"temperature","site":"north","start":1700000000000000,"since":1700000005000000,"value":0.30000000000000004}]}"#;
    let (url, asked) = answering("200 OK", body);
    let args = args(&["--url", &format!("{url}/"), "--site", "north wing"]);
    let mut out = Vec::new();
    write_answer(&args, &ask(&args).unwrap(), &mut out).unwrap();
    assert_eq!(asked.join().unwrap(), "GET /api/v1/alerts?limit=10000&site=north%20wing HTTP/1.1");
    let expected = "\
severity  rule     sensor     site   metric       value  since (UTC)          alert
warning   too-hot  b\\u{9b}17  north  temperature    0.3  2023-11-14 22:13:25  a1f3c9d2
the newest 1 of 2; --rule, --severity, --site or --sensor narrow them down
";
    assert_eq!(String::from_utf8(out).unwrap(), expected);
}

#[test]
fn nobody_there_someone_else_there_and_a_program_that_starts_are_told_apart() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = ask(&args(&["--url", &format!("http://{closed}")])).unwrap_err();
    assert_eq!(error.downcast_ref::<Failure>().unwrap().code, crate::error::Exit::Unreachable, "{error}");
    assert!(error.to_string().ends_with("`alerts --journal` reads the journal instead"), "{error}");
    let (url, _) = answering("503 Service Unavailable", r#"{"error":"the workers are starting"}"#);
    let error = ask(&args(&["--url", &url])).unwrap_err();
    assert_eq!(error.to_string(), format!("{url} answers 503: the workers are starting"));
    let (url, _) = answering("404 Not Found", "<h1>Not Found</h1>");
    assert_eq!(
        ask(&args(&["--url", &url])).unwrap_err().to_string(),
        format!("{url} answers 404: it is no streamgauge")
    );
    let (url, _) = answering("200 OK", "hello");
    assert_eq!(
        ask(&args(&["--url", &url])).unwrap_err().to_string(),
        format!("{url} answers, but not as streamgauge does")
    );
}

fn firing(alert: &str) -> FiringAlert {
    let [rule, severity, sensor, metric] = ["too-hot", "warning", "b-17", "temperature"].map(str::to_owned);
    let (alert, site, start, since, value) = (alert.to_owned(), None, T, T, Some(36.2));
    FiringAlert { alert, rule, severity, sensor, metric, site, start, since, value }
}

#[test]
fn following_the_api_prints_changes_only() {
    let mut known = BTreeMap::new();
    let mut changes = |total: usize, alerts: &[&str]| {
        let answer = Answer { total, alerts: alerts.iter().copied().map(firing).collect() };
        let mut out = Vec::new();
        write_changes(&args(&[]), &mut known, &answer, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    };
    let first = changes(1, &["a1"]);
    assert_eq!(first, "2023-11-14 22:13:20  ▲ warning   too-hot              b-17         temperature      36.2  a1\n");
    assert_eq!(changes(1, &["a1"]), "");
    let second = changes(1, &["b2"]);
    assert_eq!((second.matches('▼').count(), second.matches('▲').count()), (1, 1), "{second}");
    // An answer that was cut off is no reason to call anything resolved.
    assert_eq!(changes(2, &["c3"]).matches(['▲', '▼']).collect::<String>(), "▲");
    assert_eq!(changes(2, &["c3", "b2"]), "");
}
