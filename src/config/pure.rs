//! The part of a configuration that answers depend on, and its recorded text.
//!
//! It is a function's argument (docs/semantics.md): the epoch log names it by its hash, the text lies in
//! `state/config/HASH.toml`, and a replay uses the text that was in force. So it holds no secret, no address and nothing
//! that only changes the speed.

use super::inventory::Inventory;
use super::types::{Config, Decode, Dedup, EventTime, LimitSettings, RollingSettings, RuleSettings};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Which rules of docs/semantics.md answers follow.
pub const SEMANTICS: u32 = 1;

/// The part of a configuration that answers depend on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pure {
    /// The version of docs/semantics.md.
    pub semantics: u32,
    /// Which readings are too old or too new.
    pub event_time: EventTime,
    /// Which readings are the same.
    pub dedup: Dedup,
    /// The windows that are configured.
    pub rolling: RollingSettings,
    /// Limits that may change answers.
    pub limits: LimitSettings,
    /// What the sources' records mean, by name.
    #[serde(default)]
    pub sources: BTreeMap<String, PureSource>,
    /// What is judged, by name.
    #[serde(default)]
    pub rules: BTreeMap<String, RuleSettings>,
    /// The sensors' labels.
    #[serde(default)]
    pub inventory: Inventory,
}

/// What a source's records mean, wherever they lie.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PureSource {
    /// Its topics, sorted: they number the streams.
    pub topics: Vec<String>,
    /// How a record becomes readings.
    pub decode: Decode,
}

impl Pure {
    /// The pure part of a configuration and its inventory.
    pub fn new(config: &Config, inventory: &Inventory) -> Self {
        let source = |source: &super::types::SourceSettings| {
            let mut topics = source.topics().to_vec();
            topics.sort();
            PureSource { topics, decode: source.decode().clone() }
        };
        Self {
            semantics: SEMANTICS,
            event_time: config.event_time.clone(),
            dedup: config.dedup.clone(),
            rolling: config.rolling.clone(),
            limits: config.limits.clone(),
            sources: config.sources.iter().map(|(name, settings)| (name.clone(), source(settings))).collect(),
            rules: config.rules.clone(),
            inventory: inventory.clone(),
        }
    }

    /// The recorded text: the same settings always have the same bytes.
    pub fn text(&self) -> String {
        // Its types hold only tables, texts and finite numbers, all of which TOML can say.
        toml::to_string(self).unwrap_or_default()
    }

    /// Reads a recorded text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let pure: Self = toml::from_str(text).map_err(|e| format!("recorded configuration: {}", e.message()))?;
        if pure.semantics != SEMANTICS {
            return Err(format!(
                "this configuration was recorded under semantics version {}, this streamgauge follows version {SEMANTICS}",
                pure.semantics
            ));
        }
        Ok(pure)
    }

    /// The recorded text's name: 16 hex digits of its BLAKE3.
    pub fn hash(&self) -> String {
        hash(&self.text())
    }

    /// The streams, (source, topic), in the order that numbers them: by both names as bytes.
    pub fn streams(&self) -> Vec<(String, String)> {
        let topics = |(name, source): (&String, &PureSource)| {
            source.topics.iter().map(|topic| (name.clone(), topic.clone())).collect::<Vec<_>>()
        };
        self.sources.iter().flat_map(topics).collect()
    }
}

/// The recorded text of a configuration's pure part.
pub fn pure_text(config: &Config, inventory: &Inventory) -> String {
    Pure::new(config, inventory).text()
}

/// The name of a recorded text: 16 hex digits of its BLAKE3.
pub fn hash(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex()[..16].to_owned()
}
