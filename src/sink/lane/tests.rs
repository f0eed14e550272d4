//! Lanes under a seeded scheduler: workers that push and cut, a destination that goes away, forgets and answers too late,
//! a disk that fails, checkpoints that come late, and restarts from the newest of them followed by replay.

use super::super::FileRef;
use super::super::lanes::divided;
use super::super::segment::{Get, Put};
use super::super::test_fs::MemFs;
use super::*;
use std::collections::BTreeMap;

/// What is pushed: entry numbers `1..=count` of an epoch, of one worker.
#[derive(Clone, Debug, PartialEq)]
struct Note {
    epoch: Epoch,
    worker: u32,
    count: u32,
    positioned: bool,
}

impl Item for Note {
    fn epoch(&self) -> Epoch {
        self.epoch
    }
    fn last(&self) -> Option<Position> {
        self.positioned.then_some(Position { epoch: self.epoch, n: self.count })
    }
    fn count(&self) -> u64 {
        self.count.into()
    }
    fn bytes(&self) -> u64 {
        100 * u64::from(self.count)
    }
    fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64(self.epoch);
        out.put_u32(self.worker);
        out.put_u32(self.count | u32::from(self.positioned) << 31);
    }
    fn decode(mut bytes: &[u8]) -> Option<Self> {
        let bytes = &mut bytes;
        let (epoch, worker, count) = (bytes.get_u64()?, bytes.get_u32()?, bytes.get_u32()?);
        bytes.is_empty().then_some(Self { epoch, worker, count: count & !(1 << 31), positioned: count >> 31 == 1 })
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// As a Redis Stream: it knows its last position, skips what is at or below, and a crash takes its last second.
    Stream,
    /// As a hash or a time series: it cannot tell, writing again changes nothing, and a crash takes its last second.
    Map,
    /// As a topic: it forgets nothing, and has what it is sent twice twice.
    Topic,
    /// As an archive: part of the checkpoint.
    Files,
}

type Entry = (Epoch, u32, u32);

fn entries(notes: &[Note]) -> Vec<Entry> {
    notes.iter().flat_map(|note| (1..=note.count).map(|n| (note.epoch, n, note.worker))).collect()
}

/// A destination, and what it will still know after a crash.
struct Destination {
    kind: Kind,
    log: Vec<(u64, Entry)>,
    open: Vec<Entry>,
    listed: BTreeMap<String, Vec<Entry>>,
    down: bool,
    /// Whether the connection is one from before a crash: nothing goes through it any more.
    broken: bool,
}

impl Destination {
    fn write(&mut self, now: u64, notes: &[Note], half: Option<usize>) {
        let entries = entries(notes);
        let upto = half.unwrap_or(entries.len()).min(entries.len());
        for entry in &entries[..upto] {
            match self.kind {
                Kind::Stream if self.log.last().is_some_and(|(_, last)| (entry.0, entry.1) <= (last.0, last.1)) => {}
                Kind::Stream | Kind::Topic => self.log.push((now, *entry)),
                Kind::Map => {
                    self.log.retain(|(_, known)| known != entry);
                    self.log.push((now, *entry));
                }
                Kind::Files => self.open.push(*entry),
            }
        }
    }
    fn crash(&mut self, now: u64) {
        if matches!(self.kind, Kind::Stream | Kind::Map) {
            self.log.retain(|(at, _)| *at + 1_000_000 <= now);
        }
    }
    fn position(&self) -> Option<Position> {
        let last = self.log.last().map(|(_, (epoch, n, _))| Position { epoch: *epoch, n: *n });
        (self.kind == Kind::Stream).then(|| last.unwrap_or_default())
    }
    fn restart(&mut self, state: Option<&LaneState>) {
        self.open.clear();
        let names: Vec<&str> = state.iter().flat_map(|s| &s.files).map(|f| f.name.as_str()).collect();
        for (name, entries) in std::mem::take(&mut self.listed) {
            if names.contains(&name.as_str()) {
                self.log.extend(entries.into_iter().map(|entry| (0, entry)));
            }
        }
    }
}

