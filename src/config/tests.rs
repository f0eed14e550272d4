//! Files in, settings or sentences out.

use super::*;
use std::path::{Path, PathBuf};

/// A file that is right, to spoil.
const GOOD: &str = r#"[sources.plant]
type = "kafka"
bootstrap_servers = "localhost:9092"
topics = ["sensor-data"]
[sources.plant.decode]
sensor = "/sensor_id"
time = "/timestamp"
metrics.temperature = { path = "/t" }
metrics.humidity = { path = "/h" }
[rules.too-hot]
metric = "temperature"
when.above = { warning = 35.0, critical = 40.0 }
[sinks.alerts]
type = "redis_stream"
url = "redis://localhost:6379"
"#;

fn no_env(_: &str) -> Option<String> {
    None
}

fn load_with(texts: &[&str], env: &dyn Fn(&str) -> Option<String>) -> Result<Loaded, Box<Report>> {
    let name =
        |index: usize| PathBuf::from(if index == 0 { "plant.toml".to_owned() } else { format!("more{index}.toml") });
    let texts: Vec<_> = texts.iter().enumerate().map(|(index, text)| (name(index), (*text).to_owned())).collect();
    load_texts(&texts, env, &Overrides::default())
}

fn good(text: &str) -> Loaded {
    load_with(&[text], &no_env).unwrap_or_else(|report| panic!("{}", report.render(MessageFormat::Human, false)))
}

/// What is said of a text, errors and warnings, one per line, without the file's name.
fn said(text: &str, env: &dyn Fn(&str) -> Option<String>) -> String {
    let report = match load_with(&[text], env) {
        Ok(loaded) => loaded.report,
        Err(report) => *report,
    };
    report.render(MessageFormat::Short, false).replace("plant.toml:", "")
}

