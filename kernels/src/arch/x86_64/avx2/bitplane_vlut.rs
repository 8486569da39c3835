//! `avx2-bitplane-vlut`: tokens as lanes, as in `arch/vlut.rs`, on planes of bits: one packed copy serves a few tokens, by `vpshufb` (see
//! [`super::bitplane_few`]), and many, by tables of vectors. One `vpaddw` from such a table is 64 multiply-adds, twice what `vpmaddubsw` and
//! `vpaddw` are together.
//!
//! A slice is 32 columns: 8 tables of 81 entries, 21 KB for 16 tokens, stay in the L1 cache while all rows stream by, and a row adds 8
//! entries between loading and storing its sums. The planes of a slice become offsets into the tables once for 64 tokens, so that a
//! row's additions need no more than a load, a move and a shift for each of them.
//!
//! The limit is the two 32-byte loads that a core does per cycle: 128 multiply-adds. Loads and stores of sums, the moves and shifts leave 82 of
//! them on Zen 3 in a loop of its own (6.2 cycles a row, where 9 loads take 4.5); 32 tokens by 4 tables leave 76, offsets loaded one by one 64.

use std::arch::x86_64::*;
use std::cell::RefCell;
use std::ops::Range;

use super::interleaved::{load, store_bytes};
use super::vlut_add::{self, Vector};
use super::{bitplane_few, bitplane_lookups};
use crate::activation::QuantizedActivations;
use crate::arch::x86_64::prefetch;
use crate::isa::{Avx2, Token};
use crate::kernel::{Exactness, KernelInfo, PackedMatrix, Prepared, STREAMS, TernaryKernel};
use crate::lanes::{self, Column, LANES};
use crate::layout::balanced;
use crate::layout::bitplane::{self, GROUP, Step, TILE_K, TILE_ROWS};
use crate::layout::vlut::N_CODES;
use crate::team::Team;
use crate::trit::TernaryMatrix;

/// The kernel.
pub struct BitplaneVlut(#[allow(dead_code, reason = "the proof of support")] Avx2);

/// Whether `m` tokens are more than a vector and fill seven eighths of vectors: a vector alone takes as long as 16 tokens four by four, one of two as
/// long as 14 or 15, one of eight as long as 13.
fn worth_tables(m: usize) -> bool {
    m > TOKENS && 8 * m >= 7 * m.next_multiple_of(TOKENS)
}

impl BitplaneVlut {
    /// What it is.
    pub const INFO: &'static KernelInfo = &KernelInfo {
        name: "avx2-bitplane-vlut",
        summary: "tokens as lanes, a vpaddw from a table per 4 weights and 16 tokens; few by vpshufb from tables of one byte an entry",
        features: Avx2::FEATURES,
        layout: "bitplane",
        bits_per_weight: 2.0,
        row_tile: TILE_ROWS,
        exactness: Exactness::Exact,
        source: "Vec-LUT (arXiv 2512.06443) on planes of +1 and -1",
    };

    /// The kernel, where the CPU has AVX2.
    pub fn new() -> Option<Self> {
        Avx2::detect().map(Self)
    }
}

impl TernaryKernel for BitplaneVlut {
    fn info(&self) -> &'static KernelInfo {
        Self::INFO
    }

    fn rows_per_call(&self, m: usize) -> usize {
        if worth_tables(m) { ROWS } else { STREAMS * TILE_ROWS }
    }

    fn pack(&self, w: &TernaryMatrix) -> PackedMatrix {
        bitplane::pack(w)
    }

    fn prepare(&self, team: &Team, x: &QuantizedActivations, out: &mut Prepared) {
        if worth_tables(x.m) {
            lanes::fill(team, x, SLICE, out);
        } else {
            // SAFETY: `self` holds an `Avx2`, which only run-time detection hands out.
            unsafe { bitplane_lookups::prepare(team, x, out) };
        }
    }

    fn compute(&self, w: &PackedMatrix, x: &Prepared, rows: Range<usize>, acc: &mut [i32]) {
        assert_eq!(acc.len(), x.m * rows.len(), "acc does not hold m * rows values");
        assert!(rows.start.is_multiple_of(TILE_ROWS) && rows.end.is_multiple_of(TILE_ROWS), "{rows:?} cuts a tile");
        if !worth_tables(x.m) {
            // SAFETY: `self` holds an `Avx2`, which only run-time detection hands out.
            return unsafe { bitplane_few::compute(w, x, rows, acc) };
        }
        assert_eq!(x.stride, w.k.next_multiple_of(SLICE) * LANES, "the input was prepared for another k");
        acc.fill(0);
        if acc.is_empty() {
            return;
        }
        SCRATCH.with_borrow_mut(|scratch| {
            let n_rows = rows.len();
            for first in rows.clone().step_by(ROWS) {
                let here = first..rows.end.min(first + ROWS);
                let of_row = &mut acc[first - rows.start..];
                for chunk in (0..x.m.div_ceil(LANES)).step_by(TOGETHER / VECTORS_OF_CHUNK) {
                    let acc = &mut of_row[chunk * LANES * n_rows..];
                    // SAFETY: as above.
                    unsafe { columns(w, x, chunk, here.clone(), scratch, acc, n_rows) };
                }
            }
        });
    }
}

