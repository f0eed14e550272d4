//! What a mistake at the start gets, and what bad input gets: a sentence and a code, a dead letter and a reason.

use crate::program::{free_port, journal, run_until_end, streamgauge, succeed};
use crate::running::{Plain, records, send};
use crate::same::{same_journal, what_must_be};
use crate::servers::{Kafka, Redis};
use base64::Engine;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What can be wrong at the start; what is empty is as it should be.
struct Given {
    bootstrap: String,
    properties: &'static str,
    topic: &'static str,
    data: PathBuf,
    port: u16,
    more: String,
}

impl Given {
    fn text(&self) -> String {
        let Given { bootstrap, properties, topic, data, port, more } = self;
        let data = data.display();
        format!(
            "data_dir = \"{data}\"\nserver.listen = \"127.0.0.1:{port}\"\n{more}\n\
             [sources.plant]\ntype = \"kafka\"\nbootstrap_servers = \"{bootstrap}\"\ntopics = [\"{topic}\"]\n\
             decode = {{ id = \"/id\", sensor = \"/sensor\", metric = \"/type\", value = \"/value\", time = \"/time\" }}\n\
             {properties}\n\
             [rules.hot]\nmetric = \"temperature\"\nwhen.above = 30.0\n"
        )
    }
}

struct Case {
    name: &'static str,
    given: Given,
    code: i32,
    /// Words of the sentence.
    says: Vec<String>,
}

/// What was said: the log aside, each line that names a mistake (the summary of several is none).
fn mistakes(stderr: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(stderr);
    let lines = text.lines().filter(|line| line.contains("error: ") && !line.ends_with("nothing was started"));
    lines.map(str::to_owned).collect()
}

fn said(command: &[&str], config: &Path) -> (Option<i32>, Vec<String>, Duration) {
    let config = config.display().to_string();
    let began = Instant::now();
    let always = ["-c", &config, "--message-format", "short", "--log-level", "off"];
    let output = streamgauge(&[command, &always].concat()).output().expect("the program starts");
    (output.status.code(), mistakes(&output.stderr), began.elapsed())
}

