//! Points and lines over two axes, each linear (from zero, unless it says otherwise) or logarithmic; intervals as whiskers; labels put where they hide least.

use plotters::coord::Shift;
use plotters::prelude::*;

use super::pen::{Anchor, Color, GRID, INK, MARGIN, MARK, Pen, SOFT_INK, WIDTH, rgb, tick_step, tick_text};

const PLOT_HEIGHT: f64 = 380.0;
const FOOT: f64 = 62.0;
const LEGEND_TOP: f64 = 74.0;
const LEGEND_LINE: f64 = 20.0;
const RADIUS: f64 = 4.5;
const LABEL: f64 = 11.5;

/// An axis.
#[derive(Clone, Debug, Default)]
pub struct Axis {
    /// What it measures, with its unit.
    pub label: String,
    /// Logarithmic, or linear from zero.
    pub log: bool,
    /// Where the ticks are; round numbers where empty.
    pub ticks: Vec<f64>,
    /// A linear axis that holds the values alone, without zero.
    pub zoom: bool,
}

/// One point.
#[derive(Clone, Debug, Default)]
pub struct Point {
    /// Across.
    pub x: f64,
    /// Up.
    pub y: f64,
    /// Whisker.
    pub interval: Option<(f64, f64)>,
    /// Name beside it.
    pub label: String,
}

/// How points are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Filled marks.
    Filled,
    /// Open marks: published, not measured.
    Open,
    /// Filled marks joined by a line.
    Line,
    /// A line of dashes without marks: a limit or an ideal.
    Dashes,
}

/// Points of one colour.
#[derive(Clone, Debug)]
pub struct XySeries {
    /// Name in the legend; none where empty.
    pub name: String,
    /// Its colour.
    pub color: Color,
    /// How it is drawn.
    pub style: Style,
    /// The points.
    pub points: Vec<Point>,
}

/// A chart of points and lines.
#[derive(Clone, Debug)]
pub struct XyChart {
    /// What it shows.
    pub title: String,
    /// Conditions, in a smaller line.
    pub subtitle: String,
    /// Across.
    pub x: Axis,
    /// Up.
    pub y: Axis,
    /// What is drawn, later ones over earlier ones.
    pub series: Vec<XySeries>,
}

impl XyChart {
    /// Width and height in pixels of the SVG.
    pub fn size(&self) -> (u32, u32) {
        (WIDTH as u32, (self.top() + PLOT_HEIGHT + FOOT) as u32)
    }

    /// Lines of the legend: widths are guessed here, generously, because the size must be known before anything is drawn.
    fn legend_lines(&self) -> Vec<Vec<&XySeries>> {
        let mut lines: Vec<Vec<&XySeries>> = Vec::new();
        let mut room = 0.0;
        for series in self.series.iter().filter(|series| !series.name.is_empty()) {
            let width = 46.0 + 6.6 * series.name.chars().count() as f64;
            if width > room {
                lines.push(Vec::new());
                room = WIDTH - 2.0 * MARGIN;
            }
            room -= width;
            lines.last_mut().into_iter().for_each(|line| line.push(series));
        }
        lines
    }

    fn top(&self) -> f64 {
        LEGEND_TOP + self.legend_lines().len() as f64 * LEGEND_LINE + 14.0
    }
}

/// A scale: values to 0..1.
struct Scale {
    low: f64,
    high: f64,
    log: bool,
    ticks: Vec<(f64, String)>,
}

impl Scale {
    /// A scale that holds all values, with ticks.
    fn new(axis: &Axis, values: impl Iterator<Item = f64>) -> Self {
        let values: Vec<f64> = values.filter(|x| x.is_finite() && (!axis.log || *x > 0.0)).collect();
        let largest = values.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        let smallest = values.iter().copied().fold(largest, f64::min);
        if axis.log { Self::logarithmic(smallest, largest) } else { Self::linear(axis, smallest, largest) }
    }

    fn linear(axis: &Axis, smallest: f64, largest: f64) -> Self {
        if !axis.ticks.is_empty() {
            let ticks = axis.ticks.iter().map(|&tick| (tick, tick_text(tick, 1.0))).collect();
            return Self { low: 0.0, high: largest * 1.1, log: false, ticks };
        }
        let span = if axis.zoom && largest > smallest { largest - smallest } else { largest };
        let step = tick_step(span);
        let first = if axis.zoom { (smallest / step * 0.999).floor() as u32 } else { 0 };
        let last = ((largest / step * 1.001 - 1e-9).ceil() as u32).max(first.saturating_add(1));
        let ticks = (first..=last).map(|i| f64::from(i) * step).map(|tick| (tick, tick_text(tick, step))).collect();
        Self { low: f64::from(first) * step, high: f64::from(last) * step, log: false, ticks }
    }

