//! Data files as their authors publish them: JSON lines, and labels one per line. Every complaint is one line that names
//! the file, the line and what to do.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::EvalError;
use crate::task::Source;

/// The fields of one item.
pub type Record = Map<String, Value>;

/// The field that a labels file adds to each item.
pub const LABEL: &str = "label";

/// Reads the items of `source`, its files being under `folder`.
pub fn read(folder: &Path, source: &Source) -> Result<Vec<Record>, EvalError> {
    let path = folder.join(&source.items);
    let mut records = Vec::new();
    for (number, line) in lines(&path, &read_text(&path)?)? {
        records.push(record(line, &source.fields).map_err(|reason| EvalError::line(&path, number, reason))?);
    }
    if records.is_empty() {
        return Err(EvalError::data(&path, "no items: one JSON object per line is needed"));
    }
    if let Some(labels) = &source.labels {
        let labels_path = folder.join(labels);
        let text = read_text(&labels_path)?;
        let lines = lines(&labels_path, &text)?;
        if lines.len() != records.len() {
            let reason = format!(
                "{} labels for the {} items of {}; both files must come from the same download",
                lines.len(),
                records.len(),
                path.display()
            );
            return Err(EvalError::data(&labels_path, reason));
        }
        for ((number, line), record) in lines.into_iter().zip(&mut records) {
            let label: u32 = line.trim().parse().map_err(|_| {
                let reason = format!("label {:?} is not a number; one per line is needed, from 0", shortened(line));
                EvalError::line(&labels_path, number, reason)
            })?;
            record.insert(LABEL.to_owned(), label.into());
        }
    }
    Ok(records)
}

/// The text of a data file, without a byte order mark.
pub fn read_text(path: &Path) -> Result<String, EvalError> {
    let bytes = std::fs::read(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => EvalError::NoData { path: path.to_owned() },
        _ => EvalError::Read { path: path.to_owned(), source },
    })?;
    match String::from_utf8(bytes) {
        Ok(text) => Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text)),
        Err(error) => {
            let at = error.utf8_error().valid_up_to();
            let line = 1 + error.as_bytes()[..at].iter().filter(|&&byte| byte == b'\n').count();
            Err(EvalError::line(path, line, "not UTF-8: convert the file, or fetch it again"))
        }
    }
}

/// The lines and their numbers; ends may be `\r\n`, empty lines may end the file but not stand between items.
fn lines<'t>(path: &Path, text: &'t str) -> Result<Vec<(usize, &'t str)>, EvalError> {
    let lines: Vec<_> = text.trim_end().lines().enumerate().map(|(i, line)| (i + 1, line)).collect();
    match lines.iter().find(|(_, line)| line.trim().is_empty()) {
        Some((number, _)) if !text.trim().is_empty() => {
            Err(EvalError::line(path, *number, "an empty line between items: remove it"))
        }
        Some(_) => Ok(Vec::new()),
        None => Ok(lines),
    }
}

fn record(line: &str, fields: &[String]) -> Result<Record, String> {
    let value: Value = serde_json::from_str(line).map_err(|error| {
        // "… at line 1 column 7": the line is always 1 and would contradict the file's.
        let message = error.to_string();
        let message = message.split(" at line ").next().unwrap_or_default();
        format!("not JSON at column {}: {message}; the line may be cut off: fetch the file again", error.column())
    })?;
    let Value::Object(record) = value else {
        return Err(format!("not a JSON object: {}", shortened(line)));
    };
    for field in fields {
        match record.get(field) {
            None | Some(Value::Null) => {
                let needed = fields.join(", ");
                return Err(format!("field '{field}' is missing; this task needs {needed}"));
            }
            Some(_) => {}
        }
    }
    Ok(record)
}

fn shortened(text: &str) -> String {
    let mut short: String = text.chars().take(40).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source() -> Source {
        Source {
            items: "items.jsonl".into(),
            labels: Some("labels.lst".into()),
            fields: vec!["goal".to_owned(), "sol1".to_owned()],
        }
    }

    fn read_files(items: &[u8], labels: &[u8]) -> Result<Vec<Record>, String> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("items.jsonl"), items).unwrap();
        std::fs::write(folder.path().join("labels.lst"), labels).unwrap();
        read(folder.path(), &source()).map_err(|error| {
            let message = error.to_string();
            assert!(!message.contains('\n'), "{message}");
            message.replace(&format!("{}/", folder.path().display()), "")
        })
    }

    const TWO: &str = "{\"goal\": \"a\", \"sol1\": \" b \"}\n{\"goal\": \"c\", \"sol1\": \"\u{e9}\"}\n";

    #[test]
    fn line_ends_byte_order_marks_and_trailing_blank_lines_do_not_matter() {
        let plain = read_files(TWO.as_bytes(), b"0\n1\n").unwrap();
        assert_eq!(plain.len(), 2);
        assert_eq!(plain[0]["sol1"], " b ");
        assert_eq!(plain[1]["label"], 1);
        let windows = format!("\u{feff}{}\r\n \r\n", TWO.replace('\n', "\r\n"));
        assert_eq!(read_files(windows.as_bytes(), b"\xef\xbb\xbf0\r\n1\r\n\r\n").unwrap(), plain);
        assert_eq!(read_files(TWO.trim_end().as_bytes(), b"0\n1").unwrap(), plain);
    }

    #[test]
    fn complaints_say_where_and_what() {
        let bad = |items: &str, labels: &str| read_files(items.as_bytes(), labels.as_bytes()).unwrap_err();
        assert_eq!(
            bad(TWO, "0\n"),
            "labels.lst: 1 labels for the 2 items of items.jsonl; both files must come from the same download"
        );
        assert_eq!(bad(TWO, "0\nx\n"), "labels.lst:2: label \"x\" is not a number; one per line is needed, from 0");
        assert_eq!(bad(TWO, "0\n-1\n"), "labels.lst:2: label \"-1\" is not a number; one per line is needed, from 0");
        assert_eq!(bad(TWO, "0\n\n1\n"), "labels.lst:2: an empty line between items: remove it");
        assert_eq!(
            bad(&TWO.replace("sol1\": \"\u{e9}", "sol2\": \""), "0\n1\n"),
            "items.jsonl:2: field 'sol1' is missing; this task needs goal, sol1"
        );
        assert_eq!(bad("[1]\n", "0\n"), "items.jsonl:1: not a JSON object: [1]");
        assert!(bad(&TWO[..TWO.len() - 5], "0\n1\n").starts_with("items.jsonl:2: not JSON at column "));
        assert_eq!(bad("", ""), "items.jsonl: no items: one JSON object per line is needed");
        assert_eq!(bad("\n \n", ""), "items.jsonl: no items: one JSON object per line is needed");
        let error = read_files(b"{\"goal\": \"a\", \"sol1\": \"b\"}\n{\"goal\": \"\xff\"}\n", b"0\n1\n").unwrap_err();
        assert_eq!(error, "items.jsonl:2: not UTF-8: convert the file, or fetch it again");
    }

    #[test]
    fn a_missing_file_says_how_to_get_it() {
        let error = read(Path::new("nowhere"), &source()).unwrap_err().to_string();
        assert!(error.starts_with("nowhere/items.jsonl: not found") && error.contains("scripts/fetch-data"), "{error}");
    }
}
