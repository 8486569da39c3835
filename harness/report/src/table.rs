//! Tables: one definition, shown to people (terminal, Markdown, HTML) rounded and with units, and to programs (CSV, JSON, Parquet:
//! see [`crate::export`]) in full.

use comfy_table::{Cell, CellAlignment, ContentArrangement, LineStyle, Table as TextTable, TableStyle, presets};
use ternbench_measure::stats::Estimate;

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

/// What a column holds. It decides how values are shown to people and how many columns programs get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Words.
    Text,
    /// A whole number.
    Count,
    /// A number, shown with three digits that matter.
    Number,
    /// A number of bytes, shown as GB (10⁹ bytes).
    Bytes,
    /// A share of one, shown in percent.
    Share,
    /// Joules, shown with three decimals as the report shows them; what is below a thousandth with five.
    Joules,
    /// A probability, shown with four decimals.
    Probability,
    /// A median with its interval and n: three columns for people, four for programs.
    Estimate,
    /// A ratio with its interval and n, shown as `2.31x`.
    Ratio,
}

/// One column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// Name for programs, with its unit: `tokens_per_s`.
    pub key: &'static str,
    /// Name for people; empty where only programs get the column.
    pub title: &'static str,
    /// What it holds.
    pub kind: Kind,
}

/// Shorthand for a column.
pub const fn column(key: &'static str, title: &'static str, kind: Kind) -> Column {
    Column { key, title, kind }
}

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Nothing was measured.
    None,
    /// Words.
    Text(String),
    /// A whole number.
    Count(u64),
    /// Any other number.
    Number(f64),
    /// A number with its interval.
    Estimate(Estimate),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<u64> for Value {
    fn from(count: u64) -> Self {
        Self::Count(count)
    }
}

impl From<usize> for Value {
    fn from(count: usize) -> Self {
        Self::Count(count as u64)
    }
}

impl From<f64> for Value {
    fn from(number: f64) -> Self {
        Self::Number(number)
    }
}

impl From<Estimate> for Value {
    fn from(estimate: Estimate) -> Self {
        Self::Estimate(estimate)
    }
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::None, Into::into)
    }
}

/// Columns and rows; every row has one value per column.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// The columns.
    pub columns: Vec<Column>,
    /// The rows.
    pub rows: Vec<Vec<Value>>,
}

impl Table {
    /// An empty table.
    pub fn new(columns: impl Into<Vec<Column>>) -> Self {
        Self { columns: columns.into(), rows: Vec::new() }
    }

    /// Adds rows.
    pub fn with_rows(mut self, rows: impl IntoIterator<Item = Vec<Value>>) -> Self {
        self.rows.extend(rows);
        self
    }

    /// The header for people.
    pub fn header(&self) -> Vec<(&'static str, Align)> {
        let mut header = Vec::new();
        for column in self.columns.iter().filter(|column| !column.title.is_empty()) {
            let align = if column.kind == Kind::Text { Align::Left } else { Align::Right };
            header.push((column.title, align));
            if matches!(column.kind, Kind::Estimate | Kind::Ratio) {
                header.extend([("95 % interval", Align::Right), ("n", Align::Right)]);
            }
        }
        header
    }

    /// The rows for people: as many cells as [`Table::header`].
    pub fn cells(&self) -> Vec<Vec<String>> {
        let row = |row: &Vec<Value>| {
            let shown = self.columns.iter().zip(row).filter(|(column, _)| !column.title.is_empty());
            shown.flat_map(|(column, value)| show(column.kind, value)).collect()
        };
        self.rows.iter().map(row).collect()
    }

    /// As text, without a newline at its end.
    pub fn text(&self, output: Output) -> String {
        render(&self.header(), &self.cells(), output)
    }

    /// As a Markdown table.
    pub fn markdown(&self) -> String {
        let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        let header = self.header();
        let mut out = line(header.iter().map(|(name, _)| (*name).to_owned()).collect());
        let rule = |align| if align == Align::Right { "---:" } else { "---" };
        out += &line(header.iter().map(|(_, align)| rule(*align).to_owned()).collect());
        for row in self.cells() {
            out += &line(row.iter().map(|cell| cell.replace('|', "\\|").replace('\n', " ")).collect());
        }
        out
    }
}

