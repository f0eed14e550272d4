//! `streamgauge check`: everything that `run` does up to the first record, said in words.
//!
//! The configuration is loaded as `run` loads it, decoders are made by the same function, sinks are looked at by the code
//! that opens them. What it adds is a sample: the newest messages of each topic, decoded.

mod sample;

use crate::cli::{CheckArgs, Global};
use crate::config::{self, Config, KafkaSource, Loaded, Report, Resolved, SourceSettings};
use crate::decode::Decoder;
use crate::error::{Exit, Failure};
use crate::seam::RealFs;
use crate::sink::StartError;
use crate::source::SourceError;
use crate::source::kafka::{Asking, client_config};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};
use sample::Sample;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::time::{Duration, Instant};

/// How many of the newest messages are decoded.
const SAMPLE: usize = 20;
/// How long a cluster may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long reading the sample may take.
const SAMPLE_TIMEOUT: Duration = Duration::from_secs(5);

/// Checks a configuration and what it names.
pub fn run(args: &CheckArgs, global: &Global) -> Result<(), Failure> {
    let loaded = match config::load(&global.files()?, &config::environment, &global.overrides()) {
        Ok(loaded) => loaded,
        Err(report) => {
            global.print(&report);
            return Err(Failure::configuration(report.summary()));
        }
    };
    let mut out = io::stdout().lock();
    let mut check = Check { report: Report::default(), code: Exit::Configuration, seen: BTreeSet::new() };
    let Loaded { config, inventory: _, report: _ } = &loaded;
    let printed = check.all(args, config, &loaded, &mut out);
    if let Err(error) = printed
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        return Err(Failure::configuration(format!("standard output: {error}")));
    }
    let Check { mut report, code, .. } = check;
    if args.deny_warnings {
        report.deny_warnings();
    }
    global.print(&report);
    if report.has_errors() {
        return Err(Failure { code, message: report.summary() });
    }
    let warnings = match report.count(config::Level::Warning) {
        0 => "fine".to_owned(),
        1 => "1 warning".to_owned(),
        count => format!("{count} warnings"),
    };
    let extent = if args.no_connect { "as far as can be told without connecting, " } else { "" };
    let _ = writeln!(out, "{warnings}: {extent}run would start");
    Ok(())
}

struct Check {
    report: Report,
    /// The exit code, should there be errors: the first one found tells.
    code: Exit,
    /// The metrics that samples held.
    seen: BTreeSet<String>,
}

impl Check {
    fn all(&mut self, args: &CheckArgs, config: &Config, loaded: &Loaded, out: &mut dyn Write) -> io::Result<()> {
        self.report = loaded.report.clone();
        let pure = loaded.pure();
        let mut decoders = BTreeMap::new();
        match crate::run::decoders(&pure) {
            Ok(all) => decoders.extend(pure.streams().into_iter().zip(all)),
            Err(why) => self.fail(Exit::Configuration, "sources", why, ""),
        }
        if args.no_connect {
            for (name, source) in &config.sources {
                writeln!(out, "{name:<12} {}: not asked (--no-connect)", source.topics().join(", "))?;
            }
        } else {
            self.place(config);
            let mut sampled = true;
            for (name, SourceSettings::Kafka(kafka)) in &config.sources {
                sampled &= self.source(name, kafka, &mut decoders, out)?;
            }
            if sampled {
                self.metrics(config);
            }
        }
        self.rules(loaded, &Resolved::new(&pure), out)?;
        for (name, sink) in &config.sinks {
            if args.no_connect {
                writeln!(out, "{name:<12} {}: not asked (--no-connect)", sink.kind())?;
            }
        }
        if !args.no_connect {
            self.sinks(config, out)?;
        }
        Ok(())
    }

    /// Adds an error; the first one's code is the program's.
    fn fail(&mut self, code: Exit, path: &str, message: impl Into<String>, help: &str) {
        if !self.report.has_errors() {
            self.code = code;
        }
        self.report.error(path, message, help);
    }

    /// What this machine must grant: a port, a directory.
    fn place(&mut self, config: &Config) {
        if let Err(error) = crate::server::bind(config.server.listen, 0) {
            let failure = Failure::from(error);
            self.fail(failure.code, "server.listen", failure.message, "");
        }
        let layout = crate::plan::Layout::new(config.data_dir.clone());
        let state = crate::run::look_at_data_dir(&RealFs, &config.data_dir)
            .and_then(|()| crate::plan::past(&RealFs, &layout, None).map(drop));
        if let Err(failure) = state {
            self.fail(failure.code, "data_dir", failure.message, "");
        }
        if let Some(Err(failure)) = config.mesh.secret_file.as_deref().map(crate::mesh::secret::read) {
            self.fail(failure.code, "mesh.secret_file", failure.message, "");
        }
    }

