//! What comes before the workers: what earlier runs left, whose configuration was in force, and the plan of each stretch.

use super::stop::Stopping;
use super::stretch::Stretch;
use super::{Run, cannot_start, look_at_data_dir, start_failure};
use crate::checkpoint::{self, Name};
use crate::config::Pure;
use crate::epoch_log::{self, LogEnd};
use crate::error::Failure;
use crate::fenced::Fenced;
use crate::metrics::Metrics;
use crate::nodes::Totals;
use crate::outage::Disk;
use crate::panics;
use crate::plan::{self, Layout, Plan};
use crate::seam::{make_dir, replace};
use crate::server::readiness::Readiness;
use crate::sink::StartError;
use crate::source::origin::Origin;
use crate::source::replay::Line;
use crate::terms::{self, Fence};
use operators::{Epoch, Stream};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};

pub(super) struct World {
    pub(super) run: Run,
    pub(super) runtime: tokio::runtime::Runtime,
    pub(super) metrics: Arc<Metrics>,
    pub(super) readiness: Arc<Readiness>,
    pub(super) disk: Arc<Disk>,
    pub(super) stopping: Arc<Stopping>,
}

/// Totals, alert transitions, what sinks had not taken.
pub(super) type Result3 = (Totals, u64, BTreeMap<String, u64>);

impl World {
    fn config_text(&self, layout: &Layout, hash: &str) -> Result<Pure, Failure> {
        let path = layout.configs.join(format!("{hash}.toml"));
        let text = self.run.fs.read(&path).map_err(|e| {
            Failure::state(format!("{}: {e}; the epoch log needs the configuration that was in force", path.display()))
        })?;
        let text = String::from_utf8(text).map_err(|e| Failure::state(format!("{}: {e}", path.display())))?;
        let pure = Pure::parse(&text).map_err(|e| Failure::state(format!("{}: {e}", path.display())))?;
        if pure.hash() != hash {
            return Err(Failure::state(format!("{}: it is not the configuration it is named after", path.display())));
        }
        Ok(pure)
    }

    fn record_config(&self, layout: &Layout) -> Result<String, Failure> {
        let hash = self.run.pure.hash();
        let path = layout.configs.join(format!("{hash}.toml"));
        let written = make_dir(&*self.run.fs, &layout.configs).and_then(|()| {
            if self.run.fs.exists(&path) {
                // Whoever wrote it may have died before its name was durable.
                self.run.fs.sync_dir(&layout.configs)
            } else {
                replace(&*self.run.fs, &path, self.run.pure.text().as_bytes())
            }
        });
        written.map_err(|e| {
            let what = format!("data_dir: {}: {e}; choose a folder this user may write to", path.display());
            start_failure(StartError::of_disk(what, &e))
        })?;
        Ok(hash)
    }

    /// What can stop a start is asked before anything is written down: a run that cannot begin leaves nothing behind.
    fn look_first(&self) -> Result<(), Failure> {
        look_at_data_dir(&*self.run.fs, &self.run.config.data_dir)?;
        for (stream, (source, _)) in (0..).zip(&self.run.pure.streams()) {
            self.run.origin.partitions(stream).map_err(|error| cannot_start(source, error))?;
        }
        for (name, sink) in &self.run.config.sinks {
            self.run.destinations.look(sink, self.runtime.handle()).map_err(|error| {
                let Failure { code, message } = start_failure(error);
                Failure { code, message: format!("sinks.{name}: {message}") }
            })?;
        }
        Ok(())
    }

    /// Terms that ran with another configuration are replayed with it, by this process alone; then everything goes on
    /// from a checkpoint at their end.
    pub(super) fn live(self: &Arc<Self>, listener: Option<std::net::TcpListener>) -> Result<Result3, Failure> {
        if self.run.options.signals {
            self.stopping.on_signals();
        }
        if let Some(control) = &self.run.options.control {
            let stopping = Arc::clone(&self.stopping);
            control.on_stop(move || stopping.ask());
        }
        self.look_first()?;
        let layout = Layout::new(self.run.config.data_dir.clone());
        self.join(&layout)?;
        let came = self.joined(layout, listener);
        if let Some(mesh) = self.stopping.mesh.get() {
            // Where a process was lost, that is the reason, whatever else it brought about.
            let came = came.map_err(|failure| mesh.failure().unwrap_or(failure));
            mesh.leave(came.as_ref().err());
            if came.is_err() {
                // The program is about to end. Until then lanes deliver what is complete, and need what they run on.
                std::mem::forget(Arc::clone(self));
            }
            return came;
        }
        came
    }

