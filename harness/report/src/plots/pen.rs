//! Drawing in pixels by hand, because long labels beside marks are what plotters' own axes do badly; and the colours of every plot.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::Color as _;
use plotters::style::text_anchor::{Pos, VPos};

/// Where a text stands from its point.
pub(super) use plotters::style::text_anchor::HPos as Anchor;

/// Width of every plot, in pixels of the SVG.
pub(super) const WIDTH: f64 = 920.0;
/// Space around a plot.
pub(super) const MARGIN: f64 = 24.0;

/// Words and axes.
pub(super) const INK: RGBColor = RGBColor(31, 41, 51);
/// Words of less weight.
pub(super) const SOFT_INK: RGBColor = RGBColor(98, 110, 123);
/// Lines behind the data.
pub(super) const GRID: RGBColor = RGBColor(226, 231, 236);
/// The card that a plot is drawn on.
pub(super) const CARD: RGBColor = RGBColor(255, 255, 255);
/// Limits and other lines that are not data.
pub(super) const MARK: RGBColor = RGBColor(193, 68, 50);

/// Red, green, blue.
pub type Color = (u8, u8, u8);

/// Ternary models and kernels, from few threads to many.
pub const TERNARY: [Color; 3] = [(126, 182, 214), (27, 108, 163), (12, 61, 97)];
/// Everything else, from few threads to many.
pub const OTHERS: [Color; 3] = [(196, 203, 210), (137, 147, 158), (84, 94, 105)];
/// Series that are told apart by colour alone: told apart by the colour-blind too (after Okabe and Ito, darkened for white paper).
pub const SERIES: [Color; 7] =
    [(27, 108, 163), (212, 109, 24), (0, 138, 100), (158, 78, 140), (176, 132, 0), (84, 94, 105), (66, 153, 196)];
/// Parts of memory and of the bytes of a token.
pub const PARTS: [Color; 4] = [(27, 108, 163), (126, 182, 214), (229, 173, 82), (176, 184, 192)];

/// What each colour becomes on a dark page. Colours that are not here read on both.
const DARK: [(Color, Color); 15] = [
    ((31, 41, 51), (228, 233, 238)),
    ((98, 110, 123), (158, 169, 180)),
    ((226, 231, 236), (48, 56, 65)),
    ((255, 255, 255), (23, 28, 34)),
    ((193, 68, 50), (240, 132, 112)),
    ((126, 182, 214), (55, 116, 156)),
    ((27, 108, 163), (86, 164, 219)),
    ((12, 61, 97), (183, 221, 246)),
    ((196, 203, 210), (84, 95, 106)),
    ((84, 94, 105), (196, 204, 212)),
    ((212, 109, 24), (240, 150, 74)),
    ((0, 138, 100), (52, 190, 150)),
    ((158, 78, 140), (214, 140, 196)),
    ((176, 132, 0), (222, 182, 64)),
    ((176, 184, 192), (112, 122, 132)),
];

fn hex((r, g, b): Color) -> String {
    format!("#{r:02X}{g:02X}{b:02X}")
}

/// Style rules that turn a plot dark. They override the colours in the SVG, so that programs which know no rules show the light one.
pub fn dark_rules(scope: &str) -> String {
    let rule = |(light, dark): &(Color, Color)| {
        let (light, dark) = (hex(*light), hex(*dark));
        format!("{scope}[fill=\"{light}\"]{{fill:{dark}}}{scope}[stroke=\"{light}\"]{{stroke:{dark}}}")
    };
    DARK.iter().map(rule).collect()
}

/// A drawing area with a scale and short names for what is drawn.
pub(super) struct Pen<'a, DB: DrawingBackend> {
    area: &'a DrawingArea<DB, Shift>,
    scale: f64,
}

impl<'a, DB: DrawingBackend> Pen<'a, DB> {
    pub(super) fn new(area: &'a DrawingArea<DB, Shift>, scale: f64) -> Result<Self, String> {
        area.fill(&CARD).map_err(|e| e.to_string())?;
        Ok(Self { area, scale })
    }

    fn at(&self, x: f64, y: f64) -> (i32, i32) {
        ((x * self.scale).round() as i32, (y * self.scale).round() as i32)
    }

    pub(super) fn rect(&self, (x0, y0): (f64, f64), (x1, y1): (f64, f64), color: RGBColor) -> Result<(), String> {
        self.area.draw(&Rectangle::new([self.at(x0, y0), self.at(x1, y1)], color.filled())).map_err(|e| e.to_string())
    }

