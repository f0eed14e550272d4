use super::*;
use crate::seam::{FileWriter, RealFs};
use clap::Parser;

fn letter(offset: i64) -> DeadLetter {
    let stream = ("plant".into(), "sensors".into());
    DeadLetter::new(stream, 3, offset, 1_700_000_000_000 + offset as u64, Reason::NotJson).payload(b"{\"t\": ERR}")
}

fn open(dir: &Path, restored: Option<Position>, segment_bytes: u64) -> DeadLetters {
    let limits = Limits { segment_bytes, segments: 3 };
    let metrics = Metrics::new().unwrap();
    DeadLetters::open_with(Arc::new(RealFs), &dir.join("dead-letters"), 0, restored, metrics, limits).unwrap()
}

fn append(store: &mut DeadLetters, offsets: std::ops::Range<i64>) {
    for offset in offsets {
        store.append(&letter(offset)).unwrap();
        store.flush().unwrap();
    }
}

fn stored(dir: &Path) -> Vec<i64> {
    let mut all = Vec::new();
    for path in RealFs.list(&dir.join("dead-letters")).unwrap() {
        for line in std::fs::read_to_string(path).unwrap().lines() {
            all.push(serde_json::from_str::<DeadLetter>(line).unwrap().offset);
        }
    }
    all
}

fn shown(dir: &Path, args: &[&str]) -> anyhow::Result<String> {
    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }
    let cli = Cli::try_parse_from([&["dead-letters"], args].concat())?;
    let mut out = Vec::new();
    cmd::write(&cli.args, dir, &mut out)?;
    Ok(String::from_utf8(out).unwrap())
}

/// The length of a line of `letter`, for offsets of one digit.
fn line_length() -> u64 {
    serde_json::to_string(&letter(0)).unwrap().len() as u64 + 1
}

#[test]
fn a_restart_cuts_back_to_the_checkpoint_and_replay_stores_each_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path(), None, 1 << 20);
    append(&mut store, 0..3);
    let position = store.sync().unwrap();
    assert_eq!(position, Position { segment: 0, length: 3 * line_length() });
    append(&mut store, 3..6);
    drop(store);
    let mut store = open(dir.path(), Some(position), 1 << 20);
    assert_eq!(stored(dir.path()), [0, 1, 2]);
    append(&mut store, 3..8);
    assert_eq!(stored(dir.path()), [0, 1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn a_restart_cuts_back_over_segments() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path(), None, 3 * line_length());
    append(&mut store, 0..2);
    let position = store.sync().unwrap();
    append(&mut store, 2..8);
    assert_eq!(RealFs.list(&dir.path().join("dead-letters")).unwrap().len(), 3);
    for _ in 0..2 {
        let mut store = open(dir.path(), Some(position), 3 * line_length());
        assert_eq!(stored(dir.path()), [0, 1]);
        append(&mut store, 2..8);
        assert_eq!(stored(dir.path()), [0, 1, 2, 3, 4, 5, 6, 7]);
    }
}

#[test]
fn the_oldest_go_when_the_store_is_full_and_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path(), None, 2 * line_length());
    append(&mut store, 0..1);
    let position = store.sync().unwrap();
    append(&mut store, 1..9);
    assert_eq!(stored(dir.path()), [4, 5, 6, 7, 8]);
    assert_eq!(store.metrics.dead_letters_removed_total.get(), 4);
    // The segment that the checkpoint knows is gone; what follows it is written again, and only once.
    for _ in 0..2 {
        let mut store = open(dir.path(), Some(position), 2 * line_length());
        assert!(stored(dir.path()).is_empty());
        append(&mut store, 1..5);
        assert_eq!(stored(dir.path()), [1, 2, 3, 4]);
    }
}

#[test]
fn a_state_that_was_lost_leaves_its_dead_letters() {
    let dir = tempfile::tempdir().unwrap();
    append(&mut open(dir.path(), None, 1 << 20), 0..2);
    let mut store = open(dir.path(), None, 1 << 20);
    assert_eq!(store.sync().unwrap(), Position { segment: 1, length: 0 });
    append(&mut store, 2..4);
    assert_eq!(stored(dir.path()), [0, 1, 2, 3]);
    // Checkpoint 0 was taken before the segment's file was there.
    open(dir.path(), Some(Position { segment: 1, length: 0 }), 1 << 20);
    assert_eq!(stored(dir.path()), [0, 1]);
}

