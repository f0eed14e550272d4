//! What is wrong with a rule although its types are right.

use super::inventory::Inventory;
use super::report::Report;
use super::selector::Selector;
use super::types::*;
use super::{hints, validate};
use std::collections::BTreeSet;

/// Checks all rules. `whole` says that all sources could be read: only then is a metric known to be made by none.
pub fn check(config: &Config, inventory: &Inventory, labels: &BTreeSet<&str>, whole: bool, report: &mut Report) {
    let wide = config.sources.values().all(|source| source.decode().is_wide());
    let mapped: BTreeSet<&str> =
        config.sources.values().flat_map(|source| source.decode().metrics.keys().map(String::as_str)).collect();
    for (name, rule) in &config.rules {
        let path = format!("rules.{name}");
        metric(&path, name, rule, (wide && whole && !config.sources.is_empty()).then_some(&mapped), report);
        condition(&path, rule, report);
        selector(&path, rule, config, inventory, labels, report);
        summary(&path, rule, labels, report);
    }
}

fn metric(path: &str, name: &str, rule: &RuleSettings, mapped: Option<&BTreeSet<&str>>, report: &mut Report) {
    let Some(metric) = &rule.metric else {
        if !matches!(rule.when, When::Missing(_)) {
            let help = "write metric = \"temperature\"; only when.missing watches every series";
            report.error(path, format!("{path} lacks `metric`"), help);
        }
        return;
    };
    let path = format!("{path}.metric");
    validate::metric_name(&path, metric, report);
    if let Some(mapped) = mapped
        && !mapped.contains(metric.as_str())
    {
        let all = format!("mapped: {}", hints::list(mapped.iter().copied()));
        let help = match hints::nearest(metric, mapped.iter().copied()) {
            Some(meant) => format!("did you mean `{meant}`? {all}"),
            None => all,
        };
        report.warning(&path, format!("nothing makes the metric `{metric}`; rule `{name}` would stay silent"), help);
    }
}

fn condition(path: &str, rule: &RuleSettings, report: &mut Report) {
    if let Some(of) = &rule.of {
        let path = format!("{path}.of.{}", of.name());
        match of.window() {
            WindowText::Time(interval) => validate::positive(&path, interval, "60s", report),
            WindowText::Last(readings) => validate::readings_window(&path, readings, report),
        }
    }
    let (key, limits) = match &rule.when {
        When::Above(limits) => ("above", limits),
        When::Below(limits) => ("below", limits),
        When::Missing(missing) => {
            validate::positive(&format!("{path}.when.missing.after"), missing.after, "30s", report);
            if rule.of.is_some() {
                let help = "leave `of` out: silence has no value";
                report.error(&format!("{path}.of"), "`of` goes with above and below, not with missing", help);
            }
            if rule.hold.is_some() {
                let help = "leave `for` out: `after` already says how long";
                report.error(&format!("{path}.for"), "`for` goes with above and below, not with missing", help);
            }
            return;
        }
    };
    let path_of = format!("{path}.when.{key}");
    let levels = match limits {
        Limits::One(limit) => {
            finite(&path_of, key, *limit, report);
            return;
        }
        Limits::Levels(levels) => levels,
    };
    let given: Vec<_> = levels.given().collect();
    if given.is_empty() {
        let help = "write a limit beside it, such as warning = 35.0";
        report.error(&path_of, format!("`{key}` names no limit: there are info, warning and critical"), help);
    }
    for (severity, limit) in &given {
        finite(&format!("{path_of}.{}", severity.as_str()), severity.as_str(), *limit, report);
    }
    if let Some(severity) = rule.severity {
        let help = format!("leave it out, or write when.{key} = a number");
        let message = format!("severity ({}) beside levels: each level is its own severity", severity.as_str());
        report.error(&format!("{path}.severity"), message, help);
    }
    if let Some(hysteresis) = levels.hysteresis {
        let path = format!("{path_of}.hysteresis");
        let sign = if key == "above" { "minus" } else { "plus" };
        if hysteresis < 0.0 {
            let message =
                format!("hysteresis ({hysteresis}) is negative; an alert resolves at limit {sign} hysteresis");
            report.error(&path, message, format!("write {:?}", -hysteresis));
        } else {
            finite(&path, "hysteresis", hysteresis, report);
        }
    }
    for pair in given.windows(2) {
        let [(mild, first), (bad, second)] = pair else { continue };
        let (side, direction) = if key == "above" { ("below", "upwards") } else { ("above", "downwards") };
        let turned = if key == "above" { second < first } else { second > first };
        let (mild, bad) = (mild.as_str(), bad.as_str());
        if turned {
            let message = format!("{bad} ({second}) is {side} {mild} ({first}), but `{key}` grows worse {direction}");
            report.error(&format!("{path_of}.{bad}"), message, format!("swap them, or write `{side}`"));
        } else if first == second {
            let message = format!("{bad} and {mild} are both {first}: they would always fire together");
            report.error(&format!("{path_of}.{bad}"), message, "leave one of them out");
        }
    }
}