    fn joined(
        self: &Arc<Self>,
        layout: Layout,
        mut listener: Option<std::net::TcpListener>,
    ) -> Result<Result3, Failure> {
        if self.run.options.process == 0 {
            let hash = self.record_config(&layout)?;
            // State that cannot be gone on from is left as it is. What counts is read again, once the term is ours.
            drop(plan::past(&*self.run.fs, &layout, None)?);
            loop {
                let (term, past) = self.begin_term(&layout)?;
                let changed = past.terms.iter().any(|t| t.header.config != hash);
                let Some(old) = past.terms.first().map(|t| t.header.config.clone()).filter(|_| changed) else {
                    let plan = self.plan_live(&layout, past, term, hash)?;
                    return self.stretch(layout, Some(plan), self.run.pure.clone(), listener.take())?.go();
                };
                tracing::info!(config = old, "what an earlier configuration began is finished with it first");
                let pure = self.config_text(&layout, &old)?;
                let mut plan = self.plan_replay(past, &old, &pure)?;
                // Files of this stretch have a term of their own: nothing of the old one is written over.
                plan.lane_term = term;
                self.stretch(layout.clone(), Some(plan), pure, None)?.go()?;
            }
        }
        self.stretch(layout, None, self.run.pure.clone(), listener)?.go()
    }

    /// Tells whether a term is still the newest; and files, as long as it is.
    fn fenced(&self, layout: &Layout, term: u64) -> (Fence, Arc<Fenced>) {
        let fence = Fence::new(self.run.fs.clone(), layout.logs.clone(), term);
        (fence.clone(), Fenced::new(self.run.fs.clone(), fence))
    }

    /// A term of our own: created, announced to the sinks, and only then is looked at what there is. From its manifest
    /// on, what older processes write does not count any more.
    fn begin_term(&self, layout: &Layout) -> Result<(u64, plan::Past), Failure> {
        let fs = &*self.run.fs;
        let of_state = |e: anyhow::Error| Failure::of_state(&e);
        let known = checkpoint::list(fs, &layout.checkpoints).map_err(of_state)?;
        let known = known.iter().filter_map(|dir| Name::of(dir)).map(|name| name.term.max(name.writer)).max();
        let term = terms::claim(fs, &layout.logs, known.unwrap_or(0)).map_err(of_state)?;
        let (fence, fenced) = self.fenced(layout, term);
        let fs = &*fenced;
        self.run.destinations.announce(&self.run.config.sinks, term, self.runtime.handle());
        // One that has been replaced meanwhile sees what it cannot know.
        let mut past =
            plan::past(fs, layout, Some(term)).map_err(|failure| fence.replaced().map_or(failure, of_state))?;
        for (dir, what) in &past.damaged {
            self.metrics.checkpoints_damaged_total.inc();
            tracing::error!(checkpoint = %dir.display(), what, "checkpoint is damaged; an older one is used");
            checkpoint::set_aside(fs, dir).map_err(of_state)?;
        }
        for plan::Torn { term, process, end, synced } in &past.torn {
            let LogEnd { segment, length, .. } = end;
            if *synced {
                tracing::warn!(
                    term,
                    process,
                    segment,
                    length,
                    "the epoch log ends in lines that the disk did not have in whole when the machine stopped; none had \
                     an effect, and nothing is lost"
                );
            } else {
                tracing::error!(
                    term,
                    process,
                    segment,
                    length,
                    "the epoch log has lost its last lines: the machine stopped before the disk had them. Those records \
                     are read again in new epochs, and sinks may get their alerts twice, or other ones. Where a power \
                     cut must lose nothing, set epochs.durability = \"disk\""
                );
            }
        }
        if let Some(epoch) = plan::journal_beyond(fs, layout, &past).map_err(of_state)? {
            tracing::error!(
                epoch,
                through = past.sent_through,
                "the journal has an alert of an epoch that no log has: the epoch log has lost lines that had an effect \
                 (a machine without power?); those records are read again in new epochs, and sinks may get alerts twice"
            );
        }
        let bugs = panics::to_set_aside(fs, &layout.panics)
            .map_err(|e| Failure::of_state(&anyhow::Error::from(e).context(layout.panics.display().to_string())))?;
        for place in bugs.into_iter().filter(|place| !past.set_aside.contains(place)).collect::<Vec<_>>() {
            let terms::Place { source, topic, partition, offset } = &place;
            tracing::warn!(
                source,
                topic,
                partition,
                offset,
                "record set aside: it brought a worker down {} times",
                panics::TIMES
            );
            past.set_aside.push(place);
        }
        plan::settle(fs, layout, &past, term).map_err(of_state)?;
        terms::write(fs, &layout.logs, &past.manifest(term)).map_err(of_state)?;
        Ok((term, past))
    }

