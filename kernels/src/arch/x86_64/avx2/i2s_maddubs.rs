//! `avx2-i2s-maddubs`: 2-bit codes times activations by `vpmaddubsw`, one lane pair per row, no horizontal sums.
//!
//! `Σ w·x = Σ code·x - Σ x`, because a code is `w + 1`. A product pair is at most 2·2·127 = 508, so an int16 lane holds 64 of
//! them (32,512 of 32,767); all sums are widened to int32 after at most 64.

use std::arch::x86_64::*;
use std::ops::Range;

use crate::activation::QuantizedActivations;
use crate::isa::{Avx2, Token};
use crate::kernel::{Exactness, KernelInfo, PackedMatrix, Prepared, TernaryKernel};
use crate::layout::i2s::{self, TILE_K, TILE_ROWS, Tile};
use crate::trit::TernaryMatrix;

/// See the module.
pub struct I2sMaddubs(#[allow(dead_code, reason = "the proof of support")] Avx2);

impl I2sMaddubs {
    /// What it is.
    pub const INFO: &'static KernelInfo = &KernelInfo {
        name: "avx2-i2s-maddubs",
        summary: "2-bit codes, vpmaddubsw, a lane pair per row",
        features: Avx2::FEATURES,
        layout: "i2s",
        bits_per_weight: 2.0,
        row_tile: TILE_ROWS,
        exactness: Exactness::Exact,
        source: "bitnet.cpp I2_S (arXiv 2502.11880), rows interleaved",
    };

    /// The kernel, where the CPU has AVX2.
    pub fn new() -> Option<Self> {
        Avx2::detect().map(Self)
    }
}

impl TernaryKernel for I2sMaddubs {
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
        // SAFETY: `self` holds an `Avx2`, which only run-time detection hands out.
        unsafe { compute(w, x, rows, acc) };
    }
}

/// Row vectors of a tile: 4 of 8 rows each.
const VECTORS: usize = TILE_ROWS / 8;
/// Tiles between two widenings: 16 tiles are 64 product pairs.
const BLOCK: usize = 16;
/// The same for one token: 8 tiles of two pairs of at most 4·508 make 32,512.
const FUSED_BLOCK: usize = 8;
/// From this many tokens on, codes are unpacked to L1 once and used for all tokens. Below, unpacking costs more than it saves
/// (82 against 104 G multiply-adds a second at 4 tokens on Zen 3).
const UNPACK_FROM: usize = 8;

/// Row tiles that one token reads in turn, a block of each, from as many places: one stream stops at 15 GB/s on Zen 3, which
/// reads 26 from four.
const STREAMS: usize = 4;

/// A column of 4 codes for each of the 32 rows.
type Step = [[u8; 32]; VECTORS];

#[target_feature(enable = "avx2")]
fn compute(w: &PackedMatrix, x: &Prepared, rows: Range<usize>, acc: &mut [i32]) {
    let n_rows = rows.len();
    let mut codes = [[[0; 32]; VECTORS]; 4 * BLOCK];
    if x.m < UNPACK_FROM {
        for token in 0..x.m {
            one_token(w, rows.clone(), x.row(token), x.sums[token], &mut acc[token * n_rows..][..n_rows]);
        }
        return;
    }
    for (row_tile, tiles) in i2s::row_tiles(w, rows).enumerate() {
        let at = |token: usize| token * n_rows + row_tile * TILE_ROWS;
        for token in 0..x.m {
            acc[at(token)..][..TILE_ROWS].fill(-x.sums[token]);
        }
        for (block, tiles) in tiles.chunks(BLOCK).enumerate() {
            unpack(tiles, &mut codes);
            let codes = &codes[..4 * tiles.len()];
            let columns = block * BLOCK * TILE_K..block * BLOCK * TILE_K + tiles.len() * TILE_K;
            let mut token = 0;
            while token + 1 < x.m {
                let x = [&x.row(token)[columns.clone()], &x.row(token + 1)[columns.clone()]];
                steps(codes, x, &mut acc[at(token)..], n_rows);
                token += 2;
            }
            if token < x.m {
                steps(codes, [&x.row(token)[columns]], &mut acc[at(token)..], n_rows);
            }
        }
    }
}

/// All of `k` for one token, from [`STREAMS`] places of the packed rows in turn.
#[target_feature(enable = "avx2")]
fn one_token(w: &PackedMatrix, rows: Range<usize>, x: &[i8], sum: i32, acc: &mut [i32]) {
    let (first, n_tiles) = (rows.start / TILE_ROWS, rows.len() / TILE_ROWS);
    let tile = |i: usize| i2s::row_tile(w, first + i);
    let spacing = n_tiles / STREAMS;
    for i in 0..spacing {
        let tiles = [tile(i), tile(i + spacing), tile(i + 2 * spacing), tile(i + 3 * spacing)];
        stream(tiles, x, sum, &mut acc[i * TILE_ROWS..], spacing * TILE_ROWS);
    }
    for i in STREAMS * spacing..n_tiles {
        stream([tile(i)], x, sum, &mut acc[i * TILE_ROWS..], 0);
    }
}