struct World {
    rng: fastrand::Rng,
    fs: MemFs,
    kind: Kind,
    now: u64,
    workers: usize,
    last_epoch: Epoch,
    lane: Lane<Note>,
    destination: Destination,
    /// The call that the sink is at.
    doing: Option<Action<Note>>,
    next: Vec<Epoch>,
    term: u64,
    reported: Vec<LaneState>,
    newest: Option<LaneState>,
    drained: Option<u64>,
    restarts: u32,
    longest: u64,
}

const CUT_EVERY: u64 = 25;

fn notes(kind: Kind, worker: usize, epoch: Epoch) -> Option<Note> {
    let mixed = (epoch * 31 + worker as u64 * 17) % 7;
    let positioned = matches!(kind, Kind::Stream | Kind::Topic);
    (mixed != 3).then_some(Note { epoch, worker: worker as u32, count: mixed as u32 % 4 + 1, positioned })
}

fn settings(kind: Kind, workers: usize, term: u64) -> Settings {
    Settings {
        sink: "s".into(),
        process: 0,
        term,
        workers,
        keep: 3,
        capacity: 12_000,
        memory: 4_000,
        when_full: WhenFull::Pause,
        traits: Traits {
            in_checkpoint: kind == Kind::Files,
            forgets_us: if matches!(kind, Kind::Stream | Kind::Map) { 2_000_000 } else { 0 },
            batch_entries: 20,
            batch_bytes: 1_000,
        },
        dir: "/lanes".into(),
        elsewhere: Arc::default(),
        written: 0,
        seed: term,
    }
}

impl World {
    fn new(kind: Kind, seed: u64) -> Self {
        let fs = MemFs::default();
        let rng = fastrand::Rng::with_seed(seed);
        // Alerts come from one worker.
        let workers = if matches!(kind, Kind::Stream | Kind::Topic) { 1 } else { 1 + seed as usize % 3 };
        let lane = Lane::new(settings(kind, workers, 1), Arc::new(fs.clone()), &[]).unwrap();
        Self {
            rng,
            kind,
            now: 10_000_000,
            workers,
            last_epoch: 300,
            lane,
            destination: Destination {
                kind,
                log: Vec::new(),
                open: Vec::new(),
                listed: BTreeMap::new(),
                down: false,
                broken: false,
            },
            doing: Some(Action::Connect),
            next: vec![1; workers],
            term: 1,
            reported: Vec::new(),
            newest: None,
            drained: None,
            restarts: 0,
            longest: 0,
            fs,
        }
    }

    fn step(&mut self, event: Event<Note>) {
        let mut actions = Vec::new();
        self.lane.step(self.now, event, &mut actions);
        for action in actions {
            match action {
                Action::Report(state) => self.reported.push(state),
                Action::Drained(left) => self.drained = Some(left),
                Action::Shed(note) => panic!("shed {note:?} though it should pause"),
                action => {
                    assert!(self.doing.is_none(), "two calls at once: {:?} and {action:?}", self.doing);
                    self.doing = Some(action);
                }
            }
        }
        self.longest = self.longest.max(self.lane.figures().spilled);
    }

    /// A worker does its next epoch, and the cut before it.
    fn work(&mut self, worker: usize) {
        let epoch = self.next[worker];
        if epoch > self.last_epoch {
            return;
        }
        if epoch.is_multiple_of(CUT_EVERY) {
            // One that comes late skips a cut now and then: only the newest counts.
            let skips = self.workers > 1 && (epoch / CUT_EVERY) % 5 == worker as u64;
            if !skips {
                self.step(Event::Cut(worker, epoch));
            }
        }
        if let Some(note) = notes(self.kind, worker, epoch) {
            self.step(Event::Push(note));
        }
        self.next[worker] += 1;
        if epoch == self.last_epoch {
            self.step(Event::Cut(worker, Epoch::MAX));
            self.step(Event::End(worker));
        }
    }