/// The cells of one value.
fn show(kind: Kind, value: &Value) -> Vec<String> {
    let unit = |text: String| if kind == Kind::Ratio { format!("{text}x") } else { text };
    // Near 1 a ratio's third decimal says something.
    let decimals = |value: f64| if (value - 1.0).abs() < 0.1 { 3 } else { 2 };
    let digits = |x: f64, of: f64| match kind {
        Kind::Ratio => format!("{x:.*}", decimals(of)),
        _ => short_number(x),
    };
    match value {
        Value::None if matches!(kind, Kind::Estimate | Kind::Ratio) => vec!["–".into(); 3],
        Value::None => vec!["–".into()],
        Value::Text(text) => vec![text.clone()],
        Value::Count(count) if kind == Kind::Bytes => vec![format!("{:.3}", *count as f64 / 1e9)],
        Value::Count(count) => vec![count.to_string()],
        Value::Number(x) => vec![match kind {
            Kind::Share if x.abs() < 0.0995 => format!("{:.1} %", x * 100.0),
            Kind::Share => format!("{:.0} %", x * 100.0),
            Kind::Joules if x.abs() < 0.001 => format!("{x:.5}"),
            Kind::Joules => format!("{x:.3}"),
            Kind::Probability => format!("{x:.4}"),
            _ => unit(digits(*x, *x)),
        }],
        Value::Estimate(e) => {
            let digits = |x: f64| digits(x, e.value);
            vec![unit(digits(e.value)), format!("{} to {}", digits(e.low), digits(e.high)), e.n.to_string()]
        }
    }
}

/// A number with three digits that matter: `123`, `12.3`, `1.23`.
pub fn short_number(x: f64) -> String {
    let decimals = match x.abs() {
        x if x >= 99.95 => 0,
        x if x >= 9.995 => 1,
        x if x >= 0.0995 || x == 0.0 => 2,
        _ => 4,
    };
    format!("{x:.decimals$}")
}

/// A table of ready cells as text, without a newline at its end.
pub fn render(header: &[(&str, Align)], rows: &[Vec<String>], output: Output) -> String {
    let mut table = TextTable::new();
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

#[cfg(test)]
pub(crate) fn sample() -> Table {
    let columns = [
        column("name", "name", Kind::Text),
        column("raw", "", Kind::Text),
        column("tokens_per_s", "tok/s", Kind::Estimate),
        column("ratio", "ratio", Kind::Ratio),
        column("share", "of limit", Kind::Share),
        column("size_bytes", "GB", Kind::Bytes),
    ];
    let estimate = Estimate { value: 12.345, low: 12.0, high: 123.4, n: 5 };
    Table::new(columns).with_rows([
        vec!["a|b".into(), "x,\"y\"".into(), estimate.into(), 2.0.into(), 0.875.into(), 1_500_000_000_u64.into()],
        vec!["c".into(), "z".into(), Value::None, Value::None, Value::None, Value::None],
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_never_overrun() {
        let words = "a long name of many words that no narrow terminal could show on one line";
        let table = Table::new([column("a", "name", Kind::Text), column("b", "tok/s", Kind::Number)])
            .with_rows([vec!["short".into(), 1.0.into()], vec![words.into(), 12.5.into()]]);
        let text = table.text(Output::Terminal(44));
        assert!(text.lines().all(|line| line.chars().count() <= 44), "{text}");
        assert!(text.lines().count() > 6, "{text}");
        let plain = table.text(Output::Plain);
        assert_eq!(plain.lines().count(), 3, "{plain}");
        assert!(plain.is_ascii() && !plain.contains('|'), "{plain}");
        assert!(plain.lines().nth(1).is_some_and(|line| line.ends_with("  1.00")), "{plain}");
    }

    #[test]
    fn markdown_shows_what_people_get() {
        let expected = "\
| name | tok/s | 95 % interval | n | ratio | 95 % interval | n | of limit | GB |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| a\\|b | 12.3 | 12.0 to 123 | 5 | 2.00x | 88 % | 1.500 |
| c | – | – | – | – | – | – | – | – |
";
        let mut table = sample();
        assert!(table.markdown().contains("| a\\|b | 12.3 | 12.0 to 123 | 5 |"), "{}", table.markdown());
        table.rows[0][3] = Value::Estimate(Estimate { value: 2.0, low: 1.0, high: 3.0, n: 4 });
        let expected = expected.replace("2.00x | 88 %", "2.00x | 1.00 to 3.00 | 4 | 88 %");
        assert_eq!(table.markdown(), expected);
    }

    #[test]
    fn three_digits_that_matter() {
        let shown = [123.4, 12.34, 1.234, 0.123, 0.0123, 0.0, 99.96].map(short_number);
        assert_eq!(shown, ["123", "12.3", "1.23", "0.12", "0.0123", "0.00", "100"]);
    }
}
