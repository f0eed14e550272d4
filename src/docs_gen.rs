//! The generated pages: everything that is said about a key is said once, in its doc comment.
//!
//! `docs/configuration.md`, `streamgauge.schema.json` and `config/default.toml` come from the types of the configuration,
//! `docs/metrics.md` from the table of metrics. A test fails when one of them is not what would be written.

mod default_toml;
mod reference;

use crate::cli::SchemaArgs;
use crate::config::*;
use crate::error::Failure;
use serde::de::{self, DeserializeOwned, Deserializer, Visitor};
use serde_json::{Map, Value};
use std::fmt;
use std::io::Write;
use std::path::Path;

/// `streamgauge schema`.
pub fn run(args: &SchemaArgs) -> Result<(), Failure> {
    if args.write {
        for (path, text) in pages() {
            let path = Path::new(path);
            let written =
                path.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| std::fs::write(path, text));
            written.map_err(|error| Failure::configuration(format!("cannot write {}: {error}", path.display())))?;
        }
        return Ok(());
    }
    if args.check {
        let stale: Vec<_> = stale(Path::new(""));
        if !stale.is_empty() {
            let message = format!("{} is not what would be written; run streamgauge schema --write", stale.join(", "));
            return Err(Failure::configuration(message));
        }
        return Ok(());
    }
    // Whoever reads may have seen enough.
    let _ = std::io::stdout().write_all(schema_text().as_bytes());
    Ok(())
}

/// Every generated page and its text.
pub fn pages() -> Vec<(&'static str, String)> {
    vec![
        ("docs/configuration.md", reference::page(&Schema::new())),
        ("docs/metrics.md", crate::metrics::markdown()),
        ("streamgauge.schema.json", schema_text()),
        ("config/default.toml", default_toml::text(&Schema::new())),
    ]
}

/// The pages below `root` that are not what would be written.
fn stale(root: &Path) -> Vec<&'static str> {
    let differs = |(path, text): &(&'static str, String)| {
        std::fs::read_to_string(root.join(path)).is_ok_and(|found| found == *text).then_some(()).is_none()
    };
    pages().iter().filter(|page| differs(page)).map(|(path, _)| *path).collect()
}

fn schema_text() -> String {
    let mut text = serde_json::to_string_pretty(&Schema::new().root).unwrap_or_default();
    text.push('\n');
    text
}

/// The schema of the configuration, and the order in which the types declare their keys.
struct Schema {
    root: Value,
}

/// A key of a table.
struct Key<'a> {
    name: &'a str,
    schema: &'a Value,
    required: bool,
}

impl Schema {
    fn new() -> Self {
        let mut root = schemars::schema_for!(Config).to_value();
        tidy(&mut root);
        Self { root }
    }

    /// The definition that a schema refers to, or itself.
    fn resolve<'a>(&'a self, schema: &'a Value) -> &'a Value {
        let name = schema.get("$ref").and_then(Value::as_str).and_then(|path| path.strip_prefix("#/$defs/"));
        name.map_or(schema, |name| self.def(name))
    }

    fn def(&self, name: &str) -> &Value {
        &self.root["$defs"][name]
    }

    /// The keys of a table in the order of the type's declaration.
    fn keys<'a>(&self, table: &'a Value, order: &[&'static str]) -> Vec<Key<'a>> {
        let required: Vec<&str> =
            table["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let place = |name: &str| order.iter().position(|other| *other == name).unwrap_or(usize::MAX);
        let mut keys: Vec<_> = table["properties"]
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(name, _)| *name != "type")
            .map(|(name, schema)| Key { name, schema, required: required.contains(&name.as_str()) })
            .collect();
        keys.sort_by_key(|key| place(key.name));
        keys
    }

    /// The texts that an enum takes, with their meanings.
    fn choices<'a>(&'a self, schema: &'a Value) -> Vec<(&'a str, &'a str)> {
        let variants = self.resolve(schema)["oneOf"].as_array();
        let choice = |variant: &'a Value| Some((variant["const"].as_str()?, variant["description"].as_str()?));
        variants.into_iter().flatten().filter_map(choice).collect()
    }

    /// The variants of an enum that are tables with one key, or with a `type`: name, meaning, schema.
    fn variants<'a>(&'a self, schema: &'a Value) -> Vec<(&'a str, &'a str, &'a Value)> {
        let variants = self.resolve(schema)["oneOf"].as_array();
        let variant = |variant: &'a Value| {
            let properties = variant["properties"].as_object()?;
            let name = match properties.get("type") {
                Some(tag) => tag["const"].as_str()?,
                None => properties.keys().next()?,
            };
            Some((name, variant["description"].as_str().unwrap_or_default(), variant))
        };
        variants.into_iter().flatten().filter_map(variant).collect()
    }
}

/// TOML has no null, and sentences need no line ends.
fn tidy(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            if let Some(Value::Array(types)) = fields.get_mut("type") {
                types.retain(|name| name != "null");
                if let [one] = &types[..] {
                    let one = one.clone();
                    fields.insert("type".into(), one);
                }
            }
            if let Some(Value::Array(any)) = fields.get_mut("anyOf") {
                any.retain(|schema| schema["type"] != "null");
                if let [Value::Object(one)] = &any[..] {
                    let one: Map<String, Value> = one.clone();
                    fields.remove("anyOf");
                    for (key, value) in one {
                        fields.entry(key).or_insert(value);
                    }
                }
            }
            // How Rust keeps a number is no one's business; a schema of `uint` means nothing to an editor.
            fields.remove("format");
            for (key, value) in fields.iter_mut() {
                match value {
                    Value::String(text) if key == "description" => *text = text.replace('\n', " "),
                    // Keys of a table, which may be called `format` or `type`, too.
                    Value::Object(keys) if key == "properties" || key == "$defs" => keys.values_mut().for_each(tidy),
                    other => tidy(other),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        _ => {}
    }
}

/// The keys of a type in the order of its declaration, which a JSON object does not keep.
fn order<T: DeserializeOwned>() -> &'static [&'static str] {
    match T::deserialize(Ask) {
        Err(Fields(fields)) => fields,
        Ok(_) => &[],
    }
}