/// Columns of a slice.
const SLICE: usize = 32;
/// Tables of a slice.
const GROUPS: usize = SLICE / GROUP;
/// Tokens of a vector.
const TOKENS: usize = 16;
/// Rows whose sums are kept in the L2 cache while the tables change: with [`TOGETHER`] vectors of tokens 320 KB.
const ROWS: usize = 2560;
/// Vectors of tokens that use a slice's offsets.
const TOGETHER: usize = 4;
/// Of them make a chunk of the prepared form.
const VECTORS_OF_CHUNK: usize = LANES / TOKENS;

/// Offsets into the tables of four groups, counted from the entry of four zero trits, in bytes, int16 each.
type Offsets = u64;
/// Steps whose offsets make a word.
const PAIR: usize = 2;
/// The entry of four zero trits, in the middle of a table.
const ZEROS: usize = N_CODES / 2;
/// Entries of the tables of a slice, one table after the other.
const ENTRIES: usize = GROUPS * N_CODES;

/// What a thread works with.
#[repr(C, align(64))]
struct Scratch {
    tables: [[Vector; 1]; ENTRIES],
    /// For each half of a slice, of every row.
    offsets: [[Offsets; ROWS]; 2],
    sums: [[[Vector; 1]; ROWS]; TOGETHER],
}

thread_local! {
    static SCRATCH: RefCell<Box<Scratch>> = RefCell::new(bytemuck::zeroed_box());
}

// SAFETY: arrays of integers, of which zeros are values.
unsafe impl bytemuck::Zeroable for Scratch {}

/// Adds the products of rows `rows` with [`TOGETHER`] vectors of tokens from `chunk` on to `acc`, where a token's sums start every `stride`.
#[target_feature(enable = "avx2")]
fn columns(
    w: &PackedMatrix,
    x: &Prepared,
    chunk: usize,
    rows: Range<usize>,
    scratch: &mut Scratch,
    acc: &mut [i32],
    stride: usize,
) {
    let Scratch { tables, offsets, sums } = scratch;
    let n_slices = x.stride / (SLICE * LANES);
    let n_vectors = TOGETHER.min((x.m - chunk * LANES).div_ceil(TOKENS));
    // What no sum exceeds, of each vector of tokens.
    let mut bounds = [0; TOGETHER];
    for slice in 0..n_slices {
        unpack(w, slice, rows.clone(), offsets);
        for v in 0..n_vectors {
            let (chunk, lanes) = (chunk + v / VECTORS_OF_CHUNK, v % VECTORS_OF_CHUNK);
            let columns: &[Column; SLICE] = &lanes::of(x, chunk).as_chunks().0[slice];
            let (sums, acc) = (&mut sums[v][..rows.len()], &mut acc[v * TOKENS * stride..]);
            let added = lanes::bound(x, chunk, SLICE, slice);
            let mut first = slice == 0;
            if bounds[v] + added > i32::from(i16::MAX) {
                bounds[v] = largest(sums);
                if bounds[v] + added > i32::from(i16::MAX) {
                    vlut_add::widen(sums, acc, stride);
                    (bounds[v], first) = (0, true);
                }
            }
            bounds[v] += added;
            for (columns, table) in columns.as_chunks().0.iter().zip(tables.as_chunks_mut().0) {
                vlut_add::table(columns, lanes, table, 0);
            }
            if first {
                add::<true>(offsets, tables, sums);
            } else {
                add::<false>(offsets, tables, sums);
            }
            if slice + 1 == n_slices {
                vlut_add::widen(sums, acc, stride);
            }
        }
    }
}