    /// Runs the whole epoch log again, configuration by configuration, into another directory.
    pub(super) fn replay(self: &Arc<Self>, into: PathBuf) -> Result<Result3, Failure> {
        let layout = Layout::new(self.run.config.data_dir.clone()).replaying_into(into);
        if self.run.fs.exists(&layout.checkpoints) {
            return Err(Failure::configuration(format!(
                "{} holds the state of another run; replay into an empty folder",
                layout.data.display()
            )));
        }
        let mut result = (Totals::new(), 0, BTreeMap::new());
        loop {
            let past = plan::past(&*self.run.fs, &layout, None)?;
            let Some(config) = past.terms.first().map(|t| t.header.config.clone()) else {
                return if past.restored.is_some() {
                    Ok(result)
                } else {
                    Err(Failure::configuration(format!("{} holds no epoch log to replay", layout.logs.display())))
                };
            };
            let first = epoch_log::terms(&*self.run.fs, &layout.logs).map_err(|e| Failure::of_state(&e))?;
            // Its folder is enough: a term may have ended before it logged anything.
            if past.restored.is_none() && first.first() != Some(&1) {
                return Err(Failure::state("the epoch log's first term is gone (epochs.retention); a replay needs it"));
            }
            let pure = self.config_text(&layout, &config)?;
            let plan = self.plan_replay(past, &config, &pure)?;
            result = self.stretch(layout.clone(), Some(plan), pure, None)?.go()?;
        }
    }

    /// A plan that only reads again: the leading terms with this configuration.
    fn plan_replay(&self, past: plan::Past, config: &str, pure: &Pure) -> Result<Plan, Failure> {
        let set_aside = past.set_aside;
        let mut terms = past.terms;
        let same = terms.iter().take_while(|t| t.header.config == config).count();
        terms.truncate(same);
        let streams = pure.streams();
        let carried = past.restored.as_ref().map_or_else(Vec::new, |r| plan::unknown_positions(r, &streams));
        let term = terms.last().map_or(0, |t| t.term);
        let positions = past.restored.as_ref().map_or_else(Vec::new, |r| plan::positions(r, &streams));
        let script = plan::script(&terms, &streams)?;
        let positions = with_new_partitions(from_headers(positions, &terms, &streams), &script, &*self.run.origin)?;
        Ok(Plan {
            term,
            lane_term: term,
            log_ends: terms.last().map_or_else(Vec::new, |log| log.ends.iter().map(|(p, end)| (*p, *end)).collect()),
            sent_through: past.sent_through,
            set_aside,
            carried,
            config: config.to_owned(),
            checkpoint: past.restored.map(|r| r.dir),
            streams,
            script,
            live: false,
            floor: past.floor,
            positions,
            joined: None,
            ends: BTreeMap::new(),
        })
    }

