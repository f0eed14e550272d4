//! Where everything leaves the dataflow.

use super::{Common, Passing, operator};
use crate::checkpoint;
use crate::dead_lane::DeadLetterLane;
use crate::seam::Fs;
use crate::sink::{AlertBatch, JournalEntry, LaneHandle, RowBatch};
use crate::source::node::Refused;
use crate::views::{self, Firing, LastVal, Site};
use operators::alert::{Alert, AlertState};
use operators::keyed::{Node, Out, Step};
use operators::state::GroupStates;
use operators::{Epoch, SeriesName, SeriesNo, Verdict};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// Where everything leaves the dataflow, once its epoch is complete: alerts (on worker 0), rows, dead letters, views.
pub struct OutboxNode {
    common: Common,
    lanes: LaneHandle,
    dead_letters: DeadLetterLane,
    site: Site,
    alerts: Alerts,
    names: Vec<(SeriesNo, SeriesName)>,
    named: Vec<bool>,
    last: Last,
}

/// How many alert transitions there were, and which alerts fire (worker 0). Part of the checkpoint.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Alerts {
    /// Transitions since the state began.
    pub transitions: u64,
    /// By alert id.
    firing: BTreeMap<String, Firing>,
}

/// The newest accepted value of each series, as it stands and as the view has it.
struct Last {
    /// Milliseconds of epoch time between updates of the view; 0 for none.
    interval: Epoch,
    next: Epoch,
    series: Vec<Option<(i64, f64)>>,
    shown: Vec<Option<(i64, f64)>>,
    changed: Vec<SeriesNo>,
}

impl Last {
    fn set(&mut self, series: SeriesNo, time: i64, value: f64) {
        let no = series as usize;
        if self.series.len() <= no {
            self.series.resize(no + 1, None);
            self.shown.resize(no + 1, None);
        }
        if self.series[no] == self.shown[no] {
            self.changed.push(series);
        }
        self.series[no] = Some((time, value));
    }

    fn flush(&mut self, epoch: Epoch, out: &mut Vec<((SeriesNo, LastVal), Epoch, isize)>) {
        self.changed.sort_unstable();
        self.changed.dedup();
        for series in self.changed.drain(..) {
            let no = series as usize;
            let (new, old) = (self.series[no], self.shown[no]);
            if new == old {
                continue;
            }
            let val = |(time, value): (i64, f64)| (series, (time, value.to_bits()));
            out.extend(old.map(|old| (val(old), epoch, -1)));
            out.extend(new.map(|new| (val(new), epoch, 1)));
            self.shown[no] = new;
        }
    }
}

impl OutboxNode {
    /// `alerts`: those before; `last_ms`: how often the view of last values is brought up to date.
    pub fn new(
        common: Common,
        lanes: LaneHandle,
        dead_letters: DeadLetterLane,
        site: Site,
        alerts: Alerts,
        last_ms: Epoch,
    ) -> Self {
        let last = Last { interval: last_ms, next: 0, series: Vec::new(), shown: Vec::new(), changed: Vec::new() };
        Self { common, lanes, dead_letters, site, alerts, names: Vec::new(), named: Vec::new(), last }
    }

    fn alerts(&mut self, epoch: Epoch, mut alerts: Vec<Alert>, out: &mut Vec<(Firing, Epoch, isize)>) {
        alerts.sort_by(|a, b| a.order(b));
        self.alerts.transitions += alerts.len() as u64;
        for alert in &alerts {
            let labels = [&*alert.rule, &*alert.severity, alert.state.word()];
            self.common.metrics.alert_changes_total.with_label_values(&labels).inc();
            match alert.state {
                AlertState::Firing => {
                    let firing = views::firing(alert, &self.site);
                    self.gauge(&firing).inc();
                    self.alerts.firing.insert(firing.1.alert.clone(), firing.clone());
                    out.push((firing, epoch, 1));
                }
                AlertState::Resolved => {
                    if let Some(firing) = self.alerts.firing.remove(&alert.id_hex()) {
                        self.gauge(&firing).dec();
                        out.push((firing, epoch, -1));
                    }
                }
            }
        }
        let alerts = alerts.into_iter().zip(1..).map(|(alert, n)| JournalEntry { n, alert }).collect();
        self.lanes.push_alerts(AlertBatch { epoch, alerts });
    }