    /// The sink does what it was asked, or fails at it before, half way or afterwards.
    fn act(&mut self, faults: bool) {
        let Some(action) = self.doing.take() else { return };
        let connects = matches!(action, Action::Connect);
        let gone = self.destination.down || (self.destination.broken && !connects);
        let fails = gone || (faults && self.rng.u32(0..10) == 0);
        self.destination.broken &= !connects || fails;
        let unavailable = Event::Failed(SinkError::Unavailable("injected".into()));
        let event = match action {
            Action::Write(notes) => {
                if fails && !gone && self.kind != Kind::Files {
                    let half = self.rng.usize(0..=entries(&notes).len());
                    self.destination.write(self.now, &notes, Some(half));
                }
                if !fails {
                    self.destination.write(self.now, &notes, None);
                }
                if fails { unavailable } else { Event::Done }
            }
            _ if fails => unavailable,
            Action::Connect => Event::Connected(self.destination.position()),
            Action::Probe => Event::Done,
            Action::TakeCut(cut) => {
                let open = std::mem::take(&mut self.destination.open);
                assert!(open.iter().all(|entry| entry.0 < cut), "beyond the cut {cut}: {open:?}");
                if !open.is_empty() {
                    self.destination.listed.insert(format!("{}-{cut}", self.term), open);
                }
                let files = self.destination.listed.keys();
                let files = files.map(|name| FileRef { name: name.clone(), length: 0, rows: 0 }).collect();
                Event::CutTaken(cut, Held { files, length: None })
            }
            Action::Commit(cut) => {
                let of = |name: &str| name.split_once('-').unwrap().1.parse::<Epoch>().unwrap();
                for (name, entries) in std::mem::take(&mut self.destination.listed) {
                    if of(&name) <= cut {
                        self.destination.log.extend(entries.into_iter().map(|entry| (0, entry)));
                    } else {
                        self.destination.listed.insert(name, entries);
                    }
                }
                Event::Done
            }
            Action::Report(_) | Action::Shed(_) | Action::Drained(_) => unreachable!(),
        };
        self.step(event);
    }

    /// The manifest of the oldest reported cut is durable.
    fn commit(&mut self) {
        if self.reported.is_empty() {
            return;
        }
        let state = self.reported.remove(0);
        let json = serde_json::to_string(&state).unwrap();
        self.newest = Some(serde_json::from_str(&json).unwrap());
        self.step(Event::Committed(state.cut));
    }

    /// kill -9, restart from the newest checkpoint, replay from its cut.
    fn restart(&mut self) {
        self.restarts += 1;
        // What was under way may have arrived, all the same.
        if let Some(Action::Write(notes)) = self.doing.take()
            && self.kind != Kind::Files
            && !self.destination.down
            && !self.destination.broken
        {
            let half = self.rng.usize(0..=entries(&notes).len());
            self.destination.write(self.now, &notes, Some(half));
        }
        self.reported.clear();
        self.drained = None;
        self.term += 1;
        self.destination.restart(self.newest.as_ref());
        let cut = self.newest.as_ref().map_or(1, |state| state.cut);
        self.next = vec![cut.min(self.last_epoch + 1); self.workers];
        let restored = self.newest.as_slice();
        self.fs.failing(0, 0);
        self.lane =
            Lane::new(settings(self.kind, self.workers, self.term), Arc::new(self.fs.clone()), restored).unwrap();
        self.doing = Some(Action::Connect);
        if cut > self.last_epoch {
            for worker in 0..self.workers {
                self.step(Event::Cut(worker, Epoch::MAX));
                self.step(Event::End(worker));
            }
        }
    }

