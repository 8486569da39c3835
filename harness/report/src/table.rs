//! Tables for a terminal, and plain ones for a pipe.

use comfy_table::{Cell, CellAlignment, ContentArrangement, LineStyle, Table, TableStyle, presets};

use crate::claims::short_number;
use crate::frame::SpeedRow;
use crate::ledger::{Ledger, Row};

/// Lines above, below and under the header; none between rows.
const LINES: TableStyle = TableStyle::new()
    .top_border(LineStyle::none().fill('─').junction('─'))
    .header_separator(LineStyle::none().fill('─').junction('─'))
    .bottom_border(LineStyle::none().fill('─').junction('─'));

/// Where a table goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// A terminal of this many columns: cells wrap.
    Terminal(u16),
    /// A pipe or a file: no lines, nothing wraps.
    Plain,
}

/// How a column is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// A table as text, without a newline at its end.
pub fn render(header: &[(&str, Align)], rows: &[Vec<String>], output: Output) -> String {
    let mut table = Table::new();
    match output {
        Output::Terminal(width) => {
            table.load_style(LINES).set_content_arrangement(ContentArrangement::Dynamic).set_width(width.max(40));
        }
        Output::Plain => {
            table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        }
    }
    table.set_header(header.iter().map(|(name, _)| *name));
    for row in rows {
        table.add_row(row.iter().map(Cell::new));
    }
    for (column, (_, align)) in table.column_iter_mut().zip(header) {
        column.set_cell_alignment(match align {
            Align::Left => CellAlignment::Left,
            Align::Right => CellAlignment::Right,
        });
    }
    table.trim_fmt()
}

/// The ledger: claim, published, measured, verdict, and why. On a terminal the reasons stand below the table, where they fit.
pub fn ledger(ledger: &Ledger, output: Output) -> String {
    let header = ["claim", "published", "measured here", "verdict", "why"].map(|name| (name, Align::Left));
    let row = |row: &Row| {
        vec![row.id.clone(), row.published.clone(), row.finding.measured.clone(), row.finding.verdict.name().into()]
    };
    let why = |row: &Row| format!("{}{}", row.finding.reason, row.advice());
    match output {
        Output::Plain => {
            let rows: Vec<Vec<String>> =
                ledger.rows.iter().map(|one| row(one).into_iter().chain([why(one)]).collect()).collect();
            render(&header, &rows, output)
        }
        Output::Terminal(width) => {
            let rows: Vec<Vec<String>> = ledger.rows.iter().map(row).collect();
            let mut text = render(&header[..4], &rows, output);
            text.push_str("\n\nWhy\n");
            for row in &ledger.rows {
                text.push_str(&wrap(&format!("{}: {}", row.id, why(row)), usize::from(width.max(40))));
            }
            text.pop();
            text
        }
    }
}

/// Words in lines of at most `width` characters, the second and later ones indented; each ends with a newline.
fn wrap(text: &str, width: usize) -> String {
    let mut lines = String::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.trim().is_empty() && line.chars().count() + 1 + word.chars().count() > width {
            lines.push_str(&line);
            lines.push('\n');
            line = "   ".into();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines + &line + "\n"
}

/// Speeds: model, kernel, threads, workload, median, interval, n, share of the limit.
pub fn speeds(rows: &[SpeedRow], output: Output) -> String {
    render(&SPEED_HEADER, &rows.iter().map(speed_cells).collect::<Vec<_>>(), output)
}

/// Columns of speed tables.
pub(crate) const SPEED_HEADER: [(&str, Align); 10] = [
    ("workload", Align::Left),
    ("model", Align::Left),
    ("weights", Align::Left),
    ("kernel", Align::Left),
    ("ISA", Align::Left),
    ("threads", Align::Right),
    ("tok/s (median)", Align::Right),
    ("95 % interval", Align::Right),
    ("n", Align::Right),
    ("of limit", Align::Right),
];

/// Cells of one row of a speed table.
pub(crate) fn speed_cells(row: &SpeedRow) -> Vec<String> {
    let speed = row.tokens_per_s;
    vec![
        row.workload.clone(),
        crate::catalogue::Catalogue::get().title(&row.shape).to_owned(),
        if row.exact { row.weights.clone() } else { format!("{} (lossy)", row.weights) },
        row.kernel.clone(),
        row.isa.clone(),
        row.n_threads.to_string(),
        short_number(speed.value),
        format!("{} to {}", short_number(speed.low), short_number(speed.high)),
        speed.n.to_string(),
        row.share_of_limit().map_or("–".into(), |share| format!("{:.0} %", share * 100.0)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> (Vec<(&'static str, Align)>, Vec<Vec<String>>) {
        let header = vec![("name", Align::Left), ("tok/s", Align::Right)];
        let words = "a long name of many words that no narrow terminal could show on one line";
        (header, vec![vec!["short".into(), "1.0".into()], vec![words.into(), "12.5".into()]])
    }

    #[test]
    fn a_terminal_is_never_overrun() {
        let (header, rows) = sample();
        let text = render(&header, &rows, Output::Terminal(44));
        assert!(text.lines().all(|line| line.chars().count() <= 44), "{text}");
        assert!(text.lines().count() > 6, "{text}");
    }

    #[test]
    fn a_pipe_gets_one_line_per_row() {
        let (header, rows) = sample();
        let text = render(&header, &rows, Output::Plain);
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(text.is_ascii() && !text.contains('|'), "{text}");
        assert!(text.lines().nth(1).is_some_and(|line| line.ends_with("  1.0")), "{text}");
    }
}