    /// Ticks at 1, 2 and 5 times powers of ten, or at powers alone where that would be many.
    fn logarithmic(smallest: f64, largest: f64) -> Self {
        let all: &[f64] = if largest / smallest > 200.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let powers = (smallest.log10().floor() as i32 - 1)..=(largest.log10().ceil() as i32 + 1);
        let candidates: Vec<f64> = powers.flat_map(|p| all.iter().map(move |x| x * 10_f64.powi(p))).collect();
        let low = candidates.iter().copied().rfind(|x| *x <= smallest / 1.15).unwrap_or(smallest);
        let high = candidates.iter().copied().find(|x| *x >= largest * 1.15).unwrap_or(largest);
        let ticks = candidates.into_iter().filter(|x| (low..=high).contains(x));
        Self { low, high, log: true, ticks: ticks.map(|x| (x, tick_text(x, x))).collect() }
    }

    fn place(&self, value: f64) -> f64 {
        let place = match self.log {
            true => (value.max(f64::MIN_POSITIVE) / self.low).ln() / (self.high / self.low).ln(),
            false => (value - self.low) / (self.high - self.low),
        };
        place.clamp(-0.02, 1.02)
    }
}

/// A rectangle that labels should not cover: left, top, right, bottom.
type Area = (f64, f64, f64, f64);

fn overlap(a: Area, b: Area) -> f64 {
    ((a.2.min(b.2) - a.0.max(b.0)).max(0.0)) * ((a.3.min(b.3) - a.1.max(b.1)).max(0.0))
}

/// Draws a chart.
pub(super) fn draw<DB: DrawingBackend>(
    area: &DrawingArea<DB, Shift>,
    chart: &XyChart,
    scale: f64,
) -> Result<(), String> {
    let pen = Pen::new(area, scale)?;
    pen.head(&chart.title, &chart.subtitle)?;
    let points = || chart.series.iter().flat_map(|series| &series.points);
    let xs = Scale::new(&chart.x, points().map(|point| point.x));
    let ends = |point: &Point| point.interval.map_or([point.y; 2], |(low, high)| [low, high]);
    let ys = Scale::new(&chart.y, points().flat_map(|point| [[point.y; 2], ends(point)].concat()));
    let mut left = MARGIN + 34.0;
    for (_, text) in &ys.ticks {
        left = left.max(MARGIN + 34.0 + pen.width(text, LABEL, false)?);
    }
    let (right, top, bottom) = (WIDTH - MARGIN - 12.0, chart.top(), chart.top() + PLOT_HEIGHT);
    let x = |value: f64| left + xs.place(value) * (right - left);
    let y = |value: f64| bottom - ys.place(value) * (bottom - top);

    legend(&pen, chart)?;
    for (value, text) in &xs.ticks {
        pen.line((x(*value), top), (x(*value), bottom), GRID, 1.0)?;
        pen.text(text, (x(*value), bottom + 14.0), LABEL, SOFT_INK, false, Anchor::Center)?;
    }
    for (value, text) in &ys.ticks {
        pen.line((left, y(*value)), (right, y(*value)), GRID, 1.0)?;
        pen.text(text, (left - 8.0, y(*value)), LABEL, SOFT_INK, false, Anchor::Right)?;
    }
    pen.line((left, bottom), (right, bottom), SOFT_INK, 1.0)?;
    pen.line((left, top), (left, bottom), SOFT_INK, 1.0)?;
    pen.text(&chart.x.label, ((left + right) / 2.0, bottom + 38.0), 12.5, INK, false, Anchor::Center)?;
    pen.upright(&chart.y.label, (MARGIN, (top + bottom) / 2.0), 12.5, INK)?;

    for series in &chart.series {
        let color = rgb(series.color);
        let places: Vec<(f64, f64)> = series.points.iter().map(|point| (x(point.x), y(point.y))).collect();
        for pair in places.windows(2) {
            match series.style {
                Style::Line => pen.line(pair[0], pair[1], color, 2.0)?,
                Style::Dashes => pen.dashes(pair[0], pair[1], color, 1.5)?,
                Style::Filled | Style::Open => {}
            }
        }
        for (point, &at) in series.points.iter().zip(&places) {
            if let Some((low, high)) = point.interval {
                pen.line((at.0, y(low)), (at.0, y(high)), color, 1.5)?;
                for end in [y(low), y(high)] {
                    pen.line((at.0 - 4.0, end), (at.0 + 4.0, end), color, 1.5)?;
                }
            }
            if series.style != Style::Dashes {
                pen.mark(at, RADIUS, color, series.style != Style::Open)?;
            }
        }
    }
    labels(&pen, chart, (left, top, right, bottom), &x, &y)
}

