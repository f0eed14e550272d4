#![no_main]
//! A checkpoint whose manifest, or whose description that the manifest vouches for, holds whatever it may.

use libfuzzer_sys::fuzz_target;
use std::path::Path;
use std::sync::Arc;
use streamgauge::checkpoint::{Name, load, marks};
use streamgauge_fuzz::frozen::Frozen;

fuzz_target!(|input: (bool, &[u8])| {
    let (is_manifest, body) = input;
    let dir = Name { term: 1, cut: 2, writer: 1 }.dir(Path::new("/"));
    let manifest = if is_manifest {
        body.to_vec()
    } else {
        let (length, sum) = (body.len(), blake3::hash(body).to_hex());
        let empty = blake3::hash(b"").to_hex();
        format!(
            r#"{{"version":1,"semantics":1,"term":1,"writer":1,"cut":2,"peers":1,"processes":1,"config":"c","files":[
            {{"name":"process-0.json","length":{length},"blake3":"{sum}"}},{{"name":"process-0.bin","length":0,"blake3":"{empty}"}}]}}"#
        )
        .into_bytes()
    };
    let sealed = [format!("{}\n", blake3::hash(&manifest).to_hex()).as_bytes(), &manifest].concat();
    let mut files = Frozen::default();
    files.0.insert(dir.join("manifest.json"), Arc::new(sealed));
    files.0.insert(dir.join("process-0.json"), Arc::new(body.to_vec()));
    files.0.insert(dir.join("process-0.bin"), Arc::new(Vec::new()));
    let _ = marks(&files, &dir);
    if let Ok(restored) = load(&files, &dir) {
        let _ = restored.groups("judge", |_| true).count();
    }
});
