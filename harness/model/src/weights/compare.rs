//! Whether two files hold the same model, tensor by tensor: trits exactly, floats within a tolerance.

use ternbench_kernels::DenseMatrix;

use super::{LinearName, LinearWeights, VectorName, WeightSource, convert, inventory};
use crate::config::ModelConfig;
use crate::error::LoadError;

/// How one tensor of two models compares.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Comparison {
    /// What it is: `layer 3 Down`, `embedding`.
    pub tensor: String,
    /// Trits that differ; `None` where one of the two is not ternary.
    pub trits_differ: Option<u64>,
    /// Largest difference of a value, as a share of the largest value. Of a ternary pair: the difference of the scales.
    pub error: f64,
}

impl Comparison {
    /// Whether they agree: all trits the same, floats within `tolerance`.
    pub fn agrees(&self, tolerance: f64) -> bool {
        self.trits_differ.unwrap_or(0) == 0 && self.error <= tolerance
    }
}

/// Differences of shape and family; how heads rotate is a matter of the file, not of the model.
pub fn shapes(a: &ModelConfig, b: &ModelConfig) -> Vec<String> {
    let fields = |config: &ModelConfig| {
        let mut config = config.clone();
        config.rope_layout = crate::config::RopeLayout::HalfSplit;
        serde_json::to_value(config).unwrap_or_default()
    };
    let (a, b) = (fields(a), fields(b));
    let mut differences = Vec::new();
    for (key, value) in a.as_object().into_iter().flatten() {
        if *value != b[key] {
            differences.push(format!("{key}: {value} and {}", b[key]));
        }
    }
    differences
}

/// Compares every tensor of two models of one shape. `progress` is called with the number of layers done.
pub fn tensors(
    a: &dyn WeightSource,
    b: &dyn WeightSource,
    progress: &dyn Fn(usize),
) -> Result<Vec<Comparison>, LoadError> {
    let config = a.config();
    let mut all = vec![dense("embedding".to_owned(), &a.embedding()?, &b.embedding()?, |row| row)];
    if let (Some(a), Some(b)) = (a.head()?, b.head()?) {
        all.push(dense("head".to_owned(), &a, &b, |row| row));
    }
    for (layer, which) in inventory::linears(config) {
        all.push(linear(a, b, layer, which)?);
        if which == LinearName::Down {
            progress(layer + 1);
            a.release();
            b.release();
        }
    }
    for name in inventory::vectors(config) {
        let (x, y) = (a.vector(name)?, convert::vector(b, name, config.rope_layout)?);
        let mut error = Error::default();
        x.iter().zip(&y).for_each(|(&x, &y)| error.add(x, y));
        all.push(Comparison { tensor: vector_title(name), trits_differ: None, error: error.share() });
    }
    Ok(all)
}

fn vector_title(name: VectorName) -> String {
    match name {
        VectorName::OutputNorm => "output norm".to_owned(),
        VectorName::Bias(layer, which) => format!("layer {layer} {which:?} bias"),
        other => {
            let kind = format!("{other:?}");
            let kind = kind.split('(').next().unwrap_or_default();
            format!("layer {} {kind}", other.layer().unwrap_or_default())
        }
    }
}

fn linear(
    a: &dyn WeightSource,
    b: &dyn WeightSource,
    layer: usize,
    which: LinearName,
) -> Result<Comparison, LoadError> {
    let tensor = format!("layer {layer} {which:?}");
    let order = convert::row_order(b.config(), which, a.config().rope_layout);
    Ok(match (a.linear(layer, which)?, b.linear(layer, which)?) {
        (LinearWeights::Ternary(a), LinearWeights::Ternary(b)) => {
            let differ = |row: usize| a.row(row).iter().zip(b.row(order(row))).filter(|(a, b)| a != b).count() as u64;
            let mut error = Error::default();
            error.add(a.scale(), b.scale());
            Comparison { tensor, trits_differ: Some((0..a.n()).map(differ).sum()), error: error.share() }
        }
        (a, b) => {
            let (n, k) = match &a {
                LinearWeights::Dense(matrix) => (matrix.n(), matrix.k()),
                LinearWeights::Ternary(matrix) => (matrix.n(), matrix.k()),
            };
            let mut error = Error::default();
            let (mut x, mut y) = (vec![0.0; k], vec![0.0; k]);
            for row in 0..n {
                row_of(&a, row, &mut x);
                row_of(&b, order(row), &mut y);
                x.iter().zip(&y).for_each(|(&x, &y)| error.add(x, y));
            }
            Comparison { tensor, trits_differ: None, error: error.share() }
        }
    })
}

fn row_of(weights: &LinearWeights, row: usize, out: &mut [f32]) {
    match weights {
        LinearWeights::Dense(matrix) => matrix.dequantize_row(row, out),
        LinearWeights::Ternary(matrix) => {
            out.iter_mut().zip(matrix.row(row)).for_each(|(out, &trit)| *out = f32::from(trit) * matrix.scale());
        }
    }
}

fn dense(tensor: String, a: &DenseMatrix, b: &DenseMatrix, order: impl Fn(usize) -> usize) -> Comparison {
    let (mut x, mut y) = (vec![0.0; a.k()], vec![0.0; a.k()]);
    let mut error = Error::default();
    for row in 0..a.n() {
        a.dequantize_row(row, &mut x);
        b.dequantize_row(order(row), &mut y);
        x.iter().zip(&y).for_each(|(&x, &y)| error.add(x, y));
    }
    Comparison { tensor, trits_differ: None, error: error.share() }
}

/// The largest difference beside the largest value.
#[derive(Default)]
pub struct Error {
    difference: f32,
    value: f32,
}

impl Error {
    /// Takes in a pair. What is no number differs from everything.
    pub fn add(&mut self, a: f32, b: f32) {
        let difference = (a - b).abs();
        self.difference = if difference.is_nan() { f32::INFINITY } else { self.difference.max(difference) };
        self.value = self.value.max(a.abs()).max(b.abs());
    }

    /// The one as a share of the other.
    pub fn share(&self) -> f64 {
        if self.difference == 0.0 { 0.0 } else { f64::from(self.difference) / f64::from(self.value) }
    }
}
