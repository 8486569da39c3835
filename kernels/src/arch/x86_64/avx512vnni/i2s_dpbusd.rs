//! `avx512vnni-i2s-dpbusd`: 2-bit codes times activations by `vpdpbusd`, one int32 lane per row, no horizontal sums.
//!
//! `Σ w·x = Σ code·x - Σ x`, because a code is `w + 1`. Codes are unpacked in registers and used for up to 8 tokens at once;
//! `vpdpbusd` adds four products into int32, so nothing can overflow.

use std::arch::x86_64::*;
use std::ops::Range;

use crate::activation::QuantizedActivations;
use crate::isa::{Avx512Vnni, Token};
use crate::kernel::{Exactness, KernelInfo, PackedMatrix, Prepared, TernaryKernel};
use crate::layout::i2s::{self, TILE_K, TILE_ROWS, Tile};
use crate::trit::TernaryMatrix;

/// See the module.
pub struct I2sDpbusd(#[allow(dead_code, reason = "the proof of support")] Avx512Vnni);

impl I2sDpbusd {
    /// What it is.
    pub const INFO: &'static KernelInfo = &KernelInfo {
        name: "avx512vnni-i2s-dpbusd",
        summary: "2-bit codes, vpdpbusd, a lane per row",
        features: Avx512Vnni::FEATURES,
        layout: "i2s",
        bits_per_weight: 2.0,
        row_tile: TILE_ROWS,
        exactness: Exactness::Exact,
        source: "bitnet.cpp I2_S (arXiv 2502.11880), rows interleaved",
    };

    /// The kernel, where the CPU has AVX-512 VNNI.
    pub fn new() -> Option<Self> {
        Avx512Vnni::detect().map(Self)
    }
}

impl TernaryKernel for I2sDpbusd {
    fn info(&self) -> &'static KernelInfo {
        Self::INFO
    }

    fn pack(&self, w: &TernaryMatrix) -> PackedMatrix {
        i2s::pack(w)
    }

    fn prepare(&self, x: &QuantizedActivations, out: &mut Prepared) {
        out.fill_in_order(x, TILE_K);
    }

    fn compute(&self, w: &PackedMatrix, x: &Prepared, rows: Range<usize>, acc: &mut [i32]) {
        assert_eq!(x.stride, w.k.next_multiple_of(TILE_K), "the input was prepared for another k");
        assert_eq!(acc.len(), x.m * rows.len(), "acc does not hold m * rows values");
        // SAFETY: `self` holds an `Avx512Vnni`, which only run-time detection hands out.
        unsafe { compute(w, x, rows, acc) };
    }
}

/// Row vectors of a tile: 2 of 16 rows each.
const VECTORS: usize = TILE_ROWS / 16;

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn compute(w: &PackedMatrix, x: &Prepared, rows: Range<usize>, acc: &mut [i32]) {
    let n_rows = rows.len();
    // Tokens outside: their activations (8 x k bytes) stay in the L1 or L2 cache for all rows of the range.
    let mut first = 0;
    while first < x.m {
        let n_tokens = (x.m - first).min(8);
        for (row_tile, tiles) in i2s::row_tiles(w, rows.clone()).enumerate() {
            let at = first * n_rows + row_tile * TILE_ROWS;
            let acc = &mut acc[at..];
            match n_tokens {
                // `vpdpbusd` takes 4 cycles: few tokens need several chains of sums to keep it busy.
                1 => tokens::<1, 4>(tiles, x, first, n_rows, acc),
                2 => tokens::<2, 2>(tiles, x, first, n_rows, acc),
                3 => tokens::<3, 2>(tiles, x, first, n_rows, acc),
                4 => tokens::<4, 1>(tiles, x, first, n_rows, acc),
                5 => tokens::<5, 1>(tiles, x, first, n_rows, acc),
                6 => tokens::<6, 1>(tiles, x, first, n_rows, acc),
                7 => tokens::<7, 1>(tiles, x, first, n_rows, acc),
                _ => tokens::<8, 1>(tiles, x, first, n_rows, acc),
            }
        }
        first += n_tokens;
    }
}

/// The register tile: 32 rows x `T` tokens over all of `k`, with `C` (1, 2 or 4) chains of sums each.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn tokens<const T: usize, const C: usize>(tiles: &[Tile], x: &Prepared, first: usize, n_rows: usize, acc: &mut [i32]) {
    let mask = _mm512_set1_epi8(3);
    // Plain loops: closures given to `array::map` are compiled without AVX-512 and not always inlined.
    let mut rows: [&[[i8; TILE_K]]; T] = [&[]; T];
    for (t, row) in rows.iter_mut().enumerate() {
        *row = &x.row(first + t).as_chunks().0[..tiles.len()];
    }
    let mut sums = [[[_mm512_setzero_si512(); VECTORS]; C]; T];
    for (i, tile) in tiles.iter().enumerate() {
        let vectors = tile.as_chunks().0;
        let mut bits = [load(&vectors[0]), load(&vectors[1])];
        for p in 0..4 {
            let codes = [_mm512_and_si512(bits[0], mask), _mm512_and_si512(bits[1], mask)];
            bits = [_mm512_srli_epi16::<2>(bits[0]), _mm512_srli_epi16::<2>(bits[1])];
            for t in 0..T {
                let x = broadcast(&rows[t][i], p);
                for v in 0..VECTORS {
                    sums[t][p % C][v] = _mm512_dpbusd_epi32(sums[t][p % C][v], codes[v], x);
                }
            }
        }
    }
    for t in 0..T {
        let correction = _mm512_set1_epi32(-x.sums[first + t]);
        let acc = acc[t * n_rows..][..TILE_ROWS].as_chunks_mut::<16>().0;
        for v in 0..VECTORS {
            let mut sum = correction;
            for chain in &sums[t] {
                sum = _mm512_add_epi32(sum, chain[v]);
            }
            // SAFETY: `acc[v]` is an array of 16 dwords, the 64 bytes that are written; the store needs no alignment.
            unsafe { _mm512_storeu_si512(acc[v].as_mut_ptr().cast(), sum) };
        }
    }
}

/// Columns `4 p .. 4 p + 4` of one token, in every dword.
#[inline]
#[target_feature(enable = "avx512f")]
fn broadcast(x: &[i8; TILE_K], p: usize) -> __m512i {
    let [a, b, c, d] = x.as_chunks::<4>().0[p];
    _mm512_set1_epi32(i32::from_ne_bytes([a.cast_unsigned(), b.cast_unsigned(), c.cast_unsigned(), d.cast_unsigned()]))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: the array holds the 64 bytes that are read; the load needs no alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}
