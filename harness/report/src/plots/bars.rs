//! Horizontal bars: labels to the left, values at the bars' ends, whiskers for intervals, stacks for parts of a whole.
//!
//! Everything is placed in pixels by hand, because long labels beside bars are what plotters' own axes do badly.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::claims::short_number;

const INK: RGBColor = RGBColor(31, 41, 51);
const SOFT_INK: RGBColor = RGBColor(98, 110, 123);
const GRID: RGBColor = RGBColor(226, 231, 236);
const MARK: RGBColor = RGBColor(193, 68, 50);

const WIDTH: f64 = 920.0;
const MARGIN: f64 = 24.0;
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
    pub color: (u8, u8, u8),
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
    /// A line across, with its name.
    pub reference: Option<(f64, String)>,
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
        let largest = bars
            .chain(self.reference.iter().map(|(value, _)| *value))
            .filter(|value| value.is_finite())
            .fold(0.0, f64::max);
        if largest > 0.0 { largest } else { 1.0 }
    }
}

fn group_height(group: &Group) -> f64 {
    let bars = group.bars.len() as f64;
    (bars * BAR + (bars - 1.0).max(0.0) * BAR_GAP).max(MIN_GROUP)
}

/// The distance between ticks: 1, 2 or 5 times a power of ten, for about six of them.
fn tick_step(largest: f64) -> f64 {
    let rough = largest / 6.0;
    let power = 10_f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|step| step * power).find(|step| *step >= rough).unwrap_or(10.0 * power)
}

/// A drawing area with a scale and short names for what is drawn.
struct Pen<'a, DB: DrawingBackend> {
    area: &'a DrawingArea<DB, Shift>,
    scale: f64,
}

impl<DB: DrawingBackend> Pen<'_, DB> {
    fn at(&self, x: f64, y: f64) -> (i32, i32) {
        ((x * self.scale).round() as i32, (y * self.scale).round() as i32)
    }

    fn rect(&self, (x0, y0): (f64, f64), (x1, y1): (f64, f64), color: RGBColor) -> Result<(), String> {
        self.area.draw(&Rectangle::new([self.at(x0, y0), self.at(x1, y1)], color.filled())).map_err(|e| e.to_string())
    }

    fn line(&self, from: (f64, f64), to: (f64, f64), color: RGBColor, width: f64) -> Result<(), String> {
        let style = color.stroke_width((width * self.scale).round().max(1.0) as u32);
        self.area
            .draw(&PathElement::new(vec![self.at(from.0, from.1), self.at(to.0, to.1)], style))
            .map_err(|e| e.to_string())
    }

    fn text(
        &self,
        text: &str,
        (x, y): (f64, f64),
        size: f64,
        color: RGBColor,
        bold: bool,
        anchor: HPos,
    ) -> Result<(), String> {
        let style = self.font(size, bold).into_text_style(self.area).color(&color).pos(Pos::new(anchor, VPos::Center));
        self.area.draw_text(text, &style, self.at(x, y)).map_err(|e| e.to_string())
    }

    fn font(&self, size: f64, bold: bool) -> FontDesc<'static> {
        let style = if bold { FontStyle::Bold } else { FontStyle::Normal };
        FontDesc::new(FontFamily::SansSerif, size * self.scale, style)
    }

    /// Width of a text, in unscaled pixels.
    fn width(&self, text: &str, size: f64, bold: bool) -> Result<f64, String> {
        let (width, _) = self.font(size, bold).box_size(text).map_err(|e| e.to_string())?;
        Ok(f64::from(width) / self.scale)
    }
}

