//! `avx2-vlut-add`: tokens as lanes. A table holds, for every code of four weights, a vector over 16 or 32 tokens; a row adds one
//! such vector per code. No multiplication, no shuffle: one `vpaddw` from memory is 64 multiply-adds.
//!
//! The limit is the two 32-byte loads that a core does per cycle: 128 multiply-adds, where `vpmaddubsw` and `vpaddw` do 64 at best.
//! The four tables of a slice (21 KB for 32 tokens) stay in the L1 cache while all rows stream by; so a row adds 4 entries
//! between loading and storing its sums, and 10 loads do the work of 8. Building the tables is one store per entry, 4·81 vectors: as much as
//! 65 rows cost. So it pays to call with many rows.
//!
//! An entry is at most 4·127, so an int16 lane holds the sum of 64 of them (32,512 of 32,767): 256 columns. All sums are
//! widened to int32 after that.

use std::arch::x86_64::*;
use std::ops::Range;

use crate::activation::QuantizedActivations;
use crate::isa::{Avx2, Token};
use crate::kernel::{Exactness, KernelInfo, PackedMatrix, Prepared, TernaryKernel};
use crate::lanes::{self, Column, LANES};
use crate::layout::vlut::{self, GROUP, GROUPS, N_CODES, Quad, TILE_K, TILE_ROWS};
use crate::trit::TernaryMatrix;

use super::lookup::add_to;

/// See the module.
pub struct VlutAdd(#[allow(dead_code, reason = "the proof of support")] Avx2);

impl VlutAdd {
    /// What it is.
    pub const INFO: &'static KernelInfo = &KernelInfo {
        name: "avx2-vlut-add",
        summary: "tokens as lanes, a vpaddw from a table per 4 weights and 16 tokens",
        features: Avx2::FEATURES,
        layout: "vlut",
        bits_per_weight: 2.0,
        row_tile: TILE_ROWS,
        exactness: Exactness::Exact,
        source: "Vec-LUT (arXiv 2512.06443)",
    };

    /// The kernel, where the CPU has AVX2.
    pub fn new() -> Option<Self> {
        Avx2::detect().map(Self)
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
        // SAFETY: `self` holds an `Avx2`, which only run-time detection hands out.
        unsafe { compute(w, x, rows, acc) };
    }
}

/// Slices between two widenings: 256 columns.
pub const BLOCK: usize = 16;
/// Rows whose int16 sums are kept in the L2 cache while the tables change: at most 128 KB.
pub const ROWS: usize = 2048;
/// Entries of the four tables, and as many more as a byte that is no code could reach.
pub const ENTRIES: usize = (GROUPS - 1) * N_CODES + 256;

/// A value for each of 16 tokens, int16.
pub type Vector = [u8; 32];

/// The tables of a slice and the sums of the rows, for `V` vectors of tokens. An entry lies in one cache line.
#[repr(C, align(64))]
pub struct Scratch<const V: usize> {
    /// The tables of the four groups, one after the other.
    pub tables: [[Vector; V]; ENTRIES],
    /// Sums of at most 256 columns.
    pub sums: [[Vector; V]; ROWS],
}

impl<const V: usize> Scratch<V> {
    /// Zeros.
    pub fn new() -> Self {
        Self { tables: [[[0; 32]; V]; ENTRIES], sums: [[[0; 32]; V]; ROWS] }
    }
}

#[target_feature(enable = "avx2")]
fn compute(w: &PackedMatrix, x: &Prepared, rows: Range<usize>, acc: &mut [i32]) {
    acc.fill(0);
    for (chunk, acc) in acc.chunks_mut((LANES * rows.len()).max(1)).enumerate() {
        let columns = lanes::of(x, chunk).as_chunks().0;
        if acc.len() <= LANES / 2 * rows.len() {
            tokens::<1>(w, columns, rows.clone(), acc);
        } else {
            tokens::<2>(w, columns, rows.clone(), acc);
        }
    }
}

/// All rows for at most `16 V` tokens.
#[target_feature(enable = "avx2")]
fn tokens<const V: usize>(w: &PackedMatrix, columns: &[[Column; TILE_K]], rows: Range<usize>, acc: &mut [i32]) {
    let mut scratch = Scratch::<V>::new();
    for first in rows.clone().step_by(ROWS) {
        let rows_here = first..rows.end.min(first + ROWS);
        let sums = &mut scratch.sums[..rows_here.len()];
        for (block, columns) in columns.chunks(BLOCK).enumerate() {
            for (i, columns) in columns.iter().enumerate() {
                build(columns, &mut scratch.tables);
                let quads = vlut::slice(w, block * BLOCK + i, rows_here.clone());
                match i {
                    0 => add_slice::<V, true>(quads, &scratch.tables, sums),
                    _ => add_slice::<V, false>(quads, &scratch.tables, sums),
                }
            }
            widen(sums, &mut acc[first - rows.start..], rows.len());
        }
    }
}

