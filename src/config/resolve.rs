//! From the settings of rules to what `operators` runs: one rule per level, windows by number, a version by content.

use super::pure::Pure;
use super::rule_types::{Limits, Of, RuleSettings, Severity, When, WindowText};
use super::selector::Selector;
use operators::{Condition, Missing, Plan, RuleSpec, Stat, Threshold, Window};
use std::collections::BTreeMap;

/// What the graph is built from.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The windows of every series: those configured in their order, then those that only rules name.
    pub windows: Vec<Window>,
    /// The statistics that rules ask for.
    pub plan: Plan,
    /// The rules, sorted by key.
    pub rules: Vec<ResolvedRule>,
}

/// A rule with one limit, and the series it looks at.
#[derive(Clone, Debug)]
pub struct ResolvedRule {
    /// What `operators` runs.
    pub spec: RuleSpec,
    /// The metric; none for any.
    pub metric: Option<String>,
    /// The sensors.
    pub selector: Selector,
    /// The sentence for people.
    pub summary: Option<String>,
}

impl ResolvedRule {
    /// Whether the rule looks at this series.
    pub fn applies(&self, sensor: &str, metric: &str, labels: &BTreeMap<String, String>) -> bool {
        self.metric.as_deref().is_none_or(|wanted| wanted == metric) && self.selector.matches(sensor, labels)
    }
}

impl Resolved {
    /// Resolves the rules of a configuration that has passed `validate`.
    pub fn new(pure: &Pure) -> Self {
        let windows = windows(pure);
        let mut plan = Plan::default();
        let mut rules = Vec::new();
        for (name, settings) in &pure.rules {
            let feature = settings.of.as_ref().zip(settings.metric.as_ref()).map(|(of, metric)| {
                let wanted = window(of.window());
                let number = windows.iter().position(|window| *window == wanted).unwrap_or_default();
                plan.ask(metric, number, stat(of))
            });
            // Globs were checked when the file was loaded; one that cannot be read selects nothing by its own name.
            let selector = Selector::new(&settings.matches).unwrap_or_default();
            rules.extend(specs(name, settings, feature).into_iter().map(|spec| ResolvedRule {
                spec,
                metric: settings.metric.clone(),
                selector: selector.clone(),
                summary: settings.summary.clone(),
            }));
        }
        rules.sort_by(|a, b| a.spec.key.cmp(&b.spec.key));
        Self { windows, plan, rules }
    }
}

/// The windows of every series, each once: configured ones in their order, then those of rules, sorted.
fn windows(pure: &Pure) -> Vec<Window> {
    let mut windows: Vec<Window> = Vec::new();
    let configured = pure.rolling.windows.iter().map(|interval| WindowText::Time(*interval));
    let mut wanted: Vec<WindowText> =
        configured.chain(pure.rolling.last.iter().copied().map(WindowText::Last)).collect();
    let mut named: Vec<_> = pure.rules.values().filter_map(|rule| rule.of.as_ref()).map(Of::window).collect();
    named.sort_by_key(|window| match window {
        WindowText::Time(interval) => (0, interval.us()),
        WindowText::Last(readings) => (1, i64::from(*readings)),
    });
    wanted.extend(named);
    for window_text in wanted {
        let window = window(window_text);
        if !windows.contains(&window) {
            windows.push(window);
        }
    }
    windows
}

fn window(text: WindowText) -> Window {
    match text {
        WindowText::Time(interval) => Window::Time { us: interval.us() },
        WindowText::Last(n) => Window::Count { n },
    }
}

fn stat(of: &Of) -> Stat {
    match of {
        Of::Count(_) => Stat::Count,
        Of::Mean(_) => Stat::Mean,
        Of::Stddev(_) => Stat::Stddev,
        Of::Min(_) => Stat::Min,
        Of::Max(_) => Stat::Max,
        Of::Rate(_) => Stat::Rate,
        Of::Ewma(_) => Stat::Ewma,
    }
}

/// One rule per level.
fn specs(name: &str, settings: &RuleSettings, feature: Option<usize>) -> Vec<RuleSpec> {
    let (above, limits) = match &settings.when {
        When::Above(limits) => (true, limits),
        When::Below(limits) => (false, limits),
        When::Missing(missing) => {
            let condition = Condition::Missing(Missing { after_us: missing.after.us() });
            return vec![spec(name, None, settings, settings.severity.unwrap_or_default(), condition, 0.0)];
        }
    };
    let threshold = |limit: f64, hysteresis: f64| {
        Condition::Threshold(Threshold {
            above,
            limit,
            hysteresis,
            for_us: settings.hold.map_or(0, super::Interval::us),
            feature,
            window: settings.of.as_ref().map(|of| window(of.window())),
        })
    };
    match limits {
        Limits::One(limit) => {
            vec![spec(name, None, settings, settings.severity.unwrap_or_default(), threshold(*limit, 0.0), *limit)]
        }
        Limits::Levels(levels) => {
            let hysteresis = levels.hysteresis.unwrap_or(0.0);
            let level = |(severity, limit): (Severity, f64)| {
                spec(name, Some(severity), settings, severity, threshold(limit, hysteresis), limit)
            };
            levels.given().map(level).collect()
        }
    }
}

fn spec(
    name: &str,
    level: Option<Severity>,
    settings: &RuleSettings,
    severity: Severity,
    condition: Condition,
    limit: f64,
) -> RuleSpec {
    let key = level.map_or_else(|| name.to_owned(), |level| format!("{name}:{}", level.as_str()));
    let version = blake3::hash(parameters(settings, severity, limit).as_bytes()).to_hex()[..8].to_owned();
    RuleSpec { key, name: name.to_owned(), version, severity: severity.as_str().to_owned(), condition }
}

/// The canonical text of what a rule judges by, which its version is the hash of. Not in it: which sensors it looks at
/// (a sensor more or less does not end the alerts of the others), and its summary.
fn parameters(settings: &RuleSettings, severity: Severity, limit: f64) -> String {
    let metric = settings.metric.as_deref().unwrap_or("*");
    let severity = severity.as_str();
    let of = settings.of.as_ref().map_or_else(
        || "value".to_owned(),
        |of| match of.window() {
            WindowText::Time(interval) => format!("{} {}us", of.name(), interval.us()),
            WindowText::Last(readings) => format!("{} {readings}", of.name()),
        },
    );
    let hold = settings.hold.map_or(0, super::Interval::us);
    let (side, limits) = match &settings.when {
        When::Above(limits) => ("above", limits),
        When::Below(limits) => ("below", limits),
        When::Missing(missing) => {
            return format!("metric={metric}\nseverity={severity}\nmissing={}us\n", missing.after.us());
        }
    };
    let hysteresis = match limits {
        Limits::One(_) => 0.0,
        Limits::Levels(levels) => levels.hysteresis.unwrap_or(0.0),
    };
    format!(
        "metric={metric}\nseverity={severity}\nof={of}\n{side}={limit:?}\nhysteresis={hysteresis:?}\nfor={hold}us\n"
    )
}