#[test]
fn a_mistake_at_the_start_is_one_sentence_and_a_code_and_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let kafka = Kafka::shared();
    kafka.create_topic("mistakes", 2);
    let guarded = Kafka::start_with_password("sg", "right");
    let redis = Redis::start();
    let locked = Redis::start_with_password("right");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = (taken.local_addr().expect("its address").port(), taken);
    let closed = free_port();
    std::fs::write(folder.join("file"), "no folder").expect("a file");

    let mut cases = Vec::new();
    let mut case = |name, code, says: &[&str], change: &dyn Fn(&mut Given)| {
        let mut given = Given {
            bootstrap: kafka.bootstrap.clone(),
            properties: "",
            topic: "mistakes",
            data: folder.join(format!("data-{}", cases.len())),
            port: free_port(),
            more: String::new(),
        };
        change(&mut given);
        cases.push(Case { name, given, code, says: says.iter().map(|s| (*s).to_owned()).collect() });
    };
    let redis_at = |kind: &str, url: &str| format!("sinks.out = {{ type = \"{kind}\", url = \"{url}\" }}");
    let sasl = "properties = { \"security.protocol\" = \"SASL_PLAINTEXT\", \"sasl.mechanism\" = \"PLAIN\", \
                \"sasl.username\" = \"sg\", \"sasl.password\" = \"wrong\" }";
    case("nothing", 0, &[], &|_| {});
    case("unknown key", 2, &["unknown key `wrokers`", "did you mean `workers`?"], &|g| g.more = "wrokers = 2".into());
    case("wrong type", 2, &["`workers` wants a whole number", "\"two\""], &|g| g.more = "workers = \"two\"".into());
    case("wrong unit", 2, &["`tick` wants a duration", "3 parsecs"], &|g| {
        g.more = "epochs.tick = \"3 parsecs\"".into()
    });
    case("no such file", 2, &["cannot read", "sensors.csv"], &|g| g.more = "inventory = \"sensors.csv\"".into());
    case("closed port", 3, &["no broker can be reached", &closed.to_string()], &|g| {
        g.bootstrap = format!("127.0.0.1:{closed}");
    });
    case("missing topic", 2, &["has no topic `mitsakes`", "did you mean `mistakes`?"], &|g| g.topic = "mitsakes");
    case("wrong Kafka password", 3, &["cannot be reached or refuses us", "uthentication"], &|g| {
        g.bootstrap = guarded.bootstrap.clone();
        g.properties = sasl;
    });
    case("Redis is not there", 3, &["does not answer", &closed.to_string()], &|g| {
        g.more = redis_at("redis_stream", &format!("redis://127.0.0.1:{closed}"));
    });
    case("no Redis password", 3, &["password"], &|g| {
        g.more = redis_at("redis_stream", &locked.url.replace(":right@", ""));
    });
    case("wrong Redis password", 3, &["password"], &|g| {
        g.more = redis_at("redis_last", &locked.url.replace(":right@", ":wrong@"));
    });
    case("Redis without TimeSeries", 2, &["does not know TS.ADD", "parquet"], &|g| {
        g.more = redis_at("redis_timeseries", &redis.url);
    });
    case("a Redis that is right", 0, &[], &|g| g.more = redis_at("redis_stream", &locked.url));
    case("port in use", 2, &["server.listen", "another program", &taken.0.to_string()], &|g| g.port = taken.0);
    case("data_dir is a file", 2, &["data_dir", "cannot write here", "give a directory"], &|g| {
        g.data = folder.join("file");
    });
    case("data_dir below a file", 2, &["data_dir", "cannot write here"], &|g| g.data = folder.join("file/data"));
    case("data_dir where nobody may write", 2, &["data_dir", "cannot write here"], &|g| g.data = "/proc/sg".into());
    case("archive below a file", 2, &["file/lake: cannot write here", "give a directory"], &|g| {
        g.more = format!("sinks.out = {{ type = \"parquet\", path = \"{}\" }}", folder.join("file/lake").display());
    });

    let failures: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            cases.iter().enumerate().map(|(n, case)| scope.spawn(move || try_case(folder, n, case))).collect();
        threads.into_iter().filter_map(|thread| thread.join().expect("a verdict").err()).collect()
    });
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

fn try_case(folder: &Path, n: usize, case: &Case) -> Result<(), String> {
    let Case { name, given, code, says } = case;
    let config = folder.join(format!("{n}.toml"));
    std::fs::write(&config, given.text()).expect("a configuration");
    let mut mistakes = Vec::new();
    // `check` first: what run leaves where it succeeds is no surprise to it either way.
    for command in [&["check"][..], &["run", "--until-end"]] {
        let (status, sentences, took) = said(command, &config);
        let what = format!("{name}: {command:?} ended with {status:?} after {took:?}: {sentences:#?}");
        if status != Some(*code) || sentences.len() != usize::from(*code != 0) {
            return Err(format!("{what}\nwanted {code} and one sentence, if any"));
        }
        if let Some(missing) = says.iter().find(|words| !sentences[0].contains(*words)) {
            return Err(format!("{what}\nwanted {missing:?}"));
        }
        if took > Duration::from_secs(30) {
            return Err(what);
        }
        mistakes.extend(sentences);
    }
    // One says where in the file, the other which key; the sentence is the same.
    if let [check, run] = &mistakes[..] {
        // (What librdkafka adds in brackets counts milliseconds.)
        let of = |text: &str| -> String {
            let sentence = text.split_once("error: ").map_or(text, |(_, sentence)| sentence);
            sentence.split("   help: ").next().and_then(|s| s.split(" (").next()).unwrap_or_default().to_owned()
        };
        let (check, run) = (of(check), of(run));
        if !run.ends_with(&check) {
            return Err(format!("{name}: check and run differ:\n{check}\n{run}"));
        }
    }
    if *code != 0 && given.data.is_dir() {
        return Err(format!("{name}: {} was begun", given.data.display()));
    }
    if *name != "port in use" && TcpListener::bind(("127.0.0.1", given.port)).is_err() {
        return Err(format!("{name}: port {} is held", given.port));
    }
    Ok(())
}

