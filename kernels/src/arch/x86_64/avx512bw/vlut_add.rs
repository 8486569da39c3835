//! `avx512bw-vlut-add`: tokens as lanes. A table holds, for every code of four weights, a vector over 32 tokens; a row adds one such
//! vector per code: one `vpaddw` from memory is 128 multiply-adds.
//!
//! As `avx512bw-vlut-add`, whose module derives limits and sums and whose tables and sums lie in memory as they do here.

use std::arch::x86_64::*;
use std::ops::Range;

use crate::activation::QuantizedActivations;
use crate::isa::{Avx512Bw, Token};
use crate::kernel::{Exactness, KernelInfo, PackedMatrix, Prepared, TernaryKernel};
use crate::lanes::{self, Column, LANES};
use crate::layout::vlut::{self, GROUP, GROUPS, N_CODES, Quad, TILE_K, TILE_ROWS};
use crate::trit::TernaryMatrix;

use crate::arch::x86_64::avx2::vlut_add::{BLOCK, ENTRIES, ROWS, Scratch, Vector, widen};

/// See the module.
pub struct VlutAdd(#[allow(dead_code, reason = "the proof of support")] Avx512Bw);

impl VlutAdd {
    /// What it is.
    pub const INFO: &'static KernelInfo = &KernelInfo {
        name: "avx512bw-vlut-add",
        summary: "tokens as lanes, a vpaddw from a table per 4 weights and 32 tokens",
        features: Avx512Bw::FEATURES,
        layout: "vlut",
        bits_per_weight: 2.0,
        row_tile: TILE_ROWS,
        exactness: Exactness::Exact,
        source: "Vec-LUT (arXiv 2512.06443)",
    };

    /// The kernel, where the CPU has AVX-512 BW.
    pub fn new() -> Option<Self> {
        Avx512Bw::detect().map(Self)
    }
}

impl TernaryKernel for VlutAdd {
    fn info(&self) -> &'static KernelInfo {
        Self::INFO
    }

    fn rows_per_call(&self) -> usize {
        ROWS
    }

    fn pack(&self, w: &TernaryMatrix) -> PackedMatrix {
        vlut::pack(w)
    }

    fn prepare(&self, x: &QuantizedActivations, out: &mut Prepared) {
        lanes::fill(x, out);
    }

    fn compute(&self, w: &PackedMatrix, x: &Prepared, rows: Range<usize>, acc: &mut [i32]) {
        assert_eq!(x.stride, w.k.next_multiple_of(TILE_K) * LANES, "the input was prepared for another k");
        assert_eq!(acc.len(), x.m * rows.len(), "acc does not hold m * rows values");
        // SAFETY: `self` holds an `Avx512Bw`, which only run-time detection hands out.
        unsafe { compute(w, x, rows, acc) };
    }
}

/// The vectors of an entry or of a row's sums, which one register holds here.
const V: usize = LANES / 16;

#[target_feature(enable = "avx2,avx512f,avx512bw")]
fn compute(w: &PackedMatrix, x: &Prepared, rows: Range<usize>, acc: &mut [i32]) {
    acc.fill(0);
    let mut scratch = Scratch::<V>::new();
    for (chunk, acc) in acc.chunks_mut((LANES * rows.len()).max(1)).enumerate() {
        for first in rows.clone().step_by(ROWS) {
            let rows_here = first..rows.end.min(first + ROWS);
            let sums = &mut scratch.sums[..rows_here.len()];
            for (block, columns) in lanes::of(x, chunk).as_chunks().0.chunks(BLOCK).enumerate() {
                for (i, columns) in columns.iter().enumerate() {
                    build(columns, &mut scratch.tables);
                    let quads = vlut::slice(w, block * BLOCK + i, rows_here.clone());
                    match i {
                        0 => add_slice::<true>(quads, &scratch.tables, sums),
                        _ => add_slice::<false>(quads, &scratch.tables, sums),
                    }
                }
                widen(sums, &mut acc[first - rows.start..], rows.len());
            }
        }
    }
}

/// The tables of a slice's groups: `Σ trit · x` for every code.
#[target_feature(enable = "avx2,avx512f,avx512bw")]
fn build(columns: &[Column; TILE_K], tables: &mut [[Vector; V]; ENTRIES]) {
    for (columns, table) in columns.as_chunks::<GROUP>().0.iter().zip(tables.chunks_exact_mut(N_CODES)) {
        let (low, high) = (pair(&columns[0], &columns[1]), pair(&columns[2], &columns[3]));
        for (entries, high) in table.as_chunks_mut::<9>().0.iter_mut().zip(high) {
            for i in 0..9 {
                store(&mut entries[i], _mm512_add_epi16(low[i], high));
            }
        }
    }
}

/// The 9 sums of two columns.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw")]
fn pair(first: &Column, second: &Column) -> [__m512i; 9] {
    let zero = _mm512_setzero_si512();
    let (a, b) = (widened(first), widened(second));
    let (minus_a, minus_b) = (_mm512_sub_epi16(zero, a), _mm512_sub_epi16(zero, b));
    let (sum, difference) = (_mm512_add_epi16(a, b), _mm512_sub_epi16(a, b));
    let (minus_sum, minus_difference) = (_mm512_sub_epi16(zero, sum), _mm512_sub_epi16(zero, difference));
    [minus_sum, minus_b, difference, minus_a, zero, a, minus_difference, b, sum]
}

/// Adds every row's four entries to its sums, which are 0 in the first slice.
#[target_feature(enable = "avx2,avx512f,avx512bw")]
fn add_slice<const FIRST: bool>(quads: &[Quad], tables: &[[Vector; V]; ENTRIES], sums: &mut [[Vector; V]]) {
    for (quad, sums) in quads.iter().zip(sums) {
        let mut sum = if FIRST { _mm512_setzero_si512() } else { load(sums) };
        for g in 0..GROUPS {
            // Never out of bounds, whatever the byte, and so not checked.
            sum = _mm512_add_epi16(sum, load(&tables[g * N_CODES + usize::from(quad[g])]));
        }
        store(sums, sum);
    }
}

/// A column as int16.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw")]
fn widened(column: &Column) -> __m512i {
    // SAFETY: the array holds the 32 bytes that are read; the load needs no alignment.
    _mm512_cvtepi8_epi16(unsafe { _mm256_loadu_si256(column.as_ptr().cast()) })
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(vectors: &[Vector; V]) -> __m512i {
    // SAFETY: the array holds the 64 bytes that are read; the load needs no alignment.
    unsafe { _mm512_loadu_si512(vectors.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(vectors: &mut [Vector; V], value: __m512i) {
    // SAFETY: the array holds the 64 bytes that are written; the store needs no alignment.
    unsafe { _mm512_storeu_si512(vectors.as_mut_ptr().cast(), value) };
}
