//! The sensors that are known, and their labels: a CSV file with the header `sensor,label,label...`.

use super::report::{Level, Place, Report};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// For each sensor its labels. An empty cell is no label.
pub type Inventory = BTreeMap<String, BTreeMap<String, String>>;

/// Reads an inventory; what is wrong goes to the report with its line.
pub fn read(path: &Path, text: &str, report: &mut Report) -> Inventory {
    let mut inventory = Inventory::new();
    let origin = report.add_file(path, text);
    let mut wrong = |start: usize, message: String, help: Option<String>| {
        let end = text[start.min(text.len())..].find(['\n', '\r']).map_or(text.len(), |length| start + length);
        report.add(Level::Error, Place::new(origin, start..end), message, help);
    };
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .trim(csv::Trim::All)
        .comment(Some(b'#'))
        .from_reader(text.strip_prefix('\u{feff}').unwrap_or(text).as_bytes());
    let skipped = text.len() - text.strip_prefix('\u{feff}').unwrap_or(text).len();
    let mut header: Option<Vec<String>> = None;
    for row in reader.records() {
        let row = match row {
            Ok(row) => row,
            Err(error) => {
                let start = error.position().map_or(0, |position| position.byte() as usize) + skipped;
                wrong(start, format!("this line cannot be read as CSV: {error}"), None);
                break;
            }
        };
        let start = row.position().map_or(0, |position| position.byte() as usize) + skipped;
        let Some(labels) = &header else {
            let labels: Vec<String> = row.iter().map(str::to_owned).collect();
            if labels.first().map(String::as_str) != Some("sensor") {
                let found = labels.first().cloned().unwrap_or_default();
                let message = format!("the first column of an inventory is `sensor`, found `{found}`");
                wrong(start, message, Some("begin the file with a line such as: sensor,site,type".into()));
                return inventory;
            }
            let mut seen = BTreeSet::new();
            for label in &labels {
                if !is_label(label) {
                    let message = format!("{label:?} is no name for a label");
                    wrong(start, message, Some("letters, digits, `_`, `-` and `.`, beginning with a letter".into()));
                } else if !seen.insert(label.clone()) {
                    wrong(start, format!("the column `{label}` is there twice"), None);
                }
            }
            header = Some(labels);
            continue;
        };
        if row.len() != labels.len() {
            wrong(start, format!("this line has {} cells, the header has {}", row.len(), labels.len()), None);
            continue;
        }
        let sensor = row.get(0).unwrap_or_default();
        if let Err(why) = sensor_name(sensor) {
            wrong(start, why, None);
            continue;
        }
        let cells = labels.iter().zip(row.iter()).skip(1);
        let cells = cells.filter(|(_, cell)| !cell.is_empty()).map(|(label, cell)| (label.clone(), cell.to_owned()));
        if inventory.insert(sensor.to_owned(), cells.collect()).is_some() {
            wrong(start, format!("the sensor `{sensor}` is there twice"), None);
        }
    }
    if header.is_none() && !report.has_errors() {
        let help = "begin the file with a line such as: sensor,site,type";
        report.add(Level::Error, Place::new(origin, 0..0), "this inventory is empty", Some(help.into()));
    }
    inventory
}

/// Whether a label may be called this.
pub fn is_label(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
}

/// The rules for a sensor's name, as decoding has them.
fn sensor_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("this line names no sensor".into());
    }
    if name.len() > 256 {
        return Err(format!("this sensor's name has {} bytes, more than 256", name.len()));
    }
    if name.chars().any(|c| c.is_ascii_control()) {
        return Err("this sensor's name holds a control character".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{MessageFormat, Origins};

    fn read_text(text: &str) -> (Inventory, String) {
        let mut report = Report::new(Origins::default());
        let inventory = read(Path::new("sensors.csv"), text, &mut report);
        (inventory, report.render(MessageFormat::Short, false))
    }

    #[test]
    fn cells_become_labels_and_empty_ones_do_not() {
        let (inventory, wrong) =
            read_text("\u{feff}sensor,site,type\nb-17, north ,boiler\r\n\"k,1\",,kiln\n# a note\n");
        assert_eq!(wrong, "");
        assert_eq!(inventory["b-17"], [("site".into(), "north".into()), ("type".into(), "boiler".into())].into());
        assert_eq!(inventory["k,1"], [("type".into(), "kiln".into())].into());
        assert_eq!(inventory.len(), 2);
    }

    #[test]
    fn every_wrong_line_is_named() {
        let (inventory, wrong) = read_text("sensor,site\na,1\na,2\nb\n,3\nc,4\n");
        assert_eq!(
            wrong,
            "sensors.csv:3:1: error: the sensor `a` is there twice\n\
             sensors.csv:4:1: error: this line has 1 cells, the header has 2\n\
             sensors.csv:5:1: error: this line names no sensor\n"
        );
        assert_eq!(inventory.len(), 2);
        assert!(read_text("").1.contains("this inventory is empty"));
        assert!(read_text("id,site\n").1.contains("the first column of an inventory is `sensor`, found `id`"));
        assert!(read_text("sensor,site,site,a b\n").1.contains("the column `site` is there twice"));
    }
}
