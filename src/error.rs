//! Why the program ends early: one sentence, and an exit code that a supervisor can act on.

use crate::source::SourceError;
use std::{fmt, io};

/// Why the program ends early. Printed once, in `main`.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What the supervisor sees.
    pub code: Exit,
    /// Where, what, and what would be right.
    pub message: String,
}

/// Exit codes. 0 is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Asked to stop before there was anything to write: no failure, and nothing is printed as one.
    Stopped = 0,
    /// The configuration or the command line is wrong.
    Configuration = 2,
    /// Something cannot be reached, or refuses us.
    Unreachable = 3,
    /// State is corrupt or an invariant is broken: do not restart in a loop.
    Corrupt = 4,
}

impl Exit {
    /// The meaning of an exit code; what has none of its own may pass by itself.
    pub fn from_code(code: u8) -> Self {
        match code {
            0 => Self::Stopped,
            2 => Self::Configuration,
            4 => Self::Corrupt,
            _ => Self::Unreachable,
        }
    }
}

impl Failure {
    /// The configuration or the command line is wrong.
    pub fn configuration(message: impl fmt::Display) -> Self {
        Self { code: Exit::Configuration, message: message.to_string() }
    }
    /// Asked to stop while it waited for others, or read again what the log lists: nothing is lost by leaving.
    pub fn stopped() -> Self {
        let message = "stopped before it had caught up with the last run; the next start begins there again";
        Self { code: Exit::Stopped, message: message.to_owned() }
    }
    /// Something cannot be reached, or refuses us.
    pub fn unreachable(message: impl fmt::Display) -> Self {
        Self { code: Exit::Unreachable, message: message.to_string() }
    }
    /// State is corrupt or an invariant is broken.
    pub fn state(message: impl fmt::Display) -> Self {
        Self { code: Exit::Corrupt, message: message.to_string() }
    }
    /// What reading or writing state came to: an error of the disk may pass; anything else says that state is not what was
    /// written, or that we may not touch it.
    pub fn of_state(error: &anyhow::Error) -> Self {
        let denied = |e: &io::Error| e.kind() == io::ErrorKind::PermissionDenied;
        let passes = disk_failed(error) && !io_errors(error).any(denied);
        let message = format!("{error:#}");
        if passes { Self::unreachable(message) } else { Self::state(message) }
    }
    /// A source failed: records that are gone break the promise; anything else may pass.
    pub fn source(error: &SourceError) -> Self {
        match error {
            SourceError::Unavailable(why) => Self::unreachable(why),
            SourceError::Fatal(why) => Self::state(why),
        }
    }
}

fn io_errors(error: &anyhow::Error) -> impl Iterator<Item = &io::Error> {
    error.chain().filter_map(|cause| cause.downcast_ref())
}

/// Whether this is an error of the disk, and not one of what was read or is missing.
pub fn disk_failed(error: &anyhow::Error) -> bool {
    use io::ErrorKind::{InvalidData, InvalidInput, IsADirectory, NotADirectory, NotFound, UnexpectedEof};
    let of_content = [InvalidData, InvalidInput, IsADirectory, NotADirectory, NotFound, UnexpectedEof];
    io_errors(error).any(|error| !of_content.contains(&error.kind()))
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn an_error_of_the_disk_may_pass_and_what_is_wrong_with_state_does_not() {
        let of = |kind: io::ErrorKind| Err::<(), _>(io::Error::from(kind)).context("manifest.json").expect_err("one");
        for (error, code) in [
            (Err::<(), _>(io::Error::from_raw_os_error(5)).context("x").expect_err("EIO"), Exit::Unreachable),
            (of(io::ErrorKind::StorageFull), Exit::Unreachable),
            (of(io::ErrorKind::PermissionDenied), Exit::Corrupt),
            (of(io::ErrorKind::NotFound), Exit::Corrupt),
            (anyhow::anyhow!("does not match its checksum"), Exit::Corrupt),
        ] {
            let failure = Failure::of_state(&error);
            assert_eq!((failure.code, failure.message), (code, format!("{error:#}")));
        }
    }
}