    fn run(mut self, faults: bool) -> Self {
        for turn in 0.. {
            assert!(turn < 2_000_000, "no end: {:?}", self.lane.figures());
            self.now += self.rng.u64(0..40_000);
            let busy = self.next.iter().any(|next| *next <= self.last_epoch);
            match self.rng.u32(0..5000) {
                0..3 if faults && busy => self.restart(),
                3..6 if faults && busy => self.destination.down = true,
                6..9 if faults && busy => {
                    // It crashes, and every connection with it.
                    self.destination.crash(self.now);
                    (self.destination.down, self.destination.broken) = (true, true);
                }
                9..40 => self.destination.down = false,
                40..45 if faults && busy => self.fs.failing(self.rng.u32(0..300), self.rng.u64(..)),
                45..60 => self.fs.failing(0, 0),
                60..140 => self.commit(),
                140..2500 => {
                    // A pause stops reading; what has been read goes on to the next cut, on all workers alike.
                    let worker = self.rng.usize(0..self.workers);
                    let furthest = self.next.iter().max().map_or(0, |next| next.next_multiple_of(CUT_EVERY));
                    if self.next[worker] <= furthest || !self.lane.pauses() {
                        self.work(worker);
                    }
                }
                2500..4000 => self.act(faults && busy),
                _ => {
                    if self.lane.wake_at().is_some_and(|at| at <= self.now) {
                        self.step(Event::Tick);
                    }
                }
            }
            if !busy {
                self.destination.down = false;
                self.fs.failing(0, 0);
            }
            if self.drained.is_some() && self.reported.is_empty() && !self.lane.commit_pending() && self.doing.is_none()
            {
                return self;
            }
        }
        unreachable!()
    }

    fn expected(&self) -> Vec<Entry> {
        let mut expected: Vec<Entry> = (0..self.workers)
            .flat_map(|worker| (1..=self.last_epoch).filter_map(move |epoch| notes(self.kind, worker, epoch)))
            .flat_map(|note| entries(&[note]))
            .collect();
        expected.sort_unstable();
        expected
    }

    fn arrived(&self) -> Vec<Entry> {
        self.destination.log.iter().map(|(_, entry)| *entry).collect()
    }
}

/// The first difference says more than two long lists.
fn compare(arrived: &[Entry], expected: &[Entry]) {
    let same = arrived.iter().zip(expected).take_while(|(a, b)| a == b).count();
    let next = |entries: &[Entry]| entries[same..].iter().take(5).copied().collect::<Vec<_>>();
    assert_eq!(next(arrived), next(expected), "after {same} of {} that are as they should be", expected.len());
    assert_eq!(arrived.len(), expected.len());
}

fn seeds() -> std::ops::Range<u64> {
    match std::env::var("LANE_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => seed..seed + 1,
        None => 0..150,
    }
}

fn each_seed(kind: Kind, check: impl Fn(&World, u64)) {
    let (mut restarts, mut spilled) = (0, 0);
    for seed in seeds() {
        println!("seed {seed}, {kind:?}: LANE_SEED={seed} cargo test sink::lane");
        let world = World::new(kind, seed).run(true);
        assert_eq!(world.drained, Some(0));
        check(&world, seed);
        restarts += world.restarts;
        spilled += world.longest;
    }
    if seeds().count() > 1 {
        assert!(restarts > 20, "only {restarts} restarts: too few to test anything");
        assert!(kind == Kind::Files || spilled > 0, "nothing ever overflowed");
    }
}

#[test]
fn a_stream_has_each_entry_once_and_in_order_whatever_dies() {
    each_seed(Kind::Stream, |world, _| compare(&world.arrived(), &world.expected()));
}

#[test]
fn a_map_misses_nothing_whatever_dies() {
    each_seed(Kind::Map, |world, _| {
        let mut arrived = world.arrived();
        arrived.sort_unstable();
        compare(&arrived, &world.expected());
    });
}

