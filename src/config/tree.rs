//! A configuration as it is written: values that know their file, line and column.
//!
//! Several files become one tree here, and `${NAME}` and `${file:PATH}` are replaced inside its strings, before anything
//! is given a type. Doing so in the file's text instead would let a password break the file's syntax.

use super::report::{Origins, Place};
use std::collections::BTreeMap;
use std::path::Path;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A value and where it stands.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its place in its file.
    pub place: Place,
    /// Its keys from the top, as `sources.plant.topics[0]`.
    pub path: String,
    /// What it is.
    pub value: Value,
}

/// What a value is.
#[derive(Clone, Debug)]
pub enum Value {
    /// Text, and whether part of it came from outside the file: then it may be a secret, and is not shown.
    String(String, bool),
    /// A whole number.
    Integer(i64),
    /// A number.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// A date or time; no setting is one.
    Date(String),
    /// A list.
    Array(Vec<Node>),
    /// A table.
    Table(BTreeMap<String, Entry>),
}

/// A key of a table and its value.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Where the key stands.
    pub key: Place,
    /// The value.
    pub node: Node,
}

/// A mistake found before types: where, what, and what would be right.
pub type Mistake = (Place, String, Option<String>);

impl Node {
    /// An empty table.
    pub fn empty() -> Self {
        Self { place: Place::NOWHERE, path: String::new(), value: Value::Table(BTreeMap::new()) }
    }

    /// Reads the text of one file as far as it can be read.
    pub fn parse(origin: usize, text: &str, mistakes: &mut Vec<Mistake>) -> Self {
        let (table, errors) = DeTable::parse_recoverable(text);
        // After the first one, the parser reads the rest of the file in the wrong light.
        if let Some(error) = errors.first() {
            let message = error.message().to_owned();
            let help = message.contains("array elements").then(|| "is a list above it closed with ]?".to_owned());
            mistakes.push((Place::new(origin, error.span().unwrap_or(0..0)), message, help));
        }
        let place = Place::new(origin, table.span());
        from_table(origin, String::new(), place, table.into_inner(), mistakes)
    }

    /// The table's entries, if it is one.
    pub fn entries(&self) -> Option<&BTreeMap<String, Entry>> {
        match &self.value {
            Value::Table(entries) => Some(entries),
            _ => None,
        }
    }

    /// Adds what another tree says; where both say something, the other one counts.
    pub fn merge(&mut self, later: Node) {
        let replaced = {
            let mut keys = self.path.split('.');
            // A rule has one condition and a sink one type: half of an old one would be in the way of a new one.
            let rule_part =
                keys.next() == Some("rules") && keys.nth(1).is_some_and(|key| matches!(key, "when" | "of" | "match"));
            rule_part || self.kind().zip(later.kind()).is_some_and(|(ours, theirs)| ours != theirs)
        };
        match (&mut self.value, later.value) {
            (Value::Table(ours), Value::Table(theirs)) if !replaced => {
                for (key, entry) in theirs {
                    match ours.get_mut(&key) {
                        Some(mine) => mine.node.merge(entry.node),
                        None => {
                            ours.insert(key, entry);
                        }
                    }
                }
            }
            (ours, theirs) => {
                *ours = theirs;
                self.place = later.place;
            }
        }
    }

    /// What its key `type` says.
    fn kind(&self) -> Option<&str> {
        match &self.entries()?.get("type")?.node.value {
            Value::String(text, _) => Some(text),
            _ => None,
        }
    }

    /// Takes away the value with this path; whether it was there.
    pub fn remove(&mut self, path: &str) -> bool {
        match &mut self.value {
            Value::Table(entries) => {
                let found = entries.iter().find(|(_, entry)| entry.node.path == path).map(|(key, _)| key.clone());
                match found {
                    Some(key) => entries.remove(&key).is_some(),
                    None => entries.values_mut().any(|entry| entry.node.remove(path)),
                }
            }
            Value::Array(nodes) => match nodes.iter().position(|node| node.path == path) {
                Some(index) => {
                    nodes.remove(index);
                    true
                }
                None => nodes.iter_mut().any(|node| node.remove(path)),
            },
            _ => false,
        }
    }

    /// Tells each value's path and the places of its key and of itself.
    pub fn visit(&self, key: &Place, each: &mut impl FnMut(&Node, &Place)) {
        each(self, key);
        match &self.value {
            Value::Table(entries) => entries.values().for_each(|entry| entry.node.visit(&entry.key, each)),
            Value::Array(nodes) => nodes.iter().for_each(|node| node.visit(&node.place, each)),
            _ => {}
        }
    }