/// Every likely mistake: what is written instead of what in the good file, and the exact sentence.
const MISTAKES: &[(&str, &str, &str)] = &[
    (
        "bootstrap_servers =",
        "bootstrap_server =",
        "1:1: error: sources.plant lacks `bootstrap_servers`   help: write bootstrap_servers = \"localhost:9092\"\n\
         3:1: error: unknown key `bootstrap_server` in sources.plant   help: did you mean `bootstrap_servers`?\n",
    ),
    (
        "when.above = { warning = 35.0, critical = 40.0 }",
        "when.above = \"35\"",
        "12:14: error: `above` wants a number or a table of levels, found the string \"35\"   help: write 35.0, without quotes\n",
    ),
    (
        "metric = \"temperature\"\n",
        "metric = \"temperature\"\nfor = 120\n",
        "12:7: error: `for` wants a duration with its unit, found 120   help: write \"120s\" or \"2m\"\n",
    ),
    (
        "metric = \"temperature\"\n",
        "metric = \"temperature\"\nfor = \"2 minutes\"\n",
        "12:7: error: `for` wants a duration with its unit, such as \"30s\", \"5m\" or \"7d\", found \"2 minutes\"\n",
    ),
    (
        "metric = \"temperature\"",
        "metric = \"temprature\"",
        "11:10: warning: nothing makes the metric `temprature`; rule `too-hot` would stay silent   \
         help: did you mean `temperature`? mapped: humidity, temperature\n",
    ),
    (
        "critical = 40.0",
        "critical = 33",
        "12:43: error: critical (33) is below warning (35), but `above` grows worse upwards   help: swap them, or write `below`\n",
    ),
    (
        "critical = 40.0",
        "hysteresis = -5",
        "12:45: error: hysteresis (-5) is negative; an alert resolves at limit minus hysteresis   help: write 5.0\n",
    ),
    (
        "{ warning = 35.0, critical = 40.0 }",
        "{ hysteresis = 2.0 }",
        "12:14: error: `above` names no limit: there are info, warning and critical   \
         help: write a limit beside it, such as warning = 35.0\n",
    ),
    (
        "when.above = {",
        "severity = \"info\"\nwhen.above = {",
        "12:12: error: severity (info) beside levels: each level is its own severity   \
         help: leave it out, or write when.above = a number\n",
    ),
    (
        "when.above = { warning = 35.0, critical = 40.0 }",
        "when.above = 35\nseverity = \"critcal\"",
        "13:12: error: `severity` is none of those known: \"critcal\"   help: did you mean \"critical\"?\n",
    ),
    (
        "when.above = { warning = 35.0, critical = 40.0 }",
        "when.abov = 35.0",
        "12:6: error: unknown key `abov` in rules.too-hot.when   help: did you mean `above`?\n",
    ),
    (
        "when.above = { warning = 35.0, critical = 40.0 }",
        "when.above = 35.0\nwhen.below = 5.0",
        "13:6: error: `when` has both `above` and `below`; it takes exactly one of `above`, `below`, `missing`\n",
    ),
    (
        "when.above = { warning = 35.0, critical = 40.0 }",
        "when.missing.after = \"0s\"",
        "12:22: error: `after` is no time at all   help: write a duration such as \"30s\"\n",
    ),
    (
        "when.above = { warning = 35.0, critical = 40.0 }",
        "when.missing.after = \"30s\"\nfor = \"1m\"",
        "13:7: error: `for` goes with above and below, not with missing   help: leave `for` out: `after` already says how long\n",
    ),
    (
        "metric = \"temperature\"\n",
        "",
        "10:1: error: rules.too-hot lacks `metric`   help: write metric = \"temperature\"; only when.missing watches every series\n",
    ),
    (
        "metric = \"temperature\"\n",
        "metric = \"temperature\"\nof.avg = \"60s\"\n",
        "12:4: error: unknown key `avg` in rules.too-hot.of   help: there are count, mean, stddev, min, max, rate, ewma\n",
    ),
    (
        "metric = \"temperature\"\n",
        "metric = \"temperature\"\nof.mean = 0\n",
        "12:11: error: a window of 0 readings; it goes from 1 to 1,000,000   help: write 100\n",
    ),
    (
        "metric = \"temperature\"\n",
        "metric = \"temperature\"\nmatch = { sensor = \"b-[0-9]\" }\n",
        "12:20: error: the glob \"b-[0-9]\" holds `[`: there are only * and ? here; write a list such as [\"a*\", \"b*\"], \
         or \\[ for the character itself\n",
    ),
    (
        "metric = \"temperature\"\n",
        "metric = \"temperature\"\nmatch = { type = \"kiln\" }\n",
        "12:18: warning: there is no inventory, so no sensor has the label `type`   \
         help: name a CSV file of sensors with inventory = \"sensors.csv\"\n",
    ),
    (
        "metric = \"temperature\"\n",
        "metric = \"temperature\"\nsummary = \"{sensr} is hot\"\n",
        "12:11: warning: nothing is called {sensr}; it would stay as it is   help: did you mean {sensor}?\n",
    ),
    ("type = \"kafka\"\n", "", "1:1: error: sources.plant lacks `type`   help: write type = \"kafka\"\n"),
    (
        "type = \"kafka\"",
        "type = \"kafak\"",
        "2:8: error: `type` is none of those known: \"kafak\"   help: did you mean \"kafka\"?\n",
    ),
    (
        "\"localhost:9092\"",
        "\"localhost\"",
        "3:21: error: `bootstrap_servers` wants host:port, found \"localhost\"   help: write \"localhost:9092\"\n",
    ),
    (
        "[\"sensor-data\"]",
        "\"sensor-data\"",
        "4:10: error: `topics` wants a list, found the string \"sensor-data\"   help: write [\"sensor-data\"]\n",
    ),
    ("[\"sensor-data\"]", "[\"a\", \"b\", \"a\"]", "4:21: error: the topic `a` is there twice\n"),
    (
        "[\"sensor-data\"]",
        "[\"sensor-data\"]\nproperties = { \"enable.auto.commit\" = true, \"fetch.min.byte\" = 1 }",
        "5:39: error: `enable.auto.commit` is set by streamgauge itself   \
         help: offsets are committed after the sinks have answered, never by a timer\n\
         5:64: error: librdkafka has no setting `fetch.min.byte`\n",
    ),
    (
        "time = \"/timestamp\"",
        "time = \"/timestamp\"\nzone = \"Europe/Berln\"",
        "8:8: error: there is no time zone \"Europe/Berln\"   help: did you mean \"Europe/Berlin\"?\n",
    ),
    (
        "time = \"/timestamp\"",
        "time = \"/a~b\"",
        "7:8: error: \"/a~b\" is not a JSON Pointer: `~` stands before 0 or 1 only; write ~0 for ~ and ~1 for / inside a name\n",
    ),
    (
        "time = \"/timestamp\"",
        "time = \"/timestamp\"\nvalue = \"/v\"",
        "5:1: error: `decode` is narrow and wide at once   \
         help: write metric and value for one reading a message, or metrics.<name> = { path = ... } for several, not both\n",
    ),
    (
        "{ path = \"/t\" }",
        "{ path = \"/t\", valid = [50, -20] }",
        "8:46: error: `valid` begins at 50 and ends at -20: no value lies between   help: write [-20.0, 50.0]\n",
    ),
    (
        "sensor = \"/sensor_id\"\n",
        "",
        "5:1: error: sources.plant.decode lacks `sensor`   \
         help: write sensor = \"/sensor_id\", the path of the sensor's name in a message\n",
    ),
    (
        "\"redis://localhost:6379\"",
        "\"localhost:6379\"",
        "15:7: error: `url` wants an address that begins with redis:// or unix://   help: write \"redis://localhost:6379\"\n",
    ),
    (
        "\"redis://localhost:6379\"",
        "\"redis://localhost:6379\"\nwhen_full = \"drop\"",
        "16:13: error: `when_full` is none of those known: \"drop\"   help: there are pause, dead_letter\n",
    ),
    (
        "\"redis://localhost:6379\"",
        "\"redis://sg:${PGPASSWORD}@localhost:6379\"",
        "15:7: error: environment variable PGPASSWORD is not set   \
         help: export it, write ${PGPASSWORD:-…}, or read a file with ${file:/run/secrets/pgpassword}\n",
    ),
    (
        "[sources.plant]\n",
        "event_time.allowed_lateness = \"15m\"\n[sources.plant]\n",
        "1:31: error: allowed_lateness (15m) is longer than dedup.window (10m): a copy could come after its original is \
         forgotten and be accepted again   help: raise dedup.window to \"15m\", or lower allowed_lateness\n",
    ),
    (
        "[sources.plant]\n",
        "dedup.key = \"id\"\n[sources.plant]\n",
        "1:13: error: duplicates are found by id, but sources.plant.decode names no id   \
         help: write id = \"/path\" there, or leave dedup.key out: each source then uses what it has\n",
    ),
    (
        "[sources.plant]\n",
        "workers = 0\n[sources.plant]\n",
        "1:11: error: `workers` is 0; it goes from 1 to 1024   help: one per free core is a good choice\n",
    ),
    (
        "[sources.plant]\n",
        "workers = -2\n[sources.plant]\n",
        "1:11: error: `workers` wants a whole number that is not negative, found -2\n",
    ),
    (
        "[sources.plant]\n",
        "server.listen = \"localhost\"\n[sources.plant]\n",
        "1:17: error: `listen` wants an address and a port   help: write \"127.0.0.1:7070\", or \"[::1]:7070\"\n",
    ),
    (
        "[sources.plant]\n",
        "epochs.tick = \"5s\"\n[sources.plant]\n",
        "1:15: error: `tick` is 5s; it goes from 1ms to 1s, in whole milliseconds   \
         help: 20ms suits most; shorter brings alerts sooner and costs more\n",
    ),
    (
        "[sources.plant]\n",
        "inventory = \"nowhere.csv\"\n[sources.plant]\n",
        "1:13: error: cannot read nowhere.csv: no such file or directory   help: a path is relative to the configuration file\n",
    ),
    (
        "[sources.plant]\n",
        "[sources.\"a b\"]\ntype = \"kafka\"\nbootstrap_servers = \"k:1\"\ntopics = [\"t\"]\n\
         decode = { sensor = \"s\", time = \"t\", metrics.x.path = \"x\" }\n[sources.plant]\n",
        "1:10: error: \"a b\" is no name in sources   help: letters, digits, `_`, `-` and `.`, at most 64\n",
    ),
    (
        "[sinks.alerts]",
        "[sink.alerts]",
        "13:2: error: unknown key `sink` at the top level   help: did you mean `sinks`?\n",
    ),
    (
        "topics = [\"sensor-data\"]",
        "topics = [\"sensor-data\"",
        "5:1: error: missing comma between array elements, expected `,`   help: is a list above it closed with ]?\n",
    ),
];

