//! The two live joins, in differential-dataflow: which rules apply to which series, and what is true now.
//!
//! Page, API and `streamgauge alerts` read the arrangements made here; there is no copy kept beside them. Each worker
//! answers for its own part: the firing alerts are arranged on worker 0, rules and last values where their series are.
//! There a series is its number, and its name is looked up when somebody asks: a million names are not to be compared
//! and copied whenever values change.

use crate::config::{Inventory, Resolved, ResolvedRule};
use crate::kinds::Kinds;
use crate::nodes::{Applies, Met};
use crate::server::views_api::{AlertCount, FiringAlert, LastValue, RuleSeries, ViewAnswer, ViewQuery};
use differential_dataflow::operators::arrange::TraceAgent;
use differential_dataflow::operators::arrange::arrangement::{Arranged, arrange_core};
use differential_dataflow::trace::TraceReader;
use differential_dataflow::trace::cursor::{Cursor, cursor_list};
use differential_dataflow::trace::implementations::{ValBatcher, ValSpine};
use differential_dataflow::{AsCollection, Data, ExchangeData};
use operators::alert::Alert;
use operators::{Epoch, SeriesName, SeriesNo, SharedDictionary};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::probe::{Handle as Probe, Probe as _};
use timely::dataflow::operators::vec::Map as _;
use timely::progress::Antichain;

/// Where a sensor is, by the inventory.
#[derive(Clone)]
pub struct Site(pub Arc<Inventory>);

impl Site {
    fn of(&self, sensor: &str) -> Option<Arc<str>> {
        self.0.get(sensor).and_then(|labels| labels.get("site")).map(|site| site.as_str().into())
    }
}

/// What alerts are looked up by: rule, site, severity.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FiringKey {
    /// The rule's name.
    pub rule: Arc<str>,
    /// The sensor's site.
    pub site: Option<Arc<str>>,
    /// The severity.
    pub severity: Arc<str>,
}

/// An alert that fires.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FiringVal {
    /// Its id.
    pub alert: String,
    /// The sensor.
    pub sensor: Arc<str>,
    /// The metric.
    pub metric: Arc<str>,
    /// The event time at which the condition first held.
    pub start: i64,
    /// The event time at which it began to fire.
    pub since: i64,
    /// The bits of what was judged then: differential data must be ordered.
    pub value: Option<u64>,
}

/// An alert that fires, by what it is looked up by.
pub type Firing = (FiringKey, FiringVal);

/// An alert that begins to fire.
pub fn firing(alert: &Alert, site: &Site) -> Firing {
    let key = FiringKey { rule: alert.rule.clone(), site: site.of(&alert.sensor), severity: alert.severity.clone() };
    let val = FiringVal {
        alert: alert.id_hex(),
        sensor: alert.sensor.clone(),
        metric: alert.metric.clone(),
        start: alert.start,
        since: alert.time,
        value: alert.value.map(f64::to_bits),
    };
    (key, val)
}

/// Event time, bits of the value.
pub type LastVal = (i64, u64);

type Trace<K, V> = TraceAgent<ValSpine<K, V, Epoch, isize>>;

/// A worker's ends of the arrangements.
pub struct Views {
    firing: Trace<FiringKey, FiringVal>,
    applies: Trace<u32, SeriesNo>,
    last: Trace<SeriesNo, LastVal>,
    dictionary: SharedDictionary,
    resolved: Arc<Resolved>,
    compacted: Epoch,
}

/// What is told of kinds of series.
#[derive(Clone, Copy)]
enum Told {
    /// A series is of this kind.
    Series(SeriesNo),
    /// This rule applies to the kind.
    Rule(u32),
}

/// Which rules apply to which series: series met at run time, each of a kind, joined with the rules of their kinds. A
/// worker tells of its own series, so nothing is exchanged.
pub fn applies<'s>(
    met: StreamVec<'s, Epoch, Met>,
    resolved: &Arc<Resolved>,
    inventory: &Arc<Inventory>,
    dictionary: &SharedDictionary,
) -> StreamVec<'s, Epoch, Applies> {
    let mut kinds = Kinds::new(resolved.clone(), inventory.clone());
    let dictionary = dictionary.clone();
    let told = met.flat_map(move |(no, epoch, diff)| {
        let kind = kinds.of(dictionary.borrow().name(no));
        kind.into_iter().flat_map(move |kind| {
            let rules = kind.rules.into_iter().map(Told::Rule);
            rules.chain([Told::Series(no)]).map(move |told| ((kind.number, told), epoch, diff))
        })
    });
    let of = |name, which: fn(Told) -> Option<u32>| {
        let one = move |((kind, told), epoch, diff)| which(told).map(|number| ((kind, number), epoch, diff));
        arranged(told.clone().flat_map(one), name)
    };
    let series = of("series of kinds", |told| if let Told::Series(no) = told { Some(no) } else { None });
    let rules = of("rules of kinds", |told| if let Told::Rule(rule) = told { Some(rule) } else { None });
    series.join_core(rules, |_, series, rule| [(*series, *rule)]).inner
}

/// Arranges what is where it belongs.
fn arranged<'s, K: ExchangeData, V: ExchangeData>(
    stream: StreamVec<'s, Epoch, ((K, V), Epoch, isize)>,
    name: &str,
) -> Arranged<'s, Trace<K, V>> {
    arrange_core::<_, _, ValBatcher<K, V, Epoch, isize>, ValSpine<K, V, Epoch, isize>>(
        stream,
        Pipeline,
        name,
        ValBatcher::new,
    )
}

