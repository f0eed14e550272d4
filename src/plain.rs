//! What comes from devices, made fit for a terminal and a table.

use std::fmt::Write;

/// The text with everything escaped that could steer a terminal or turn the reading order around.
pub fn plain(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if steers(c) {
            let _ = write!(safe, "{}", c.escape_default());
        } else {
            safe.push(c);
        }
    }
    safe
}

/// Controls (C0, C1), separators of lines, directions and zero widths.
pub fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// At most `width` characters, the last of them an ellipsis where something is left out.
pub fn short(text: &str, width: usize) -> String {
    let mut safe = plain(text);
    if safe.chars().count() > width {
        safe = safe.chars().take(width.saturating_sub(1)).collect();
        safe.push('…');
    }
    safe
}

/// 1234567 as 1,234,567.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A value with six significant digits: what a person reads, not what a program compares.
pub fn number(value: f64) -> String {
    match format!("{value:.5e}").parse::<f64>() {
        Ok(rounded) if rounded == 0.0 || (1e-4..1e12).contains(&rounded.abs()) => rounded.to_string(),
        Ok(rounded) => format!("{rounded:e}"),
        Err(_) => value.to_string(),
    }
}

/// A time span in its largest sensible unit.
pub fn span(micros: i64) -> String {
    match micros / 1_000_000 {
        ..1 => format!("{} ms", micros / 1000),
        seconds @ 1..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} d", seconds / 86_400),
    }
}

/// Microseconds since 1970 as `2025-11-05 14:41:38`, UTC; the number where it is no such time.
pub fn time(micros: i64) -> String {
    match jiff::Timestamp::from_microsecond(micros) {
        Ok(time) => time.strftime("%Y-%m-%d %H:%M:%S").to_string(),
        Err(_) => micros.to_string(),
    }
}

/// Rows below a head, columns as wide as their widest cell; those at `right` end at the right.
pub fn table(head: &[&str], rows: &[Vec<String>], right: &[usize]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let start = text.len();
        for (i, (cell, width)) in cells.zip(&widths).enumerate() {
            let gap = if i > 0 { "  " } else { "" };
            let _ = if right.contains(&i) {
                write!(text, "{gap}{cell:>width$}")
            } else {
                write!(text, "{gap}{cell:<width$}")
            };
        }
        text.truncate(start + text[start..].trim_end().len());
        text.push('\n');
    };
    line(&mut head.iter().copied());
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_steers_the_terminal() {
        assert_eq!(plain("b-17 °C"), "b-17 °C");
        assert_eq!(plain("a\u{1b}[2Jb\u{9b}c\u{202e}d\n"), "a\\u{1b}[2Jb\\u{9b}c\\u{202e}d\\n");
        assert_eq!(short("sensor", 6), "sensor");
        assert_eq!(short("sensors", 6), "senso…");
    }

    #[test]
    fn numbers_and_times_are_readable() {
        assert_eq!(
            ["0", "999", "1,000", "1,234,567"],
            [0, 999, 1000, 1_234_567].map(grouped).each_ref().map(|s| &s[..])
        );
        assert_eq!(time(1_700_000_000_000_000), "2023-11-14 22:13:20");
        assert_eq!(time(i64::MAX), i64::MAX.to_string());
    }

    #[test]
    fn values_are_rounded_for_the_eye() {
        let values = [0.1 + 0.2, 36.5, -0.0, 1e300, 123_456_789.0, 1e-9, f64::NAN];
        assert_eq!(values.map(number), ["0.3", "36.5", "-0", "1e300", "123457000", "1e-9", "NaN"]);
        assert_eq!([14_000_000, 200_000, 7_200_000_000].map(span), ["14 s", "200 ms", "2 h"]);
    }

    #[test]
    fn columns_stand_below_each_other() {
        let rows = [vec!["1".to_owned(), "a".to_owned()], vec!["20".to_owned(), "bcd".to_owned()]];
        assert_eq!(table(&["n", "name"], &rows, &[0]), " n  name\n 1  a\n20  bcd\n");
    }
}