#[test]
fn every_likely_mistake_gets_its_sentence() {
    let mut wrong = String::new();
    for (right, spoilt, expected) in MISTAKES {
        assert!(GOOD.contains(right), "{right} is not in the good file");
        let found = said(&GOOD.replacen(right, spoilt, 1), &no_env);
        if found != *expected {
            wrong += &format!("--- {spoilt}\nexpected:\n{expected}found:\n{found}\n");
        }
    }
    assert_eq!(wrong, "");
    assert!(MISTAKES.len() >= 25);
}

#[test]
fn the_good_file_is_good() {
    assert_eq!(said(GOOD, &no_env), "");
}

#[test]
fn a_mistake_is_drawn_where_it_is() {
    let report = load_with(&[&GOOD.replace("topics =", "topics = [\"a\"]\nbootstrap_server =")], &no_env).unwrap_err();
    let drawn = report.render(MessageFormat::Human, false);
    assert!(
        drawn.contains(
            "error: unknown key `bootstrap_server` in sources.plant\n --> plant.toml:5:1\n  |\n\
             5 | bootstrap_server = [\"sensor-data\"]\n  | ^^^^^^^^^^^^^^^^ help: did you mean `bootstrap_servers`?\n"
        ),
        "{drawn}"
    );
    assert_eq!(report.summary(), "1 mistake in plant.toml; nothing was started");
}