/// `S` row tiles for one token, the codes in registers; the sums of tile `s` start at `s * stride`.
///
/// Bit pairs 1 and 3 are not shifted down to the end: their AND gives four times the code, and these products have their own
/// sums, divided at the widening. Such a pair is at most 4·508, so it allows [`FUSED_BLOCK`] tiles with two of them each.
#[target_feature(enable = "avx2")]
fn stream<const S: usize>(tiles: [&[Tile]; S], x: &[i8], sum: i32, acc: &mut [i32], stride: usize) {
    let (mask, mask4) = (_mm256_set1_epi8(0b0011), _mm256_set1_epi8(0b1100));
    let mut sums = [[_mm256_set1_epi32(-sum); VECTORS]; S];
    for (block, x) in x.as_chunks::<TILE_K>().0.chunks(FUSED_BLOCK).enumerate() {
        for s in 0..S {
            let mut pairs = [_mm256_setzero_si256(); VECTORS];
            let mut pairs4 = [_mm256_setzero_si256(); VECTORS];
            for (tile, x) in tiles[s][block * FUSED_BLOCK..].iter().zip(x) {
                let x = x.as_chunks::<4>().0;
                let x = [broadcast(x[0]), broadcast(x[1]), broadcast(x[2]), broadcast(x[3])];
                for v in 0..VECTORS {
                    let low = load(&tile.as_chunks().0[v]);
                    let high = _mm256_srli_epi16::<4>(low);
                    let c0 = _mm256_maddubs_epi16(_mm256_and_si256(low, mask), x[0]);
                    let c1 = _mm256_maddubs_epi16(_mm256_and_si256(low, mask4), x[1]);
                    let c2 = _mm256_maddubs_epi16(_mm256_and_si256(high, mask), x[2]);
                    let c3 = _mm256_maddubs_epi16(_mm256_and_si256(high, mask4), x[3]);
                    pairs[v] = _mm256_add_epi16(pairs[v], _mm256_add_epi16(c0, c2));
                    pairs4[v] = _mm256_add_epi16(pairs4[v], _mm256_add_epi16(c1, c3));
                }
            }
            for v in 0..VECTORS {
                let quarter = _mm256_srai_epi32::<2>(widen(pairs4[v]));
                sums[s][v] = _mm256_add_epi32(sums[s][v], _mm256_add_epi32(widen(pairs[v]), quarter));
            }
        }
    }
    for s in 0..S {
        for v in 0..VECTORS {
            if let Some(acc) = acc[s * stride + 8 * v..].first_chunk_mut() {
                store(acc, sums[s][v]);
            }
        }
    }
}

/// Spreads at most [`BLOCK`] tiles into one byte per code, step by step.
#[target_feature(enable = "avx2")]
fn unpack(tiles: &[Tile], codes: &mut [Step; 4 * BLOCK]) {
    let mask = _mm256_set1_epi8(3);
    for (tile, steps) in tiles.iter().zip(codes.as_chunks_mut::<4>().0) {
        for (v, vector) in tile.as_chunks().0.iter().enumerate() {
            let bits = load(vector);
            store_bytes(&mut steps[0][v], _mm256_and_si256(bits, mask));
            store_bytes(&mut steps[1][v], _mm256_and_si256(_mm256_srli_epi16::<2>(bits), mask));
            store_bytes(&mut steps[2][v], _mm256_and_si256(_mm256_srli_epi16::<4>(bits), mask));
            store_bytes(&mut steps[3][v], _mm256_and_si256(_mm256_srli_epi16::<6>(bits), mask));
        }
    }
}

/// The register tile: adds 32 rows x `T` tokens over at most 64 steps of 4 columns. Token `t`'s sums start at `t * stride`.
#[target_feature(enable = "avx2")]
fn steps<const T: usize>(codes: &[Step], x: [&[i8]; T], acc: &mut [i32], stride: usize) {
    // Plain loops: closures given to `array::map` are compiled without AVX2 and not always inlined.
    let tiles = codes.as_chunks::<4>().0;
    let mut columns: [&[[i8; TILE_K]]; T] = [&[]; T];
    for t in 0..T {
        columns[t] = &x[t].as_chunks().0[..tiles.len()];
    }
    let mut pairs = [[_mm256_setzero_si256(); VECTORS]; T];
    for (i, steps) in tiles.iter().enumerate() {
        for (p, step) in steps.iter().enumerate() {
            let mut x = [_mm256_setzero_si256(); T];
            for t in 0..T {
                x[t] = broadcast(columns[t][i].as_chunks().0[p]);
            }
            for v in 0..VECTORS {
                let codes = load(&step[v]);
                for t in 0..T {
                    pairs[t][v] = _mm256_add_epi16(pairs[t][v], _mm256_maddubs_epi16(codes, x[t]));
                }
            }
        }
    }
    for t in 0..T {
        let acc = acc[t * stride..][..TILE_ROWS].as_chunks_mut::<8>().0;
        for v in 0..VECTORS {
            // SAFETY: `acc[v]` is an array of 8 dwords, the 32 bytes that are read.
            let old = unsafe { _mm256_loadu_si256(acc[v].as_ptr().cast()) };
            store(&mut acc[v], _mm256_add_epi32(old, widen(pairs[t][v])));
        }
    }
}

/// Adds the two int16 sums of every row.
#[inline]
#[target_feature(enable = "avx2")]
fn widen(pairs: __m256i) -> __m256i {
    _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))
}

#[inline]
#[target_feature(enable = "avx2")]
fn broadcast(x: [i8; 4]) -> __m256i {
    let [a, b, c, d] = x;
    _mm256_set1_epi32(i32::from_ne_bytes([a.cast_unsigned(), b.cast_unsigned(), c.cast_unsigned(), d.cast_unsigned()]))
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: the array holds the 32 bytes that are read; the load needs no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store_bytes(bytes: &mut [u8; 32], value: __m256i) {
    // SAFETY: the array holds the 32 bytes that are written; the store needs no alignment.
    unsafe { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), value) };
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(lanes: &mut [i32; 8], value: __m256i) {
    // SAFETY: the array holds the 32 bytes that are written; the store needs no alignment.
    unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), value) };
}
