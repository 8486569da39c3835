//! Runs a matrix of any kind over a batch of tokens: prepares the input once, splits the rows over the team, applies the
//! scales. The same for every kernel, so a speed difference between two kernels is theirs.

use std::cell::RefCell;
use std::ops::Range;

use crate::activation::QuantizedActivations;
use crate::dense::{DenseKernel, DenseMatrix};
use crate::kernel::{PackedMatrix, Prepared, TernaryKernel};
use crate::ops;
use crate::team::{SharedMut, Team};
use crate::trit::TernaryMatrix;

/// A weight matrix, ready to multiply.
pub enum Weights {
    /// Trits, packed for one kernel; the input is quantised to int8 per token (BitLinear).
    Ternary {
        /// The kernel it is packed for.
        kernel: &'static dyn TernaryKernel,
        /// The packed trits.
        packed: PackedMatrix,
        /// The weight of a trit of +1.
        scale: f32,
    },
    /// Floats or quantised blocks as a file stores them; the input stays f32.
    Dense {
        /// The kernel that reads the type.
        kernel: &'static dyn DenseKernel,
        /// The stored weights.
        matrix: DenseMatrix,
    },
}

/// `y = x · Wᵀ + bias`.
pub struct Linear {
    /// The matrix.
    pub weights: Weights,
    /// One per row.
    pub bias: Option<Vec<f32>>,
}

impl Linear {
    /// Packs `w` for `kernel`.
    pub fn ternary(kernel: &'static dyn TernaryKernel, w: &TernaryMatrix) -> Self {
        let weights = Weights::Ternary { kernel, packed: kernel.pack(w), scale: w.scale() };
        Self { weights, bias: None }
    }

    /// Wraps stored weights; nothing is copied.
    pub fn dense(matrix: DenseMatrix) -> Self {
        let weights = Weights::Dense { kernel: crate::dense::kernel_for(matrix.ty()), matrix };
        Self { weights, bias: None }
    }

    /// Output rows.
    pub fn n(&self) -> usize {
        match &self.weights {
            Weights::Ternary { packed, .. } => packed.n,
            Weights::Dense { matrix, .. } => matrix.n(),
        }
    }

    /// Inputs.
    pub fn k(&self) -> usize {
        match &self.weights {
            Weights::Ternary { packed, .. } => packed.k,
            Weights::Dense { matrix, .. } => matrix.k(),
        }
    }

    /// Bytes read to multiply by this matrix once.
    pub fn weight_bytes(&self) -> usize {
        match &self.weights {
            Weights::Ternary { packed, .. } => packed.data.len(),
            Weights::Dense { matrix, .. } => matrix.data().len(),
        }
    }

    /// Row tiles worth giving to one call of the kernel.
    fn tiles_per_call(&self) -> usize {
        match &self.weights {
            Weights::Ternary { kernel, .. } => kernel.rows_per_call().div_ceil(self.row_tile()),
            Weights::Dense { .. } => 1,
        }
    }

    fn row_tile(&self) -> usize {
        match &self.weights {
            Weights::Ternary { kernel, .. } => kernel.info().row_tile,
            // A multiple of every dense kernel's register tile, and small enough to share a 640-row matrix evenly.
            Weights::Dense { .. } => 16,
        }
    }
}

/// Buffers for prepared inputs, reused from call to call.
#[derive(Default)]
pub struct Scratch {
    quantized: QuantizedActivations,
    prepared: Prepared,
}

impl Scratch {
    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.quantized.values.capacity() + self.quantized.scales.capacity() * 4 + self.prepared.bytes.len()
    }
}