#[test]
fn one_run_tells_all_mistakes_of_all_sections() {
    let text = GOOD
        .replace("type = \"kafka\"", "type = \"kafka\"\ntopicz = 1\ngroup_id = 7")
        .replace("metric = \"temperature\"", "metric = \"temperature\"\nfor = 5\nwhile = 1")
        .replace("url =", "uri =");
    let said = said(&text, &no_env);
    for part in ["`topicz`", "`group_id` wants a string", "`for` wants", "`while`", "`uri`", "sinks.alerts lacks `url`"]
    {
        assert!(said.contains(part), "{part} is missing in:\n{said}");
    }
    assert_eq!(said.lines().count(), 6, "{said}");
}

#[test]
fn later_files_add_and_override() {
    let more = "workers = 3\n[sources.plant]\nbootstrap_servers = \"other:9092\"\n[rules.too-hot]\nwhen.below = 3\n\
                [rules.silent]\nwhen.missing.after = \"30s\"\n[sinks.alerts]\ntype = \"stdout\"\n";
    let config = load_with(&[GOOD, more], &no_env).unwrap().config;
    assert_eq!(config.workers, 3);
    let SourceSettings::Kafka(kafka) = &config.sources["plant"];
    assert_eq!((&*kafka.bootstrap_servers, &*kafka.topics[0]), ("other:9092", "sensor-data"));
    assert_eq!(config.rules["too-hot"].when, When::Below(Limits::One(3.0)));
    assert!(config.rules.contains_key("silent"));
    assert_eq!(config.sinks["alerts"].kind(), "stdout");
    let report = load_with(&[GOOD, "[rules.too-hot]\nfor = 3\n"], &no_env).unwrap_err();
    assert!(report.render(MessageFormat::Short, false).starts_with("more1.toml:2:7: error: `for`"));
    assert_eq!(report.summary(), "1 mistake in more1.toml; nothing was started");
}