/// A deserializer that is asked for a struct and tells nothing but its fields, as an error.
struct Ask;

#[derive(Debug)]
struct Fields(&'static [&'static str]);

impl fmt::Display for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}
impl std::error::Error for Fields {}
impl de::Error for Fields {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self(&[])
    }
}

impl<'de> Deserializer<'de> for Ask {
    type Error = Fields;
    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Fields> {
        Err(Fields(&[]))
    }
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Fields> {
        Err(Fields(fields))
    }
    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// The order of a sink's keys.
fn sink_order(kind: &str) -> &'static [&'static str] {
    match kind {
        "stdout" => order::<StdoutSink>(),
        "redis_stream" => order::<RedisStreamSink>(),
        "redis_last" => order::<RedisLastSink>(),
        "redis_timeseries" => order::<RedisTimeseriesSink>(),
        "parquet" => order::<ParquetSink>(),
        _ => order::<KafkaSink>(),
    }
}

/// The tables of the top level that have keys of their own, and the orders of these.
fn sections() -> [(&'static str, &'static [&'static str]); 9] {
    [
        ("server", order::<ServerSettings>()),
        ("mesh", order::<MeshSettings>()),
        ("event_time", order::<EventTime>()),
        ("dedup", order::<Dedup>()),
        ("rolling", order::<RollingSettings>()),
        ("limits", order::<LimitSettings>()),
        ("epochs", order::<Epochs>()),
        ("checkpoint", order::<Checkpoint>()),
        ("views", order::<Views>()),
    ]
}

/// A value as TOML writes it.
fn as_toml(value: &Value) -> String {
    match value {
        Value::String(text) => format!("{text:?}"),
        Value::Array(items) => format!("[{}]", items.iter().map(as_toml).collect::<Vec<_>>().join(", ")),
        Value::Object(fields) if fields.is_empty() => "{}".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn generated_pages_are_what_would_be_written() {
        let stale = stale(Path::new(env!("CARGO_MANIFEST_DIR")));
        assert_eq!(stale, Vec::<&str>::new(), "run `streamgauge schema --write`");
    }

    #[test]
    fn every_example_configuration_loads_without_a_word() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let env = |name: &str| name.ends_with("_PASSWORD").then(|| "secret".to_owned());
        let mut seen = 0;
        let entries = ["config", "deploy"].into_iter().flat_map(|folder| std::fs::read_dir(root.join(folder)).unwrap());
        for entry in entries {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "toml") {
                continue;
            }
            let report = match load(std::slice::from_ref(&path), &env, &Overrides::default()) {
                Ok(loaded) => loaded.report,
                Err(report) => *report,
            };
            assert_eq!(report.render(MessageFormat::Human, false), "", "{}", path.display());
            seen += 1;
        }
        assert!(seen >= 3, "config/ holds {seen} configurations");
    }

    #[test]
    fn the_file_of_all_defaults_says_what_the_program_does() {
        let text = default_toml::text(&Schema::new());
        let loaded = load_texts(&[(PathBuf::from("default.toml"), text)], &|_| None, &Overrides::default()).unwrap();
        let mut config = loaded.config;
        for map in [&mut config.sources as &mut dyn Clear, &mut config.rules, &mut config.sinks] {
            map.clear_all();
        }
        assert_eq!(config, Config::default());
    }

    trait Clear {
        fn clear_all(&mut self);
    }
    impl<T> Clear for std::collections::BTreeMap<String, T> {
        fn clear_all(&mut self) {
            self.clear();
        }
    }

    #[test]
    fn every_key_stands_in_page_and_file() {
        let schema = Schema::new();
        let (page, file) = (reference::page(&schema), default_toml::text(&schema));
        let raw = schemars::schema_for!(Config).to_value();
        let mut names = Vec::new();
        let mut visit = vec![&raw];
        while let Some(value) = visit.pop() {
            match value {
                Value::Object(fields) => {
                    // Not the map of keys itself: a key may be called `properties`, too.
                    if let Some(Value::Object(properties)) = fields.get("properties") {
                        names.extend(properties.keys().cloned());
                        visit.extend(properties.values());
                    }
                    visit.extend(fields.iter().filter(|(name, _)| *name != "properties").map(|(_, value)| value));
                }
                Value::Array(items) => visit.extend(items),
                _ => {}
            }
        }
        assert!(names.len() > 60, "{names:?}");
        for name in names {
            assert!(page.contains(&format!("`{name}`")), "{name} is not in the page");
            let stated = file.contains(&format!("{name} ="))
                || file.contains(&format!("{name}."))
                || file.contains(&format!(".{name}]"));
            assert!(
                stated || file.contains(&format!("[{name}]")) || file.contains(&format!("[{name}.")),
                "{name} is not in the file"
            );
        }
    }
}
