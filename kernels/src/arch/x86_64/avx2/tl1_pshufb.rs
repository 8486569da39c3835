//! `avx2-tl1-pshufb`, and `-lossy`: a nibble per two weights, looked up for 32 rows at once by `vpshufb`.
//!
//! An entry is at most 2·127 = 254, so an int16 holds the sum of 128 of them (32,512 of 32,767); a lossy one is at most 127.
//! [`super::lookup`] says how they are added up.

use std::arch::x86_64::*;
use std::ops::Range;

use crate::activation::QuantizedActivations;
use crate::isa::{Avx2, Token};
use crate::kernel::{KernelInfo, PackedMatrix, Prepared, TernaryKernel};
use crate::layout::tl1::{self, CODES, GROUP, Step, TILE_K, TILE_ROWS};
use crate::tables::{self, Table};
use crate::trit::TernaryMatrix;

use super::lookup::{self, Sums, load_half, look};

/// With tables of `H` bytes per entry.
pub struct Tl1<const H: usize>(#[allow(dead_code, reason = "the proof of support")] Avx2);

/// Exact.
pub type Tl1Pshufb = Tl1<2>;
/// With tables requantised to int8.
pub type Tl1PshufbLossy = Tl1<1>;

impl<const H: usize> Tl1<H> {
    /// What it is.
    pub const INFO: &'static KernelInfo = &KernelInfo {
        name: if H == 2 { "avx2-tl1-pshufb" } else { "avx2-tl1-pshufb-lossy" },
        summary: if H == 2 { "vpshufb, a lookup per 2 weights" } else { "the same, tables requantised to int8" },
        features: Avx2::FEATURES,
        layout: "tl1",
        bits_per_weight: 2.0,
        row_tile: TILE_ROWS,
        exactness: tables::exactness::<GROUP, H>(),
        source: "bitnet.cpp TL1 (arXiv 2502.11880), rows interleaved",
    };

    /// The kernel, where the CPU has AVX2.
    pub fn new() -> Option<Self> {
        Avx2::detect().map(Self)
    }
}

impl<const H: usize> TernaryKernel for Tl1<H> {
    fn info(&self) -> &'static KernelInfo {
        Self::INFO
    }

    fn pack(&self, w: &TernaryMatrix) -> PackedMatrix {
        tl1::pack(w)
    }

    fn prepare(&self, x: &QuantizedActivations, out: &mut Prepared) {
        tables::fill::<GROUP, H>(&CODES, x, TILE_K, out);
    }

    fn compute(&self, w: &PackedMatrix, x: &Prepared, rows: Range<usize>, acc: &mut [i32]) {
        let groups = w.k.next_multiple_of(TILE_K) / GROUP;
        assert_eq!(x.stride, groups * size_of::<Table<H>>(), "the input was prepared for another k");
        assert_eq!(acc.len(), x.m * rows.len(), "acc does not hold m * rows values");
        // SAFETY: `self` holds an `Avx2`, which only run-time detection hands out.
        unsafe { compute::<H>(w, x, rows, acc) };
        tables::rescale::<H>(x, acc);
    }
}

/// Steps between two widenings: 128 groups.
const BLOCK: usize = 64;
/// Tokens that share the unpacking of nibbles.
const TOKENS: usize = 4;

#[target_feature(enable = "avx2")]
fn compute<const H: usize>(w: &PackedMatrix, x: &Prepared, rows: Range<usize>, acc: &mut [i32]) {
    let (first, n_rows) = (rows.start / TILE_ROWS, rows.len());
    acc.fill(0);
    for job in lookup::jobs(n_rows / TILE_ROWS, w.k.div_ceil(TILE_K), BLOCK, x.m, TOKENS) {
        let steps = &tl1::tile(w, first + job.tile)[job.steps.clone()];
        let tables = |token: usize| &tables::of::<H>(x, token).as_chunks().0[job.steps.clone()];
        let acc = &mut acc[job.token * n_rows + job.tile * TILE_ROWS..];
        if job.n_tokens == TOKENS {
            block::<H, TOKENS>(steps, std::array::from_fn(|t| tables(job.token + t)), acc, n_rows);
        } else {
            block::<H, 1>(steps, [tables(job.token)], acc, n_rows);
        }
    }
}

/// 64 rows x `T` tokens over at most [`BLOCK`] steps. Token `t`'s sums start at `t * stride`.
#[target_feature(enable = "avx2")]
fn block<const H: usize, const T: usize>(
    steps: &[Step],
    tables: [&[[Table<H>; 2]]; T],
    acc: &mut [i32],
    stride: usize,
) {
    let nibble = _mm256_set1_epi8(15);
    for half in 0..2 {
        let mut sums = [Sums::new(); T];
        for (i, step) in steps.iter().enumerate() {
            let codes = load_half(step, half);
            let low = _mm256_and_si256(codes, nibble);
            let high = _mm256_and_si256(_mm256_srli_epi16::<4>(codes), nibble);
            for t in 0..T {
                let [first, second] = &tables[t][i];
                sums[t].add(look(first, low));
                sums[t].add(look(second, high));
            }
        }
        for t in 0..T {
            if let Some(acc) = acc[t * stride + 32 * half..].first_chunk_mut() {
                sums[t].widen::<H>(2 * steps.len(), acc);
            }
        }
    }
}
