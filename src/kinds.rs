//! Kinds of series: those of one kind are watched by the same rules.
//!
//! What a rule asks of a series is its metric and its sensor's labels, and there are few of those however many series
//! there are: so a selector is held against each combination that is met, once. Only selectors that ask for the sensor's own
//! name are held against every series.

use crate::config::{Inventory, Resolved};
use foldhash::fast::RandomState;
use hashbrown::HashMap;
use operators::SeriesName;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The kinds that a worker has met. Their numbers are its own, and never stored.
pub struct Kinds {
    resolved: Arc<Resolved>,
    inventory: Arc<Inventory>,
    metrics: HashMap<Arc<str>, Metric, RandomState>,
    /// Rules, by number, to the kind that they make.
    kinds: HashMap<Vec<u32>, u32, RandomState>,
    /// The labels of the series that is looked at.
    labels: Vec<u8>,
}

/// What the rules of a metric ask for.
#[derive(Default)]
struct Metric {
    /// The labels, but for the sensor's name.
    labels: BTreeSet<String>,
    /// The rules that do not ask for the sensor's name.
    by_labels: Vec<u32>,
    /// Those that do.
    by_name: Vec<u32>,
    /// The labels of a series to those of `by_labels` that apply, and their kind.
    met: HashMap<Box<[u8]>, (Vec<u32>, u32), RandomState>,
}

/// The kind of a series.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    /// Its number.
    pub number: u32,
    /// Its rules, in order; none where the kind has been told before.
    pub rules: Vec<u32>,
}

impl Kinds {
    /// None is met yet.
    pub fn new(resolved: Arc<Resolved>, inventory: Arc<Inventory>) -> Self {
        let (metrics, kinds) = (HashMap::default(), HashMap::default());
        Self { resolved, inventory, metrics, kinds, labels: Vec::new() }
    }

    /// The kind of a series; none where no rule applies to it.
    pub fn of(&mut self, name: &SeriesName) -> Option<Kind> {
        let rules = &self.resolved.rules;
        if !self.metrics.contains_key(&name.metric) {
            self.metrics.insert(name.metric.clone(), Metric::new(&self.resolved, &name.metric));
        }
        let metric = self.metrics.get_mut(&name.metric)?;
        let none = BTreeMap::new();
        let labels = match metric.labels.is_empty() && metric.by_name.is_empty() {
            true => &none,
            false => self.inventory.get(&*name.sensor).unwrap_or(&none),
        };
        let applies = |rule: &&u32| rules[**rule as usize].selector.matches(&name.sensor, labels);
        self.labels.clear();
        for label in &metric.labels {
            let value = labels.get(label);
            self.labels.extend(value.map_or(u32::MAX, |value| value.len() as u32).to_le_bytes());
            self.labels.extend(value.map_or("", |value| value).as_bytes());
        }
        let known = metric.met.get(&*self.labels);
        if let (Some((_, number)), true) = (known, metric.by_name.is_empty()) {
            return (*number != NONE).then_some(Kind { number: *number, rules: Vec::new() });
        }
        let mut all = match known {
            Some((rules, _)) => rules.clone(),
            None => metric.by_labels.iter().filter(applies).copied().collect(),
        };
        let by_labels = known.is_none().then(|| all.clone());
        all.extend(metric.by_name.iter().filter(applies));
        all.sort_unstable();
        let next = self.kinds.len() as u32;
        let number = if all.is_empty() { NONE } else { *self.kinds.entry_ref(&*all).or_insert(next) };
        if let Some(rules) = by_labels {
            metric.met.insert(self.labels.as_slice().into(), (rules, number));
        }
        let rules = if number == next { all } else { Vec::new() };
        (number != NONE).then_some(Kind { number, rules })
    }
}

/// The kind of series that no rule applies to.
const NONE: u32 = u32::MAX;

impl Metric {
    fn new(resolved: &Resolved, metric: &str) -> Self {
        let mut of = Self::default();
        for (rule, number) in resolved.rules.iter().zip(0..) {
            if rule.metric.as_deref().is_none_or(|wanted| wanted == metric) {
                let labels = || rule.selector.labels().filter(|label| *label != "sensor");
                of.labels.extend(labels().map(str::to_owned));
                let by_name = labels().count() < rule.selector.labels().count();
                if by_name { &mut of.by_name } else { &mut of.by_labels }.push(number);
            }
        }
        of
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Overrides, load_texts};

