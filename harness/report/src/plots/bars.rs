//! Horizontal bars: labels to the left, values at the bars' ends, whiskers for intervals, stacks for parts of a whole.

use plotters::coord::Shift;
use plotters::prelude::*;

use super::pen::{Anchor, CARD, Color, GRID, INK, MARGIN, MARK, Pen, SOFT_INK, WIDTH, rgb, tick_step, tick_text};

const BAR: f64 = 17.0;
const BAR_GAP: f64 = 4.0;
const GROUP_GAP: f64 = 15.0;
const HEAD: f64 = 98.0;
const FOOT: f64 = 58.0;
/// Two lines of label need this much even beside a single bar.
const MIN_GROUP: f64 = 34.0;
/// Room for the values at the bars' ends.
const VALUES: f64 = 130.0;

/// A colour and what it stands for.
#[derive(Clone, Debug)]
pub struct Series {
    /// Name in the legend.
    pub name: String,
    /// Red, green, blue.
    pub color: Color,
}

/// One bar.
#[derive(Clone, Debug, Default)]
pub struct Bar {
    /// Parts, stacked from left to right: index of the series, and value.
    pub segments: Vec<(usize, f64)>,
    /// Whisker.
    pub interval: Option<(f64, f64)>,
    /// A tick beside the stack, for a value that the parts should add up to.
    pub mark: Option<f64>,
    /// What stands at its end.
    pub label: String,
}

/// Bars under one label.
#[derive(Clone, Debug)]
pub struct Group {
    /// First line.
    pub title: String,
    /// Second line, smaller.
    pub subtitle: String,
    /// The bars, from top to bottom.
    pub bars: Vec<Bar>,
}

/// A chart of horizontal bars.
#[derive(Clone, Debug)]
pub struct BarChart {
    /// What it shows.
    pub title: String,
    /// Conditions, in a smaller line.
    pub subtitle: String,
    /// What the axis measures, with its unit.
    pub axis: String,
    /// The colours, in the order of the legend.
    pub series: Vec<Series>,
    /// The groups, from top to bottom.
    pub groups: Vec<Group>,
    /// What the ticks of [`Bar::mark`] are.
    pub mark_name: Option<String>,
}

impl BarChart {
    /// Width and height in pixels of the SVG.
    pub fn size(&self) -> (u32, u32) {
        let bars: f64 = self.groups.iter().map(|group| group_height(group) + GROUP_GAP).sum();
        (WIDTH as u32, (HEAD + bars + FOOT).ceil() as u32)
    }

    fn largest(&self) -> f64 {
        let of_bar = |bar: &Bar| {
            let stack: f64 = bar.segments.iter().map(|(_, value)| value).sum();
            stack.max(bar.interval.map_or(0.0, |(_, high)| high)).max(bar.mark.unwrap_or(0.0))
        };
        let bars = self.groups.iter().flat_map(|group| &group.bars).map(of_bar);
        let largest = bars.filter(|value| value.is_finite()).fold(0.0, f64::max);
        if largest > 0.0 { largest } else { 1.0 }
    }
}

fn group_height(group: &Group) -> f64 {
    let bars = group.bars.len() as f64;
    (bars * BAR + (bars - 1.0).max(0.0) * BAR_GAP).max(MIN_GROUP)
}

/// Room for the text of a wider font.
const WIDER: f64 = 1.12;