#[test]
fn a_topic_has_each_entry_at_least_once_whatever_dies() {
    each_seed(Kind::Topic, |world, _| {
        let mut arrived = world.arrived();
        arrived.sort_unstable();
        arrived.dedup();
        compare(&arrived, &world.expected());
    });
}

#[test]
fn an_archive_shows_each_entry_once_whatever_dies() {
    each_seed(Kind::Files, |world, _| {
        assert!(world.destination.open.is_empty() && world.destination.listed.is_empty());
        let mut arrived = world.arrived();
        arrived.sort_unstable();
        compare(&arrived, &world.expected());
    });
}

#[test]
fn without_faults_nothing_is_sent_twice_to_a_topic() {
    for seed in 0..30 {
        let world = World::new(Kind::Topic, seed).run(false);
        assert_eq!(world.arrived(), world.expected(), "seed {seed}");
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        let world = World::new(Kind::Stream, seed).run(true);
        (world.now, world.restarts, world.destination.log)
    };
    assert_eq!(run(5), run(5));
}

/// A connected lane of one worker, and everything it asks for.
struct Small {
    lane: Lane<Note>,
    fs: MemFs,
    actions: Vec<Action<Note>>,
}

impl Small {
    fn new(kind: Kind, change: impl FnOnce(&mut Settings)) -> Self {
        let fs = MemFs::default();
        let mut settings = settings(kind, 1, 1);
        change(&mut settings);
        let mut lane = Lane::new(settings, Arc::new(fs.clone()), &[]).unwrap();
        lane.step(0, Event::Connected(None), &mut Vec::new());
        Self { lane, fs, actions: Vec::new() }
    }
    fn step(&mut self, now: u64, event: Event<Note>) -> Vec<Action<Note>> {
        self.lane.step(now, event, &mut self.actions);
        std::mem::take(&mut self.actions)
    }
}

fn note(epoch: Epoch) -> Note {
    Note { epoch, worker: 0, count: 1, positioned: false }
}

#[test]
fn a_full_lane_pauses_or_sheds_as_it_is_told() {
    let unavailable = || Event::Failed(SinkError::Unavailable("away".into()));
    for when_full in [WhenFull::Pause, WhenFull::DeadLetter] {
        let mut small = Small::new(Kind::Map, |settings| settings.when_full = when_full);
        small.step(0, Event::Push(note(1)));
        small.step(0, unavailable());
        let mut shed = 0;
        for epoch in 2..2000 {
            if small.lane.pauses() {
                break;
            }
            shed += small.step(1, Event::Push(note(epoch))).len();
        }
        assert_eq!(small.lane.pauses(), when_full == WhenFull::Pause);
        assert_eq!(shed > 0, when_full == WhenFull::DeadLetter);
        let figures = small.lane.figures();
        assert!(figures.memory <= 4_100 && figures.spilled > 1_000, "{figures:?}");
        assert!(figures.memory + figures.spilled >= 11_000, "{figures:?}");
        assert!(!figures.up);
    }
}

#[test]
fn a_lane_whose_disk_is_full_keeps_to_its_memory() {
    let mut small = Small::new(Kind::Map, |_| ());
    small.fs.room(Some(10));
    let mut pushed = 0;
    while !small.lane.pauses() {
        pushed += 1;
        small.step(pushed, Event::Push(note(pushed)));
    }
    let figures = small.lane.figures();
    assert_eq!((figures.spilled, figures.waiting), (0, pushed));
    assert!(figures.memory <= 4_200, "{figures:?}");
    assert!(small.fs.names().is_empty(), "half a segment is left: {:?}", small.fs.names());
}