#[test]
fn the_environment_goes_before_files_and_flags_before_it() {
    let env = |name: &str| match name {
        "STREAMGAUGE_WORKERS" => Some("6".to_owned()),
        "STREAMGAUGE_DATA_DIR" => Some("/var/lib/sg".to_owned()),
        "STREAMGAUGE_LISTEN" => Some("0.0.0.0:80".to_owned()),
        _ => None,
    };
    let config = load_with(&[&format!("workers = 2\n{GOOD}")], &env).unwrap().config;
    assert_eq!(config.workers, 6);
    assert_eq!(config.data_dir, Path::new("/var/lib/sg"));
    assert_eq!(config.server.listen.port(), 80);
    let flags = Overrides { data_dir: Some("here".into()), workers: Some(1), ..Overrides::default() };
    let config = load_texts(&[("a.toml".into(), GOOD.into())], &env, &flags).unwrap().config;
    assert_eq!((config.workers, &*config.data_dir), (1, Path::new("here")));
    let wrong = |name: &str| (name == "STREAMGAUGE_WORKERS").then(|| "many".to_owned());
    assert_eq!(
        said(GOOD, &wrong),
        "environment variable STREAMGAUGE_WORKERS:1:1: error: `workers` wants a whole number that is not negative, \
         found a string (not shown)\n"
    );
}

#[test]
fn variables_files_and_defaults_are_replaced_inside_strings() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("secret"), "hun\"ter\n").unwrap();
    let text = GOOD
        .replace("localhost:9092", "${HOST:-kafka}:${PORT}")
        .replace("url =", "password = \"${file:secret}\"\nkey = \"$${x}\"\nurl =")
        .replace("[sources.plant]\n", "workers = \"${N}\"\n[sources.plant]\n");
    let env = |name: &str| match name {
        "PORT" => Some("9093".to_owned()),
        "N" => Some("4".to_owned()),
        _ => None,
    };
    let path = directory.path().join("plant.toml");
    let config = load_texts(&[(path, text)], &env, &Overrides::default()).unwrap().config;
    let SourceSettings::Kafka(kafka) = &config.sources["plant"];
    assert_eq!(kafka.bootstrap_servers, "kafka:9093");
    assert_eq!(config.workers, 4);
    let SinkSettings::RedisStream(redis) = &config.sinks["alerts"] else { panic!() };
    assert_eq!((redis.password.as_ref().unwrap().expose(), &*redis.key), ("hun\"ter", "${x}"));
}

