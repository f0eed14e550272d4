//! What is wrong with a configuration: all of it in one run, each with its place, and what would be right.

use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{AnnotationKind, Level as Mark, Renderer, Snippet};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A stretch of the text of one origin.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    origin: usize,
    start: usize,
    end: usize,
}

impl Place {
    /// No place: the program's own defaults.
    pub const NOWHERE: Self = Self { origin: usize::MAX, start: 0, end: 0 };

    /// The stretch `span` of the origin with this number.
    pub fn new(origin: usize, span: Range<usize>) -> Self {
        Self { origin, start: span.start, end: span.end }
    }
}

/// Where settings come from: files, and environment variables.
#[derive(Clone, Debug, Default)]
pub struct Origins {
    all: Vec<Origin>,
}

#[derive(Clone, Debug)]
struct Origin {
    name: String,
    directory: PathBuf,
    /// The text with its secrets blotted out, byte for byte as long as the original.
    shown: String,
}

impl Origins {
    /// Adds a file.
    pub fn file(&mut self, path: &Path, text: &str) -> usize {
        let directory = path.parent().map(Path::to_owned).unwrap_or_default();
        self.all.push(Origin { name: path.display().to_string(), directory, shown: blot_out(text) });
        self.all.len() - 1
    }
    /// Adds an environment variable.
    pub fn variable(&mut self, name: &str, text: &str) -> usize {
        self.all.push(Origin {
            name: format!("environment variable {name}"),
            directory: PathBuf::new(),
            shown: text.to_owned(),
        });
        self.all.len() - 1
    }
    /// The directory that a relative path written at this place starts from.
    pub fn directory(&self, place: &Place) -> &Path {
        self.all.get(place.origin).map_or(Path::new(""), |origin| &origin.directory)
    }
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Nothing is started.
    Error,
    /// Worth a look; an error under `--deny-warnings`.
    Warning,
}

/// One thing that is wrong, or looks wrong.
#[derive(Clone, Debug)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// Where; nowhere for what the file does not hold at all.
    pub place: Place,
    /// What is wrong.
    pub message: String,
    /// What would be right.
    pub help: Option<String>,
}

/// How findings are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum MessageFormat {
    /// With the line drawn.
    #[default]
    Human,
    /// One line each.
    Short,
}

/// Everything that was found, and the texts it was found in.
#[derive(Clone, Debug, Default)]
pub struct Report {
    origins: Origins,
    /// For each path that a file states: where its key stands, and where its value.
    places: BTreeMap<String, (Place, Place)>,
    findings: Vec<Finding>,
}

impl Report {
    /// A report on these texts.
    pub fn new(origins: Origins) -> Self {
        Self { origins, ..Self::default() }
    }
    /// Adds the text of a file that the configuration names.
    pub fn add_file(&mut self, path: &Path, text: &str) -> usize {
        self.origins.file(path, text)
    }
    /// Where the texts come from.
    pub fn origins(&self) -> &Origins {
        &self.origins
    }
    /// Remembers where a path stands.
    pub fn remember(&mut self, path: &str, key: &Place, value: &Place) {
        self.places.insert(path.to_owned(), (key.clone(), value.clone()));
    }
    /// Where a path's value stands; if it is not stated, that of the nearest table around it.
    pub fn place(&self, path: &str) -> Place {
        let mut path = path;
        loop {
            if let Some((_, value)) = self.places.get(path) {
                return value.clone();
            }
            match path.rfind(['.', '[']) {
                Some(cut) => path = &path[..cut],
                None => return Place::NOWHERE,
            }
        }
    }
    /// Whether a path is stated at all.
    pub fn states(&self, path: &str) -> bool {
        self.places.contains_key(path)
    }
    /// Where a path's key stands; if it is not stated, the nearest table around it.
    pub fn key(&self, path: &str) -> Place {
        self.places.get(path).map_or_else(|| self.place(path), |(key, _)| key.clone())
    }
    /// Adds a finding at a place.
    pub fn add(&mut self, level: Level, place: Place, message: impl Into<String>, help: Option<String>) {
        self.findings.push(Finding { level, place, message: message.into(), help });
    }
    /// Something is wrong with the value of this path.
    pub fn error(&mut self, path: &str, message: impl Into<String>, help: impl Into<String>) {
        let help = Some(help.into()).filter(|help: &String| !help.is_empty());
        self.add(Level::Error, self.place(path), message, help);
    }
    /// Something looks wrong with the value of this path.
    pub fn warning(&mut self, path: &str, message: impl Into<String>, help: impl Into<String>) {
        let help = Some(help.into()).filter(|help: &String| !help.is_empty());
        self.add(Level::Warning, self.place(path), message, help);
    }
    /// What was found, in the order of the files.
    pub fn findings(&self) -> Vec<&Finding> {
        let mut findings: Vec<_> = self.findings.iter().collect();
        findings.sort_by(|a, b| (&a.place, a.level, &a.message).cmp(&(&b.place, b.level, &b.message)));
        findings
    }
    /// How many findings have this level.
    pub fn count(&self, level: Level) -> usize {
        self.findings.iter().filter(|finding| finding.level == level).count()
    }
    /// Whether nothing may be started.
    pub fn has_errors(&self) -> bool {
        self.count(Level::Error) > 0
    }
    /// Warnings count as errors from here on.
    pub fn deny_warnings(&mut self) {
        self.findings.iter_mut().for_each(|finding| finding.level = Level::Error);
    }
    /// Forgets what was found, after it has been printed.
    pub fn clear(&mut self) {
        self.findings.clear();
    }