#[test]
fn a_dead_destination_does_not_keep_a_checkpoint_from_being_made() {
    let mut small = Small::new(Kind::Map, |_| ());
    small.step(0, Event::Push(note(1)));
    small.step(0, Event::Failed(SinkError::Unavailable("away".into())));
    for epoch in 2..100 {
        small.step(1, Event::Push(note(epoch)));
    }
    let actions = small.step(2, Event::Cut(0, 60));
    let [Action::Report(state)] = &actions[..] else { panic!("{actions:?}") };
    let mut kept: Vec<Note> = Vec::new();
    for segment in &state.segments {
        kept.extend(segment::read::<Note>(&small.fs, "/lanes".as_ref(), segment).unwrap());
    }
    assert_eq!(kept, (1..60).map(note).collect::<Vec<_>>());
}

#[test]
fn what_was_acknowledged_is_kept_until_the_destination_cannot_forget_it() {
    let kept = |cut_at: u64, probe: bool| {
        let mut small = Small::new(Kind::Map, |_| ());
        small.step(1_000_000, Event::Push(note(1)));
        small.step(1_000_000, Event::Done);
        if probe {
            assert_eq!(small.lane.wake_at(), Some(3_000_000));
            let actions = small.step(3_000_000, Event::Tick);
            assert!(matches!(actions[..], [Action::Probe]), "{actions:?}");
            small.step(3_000_000, Event::Done);
        }
        let actions = small.step(cut_at, Event::Cut(0, 60));
        let Some(Action::Report(state)) = actions.last() else { panic!("{actions:?}") };
        state.segments.len()
    };
    assert_eq!(kept(1_500_000, false), 1);
    assert_eq!(kept(4_000_000, true), 0, "the same connection answered 2 s later");
    assert_eq!(kept(2_900_000, false), 1);
}

#[test]
fn an_answer_that_lay_in_the_socket_while_we_slept_says_nothing_about_now() {
    let mut small = Small::new(Kind::Stream, |_| ());
    small.step(0, Event::Push(note(1)));
    small.step(1_000_000, Event::Done);
    small.step(1_100_000, Event::Push(note(2)));
    // The second was answered at once, and then the destination died with its last second; we slept for five.
    small.step(6_100_000, Event::Done);
    let actions = small.step(6_100_000, Event::Cut(0, 3));
    let [.., Action::Report(state)] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!(state.segments.iter().map(|segment| segment.frames).sum::<u32>(), 2, "{state:?}");
    // It answers what we asked two seconds after the first was taken: now that is certain.
    small.step(6_200_000, Event::Done);
    let actions = small.step(6_300_000, Event::Cut(0, 4));
    let [.., Action::Report(state)] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!(state.segments.iter().map(|segment| segment.frames).sum::<u32>(), 1, "{state:?}");
}

#[test]
fn back_off_grows_to_its_limit_and_a_refusal_is_not_repeated() {
    let mut small = Small::new(Kind::Topic, |_| ());
    small.step(0, Event::Push(note(1)));
    let mut now = 0;
    let mut delays = Vec::new();
    for _ in 0..12 {
        small.step(now, Event::Failed(SinkError::Unavailable("away".into())));
        let at = small.lane.wake_at().unwrap();
        delays.push(at - now);
        now = at;
        assert!(matches!(small.step(now, Event::Tick)[..], [Action::Connect]));
    }
    assert!((50_000..=100_000).contains(&delays[0]), "{delays:?}");
    assert!((5_000_000..=10_000_000).contains(&delays[11]), "{delays:?}");
    assert!(matches!(small.step(now, Event::Connected(None))[..], [Action::Write(_)]));
    small.step(now, Event::Failed(SinkError::Refused("never".into())));
    assert_eq!((small.lane.figures().waiting, small.lane.figures().refused), (0, 1));
}

