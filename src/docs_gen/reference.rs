//! docs/configuration.md.

use super::{Key, Schema, as_toml, order, sections, sink_order};
use crate::config::*;
use serde_json::Value;
use std::fmt::Write;

const INTRODUCTION: &str = r#"# Configuration

<!-- generated from the types in src/config; do not edit: change the doc comments and run `streamgauge schema --write` -->

One TOML file, or several: `streamgauge run -c plant.toml -c secrets.toml`. Later files add to earlier ones and override
them, table by table; a rule's `when`, `of` and `match` are replaced whole. `config/default.toml` shows every key,
`config/min.toml` the few that are needed. `#:schema ./streamgauge.schema.json` in the first line lets editors complete
keys. `streamgauge check -c plant.toml` tells whether `run` would start; every mistake is told with its line, in one run.

Flags go before the environment, the environment before files, files before defaults. The environment variables are
`STREAMGAUGE_DATA_DIR`, `STREAMGAUGE_INVENTORY`, `STREAMGAUGE_LISTEN` (`server.listen`), `STREAMGAUGE_WORKERS` and, for
log lines, `STREAMGAUGE_LOG_LEVEL`.

In every text `${NAME}` stands for an environment variable, `${NAME:-default}` for one with a default, `${file:PATH}` for
a file's text without its last line end (relative to the configuration file), and `$${` for the characters themselves.
They are replaced inside texts only, after the file has been read, so that a password cannot break its syntax. What comes
from outside is shown in no message, log or record.

A *duration* is a whole number with its unit, or several: `"20ms"`, `"90s"`, `"1h30m"`, `"7d"` (us, ms, s, m, h, d, w). A
*size* is a number of bytes or a text such as `"64 MiB"` (kB, MB, GB, KiB, MiB, GiB). A *path in a message* is a JSON
Pointer: `/pm/10`; a bare `a` means `/a`. In a *glob*, `*` is any text and `?` any character, `\` takes the next one as it
is, and a leading `!` excludes. Names of sources, rules and sinks are letters, digits, `_`, `-` and `.`, at most 64.

What decides answers (sources' topics and decode, event time, dedup, rolling, limits, rules, the inventory's contents) is
recorded with the state under its hash, and a changed file takes effect at the first new epoch. Everything else may be
changed freely between runs.
"#;

/// The page.
pub fn page(schema: &Schema) -> String {
    let mut page = INTRODUCTION.to_owned();
    let named: Vec<&str> = sections().iter().map(|(name, _)| *name).chain(["sources", "rules", "sinks"]).collect();
    let keys = schema.keys(&schema.root, order::<Config>());
    let (tables, values): (Vec<_>, Vec<_>) = keys.into_iter().partition(|key| named.contains(&key.name));
    heading(&mut page, "## At the top", "");
    table(schema, &mut page, &values);
    for key in tables {
        let about = text(key.schema, "description");
        let def = schema.resolve(key.schema);
        match key.name {
            "sources" => {
                heading(&mut page, "## `sources`: [sources.NAME]", about);
                for (kind, about, variant) in schema.variants(schema.def("SourceSettings")) {
                    heading(&mut page, &format!("### `type` = \"{kind}\""), about);
                    table(schema, &mut page, &schema.keys(variant, order::<KafkaSource>()));
                }
                let decode = schema.def("Decode");
                heading(&mut page, "### `decode`", text(decode, "description"));
                table(schema, &mut page, &schema.keys(decode, order::<Decode>()));
                heading(&mut page, "#### `metrics`.NAME", text(schema.def("Field"), "description"));
                table(schema, &mut page, &schema.keys(schema.def("Field"), order::<Field>()));
                heading(&mut page, "#### `values`.NAME", text(schema.def("Scaling"), "description"));
                table(schema, &mut page, &schema.keys(schema.def("Scaling"), order::<Scaling>()));
            }
            "rules" => {
                heading(&mut page, "## `rules`: [rules.NAME]", about);
                table(schema, &mut page, &schema.keys(schema.def("RuleSettings"), order::<RuleSettings>()));
                heading(&mut page, "### `when`", text(schema.def("When"), "description"));
                choices(schema, &mut page, "When");
                heading(&mut page, "### Levels", text(schema.def("Levels"), "description"));
                table(schema, &mut page, &schema.keys(schema.def("Levels"), order::<Levels>()));
                heading(&mut page, "### `missing`", text(schema.def("Missing"), "description"));
                table(schema, &mut page, &schema.keys(schema.def("Missing"), order::<Missing>()));
                heading(&mut page, "### `of`", text(schema.def("Of"), "description"));
                choices(schema, &mut page, "Of");
            }
            "sinks" => {
                heading(&mut page, "## `sinks`: [sinks.NAME]", about);
                for (kind, about, variant) in schema.variants(schema.def("SinkSettings")) {
                    heading(&mut page, &format!("### `type` = \"{kind}\""), about);
                    table(schema, &mut page, &schema.keys(variant, sink_order(kind)));
                }
            }
            name => {
                let order = sections().into_iter().find(|(section, _)| *section == name).map_or(&[][..], |(_, o)| o);
                heading(&mut page, &format!("## `{name}`"), text(def, "description"));
                table(schema, &mut page, &schema.keys(def, order));
            }
        }
    }
    page
}

fn text<'a>(schema: &'a Value, key: &str) -> &'a str {
    schema[key].as_str().unwrap_or_default()
}

fn heading(page: &mut String, title: &str, about: &str) {
    let gap = if page.ends_with("\n\n") { "" } else { "\n" };
    let _ = write!(page, "{gap}{title}\n\n");
    if !about.is_empty() {
        let _ = write!(page, "{about}\n\n");
    }
}

fn table(schema: &Schema, page: &mut String, keys: &[Key<'_>]) {
    page.push_str("| key | value | default | meaning |\n|---|---|---|---|\n");
    for key in keys {
        let default = match key.schema.get("default") {
            _ if key.required => "required".to_owned(),
            Some(Value::Object(fields)) if fields.is_empty() => "none".to_owned(),
            Some(default) => format!("`{}`", as_toml(default)),
            None => String::new(),
        };
        let mut meaning = text(key.schema, "description").to_owned();
        for (name, about) in schema.choices(key.schema) {
            let _ = write!(meaning, "<br>`\"{name}\"`: {about}");
        }
        row(page, [&format!("`{}`", key.name), &kind(schema, key.schema), &default, &meaning]);
    }
}

