//! The slow path: the whole record as a tree. It takes all of JSON, and decides what is JSON.

use super::fields::{Fields, Scalar};
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// A record's tree, and the texts of whole numbers that stand for a name.
#[derive(Clone, Debug, Default)]
pub(super) struct Tree {
    root: Value,
    texts: Vec<(usize, String)>,
}

/// A JSON pointer (RFC 6901) in its parts.
pub(super) type Path = Vec<String>;

impl Tree {
    /// Reads `text`; false if it is not one JSON object. The fields `names` may be named by whole numbers.
    ///
    /// serde_json keeps the last of a repeated key, refuses numbers beyond f64, more than 127 levels and half surrogate
    /// pairs, in fields that nobody asks for, too.
    pub fn parse(&mut self, text: &str, paths: &[Path], names: &[usize]) -> bool {
        let Ok(root @ Value::Object(_)) = serde_json::from_str(text) else { return false };
        self.root = root;
        self.texts.clear();
        for &field in names {
            let Some(path) = paths.get(field) else { continue };
            let Some(Value::Number(number)) = find(&self.root, path) else { continue };
            // The tree keeps the text of a number only as far as it fits 64 bits.
            let text = if number.is_f64() { raw(text, path).map(str::to_owned) } else { Some(number.to_string()) };
            self.texts.extend(text.filter(|text| !text.contains(['.', 'e', 'E'])).map(|text| (field, text)));
        }
        true
    }

    /// The fields of the record that was parsed last.
    pub fn fields<'a>(&'a self, paths: &'a [Path]) -> Parsed<'a> {
        Parsed { tree: self, paths }
    }
}

/// The mapped fields of a record that was parsed.
pub(super) struct Parsed<'a> {
    tree: &'a Tree,
    paths: &'a [Path],
}

impl<'a> Fields<'a> for Parsed<'a> {
    const WITHOUT_CONTROLS: bool = false;
    fn get(&self, field: usize) -> Scalar<'a> {
        let tree: &'a Tree = self.tree;
        let Some(value) = self.paths.get(field).and_then(|path| find(&tree.root, path)) else { return Scalar::Absent };
        match value {
            Value::Null => Scalar::Null,
            Value::String(text) => Scalar::Text(text),
            Value::Number(number) => {
                let Some(value) = number.as_f64() else { return Scalar::Other };
                match tree.texts.iter().find(|(known, _)| *known == field) {
                    Some((_, text)) => Scalar::Whole { text, int: number.as_i64(), value },
                    None if number.is_f64() => Scalar::Fraction(value),
                    None => Scalar::Whole { text: "", int: number.as_i64(), value },
                }
            }
            Value::Bool(_) | Value::Array(_) | Value::Object(_) => Scalar::Other,
        }
    }
}

/// The text that `path` points at, as written.
fn raw<'t>(text: &'t str, path: &[String]) -> Option<&'t str> {
    path.iter().try_fold(text, |text, part| {
        let inner = if text.trim_start().starts_with('[') {
            serde_json::from_str::<Vec<&'t RawValue>>(text).ok()?.get(place(part)?).copied()
        } else {
            serde_json::from_str::<BTreeMap<String, &'t RawValue>>(text).ok()?.get(part).copied()
        };
        inner.map(RawValue::get)
    })
}

/// What `path` points at.
fn find<'v>(root: &'v Value, path: &[String]) -> Option<&'v Value> {
    path.iter().try_fold(root, |value, part| match value {
        Value::Object(members) => members.get(part),
        Value::Array(items) => items.get(place(part)?),
        _ => None,
    })
}

/// A place in an array: a whole number without leading zeros.
fn place(part: &str) -> Option<usize> {
    let plain = part == "0" || !part.starts_with(['0', '+']);
    part.parse().ok().filter(|_| plain)
}