    /// The findings as text, one after the other.
    pub fn render(&self, format: MessageFormat, colour: bool) -> String {
        let mut out = String::new();
        for finding in self.findings() {
            match format {
                MessageFormat::Human => self.draw(finding, colour, &mut out),
                MessageFormat::Short => self.line(finding, &mut out),
            }
            out.push('\n');
        }
        out
    }

    /// One sentence on all of it.
    pub fn summary(&self) -> String {
        let count = self.count(Level::Error);
        let mistakes = if count == 1 { "1 mistake".to_owned() } else { format!("{count} mistakes") };
        let wrong = |number: usize| {
            self.findings.iter().any(|finding| finding.level == Level::Error && finding.place.origin == number)
        };
        let names: Vec<_> = (0..)
            .zip(&self.origins.all)
            .filter(|(number, _)| wrong(*number))
            .map(|(_, origin)| &*origin.name)
            .collect();
        let place = if names.is_empty() { String::new() } else { format!(" in {}", names.join(", ")) };
        format!("{mistakes}{place}; nothing was started")
    }

    fn line(&self, finding: &Finding, out: &mut String) {
        let level = match finding.level {
            Level::Error => "error",
            Level::Warning => "warning",
        };
        if let Some(origin) = self.origins.all.get(finding.place.origin) {
            let before = &origin.shown[..floor(&origin.shown, finding.place.start)];
            let line = before.matches('\n').count() + 1;
            let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
            let _ = write!(out, "{}:{line}:{column}: ", origin.name);
        }
        let _ = write!(out, "{level}: {}", finding.message);
        if let Some(help) = &finding.help {
            let _ = write!(out, "   help: {help}");
        }
    }

    fn draw(&self, finding: &Finding, colour: bool, out: &mut String) {
        let mark = match finding.level {
            Level::Error => Mark::ERROR,
            Level::Warning => Mark::WARNING,
        };
        let help = finding.help.as_ref().map(|help| format!("help: {help}"));
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() }.decor_style(DecorStyle::Ascii);
        let title = mark.primary_title(&*finding.message);
        let text = match self.origins.all.get(finding.place.origin) {
            Some(origin) => {
                let start = floor(&origin.shown, finding.place.start);
                let end = floor(&origin.shown, finding.place.end).max(start);
                // A table's span may run over many lines; its first line is enough to find it.
                let end = origin.shown[start..end].find('\n').map_or(end, |length| start + length);
                let annotation = AnnotationKind::Primary.span(start..end).label(help.as_deref());
                let snippet = Snippet::source(&*origin.shown).path(&*origin.name).annotation(annotation);
                renderer.render(&[title.element(snippet)])
            }
            None => {
                let group = annotate_snippets::Group::with_title(title);
                let group = match &finding.help {
                    Some(help) => group.element(Mark::HELP.message(&**help)),
                    None => group,
                };
                renderer.render(&[group])
            }
        };
        out.push_str(&text);
    }
}

/// The nearest boundary of a character at or before `at`.
fn floor(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0)
}

/// Parts of keys whose values are not for other eyes.
const SECRET_KEYS: [&str; 8] =
    ["password", "passwd", "secret", "token", "key.pem", "credential", "jaas", "basic.auth.user.info"];

/// Whether a key's value is not for other eyes.
pub fn is_secret_key(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    SECRET_KEYS.iter().any(|part| key.contains(part))
}

/// The text with stars over what looks like a secret, byte for byte as long. It works on text and not on the parsed file,
/// because a file that cannot be parsed is shown as well.
fn blot_out(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    let mut line_start = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'\n' => {
                line_start = at + 1;
                at += 1;
            }
            b'=' => {
                // The key is what stands between the last separator and the equals sign.
                let before = &text[floor(text, line_start)..at];
                let key = before.rsplit(['{', ',', '[']).next().unwrap_or_default();
                let secret = is_secret_key(key);
                at += 1;
                while bytes.get(at).is_some_and(|b| matches!(b, b' ' | b'\t')) {
                    at += 1;
                }
                let Some(&quote) = bytes.get(at).filter(|b| matches!(b, b'"' | b'\'')) else { continue };
                let (start, end) = string(bytes, at, quote);
                if secret && !bytes[start..end].starts_with(b"${") {
                    star(&mut out, start, end);
                } else {
                    blot_out_url(&text[start..end], start, &mut out);
                }
                at = end.max(at + 1);
                if bytes[start..end].contains(&b'\n') {
                    line_start = end;
                }
                if bytes.get(at) == Some(&quote) {
                    at += 1;
                }
            }
            _ => at += 1,
        }
    }
    String::from_utf8(out).unwrap_or_default()
}

/// The inside of the string that begins at `at`, up to its end or that of the text.
fn string(bytes: &[u8], at: usize, quote: u8) -> (usize, usize) {
    let triple = bytes.get(at + 1) == Some(&quote) && bytes.get(at + 2) == Some(&quote);
    let start = if triple { at + 3 } else { at + 1 };
    let mut end = start;
    while end < bytes.len() {
        let here = &bytes[end..];
        let closed = if triple { here.starts_with(&[quote; 3]) } else { here[0] == quote || here[0] == b'\n' };
        if closed {
            break;
        }
        end += if here[0] == b'\\' && quote == b'"' { 2 } else { 1 };
    }
    (start.min(bytes.len()), end.min(bytes.len()))
}

/// Stars over user and password of an address.
fn blot_out_url(text: &str, start: usize, out: &mut [u8]) {
    if let (Some(scheme), Some(at)) = (text.find("://"), text.rfind('@'))
        && scheme + 3 < at
        && !text[scheme + 3..].starts_with("${")
    {
        star(out, start + scheme + 3, start + at);
    }
}

fn star(out: &mut [u8], start: usize, end: usize) {
    for byte in &mut out[start..end] {
        if *byte != b'\n' {
            *byte = b'*';
        }
    }
}
