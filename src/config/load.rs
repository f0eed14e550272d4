//! From files, environment and flags to a configuration, or to everything that is wrong with it.

use super::inventory::{self, Inventory};
use super::pure::Pure;
use super::report::{Level, Origins, Place, Report};
use super::tree::{Entry, Node, Value, plain};
use super::typed::{Fault, Kind};
use super::types::Config;
use super::{hints, validate};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A configuration that may be started, and what looked odd about it.
#[derive(Debug)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    /// The sensors' labels.
    pub inventory: Inventory,
    /// Warnings, and the places of all settings: `check` adds what it finds.
    pub report: Report,
}

impl Loaded {
    /// The part that answers depend on.
    pub fn pure(&self) -> Pure {
        Pure::new(&self.config, &self.inventory)
    }
}

/// What flags say; they go before everything else.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `--data-dir`.
    pub data_dir: Option<PathBuf>,
    /// `--workers`.
    pub workers: Option<usize>,
    /// `--secret-file`.
    pub secret_file: Option<PathBuf>,
}

/// The top-level settings that the environment may state, and their paths.
pub const VARIABLES: [(&str, &[&str]); 4] = [
    ("STREAMGAUGE_DATA_DIR", &["data_dir"]),
    ("STREAMGAUGE_INVENTORY", &["inventory"]),
    ("STREAMGAUGE_LISTEN", &["server", "listen"]),
    ("STREAMGAUGE_WORKERS", &["workers"]),
];

/// Loads files, later ones adding to earlier ones; then the environment, then flags.
pub fn load(
    files: &[PathBuf],
    env: &dyn Fn(&str) -> Option<String>,
    overrides: &Overrides,
) -> Result<Loaded, Box<Report>> {
    let mut texts = Vec::new();
    let mut unreadable = Report::new(Origins::default());
    for path in files {
        match std::fs::read(path).map(String::from_utf8) {
            Ok(Ok(text)) => texts.push((path.clone(), text)),
            Ok(Err(_)) => {
                unreadable.error("", format!("{} is not UTF-8 text", path.display()), "");
            }
            Err(error) => {
                let message = format!("cannot read {}: {}", path.display(), plain(&error));
                unreadable.error("", message, "name an existing file with -c");
            }
        }
    }
    if unreadable.has_errors() {
        return Err(Box::new(unreadable));
    }
    load_texts(&texts, env, overrides)
}

/// Loads texts as if they were files with these names.
pub fn load_texts(
    texts: &[(PathBuf, String)],
    env: &dyn Fn(&str) -> Option<String>,
    overrides: &Overrides,
) -> Result<Loaded, Box<Report>> {
    let mut origins = Origins::default();
    let mut mistakes = Vec::new();
    let mut tree = Node::empty();
    for (path, text) in texts {
        let origin = origins.file(path, text);
        tree.merge(Node::parse(origin, text, &mut mistakes));
    }
    let broken = !mistakes.is_empty();
    for (name, path) in VARIABLES {
        if let Some(value) = env(name) {
            let origin = origins.variable(name, &value);
            insert(&mut tree, path, Place::new(origin, 0..value.len()), value);
        }
    }
    let mut unexpanded = Vec::new();
    tree.expand(&origins, env, &mut unexpanded);

    let mut report = Report::new(origins);
    tree.visit(&Place::NOWHERE, &mut |node, key| report.remember(&node.path, key, &node.place));
    let mut removed = BTreeSet::new();
    for (path, (place, message, help)) in unexpanded {
        tree.remove(&path);
        removed.insert(path);
        report.add(Level::Error, place, message, help);
    }
    for (place, message, help) in mistakes {
        report.add(Level::Error, place, message, help);
    }
    // Half a file is missing what the other half holds: after a syntax error only that is told.
    if broken {
        return Err(Box::new(report));
    }

    let mut config = typed(&mut tree, &mut removed, &mut report);
    if let Some(path) = &overrides.data_dir {
        config.data_dir.clone_from(path);
    }
    if let Some(workers) = overrides.workers {
        config.workers = workers;
    }
    if let Some(path) = &mut config.mesh.secret_file {
        *path = report.origins().directory(&report.place("mesh.secret_file")).join(&*path);
    }
    if let Some(path) = &overrides.secret_file {
        config.mesh.secret_file = Some(path.clone());
    }
    let mut inventory = Inventory::new();
    if let Some(path) = &mut config.inventory {
        *path = report.origins().directory(&report.place("inventory")).join(&*path);
        match std::fs::read(&*path).map(String::from_utf8) {
            Ok(Ok(text)) => inventory = inventory::read(path, &text, &mut report),
            Ok(Err(_)) => report.error("inventory", format!("{} is not UTF-8 text", path.display()), ""),
            Err(error) => {
                let help = "a path is relative to the configuration file";
                report.error("inventory", format!("cannot read {}: {}", path.display(), plain(&error)), help);
            }
        }
    }
    validate::check(&config, &inventory, &removed, &mut report);
    if report.has_errors() { Err(Box::new(report)) } else { Ok(Loaded { config, inventory, report }) }
}