    /// Replaces `${NAME}`, `${NAME:-default}` and `${file:PATH}` in every string. A string that asks for what is not
    /// there is a mistake.
    pub fn expand(&mut self, origins: &Origins, env: &dyn Fn(&str) -> Option<String>, mistakes: &mut Vec<Expanded>) {
        match &mut self.value {
            Value::String(text, outside) if text.contains("${") => {
                match expand(text, origins.directory(&self.place), env) {
                    Ok((expanded, from_outside)) => {
                        *text = expanded;
                        *outside |= from_outside;
                    }
                    Err((message, help)) => mistakes.push((self.path.clone(), (self.place.clone(), message, help))),
                }
            }
            Value::Array(nodes) => nodes.iter_mut().for_each(|node| node.expand(origins, env, mistakes)),
            Value::Table(entries) => entries.values_mut().for_each(|entry| entry.node.expand(origins, env, mistakes)),
            _ => {}
        }
    }
}

/// The path of a string that could not be expanded, and why.
pub type Expanded = (String, Mistake);

fn from_table(origin: usize, path: String, place: Place, table: DeTable<'_>, mistakes: &mut Vec<Mistake>) -> Node {
    let mut entries = BTreeMap::new();
    for (key, value) in table {
        let key_place = Place::new(origin, key.span());
        let key = key.into_inner().into_owned();
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        let node = from_value(origin, path, value, mistakes);
        entries.insert(key, Entry { key: key_place, node });
    }
    Node { place, path, value: Value::Table(entries) }
}

fn from_value(origin: usize, path: String, value: Spanned<DeValue<'_>>, mistakes: &mut Vec<Mistake>) -> Node {
    let place = Place::new(origin, value.span());
    let value = match value.into_inner() {
        DeValue::String(text) => Value::String(text.into_owned(), false),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Value::Integer(number),
            Err(_) => {
                mistakes.push((place.clone(), format!("{number} is beyond the range of whole numbers"), None));
                Value::Integer(0)
            }
        },
        DeValue::Float(number) => Value::Float(number.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(flag) => Value::Bool(flag),
        DeValue::Datetime(date) => Value::Date(date.to_string()),
        DeValue::Array(values) => Value::Array(
            values
                .into_iter()
                .enumerate()
                .map(|(index, value)| from_value(origin, format!("{path}[{index}]"), value, mistakes))
                .collect(),
        ),
        DeValue::Table(table) => return from_table(origin, path, place, table, mistakes),
    };
    Node { place, path, value }
}

/// The most that is read from a file that `${file:PATH}` names.
const FILE_BYTES_MAX: usize = 64 * 1024;

/// The text with everything replaced, and whether anything was (`$${` stands for `${` itself).
fn expand(
    text: &str,
    directory: &Path,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<(String, bool), (String, Option<String>)> {
    let mut out = String::new();
    let mut outside = false;
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        if rest[..start].ends_with('$') {
            out.push_str(&rest[..start - 1]);
            out.push_str("${");
            rest = &rest[start + 2..];
            continue;
        }
        out.push_str(&rest[..start]);
        let Some(length) = rest[start..].find('}') else {
            return Err(("`${` has no closing `}`".into(), Some("write $${ for the characters themselves".into())));
        };
        let inside = &rest[start + 2..start + length];
        rest = &rest[start + length + 1..];
        outside = true;
        if let Some(path) = inside.strip_prefix("file:") {
            out.push_str(&read(&directory.join(path), path)?);
            continue;
        }
        let (name, default) = match inside.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (inside, None),
        };
        let mut letters = name.bytes();
        let named = letters.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
            && letters.all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !named {
            return Err((
                format!("${{{inside}}} is not the name of an environment variable"),
                Some("write ${NAME}, ${NAME:-default} or ${file:PATH}; $${ for the characters themselves".into()),
            ));
        }
        match (env(name), default) {
            (Some(value), None) => out.push_str(&value),
            (Some(value), Some(_)) if !value.is_empty() => out.push_str(&value),
            (_, Some(default)) => out.push_str(default),
            (None, None) => {
                return Err((
                    format!("environment variable {name} is not set"),
                    Some(format!(
                        "export it, write ${{{name}:-…}}, or read a file with ${{file:/run/secrets/{}}}",
                        name.to_ascii_lowercase()
                    )),
                ));
            }
        }
    }
    out.push_str(rest);
    Ok((out, outside))
}

/// A file's text without the line end that editors leave.
fn read(path: &Path, written: &str) -> Result<String, (String, Option<String>)> {
    let help = "it must be readable by the user that runs streamgauge";
    let text = std::fs::read(path).map_err(|e| (format!("cannot read {written}: {}", plain(&e)), Some(help.into())))?;
    if text.len() > FILE_BYTES_MAX {
        return Err((format!("{written} holds {} bytes, more than any secret (64 KiB)", text.len()), None));
    }
    let text = String::from_utf8(text).map_err(|_| (format!("{written} is not UTF-8 text"), None))?;
    Ok(text.trim_end_matches(['\n', '\r']).to_owned())
}

/// An error of the system in its own words, without the number.
pub fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}
