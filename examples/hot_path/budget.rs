//! Instructions per reading by stage, and what they may be.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A stage may grow by so much before `check` fails.
const TOLERANCE: f64 = 0.03;

/// The function in which instructions are counted; each time it returns, callgrind writes a file.
const COUNTED: &str = "hot_path::stages::counted_stage";

const HEAD: &str = "\
# Instructions per reading (per alert where it says so), by stage: what `make bench-check` holds against callgrind's count.
# Written by `make bench-budget`; a change here belongs into the commit that makes it, with its reason.
";

fn file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/hot_path/budget.toml")
}

/// Counts, and compares with the budget.
pub fn check() -> Result<(), Box<dyn Error>> {
    let budget: BTreeMap<String, toml::Value> = toml::from_str(&std::fs::read_to_string(file())?)?;
    let compiler = compiler()?;
    if budget.get("compiler").and_then(toml::Value::as_str) != Some(&compiler) {
        println!("note: the budget was counted with another compiler than {compiler}");
    }
    let stages = budget.get("stages").and_then(toml::Value::as_table).ok_or("budget.toml has no [stages]")?;
    let mut wrong = Vec::new();
    println!("{:34} {:>9} {:>9} {:>8}", "instructions per reading", "budget", "now", "change");
    for (name, now) in count()? {
        let Some(budget) = stages.get(&name).and_then(toml::Value::as_float) else {
            println!("{name:34} {:>9} {now:9.1}", "none");
            wrong.push(format!("{name} has no budget"));
            continue;
        };
        let change = now / budget - 1.0;
        println!("{name:34} {budget:9.1} {now:9.1} {:+7.1}%", change * 100.0);
        if change > TOLERANCE {
            wrong.push(format!("{name} grew by {:.1} %", change * 100.0));
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ").into()) }
}

/// Counts, and writes that down as the budget.
pub fn write() -> Result<(), Box<dyn Error>> {
    let mut text = format!("{HEAD}compiler = {:?}\n\n[stages]\n", compiler()?);
    for (name, now) in count()? {
        println!("{name:34} {now:9.1}");
        text += &format!("{name:?} = {now:.1}\n");
    }
    Ok(std::fs::write(file(), text)?)
}

fn compiler() -> Result<String, Box<dyn Error>> {
    let said = Command::new("rustc").arg("--version").output()?;
    Ok(String::from_utf8(said.stdout)?.trim().to_owned())
}

/// Runs the stages under callgrind: instructions per reading, in the order of the stages.
fn count() -> Result<Vec<(String, f64)>, Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let out = folder.path().join("callgrind.out");
    let measured = Command::new("valgrind")
        .args(["--tool=callgrind", "--collect-atstart=no"])
        .arg(format!("--toggle-collect={COUNTED}"))
        .arg(format!("--dump-after={COUNTED}"))
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(std::env::current_exe()?)
        .arg("measure")
        .stderr(Stdio::piped())
        .output()
        .map_err(|error| format!("valgrind: {error}; install it (Debian: valgrind)"))?;
    if !measured.status.success() {
        return Err(format!("under valgrind: {}", String::from_utf8_lossy(&measured.stderr)).into());
    }
    let stdout = String::from_utf8(measured.stdout)?;
    let mut counts = Vec::new();
    for (n, line) in (1..).zip(stdout.lines()) {
        let (readings, name) = line.split_once(' ').ok_or("measure prints readings and a name")?;
        let dump = std::fs::read_to_string(format!("{}.{n}", out.display()))?;
        let total = dump.lines().find_map(|line| line.strip_prefix("summary: ").or(line.strip_prefix("totals: ")));
        let total: f64 = total.ok_or("a callgrind file has a summary")?.trim().parse()?;
        counts.push((name.to_owned(), total / readings.parse::<f64>()?));
    }
    Ok(counts)
}