impl Views {
    /// Arranges what the page and the API ask for, where it is.
    pub fn arrange<'s>(
        firing: StreamVec<'s, Epoch, (Firing, Epoch, isize)>,
        applies: StreamVec<'s, Epoch, Applies>,
        last: StreamVec<'s, Epoch, ((SeriesNo, LastVal), Epoch, isize)>,
        (resolved, dictionary): (Arc<Resolved>, SharedDictionary),
        probe: &Probe<Epoch>,
    ) -> Self {
        let firing = arranged(firing, "firing");
        let applies = arranged(applies.as_collection().map(|(series, rule)| (rule, series)).inner, "applies");
        let last = arranged(last, "last values");
        firing.stream.clone().probe_with(probe);
        applies.stream.clone().probe_with(probe);
        last.stream.clone().probe_with(probe);
        Self { firing: firing.trace, applies: applies.trace, last: last.trace, dictionary, resolved, compacted: 0 }
    }

    /// Lets go of how things came to be before `frontier`; once a second is enough.
    pub fn compact(&mut self, frontier: Epoch) {
        if frontier < self.compacted + 1000 {
            return;
        }
        self.compacted = frontier;
        let frontier = Antichain::from_elem(frontier);
        let frontier = frontier.borrow();
        self.firing.set_logical_compaction(frontier);
        self.firing.set_physical_compaction(frontier);
        self.applies.set_logical_compaction(frontier);
        self.applies.set_physical_compaction(frontier);
        self.last.set_logical_compaction(frontier);
        self.last.set_physical_compaction(frontier);
    }

    /// What is true now, on this worker.
    pub fn answer(&mut self, query: &ViewQuery) -> ViewAnswer {
        match query {
            ViewQuery::Alerts => {
                let mut alerts = Vec::new();
                each(&mut self.firing, |key, val| {
                    alerts.push(FiringAlert {
                        alert: val.alert.clone(),
                        rule: key.rule.to_string(),
                        severity: key.severity.to_string(),
                        sensor: val.sensor.to_string(),
                        metric: val.metric.to_string(),
                        site: key.site.as_deref().map(str::to_owned),
                        start: val.start,
                        since: val.since,
                        value: val.value.map(f64::from_bits),
                    });
                });
                ViewAnswer::Alerts(alerts)
            }
            ViewQuery::AlertCounts => {
                let mut counts: BTreeMap<FiringKey, u64> = BTreeMap::new();
                each(&mut self.firing, |key, _| {
                    *counts.entry(key.clone()).or_default() += 1;
                });
                let count = |(key, firing): (FiringKey, u64)| AlertCount {
                    rule: key.rule.to_string(),
                    site: key.site.as_deref().map(str::to_owned),
                    severity: key.severity.to_string(),
                    firing,
                };
                ViewAnswer::AlertCounts(counts.into_iter().map(count).collect())
            }
            ViewQuery::Rules => {
                let mut series = vec![0; self.resolved.rules.len()];
                each(&mut self.applies, |rule, _| {
                    series[*rule as usize] += 1;
                });
                let rules = self.resolved.rules.iter().zip(series);
                let of = |(rule, series): (&ResolvedRule, u64)| RuleSeries { rule: rule.spec.key.clone(), series };
                ViewAnswer::Rules(rules.map(of).collect())
            }
            ViewQuery::Last { sensor, limit } => {
                let mut dictionary = self.dictionary.borrow_mut();
                let wanted: Box<dyn Iterator<Item = SeriesNo>> = match sensor {
                    Some(sensor) => Box::new(dictionary.of_sensor(sensor)),
                    None => Box::new(dictionary.in_order()),
                };
                let mut last = Vec::new();
                values(&mut self.last, wanted, |series, (time, value)| {
                    last.push((*series, *time, f64::from_bits(*value)));
                    last.len() < *limit
                });
                let named = |(series, time, value): (SeriesNo, i64, f64)| {
                    let SeriesName { sensor, metric } = dictionary.name(series);
                    LastValue { sensor: sensor.to_string(), metric: metric.to_string(), time, value }
                };
                ViewAnswer::Last(last.into_iter().map(named).collect())
            }
        }
    }
}

/// Calls `each` with every pair that is there now.
fn each<K: Data, V: Data>(trace: &mut Trace<K, V>, mut each: impl FnMut(&K, &V)) {
    let Some(batches) = trace.batches_through(Antichain::new().borrow()) else { return };
    let (mut cursor, storage) = cursor_list(batches);
    while let Some(key) = cursor.get_key(&storage) {
        while let Some(val) = cursor.get_val(&storage) {
            let mut copies = 0;
            cursor.map_times(&storage, |_, diff| copies += *diff);
            if copies > 0 {
                each(key, val);
            }
            cursor.step_val(&storage);
        }
        cursor.step_key(&storage);
    }
}

/// Calls `each` with every pair of these keys that is there now, until it has had enough.
fn values<K: Data, V: Data>(
    trace: &mut Trace<K, V>,
    keys: impl Iterator<Item = K>,
    mut each: impl FnMut(&K, &V) -> bool,
) {
    let Some(batches) = trace.batches_through(Antichain::new().borrow()) else { return };
    let (mut cursor, storage) = cursor_list(batches);
    for key in keys {
        cursor.rewind_keys(&storage);
        cursor.seek_key(&storage, &key);
        if cursor.get_key(&storage) != Some(&key) {
            continue;
        }
        while let Some(val) = cursor.get_val(&storage) {
            let mut copies = 0;
            cursor.map_times(&storage, |_, diff| copies += *diff);
            if copies > 0 && !each(&key, val) {
                return;
            }
            cursor.step_val(&storage);
        }
    }
}

/// Sends an item to a worker by its index.
pub fn to_worker<T: 'static>(worker: impl Fn(&T) -> u64 + 'static) -> Exchange<T, impl FnMut(&T) -> u64 + 'static> {
    Exchange::new(worker)
}