/// An enum whose variants are keys.
fn choices(schema: &Schema, page: &mut String, def: &str) {
    page.push_str("| key | value | meaning |\n|---|---|---|\n");
    for (name, about, variant) in schema.variants(schema.def(def)) {
        row(page, [&format!("`{name}`"), &kind(schema, &variant["properties"][name]), about]);
    }
}

fn row<const N: usize>(page: &mut String, cells: [&str; N]) {
    let cells: Vec<_> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
    let _ = writeln!(page, "| {} |", cells.join(" | "));
}

/// What a value is, in a word or two.
fn kind(schema: &Schema, value: &Value) -> String {
    let choices = schema.choices(value);
    if !choices.is_empty() {
        return choices.iter().map(|(name, _)| format!("`\"{name}\"`")).collect::<Vec<_>>().join(", ");
    }
    if let Some(title) = value["title"].as_str() {
        return title.to_owned();
    }
    let def = schema.resolve(value);
    if !std::ptr::eq(def, value) {
        return if def.get("oneOf").is_some() { "one key of a table".to_owned() } else { kind(schema, def) };
    }
    let range = match (value["minimum"].as_u64(), value["maximum"].as_u64()) {
        (Some(low), Some(high)) if high < u64::from(u32::MAX) => format!(", {low} to {high}"),
        _ => String::new(),
    };
    match value["type"].as_str() {
        Some("integer") => format!("whole number{range}"),
        Some("number") => "number".to_owned(),
        Some("boolean") => "true or false".to_owned(),
        Some("array") => match value["maxItems"].as_u64() {
            Some(2) => "[low, high]".to_owned(),
            _ => format!("list: {}", kind(schema, &value["items"])),
        },
        Some("object") => match value.get("additionalProperties") {
            Some(Value::Object(_)) => format!("table by name: {}", kind(schema, &value["additionalProperties"])),
            _ => "table".to_owned(),
        },
        _ => "text".to_owned(),
    }
}
