//! The two live joins, in differential-dataflow: which rules apply to which series, and what is true now.
//!
//! Page, API and `streamgauge alerts` read the arrangements made here; there is no copy kept beside them. Each worker
//! answers for its own part: the firing alerts are arranged on worker 0, rules and last values where their series are.

use crate::config::{Inventory, Resolved, ResolvedRule};
use crate::nodes::{Applies, Met};
use crate::server::views_api::{AlertCount, FiringAlert, LastValue, RuleSeries, ViewAnswer, ViewQuery};
use differential_dataflow::AsCollection;
use differential_dataflow::operators::arrange::TraceAgent;
use differential_dataflow::operators::arrange::arrangement::arrange_core;
use differential_dataflow::trace::TraceReader;
use differential_dataflow::trace::cursor::{Cursor, cursor_list};
use differential_dataflow::trace::implementations::{ValBatcher, ValSpine};
use operators::alert::Alert;
use operators::{Epoch, SeriesNo};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::probe::{Handle as Probe, Probe as _};
use timely::dataflow::operators::{Exchange as _, ToStream};
use timely::dataflow::{Scope, StreamVec};
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

/// A sensor.
pub type LastKey = Arc<str>;
/// Metric, event time, bits of the value.
pub type LastVal = (Arc<str>, i64, u64);

type Trace<K, V> = TraceAgent<ValSpine<K, V, Epoch, isize>>;

/// A worker's ends of the arrangements.
pub struct Views {
    firing: Trace<FiringKey, FiringVal>,
    applies: Trace<u32, (u32, SeriesNo)>,
    last: Trace<LastKey, LastVal>,
    resolved: Arc<Resolved>,
    compacted: Epoch,
}

/// Which rules apply to which series: series met at run time, joined with rules by metric, narrowed by selectors over
/// the inventory. Each pair goes to the worker that owns the series.
pub fn applies<'s>(
    scope: Scope<'s, Epoch>,
    met: StreamVec<'s, Epoch, Met>,
    resolved: &Arc<Resolved>,
    inventory: &Arc<Inventory>,
) -> StreamVec<'s, Epoch, Applies> {
    let first = scope.worker().index() == 0;
    let of = |all: bool| -> Vec<((Arc<str>, u32), Epoch, isize)> {
        let rules = resolved.rules.iter().zip(0..).filter(|(rule, _)| first && rule.metric.is_none() == all);
        rules.map(|(rule, no)| ((rule.metric.as_deref().unwrap_or("").into(), no), 0, 1)).collect()
    };
    let by_metric = of(false).into_iter().to_stream(scope).as_collection();
    let of_all = of(true).into_iter().to_stream(scope).as_collection();
    let series = met.as_collection();
    let everything =
        series.clone().map(|(metric, (worker, no, sensor))| (Arc::<str>::from(""), (metric, worker, no, sensor)));
    let named = series.join_map(by_metric, |_, (worker, no, sensor), rule| (*worker, *no, sensor.clone(), *rule));
    let every = everything.join_map(of_all, |_, (_, worker, no, sensor), rule| (*worker, *no, sensor.clone(), *rule));
    let (resolved, inventory) = (resolved.clone(), inventory.clone());
    let none = BTreeMap::new();
    named
        .concat(every)
        .filter(move |(_, _, sensor, rule)| {
            let labels = inventory.get(&**sensor).unwrap_or(&none);
            resolved.rules[*rule as usize].selector.matches(sensor, labels)
        })
        .map(|(worker, no, _, rule)| (worker, no, rule))
        .inner
        .exchange(|((worker, _, _), _, _): &Applies| u64::from(*worker))
}

impl Views {
    /// Arranges what the page and the API ask for, where it is.
    pub fn arrange<'s>(
        firing: StreamVec<'s, Epoch, (Firing, Epoch, isize)>,
        applies: StreamVec<'s, Epoch, Applies>,
        last: StreamVec<'s, Epoch, ((LastKey, LastVal), Epoch, isize)>,
        resolved: Arc<Resolved>,
        probe: &Probe<Epoch>,
    ) -> Self {
        let firing = arrange_core::<_, _, _, ValSpine<_, _, _, _>>(firing, Pipeline, "firing", ValBatcher::new);
        let by_rule = applies.as_collection().map(|(worker, series, rule)| (rule, (worker, series))).inner;
        let applies = arrange_core::<_, _, _, ValSpine<_, _, _, _>>(by_rule, Pipeline, "applies", ValBatcher::new);
        let last = arrange_core::<_, _, _, ValSpine<_, _, _, _>>(last, Pipeline, "last values", ValBatcher::new);
        firing.stream.clone().probe_with(probe);
        applies.stream.clone().probe_with(probe);
        last.stream.clone().probe_with(probe);
        Self { firing: firing.trace, applies: applies.trace, last: last.trace, resolved, compacted: 0 }
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
                each(&mut self.firing, None, |key, val| {
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
                    true
                });
                ViewAnswer::Alerts(alerts)
            }
            ViewQuery::AlertCounts => {
                let mut counts: BTreeMap<FiringKey, u64> = BTreeMap::new();
                each(&mut self.firing, None, |key, _| {
                    *counts.entry(key.clone()).or_default() += 1;
                    true
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
                each(&mut self.applies, None, |rule, _| {
                    series[*rule as usize] += 1;
                    true
                });
                let rules = self.resolved.rules.iter().zip(series);
                let of = |(rule, series): (&ResolvedRule, u64)| RuleSeries { rule: rule.spec.key.clone(), series };
                ViewAnswer::Rules(rules.map(of).collect())
            }
            ViewQuery::Last { sensor, limit } => {
                let mut last = Vec::new();
                let wanted: Option<Arc<str>> = sensor.as_deref().map(Into::into);
                each(&mut self.last, wanted.as_ref(), |sensor, (metric, time, value)| {
                    last.push(LastValue {
                        sensor: sensor.to_string(),
                        metric: metric.to_string(),
                        time: *time,
                        value: f64::from_bits(*value),
                    });
                    last.len() < *limit
                });
                ViewAnswer::Last(last)
            }
        }
    }
}

/// Calls `each` with every pair that is there now, of one key or of all, until it has had enough.
fn each<K, V>(trace: &mut Trace<K, V>, only: Option<&K>, mut each: impl FnMut(&K, &V) -> bool)
where
    K: Ord + Clone + 'static,
    V: Ord + Clone + 'static,
{
    let everything = Antichain::new();
    let Some(batches) = trace.batches_through(everything.borrow()) else { return };
    let (mut cursor, storage) = cursor_list(batches);
    if let Some(key) = only {
        cursor.seek_key(&storage, key);
    }
    while let Some(key) = cursor.get_key(&storage) {
        if only.is_some_and(|only| only != key) {
            return;
        }
        while let Some(val) = cursor.get_val(&storage) {
            let mut copies = 0;
            cursor.map_times(&storage, |_, diff| copies += *diff);
            if copies > 0 && !each(key, val) {
                return;
            }
            cursor.step_val(&storage);
        }
        cursor.step_key(&storage);
    }
}

/// Sends an item to a worker by its index.
pub fn to_worker<T: 'static>(worker: impl Fn(&T) -> u64 + 'static) -> Exchange<T, impl FnMut(&T) -> u64 + 'static> {
    Exchange::new(worker)
}