#[test]
fn a_destination_that_lets_us_in_and_takes_nothing_stays_away() {
    let mut small = Small::new(Kind::Topic, |_| ());
    small.step(0, Event::Push(note(1)));
    let mut now = 0;
    for round in 0..10 {
        small.step(now, Event::Failed(SinkError::Unavailable("full".into())));
        now = small.lane.wake_at().unwrap();
        small.step(now, Event::Tick);
        assert!(matches!(small.step(now, Event::Connected(None))[..], [Action::Write(_)]));
        assert!(!small.lane.figures().up, "round {round}");
    }
    assert!(now > 5_000_000, "back-off did not grow: {now}");
    small.step(now, Event::Done);
    assert!(small.lane.figures().up);
}

#[test]
fn an_archive_that_comes_back_names_all_cuts_the_oldest_first() {
    let mut small = Small::new(Kind::Files, |_| ());
    small.step(0, Event::Push(note(1)));
    assert!(small.step(0, Event::Failed(SinkError::Unavailable("full".into()))).is_empty());
    let cuts = [10, 20, 30, 40];
    for cut in cuts {
        small.step(0, Event::Push(note(cut - 1)));
        assert!(small.step(0, Event::Cut(0, cut)).is_empty(), "it waits");
    }
    let mut actions = small.step(small.lane.wake_at().unwrap(), Event::Tick);
    let mut named = Vec::new();
    while !actions.is_empty() {
        let event = match actions.remove(0) {
            Action::Connect => Event::Connected(None),
            Action::Write(_) => Event::Done,
            Action::TakeCut(cut) => Event::CutTaken(cut, Held::default()),
            Action::Report(state) => {
                named.push(state.cut);
                continue;
            }
            other => panic!("{other:?}"),
        };
        actions.extend(small.step(1_000_000, event));
    }
    assert_eq!(named, cuts);
}

#[test]
fn giving_up_at_the_end_keeps_what_is_left_for_the_next_start() {
    let mut small = Small::new(Kind::Topic, |_| ());
    small.step(0, Event::Push(note(1)));
    small.step(0, Event::Failed(SinkError::Unavailable("away".into())));
    small.step(1, Event::Push(note(2)));
    small.step(1, Event::Cut(0, Epoch::MAX));
    assert!(small.step(1, Event::End(0)).is_empty(), "it waits");
    let actions = small.step(2, Event::GiveUp);
    let [Action::Report(state), Action::Drained(2)] = &actions[..] else { panic!("{actions:?}") };
    let lane: Lane<Note> =
        Lane::new(settings(Kind::Topic, 1, 2), Arc::new(small.fs.clone()), std::slice::from_ref(state)).unwrap();
    assert_eq!(lane.figures().waiting, 2);
}

#[test]
fn segments_that_no_checkpoint_needs_are_removed() {
    let mut small = Small::new(Kind::Topic, |_| ());
    small.fs.put("/lanes/s-0-0-7.seg".as_ref(), vec![1]);
    small.fs.put("/lanes/s-10-0-7.seg".as_ref(), vec![1]);
    for cut in 1..=5 {
        small.step(0, Event::Push(note(cut * 10)));
        let actions = small.step(0, Event::Cut(0, cut * 10 + 5));
        assert!(actions.iter().any(|action| matches!(action, Action::Report(_))));
        small.step(0, Event::Committed(cut * 10 + 5));
    }
    // Three checkpoints can be restored, and the first write is still under way: one segment each.
    let names = small.fs.names();
    assert_eq!(names.iter().filter(|name| name.starts_with("s-0-1-")).count(), 3, "{names:?}");
    assert!(names.contains(&"s-10-0-7.seg".into()), "another process' file");
    assert!(!names.contains(&"s-0-0-7.seg".into()), "an older term's file that nothing names");
}

/// Three checkpoints, after which a lane removes what none of them needs.
fn three_checkpoints(lane: &mut Lane<Note>) {
    for cut in 1..=3 {
        lane.step(0, Event::Cut(0, cut), &mut Vec::new());
        lane.step(0, Event::Committed(cut), &mut Vec::new());
    }
}