#[test]
fn secrets_are_shown_nowhere() {
    const SECRET: &str = "hunter2";
    let env = |name: &str| (name == "PW").then(|| SECRET.to_owned());
    let with = |from: &str, to: &str| GOOD.replace(from, to);
    let properties =
        "topics = [\"sensor-data\"]\nproperties = { \"sasl.password\" = \"hunter2\", \"sasl.username\" = \"${PW}\" }";
    let fine = with("topics = [\"sensor-data\"]", properties)
        .replace("redis://localhost", "redis://sg:hunter2@localhost")
        .replace("url =", "password = \"${PW}\"\nurl =");
    let loaded = load_with(&[&fine], &env).unwrap();
    let SourceSettings::Kafka(kafka) = &loaded.config.sources["plant"];
    assert_eq!(kafka.properties["sasl.username"].expose(), SECRET);
    assert!(format!("{:?}", kafka.properties).contains("***"));
    for shown in [
        format!("{:?}", loaded),
        format!("{:#?}", loaded.config),
        loaded.pure().text(),
        toml::to_string(&loaded.config).unwrap(),
    ] {
        assert!(!shown.contains(SECRET), "{shown}");
    }
    // The same in what is said about mistakes, in every kind of them.
    for text in [
        fine.replace("\"sasl.username\"", "\"sasl.usernam\""),
        fine.replace("\"sasl.username\" =", "\"fetch.min.bytes\" ="),
        fine.replace("\"sasl.username\" =", "\"security.protocol\" ="),
        fine.replace("password =", "passwort ="),
        fine.replace("@localhost:6379\"", "@localhost:6379\"\nwhen_full = \"${PW}\""),
        fine.replace("@localhost:6379\"", "@localhost:6379\"\ncapacity = \"${PW}\""),
        fine.replace("url = \"redis", "url = \"rediz"),
        fine.replace("when.above = {", "for = \"${PW}\"\nwhen.above = {"),
        fine.replace("metric = \"temperature\"", "metric = [\"${PW}\"]"),
        fine.replace("when.above = { warning = 35.0, critical = 40.0 }", "when.above = \"${PW}\""),
        fine.replace("when.above = { warning = 35.0, critical = 40.0 }", "when = \"${PW}\""),
        fine.replace("\"sasl.password\" = \"hunter2\"", "\"sasl.password\" = \"hunter2"),
        fine.replace("sg:hunter2@localhost:6379\"", "sg:hunter2@localhost:6379"),
    ] {
        assert_ne!(text, fine);
        let report = load_with(&[&text], &env).expect_err(&text);
        for format in [MessageFormat::Human, MessageFormat::Short] {
            let shown = report.render(format, false);
            assert!(!shown.contains(SECRET), "{shown}");
        }
    }
}

#[test]
fn a_recorded_text_reads_back_as_what_was_recorded() {
    let text = format!(
        "dedup = {{ on_conflict = \"dead_letter\" }}\nrolling = {{ windows = [\"60s\", \"90m\"], last = [7] }}\n{GOOD}\
         [rules.mean]\nmetric = \"humidity\"\nmatch = {{ sensor = [\"a*\", \"!a1\"] }}\nof.mean = 100\nwhen.below = 0.1\n\
         for = \"2m\"\n[rules.silent]\nwhen.missing.after = \"30s\"\n"
    );
    let loaded = good(&text);
    let mut pure = loaded.pure();
    let labels = [("si te".to_owned(), "nörth \"1\"".to_owned())];
    pure.inventory.insert("b.17\t\\".into(), labels.into());
    let recorded = pure.text();
    let back = Pure::parse(&recorded).unwrap();
    assert_eq!(back, pure);
    assert_eq!((back.text(), back.hash()), (recorded.clone(), pure.hash()));
    assert_eq!(pure.hash().len(), 16);
    assert_eq!(pure.streams(), [("plant".to_owned(), "sensor-data".to_owned())]);
    for impure in ["localhost", "redis", "data_dir", "workers"] {
        assert!(!recorded.contains(impure), "{impure} is in\n{recorded}");
    }
    let elsewhere = good(&text.replace("localhost", "elsewhere")).pure();
    assert_eq!(elsewhere.hash(), loaded.pure().hash(), "where servers are changes no answer");
    assert!(Pure::parse(&recorded.replace("semantics = 1", "semantics = 2")).is_err());
}