    const RULES: [&str; 8] = [
        "metric = \"t\"",
        "metric = \"h\"",
        "match.type = \"kiln\"",
        "match.type = \"!kiln\"",
        "metric = \"t\"\nmatch.type = [\"k*\", \"boiler\"]\nmatch.site = \"s-?\"",
        "metric = \"t\"\nmatch.sensor = \"a-*\"",
        "match.sensor = \"!a-1\"\nmatch.site = \"s-2\"",
        "metric = \"t\"\nmatch.site = \"nowhere\"",
    ];

    /// Rules of a configuration, and sensors of all combinations of labels.
    fn world(rules: &[&str]) -> (Arc<Resolved>, Arc<Inventory>) {
        let mut text = "[sources.a]\ntype = \"kafka\"\nbootstrap_servers = \"x:1\"\ntopics = [\"t\"]\n\
            decode = { sensor = \"/s\", metric = \"/m\", value = \"/v\", time = \"/t\" }\n"
            .to_owned();
        for (n, rule) in rules.iter().enumerate() {
            // Only silence is watched whatever the metric.
            let when = if rule.contains("metric") { "when.above = 1.0" } else { "when.missing.after = \"9s\"" };
            text += &format!("[rules.r{n}]\n{rule}\n{when}\n");
        }
        let loaded = load_texts(&[("x.toml".into(), text)], &|_| None, &Overrides::default()).expect("it is sound");
        let mut inventory = Inventory::new();
        for (n, (kind, site)) in (0..).zip([("kiln", "s-1"), ("boiler", "s-2"), ("pump", ""), ("", "s-2"), ("", "")]) {
            for sensor in [format!("a-{n}"), format!("b-{n}"), format!("c-{n}")] {
                let labels = [("type", kind), ("site", site)].into_iter().filter(|(_, value)| !value.is_empty());
                inventory.insert(sensor, labels.map(|(label, value)| (label.into(), value.into())).collect());
            }
        }
        (Arc::new(Resolved::new(&loaded.pure())), Arc::new(inventory))
    }

    #[test]
    fn a_kinds_rules_are_those_that_apply_to_each_series_of_it_and_each_kind_is_told_once() {
        let (resolved, inventory) = world(&RULES);
        let mut kinds = Kinds::new(resolved.clone(), inventory.clone());
        let mut told: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        let none = BTreeMap::new();
        let mut matched = BTreeSet::new();
        for round in 0..2 {
            for sensor in inventory.keys().map(String::as_str).chain(["a-unknown", "unknown"]) {
                for metric in ["t", "h", "p"] {
                    let labels = inventory.get(sensor).unwrap_or(&none);
                    let wanted: Vec<u32> = (0..)
                        .zip(&resolved.rules)
                        .filter(|(_, rule)| rule.applies(sensor, metric, labels))
                        .map(|(number, _)| number)
                        .collect();
                    let rules = match kinds.of(&SeriesName { sensor: sensor.into(), metric: metric.into() }) {
                        None => Vec::new(),
                        Some(Kind { number, rules }) if rules.is_empty() => told[&number].clone(),
                        Some(Kind { number, rules }) => {
                            assert_eq!(round, 0, "{sensor} {metric} is no new kind");
                            assert!(told.insert(number, rules.clone()).is_none(), "kind {number} is told once");
                            rules
                        }
                    };
                    assert_eq!(rules, wanted, "{sensor} {metric}");
                    matched.extend(rules);
                }
            }
        }
        assert_eq!(matched.len(), RULES.len() - 1, "all rules but one apply to something");
        let distinct: BTreeSet<_> = told.values().collect();
        assert_eq!(distinct.len(), told.len(), "two kinds have other rules");
    }

    #[test]
    fn where_no_rule_asks_for_labels_a_metric_is_one_kind() {
        let (resolved, inventory) = world(&RULES[..2]);
        let mut kinds = Kinds::new(resolved, inventory);
        let mut of =
            |sensor: &str, metric: &str| kinds.of(&SeriesName { sensor: sensor.into(), metric: metric.into() });
        assert_eq!(of("a-1", "t"), Some(Kind { number: 0, rules: vec![0] }));
        assert_eq!(of("a-2", "t"), Some(Kind { number: 0, rules: vec![] }));
        assert_eq!(of("a-2", "h"), Some(Kind { number: 1, rules: vec![1] }));
        assert_eq!(of("a-2", "p"), None);
        assert_eq!(kinds.metrics.values().map(|metric| metric.met.len()).sum::<usize>(), 3);
    }
}
