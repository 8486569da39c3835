//! A heat map: kernels down, shapes across, the best of each column darkest.

use plotters::coord::Shift;
use plotters::prelude::*;

use super::pen::{Anchor, Color, GRID, INK, MARGIN, Pen, SOFT_INK, WIDTH, rgb};

const HEAD: f64 = 84.0;
const COLUMNS_HEAD: f64 = 26.0;
const CELL: f64 = 34.0;
const FOOT: f64 = 24.0;
/// From the slowest to the best, and the words on either half. None of them changes with the page's theme.
const COLD: Color = (222, 235, 245);
const HOT: Color = (16, 84, 133);
const ON_COLD: Color = (22, 32, 42);
const ON_HOT: Color = (250, 252, 254);

/// One cell.
#[derive(Clone, Debug)]
pub struct Cell {
    /// 0 for the coldest colour, 1 for the hottest.
    pub heat: f64,
    /// What stands in it.
    pub text: String,
    /// A second line.
    pub detail: String,
}

/// A heat map.
#[derive(Clone, Debug)]
pub struct HeatMap {
    /// What it shows.
    pub title: String,
    /// Conditions, in a smaller line.
    pub subtitle: String,
    /// Names of the columns.
    pub columns: Vec<String>,
    /// Names of the rows, and a cell per column where there is one.
    pub rows: Vec<(String, Vec<Option<Cell>>)>,
}

impl HeatMap {
    /// Width and height in pixels of the SVG.
    pub fn size(&self) -> (u32, u32) {
        (WIDTH as u32, (HEAD + COLUMNS_HEAD + self.rows.len() as f64 * CELL + FOOT) as u32)
    }
}

fn mix(heat: f64) -> Color {
    let heat = heat.clamp(0.0, 1.0);
    let one = |cold: u8, hot: u8| (f64::from(cold) + heat * (f64::from(hot) - f64::from(cold))).round() as u8;
    (one(COLD.0, HOT.0), one(COLD.1, HOT.1), one(COLD.2, HOT.2))
}

/// Draws a heat map.
pub(super) fn draw<DB: DrawingBackend>(area: &DrawingArea<DB, Shift>, map: &HeatMap, scale: f64) -> Result<(), String> {
    let pen = Pen::new(area, scale)?;
    pen.head(&map.title, &map.subtitle)?;
    let mut labels = 0.0_f64;
    for (name, _) in &map.rows {
        labels = labels.max(pen.width(name, 13.0, false)?);
    }
    let left = MARGIN + labels + 14.0;
    let width = ((WIDTH - MARGIN - left) / map.columns.len().max(1) as f64).min(190.0);
    for (i, name) in map.columns.iter().enumerate() {
        let middle = left + (i as f64 + 0.5) * width;
        pen.text(name, (middle, HEAD + 8.0), 12.5, SOFT_INK, false, Anchor::Center)?;
    }
    for (i, (name, cells)) in map.rows.iter().enumerate() {
        let top = HEAD + COLUMNS_HEAD + i as f64 * CELL;
        pen.text(name, (left - 12.0, top + CELL / 2.0), 13.0, INK, false, Anchor::Right)?;
        for (j, cell) in cells.iter().enumerate() {
            let x = left + j as f64 * width;
            let (from, to) = ((x + 1.0, top + 1.0), (x + width - 1.0, top + CELL - 1.0));
            let Some(cell) = cell else {
                pen.rect(from, to, GRID)?;
                pen.text("–", (x + width / 2.0, top + CELL / 2.0), 12.0, SOFT_INK, false, Anchor::Center)?;
                continue;
            };
            pen.rect(from, to, rgb(mix(cell.heat)))?;
            let ink = rgb(if cell.heat > 0.5 { ON_HOT } else { ON_COLD });
            pen.text(&cell.text, (x + width / 2.0, top + 11.5), 12.5, ink, false, Anchor::Center)?;
            pen.text(&cell.detail, (x + width / 2.0, top + 24.5), 10.5, ink, false, Anchor::Center)?;
        }
    }
    Ok(())
}
