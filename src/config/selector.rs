//! Which series a rule looks at: globs on labels, as Alertmanager's `match` but without regular expressions.

use super::types::Match;
use std::collections::BTreeMap;

/// A glob: `*` is any text, `?` any one character, `\` takes the next character as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Glob {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Any,
    One,
    Char(char),
}

impl Glob {
    fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut letters = text.chars();
        while let Some(letter) = letters.next() {
            parts.push(match letter {
                '*' if parts.last() == Some(&Part::Any) => continue,
                '*' => Part::Any,
                '?' => Part::One,
                '\\' => match letters.next() {
                    Some(next) => Part::Char(next),
                    None => {
                        return Err(format!(
                            "the glob {text:?} ends in a lone \\; write \\\\ for the character itself"
                        ));
                    }
                },
                '[' | '{' => {
                    return Err(format!(
                        "the glob {text:?} holds `{letter}`: there are only * and ? here; write a list such as \
                         [\"a*\", \"b*\"], or \\{letter} for the character itself"
                    ));
                }
                letter => Part::Char(letter),
            });
        }
        Ok(Self { parts })
    }

    /// Linear but for the last `*`, to which it returns: no pattern makes it slow beyond length times length.
    fn matches(&self, text: &str) -> bool {
        let text: Vec<char> = text.chars().collect();
        let (mut part, mut at) = (0, 0);
        let mut back: Option<(usize, usize)> = None;
        while at < text.len() {
            match self.parts.get(part) {
                Some(Part::Any) => {
                    back = Some((part, at));
                    part += 1;
                }
                Some(Part::One) => (part, at) = (part + 1, at + 1),
                Some(Part::Char(letter)) if *letter == text[at] => (part, at) = (part + 1, at + 1),
                _ => match back {
                    Some((star, from)) => {
                        back = Some((star, from + 1));
                        (part, at) = (star + 1, from + 1);
                    }
                    None => return false,
                },
            }
        }
        self.parts[part..].iter().all(|part| *part == Part::Any)
    }
}

/// The labels that a series' sensor must have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    labels: Vec<Wanted>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    label: String,
    any_of: Vec<Glob>,
    none_of: Vec<Glob>,
}

impl Selector {
    /// Reads the globs; the first that is none is named with its label.
    pub fn new(matches: &Match) -> Result<Self, (String, String)> {
        let mut labels = Vec::new();
        for (label, globs) in matches {
            let mut wanted = Wanted { label: label.clone(), any_of: Vec::new(), none_of: Vec::new() };
            for glob in &globs.0 {
                let (list, text) = match glob.strip_prefix('!') {
                    Some(rest) => (&mut wanted.none_of, rest),
                    None => (&mut wanted.any_of, &**glob),
                };
                list.push(Glob::parse(text).map_err(|why| (label.clone(), why))?);
            }
            labels.push(wanted);
        }
        Ok(Self { labels })
    }

    /// Whether a sensor with these labels is meant. `sensor` is a label of its own. For each label: one of the globs
    /// fits, and none of those with `!`; a label that the sensor lacks fits only where nothing but `!` is said.
    pub fn matches(&self, sensor: &str, labels: &BTreeMap<String, String>) -> bool {
        self.labels.iter().all(|wanted| {
            let value = match &*wanted.label {
                "sensor" => Some(sensor),
                label => labels.get(label).map(String::as_str),
            };
            match value {
                Some(value) => {
                    (wanted.any_of.is_empty() || wanted.any_of.iter().any(|glob| glob.matches(value)))
                        && !wanted.none_of.iter().any(|glob| glob.matches(value))
                }
                None => wanted.any_of.is_empty(),
            }
        })
    }

    /// The labels that it asks for.
    pub fn labels(&self) -> impl Iterator<Item = &str> {
        self.labels.iter().map(|wanted| &*wanted.label)
    }

    /// Whether every sensor is meant.
    pub fn is_all(&self) -> bool {
        self.labels.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::OneOrMany;

    fn selector(labels: &[(&str, &[&str])]) -> Selector {
        let globs = |globs: &[&str]| OneOrMany(globs.iter().map(|g| g.to_string()).collect());
        Selector::new(&labels.iter().map(|(label, g)| (label.to_string(), globs(g))).collect()).unwrap()
    }

    #[test]
    fn globs_fit_as_a_shell_would_have_them() {
        for (glob, text, fits) in [
            ("kiln", "kiln", true),
            ("kiln", "kilns", false),
            ("k*", "kiln", true),
            ("*n", "kiln", true),
            ("k?ln", "kiln", true),
            ("k?ln", "kln", false),
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("*a*b", "xaxxbab", true),
            ("*a*b", "xaxxba", false),
            ("a**b", "ab", true),
            ("ö?", "öä", true),
            ("a\\*", "a*", true),
            ("a\\*", "ab", false),
            ("plant.*", "plant.7", true),
        ] {
            assert_eq!(Glob::parse(glob).unwrap().matches(text), fits, "{glob} on {text}");
        }
        let stars = "*a".repeat(200);
        assert!(!Glob::parse(&stars).unwrap().matches(&"a".repeat(199)));
    }

    #[test]
    fn regular_expressions_are_refused_with_the_reason() {
        assert!(Glob::parse("[a-z]").unwrap_err().contains("only * and ?"));
        assert!(Glob::parse("a\\").is_err());
    }

    #[test]
    fn labels_choose_sensors() {
        let kiln: BTreeMap<String, String> = [("type".to_string(), "kiln".to_string())].into();
        let none = BTreeMap::new();
        for (labels, of_kiln, of_none) in [
            (vec![], true, true),
            (vec![("type", &["kiln", "boiler"][..])], true, false),
            (vec![("type", &["!kiln"][..])], false, true),
            (vec![("type", &["*", "!kiln"][..])], false, false),
            (vec![("type", &["*"][..])], true, false),
            (vec![("sensor", &["s-*"][..])], true, true),
            (vec![("sensor", &["!s-1"][..])], false, false),
            (vec![("type", &["kiln"][..]), ("sensor", &["t-*"][..])], false, false),
        ] {
            let selector = selector(&labels);
            assert_eq!(selector.matches("s-1", &kiln), of_kiln, "{labels:?}");
            assert_eq!(selector.matches("s-1", &none), of_none, "{labels:?}");
        }
    }
}
