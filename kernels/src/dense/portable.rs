//! Any type on any CPU: one row at a time is turned into f32 and multiplied with every token.

use std::cell::RefCell;
use std::ops::Range;

use super::{Activations, DenseInfo, DenseKernel, DenseMatrix, DenseType, LANES, sum_lanes};
use crate::bytes::AlignedBytes;
use crate::team::Team;

/// The portable kernel of the type numbered `TYPE`.
pub struct Portable<const TYPE: usize>;

macro_rules! types {
    ($($ty:ident $index:literal $name:literal;)*) => {
        $(pub const $ty: usize = $index;)*

        const INFOS: &[DenseInfo] = &[$(
            DenseInfo { name: $name, features: &[], ty: DenseType::$ty, activations: Activations::F32 },
        )*];
    };
}

types! {
    F32 0 "scalar-f32-dot";
    F16 1 "scalar-f16-dot";
    BF16 2 "scalar-bf16-dot";
    Q8_0 3 "scalar-q8_0-dot";
    Q4_0 4 "scalar-q4_0-dot";
    Q4_1 5 "scalar-q4_1-dot";
}

impl<const TYPE: usize> Portable<TYPE> {
    pub const INFO: &'static DenseInfo = &INFOS[TYPE];

    pub fn new() -> Option<Self> {
        Some(Self)
    }
}

thread_local! {
    /// One row as f32.
    static ROW: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

impl<const TYPE: usize> DenseKernel for Portable<TYPE> {
    fn info(&self) -> &'static DenseInfo {
        Self::INFO
    }

    fn prepare(&self, _: &Team, _: &[f32], _: usize, _: usize, _: &mut AlignedBytes) {}

    fn compute(&self, w: &DenseMatrix, x: &[f32], _: &[u8], m: usize, rows: Range<usize>, y: &mut [f32]) {
        let (k, n_rows) = (w.k(), rows.len());
        ROW.with_borrow_mut(|row| {
            row.resize(k, 0.0);
            for (r, n) in rows.enumerate() {
                w.dequantize_row(n, row);
                for token in 0..m {
                    y[token * n_rows + r] = dot(row, &x[token * k..][..k]);
                }
            }
        });
    }
}

fn dot(w: &[f32], x: &[f32]) -> f32 {
    // Fused where every CPU has the instruction; elsewhere `mul_add` would be a slow library call.
    let madd = |w: f32, x: f32, sum: f32| {
        if cfg!(target_arch = "aarch64") { w.mul_add(x, sum) } else { w * x + sum }
    };
    let (w_chunks, w_rest) = w.as_chunks::<LANES>();
    let (x_chunks, x_rest) = x.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for (w, x) in w_chunks.iter().zip(x_chunks) {
        for i in 0..LANES {
            lanes[i] = madd(w[i], x[i], lanes[i]);
        }
    }
    for (lane, (w, x)) in lanes.iter_mut().zip(w_rest.iter().zip(x_rest)) {
        *lane = madd(*w, *x, *lane);
    }
    sum_lanes(lanes)
}