    /// Asks a cluster for the topics; whether all could be sampled.
    fn source(
        &mut self,
        name: &str,
        kafka: &KafkaSource,
        decoders: &mut BTreeMap<(String, String), Decoder>,
        out: &mut dyn Write,
    ) -> io::Result<bool> {
        let path = format!("sources.{name}");
        let asking = match Asking::new(kafka) {
            Ok(asking) => asking,
            Err(error) => {
                self.fail(Exit::Configuration, &path, error.to_string(), "");
                return Ok(false);
            }
        };
        let mut sampled = true;
        for (index, topic) in kafka.topics.iter().enumerate() {
            let ends = match ends(&asking, topic) {
                Ok(ends) => ends,
                Err(SourceError::Fatal(why)) => {
                    self.fail(Exit::Configuration, &format!("{path}.topics[{index}]"), why, "");
                    sampled = false;
                    continue;
                }
                Err(SourceError::Unavailable(why)) => {
                    let help = "is it running, and may this machine and this user connect?";
                    self.fail(Exit::Unreachable, &format!("{path}.bootstrap_servers"), why, help);
                    return Ok(false);
                }
            };
            let records: i64 = ends.iter().map(|(_, low, high)| high - low).sum();
            let partitions = match ends.len() {
                1 => "1 partition".to_owned(),
                count => format!("{count} partitions"),
            };
            writeln!(out, "{name:<12} ok   {topic}: {partitions}, {} records", grouped(records))?;
            let Some(decoder) = decoders.get_mut(&(name.to_owned(), topic.clone())) else { continue };
            match newest(kafka, topic, &ends) {
                Ok(messages) => self.sample(&path, topic, kafka, decoder, &messages, out)?,
                Err(why) => {
                    sampled = false;
                    let message = format!("no sample of `{topic}`: {why}");
                    self.report.warning(&format!("{path}.topics[{index}]"), message, "");
                }
            }
        }
        Ok(sampled)
    }

    fn sample(
        &mut self,
        path: &str,
        topic: &str,
        kafka: &KafkaSource,
        decoder: &mut Decoder,
        messages: &[Vec<u8>],
        out: &mut dyn Write,
    ) -> io::Result<()> {
        let sample: Sample = sample::look(decoder, messages);
        if sample.messages == 0 {
            return writeln!(out, "             sample  no messages yet");
        }
        let (decoded, all, readings) = (sample.decoded, sample.messages, sample.readings);
        write!(out, "             sample  {decoded} of {all} messages decode into {readings} readings")?;
        match sample.why() {
            why if why.is_empty() => writeln!(out)?,
            why => writeln!(out, "; the rest: {why}")?,
        }
        if let Some(missed) = sample.missed(topic, &kafka.decode, messages) {
            self.report.warning(&format!("{path}.decode.{}", missed.key), missed.message, missed.help);
        }
        self.seen.extend(sample.metrics);
        Ok(())
    }

    /// Rules of metrics that neither a mapping names nor a sample held.
    fn metrics(&mut self, config: &Config) {
        let mapped: BTreeSet<&str> =
            config.sources.values().flat_map(|source| source.decode().metrics.keys().map(String::as_str)).collect();
        if config.sources.values().all(|source| source.decode().is_wide()) || self.seen.is_empty() {
            // The first was said when the file was loaded; of an empty topic nothing can be said.
            return;
        }
        let known: BTreeSet<&str> = mapped.into_iter().chain(self.seen.iter().map(String::as_str)).collect();
        for (name, rule) in &config.rules {
            let Some(metric) = rule.metric.as_deref().filter(|metric| !known.contains(metric)) else { continue };
            let seen = format!("mapped or seen: {}", known.iter().copied().collect::<Vec<_>>().join(", "));
            let help = match config::nearest(metric, known.iter().copied()) {
                Some(meant) => format!("did you mean `{meant}`? {seen}"),
                None => seen,
            };
            let message = format!("nothing makes the metric `{metric}` so far; rule `{name}` would stay silent");
            self.report.warning(&format!("rules.{name}.metric"), message, help);
        }
    }