/// The tables of a slice's groups: `Σ trit · x` for every code.
#[target_feature(enable = "avx2")]
fn build<const V: usize>(columns: &[Column; TILE_K], tables: &mut [[Vector; V]; ENTRIES]) {
    for (columns, table) in columns.as_chunks::<GROUP>().0.iter().zip(tables.chunks_exact_mut(N_CODES)) {
        for v in 0..V {
            let low = pair(&columns[0], &columns[1], v);
            let high = pair(&columns[2], &columns[3], v);
            for (entries, high) in table.as_chunks_mut::<9>().0.iter_mut().zip(high) {
                for i in 0..9 {
                    store(&mut entries[i][v], _mm256_add_epi16(low[i], high));
                }
            }
        }
    }
}

/// The 9 sums of two columns, 16 tokens of each.
#[inline]
#[target_feature(enable = "avx2")]
fn pair(first: &Column, second: &Column, v: usize) -> [__m256i; 9] {
    let zero = _mm256_setzero_si256();
    let (a, b) = (widened(first, v), widened(second, v));
    let (minus_a, minus_b) = (_mm256_sub_epi16(zero, a), _mm256_sub_epi16(zero, b));
    let (sum, difference) = (_mm256_add_epi16(a, b), _mm256_sub_epi16(a, b));
    let (minus_sum, minus_difference) = (_mm256_sub_epi16(zero, sum), _mm256_sub_epi16(zero, difference));
    [minus_sum, minus_b, difference, minus_a, zero, a, minus_difference, b, sum]
}

/// Adds every row's four entries to its sums, which are 0 in the first slice.
#[target_feature(enable = "avx2")]
fn add_slice<const V: usize, const FIRST: bool>(
    quads: &[Quad],
    tables: &[[Vector; V]; ENTRIES],
    sums: &mut [[Vector; V]],
) {
    for (quad, sums) in quads.iter().zip(sums) {
        let mut sum = [_mm256_setzero_si256(); V];
        if !FIRST {
            for v in 0..V {
                sum[v] = load(&sums[v]);
            }
        }
        for g in 0..GROUPS {
            // Never out of bounds, whatever the byte, and so not checked.
            let entry = &tables[g * N_CODES + usize::from(quad[g])];
            for v in 0..V {
                sum[v] = _mm256_add_epi16(sum[v], load(&entry[v]));
            }
        }
        for v in 0..V {
            store(&mut sums[v], sum[v]);
        }
    }
}

/// Adds the sums to `acc`, transposed: 8 rows of a token lie together there. Tokens beyond the end of `acc` are padding.
#[target_feature(enable = "avx2")]
pub fn widen<const V: usize>(sums: &[[Vector; V]], acc: &mut [i32], stride: usize) {
    for (tile, rows) in sums.as_chunks::<TILE_ROWS>().0.iter().enumerate() {
        for v in 0..V {
            let mut a = [_mm256_setzero_si256(); TILE_ROWS];
            for r in 0..TILE_ROWS {
                a[r] = load(&rows[r][v]);
            }
            // Three perfect shuffles of 8 rows transpose both halves: vector `t` has tokens `t` and `t + 8`.
            for _ in 0..3 {
                let mut next = a;
                for i in 0..TILE_ROWS / 2 {
                    next[2 * i] = _mm256_unpacklo_epi16(a[i], a[i + 4]);
                    next[2 * i + 1] = _mm256_unpackhi_epi16(a[i], a[i + 4]);
                }
                a = next;
            }
            for t in 0..TILE_ROWS {
                for (token, values) in [(t, _mm256_castsi256_si128(a[t])), (t + 8, _mm256_extracti128_si256::<1>(a[t]))]
                {
                    let at = (16 * v + token) * stride + tile * TILE_ROWS;
                    if let Some(acc) = acc.get_mut(at..).and_then(|acc| acc.first_chunk_mut()) {
                        add_to(acc, values);
                    }
                }
            }
        }
    }
}

/// Tokens `16 v .. 16 v + 16` of a column, as int16.
#[inline]
#[target_feature(enable = "avx2")]
fn widened(column: &Column, v: usize) -> __m256i {
    // SAFETY: the array holds the 16 bytes that are read; the load needs no alignment.
    _mm256_cvtepi8_epi16(unsafe { _mm_loadu_si128(column.as_chunks::<16>().0[v].as_ptr().cast()) })
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(vector: &Vector) -> __m256i {
    // SAFETY: the array holds the 32 bytes that are read; the load needs no alignment.
    unsafe { _mm256_loadu_si256(vector.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(vector: &mut Vector, value: __m256i) {
    // SAFETY: the array holds the 32 bytes that are written; the store needs no alignment.
    unsafe { _mm256_storeu_si256(vector.as_mut_ptr().cast(), value) };
}