fn finite(path: &str, key: &str, number: f64, report: &mut Report) {
    if !number.is_finite() {
        report.error(path, format!("`{key}` must be a finite number, found {number}"), "");
    }
}

fn selector(
    path: &str,
    rule: &RuleSettings,
    config: &Config,
    inventory: &Inventory,
    labels: &BTreeSet<&str>,
    report: &mut Report,
) {
    let path = format!("{path}.match");
    if let Err((label, why)) = Selector::new(&rule.matches) {
        report.error(&format!("{path}.{label}"), why, "");
        return;
    }
    for (label, globs) in &rule.matches {
        let path = format!("{path}.{label}");
        if !validate::label(&path, label, report) {
            continue;
        }
        if globs.0.is_empty() {
            report.error(
                &path,
                format!("`{label}` is an empty list: no sensor would match"),
                "name a glob, or leave it out",
            );
            continue;
        }
        if label == "sensor" {
            continue;
        }
        if label == "metric" {
            report.error(&path, "the metric is no label of a sensor", "write metric = \"...\" in the rule");
            continue;
        }
        if config.inventory.is_none() {
            let help = "name a CSV file of sensors with inventory = \"sensors.csv\"";
            report.warning(&path, format!("there is no inventory, so no sensor has the label `{label}`"), help);
            continue;
        }
        if !labels.contains(label.as_str()) {
            let all = format!("it has {}", hints::list(labels.iter().copied()));
            let help = hints::nearest(label, labels.iter().copied())
                .map_or(all.clone(), |meant| format!("did you mean `{meant}`? {all}"));
            report.warning(&path, format!("the inventory has no label `{label}`"), help);
            continue;
        }
        // One glob at a time, so that the one without effect is named.
        for (index, glob) in globs.0.iter().enumerate().filter(|(_, glob)| !glob.starts_with('!')) {
            let one = [(label.clone(), super::OneOrMany(vec![glob.clone()]))].into();
            let Ok(selector) = Selector::new(&one) else { continue };
            if !inventory.iter().any(|(sensor, labels)| selector.matches(sensor, labels)) {
                let values: BTreeSet<&str> =
                    inventory.values().filter_map(|labels| labels.get(label).map(String::as_str)).collect();
                let help = format!("the inventory has {}", hints::list(values));
                let path = if globs.0.len() == 1 { path.clone() } else { format!("{path}[{index}]") };
                report.warning(&path, format!("no sensor has {label} \"{glob}\""), help);
            }
        }
    }
}

/// What a summary may name beside labels.
const NAMES: [&str; 6] = ["sensor", "metric", "value", "rule", "severity", "time"];

fn summary(path: &str, rule: &RuleSettings, labels: &BTreeSet<&str>, report: &mut Report) {
    let Some(summary) = &rule.summary else { return };
    let path = format!("{path}.summary");
    for name in placeholders(summary) {
        match name {
            Ok(name) if NAMES.contains(&name) || labels.contains(name) => {}
            Ok(name) => {
                let known = NAMES.iter().copied().chain(labels.iter().copied());
                let help = match hints::nearest(name, known.clone()) {
                    Some(meant) => format!("did you mean {{{meant}}}?"),
                    None => format!("there are {}", hints::list(known)),
                };
                report.warning(&path, format!("nothing is called {{{name}}}; it would stay as it is"), help);
            }
            Err(()) => report.warning(&path, "`{` has no closing `}`", ""),
        }
    }
}

/// The names in braces; an error for a brace that is not closed.
pub(super) fn placeholders(text: &str) -> impl Iterator<Item = Result<&str, ()>> {
    text.split('{').skip(1).map(|rest| rest.split_once('}').map(|(name, _)| name).ok_or(()))
}