#[test]
fn where_the_checkpoint_knows_no_position_what_is_made_again_goes_and_the_rest_stays() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("dead-letters");
    append(&mut open(dir.path(), None, 3 * line_length()), 0..8);
    let end = |offset: u64| end_below(&RealFs, &store, 0, 1_700_000_000_000 + offset).unwrap();
    assert_eq!(processes(&RealFs, &store).unwrap(), BTreeSet::from([0]));
    assert_eq!(end_below(&RealFs, &store, 1, 0).unwrap(), None, "another process has no store");
    // Nothing is made again, but the machine went down with a line half written.
    let newest = RealFs.list(&store).unwrap().pop().unwrap();
    RealFs.append(&newest).unwrap().write_all(b"{\"source\":\"pl\0\0\0").unwrap();
    for (epoch, left) in [(9, 8), (7, 7), (6, 6), (4, 4), (0, 0)] {
        open(dir.path(), end(epoch), 3 * line_length());
        assert_eq!(stored(dir.path()), (0..left).collect::<Vec<i64>>());
    }
}

#[test]
fn another_process_is_left_alone_until_it_is_cut_back_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("dead-letters");
    let metrics = Metrics::new().unwrap();
    let mut other = DeadLetters::open(Arc::new(RealFs), &store, 1, None, metrics).unwrap();
    other.append(&letter(1)).unwrap();
    let position = other.sync().unwrap();
    other.append(&letter(2)).unwrap();
    other.sync().unwrap();
    let mut ours = open(dir.path(), Some(Position::default()), 1 << 20);
    append(&mut ours, 3..4);
    assert_eq!(stored(dir.path()), [3, 1, 2]);
    cut_back(&RealFs, &store, 1, position).unwrap();
    assert_eq!(stored(dir.path()), [3, 1]);
}

/// Writes half of what it is given and fails, as often as `failures` says.
struct Failing {
    failures: std::sync::atomic::AtomicUsize,
}

struct FailingFile {
    file: Box<dyn FileWriter>,
    fails: bool,
}

impl FileWriter for FailingFile {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.fails {
            self.file.write_all(&bytes[..bytes.len() / 2])?;
            return Err(io::Error::other("no space left"));
        }
        self.file.write_all(bytes)
    }
    fn sync(&mut self) -> io::Result<()> {
        self.file.sync()
    }
    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.file.truncate(length)
    }
}

impl Failing {
    fn wrap(&self, file: Box<dyn FileWriter>) -> Box<dyn FileWriter> {
        use std::sync::atomic::Ordering::SeqCst;
        let fails = self.failures.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_ok();
        Box::new(FailingFile { file, fails })
    }
}

#[rustfmt::skip]
impl Fs for Failing {
    fn create(&self, path: &Path) -> io::Result<Box<dyn FileWriter>> { Ok(self.wrap(RealFs.create(path)?)) }
    fn append(&self, path: &Path) -> io::Result<Box<dyn FileWriter>> { Ok(self.wrap(RealFs.append(path)?)) }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> { RealFs.rename(from, to) }
    fn sync_dir(&self, path: &Path) -> io::Result<()> { RealFs.sync_dir(path) }
    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> { RealFs.list(path) }
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> { RealFs.read(path) }
    fn remove(&self, path: &Path) -> io::Result<()> { RealFs.remove(path) }
    fn create_dir(&self, path: &Path) -> io::Result<()> { RealFs.create_dir(path) }
    fn create_dir_new(&self, path: &Path) -> io::Result<()> { RealFs.create_dir_new(path) }
    fn exists(&self, path: &Path) -> bool { RealFs.exists(path) }
}

#[test]
fn a_write_that_fails_halfway_is_tried_again_from_its_beginning() {
    let dir = tempfile::tempdir().unwrap();
    let fs = Arc::new(Failing { failures: 2.into() });
    let metrics = Metrics::new().unwrap();
    let mut store = DeadLetters::open(fs, &dir.path().join("dead-letters"), 0, None, metrics).unwrap();
    store.append(&letter(1)).unwrap();
    store.append(&letter(2)).unwrap();
    assert!(store.flush().is_err());
    assert!(store.sync().is_err());
    assert_eq!(store.sync().unwrap().length, 2 * line_length());
    append(&mut store, 3..4);
    assert_eq!(stored(dir.path()), [1, 2, 3]);
}

