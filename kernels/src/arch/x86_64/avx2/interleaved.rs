//! The loops of the interleaved layouts on AVX2: codes times activations by `vpmaddubsw`, a lane pair per row, no horizontal
//! sums. A layout adds its [`Decode`]: how a vector of packed bytes becomes codes.
//!
//! `Σ w·x = Σ code·x - Σ x`, because a code is `w + 1`. A step is 4 columns: one `vpmaddubsw` of 32 codes (8 rows) and a broadcast
//! dword of activations adds two products into each int16 lane, at most 2·2·127 = 508, so a lane holds 64 of them (32,512 of
//! 32,767) and all sums are widened to int32 in time. A decoder may leave the codes of every other step shifted up by `LIFT`
//! bits, which saves it a shift; these have their own sums, each term at most 508 << `LIFT`, divided at the widening.

use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::ops::Range;

use crate::activation::QuantizedActivations;
use crate::arch::x86_64::prefetch;
use crate::isa::{Avx2, Token};
use crate::kernel::{KernelInfo, PackedMatrix, Prepared, STREAMS, TernaryKernel};
use crate::layout::interleaved::{Shape, TILE_ROWS};
use crate::team::Team;
use crate::trit::TernaryMatrix;

/// Row vectors of a tile: 4 of 8 rows each.
pub const VECTORS: usize = TILE_ROWS / 8;
/// 128 bytes of a tile: a dword for each of the 32 rows.
pub type Plane = [[u8; 32]; VECTORS];

/// What one layout adds to the loops.
pub trait Decode: Send + Sync + 'static {
    /// What the kernel is.
    const INFO: &'static KernelInfo;
    /// The layout's tile.
    const SHAPE: Shape;
    /// A tile as stored: as many planes as the shape says.
    type Tile: bytemuck::Pod;
    /// How far up the codes of odd steps lie.
    const LIFT: i32;
    /// The codes of the steps that one call decodes, `[__m256i; STEPS]`.
    type Codes: AsRef<[__m256i]>;
    /// Steps that one call decodes.
    const STEPS: usize = size_of::<Self::Codes>() / size_of::<__m256i>();

    /// From this many tokens on, codes are unpacked to the L1 cache once and used for all tokens. Below, unpacking costs more
    /// than it saves: the cheaper a code in registers, the later it pays. Measured on Zen 3 at 2, 3, 4 and 8 tokens, both ways in
    /// turn, on the four shapes of 2B4T; nothing between.
    const UNPACK_FROM: usize;

    /// Lays out `w`.
    fn pack(w: &TernaryMatrix) -> PackedMatrix;

    /// The codes of steps `part * STEPS` and on for rows `8 v .. 8 v + 8` of a tile.
    ///
    /// # Safety
    /// The CPU has AVX2.
    unsafe fn decode(tile: &Self::Tile, v: usize, part: usize) -> Self::Codes;
}

/// The kernel of a layout.
pub struct Maddubs<D>(#[allow(dead_code, reason = "the proof of support")] Avx2, PhantomData<D>);

impl<D: Decode> Maddubs<D> {
    /// What it is.
    pub const INFO: &'static KernelInfo = D::INFO;

    /// The kernel, where the CPU has AVX2.
    pub fn new() -> Option<Self> {
        Avx2::detect().map(|token| Self(token, PhantomData))
    }
}

/// How many bytes ahead of its loads a stream asks for memory: the hardware prefetchers alone leave it waiting for a tenth of the time.
const AHEAD: usize = 1024;
/// Product pairs that an int16 lane holds, see the module.
const PAIRS: usize = 64;

/// Constants that follow from a layout's.
struct Sizes<D>(PhantomData<D>);

impl<D: Decode> Sizes<D> {
    /// Parts of a tile.
    const PARTS: usize = D::SHAPE.columns / 4 / D::STEPS;
    /// Tiles of one widening while codes stay in registers: even and odd steps of every part have sums of their own.
    const FUSED_TILES: usize = {
        let (even, odd) = (Self::PARTS * D::STEPS.div_ceil(2), Self::PARTS * (D::STEPS / 2));
        let (for_even, for_odd) = (PAIRS / even, (PAIRS >> D::LIFT) / odd);
        assert!(for_even > 0 && for_odd > 0, "a tile does not fit into int16 sums");
        if for_even < for_odd { for_even } else { for_odd }
    };
    /// Tiles unpacked at once: one widening's worth of steps.
    const TILES: usize = 4 * PAIRS / D::SHAPE.columns;
    /// Their columns.
    const COLUMNS: usize = Self::TILES * D::SHAPE.columns;
}

impl<D: Decode> TernaryKernel for Maddubs<D> {
    fn info(&self) -> &'static KernelInfo {
        D::INFO
    }

    fn rows_per_call(&self, _m: usize) -> usize {
        STREAMS * TILE_ROWS
    }

    fn pack(&self, w: &TernaryMatrix) -> PackedMatrix {
        D::pack(w)
    }

    fn prepare(&self, team: &Team, x: &QuantizedActivations, out: &mut Prepared) {
        if x.m < D::UNPACK_FROM {
            out.fill_in_order(team, x, D::SHAPE.columns);
        } else {
            out.fill_in_blocks(team, x, D::SHAPE.columns, Sizes::<D>::COLUMNS);
        }
    }

    fn compute(&self, w: &PackedMatrix, x: &Prepared, rows: Range<usize>, acc: &mut [i32]) {
        assert_eq!(x.stride, w.k.next_multiple_of(D::SHAPE.columns), "the input was prepared for another k");
        assert_eq!(acc.len(), x.m * rows.len(), "acc does not hold m * rows values");
        assert!(rows.start.is_multiple_of(TILE_ROWS) && rows.end.is_multiple_of(TILE_ROWS), "{rows:?} cuts a tile");
        let n_rows = rows.len();
        if x.m < D::UNPACK_FROM {
            for token in 0..x.m {
                let acc = &mut acc[token * n_rows..][..n_rows];
                // SAFETY: `self` holds an `Avx2`, which only run-time detection hands out.
                unsafe { one_token::<D>(w, rows.clone(), x.row(token), x.sums[token], acc) };
            }
        } else {
            // SAFETY: as above.
            unsafe { batch::<D>(w, x, rows, acc) };
        }
    }
}