/// The largest magnitude of a sum; none is `i16::MIN`.
#[target_feature(enable = "avx2")]
fn largest(sums: &[[Vector; 1]]) -> i32 {
    let mut largest = _mm256_setzero_si256();
    for [sums] in sums {
        largest = _mm256_max_epi16(largest, _mm256_abs_epi16(load(sums)));
    }
    let mut lanes = [0i16; TOKENS];
    store_bytes(bytemuck::cast_mut(&mut lanes), largest);
    lanes.into_iter().map(i32::from).fold(0, i32::max)
}

/// Where a row's entries lie, for all rows of a slice; asks for those of the next.
#[target_feature(enable = "avx2")]
fn unpack(w: &PackedMatrix, slice: usize, rows: Range<usize>, offsets: &mut [[Offsets; ROWS]; 2]) {
    const STEPS: usize = SLICE / TILE_K;
    for (index, first) in rows.step_by(TILE_ROWS).enumerate() {
        let steps = &bitplane::tile(w, first / TILE_ROWS)[slice * STEPS..];
        // The next slice of this tile lies behind this one.
        for line in 0..STEPS * size_of::<Step>() / 64 {
            prefetch::<_MM_HINT_T1>(steps.as_ptr().cast::<u8>().wrapping_add(STEPS * size_of::<Step>() + 64 * line));
        }
        for (half, offsets) in offsets.iter_mut().enumerate() {
            let out = offsets.as_chunks_mut().0.get_mut(index).expect("no more than ROWS");
            let steps = steps.get(half * PAIR..).unwrap_or_default();
            let mut last = [[0; 2 * TILE_ROWS]; PAIR];
            let pair = steps.first_chunk().unwrap_or_else(|| {
                last[..steps.len()].copy_from_slice(steps);
                &last
            });
            unpack_pair(pair, out);
        }
    }
}

/// The offsets of two steps: `32 · Σ trit · 3^i`, by the numbers of the bits of each plane, `Σ bit · 3^i`.
#[inline]
#[target_feature(enable = "avx2")]
fn unpack_pair(steps: &[Step; PAIR], out: &mut [Offsets; TILE_ROWS]) {
    const NUMBERS: [u8; 32] = {
        let (mut numbers, mut i) = ([0; 32], 0);
        while i < 32 {
            numbers[i] = balanced::number(&bitplane::CODES[i % 16]) as u8;
            i += 1;
        }
        numbers
    };
    const SIZE: i8 = size_of::<Vector>() as i8;
    let (nibble, numbers) = (_mm256_set1_epi8(15), load(&NUMBERS));
    let difference = _mm256_set1_epi16(i16::from_le_bytes([SIZE as u8, -SIZE as u8]));
    let zero = _mm256_setzero_si256();
    let mut of = [[zero; bitplane::GROUPS]; PAIR];
    for i in 0..PAIR {
        let planes = load(&steps[i]);
        let nibbles = [_mm256_and_si256(planes, nibble), _mm256_and_si256(_mm256_srli_epi16::<4>(planes), nibble)];
        for (of, nibbles) in of[i].iter_mut().zip(nibbles) {
            *of = _mm256_maddubs_epi16(_mm256_shuffle_epi8(numbers, nibbles), difference);
        }
    }
    let [[a, b], [c, d]] = of;
    // Rows 8 i .. 8 i + 4 are in half i of the first, the next four in that of the second.
    let (first, second) = (_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b));
    let (third, fourth) = (_mm256_unpacklo_epi16(c, d), _mm256_unpackhi_epi16(c, d));
    let out = out.as_chunks_mut::<4>().0;
    for (i, (left, right)) in [(first, third), (second, fourth)].into_iter().enumerate() {
        let (a, b) = (_mm256_unpacklo_epi32(left, right), _mm256_unpackhi_epi32(left, right));
        store_bytes(bytemuck::cast_mut(&mut out[i]), _mm256_permute2x128_si256::<0x20>(a, b));
        store_bytes(bytemuck::cast_mut(&mut out[i + 2]), _mm256_permute2x128_si256::<0x31>(a, b));
    }
}

