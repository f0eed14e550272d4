//! What the Parquet archive costs: CPU seconds per million rows, and bytes per row.
//!
//!     cargo run --release --example archive_cost [ROWS]

use operators::{Judged, SeriesName, Verdict};
use std::sync::Arc;
use streamgauge::seam::RealFs;
use streamgauge::sink::{NameTable, ParquetArchive, RowBatch, Rows, Sink};

fn main() {
    let rows: usize = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(5_000_000);
    let dir = tempfile::tempdir().expect("a temporary folder");
    let names = Arc::new(NameTable::default());
    for no in 0..10_000 {
        let metric = ["temperature", "humidity", "pressure", "pm10", "pm25", "co2"][no as usize % 6];
        names.set(no, SeriesName { sensor: format!("plant-a/line-{}", no / 6).into(), metric: metric.into() });
    }
    let streams = Arc::new(vec![("plant".to_owned(), "sensor-data".to_owned())]);
    let mut rng = fastrand::Rng::with_seed(7);
    let mut offsets = [0_i64; 8];
    // 20 ms epochs at 100,000 readings a second; a sensor's readings stand together, as the judge leaves them.
    let batches: Vec<Rows> = (0..rows / 2000)
        .map(|epoch| {
            let mut epoch_rows: Vec<Judged> = (0..2000)
                .map(|i| {
                    let partition = rng.usize(0..8);
                    offsets[partition] += 1;
                    Judged {
                        time: 1_700_000_000_000_000 + epoch as i64 * 20_000 + i * 10 + rng.i64(-500_000..0),
                        value: (rng.f64() * 1000.0).round() / 10.0,
                        offset: offsets[partition],
                        series: rng.u32(0..10_000),
                        partition: partition as u32,
                        stream: 0,
                        index: 0,
                        verdict: if rng.u32(0..100) == 0 { Verdict::Late } else { Verdict::Accepted },
                    }
                })
                .collect();
            epoch_rows.sort_by_key(|row| row.partition);
            let batch = RowBatch {
                epoch: 1_700_000_000_000 + epoch as u64 * 20,
                worker: 0,
                names: Vec::new(),
                rows: epoch_rows,
                streams: Arc::clone(&streams),
            };
            Rows { batch: Arc::new(batch), names: Arc::clone(&names) }
        })
        .collect();
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let mut sink = ParquetArchive::new(Arc::new(RealFs), dir.path().into(), 0, 1, Vec::new());
    runtime.block_on(sink.connect(1)).expect("a folder");
    let before = cpu_seconds();
    let held = runtime.block_on(async {
        for batch in batches.chunks(8) {
            sink.write(batch).await.expect("room");
        }
        sink.take_cut(u64::MAX).await.expect("room")
    });
    let (cpu, bytes) = (cpu_seconds() - before, held.files.iter().map(|file| file.length).sum::<u64>());
    let millions = rows as f64 / 1e6;
    println!("{rows} rows: {:.3} CPU-s per million, {:.1} bytes per row", cpu / millions, bytes as f64 / rows as f64);
}

fn cpu_seconds() -> f64 {
    use nix::sys::resource::{UsageWho, getrusage};
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("rusage");
    let seconds = |t: nix::sys::time::TimeVal| t.tv_sec() as f64 + t.tv_usec() as f64 * 1e-6;
    seconds(usage.user_time()) + seconds(usage.system_time())
}