/// The tiles of rows `32 index .. 32 index + 32`, along `k`.
fn row_tile<D: Decode>(w: &PackedMatrix, index: usize) -> &[D::Tile] {
    bytemuck::cast_slice(&w.data[D::SHAPE.row_tile(w.k, index)])
}

/// All of `k` for one token, from [`STREAMS`] places of the packed rows in turn.
#[target_feature(enable = "avx2")]
fn one_token<D: Decode>(w: &PackedMatrix, rows: Range<usize>, x: &[i8], sum: i32, acc: &mut [i32]) {
    let (first, n_tiles) = (rows.start / TILE_ROWS, rows.len() / TILE_ROWS);
    let tile = |i: usize| row_tile::<D>(w, first + i);
    let spacing = n_tiles.div_ceil(STREAMS);
    let stride = spacing * TILE_ROWS;
    for i in 0..spacing {
        let acc = &mut acc[i * TILE_ROWS..];
        // The last places may hold a tile less.
        match (n_tiles - i).div_ceil(spacing) {
            4 => stream::<D, 4>(
                [tile(i), tile(i + spacing), tile(i + 2 * spacing), tile(i + 3 * spacing)],
                x,
                sum,
                acc,
                stride,
            ),
            3 => stream::<D, 3>([tile(i), tile(i + spacing), tile(i + 2 * spacing)], x, sum, acc, stride),
            2 => stream::<D, 2>([tile(i), tile(i + spacing)], x, sum, acc, stride),
            _ => stream::<D, 1>([tile(i)], x, sum, acc, stride),
        }
    }
}

