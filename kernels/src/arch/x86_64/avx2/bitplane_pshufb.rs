//! `avx2-bitplane-pshufb`: a nibble per four bits of a plane, looked up for 32 rows at once by `vpshufb`; the plane of
//! +1 is added, the plane of -1 subtracted.
//!
//! A column counts in one plane at most, so the two entries of a step differ by at most 4·127 = 508, and an int16 holds
//! the sum of 64 such differences (32,512 of 32,767). [`super::lookup`] says how they are added up.

use std::arch::x86_64::*;
use std::ops::Range;

use crate::arch::lookup::{Bitplane, Lookup, Method};
use crate::isa::Avx2;
use crate::kernel::{PackedMatrix, Prepared};
use crate::layout::bitplane::{self, Step, TILE_K, TILE_ROWS};
use crate::tables::{self, Table};

use super::lookup::{self, Sums, load_half, look};

/// The kernel.
pub type BitplanePshufb = Lookup<Pshufb, 2>;

/// The loops.
pub struct Pshufb;

/// Steps between two widenings.
const BLOCK: usize = 64;
/// Tokens that share the unpacking of nibbles.
const TOKENS: usize = 4;

impl Method for Pshufb {
    type Proof = Avx2;
    type Layout = Bitplane;
    const NAMES: [&'static str; 2] = ["avx2-bitplane-pshufb", ""];
    const SUMMARY: &'static str = "vpshufb, a lookup per 4 weights of a bit plane";

    #[target_feature(enable = "avx2")]
    unsafe fn compute<const H: usize>(w: &PackedMatrix, x: &Prepared, rows: Range<usize>, acc: &mut [i32]) {
        const { assert!(H == 2, "the bias of lossy tables is not that of a difference") };
        let (first, n_rows) = (rows.start / TILE_ROWS, rows.len());
        acc.fill(0);
        for job in lookup::jobs(n_rows / TILE_ROWS, w.k.div_ceil(TILE_K), BLOCK, x.m, TOKENS) {
            let steps = &bitplane::tile(w, first + job.tile)[job.steps.clone()];
            let tables = |token: usize| &tables::of::<2>(x, token)[job.steps.clone()];
            let acc = &mut acc[job.token * n_rows + job.tile * TILE_ROWS..];
            if job.n_tokens == TOKENS {
                block::<TOKENS>(steps, std::array::from_fn(|t| tables(job.token + t)), acc, n_rows);
            } else {
                block::<1>(steps, [tables(job.token)], acc, n_rows);
            }
        }
    }
}

/// 64 rows x `T` tokens over at most [`BLOCK`] steps. Token `t`'s sums start at `t * stride`.
#[target_feature(enable = "avx2")]
fn block<const T: usize>(steps: &[Step], tables: [&[Table<2>]; T], acc: &mut [i32], stride: usize) {
    let nibble = _mm256_set1_epi8(15);
    for half in 0..2 {
        let mut sums = [Sums::zero(); T];
        for (i, step) in steps.iter().enumerate() {
            let codes = load_half(step, half);
            let plus = _mm256_and_si256(codes, nibble);
            let minus = _mm256_and_si256(_mm256_srli_epi16::<4>(codes), nibble);
            for t in 0..T {
                sums[t].add(look(&tables[t][i], plus));
                sums[t].sub(look(&tables[t][i], minus));
            }
        }
        for t in 0..T {
            if let Some(acc) = acc[t * stride + 32 * half..].first_chunk_mut() {
                sums[t].widen::<2>(steps.len(), acc);
            }
        }
    }
}