#[test]
fn rules_become_one_per_level_with_windows_by_number() {
    let text = format!(
        "rolling = {{ windows = [\"1h\", \"60s\"], last = [10] }}\n{GOOD}\
         [rules.a]\nmetric = \"humidity\"\nof.mean = \"60s\"\nwhen.below = 0.1\n\
         [rules.b]\nmetric = \"humidity\"\nof.max = 100\nwhen.above = {{ info = 1, hysteresis = 0.5 }}\n\
         [rules.c]\nmetric = \"humidity\"\nof.mean = \"1m\"\nwhen.above = 5\n\
         [rules.d]\nmetric = \"temperature\"\nof.min = \"5s\"\nwhen.above = 5\n"
    );
    let resolved = Resolved::new(&good(&text).pure());
    let time = |us| operators::Window::Time { us };
    let count = |n| operators::Window::Count { n };
    let windows = [time(3_600_000_000), time(60_000_000), count(10), time(5_000_000), count(100)];
    assert_eq!(resolved.windows, windows);
    assert_eq!(resolved.plan.features("humidity"), [(1, operators::Stat::Mean), (4, operators::Stat::Max)]);
    assert_eq!(resolved.plan.features("temperature"), [(3, operators::Stat::Min)]);
    let keys: Vec<_> = resolved.rules.iter().map(|rule| (&*rule.spec.key, &*rule.spec.severity)).collect();
    let expected = [
        ("a", "warning"),
        ("b:info", "info"),
        ("c", "warning"),
        ("d", "warning"),
        ("too-hot:critical", "critical"),
        ("too-hot:warning", "warning"),
    ];
    assert_eq!(keys, expected);
    let version = |text: &str, key: &str| {
        let resolved = Resolved::new(&good(text).pure());
        resolved.rules.iter().find(|rule| rule.spec.key == key).unwrap().spec.version.clone()
    };
    let critical = version(&text, "too-hot:critical");
    assert_eq!(critical.len(), 8);
    assert_eq!(version(&text.replace("35.0", "36.0"), "too-hot:critical"), critical, "another level is another rule");
    assert_ne!(version(&text.replace("40.0", "41.0"), "too-hot:critical"), critical);
    let selected =
        text.replace("metric = \"temperature\"\nwhen", "metric = \"temperature\"\nmatch.sensor = \"b*\"\nwhen");
    assert_ne!(selected, text);
    assert_eq!(version(&selected, "too-hot:critical"), critical, "whom a rule looks at is not how it judges");
}

#[test]
fn durations_and_sizes_have_one_text_each() {
    for (text, us, shown) in [
        ("30s", 30_000_000, "30s"),
        ("90s", 90_000_000, "90s"),
        ("60s", 60_000_000, "1m"),
        ("1h30m", 5_400_000_000, "90m"),
        ("1w", 604_800_000_000, "7d"),
        ("7d", 604_800_000_000, "7d"),
        ("1500ms", 1_500_000, "1500ms"),
        (" 2m 5s ", 125_000_000, "125s"),
        ("0s", 0, "0s"),
    ] {
        let interval: Interval = text.parse().unwrap();
        assert_eq!((interval.us(), interval.to_string().as_str()), (us, shown), "{text}");
        assert_eq!(interval.to_string().parse(), Ok(interval));
    }
    for text in ["", "30", "s", "-5s", "1.5s", "5 minutes", "300000y", "99999999999999999999s", "999999999999d"] {
        assert!(text.parse::<Interval>().is_err(), "{text}");
    }
    for (text, bytes, shown) in
        [("1 MiB", 1 << 20, "1 MiB"), ("64KiB", 65536, "64 KiB"), ("5", 5, "5 B"), ("2MB", 2_000_000, "2 MB")]
    {
        let size: Size = text.parse().unwrap();
        assert_eq!((size.bytes(), size.to_string().as_str()), (bytes, shown));
    }
    for text in ["", "MiB", "1 MB/s", "-1"] {
        assert!(text.parse::<Size>().is_err(), "{text}");
    }
}

#[test]
fn addresses_are_shown_without_their_passwords() {
    for (url, shown) in [
        ("redis://localhost:6379", "redis://localhost:6379"),
        ("redis://sg:pw@host:1/0", "redis://***@host:1/0"),
        ("redis://:p@w@host", "redis://***@host"),
        ("redis://:p/w@host:1", "redis://***@host:1"),
        ("unix:///run/redis.sock?pass=x", "unix:///run/redis.sock"),
        ("sg:pw@host", "***@host"),
    ] {
        assert_eq!(Url::new(url).to_string(), shown);
    }
}

#[test]
fn pointers_are_read_as_rfc_6901_has_them() {
    for (text, names) in [("/a/b", vec!["a", "b"]), ("a", vec!["a"]), ("/", vec![""]), ("/a~1b/~01", vec!["a/b", "~1"])]
    {
        assert_eq!(text.parse::<Pointer>().unwrap().names(), names);
    }
}