#[test]
fn a_state_without_a_whole_checkpoint_is_refused_and_left_as_it_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let kafka = Kafka::shared();
    kafka.create_topic("damaged", 1);
    send(kafka, "damaged", &[(0, Some(b"garbage".to_vec()), 1_700_000_000_000)]);
    let given = Given {
        bootstrap: kafka.bootstrap.clone(),
        properties: "",
        topic: "damaged",
        data: folder.path().join("data"),
        port: free_port(),
        more: String::new(),
    };
    let config = folder.path().join("sg.toml");
    std::fs::write(&config, given.text()).expect("a configuration");
    assert_eq!(run_until_end(&config, &[])["records"], 1);
    let files = || {
        let mut found = BTreeMap::new();
        let mut folders = vec![given.data.clone()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).expect("a folder") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    folders.push(path.clone());
                }
                let bytes = std::fs::read(&path).ok();
                found.insert(path, bytes);
            }
        }
        found
    };
    let whole = files();
    let mut damaged = 0;
    for (path, bytes) in &whole {
        // Every copy: an older one that is whole would be used.
        if let Some(bytes) =
            bytes.as_ref().filter(|b| path.starts_with(given.data.join("state/checkpoints")) && !b.is_empty())
        {
            let mut bad = bytes.clone();
            let middle = bad.len() / 2;
            bad[middle] ^= 0x10;
            std::fs::write(path, bad).expect("damaged");
            damaged += 1;
        }
    }
    assert!(damaged >= 2, "only {damaged} files");
    let before = files();
    for command in [&["check"][..], &["run", "--until-end"], &["run"]] {
        let (code, sentences, _) = said(command, &config);
        assert_eq!((code, sentences.len()), (Some(4), 1), "{command:?}: {sentences:?}");
        assert!(sentences[0].contains("no checkpoint in"), "{command:?}: {sentences:?}");
    }
    let verify = streamgauge(&["state", "verify", "-c", &config.display().to_string()]).output().expect("an answer");
    assert_eq!(verify.status.code(), Some(4));
    assert_eq!(files(), before, "something was written");
    // And as it was, it goes on.
    for (path, bytes) in whole.iter().filter_map(|(path, bytes)| Some((path, bytes.as_ref()?))) {
        std::fs::write(path, bytes).expect("repaired");
    }
    assert_eq!(run_until_end(&config, &[])["records"], 1);
}

/// What becomes of a record that holds one reading.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Accepted,
    Late,
    Future,
    Duplicate,
    Null,
    Filtered,
    Dead(&'static str),
}
use Fate::{Accepted, Dead, Duplicate, Filtered, Future, Late, Null};

/// Nov 2023; the broker's time stamps begin here, and so do the readings'.
const START_MS: i64 = 1_700_000_000_000;