#[test]
fn segments_of_another_sink_process_or_later_term_are_left_alone() {
    let fs = MemFs::default();
    let mut settings = settings(Kind::Topic, 1, 7);
    (settings.sink, settings.process) = ("redis".into(), 1);
    let others = [
        "redis-1-1-7-1.seg", // the sink `redis-1`
        "redis-1-0-3-1.seg", // ... of process 0
        "redis-2-1-3-1.seg", // the sink `redis-2`
        "redis-11-3-1.seg",  // process 11
        "redis-1-8-1.seg",   // a later term
        "redis-1-3.seg",     // no name of a segment
        "redis-1-3-x.seg",
    ];
    let ours = ["redis-1-3-1.seg", "redis-1-7-99.seg"];
    for name in others.iter().chain(&ours) {
        fs.put(&settings.dir.join(name), vec![1]);
    }
    let mut lane: Lane<Note> = Lane::new(settings, Arc::new(fs.clone()), &[]).unwrap();
    three_checkpoints(&mut lane);
    let names = fs.names();
    assert!(others.iter().all(|other| names.contains(&(*other).into())), "{names:?}");
    assert!(!ours.iter().any(|own| names.contains(&(*own).into())), "{names:?}");
}

#[test]
fn what_a_process_that_was_no_more_left_stays_with_its_heir_when_there_are_several_again() {
    let fs = MemFs::default();
    let segment = segment::write(&fs, "/lanes".as_ref(), "s-1-1-4.seg".into(), [note(1)].iter(), true).unwrap();
    // Process 0 was alone, and has not delivered it.
    let state = LaneState {
        sink: "s".into(),
        process: 0,
        term: 2,
        cut: 0,
        acknowledged: None,
        segments: vec![segment],
        files: Vec::new(),
        length: None,
    };
    let lane_of = |process| -> Lane<Note> {
        let (mine, elsewhere) = divided(vec![state.clone()], process, 2);
        let settings = Settings { process, elsewhere: Arc::new(elsewhere), ..settings(Kind::Topic, 1, 3) };
        Lane::new(settings, Arc::new(fs.clone()), &mine).unwrap()
    };
    let (mut heir, mut returned) = (lane_of(0), lane_of(1));
    three_checkpoints(&mut returned);
    assert_eq!(fs.names(), ["s-1-1-4.seg"], "the heir needs it");
    let mut actions = Vec::new();
    heir.step(0, Event::Connected(None), &mut actions);
    assert!(matches!(&actions[..], [Action::Write(notes)] if notes[..] == [note(1)]), "{actions:?}");
    heir.step(0, Event::Done, &mut actions);
    three_checkpoints(&mut heir);
    assert!(fs.names().is_empty(), "delivered: {:?}", fs.names());
}

#[test]
fn a_segment_that_is_cut_off_or_changed_is_found() {
    let fs = MemFs::default();
    let dir = std::path::Path::new("/lanes");
    let items: Vec<Note> = (1..6).map(note).collect();
    let segment = segment::write(&fs, dir, "x.seg".into(), items.iter(), true).unwrap();
    assert_eq!(segment::read::<Note>(&fs, dir, &segment).unwrap(), items);
    let bytes = fs.read(&dir.join("x.seg")).unwrap();
    for end in 0..bytes.len() {
        fs.put(&dir.join("x.seg"), bytes[..end].to_vec());
        assert!(segment::read::<Note>(&fs, dir, &segment).is_err(), "cut at {end}");
        // Without the length to compare with, whole frames may be missing; never is half of one taken for one.
        if let Ok(some) = segment::decode::<Note>(&bytes[..end]) {
            assert_eq!(some[..], items[..some.len()], "cut at {end}");
        }
    }
    for bit in 0..bytes.len() * 8 {
        let mut changed = bytes.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        fs.put(&dir.join("x.seg"), changed);
        assert!(segment::read::<Note>(&fs, dir, &segment).is_err(), "bit {bit}");
    }
}
