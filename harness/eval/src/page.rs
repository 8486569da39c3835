//! A page to browse the items of a run in any browser: one file, no network.

use serde_json::{Value, json};

use crate::items::Line;
use crate::prompt::PromptSet;
use crate::summary::Summary;

/// The page; `/*DATA*/` in it is replaced.
const PAGE: &str = include_str!("page.html");

/// A page for a run, and a second one on the same items beside it. Prompts are shown where the task's data is there.
pub fn page(
    lines: &[Line],
    summary: &Summary,
    prompts: Option<&PromptSet<'_>>,
    other: Option<(&[Line], &Summary)>,
) -> String {
    let find = |index: usize| other.and_then(|(lines, _)| lines.iter().find(|line| line.index == index));
    let item = |line: &Line| {
        let shown = prompts.and_then(|prompts| prompts.shown(line.index));
        let (prompt, choices) = shown.map_or((Value::Null, Value::Null), |(p, c)| (json!(p), json!(c)));
        json!({ "prompt": prompt, "choices": choices, "a": side(line), "b": find(line.index).map(side) })
    };
    let run = |lines: &[Line], summary: &Summary| {
        let text = |name| lines.first().and_then(|line| line.text(name)).unwrap_or_default().to_owned();
        json!({ "model": text("model"), "kernel": text("kernel"), "scores": summary.lines() })
    };
    let mut runs = vec![run(lines, summary)];
    runs.extend(other.map(|(lines, summary)| run(lines, summary)));
    let title = format!("{}@{}", summary.task, summary.version);
    let data = json!({ "title": title, "runs": runs, "items": lines.iter().map(item).collect::<Vec<_>>() });
    // Inside a script element only "</" and "<!" could end or change it.
    PAGE.replacen("/*DATA*/", &data.to_string().replace('<', "\\u003c"), 1)
}

fn side(line: &Line) -> Value {
    let field = |name: &str| line.get(name).cloned().unwrap_or(Value::Null);
    let answers: Vec<_> = line.extractors().iter().map(|name| json!([name, line.text(name)])).collect();
    json!({
        "index": line.index,
        "gold": field("gold"),
        "ll": field("loglikelihood"),
        "gap": crate::compare::gap(line),
        "text": field("text"),
        "finish": field("finish"),
        "answers": answers,
        "verdicts": line.verdicts(),
        "tokens": field("n_tokens"),
        "nll": field("nll"),
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn data_cannot_leave_its_element() {
        let raw =
            r#"{"task":"t","task_version":1,"index":0,"text":"</script><b>$1","a":"5","a_correct":true,"gold":"5"}"#;
        let lines = [Line::parse(raw).unwrap()];
        let summary = Summary::of(&lines, 1, Path::new("x"));
        let html = page(&lines, &summary, None, Some((&lines, &summary)));
        assert_eq!(html.matches("</script>").count(), 2, "the page's own");
        assert!(!html.contains("http") && !html.contains("/*DATA*/"));
        let (_, data) = html.split_once("id=\"data\">").unwrap();
        let (data, _) = data.split_once("</script>").unwrap();
        let data: Value = serde_json::from_str(data).unwrap();
        assert_eq!(data["items"][0]["a"]["text"], "</script><b>$1");
        assert_eq!(data["items"][0]["b"]["answers"], json!([["a", "5"]]));
        assert_eq!(data["runs"].as_array().unwrap().len(), 2);
    }
}
