//! Lanes as the program opens them, and what tests push through them.
#![allow(dead_code, reason = "each test binary includes this file and uses some of it")]

use crossbeam_channel::Receiver;
use operators::{Alert, AlertState, Judged, SeriesName, Verdict};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use streamgauge::config::SinkSettings;
use streamgauge::crew::Threads;
use streamgauge::metrics::Metrics;
use streamgauge::outage::Disk;
use streamgauge::seam::{RealClock, RealFs};
use streamgauge::sink::{
    AlertBatch, Configured, JournalEntry, LaneContext, LaneHandle, LaneState, Lanes, MadeAgain, RowBatch, StartError,
};

/// Some time in 2023, microseconds.
pub const T0: i64 = 1_700_000_000_000_000;

/// Settings by name and type: `[NAME.TYPE]`, then the keys.
pub fn sinks(text: &str) -> BTreeMap<String, SinkSettings> {
    toml::from_str(text).expect("settings")
}

/// One to three transitions, the same ones for the same epoch.
pub fn alerts(epoch: u64) -> AlertBatch {
    let entry = |n: u32| {
        let state = if (epoch + u64::from(n)).is_multiple_of(2) { AlertState::Firing } else { AlertState::Resolved };
        let alert = Alert {
            time: T0 + epoch as i64 * 20_000,
            state,
            rule_key: "too-hot:warning".into(),
            rule: "too-hot".into(),
            version: "0badcafe".into(),
            severity: "warning".into(),
            sensor: format!("s-{}", epoch % 7).into(),
            metric: "temperature".into(),
            value: (n != 3).then_some(epoch as f64 / 3.0),
            start: T0 + epoch as i64 * 20_000 - i64::from(n),
            ordinal: n,
            behind: n == 2,
        };
        JournalEntry { n, alert }
    };
    AlertBatch { epoch, alerts: (1..=1 + epoch as u32 % 3).map(entry).collect() }
}

/// Readings of worker 0: sensor, metric, time in microseconds, value, verdict. Offsets count up from 1000 · epoch.
pub fn rows(epoch: u64, list: &[(&str, &str, i64, f64, Verdict)]) -> RowBatch {
    // A fixed number per name, whatever was pushed before: what a worker's dictionary does.
    let number = |sensor: &str, metric: &str| {
        let bytes = sensor.bytes().chain([0]).chain(metric.bytes());
        bytes.fold(7_u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into())) % 100_000
    };
    let names = list.iter().map(|(sensor, metric, ..)| {
        (number(sensor, metric), SeriesName { sensor: (*sensor).into(), metric: (*metric).into() })
    });
    let rows = list.iter().enumerate().map(|(i, (sensor, metric, time, value, verdict))| Judged {
        time: *time,
        value: *value,
        offset: epoch as i64 * 1000 + i as i64,
        series: number(sensor, metric),
        partition: 0,
        stream: 0,
        index: 0,
        verdict: *verdict,
    });
    let streams = Arc::new(vec![("plant".to_owned(), "sensor-data".to_owned())]);
    RowBatch { epoch, worker: 0, names: names.collect(), rows: rows.collect(), streams }
}

/// A process of one worker, as far as its lanes go.
pub struct Running {
    pub handle: LaneHandle,
    pub metrics: Arc<Metrics>,
    lanes: Lanes,
    cuts: Receiver<LaneState>,
    /// Last, so that lanes end before it.
    _runtime: tokio::runtime::Runtime,
}

impl Running {
    pub fn open(
        sinks: &BTreeMap<String, SinkSettings>,
        data_dir: &Path,
        term: u64,
        restored: &[LaneState],
    ) -> Result<Self, StartError> {
        Self::open_after(sinks, data_dir, term, restored, 0)
    }

    /// The same, when runs before it have written down epochs up to `written`.
    pub fn open_after(
        sinks: &BTreeMap<String, SinkSettings>,
        data_dir: &Path,
        term: u64,
        restored: &[LaneState],
        written: u64,
    ) -> Result<Self, StartError> {
        let _ = tracing_subscriber::fmt().with_test_writer().try_init();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
        let metrics = Metrics::new().expect("metrics");
        let (sender, cuts) = crossbeam_channel::unbounded();
        let context = LaneContext {
            fs: Arc::new(RealFs),
            clock: Arc::new(RealClock::default()),
            dir: data_dir.join("lanes"),
            term,
            written,
            made_again: MadeAgain::default(),
            memory: u64::MAX,
            keep: 3,
            process: 0,
            processes: 1,
            workers: 1,
            disk: Disk::new(Arc::new(RealClock::default()), Arc::default(), Arc::clone(&metrics)),
            metrics: Arc::clone(&metrics),
            crew: Arc::new(Threads),
            cuts: Arc::new(move |state| drop(sender.send(state))),
            labels: Arc::new(|sensor, label| (label == "site").then(|| format!("site of {sensor}"))),
            shed: Arc::new(|sink, _| panic!("{sink} shed something")),
        };
        let lanes = Lanes::open(&Configured, sinks, context, restored.to_vec(), runtime.handle())?;
        Ok(Self { handle: lanes.handle(), metrics, lanes, cuts, _runtime: runtime })
    }

    pub fn rows(&self, batch: RowBatch) {
        assert!(self.handle.wants_rows());
        self.handle.push_rows(batch);
    }

    /// A checkpoint at this cut, durable at once: the states of all lanes.
    pub fn cut(&self, cut: u64) -> Vec<LaneState> {
        self.handle.cut(0, cut);
        let states: Vec<LaneState> = self
            .lanes
            .sinks()
            .iter()
            .map(|_| self.cuts.recv_timeout(Duration::from_secs(20)).expect("a lane's state"))
            .collect();
        assert!(states.iter().all(|state| state.cut == cut), "{states:?}");
        self.lanes.committed(cut);
        let text = serde_json::to_string(&states).expect("text");
        serde_json::from_str(&text).expect("states")
    }

    /// A clean end: how many entries are left.
    pub fn drain(&self) -> u64 {
        self.end(Duration::from_secs(30))
    }

    /// An end that waits no longer than this.
    pub fn give_up(&self, patience: Duration) -> u64 {
        self.end(patience)
    }

    fn end(&self, patience: Duration) -> u64 {
        self.handle.cut(0, u64::MAX);
        self.handle.end(0);
        let report = self.lanes.drain(patience);
        for _ in self.lanes.sinks() {
            let state = self.cuts.recv_timeout(Duration::from_secs(5)).expect("a lane's last state");
            assert_eq!(state.cut, u64::MAX);
        }
        self.lanes.committed(u64::MAX);
        report.left.values().sum()
    }

    /// Waits until something holds; not for ever.
    pub fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !holds() {
            assert!(Instant::now() < deadline, "not {what} within 30 s");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