    fn gauge(&self, (key, _): &Firing) -> prometheus::IntGauge {
        self.common.metrics.alerts.with_label_values(&[&*key.rule, &*key.severity, AlertState::Firing.word()])
    }

    fn name(&mut self, series: SeriesNo) {
        let no = series as usize;
        if self.named.len() <= no {
            self.named.resize(no + 1, false);
        }
        if !std::mem::replace(&mut self.named[no], true) {
            self.names.push((series, self.common.dictionary.borrow().name(series).clone()));
        }
    }

    fn rows(&mut self, passing: Passing) {
        for refused in passing.refused {
            self.dead_letters.push(passing.batch.epoch, refused);
        }
        let rows = passing.batch.readings;
        if rows.is_empty() {
            return;
        }
        let wanted = self.lanes.wants_rows();
        for row in &rows {
            if wanted && self.named.get(row.series as usize).is_none_or(|named| !named) {
                self.name(row.series);
            }
            if self.last.interval > 0 && row.verdict == Verdict::Accepted {
                self.last.set(row.series, row.time, row.value);
            }
        }
        if wanted {
            self.lanes.push_rows(RowBatch {
                epoch: passing.batch.epoch,
                worker: self.common.local,
                names: std::mem::take(&mut self.names),
                rows,
                streams: self.common.streams.clone(),
            });
        }
    }
}

impl Node for OutboxNode {
    type A = Passing;
    type B = Alert;
    type C = Refused;
    type X = (Firing, Epoch, isize);
    type Y = ((SeriesNo, LastVal), Epoch, isize);
    type Z = ();

    fn begin(&mut self, out: &mut Out<Self::X, Self::Y, ()>) {
        for firing in self.alerts.firing.values() {
            self.gauge(firing).inc();
            out.first.push((firing.clone(), 0, 1));
        }
    }

    fn step(&mut self, step: Step<Passing, Alert, Refused>, out: &mut Out<Self::X, Self::Y, ()>) {
        match step {
            Step::Cut(cut) => {
                let began_us = self.common.now_us();
                self.lanes.cut(self.common.local, cut);
                self.dead_letters.cut(cut);
                if self.common.worker == 0 {
                    let alerts = serde_json::to_vec(&self.alerts).unwrap_or_default();
                    self.common.save(cut, operator::ALERTS, GroupStates::from([(0, alerts)]));
                }
                self.common.saved(operator::ALERTS, began_us);
                self.common.stalled();
            }
            Step::Epoch(epoch, arrived) => {
                for refused in arrived.third {
                    self.dead_letters.push(epoch, refused);
                }
                arrived.first.into_iter().flatten().for_each(|passing| self.rows(passing));
                if !arrived.second.is_empty() {
                    self.alerts(epoch, arrived.second, &mut out.first);
                }
            }
            Step::Passed(frontier) => {
                self.common.stalled();
                self.lanes.complete(self.common.local, frontier);
                if self.last.interval > 0 && frontier >= self.last.next && !self.last.changed.is_empty() {
                    self.last.next = (frontier / self.last.interval + 1) * self.last.interval;
                    self.last.flush(frontier - 1, &mut out.second);
                }
            }
            Step::Second(_) => {}
            Step::End => {
                self.lanes.end(self.common.local);
                self.dead_letters.end();
            }
        }
    }
}

/// How many alert transitions there were, by the newest checkpoint.
pub fn alerts_at_end(fs: &dyn Fs, checkpoints: &Path) -> u64 {
    let newest = checkpoint::newest(fs, checkpoints).ok().flatten();
    let alerts = newest.as_ref().and_then(|r| r.groups(operator::ALERTS, |_| true).next());
    alerts.and_then(|(_, bytes)| serde_json::from_slice::<Alerts>(bytes).ok()).map_or(0, |a| a.transitions)
}
