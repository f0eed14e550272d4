//! What a worker had in hand when it panicked, written down: the third time the record is set aside.
//!
//! A bug that one record brings out would otherwise bring every restart down. Each process has a file, a JSON line per
//! panic; process 0 reads all of them when a term begins. A record that is named three times goes into the term's
//! manifest, and from then on is a dead letter (reason `bug`) wherever it lies: in epochs that are logged already, too,
//! for nothing of an epoch leaves before all of it has been judged.

use crate::seam::Fs;
use crate::terms::Place;
use operators::hand;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Once};

/// So often a record may bring a worker down before it is set aside.
pub const TIMES: usize = 3;

/// A line of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Panic {
    #[serde(flatten)]
    place: Place,
    term: u64,
    message: String,
}

/// Where this thread writes what it dies of.
pub struct Recorder {
    /// Files.
    pub fs: Arc<dyn Fs>,
    /// The folder of a data directory.
    pub dir: PathBuf,
    /// This process.
    pub process: usize,
    /// This run of the cluster.
    pub term: u64,
    /// (source, topic) by stream.
    pub streams: Arc<Vec<(String, String)>>,
}

thread_local! {
    static RECORDER: RefCell<Option<Recorder>> = const { RefCell::new(None) };
}

/// From here on this thread's panics are written down.
pub fn watch(recorder: Recorder) {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let message = info.payload_as_str().unwrap_or("a panic without a text");
            record(&info.location().map_or_else(|| message.to_owned(), |at| format!("{at}: {message}")));
            before(info);
        }));
    });
    hand::put_down();
    RECORDER.set(Some(recorder));
}

/// Writes down what this thread has in hand, if anything. Called while panicking: nothing here may panic again.
fn record(message: &str) {
    let Some((stream, partition, offset)) = hand::held() else { return };
    RECORDER.with_borrow(|recorder| {
        let Some(Recorder { fs, dir, process, term, streams }) = recorder else { return };
        let Some((source, topic)) = streams.get(usize::from(stream)) else { return };
        let place = Place { source: source.clone(), topic: topic.clone(), partition, offset };
        let panic = Panic { place, term: *term, message: message.to_owned() };
        let path = dir.join(format!("process-{process}.jsonl"));
        let written = serde_json::to_vec(&panic).map_err(Into::into).and_then(|mut line| {
            line.push(b'\n');
            fs.create_dir(dir)?;
            let mut file = if fs.exists(&path) { fs.append(&path)? } else { fs.create(&path)? };
            // What a write before may have left unfinished does not take this line with it.
            file.write_all(&[b"\n", line.as_slice()].concat())?;
            file.sync()
        });
        match written {
            Ok(()) => tracing::error!(source, topic, partition, offset, message, "a record brought a worker down"),
            Err(error) => tracing::error!(%error, "a panic cannot be written down"),
        }
    });
}

/// The records that have brought workers down often enough.
pub fn to_set_aside(fs: &dyn Fs, dir: &Path) -> std::io::Result<Vec<Place>> {
    let mut times: BTreeMap<Place, usize> = BTreeMap::new();
    if fs.exists(dir) {
        for path in fs.list(dir)? {
            for line in fs.read(&path)?.split(|byte| *byte == b'\n') {
                // A line that was not finished says nothing.
                if let Ok(panic) = serde_json::from_slice::<Panic>(line) {
                    *times.entry(panic.place).or_default() += 1;
                }
            }
        }
    }
    Ok(times.into_iter().filter(|(_, times)| *times >= TIMES).map(|(place, _)| place).collect())
}