    fn rules(&mut self, loaded: &Loaded, resolved: &Resolved, out: &mut dyn Write) -> io::Result<()> {
        for rule in &resolved.rules {
            write!(out, "{:<12} {}", rule.spec.key, rule.metric.as_deref().unwrap_or("every metric"))?;
            if !loaded.inventory.is_empty() {
                let all = loaded.inventory.len();
                let chosen =
                    loaded.inventory.iter().filter(|(sensor, labels)| rule.selector.matches(sensor, labels)).count();
                write!(out, " of {chosen} of the inventory's {all} sensors")?;
            }
            writeln!(out, ", {}", rule.spec.severity)?;
        }
        Ok(())
    }

    fn sinks(&mut self, config: &Config, out: &mut dyn Write) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        for (name, sink) in &config.sinks {
            match crate::sink::verify(sink, runtime.handle()) {
                Ok(what) => writeln!(out, "{name:<12} ok   {}: {what}", sink.kind())?,
                Err(error) => {
                    let code = match error {
                        StartError::Unreachable(_) | StartError::Denied(_) => Exit::Unreachable,
                        StartError::Foreign(_) => Exit::Corrupt,
                        StartError::Settings(_) | StartError::Io(_) => Exit::Configuration,
                        StartError::Corrupt(_) => Exit::Corrupt,
                    };
                    let key = ["url", "bootstrap_servers", "path"]
                        .into_iter()
                        .find(|key| self.report.states(&format!("sinks.{name}.{key}")));
                    let path = key.map_or_else(|| format!("sinks.{name}"), |key| format!("sinks.{name}.{key}"));
                    self.fail(code, &path, error.to_string(), "");
                }
            }
        }
        Ok(())
    }
}

/// The partitions of a topic with their oldest and next offsets.
fn ends(asking: &Asking, topic: &str) -> Result<Vec<(u32, i64, i64)>, SourceError> {
    let partitions = asking.partitions(topic, TIMEOUT)?;
    let end = |partition| asking.watermarks(topic, partition, TIMEOUT).map(|(low, high)| (partition, low, high));
    (0..partitions).map(end).collect()
}

/// The newest messages of a topic that hold bytes, oldest first.
fn newest(kafka: &KafkaSource, topic: &str, ends: &[(u32, i64, i64)]) -> Result<Vec<Vec<u8>>, String> {
    let mut wanted = TopicPartitionList::new();
    let mut open = BTreeSet::new();
    for (partition, low, high) in ends.iter().filter(|(_, low, high)| low < high) {
        let start = Offset::Offset((high - SAMPLE as i64).max(*low));
        wanted.add_partition_offset(topic, *partition as i32, start).map_err(|error| error.to_string())?;
        open.insert(*partition as i32);
    }
    if open.is_empty() {
        return Ok(Vec::new());
    }
    let consumer: BaseConsumer = client_config(&kafka.bootstrap_servers, &kafka.properties)
        .set("group.id", &kafka.group_id)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("enable.partition.eof", "true")
        .create()
        .map_err(|error| error.to_string())?;
    consumer.assign(&wanted).map_err(|error| error.to_string())?;
    let mut found = Vec::new();
    let until = Instant::now() + SAMPLE_TIMEOUT;
    while !open.is_empty() && Instant::now() < until {
        match consumer.poll(Duration::from_millis(100)) {
            None => {}
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                open.remove(&partition);
            }
            Some(Err(error)) => return Err(error.to_string()),
            Some(Ok(message)) => {
                let (_, _, high) = ends[message.partition() as usize];
                if message.offset() + 1 >= high {
                    open.remove(&message.partition());
                }
                if let Some(payload) = message.payload() {
                    let time = message.timestamp().to_millis().unwrap_or(0);
                    found.push(((time, message.partition(), message.offset()), payload.to_vec()));
                }
            }
        }
    }
    if found.is_empty() && !open.is_empty() {
        return Err(format!("no message came within {} s", SAMPLE_TIMEOUT.as_secs()));
    }
    found.sort();
    let skip = found.len().saturating_sub(SAMPLE);
    Ok(found.into_iter().skip(skip).map(|(_, payload)| payload).collect())
}

/// A number with its thousands set apart.
fn grouped(number: i64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) && digits.as_bytes()[index - 1].is_ascii_digit() {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_set_apart() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (41_200_118, "41,200,118"), (-1000, "-1,000")] {
            assert_eq!(grouped(number), text);
        }
    }
}
