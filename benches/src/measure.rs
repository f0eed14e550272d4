//! What a program costs, seen from outside: CPU time and peak memory of its process, and what the servers spent meanwhile.

use anyhow::{Context as _, Result, bail};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How often a running program's memory is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// Linux tells processor time in hundredths of a second, on every machine.
const TICKS_PER_SECOND: f64 = 100.0;

/// What running some processes side by side took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// User and system time of all of them, seconds.
    pub cpu_s: f64,
    /// From the first start to the last end, seconds.
    pub wall_s: f64,
    /// The sum of their peaks of resident memory, megabytes.
    pub rss_mb: f64,
}

/// The processor time that a process has had so far, in seconds; also of one that has ended and not been waited for.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("process {pid}"))?;
    Ok(ticks(&stat).with_context(|| format!("/proc/{pid}/stat: {stat}"))? as f64 / TICKS_PER_SECOND)
}

/// utime + stime of a line of /proc/PID/stat; the name in it may hold spaces and parentheses.
fn ticks(stat: &str) -> Option<u64> {
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split_whitespace().collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}

/// The peak of resident memory so far, megabytes; none once the process has ended.
fn peak_mb(pid: u32) -> Option<f64> {
    peak(&std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

fn peak(status: &str) -> Option<f64> {
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<f64>().ok()? * 1024.0 / 1e6)
}

/// A program under way; it ends with this value at the latest.
pub struct Running {
    child: Child,
    out: PathBuf,
    err: PathBuf,
    begun: Instant,
    rss_mb: f64,
}

impl Running {
    /// Starts it; what it says goes to `NAME.out` and `NAME.err` in the folder.
    pub fn start(mut command: Command, folder: &Path, name: &str) -> Result<Self> {
        let (out, err) = (folder.join(format!("{name}.out")), folder.join(format!("{name}.err")));
        command.stdin(Stdio::null()).stdout(File::create(&out)?).stderr(File::create(&err)?);
        let begun = Instant::now();
        let child = command.spawn().with_context(|| format!("{command:?}"))?;
        Ok(Self { child, out, err, begun, rss_mb: 0.0 })
    }
    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
    /// What it has said on standard error.
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.err).unwrap_or_default()
    }
    /// Its processor time so far, in seconds.
    pub fn cpu_s(&self) -> Result<f64> {
        cpu_seconds(self.pid())
    }
    /// Its peak of resident memory so far, megabytes.
    pub fn rss_mb(&mut self) -> f64 {
        if let Some(peak) = peak_mb(self.child.id()) {
            self.rss_mb = self.rss_mb.max(peak);
        }
        self.rss_mb
    }
    /// Asks it to end.
    pub fn terminate(&self) -> Result<()> {
        Ok(nix::sys::signal::kill(Pid::from_raw(self.pid() as i32), nix::sys::signal::Signal::SIGTERM)?)
    }
    /// Whether it has ended. It stays a zombie, so that its processor time can still be read.
    pub fn ended(&self) -> Result<bool> {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        Ok(waitid(Id::Pid(Pid::from_raw(self.pid() as i32)), flags)? != WaitStatus::StillAlive)
    }
    /// After its end: what it cost and what it printed.
    pub fn collect(mut self) -> Result<(Cost, String)> {
        let cost = Cost { cpu_s: self.cpu_s()?, wall_s: self.begun.elapsed().as_secs_f64(), rss_mb: self.rss_mb };
        let status = self.child.wait()?;
        let printed = std::fs::read_to_string(&self.out)?;
        if !status.success() {
            bail!("it ended with {status}: {}\n{printed}", self.said());
        }
        Ok((cost, printed))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs programs side by side to their ends; what they cost together, and what each printed.
pub fn run(commands: Vec<Command>, folder: &Path, patience: Duration) -> Result<(Cost, Vec<String>)> {
    let begun = Instant::now();
    let mut running = Vec::new();
    for (n, command) in commands.into_iter().enumerate() {
        running.push(Running::start(command, folder, &format!("program-{n}"))?);
    }
    loop {
        let mut ended = true;
        for program in &mut running {
            program.rss_mb();
            ended &= program.ended()?;
        }
        if ended {
            break;
        }
        if begun.elapsed() > patience {
            let said: Vec<String> = running.iter().map(Running::said).collect();
            bail!("not at its end after {patience:?}: {}", said.join("\n"));
        }
        std::thread::sleep(LOOK);
    }
    let wall_s = begun.elapsed().as_secs_f64();
    let (mut all, mut printed) = (Cost { wall_s, ..Cost::default() }, Vec::new());
    for program in running {
        let (cost, text) = program.collect()?;
        all.cpu_s += cost.cpu_s;
        all.rss_mb += cost.rss_mb;
        printed.push(text);
    }
    Ok((all, printed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let stat = "77 (a (b) c) S 1 2 3 4 5 6 7 8 9 10 250 17 0 0 20 0 1 0";
        assert_eq!(ticks(stat), Some(267));
        assert_eq!(ticks("77 (cut"), None);
    }

    #[test]
    fn the_peak_is_read_in_kibibytes() {
        assert_eq!(peak("Name:\tx\nVmHWM:\t  100000 kB\n"), Some(102.4));
        assert_eq!(peak("Name:\tx\nState:\tZ (zombie)\n"), None);
    }

    #[test]
    fn what_a_program_spends_is_seen_after_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; echo $i"]);
        let (cost, printed) = run(vec![command], folder.path(), Duration::from_secs(60)).unwrap();
        assert_eq!(printed, ["200000\n"]);
        assert!(cost.cpu_s > 0.0 && cost.cpu_s <= cost.wall_s * 1.2 && cost.rss_mb > 0.1, "{cost:?}");
    }

    #[test]
    fn a_program_that_fails_is_an_error_with_what_it_said() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo why >&2; exit 3"]);
        let error = run(vec![command], folder.path(), Duration::from_secs(60)).unwrap_err();
        assert!(error.to_string().contains("why"), "{error}");
    }
}
