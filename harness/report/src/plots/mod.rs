//! Plots, as SVG and PNG from the same drawing code. The PNG stands on a white card; the SVG follows the page it is on, light or dark.

mod bars;
pub mod charts;
mod heat;
mod pen;
mod xy;

use std::path::Path;
use std::sync::Once;

use plotters::coord::Shift;
use plotters::prelude::*;

pub use bars::{Bar, BarChart, Group, Series};
pub use charts::all;
pub use heat::{Cell, HeatMap};
pub use pen::dark_rules;
pub use xy::{Axis, Point, Style, XyChart, XySeries};

/// How many pixels of a PNG stand for one of the SVG.
const PNG_SCALE: u32 = 2;

/// Why a plot could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PlotError {
    /// The drawing library said no.
    #[error("drawing {what}: {why}")]
    Draw {
        /// The file or the format.
        what: String,
        /// What it said.
        why: String,
    },
    /// The file could not be written.
    #[error(transparent)]
    Write(#[from] ternbench_measure::run_dir::RunDirError),
}

/// A drawing.
#[derive(Clone, Debug)]
pub enum Chart {
    /// Horizontal bars.
    Bars(BarChart),
    /// Points and lines.
    Xy(XyChart),
    /// Kernels and shapes.
    Heat(HeatMap),
}

/// A chart with the name of its files.
#[derive(Clone, Debug)]
pub struct Plot {
    /// Name without extension.
    pub name: String,
    /// What is drawn.
    pub chart: Chart,
}

/// Registers the embedded font under the name that SVG viewers know too. Without it nothing could measure text.
fn register_fonts() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // These fail only on bytes that are no font; then drawing fails, and says so.
        let _ = plotters::style::register_font("sans-serif", FontStyle::Normal, notosans::REGULAR_TTF);
        let _ = plotters::style::register_font("sans-serif", FontStyle::Bold, notosans::BOLD_TTF);
    });
}

impl Plot {
    /// What it shows.
    pub fn title(&self) -> &str {
        match &self.chart {
            Chart::Bars(chart) => &chart.title,
            Chart::Xy(chart) => &chart.title,
            Chart::Heat(chart) => &chart.title,
        }
    }

    fn size(&self) -> (u32, u32) {
        match &self.chart {
            Chart::Bars(chart) => chart.size(),
            Chart::Xy(chart) => chart.size(),
            Chart::Heat(chart) => chart.size(),
        }
    }

    fn draw<DB: DrawingBackend>(&self, root: &DrawingArea<DB, Shift>, scale: u32) -> Result<(), PlotError> {
        let scale = f64::from(scale);
        let drawn = match &self.chart {
            Chart::Bars(chart) => bars::draw(root, chart, scale),
            Chart::Xy(chart) => xy::draw(root, chart, scale),
            Chart::Heat(chart) => heat::draw(root, chart, scale),
        };
        let error = |why| PlotError::Draw { what: self.name.clone(), why };
        drawn.map_err(error)?;
        root.present().map_err(|why| error(why.to_string()))
    }

    /// As an SVG element in its light colours, to stand in a page that brings [`dark_rules`] of its own.
    ///
    /// # Errors
    /// When drawing fails.
    pub fn svg(&self) -> Result<String, PlotError> {
        register_fonts();
        let mut text = String::new();
        self.draw(&SVGBackend::with_string(&mut text, self.size()).into_drawing_area(), 1)?;
        Ok(text)
    }

    /// Writes `<name>.svg`, which follows its viewer's theme, into a folder.
    ///
    /// # Errors
    /// When drawing or writing fails.
    pub fn save_svg(&self, folder: &Path) -> Result<(), PlotError> {
        let style = format!("<style>@media(prefers-color-scheme:dark){{{}}}</style>", dark_rules(""));
        let svg = self.svg()?.replacen('\n', &format!("\n{style}\n"), 1);
        let path = folder.join(format!("{}.svg", self.name));
        Ok(ternbench_measure::run_dir::write_atomic(&path, svg.as_bytes())?)
    }

    /// Writes `<name>.png` into a folder.
    ///
    /// # Errors
    /// When drawing or writing fails.
    pub fn save_png(&self, folder: &Path) -> Result<(), PlotError> {
        let (width, height) = self.size();
        let path = folder.join(format!("{}.png", self.name));
        self.draw(&BitMapBackend::new(&path, (width * PNG_SCALE, height * PNG_SCALE)).into_drawing_area(), PNG_SCALE)
    }
}
