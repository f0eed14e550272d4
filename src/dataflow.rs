//! The graph, as it runs. Read this first.
//!
//! ```text
//! source ──readings──▶ judge ──▶ rolling ──▶ rules ──rows──▶ outbox ──▶ lanes ──▶ Redis, Parquet, ...
//!   │ │ │   by key group ▲ │                  ▲   └─alerts──▶   │ │        └──▶ journal
//!   │ │ └─control lines──┘ └─series met ─⋈ rules┘  to worker 0   │ └─▶ views: firing, last values
//!   │ └─what was refused ───────────────────────────────────────┘
//!   └─counts──▶ ledger ◀──counts── judge
//! ```
//!
//! Everything a worker does below the source waits until the frontier has passed an epoch (`operators::keyed`); so what
//! comes out is a function of the epochs' contents. There is one exchange of readings, by the sensor's key group.

use crate::checkpoint::Restored;
use crate::config::{Inventory, OnConflict, Pure, Resolved};
use crate::dead_lane::DeadLetterLane;
use crate::error::Failure;
use crate::nodes::{
    Alerts, Clock, Common, JudgeNode, LedgerNode, OutboxNode, RollingNode, RulesNode, Totals, operator,
};
use crate::server::readiness::Readiness;
use crate::sink::LaneHandle;
use crate::source::node::{SourceWorker, source_node};
use crate::source::{Source, SourceError};
use crate::views::{Site, Views, applies, to_worker};
use crossbeam_channel::Sender;
use operators::alert::Alert;
use operators::judge::{Judge, JudgeConfig};
use operators::key_group::{KEY_GROUPS, worker_of};
use operators::keyed::{Cuts, node};
use operators::rolling::Rolling;
use operators::rules::{RuleSpec, Rules};
use operators::{Epoch, Reading};
use std::rc::Rc;
use std::sync::Arc;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::probe::Handle as Probe;
use timely::dataflow::operators::vec::Broadcast;
use timely::dataflow::operators::{Concat, Probe as _};
use timely::dataflow::{Scope, StreamVec};
use timely::worker::Worker;

/// What judges a reading: the pure part of the configuration, as the operators take it.
#[derive(Clone)]
pub struct Logic {
    /// Lateness, duplicates, limits.
    pub judge: JudgeConfig,
    /// Windows, statistics and rules; a rule's number is its place.
    pub resolved: Arc<Resolved>,
    /// Sensors and their labels.
    pub inventory: Arc<Inventory>,
}

impl Logic {
    /// From the pure part of a configuration that has been validated.
    pub fn new(pure: &Pure) -> Self {
        let judge = JudgeConfig {
            allowed_lateness: pure.event_time.allowed_lateness.us(),
            dedup_window: pure.dedup.window.us(),
            conflict_is_dead_letter: pure.dedup.on_conflict == OnConflict::DeadLetter,
            max_series_per_group: (u64::from(pure.limits.max_series) * 2).div_ceil(u64::from(KEY_GROUPS)) as u32,
            series_ttl_ms: (pure.limits.series_ttl.us() / 1000) as u64,
        };
        Self { judge, resolved: Arc::new(Resolved::new(pure)), inventory: Arc::new(pure.inventory.clone()) }
    }
}

/// What a worker's part of the graph is made of.
pub struct Parts {
    /// Common to all nodes.
    pub common: Common,
    /// What judges.
    pub logic: Logic,
    /// The source.
    pub source: SourceWorker,
    /// When checkpoints are cut.
    pub cuts: Cuts,
    /// The checkpoint to go on from.
    pub restored: Option<Arc<Restored>>,
    /// The lanes of sinks.
    pub lanes: LaneHandle,
    /// The lane of dead letters.
    pub dead_letters: DeadLetterLane,
    /// Why not to be ready.
    pub readiness: Arc<Readiness>,
    /// Milliseconds between updates of last values.
    pub last_values_ms: Epoch,
    /// Where the ledger's totals go at the end.
    pub totals: Sender<Totals>,
}

/// Builds a worker's part of the graph; `open` makes its source.
pub fn build(
    worker: &mut Worker,
    parts: Parts,
    open: impl FnOnce(Box<dyn Fn() + Send + Sync>) -> Result<Box<dyn Source>, SourceError>,
) -> Result<(Views, Probe<Epoch>), Failure> {
    worker.dataflow_named("streamgauge", |scope| graph(scope, parts, open))
}