/// Draws a chart.
pub(super) fn draw<DB: DrawingBackend>(
    area: &DrawingArea<DB, Shift>,
    chart: &BarChart,
    scale: f64,
) -> Result<(), String> {
    let pen = Pen::new(area, scale)?;
    let height = f64::from(chart.size().1);
    let mut labels = 0.0_f64;
    for group in &chart.groups {
        labels = labels.max(pen.width(&group.title, 14.0, false)?).max(pen.width(&group.subtitle, 11.5, false)?);
    }
    // A viewer without the font that is measured here takes another, which may be wider.
    let left = MARGIN + WIDER * labels + 14.0;
    let right = WIDTH - MARGIN - VALUES;
    let step = tick_step(chart.largest());
    // The axis ends at a tick.
    let ticks = (chart.largest() / step - 1e-9).ceil();
    let x = |value: f64| left + value / (ticks * step) * (right - left);
    let (top, bottom) = (HEAD - 8.0, height - FOOT);

    pen.head(&chart.title, &chart.subtitle)?;
    legend(&pen, chart)?;

    for i in 0..=ticks as u32 {
        let value = f64::from(i) * step;
        pen.line((x(value), top), (x(value), bottom), GRID, 1.0)?;
        pen.text(&tick_text(value, step), (x(value), bottom + 13.0), 11.5, SOFT_INK, false, Anchor::Center)?;
    }
    pen.text(&chart.axis, ((left + right) / 2.0, bottom + 36.0), 12.5, INK, false, Anchor::Center)?;

    let mut y = HEAD;
    for group in &chart.groups {
        let middle = y + group_height(group) / 2.0;
        let offset = if group.subtitle.is_empty() { 0.0 } else { 8.5 };
        pen.text(&group.title, (left - 12.0, middle - offset), 14.0, INK, false, Anchor::Right)?;
        pen.text(&group.subtitle, (left - 12.0, middle + offset), 11.5, SOFT_INK, false, Anchor::Right)?;
        let bars = group.bars.len() as f64;
        let mut bar_top = middle - (bars * BAR + (bars - 1.0) * BAR_GAP) / 2.0;
        for bar in &group.bars {
            draw_bar(&pen, chart, bar, bar_top, &x)?;
            bar_top += BAR + BAR_GAP;
        }
        y += group_height(group) + GROUP_GAP;
    }
    pen.line((left, top), (left, bottom), SOFT_INK, 1.0)?;
    Ok(())
}

fn legend<DB: DrawingBackend>(pen: &Pen<'_, DB>, chart: &BarChart) -> Result<(), String> {
    let mut x = MARGIN;
    for series in &chart.series {
        pen.rect((x, 68.0), (x + 12.0, 80.0), rgb(series.color))?;
        pen.text(&series.name, (x + 18.0, 74.5), 12.0, INK, false, Anchor::Left)?;
        x += 18.0 + WIDER * pen.width(&series.name, 12.0, false)? + 20.0;
    }
    if let Some(name) = &chart.mark_name {
        pen.line((x + 6.0, 66.0), (x + 6.0, 82.0), MARK, 2.0)?;
        pen.text(name, (x + 14.0, 74.5), 12.0, INK, false, Anchor::Left)?;
    }
    Ok(())
}

fn draw_bar<DB: DrawingBackend>(
    pen: &Pen<'_, DB>,
    chart: &BarChart,
    bar: &Bar,
    top: f64,
    x: &dyn Fn(f64) -> f64,
) -> Result<(), String> {
    let mut start = 0.0;
    for &(series, value) in &bar.segments {
        if let Some(series) = chart.series.get(series).filter(|_| value > 0.0) {
            pen.rect((x(start), top), (x(start + value), top + BAR), rgb(series.color))?;
        }
        start += value;
    }
    let (middle, mut end) = (top + BAR / 2.0, start);
    if let Some((low, high)) = bar.interval {
        pen.line((x(low), middle), (x(high), middle), INK, 1.5)?;
        for at in [low, high] {
            pen.line((x(at), middle - 4.0), (x(at), middle + 4.0), INK, 1.5)?;
        }
        end = end.max(high);
    }
    if let Some(mark) = bar.mark {
        pen.line((x(mark), top - 2.0), (x(mark), top + BAR + 2.0), MARK, 2.0)?;
    }
    // Beside the bar that it says the value of, or behind the mark where that would be in the way.
    let (width, mut at) = (pen.width(&bar.label, 12.0, false)?, x(end) + 8.0);
    if let Some(mark) = bar.mark.map(x).filter(|mark| (x(end)..at + width + 6.0).contains(mark)) {
        at = mark + 8.0;
    }
    // A grid line through a number is hard to read.
    pen.rect((at - 2.0, top), (at + width + 2.0, top + BAR), CARD)?;
    pen.text(&bar.label, (at, middle + 1.0), 12.0, INK, false, Anchor::Left)
}