/// Puts a text at a path of the tree.
fn insert(tree: &mut Node, path: &[&str], place: Place, text: String) {
    let mut node = tree;
    for (depth, key) in path.iter().enumerate() {
        if !matches!(node.value, Value::Table(_)) {
            node.value = Value::Table(BTreeMap::new());
        }
        let Value::Table(entries) = &mut node.value else { return };
        let last = depth + 1 == path.len();
        let empty = Node { place: place.clone(), path: path[..=depth].join("."), value: Value::Table(BTreeMap::new()) };
        let entry = entries.entry((*key).to_owned()).or_insert_with(|| Entry { key: place.clone(), node: empty });
        if last {
            entry.key = place.clone();
            entry.node.place = place.clone();
            entry.node.value = Value::String(text.clone(), true);
        }
        node = &mut entry.node;
    }
}

/// Gives the tree its types. After a mistake the value at fault is taken away and the rest read again, so that one run
/// tells all mistakes; what is missing only because it was taken away is not told.
fn typed(tree: &mut Node, removed: &mut BTreeSet<String>, report: &mut Report) -> Config {
    loop {
        let fault = match Config::deserialize(&*tree) {
            Ok(config) => return config,
            Err(fault) => fault,
        };
        let path = fault.path.clone().unwrap_or_default();
        let consequence = match &fault.kind {
            Kind::MissingKey { key } => removed.contains(&format!("{path}.{key}")),
            Kind::Other(message) if message.starts_with("is empty") => {
                removed.iter().any(|gone| gone.starts_with(&path) && gone[path.len()..].starts_with('.'))
            }
            _ => false,
        };
        if !consequence {
            tell(&fault, &path, report);
        }
        if path.is_empty() || !tree.remove(&path) {
            return Config::default();
        }
        removed.insert(path);
    }
}

fn tell(fault: &Fault, path: &str, report: &mut Report) {
    let (table, key) = path.rsplit_once('.').unwrap_or(("", path));
    let (message, help) = match &fault.kind {
        Kind::UnknownKey { key, known } => {
            let place = if table.is_empty() { "at the top level".to_owned() } else { format!("in {table}") };
            (format!("unknown key `{key}` {place}"), hints::unknown_key(key, known, table))
        }
        Kind::MissingKey { key } => (format!("{path} lacks `{key}`"), hints::missing_key(key, path)),
        Kind::WrongType { wants, found, value } => {
            (format!("`{key}` wants {wants}, found {found}"), hints::wrong_type(wants, value))
        }
        Kind::UnknownName { found, known } => {
            (format!("`{key}` is none of those known: {found}"), hints::unknown_name(found, known))
        }
        Kind::Other(message) if message == "invalid socket address syntax" => {
            (format!("`{key}` wants an address and a port"), Some("write \"127.0.0.1:7070\", or \"[::1]:7070\"".into()))
        }
        Kind::Other(message) if ["wants ", "is ", "has "].iter().any(|verb| message.starts_with(verb)) => {
            (format!("`{key}` {message}"), None)
        }
        Kind::Other(message) => (message.clone(), None),
    };
    let place = match fault.kind {
        // A table written with a header has the header's place; one written inline its own.
        Kind::MissingKey { .. } => report.place(path),
        _ => fault.place.clone(),
    };
    report.add(Level::Error, place, message, help);
}

/// The environment of this process.
pub fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// The file that a command uses when none is named.
pub fn default_file() -> Option<PathBuf> {
    let path = Path::new("streamgauge.toml");
    path.exists().then(|| path.to_owned())
}