fn graph(
    scope: Scope<'_, Epoch>,
    parts: Parts,
    open: impl FnOnce(Box<dyn Fn() + Send + Sync>) -> Result<Box<dyn Source>, SourceError>,
) -> Result<(Views, Probe<Epoch>), Failure> {
    let Parts { common, logic, source, cuts, restored, lanes, dead_letters, readiness, last_values_ms, totals } = parts;
    let peers = scope.peers();
    let worker = common.worker;
    let probe = Probe::new();
    let resolved = logic.resolved;
    let inventory = logic.inventory;
    let plan = Rc::new(resolved.plan.clone());
    let specs: Vec<Rc<RuleSpec>> = resolved.rules.iter().map(|rule| Rc::new(rule.spec.clone())).collect();
    let dictionary = common.dictionary.clone();

    // What the checkpoint holds for this worker's key groups.
    let mine = move |group| worker_of(group, peers) == worker;
    let state = |name: &'static str| restored.iter().flat_map(move |r| r.groups(name, mine));
    let one = |name: &'static str| restored.iter().flat_map(move |r| r.groups(name, |_| true)).next();
    let corrupt = |error: &dyn std::fmt::Display| Failure::state(format!("checkpoint: {error}"));
    let clock = one(operator::CLOCK).map_or(Ok(Clock::default()), |(_, b)| Clock::load(b)).map_err(|e| corrupt(&e))?;
    let alerts = match one(operator::ALERTS) {
        Some((_, bytes)) if worker == 0 => serde_json::from_slice(bytes).map_err(|e| corrupt(&e))?,
        _ => Alerts::default(),
    };
    let past = restored.as_ref().and_then(|r| r.totals()).filter(|_| worker == 0);
    let past = past.map_or(Ok(Totals::new()), |t| serde_json::from_value(t.clone())).map_err(|e| corrupt(&e))?;

    let judge = Judge::new(logic.judge.clone(), dictionary.clone());
    let judge =
        JudgeNode::new(common.clone(), judge, clock.clone(), state(operator::JUDGE)).map_err(|e| corrupt(&e))?;
    let rolling = Rolling::new(resolved.windows.clone(), plan.clone(), dictionary.clone());
    let rolling = RollingNode::new(common.clone(), rolling, state(operator::ROLLING)).map_err(|e| corrupt(&e))?;
    let ruling = Rules::new(specs, logic.judge.allowed_lateness, plan, dictionary.clone());
    let ruling = {
        let keys = resolved.rules.iter().map(|rule| rule.spec.key.as_str());
        RulesNode::new(common.clone(), ruling, keys, &clock, state(operator::RULES))
    }
    .map_err(|e| corrupt(&e))?;
    let outbox = OutboxNode::new(common.clone(), lanes, dead_letters, Site(inventory.clone()), alerts, last_values_ms);
    let ledger = LedgerNode::new(common.clone(), readiness, past, totals);

    let (readings, read, controls, refused) =
        source_node(scope, source, common.shared.clone(), common.metrics.clone(), probe.clone(), open);
    let by_group = to_worker(move |reading: &Reading| worker_of(reading.group, peers) as u64);
    let inputs = ((readings, by_group), (controls.broadcast(), Pipeline), (none(scope), Pipeline));
    let (judged, judgements, met) = node(scope, "judge", inputs, cuts, judge);

    let inputs = ((judged, Pipeline), (none(scope), Pipeline), (none(scope), Pipeline));
    let (rolled, _, _) = node(scope, "rolling", inputs, cuts, rolling);

    let applies = applies(met, &resolved, &inventory, &dictionary);
    let inputs = ((rolled, Pipeline), (applies.clone(), Pipeline), (none(scope), Pipeline));
    let (rows, alerts, _) = node(scope, "rules", inputs, cuts, ruling);

    let to_first = to_worker(|_: &Alert| 0);
    let (firing, last, _) =
        node(scope, "outbox", ((rows, Pipeline), (alerts, to_first), (refused, Pipeline)), cuts, outbox);

    let counts = read.concat(judgements);
    let inputs = ((counts, to_worker(|_| 0)), (none(scope), Pipeline), (none(scope), Pipeline));
    let (checked, _, _) = node(scope, "ledger", inputs, cuts, ledger);
    checked.probe_with(&probe);

    Ok((Views::arrange(firing, applies, last, (resolved, dictionary), &probe), probe))
}

fn none<'s>(scope: Scope<'s, Epoch>) -> StreamVec<'s, Epoch, ()> {
    timely::dataflow::operators::generic::operator::empty(scope)
}