/// Names beside points: of eight places around each the one that covers least of what is there and of other names.
fn labels<DB: DrawingBackend>(
    pen: &Pen<'_, DB>,
    chart: &XyChart,
    frame: Area,
    x: &dyn Fn(f64) -> f64,
    y: &dyn Fn(f64) -> f64,
) -> Result<(), String> {
    let mut taken: Vec<Area> = Vec::new();
    for series in &chart.series {
        for point in series.points.iter().filter(|_| series.style != Style::Dashes) {
            let (px, py) = (x(point.x), y(point.y));
            let (low, high) = point.interval.map_or((py, py), |(low, high)| (y(low), y(high)));
            taken.push((px - 6.0, py.min(high) - 6.0, px + 6.0, py.max(low) + 6.0));
        }
        for pair in series.points.windows(2).filter(|_| matches!(series.style, Style::Line | Style::Dashes)) {
            // A line is covered piece by piece.
            for i in 0..=60 {
                let t = f64::from(i) / 60.0;
                let between = |a: f64, b: f64| a + t * (b - a);
                let at = (between(x(pair[0].x), x(pair[1].x)), between(y(pair[0].y), y(pair[1].y)));
                taken.push((at.0 - 3.0, at.1 - 3.0, at.0 + 3.0, at.1 + 3.0));
            }
        }
    }
    for series in &chart.series {
        let color = if series.style == Style::Dashes { MARK } else { INK };
        for point in series.points.iter().filter(|point| !point.label.is_empty()) {
            let (width, at) = (pen.width(&point.label, LABEL, false)? + 2.0, (x(point.x), y(point.y)));
            let places = [(9.0, 0.0), (-9.0 - width, 0.0), (-width / 2.0, -14.0), (-width / 2.0, 14.0)];
            let corners = [(7.0, -12.0), (7.0, 12.0), (-7.0 - width, -12.0), (-7.0 - width, 12.0)];
            let far = [(14.0, -24.0), (14.0, 24.0), (-14.0 - width, -24.0), (-14.0 - width, 24.0)];
            let area =
                |(dx, dy): (f64, f64)| -> Area { (at.0 + dx, at.1 + dy - 7.0, at.0 + dx + width, at.1 + dy + 7.0) };
            let outside = |a: Area| {
                ((frame.0 - a.0).max(0.0)
                    + (a.2 - frame.2).max(0.0)
                    + (frame.1 - a.1).max(0.0)
                    + (a.3 - frame.3).max(0.0))
                    * 100.0
            };
            let cost = |a: Area| outside(a) + taken.iter().map(|other| overlap(a, *other)).sum::<f64>();
            let best = places.iter().chain(&corners).chain(&far).map(|&offset| area(offset));
            let Some(best) = best.min_by(|a, b| cost(*a).total_cmp(&cost(*b))) else { continue };
            pen.text(&point.label, (best.0, (best.1 + best.3) / 2.0), LABEL, color, false, Anchor::Left)?;
            taken.push(best);
        }
    }
    Ok(())
}

fn legend<DB: DrawingBackend>(pen: &Pen<'_, DB>, chart: &XyChart) -> Result<(), String> {
    for (line, members) in chart.legend_lines().into_iter().enumerate() {
        let (mut x, y) = (MARGIN, LEGEND_TOP + line as f64 * LEGEND_LINE);
        for series in members {
            let color = rgb(series.color);
            match series.style {
                Style::Filled | Style::Open => pen.mark((x + 9.0, y), RADIUS, color, series.style == Style::Filled)?,
                Style::Dashes => pen.dashes((x, y), (x + 18.0, y), color, 1.5)?,
                Style::Line => {
                    pen.line((x, y), (x + 18.0, y), color, 2.0)?;
                    pen.mark((x + 9.0, y), RADIUS - 1.0, color, true)?;
                }
            }
            pen.text(&series.name, (x + 24.0, y + 1.0), 12.0, INK, false, Anchor::Left)?;
            x += 24.0 + pen.width(&series.name, 12.0, false)? + 22.0;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_hold_every_value_and_have_round_ticks() {
        let axis = |log| Axis { log, ..Axis::default() };
        for values in [[0.3, 7.0, 26.0], [1.0, 1.01, 1.02], [0.002, 30.0, 4000.0]] {
            for log in [false, true] {
                let scale = Scale::new(&axis(log), values.into_iter());
                assert!(values.iter().all(|&x| (0.0..=1.0).contains(&scale.place(x))), "{values:?} {log}");
                assert!(scale.ticks.len() >= 2 && scale.ticks.len() <= 12, "{:?}", scale.ticks);
            }
        }
        let scale = Scale::new(&axis(true), [0.5, 80.0].into_iter());
        let texts: Vec<&str> = scale.ticks.iter().map(|(_, text)| text.as_str()).collect();
        assert_eq!(texts, ["0.2", "0.5", "1", "2", "5", "10", "20", "50", "100"]);
    }

    #[test]
    fn a_zoomed_axis_leaves_out_zero() {
        let zoom = Axis { zoom: true, ..Axis::default() };
        let scale = Scale::new(&zoom, [61.0, 79.0].into_iter());
        assert!(scale.low > 50.0 && scale.high < 90.0 && scale.ticks.len() >= 3, "{:?}", scale.ticks);
    }

    #[test]
    fn areas_overlap_by_what_they_share() {
        assert_eq!(overlap((0.0, 0.0, 2.0, 2.0), (1.0, 1.0, 3.0, 3.0)), 1.0);
        assert_eq!(overlap((0.0, 0.0, 1.0, 1.0), (2.0, 0.0, 3.0, 1.0)), 0.0);
    }
}