/// Draws a chart.
pub(super) fn draw<DB: DrawingBackend>(
    area: &DrawingArea<DB, Shift>,
    chart: &BarChart,
    scale: f64,
) -> Result<(), String> {
    area.fill(&WHITE).map_err(|e| e.to_string())?;
    let pen = Pen { area, scale };
    let height = f64::from(chart.size().1);
    let mut labels = 0.0_f64;
    for group in &chart.groups {
        labels = labels.max(pen.width(&group.title, 14.0, false)?).max(pen.width(&group.subtitle, 11.5, false)?);
    }
    let left = MARGIN + labels + 14.0;
    let right = WIDTH - MARGIN - VALUES;
    let step = tick_step(chart.largest());
    // The axis ends at a tick.
    let ticks = (chart.largest() / step - 1e-9).ceil();
    let x = |value: f64| left + value / (ticks * step) * (right - left);
    let (top, bottom) = (HEAD - 8.0, height - FOOT);

    pen.text(&chart.title, (MARGIN, 28.0), 19.0, INK, true, HPos::Left)?;
    pen.text(&chart.subtitle, (MARGIN, 51.0), 12.5, SOFT_INK, false, HPos::Left)?;
    legend(&pen, chart)?;

    for i in 0..=ticks as u32 {
        let value = f64::from(i) * step;
        pen.line((x(value), top), (x(value), bottom), GRID, 1.0)?;
        let text = if step >= 1.0 { format!("{value:.0}") } else { short_number(value) };
        pen.text(&text, (x(value), bottom + 13.0), 11.5, SOFT_INK, false, HPos::Center)?;
    }
    pen.text(&chart.axis, ((left + right) / 2.0, bottom + 36.0), 12.5, INK, false, HPos::Center)?;

    let mut y = HEAD;
    for group in &chart.groups {
        let middle = y + group_height(group) / 2.0;
        let offset = if group.subtitle.is_empty() { 0.0 } else { 8.5 };
        pen.text(&group.title, (left - 12.0, middle - offset), 14.0, INK, false, HPos::Right)?;
        pen.text(&group.subtitle, (left - 12.0, middle + offset), 11.5, SOFT_INK, false, HPos::Right)?;
        let bars = group.bars.len() as f64;
        let mut bar_top = middle - (bars * BAR + (bars - 1.0) * BAR_GAP) / 2.0;
        for bar in &group.bars {
            draw_bar(&pen, chart, bar, bar_top, &x)?;
            bar_top += BAR + BAR_GAP;
        }
        y += group_height(group) + GROUP_GAP;
    }
    pen.line((left, top), (left, bottom), SOFT_INK, 1.0)?;
    if let Some((value, name)) = &chart.reference {
        pen.line((x(*value), top), (x(*value), bottom), MARK, 1.5)?;
        pen.text(name, (x(*value), top - 8.0), 11.5, MARK, false, HPos::Center)?;
    }
    Ok(())
}

fn legend<DB: DrawingBackend>(pen: &Pen<'_, DB>, chart: &BarChart) -> Result<(), String> {
    let mut x = MARGIN;
    for series in &chart.series {
        let (r, g, b) = series.color;
        pen.rect((x, 68.0), (x + 12.0, 80.0), RGBColor(r, g, b))?;
        pen.text(&series.name, (x + 18.0, 74.5), 12.0, INK, false, HPos::Left)?;
        x += 18.0 + pen.width(&series.name, 12.0, false)? + 20.0;
    }
    if let Some(name) = &chart.mark_name {
        pen.line((x + 6.0, 66.0), (x + 6.0, 82.0), MARK, 2.0)?;
        pen.text(name, (x + 14.0, 74.5), 12.0, INK, false, HPos::Left)?;
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
        let (r, g, b) = chart.series.get(series).map_or((150, 150, 150), |series| series.color);
        if value > 0.0 {
            pen.rect((x(start), top), (x(start + value), top + BAR), RGBColor(r, g, b))?;
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
        end = end.max(mark);
    }
    // Beside a line across, the values stand in a column behind it.
    let at = x(chart.reference.as_ref().map_or(end, |(value, _)| end.max(*value))) + 8.0;
    // A grid line through a number is hard to read.
    pen.rect((at - 2.0, top), (at + pen.width(&bar.label, 12.0, false)? + 2.0, top + BAR), WHITE)?;
    pen.text(&bar.label, (at, middle + 1.0), 12.0, INK, false, HPos::Left)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_numbers() {
        assert_eq!(tick_step(26.0), 5.0);
        assert_eq!(tick_step(6.0), 1.0);
        assert_eq!(tick_step(1.1), 0.2);
        assert!((tick_step(0.5) - 0.1).abs() < 1e-12);
    }
}
