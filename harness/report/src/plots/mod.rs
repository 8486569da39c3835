//! Plots, as SVG and PNG from the same drawing code, on a white card so that they read on light and dark pages alike.

mod bars;
pub mod charts;

use std::path::{Path, PathBuf};
use std::sync::Once;

use plotters::prelude::*;

pub use bars::{Bar, BarChart, Group, Series};
pub use charts::{all, limit_shares, memory, speeds};

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

fn draw_error(what: &str) -> impl Fn(String) -> PlotError + use<> {
    let what = what.to_owned();
    move |why| PlotError::Draw { what: what.clone(), why }
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

/// A chart as an SVG document.
///
/// # Errors
/// When drawing fails.
pub fn svg(chart: &BarChart) -> Result<String, PlotError> {
    register_fonts();
    let (width, height) = chart.size();
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, (width, height)).into_drawing_area();
        bars::draw(&root, chart, 1.0).map_err(draw_error("an SVG"))?;
        root.present().map_err(|error| draw_error("an SVG")(error.to_string()))?;
    }
    Ok(text)
}

/// Writes `<name>.svg` and `<name>.png` into a folder.
///
/// # Errors
/// When drawing or writing fails.
pub fn save(chart: &BarChart, folder: &Path, name: &str) -> Result<[PathBuf; 2], PlotError> {
    let svg_path = folder.join(format!("{name}.svg"));
    ternbench_measure::run_dir::write_atomic(&svg_path, svg(chart)?.as_bytes())?;
    let png_path = folder.join(format!("{name}.png"));
    let (width, height) = chart.size();
    let error = draw_error(&png_path.display().to_string());
    {
        let root = BitMapBackend::new(&png_path, (width * PNG_SCALE, height * PNG_SCALE)).into_drawing_area();
        bars::draw(&root, chart, f64::from(PNG_SCALE)).map_err(&error)?;
        root.present().map_err(|why| error(why.to_string()))?;
    }
    Ok([svg_path, png_path])
}