#[test]
fn of_a_large_record_the_beginning_is_kept_and_the_size_known() {
    let large = letter(1).payload(&vec![b'x'; PAYLOAD_MAX + 1]);
    assert_eq!((large.bytes.len(), large.size), (PAYLOAD_MAX, PAYLOAD_MAX as u64 + 1));
    let line = serde_json::to_string(&large).unwrap();
    assert_eq!(serde_json::from_str::<DeadLetter>(&line).unwrap(), large);
}

#[test]
fn list_counts_by_reason_and_shows_the_newest() {
    let dir = tempfile::tempdir().unwrap();
    assert!(shown(dir.path(), &["list"]).unwrap().starts_with("no dead letters in "));
    let mut store = open(dir.path(), None, 1 << 20);
    append(&mut store, 0..5);
    let reading = RefusedReading { sensor: "b\u{1b}17".into(), metric: "t".into(), time: 0, value: Some(1.5) };
    let mut refused = DeadLetter { index: Some(1), reading: Some(reading), ..letter(7) };
    refused.reason = Reason::TooManySeries;
    refused.size = 0;
    refused.bytes.clear();
    store.append(&refused).unwrap();
    store.sync().unwrap();
    let text = shown(dir.path(), &["list", "--limit", "2"]).unwrap();
    let expected = "\
count  reason           source  newest (UTC)
    5  not_json         plant   2023-11-14 22:13:20
    1  too_many_series  plant   2023-11-14 22:13:20

read (UTC)           place        reason           size  beginning
2023-11-14 22:13:20  sensors/3/7  too_many_series     0  b\\u{1b}17 t 1.5
2023-11-14 22:13:20  sensors/3/4  not_json           10  {\"t\": ERR}

streamgauge dead-letters show PLACE says what would be right
";
    assert_eq!(text, expected);
    let json = shown(dir.path(), &["list", "--json", "--reason", "not_json", "--limit", "1"]).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["counts"][0]["count"], &json["newest"][0]["offset"]), (&5.into(), &4.into()));
    assert!(json["newest"].as_array().unwrap().len() == 1 && json["counts"].as_array().unwrap().len() == 1);
    let text = shown(dir.path(), &["show", "sensors/3/7"]).unwrap();
    assert!(text.contains("sensor   b\\u{1b}17\n") && text.contains("they are in the topic\n"), "{text}");
}

#[test]
fn show_gives_text_as_text_and_anything_else_in_hex_with_what_would_be_right() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path(), None, 1 << 20);
    append(&mut store, 0..1);
    store.append(&letter(1).payload(b"\x1b[2J\xff{\"sensor\": 1}")).unwrap();
    store.sync().unwrap();
    let text = shown(dir.path(), &["show", "sensors/3/0"]).unwrap();
    let expected = format!(
        "place    sensors/3/0\nsource   plant\nread     2023-11-14 22:13:20 UTC, epoch 1700000000000\n\
         reason   not_json\nright    {}\nbytes    10\n\n{{\"t\": ERR}}\n",
        Reason::NotJson.advice()
    );
    assert_eq!(text, expected);
    let text = shown(dir.path(), &["show", "sensors/3/1"]).unwrap();
    let dump = "00000000  1b 5b 32 4a ff 7b 22 73  65 6e 73 6f 72 22 3a 20  |.[2J.{\"sensor\": |\n\
                00000010  31 7d                                             |1}|\n";
    assert!(text.ends_with(dump), "{text}");
    let error = shown(dir.path(), &["show", "sensors/3/9"]).unwrap_err().to_string();
    assert!(error.starts_with("sensors/3/9 is not among the dead letters in "), "{error}");
    let error = shown(dir.path(), &["show", "sensors/9"]).unwrap_err().to_string();
    assert!(error.contains("want TOPIC/PARTITION/OFFSET"), "{error}");
}

#[test]
fn a_line_that_is_being_written_is_left_out_and_a_damaged_one_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path(), None, 1 << 20);
    append(&mut store, 0..1);
    let path = path(&dir.path().join("dead-letters"), 0, 0);
    let mut text = std::fs::read_to_string(&path).unwrap();
    text.push_str("{\"source\":\n{\"source\":\"pl");
    std::fs::write(&path, text).unwrap();
    let text = shown(dir.path(), &["list"]).unwrap();
    assert!(text.starts_with("count  reason"), "{text}");
    assert!(text.ends_with("\n1 lines could not be read: written by another version, or damaged\n"), "{text}");
}