/// Multiplies `x` (`m x k`) by every matrix of `group`, which share the input, in one parallel region; each output is `m x n`.
///
/// All ternary matrices of a group are packed for the same kernel.
pub fn multiply(team: &Team, scratch: &mut Scratch, x: &[f32], m: usize, group: &mut [(&Linear, &mut [f32])]) {
    let Some((first, _)) = group.first() else {
        return;
    };
    let k = first.k();
    assert_eq!(x.len(), m * k, "the input does not hold m * k values");
    let mut ternary: Option<&'static dyn TernaryKernel> = None;
    let mut outputs = Vec::with_capacity(group.len());
    let (mut n_tiles, mut per_call) = (0, 1);
    for (linear, y) in group.iter_mut() {
        assert_eq!(linear.k(), k, "the matrices of a group share one input");
        if let Weights::Ternary { kernel, .. } = linear.weights {
            assert!(ternary.is_none_or(|other| other.info().name == kernel.info().name), "one kernel per group");
            ternary = Some(kernel);
        }
        assert_eq!(y.len(), m * linear.n(), "an output does not hold m * n values");
        let first_tile = n_tiles;
        n_tiles += linear.n().div_ceil(linear.row_tile());
        per_call = per_call.max(linear.tiles_per_call());
        outputs.push((first_tile..n_tiles, *linear, SharedMut::new(y)));
    }
    if let Some(kernel) = ternary {
        ops::quantize(team, x, m, k, &mut scratch.quantized);
        kernel.prepare(&scratch.quantized, &mut scratch.prepared);
    }
    let (prepared, scales) = (&scratch.prepared, &scratch.quantized.scales);
    // About 8 ranges a worker: enough to even out a core that is disturbed, few enough to stream. Fewer where the kernel wants more
    // rows per call, but one for every worker.
    let grain = n_tiles.div_ceil(team.n_threads() * 8).max(per_call.min(n_tiles.div_ceil(team.n_threads())));
    team.split(n_tiles, grain, |tiles| {
        for (range, linear, output) in &outputs {
            let tiles = tiles.start.max(range.start)..tiles.end.min(range.end);
            if !tiles.is_empty() {
                rows_of(linear, x, m, prepared, scales, tiles.start - range.start..tiles.end - range.start, output);
            }
        }
    });
}

thread_local! {
    static ACC: RefCell<(Vec<i32>, Vec<f32>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// Computes the row tiles `tiles` of one matrix, a few at a time so that the sums stay in the L2 cache (or as many as the kernel
/// wants).
fn rows_of(
    linear: &Linear,
    x: &[f32],
    m: usize,
    prepared: &Prepared,
    scales: &[f32],
    tiles: Range<usize>,
    output: &SharedMut<'_, f32>,
) {
    const ACC_VALUES: usize = 32 * 1024;
    let tile = linear.row_tile();
    let step = (ACC_VALUES / (tile * m).max(1)).max(linear.tiles_per_call());
    ACC.with_borrow_mut(|(acc, sums)| {
        let mut start = tiles.start;
        while start < tiles.end {
            let end = (start + step).min(tiles.end);
            let padded = start * tile..end * tile;
            let rows = padded.start..padded.end.min(linear.n());
            let at = |token: usize| token * linear.n() + rows.start..token * linear.n() + rows.end;
            match &linear.weights {
                Weights::Ternary { kernel, packed, scale } => {
                    acc.resize(m * padded.len(), 0);
                    kernel.compute(packed, prepared, padded.clone(), acc);
                    for (token, acc) in acc.chunks_exact(padded.len()).enumerate() {
                        // SAFETY: `Team::split` gives every tile to one worker, and tiles are disjoint row ranges.
                        let y = unsafe { output.slice(at(token)) };
                        for (y, &acc) in y.iter_mut().zip(acc) {
                            *y = acc as f32 / scales[token] * scale;
                        }
                    }
                }
                Weights::Dense { kernel, matrix } => {
                    sums.resize(m * rows.len(), 0.0);
                    kernel.compute(matrix, x, m, rows.clone(), sums);
                    for (token, sums) in sums.chunks_exact(rows.len()).enumerate() {
                        // SAFETY: as above.
                        unsafe { output.slice(at(token)) }.copy_from_slice(sums);
                    }
                }
            }
            if let Some(bias) = &linear.bias {
                for token in 0..m {
                    // SAFETY: as above; the slices of the match are gone.
                    let y = unsafe { output.slice(at(token)) };
                    y.iter_mut().zip(&bias[rows.clone()]).for_each(|(y, b)| *y += b);
                }
            }
            start = end;
        }
    });
}
