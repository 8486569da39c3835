//! `report.html`: one page without network, scripts from elsewhere or fonts: verdicts, plots, sortable tables, machine, method.
//! Everything that comes from records is escaped by the template.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::catalogue::Catalogue;
use crate::document::Document;
use crate::ledger::{Row, Verdict};
use crate::plots::{Plot, PlotError, dark_rules};
use crate::table::{Align, Table};

const STYLE: &str = include_str!("html/style.css");
const SCRIPT: &str = include_str!("html/sort.js");

/// Tables with more rows than this start closed.
const LONG: usize = 40;

/// The page.
///
/// # Errors
/// When a plot cannot be drawn.
pub fn report(document: &Document) -> Result<String, PlotError> {
    let dark = format!("@media(prefers-color-scheme:dark){{{}}}", dark_rules("figure svg "));
    let plots = document.plots.iter().map(figure).collect::<Result<Vec<_>, _>>()?;
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { "ternbench report" }
                style { (PreEscaped(STYLE)) (PreEscaped(dark)) }
            }
            body {
                header {
                    h1 { "ternbench report" }
                    p { (document.headline) }
                    (navigation(document))
                }
                main {
                    (verdicts(document))
                    @if !plots.is_empty() {
                        section id="plots" {
                            h2 { "Plots" }
                            @for plot in &plots { (plot) }
                        }
                    }
                    section id="tables" {
                        h2 { "Tables" }
                        p.note { "Click a heading to sort by it." }
                        @for section in &document.sections {
                            details open[section.table.rows.len() <= LONG] {
                                summary { h3 { (section.title) } span { (section.table.rows.len()) " rows" } }
                                p.note { (section.note) }
                                (table(&section.table))
                            }
                        }
                    }
                    (method())
                    section id="machine" {
                        h2 { "Machine" }
                        dl { @for (name, value) in &document.machine { dt { (name) } dd { (value) } } }
                    }
                }
                script { (PreEscaped(SCRIPT)) }
            }
        }
    };
    Ok(page.into_string())
}

fn navigation(document: &Document) -> Markup {
    html! {
        nav {
            a href="#verdicts" { "Verdicts" }
            @if !document.plots.is_empty() { a href="#plots" { "Plots" } }
            a href="#tables" { "Tables" }
            a href="#method" { "Method" }
            a href="#machine" { "Machine" }
        }
    }
}

/// A name for style rules.
fn class(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Reproduced => "yes",
        Verdict::NotReproduced => "no",
        Verdict::Undecided => "open",
        Verdict::NotComparable => "apart",
        Verdict::NotMeasured => "none",
    }
}

fn verdicts(document: &Document) -> Markup {
    let ledger = &document.ledger;
    html! {
        section id="verdicts" {
            h2 { "Verdicts" }
            ul.tiles {
                @for verdict in Verdict::ALL {
                    li class=(class(verdict)) { b { (ledger.count(verdict)) } span { (verdict.name()) } }
                }
            }
            div.scroll {
                table.sortable.claims {
                    thead { tr { th { "Claim" } th { "Published" } th { "Measured here" } th { "Verdict" } th { "Why" } } }
                    tbody { @for row in &ledger.rows { (claim(row)) } }
                }
            }
        }
    }
}

fn claim(row: &Row) -> Markup {
    let verdict = row.finding.verdict;
    let aim = if verdict == Verdict::Undecided { "To decide: " } else { "To measure: " };
    html! {
        tr {
            td { (row.claim) br; small { code { (row.id) } " [" (row.sources.join("][")) "]" } }
            td { (row.published) @if !row.conditions.is_empty() { br; small { (row.conditions) } } }
            td { (row.finding.measured) }
            td { span class={ "verdict " (class(verdict)) } { (verdict.name()) } }
            td.why {
                (row.finding.reason)
                @if let Some(command) = &row.command {
                    br; small { (aim) code { (command) } @if let Some(note) = &row.note { " (" (note) ")" } }
                }
            }
        }
    }
}

fn figure(plot: &Plot) -> Result<Markup, PlotError> {
    let svg = plot.svg()?;
    Ok(html! {
        figure id=(plot.name) aria-label=(plot.title()) { (PreEscaped(svg)) }
    })
}

fn table(table: &Table) -> Markup {
    let header = table.header();
    html! {
        div.scroll {
            table.sortable {
                thead { tr { @for (name, align) in &header { th.right[*align == Align::Right] { (name) } } } }
                tbody {
                    @for row in table.cells() {
                        tr { @for (cell, (_, align)) in row.iter().zip(&header) { td.right[*align == Align::Right] { (cell) } } }
                    }
                }
            }
        }
    }
}

fn method() -> Markup {
    let facts = [
        (
            "Correct before fast",
            "Every kernel is compared with a naive integer loop on the shapes it will run before anything is timed. A wrong kernel's rows are void.",
        ),
        (
            "Interleaving",
            "A round runs every contender of a group once, in an order drawn anew for each round; samples of one round are pairs. Drift and noisy neighbours hit all alike.",
        ),
        (
            "Statistics",
            "Medians with 95 % intervals from the sorted samples (the sign test's), which hold their level for every distribution. A ratio is the median of the ratios within rounds. Geometric means over baselines are resampled. No outlier is dropped. With five samples the interval is their minimum and maximum, so n stands in every table.",
        ),
        (
            "Limits",
            "Reading memory and multiply-adds are probed with the same threads. Each result shows its share of the nearer limit; a sample more than 5 % above it is refused as impossible.",
        ),
        (
            "Verdicts",
            "Reproduced: the whole interval lies on the claim's side. Not reproduced: on the other. Undecided: it straddles the claim. Not comparable: an absolute number from other hardware, or an \"up to\" that this machine does not reach. Not measured: nothing here to judge by.",
        ),
    ];
    html! {
        section id="method" {
            h2 { "Method" }
            dl { @for (name, text) in facts { dt { (name) } dd { (text) } } }
            p { "In full, with known biases and threats to validity: harness/METHODOLOGY.md in the ternbench repository. Raw samples: " a href="records.jsonl" { "records.jsonl" } "." }
            h3 { "Sources of the claims" }
            ul { @for (letter, title) in &Catalogue::get().sources { li { "[" (letter) "] " (title) } } }
        }
    }
}