/// `S` row tiles for one token, the codes in registers; the sums of tile `s` start at `s * stride`.
#[target_feature(enable = "avx2")]
fn stream<D: Decode, const S: usize>(tiles: [&[D::Tile]; S], x: &[i8], sum: i32, acc: &mut [i32], stride: usize) {
    let mut sums = [[_mm256_set1_epi32(-sum); VECTORS]; S];
    let width = Sizes::<D>::FUSED_TILES * D::SHAPE.columns;
    for (block, x) in x.chunks(width).enumerate() {
        for s in 0..S {
            let tiles = &tiles[s][block * Sizes::<D>::FUSED_TILES..];
            let mut even = [_mm256_setzero_si256(); VECTORS];
            let mut odd = [_mm256_setzero_si256(); VECTORS];
            for (tile, x) in tiles.iter().zip(x.chunks_exact(D::SHAPE.columns)) {
                prefetch_ahead(tile);
                let x = x.as_chunks::<4>().0;
                for part in 0..Sizes::<D>::PARTS {
                    let x = &x[part * D::STEPS..][..D::STEPS];
                    for v in 0..VECTORS {
                        // SAFETY: this function runs with AVX2.
                        let codes = unsafe { D::decode(tile, v, part) };
                        let codes = codes.as_ref();
                        for i in 0..D::STEPS {
                            let products = _mm256_maddubs_epi16(codes[i], broadcast(x[i]));
                            if i % 2 == 0 {
                                even[v] = _mm256_add_epi16(even[v], products);
                            } else {
                                odd[v] = _mm256_add_epi16(odd[v], products);
                            }
                        }
                    }
                }
            }
            for v in 0..VECTORS {
                let odd = _mm256_sra_epi32(widen(odd[v]), _mm_cvtsi32_si128(D::LIFT));
                sums[s][v] = _mm256_add_epi32(sums[s][v], _mm256_add_epi32(widen(even[v]), odd));
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

/// Asks for the cache lines of the tile that comes [`AHEAD`] bytes after this one.
#[inline]
fn prefetch_ahead<T>(tile: &T) {
    for line in 0..size_of::<T>().div_ceil(64) {
        prefetch::<_MM_HINT_T0>(std::ptr::from_ref(tile).cast::<u8>().wrapping_add(AHEAD + 64 * line));
    }
}

/// Unpacked codes. They begin with a cache line: a load that crosses one counts twice, and loads are nearly the limit.
#[repr(C, align(64))]
pub struct Aligned<T>(pub T);

/// A column of 4 codes for each of the 32 rows.
type Step = Plane;

/// All of `k` for many tokens: a block of a row tile is unpacked and used for all of them before the next.
#[target_feature(enable = "avx2")]
fn batch<D: Decode>(w: &PackedMatrix, x: &Prepared, rows: Range<usize>, acc: &mut [i32]) {
    let n_rows = rows.len();
    let mut codes = Aligned([[[0; 32]; VECTORS]; PAIRS]);
    for (row_tile_index, index) in (rows.start / TILE_ROWS..rows.end / TILE_ROWS).enumerate() {
        let at = |token: usize| token * n_rows + row_tile_index * TILE_ROWS;
        for token in 0..x.m {
            acc[at(token)..][..TILE_ROWS].fill(-x.sums[token]);
        }
        for (block, tiles) in row_tile::<D>(w, index).chunks(Sizes::<D>::TILES).enumerate() {
            unpack::<D>(tiles, &mut codes.0);
            let (first, width) = (block * Sizes::<D>::COLUMNS, tiles.len() * D::SHAPE.columns);
            let codes = &codes.0[..width / 4];
            let mut token = 0;
            while token + 1 < x.m {
                let x = [x.block(first, width, token), x.block(first, width, token + 1)];
                steps(codes, x, &mut acc[at(token)..], n_rows);
                token += 2;
            }
            if token < x.m {
                steps(codes, [x.block(first, width, token)], &mut acc[at(token)..], n_rows);
            }
        }
    }
}

/// Spreads at most [`PAIRS`] steps into one byte per code, step by step.
#[target_feature(enable = "avx2")]
fn unpack<D: Decode>(tiles: &[D::Tile], codes: &mut [Step; PAIRS]) {
    let lift = _mm_cvtsi32_si128(D::LIFT);
    for (tile, steps) in tiles.iter().zip(codes.chunks_exact_mut(D::SHAPE.columns / 4)) {
        for (part, steps) in steps.chunks_exact_mut(D::STEPS).enumerate() {
            for v in 0..VECTORS {
                // SAFETY: this function runs with AVX2.
                let codes = unsafe { D::decode(tile, v, part) };
                for (i, (&codes, step)) in codes.as_ref().iter().zip(steps.iter_mut()).enumerate() {
                    store_bytes(&mut step[v], if i % 2 == 0 { codes } else { _mm256_srl_epi16(codes, lift) });
                }
            }
        }
    }
}

/// The register tile: adds 32 rows x `T` tokens over at most [`PAIRS`] steps. Token `t`'s sums start at `t * stride`.
#[target_feature(enable = "avx2")]
fn steps<const T: usize>(codes: &[Step], x: [&[i8]; T], acc: &mut [i32], stride: usize) {
    // Plain loops: closures given to `array::map` are compiled without AVX2 and not always inlined.
    let mut columns: [&[[i8; 4]]; T] = [&[]; T];
    for t in 0..T {
        columns[t] = &x[t].as_chunks().0[..codes.len()];
    }
    let mut pairs = [[_mm256_setzero_si256(); VECTORS]; T];
    for (i, step) in codes.iter().enumerate() {
        let mut x = [_mm256_setzero_si256(); T];
        for t in 0..T {
            x[t] = broadcast(columns[t][i]);
        }
        for v in 0..VECTORS {
            let codes = load(&step[v]);
            for t in 0..T {
                pairs[t][v] = _mm256_add_epi16(pairs[t][v], _mm256_maddubs_epi16(codes, x[t]));
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
pub(crate) fn widen(pairs: __m256i) -> __m256i {
    _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))
}

#[inline]
#[target_feature(enable = "avx2")]
fn broadcast(x: [i8; 4]) -> __m256i {
    let [a, b, c, d] = x;
    _mm256_set1_epi32(i32::from_ne_bytes([a.cast_unsigned(), b.cast_unsigned(), c.cast_unsigned(), d.cast_unsigned()]))
}

/// 32 bytes.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn load(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: the array holds the 32 bytes that are read; the load needs no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

/// 32 bytes.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn store_bytes(bytes: &mut [u8; 32], value: __m256i) {
    // SAFETY: the array holds the 32 bytes that are written; the store needs no alignment.
    unsafe { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), value) };
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(lanes: &mut [i32; 8], value: __m256i) {
    // SAFETY: the array holds the 32 bytes that are written; the store needs no alignment.
    unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), value) };
}