/// Adds every row's eight entries to its sums; where `FIRST`, the old sums count as 0.
#[target_feature(enable = "avx2")]
fn add<const FIRST: bool>(offsets: &[[Offsets; ROWS]; 2], tables: &[[Vector; 1]; ENTRIES], sums: &mut [[Vector; 1]]) {
    assert!((1..=ROWS).contains(&sums.len()), "there are offsets for {ROWS} rows");
    // Four entries by the offsets in a register. Compiled from intrinsics, the third is found by three instructions and not by two.
    macro_rules! half {
        ($offsets:literal, $first:literal) => {
            concat!(
                "mov {offset}, [{offsets} + ", $offsets, "]\n",
                half!(@ $first, 0), "sar {offset}, 16\n",
                half!(@ $first, 1), "sar {offset}, 16\n",
                half!(@ $first, 2), "sar {offset}, 16\n",
                "vpaddw {sum}, {sum}, [{tables} + {offset} + {table} * (", $first, " + 3)]"
            )
        };
        (@ $first:literal, $group:literal) => {
            concat!(
                "movsx {low}, {offset:x}\n",
                "vpaddw {sum}, {sum}, [{tables} + {low} + {table} * (", $first, " + ", $group, ")]\n"
            )
        };
    }
    macro_rules! rows {
        ($begin:literal) => {
            std::arch::asm!(
                "2:",
                $begin,
                half!("0", 0),
                half!("{half}", 4),
                "vmovdqa [{sums}], {sum}",
                "add {offsets}, 8",
                "add {sums}, 32",
                "dec {rows}",
                "jnz 2b",
                table = const N_CODES * size_of::<Vector>(),
                half = const ROWS * size_of::<Offsets>(),
                offsets = inout(reg) offsets.as_ptr() => _,
                sums = inout(reg) sums.as_mut_ptr() => _,
                rows = inout(reg) sums.len() => _,
                tables = in(reg) &tables[ZEROS],
                offset = out(reg) _,
                low = out(reg) _,
                sum = out(ymm_reg) _,
                options(nostack),
            )
        };
    }
    // SAFETY: there are as many sums as rows, offsets for more, and they begin with cache lines, as `Scratch` does. `unpack` is the only
    // one to write offsets, which are those of 40 entries to both sides at most, whatever the bytes, so that the 32 bytes there lie within
    // the table of their group.
    unsafe { if FIRST { rows!("vpxor {sum}, {sum}, {sum}") } else { rows!("vmovdqa {sum}, [{sums}]") } }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle;
    use crate::verify::{Random, activations, legal, matrix};

    #[test]
    fn more_rows_tokens_and_columns_than_are_kept_at_once() {
        let Some(kernel) = BitplaneVlut::new() else { return };
        let (n, k, m) = (ROWS + 33, 1040, TOGETHER * TOKENS + 7);
        let mut random = Random::new(1);
        let w = matrix(n, k, |_, _| random.below(3) as i8 - 1);
        // Bounds of sums reach int16 after 250 columns and more, the sums of the first token too, those of others never.
        let x = activations(
            m,
            k,
            |token, column| if token == 0 { w.row(7)[column] * 127 } else { legal(random.below(255)) },
        );
        let packed = kernel.pack(&w);
        let mut prepared = Prepared::default();
        kernel.prepare(&Team::alone(), &x, &mut prepared);
        let n_rows = n.next_multiple_of(TILE_ROWS);
        let mut acc = vec![1; m * n_rows];
        kernel.compute(&packed, &prepared, 0..n_rows, &mut acc);
        for (token, (acc, expected)) in acc.chunks(n_rows).zip(oracle::gemm(&w, &x).chunks(n)).enumerate() {
            assert_eq!(acc[..n], *expected, "token {token}");
            assert_eq!(acc[n..], vec![0; n_rows - n], "token {token}: padding");
        }
    }
}