    /// A plan that reads again what is left, and goes on.
    fn plan_live(&self, layout: &Layout, past: plan::Past, term: u64, config: String) -> Result<Plan, Failure> {
        let (_, fenced) = self.fenced(layout, term);
        let (fs, origin) = (&*fenced, &*self.run.origin);
        let streams = self.run.pure.streams();
        let positions = past.restored.as_ref().map_or_else(Vec::new, |r| plan::positions(r, &streams));
        let mut positions = from_headers(positions, &past.terms, &streams);
        let mut ends = BTreeMap::new();
        for (stream, (source, topic)) in (0..).zip(&streams) {
            let cannot = |error| cannot_start(source, error);
            let known =
                past.restored.as_ref().is_some_and(|r| r.positions().any(|p| p.source == *source && p.topic == *topic));
            for partition in 0..origin.partitions(stream).map_err(cannot)? {
                let (low, high) = origin.watermarks(stream, partition).map_err(cannot)?;
                ends.insert(format!("{stream}/{partition}"), high);
                match positions.iter().find(|(s, p, _, _)| (*s, *p) == (stream, partition)) {
                    Some((_, _, next, _)) if *next < low => {
                        return Err(Failure::state(format!(
                            "{topic}/{partition}: records from {next} to {low} were removed before they were read; \
                             lengthen the topic's retention. To go on without them, move {} away",
                            layout.data.display()
                        )));
                    }
                    Some((_, _, next, _)) if *next > high => {
                        return Err(Failure::state(format!(
                            "{topic}/{partition} ends at {high}, but {next} was read before; the topic was made anew. To \
                             begin anew, move {} away",
                            layout.data.display()
                        )));
                    }
                    Some(_) => {}
                    // "Start at the end" is resolved once; a partition that is new since is read from its beginning.
                    None if !known && origin.begins_at_end(stream) => positions.push((stream, partition, high, None)),
                    None => positions.push((stream, partition, low, None)),
                }
            }
        }
        if past.restored.is_none() {
            plan::write_first(fs, layout, term, &config, &streams, &positions)
                .map_err(|e| Failure::of_state(&e.context("checkpoint 0")))?;
        }
        let script = plan::script(&past.terms, &streams)?;
        let set_aside = past.set_aside;
        let carried = past.restored.as_ref().map_or_else(Vec::new, |r| plan::unknown_positions(r, &streams));
        Ok(Plan {
            term,
            lane_term: term,
            log_ends: Vec::new(),
            sent_through: past.sent_through,
            set_aside,
            carried,
            config,
            checkpoint: past.restored.map(|r| r.dir),
            streams,
            script,
            live: true,
            joined: self.stopping.mesh.get().map(|mesh| {
                // R1: all move up to the highest process clock.
                let wall_ms = self.run.clock.wall_ms();
                (wall_ms, (wall_ms + mesh.fastest_ahead_ms()).max(past.floor + 1))
            }),
            floor: past.floor,
            positions,
            ends,
        })
    }

    fn stretch(
        self: &Arc<Self>,
        layout: Layout,
        plan: Option<Plan>,
        pure: Pure,
        listener: Option<std::net::TcpListener>,
    ) -> Result<Arc<Stretch>, Failure> {
        let options = &self.run.options;
        let alone = plan.as_ref().is_some_and(|p| !p.live);
        let sinks = if options.replay_into.is_some() { BTreeMap::new() } else { self.run.config.sinks.clone() };
        Ok(Arc::new(Stretch {
            world: self.clone(),
            layout,
            plan: plan.map_or_else(OnceLock::new, OnceLock::from),
            pure,
            workers: self.run.config.workers,
            processes: if alone { 1 } else { options.processes.max(1) },
            process: if alone { 0 } else { options.process },
            sinks,
            started: OnceLock::new(),
            listener: Mutex::new(listener),
        }))
    }
}

/// Where a partition that the checkpoint does not know stood when a later term began: the term's header says so.
fn from_headers(
    mut positions: Vec<plan::Start>,
    terms: &[epoch_log::TermLog],
    streams: &[(String, String)],
) -> Vec<plan::Start> {
    for log in terms {
        for (number, partition, next) in &log.header.positions {
            let name = log.header.streams.get(usize::from(*number));
            let Some(stream) = name.and_then(|name| streams.iter().position(|s| s == name)) else { continue };
            if !positions.iter().any(|(s, p, _, _)| (usize::from(*s), *p) == (stream, *partition)) {
                positions.push((stream as Stream, *partition, *next, None));
            }
        }
    }
    positions
}

/// Partitions that appear in the script but not in the positions were new then: they begin at their first record.
fn with_new_partitions(
    mut positions: Vec<plan::Start>,
    script: &[(Epoch, Line)],
    origin: &dyn Origin,
) -> Result<Vec<plan::Start>, Failure> {
    for (_, line) in script {
        if let Line::Range(range) = line
            && !positions.iter().any(|(s, p, _, _)| (*s, *p) == (range.stream, range.partition))
        {
            let (low, _) = origin.watermarks(range.stream, range.partition).map_err(|e| Failure::source(&e))?;
            positions.push((range.stream, range.partition, low, None));
        }
    }
    Ok(positions)
}