fn reading(id: &str, sensor: &str, value: &str, time: &str) -> Option<Vec<u8>> {
    let text = format!(r#"{{"id":"{id}","sensor":"{sensor}","type":"temperature","value":{value},"time":{time}}}"#);
    Some(text.into_bytes())
}

fn bad_input() -> Vec<(Option<Vec<u8>>, Fate)> {
    let now = |s: i64| format!("{}", START_MS + s * 1000);
    let good = |id: &str| reading(id, "good", "20.5", &now(1));
    let padded = |bytes: usize| {
        let mut text = good(&format!("p-{bytes}")).expect("bytes");
        text.pop();
        text.extend(br#","note":""#);
        text.resize(bytes - 2, b'x');
        text.extend(br#""}"#);
        Some(text)
    };
    let text = |text: &str| Some(text.as_bytes().to_vec());
    let long = "s".repeat(10_000);
    vec![
        (good("first"), Accepted),
        (text(""), Dead("not_json")),
        (text("   "), Dead("not_json")),
        (text("hello"), Dead("not_json")),
        (text("[1,2]"), Dead("not_json")),
        (text("42"), Dead("not_json")),
        (Some(vec![0xff, 0xfe, 0x00, 0x80]), Dead("not_json")),
        (Some(vec![b'{'; 100_000]), Dead("not_json")),
        (Some([r#"{"a":"#.repeat(5_000), "}".repeat(5_000)].concat().into_bytes()), Dead("not_json")),
        (
            good("truncated").map(|mut b| {
                b.truncate(40);
                b
            }),
            Dead("not_json"),
        ),
        (
            good("more").map(|mut b| {
                b.extend(b"{}");
                b
            }),
            Dead("not_json"),
        ),
        (padded(1 << 20), Accepted),
        (padded((1 << 20) + 1), Dead("too_large")),
        (padded(3 << 20), Dead("too_large")),
        (None, Filtered),
        (reading("nan", "good", "NaN", &now(1)), Dead("not_json")),
        (reading("inf", "good", "Infinity", &now(1)), Dead("not_json")),
        (reading("-inf", "good", "-Infinity", &now(1)), Dead("not_json")),
        (reading("huge", "good", "1e999", &now(1)), Dead("not_json")),
        (reading("nan text", "good", "\"NaN\"", &now(1)), Dead("invalid_value")),
        (reading("err", "good", "\"ERR\"", &now(1)), Dead("invalid_value")),
        (reading("true", "good", "true", &now(1)), Dead("invalid_value")),
        (reading("object", "good", "{}", &now(1)), Dead("invalid_value")),
        (reading("null", "good", "null", &now(1)), Null),
        (reading("1970", "from 1970", "1", "\"1970-01-01T00:00:00Z\""), Accepted),
        (reading("1970 number", "from 1970", "1", "0"), Dead("invalid_time")),
        (reading("1970 good", "good", "1", "\"1970-01-01T00:00:01Z\""), Late),
        (reading("2106", "from 2106", "1", "\"2106-02-07T06:28:16Z\""), Future),
        (reading("2106 number", "good", "1", "4294967296"), Future),
        (reading("never", "good", "1", "\"not a time\""), Dead("invalid_time")),
        (reading("no zone", "good", "1", "\"2023-11-14T22:13:20\""), Dead("invalid_time")),
        (reading("long", &long, "1", &now(1)), Dead("invalid_sensor")),
        (reading("longest", &long[..256], "1", &now(1)), Accepted),
        (reading("control", "bell\\u0007", "1", &now(1)), Dead("invalid_sensor")),
        (reading("raw control", "line\nfeed", "1", &now(1)), Dead("not_json")),
        (reading("delete", "del\u{7f}", "1", &now(1)), Dead("invalid_sensor")),
        (reading("empty", "", "1", &now(1)), Dead("invalid_sensor")),
        (text(r#"{"id":"x","type":"temperature","value":1,"time":1700000001000}"#), Dead("missing_sensor")),
        (
            text(r#"{"id":"x","sensor":null,"type":"temperature","value":1,"time":1700000001000}"#),
            Dead("missing_sensor"),
        ),
        (text(r#"{"id":"x","sensor":"s","type":"temperature","value":1}"#), Dead("missing_time")),
        (text(r#"{"sensor":"s","type":"temperature","value":1,"time":1700000001000}"#), Dead("missing_id")),
        (text(r#"{"id":"x","sensor":"s","value":1,"time":1700000001000}"#), Dead("missing_metric")),
        (text(r#"{"id":"x","sensor":"s","type":"temperature","time":1700000001000}"#), Dead("missing_value")),
        // The conversation goes on as if nothing had been.
        (good("first"), Duplicate),
        (reading("hot", "good", "35.5", &now(2)), Accepted),
        (reading("cool", "good", "20.5", &now(3)), Accepted),
        // A clock that is a day ahead harms nobody else, not even its own sensor.
        (reading("ahead", "ahead", "99", &now(86_400)), Future),
        (reading("ahead good", "good", "99", &now(86_400)), Future),
        (reading("ahead, later right", "ahead", "20", &now(4)), Accepted),
        (reading("after", "good", "20.5", &now(4)), Accepted),
        (reading("other", "other", "20.5", &now(4)), Accepted),
        (reading("straggler", "good", "20.5", &now(0)), Accepted),
    ]
}

#[test]
fn bad_input_becomes_dead_letters_or_readings_and_never_a_stop() {
    let folder = tempfile::tempdir().expect("a folder");
    let kafka = Kafka::shared();
    kafka.create_topic_with("bad", 1, &[("max.message.bytes", "4194304")]);
    let input = bad_input();
    let plain: Vec<Plain> =
        (0..).zip(&input).map(|(n, (payload, _))| (0, payload.clone(), START_MS + 5_000 + n)).collect();
    send(kafka, "bad", &plain);
    let given = Given {
        bootstrap: kafka.bootstrap.clone(),
        properties: "",
        topic: "bad",
        data: folder.path().join("data"),
        port: free_port(),
        more: "workers = 2".into(),
    };
    let config = folder.path().join("sg.toml");
    std::fs::write(&config, given.text()).expect("a configuration");
    let summary = run_until_end(&config, &[]);
    let count = |fate: fn(&Fate) -> bool| input.iter().filter(|(_, f)| fate(f)).count() as u64;
    for (name, count) in [
        ("records", input.len() as u64),
        ("accepted", count(|f| *f == Accepted)),
        ("behind", 1),
        ("late", count(|f| *f == Late)),
        ("future", count(|f| *f == Future)),
        ("duplicates", count(|f| *f == Duplicate)),
        ("dead_letters", count(|f| matches!(f, Dead(_)))),
        ("alerts", 2),
        ("imbalance", 0),
    ] {
        assert_eq!(summary[name], count, "{name}: {summary}");
    }

    // The other implementation of docs/semantics.md thinks so, too.
    let outcome = what_must_be(&given.text(), &records(kafka, "plant", "bad"), &given.data);
    same_journal(&journal(&given.data), &outcome.journal);
    let counts = oracle::total(&outcome.counts);
    assert_eq!(counts.nulls, count(|f| *f == Null));
    assert_eq!(counts.filtered, count(|f| *f == Filtered));

    // Each with its bytes, its place and the reason.
    let config = config.display().to_string();
    let output = succeed(&["dead-letters", "list", "--json", "--limit", "1000", "-c", &config]);
    let list: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let mut seen = BTreeSet::new();
    for letter in list["newest"].as_array().expect("a list") {
        let offset = letter["offset"].as_u64().expect("an offset") as usize;
        let (payload, fate) = &input[offset];
        let payload = payload.as_ref().expect("no tombstone");
        let Dead(reason) = fate else { panic!("{offset} is {fate:?}, not {letter}") };
        assert_eq!((letter["topic"].as_str(), letter["partition"].as_u64()), (Some("bad"), Some(0)));
        assert_eq!(letter["reason"], *reason, "offset {offset}");
        assert_eq!(letter["size"], payload.len(), "offset {offset}");
        let bytes = base64::prelude::BASE64_STANDARD.decode(letter["bytes"].as_str().expect("bytes")).expect("base64");
        assert_eq!(bytes, payload[..payload.len().min(64 << 10)], "offset {offset}");
        assert!(seen.insert(offset), "offset {offset} twice");
    }
    assert_eq!(seen.len() as u64, count(|f| matches!(f, Dead(_))));
    // And each can be shown to a person: no control character reaches the terminal.
    for offset in seen {
        let place = format!("bad/0/{offset}");
        let shown = succeed(&["dead-letters", "show", &place, "-c", &config]).stdout;
        let shown = String::from_utf8(shown).expect("text");
        assert!(shown.contains("right") && !shown.contains(|c: char| c.is_control() && c != '\n'), "{shown:?}");
    }
}