    pub(super) fn line(&self, from: (f64, f64), to: (f64, f64), color: RGBColor, width: f64) -> Result<(), String> {
        let style = color.stroke_width((width * self.scale).round().max(1.0) as u32);
        self.area
            .draw(&PathElement::new(vec![self.at(from.0, from.1), self.at(to.0, to.1)], style))
            .map_err(|e| e.to_string())
    }

    /// A line of dashes.
    pub(super) fn dashes(&self, from: (f64, f64), to: (f64, f64), color: RGBColor, width: f64) -> Result<(), String> {
        const DASH: f64 = 6.0;
        let (dx, dy) = (to.0 - from.0, to.1 - from.1);
        let length = dx.hypot(dy).max(1e-9);
        let point = |at: f64| (from.0 + dx * at / length, from.1 + dy * at / length);
        let mut at = 0.0;
        while at < length {
            self.line(point(at), point((at + DASH).min(length)), color, width)?;
            at += 1.7 * DASH;
        }
        Ok(())
    }

    /// A round mark, filled or open.
    pub(super) fn mark(&self, (x, y): (f64, f64), radius: f64, color: RGBColor, filled: bool) -> Result<(), String> {
        let size = (radius * self.scale).round() as i32;
        let center = self.at(x, y);
        let draw = |size: i32, color: RGBColor| {
            self.area.draw(&Circle::new(center, size, color.filled())).map_err(|e| e.to_string())
        };
        draw(size, color)?;
        if filled { Ok(()) } else { draw(size - (2.0 * self.scale).round() as i32, CARD) }
    }

    pub(super) fn text(
        &self,
        text: &str,
        (x, y): (f64, f64),
        size: f64,
        color: RGBColor,
        bold: bool,
        anchor: Anchor,
    ) -> Result<(), String> {
        let style = self.font(size, bold).into_text_style(self.area).color(&color).pos(Pos::new(anchor, VPos::Center));
        self.area.draw_text(text, &style, self.at(x, y)).map_err(|e| e.to_string())
    }

    /// A text that reads upwards, centred.
    pub(super) fn upright(&self, text: &str, (x, y): (f64, f64), size: f64, color: RGBColor) -> Result<(), String> {
        let font = self.font(size, false).transform(FontTransform::Rotate270);
        let style = font.into_text_style(self.area).color(&color).pos(Pos::new(Anchor::Center, VPos::Center));
        self.area.draw_text(text, &style, self.at(x, y)).map_err(|e| e.to_string())
    }

    fn font(&self, size: f64, bold: bool) -> FontDesc<'static> {
        let style = if bold { FontStyle::Bold } else { FontStyle::Normal };
        FontDesc::new(FontFamily::SansSerif, size * self.scale, style)
    }

    /// Width of a text, in unscaled pixels.
    pub(super) fn width(&self, text: &str, size: f64, bold: bool) -> Result<f64, String> {
        let (width, _) = self.font(size, bold).box_size(text).map_err(|e| e.to_string())?;
        Ok(f64::from(width) / self.scale)
    }

    /// The title and the line under it.
    pub(super) fn head(&self, title: &str, subtitle: &str) -> Result<(), String> {
        self.text(title, (MARGIN, 28.0), 19.0, INK, true, Anchor::Left)?;
        self.text(subtitle, (MARGIN, 51.0), 12.5, SOFT_INK, false, Anchor::Left)
    }
}

/// A colour for plotters.
pub(super) fn rgb((r, g, b): Color) -> RGBColor {
    RGBColor(r, g, b)
}

/// The distance between ticks: 1, 2 or 5 times a power of ten, for about six of them.
pub(super) fn tick_step(largest: f64) -> f64 {
    let rough = largest / 6.0;
    let power = 10_f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|step| step * power).find(|step| *step >= rough).unwrap_or(10.0 * power)
}

/// A tick's number, with the decimals that its step needs.
pub(super) fn tick_text(value: f64, step: f64) -> String {
    let decimals = (-(step.log10() + 1e-9).floor()).clamp(0.0, 17.0) as usize;
    format!("{value:.decimals$}")
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
        assert_eq!([tick_text(0.4, 0.2), tick_text(15.0, 5.0), tick_text(0.05, 0.01)], ["0.4", "15", "0.05"]);
        // Of records that somebody edited.
        assert_eq!(tick_text(0.0, 0.0).len(), 19);
    }

    #[test]
    fn every_drawn_grey_has_a_dark_twin() {
        let rules = dark_rules("svg ");
        for color in [INK, SOFT_INK, GRID, CARD, MARK] {
            assert!(rules.contains(&format!("svg [fill=\"{}\"]", hex((color.0, color.1, color.2)))), "{color:?}");
        }
    }
}
