//! The secret by which processes know each other: a file that the operator names, or, on one machine, one that the
//! data directory holds.

use super::handshake::Key;
use crate::error::Failure;
use sha2::{Digest, Sha256};
use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// How a secret file is made.
pub const HOW: &str = "head -c 32 /dev/urandom | base64 > FILE; chmod 600 FILE";
/// The least that is a secret, bytes.
const LEAST: usize = 16;
/// The most.
const MOST: u64 = 4096;
/// The data directory's own secret.
const OWN: &str = "cluster.key";

/// Reads the file that the operator names. Who else may read it is looked at first.
pub fn read(path: &Path) -> Result<Key, Failure> {
    let wrong = |what: String| Failure::configuration(format!("mesh.secret_file: {}: {what}", path.display()));
    let about = fs::metadata(path).map_err(|e| wrong(format!("{e}; make one with: {HOW}")))?;
    if !about.is_file() {
        return Err(wrong("it is no file".to_owned()));
    }
    // PostgreSQL's rule for its keys: the owner alone, or root's with a group that may read, as secrets are mounted.
    let others = if about.uid() == 0 { 0o037 } else { 0o077 };
    if about.mode() & others != 0 {
        let mode = about.mode() & 0o777;
        return Err(wrong(format!("others may read or change it (mode {mode:o}); chmod 600 {}", path.display())));
    }
    if about.len() > MOST {
        return Err(wrong(format!("it has {} bytes, and a secret at most {MOST}", about.len())));
    }
    let bytes = fs::read(path).map_err(|e| wrong(e.to_string()))?;
    let secret = bytes.trim_ascii();
    if secret.len() < LEAST {
        return Err(wrong(format!("a secret has at least {LEAST} bytes, this one {}; write: {HOW}", secret.len())));
    }
    Ok(Key::new(secret))
}

/// What the data directory holds: a secret that everybody has who may write there, made by whoever comes first, and a
/// name for the directory that gives nothing of it away.
pub fn of_data_dir(data_dir: &Path) -> Result<(Key, String), Failure> {
    let path = data_dir.join(OWN);
    let wrong = |error: std::io::Error| Failure::configuration(format!("data_dir: {}: {error}", path.display()));
    if !path.exists() {
        fs::create_dir_all(data_dir).map_err(wrong)?;
        let [a, b, c, d, ..] = random().map_err(wrong)?;
        let beside = data_dir.join(format!("{OWN}.{:08x}", u32::from_le_bytes([a, b, c, d])));
        let made = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside);
        made.and_then(|mut file| file.write_all(&random()?).and_then(|()| file.sync_all())).map_err(wrong)?;
        // The first link wins; a rename would let the last one win, after others have read the first.
        let linked = fs::hard_link(&beside, &path);
        let _ = fs::remove_file(&beside);
        if let Err(error) = linked
            && error.kind() != ErrorKind::AlreadyExists
        {
            return Err(wrong(error));
        }
    }
    let secret = fs::read(&path).map_err(wrong)?;
    if secret.len() < LEAST {
        let message = format!("data_dir: {}: it is cut short; remove it while nothing runs", path.display());
        return Err(Failure::configuration(message));
    }
    let name = Sha256::new().chain_update(b"data_dir\0").chain_update(&secret).finalize();
    Ok((Key::new(&secret), name[..8].iter().map(|byte| format!("{byte:02x}")).collect()))
}

/// Bytes that nobody can guess.
pub fn random() -> std::io::Result<[u8; 32]> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(std::io::Error::other)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_secret_that_others_may_read_or_that_is_none_is_refused_with_what_to_write() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("secret");
        let refused = |says: &str| {
            let failure = read(&path).expect_err(says);
            assert_eq!(failure.code, crate::error::Exit::Configuration);
            assert!(failure.message.contains(says), "{says}: {failure}");
        };
        refused("head -c 32 /dev/urandom");
        fs::write(&path, "0123456789abcdef\n").expect("written");
        for mode in [0o644, 0o604, 0o620, 0o602, 0o666] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("a mode");
            refused("chmod 600");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("a mode");
        assert!(read(&path).is_ok());
        fs::write(&path, "short\n").expect("written");
        refused("at least 16 bytes, this one 5");
        fs::write(&path, vec![b'x'; 5000]).expect("written");
        refused("at most 4096");
        assert_eq!(format!("{:?}", Key::new(b"0123456789abcdef")), "***");
    }

    #[test]
    fn a_data_directory_has_one_secret_whoever_comes_first() {
        let folder = tempfile::tempdir().expect("a folder");
        let names: Vec<String> = std::thread::scope(|scope| {
            let dir = folder.path();
            let all: Vec<_> = (0..8).map(|_| scope.spawn(move || of_data_dir(dir).expect("a secret").1)).collect();
            all.into_iter().map(|one| one.join().expect("no panic")).collect()
        });
        assert!(names.iter().all(|name| *name == names[0]), "{names:?}");
        let mode = fs::metadata(folder.path().join(OWN)).expect("a file").mode() & 0o777;
        assert_eq!(mode, 0o600);
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1);
        assert_ne!(of_data_dir(tempfile::tempdir().expect("a folder").path()).expect("a secret").1, names[0]);
    }
}
