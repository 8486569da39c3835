//! `report.md`: the verdicts first, then the plots, then the numbers, then where and how.

use std::fmt::Write as _;

use crate::catalogue::Catalogue;
use crate::document::Document;
use crate::ledger::{Ledger, Verdict};
use crate::table::{Kind, Table, column};

/// Where the methods are written down, from a run's folder.
const METHODOLOGY: &str = "../../../harness/METHODOLOGY.md";

/// The report. Plots are linked as SVG files in the report's own folder.
pub fn report(document: &Document) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "# ternbench report\n\n{}\n", document.headline);
    let ledger = &document.ledger;
    let _ = writeln!(out, "## Verdicts\n\n{}.\n\n{}", ledger.summary(), ledger_table(ledger).markdown());
    if !document.plots.is_empty() {
        let _ = writeln!(out, "## Plots\n");
        for plot in &document.plots {
            let _ = writeln!(out, "![{}]({}.svg)\n", plot.title(), plot.name);
        }
    }
    for section in &document.sections {
        let _ = writeln!(out, "## {}\n\n{}\n\n{}", section.title, section.note, section.table.markdown());
    }
    let _ = writeln!(out, "## Machine\n");
    for (name, value) in &document.machine {
        let _ = writeln!(out, "- {name}: {value}");
    }
    let _ = writeln!(
        out,
        "\n## Method\n\nProtocol, statistics, limits, verdict rules and known biases: [harness/METHODOLOGY.md]({METHODOLOGY}). \
         Raw samples: [records.jsonl](records.jsonl).\n\n### Sources\n"
    );
    for (letter, title) in &Catalogue::get().sources {
        let _ = writeln!(out, "- [{letter}] {title}");
    }
    out
}

/// The ledger as people read it: verdicts in bold, sources behind the claim, advice behind the reason.
pub fn ledger_table(ledger: &Ledger) -> Table {
    let columns = [
        column("id", "claim", Kind::Text),
        column("said", "said", Kind::Text),
        column("published", "published", Kind::Text),
        column("measured", "measured here", Kind::Text),
        column("verdict", "verdict", Kind::Text),
        column("why", "why", Kind::Text),
    ];
    Table::new(columns).with_rows(ledger.rows.iter().map(|row| {
        let verdict = match row.finding.verdict {
            Verdict::Reproduced | Verdict::NotReproduced => format!("**{}**", row.finding.verdict),
            _ => row.finding.verdict.to_string(),
        };
        vec![
            row.id.clone().into(),
            format!("{} [{}]", row.claim, row.sources.join("][")).into(),
            row.published_with_conditions().into(),
            row.finding.measured.clone().into(),
            verdict.into(),
            format!("{}{}", row.finding.reason, row.advice()).into(),
        ]
    }))
}
