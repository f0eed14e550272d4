use super::*;
use crate::config::{Overrides, load_texts};
use crate::dataflow::Logic;
use crate::epoch_log::Control;
use crate::metrics::Metrics;
use crate::nodes::{Clock, Common, JudgeNode, Passing, RollingNode, RulesNode, operator};
use crate::outage::Disk;
use crate::process::{EpochClock, Shared};
use crate::seam::RealClock;
use crossbeam_channel::{Receiver, unbounded};
use operators::judge::Judge;
use operators::key_group::key_group;
use operators::keyed::{Arrived, Node, Out, Step};
use operators::rolling::Rolling;
use operators::rules::Rules;
use operators::{Reading, SeriesName};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

/// A number for some groups.
struct Numbers(Vec<Option<u64>>);

impl Saves for Numbers {
    fn save_group(&self, group: u16, w: &mut Writer) {
        if let Some(number) = self.0[usize::from(group)] {
            w.u64(number);
        }
    }
}

type Saved = BTreeMap<(Epoch, &'static str, u16), Vec<u8>>;

/// What has been saved; how many pieces were the last of theirs.
fn gathered(pieces: &Receiver<(Epoch, Piece)>, saved: &mut Saved) -> usize {
    let mut ended = 0;
    for (cut, piece) in pieces.try_iter() {
        let Piece::State { operator, blobs, last } = piece else { continue };
        let mut rest = blobs.bytes.as_slice();
        for (group, length) in blobs.groups {
            let bytes = rest.split_off(..length).expect("as many as it says").to_vec();
            assert!(saved.insert((cut, operator, group), bytes).is_none(), "{operator} {group} was saved twice");
        }
        assert!(rest.is_empty());
        ended += usize::from(last);
    }
    ended
}

#[test]
fn a_cut_is_what_was_there_whatever_changes_before_it_is_saved() {
    let mut random = fastrand::Rng::with_seed(7);
    for slice in [1, 100, 5_000, usize::MAX] {
        let (sender, pieces) = unbounded();
        let mut saving = Saving::new("numbers", sender, slice);
        let mut state = Numbers((0..KEY_GROUPS).map(|group| (group % 3 > 0).then_some(0)).collect());
        let (mut saved, mut wanted) = (Saved::new(), Saved::new());
        let (mut ended, mut open) = (0, 0);
        for epoch in 1..1_000_u64 {
            if epoch % 90 == 0 {
                saving.cut(epoch, &state);
                for (group, number) in (0..).zip(&state.0) {
                    wanted.extend(number.map(|number| ((epoch, "numbers", group), number.to_le_bytes().to_vec())));
                }
            }
            let changed: Vec<u16> = (0..random.usize(0..50)).map(|_| random.u16(0..KEY_GROUPS)).collect();
            saving.before(changed.iter().copied(), &state);
            changed.iter().for_each(|group| state.0[usize::from(*group)] = Some(epoch));
            ended += gathered(&pieces, &mut saved);
            open += usize::from(saving.is_open());
            saving.some(&state);
        }
        saving.before_all(&state);
        ended += gathered(&pieces, &mut saved);
        assert_eq!((saved == wanted, ended), (true, 11), "{slice} bytes at a time");
        assert_eq!(open > 500, slice < 1_000, "{slice} bytes at a time: open for {open} epochs");
    }
}

#[test]
fn the_last_cut_is_saved_at_once() {
    let (sender, pieces) = unbounded();
    let mut saving = Saving::new("numbers", sender, 1);
    saving.cut(Epoch::MAX, &Numbers(vec![Some(1); usize::from(KEY_GROUPS)]));
    let mut saved = Saved::new();
    assert_eq!((saving.is_open(), gathered(&pieces, &mut saved)), (false, 1));
    assert_eq!(saved.len(), usize::from(KEY_GROUPS));
}

const CONFIG: &str = r#"
event_time.allowed_lateness = "2s"
dedup.window = "20s"
limits.series_ttl = "60s"
rolling.windows = ["10s"]
[sources.plant]
type = "kafka"
bootstrap_servers = "memory:1"
topics = ["t"]
decode = { sensor = "/s", metric = "/m", value = "/v", time = "/t" }
[rules.high]
metric = "h"
when.above = 60.0
[rules.long]
metric = "t"
when.above = 30.0
for = "5s"
[rules.mean]
metric = "t"
of.mean = "10s"
when.above = 55.0
[rules.silent]
when.missing.after = "15s"
"#;

/// The nodes that have state, one behind the other.
struct Line {
    judge: JudgeNode,
    rolling: RollingNode,
    rules: RulesNode,
    dictionary: operators::SharedDictionary,
    logic: Logic,
    pieces: Receiver<(Epoch, Piece)>,
}

fn none<X, Y, Z>() -> Out<X, Y, Z> {
    Out { first: Vec::new(), second: Vec::new(), third: Vec::new() }
}

impl Line {
    fn new(slice: usize) -> Self {
        let loaded = load_texts(&[("x.toml".into(), CONFIG.into())], &|_| None, &Overrides::default())
            .unwrap_or_else(|report| panic!("{report:?}"));
        let logic = Logic::new(&loaded.pure());
        let clock = Arc::new(RealClock::default());
        let metrics = Metrics::new().expect("they are sound");
        let disk = Disk::new(clock.clone(), Arc::default(), metrics.clone());
        let epochs = EpochClock::start(clock, 20_000, 0);
        let (sender, pieces) = unbounded();
        let common = Common {
            worker: 0,
            local: 0,
            shared: Arc::new(Shared::new(epochs, None, disk, 1, Arc::default())),
            metrics,
            pieces: sender,
            dictionary: Rc::default(),
            streams: Arc::new(vec![("plant".into(), "t".into())]),
            stall: Default::default(),
            slice,
            trip: None,
        };
        let (dictionary, clock) = (common.dictionary.clone(), Clock::default());
        let (plan, rules) = (Rc::new(logic.resolved.plan.clone()), &logic.resolved.rules);
        let judge = Judge::new(logic.judge.clone(), dictionary.clone());
        let rolling = Rolling::new(logic.resolved.windows.clone(), plan.clone(), dictionary.clone());
        let specs = rules.iter().map(|rule| Rc::new(rule.spec.clone())).collect();
        let ruling = Rules::new(specs, logic.judge.allowed_lateness, plan, dictionary.clone());
        let keys = rules.iter().map(|rule| rule.spec.key.as_str());
        let nothing = || std::iter::empty();
        Self {
            judge: JudgeNode::new(common.clone(), judge, clock.clone(), nothing()).expect("nothing to restore"),
            rolling: RollingNode::new(common.clone(), rolling, nothing()).expect("nothing to restore"),
            rules: RulesNode::new(common, ruling, keys, &clock, nothing()).expect("nothing to restore"),
            dictionary,
            logic,
            pieces,
        }
    }

    /// An epoch, complete, and the seconds before it; how many alerts changed, and how many series were forgotten.
    fn epoch(&mut self, epoch: Epoch, cut: bool, readings: Vec<Reading>) -> (usize, usize) {
        if cut {
            self.judge.step(Step::Cut(epoch), &mut none());
            self.rolling.step(Step::Cut(epoch), &mut none());
            self.rules.step(Step::Cut(epoch), &mut none());
        }
        let (mut alerts, mut forgotten) = (0, 0);
        while let Some(second) = self.judge.due().filter(|second| *second <= epoch) {
            let mut out = none();
            self.judge.step(Step::Second(second), &mut out);
            forgotten += out.first.iter().map(|passing| passing.batch.forgotten.len()).sum::<usize>();
            alerts += self.behind_the_judge(second, out.first);
        }
        let first = epoch == 1_000;
        let controls = [Control::Term { processes: 1 }, Control::Hearing { process: 0 }];
        let mut out = none();
        let mut container = readings;
        self.judge.arrive(&mut container);
        let second = controls.into_iter().filter(|_| first).collect();
        self.judge.step(Step::Epoch(epoch, Arrived { first: vec![container], second, third: Vec::new() }), &mut out);
        alerts += self.behind_the_judge(epoch, out.first);
        self.judge.go_on();
        self.rolling.go_on();
        self.rules.go_on();
        (alerts, forgotten)
    }

    fn behind_the_judge(&mut self, epoch: Epoch, passing: Vec<Passing>) -> usize {
        let mut rolled = none();
        let arrived = Arrived { first: vec![passing], second: Vec::new(), third: Vec::new() };
        self.rolling.step(Step::Epoch(epoch, arrived), &mut rolled);
        let mut out = none();
        while let Some(second) = self.rules.due().filter(|second| *second <= epoch) {
            self.rules.step(Step::Second(second), &mut out);
        }
        let mut arrived = Arrived { first: vec![rolled.first], second: Vec::new(), third: Vec::new() };
        for no in arrived.first.iter().flatten().flat_map(|passing| &passing.batch.created) {
            let name = self.dictionary.borrow().name(*no).clone();
            let rules = (0..).zip(&self.logic.resolved.rules);
            let applying = rules.filter(|(_, r)| r.applies(&name.sensor, &name.metric, &BTreeMap::new()));
            arrived.second.extend(applying.map(|(rule, _)| ((*no, rule), epoch, 1)));
        }
        self.rules.step(Step::Epoch(epoch, arrived), &mut out);
        out.second.len()
    }
}

/// Readings of sensors that come, pause for long, and come back; some late, some behind, some twice.
fn readings(epoch: Epoch, random: &mut fastrand::Rng) -> Vec<Reading> {
    let mut all = Vec::new();
    for offset in 0..random.i64(0..60) {
        let number = random.u32(0..600);
        if (u64::from(number) + epoch / 100_000).is_multiple_of(3) {
            continue;
        }
        let (sensor, metric) = (format!("s-{}", number / 2), ["t", "h"][number as usize % 2]);
        let name = SeriesName { sensor: sensor.as_str().into(), metric: metric.into() };
        let time = epoch as i64 * 1_000 - random.i64(0..4_000_000);
        let value = random.f64() * 100.0;
        let what = (time, value, u128::from(random.u8(..)));
        let places = ((0, 0, epoch as i64 * 100 + offset, 0), (number, key_group(sensor.as_bytes())));
        all.push(Reading::new(places.0, places.1, Some(Box::new(name)), what));
    }
    all
}

#[test]
fn judge_rolling_and_rules_save_at_a_cut_what_they_were_whatever_comes_before_it_is_saved() {
    let run = |slice: usize| {
        let mut random = fastrand::Rng::with_seed(11);
        let mut line = Line::new(slice);
        let mut saved = Saved::new();
        let (mut alerts, mut forgotten, mut ended, mut at_once) = (0, 0, 0, 0);
        for second in 1..=600 {
            let (epoch, cut) = (second * 1_000, second % 60 == 30);
            let (changed, gone) = line.epoch(epoch, cut, readings(epoch, &mut random));
            (alerts, forgotten) = (alerts + changed, forgotten + gone);
            let now = gathered(&line.pieces, &mut saved);
            at_once += if cut { now } else { 0 };
            ended += now;
        }
        while line.judge.go_on() | line.rolling.go_on() | line.rules.go_on() {}
        ended += gathered(&line.pieces, &mut saved);
        saved.retain(|(_, operator, _), _| *operator != operator::CLOCK);
        (saved, alerts, forgotten, ended, at_once)
    };
    let (saved, alerts, forgotten, ended, at_once) = run(usize::MAX);
    assert!(alerts > 1_000 && forgotten > 100 && saved.len() > 5_000, "{alerts} {forgotten} {}", saved.len());
    assert_eq!((ended, at_once), (40, 40), "ten cuts of three operators, and the clock's");
    for slice in [1, 3_000] {
        let (little_by_little, alerts_too, forgotten_too, ended, at_once) = run(slice);
        assert_eq!((alerts_too, forgotten_too, ended), (alerts, forgotten, 40));
        assert!(at_once < 20, "{at_once} of 40 were complete at once");
        let differs = saved.iter().find(|(at, bytes)| little_by_little.get(at) != Some(bytes));
        assert_eq!(differs.map(|(at, _)| at), None, "{slice} bytes at a time");
        assert_eq!(little_by_little.len(), saved.len());
    }
}
