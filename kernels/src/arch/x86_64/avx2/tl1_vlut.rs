//! `avx2-tl1-vlut`: tokens as lanes, as in `arch/vlut.rs`, on nibbles: one packed copy serves a few tokens, by `vpshufb` (see
//! [`super::tl1_few`]), and many, by tables of vectors. One `vpaddw` from such a table is 64 multiply-adds, twice what `vpmaddubsw` and
//! `vpaddw` are together.
//!
//! A slice is 32 columns: 8 tables of 81 entries, 21 KB for 16 tokens, stay in the L1 cache while all rows stream by, and a row adds 8
//! entries between loading and storing its sums. The codes of a slice become offsets into the tables once for 64 tokens, so that a
//! row's additions need no more than a load, a move and a shift for each of them.
//!
//! The limit is the two 32-byte loads that a core does per cycle: 128 multiply-adds. Loads and stores of sums, the moves and shifts leave 82 of
//! them on Zen 3 in a loop of its own (6.2 cycles a row, where 9 loads take 4.5); 32 tokens by 4 tables leave 76, offsets loaded one by one 64.

use std::arch::x86_64::*;
use std::cell::RefCell;
use std::ops::Range;

use super::interleaved::{load, store_bytes};
use super::tl1_few;
use super::vlut_add::{self, Vector};
use crate::activation::QuantizedActivations;
use crate::arch::x86_64::prefetch;
use crate::isa::{Avx2, Token};
use crate::kernel::{Exactness, KernelInfo, PackedMatrix, Prepared, STREAMS, TernaryKernel};
use crate::lanes::{self, Column, LANES};
use crate::layout::tl1::{self, Step, TILE_ROWS};
use crate::layout::vlut::{GROUP, N_CODES};
use crate::team::Team;
use crate::trit::TernaryMatrix;

/// The kernel.
pub struct Tl1Vlut(#[allow(dead_code, reason = "the proof of support")] Avx2);

/// Whether `m` tokens fill two thirds of the lanes: a full vector takes as long as 10 to 12 tokens one by one.
fn worth_tables(m: usize) -> bool {
    3 * m >= 2 * m.next_multiple_of(TOKENS)
}

impl Tl1Vlut {
    /// What it is.
    pub const INFO: &'static KernelInfo = &KernelInfo {
        name: "avx2-tl1-vlut",
        summary: "tokens as lanes, a vpaddw from a table per 4 weights and 16 tokens; few by vpshufb from tables of one byte an entry",
        features: Avx2::FEATURES,
        layout: "tl1",
        bits_per_weight: 2.0,
        row_tile: TILE_ROWS,
        exactness: Exactness::Exact,
        source: "Vec-LUT (arXiv 2512.06443) on bitnet.cpp TL1",
    };

    /// The kernel, where the CPU has AVX2.
    pub fn new() -> Option<Self> {
        Avx2::detect().map(Self)
    }
}

impl TernaryKernel for Tl1Vlut {
    fn info(&self) -> &'static KernelInfo {
        Self::INFO
    }

    fn rows_per_call(&self, m: usize) -> usize {
        if worth_tables(m) { ROWS } else { STREAMS * TILE_ROWS }
    }

    fn pack(&self, w: &TernaryMatrix) -> PackedMatrix {
        tl1::pack(w)
    }

    fn prepare(&self, team: &Team, x: &QuantizedActivations, out: &mut Prepared) {
        if worth_tables(x.m) {
            lanes::fill(team, x, SLICE, out);
        } else {
            // SAFETY: `self` holds an `Avx2`, which only run-time detection hands out.
            unsafe { tl1_few::prepare(team, x, out) };
        }
    }

    fn compute(&self, w: &PackedMatrix, x: &Prepared, rows: Range<usize>, acc: &mut [i32]) {
        assert_eq!(acc.len(), x.m * rows.len(), "acc does not hold m * rows values");
        assert!(rows.start.is_multiple_of(TILE_ROWS) && rows.end.is_multiple_of(TILE_ROWS), "{rows:?} cuts a tile");
        if !worth_tables(x.m) {
            // SAFETY: `self` holds an `Avx2`, which only run-time detection hands out.
            return unsafe { tl1_few::compute(w, x, rows, acc) };
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

/// Offsets into the tables of [`QUAD`] steps, in bytes, 16 bits each.
type Offsets = u64;
/// Steps whose offsets make a word.
const QUAD: usize = GROUPS / 2;
/// Entries of the tables of a slice, one table after the other, and as many more as nibbles that are no codes could reach.
const ENTRIES: usize = (GROUPS - 1) * N_CODES + MAX_CODE + 1;
/// `15 + 9·15`.
const MAX_CODE: usize = 150;

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
    for (index, first) in rows.step_by(TILE_ROWS).enumerate() {
        let steps = &tl1::tile(w, first / TILE_ROWS)[slice * GROUPS..];
        // The next slice of this tile lies behind this one.
        for line in 0..GROUPS * size_of::<Step>() / 64 {
            prefetch::<_MM_HINT_T1>(steps.as_ptr().cast::<u8>().wrapping_add(GROUPS * size_of::<Step>() + 64 * line));
        }
        for (half, offsets) in offsets.iter_mut().enumerate() {
            let out = offsets.as_chunks_mut().0.get_mut(index).expect("no more than ROWS");
            let steps = steps.get(half * QUAD..).unwrap_or_default();
            // Behind the last column all entries are zero, wherever an offset leads.
            let mut last = [[0; TILE_ROWS]; QUAD];
            let quad = steps.first_chunk().unwrap_or_else(|| {
                last[..steps.len()].copy_from_slice(steps);
                &last
            });
            unpack_quad(quad, out);
        }
    }
}

/// The offsets of four steps: `32 · (low nibble + 9 · high nibble)`, the number of four trits in balanced ternary plus 40.
#[inline]
#[target_feature(enable = "avx2")]
fn unpack_quad(steps: &[Step; QUAD], out: &mut [Offsets; TILE_ROWS]) {
    const SIZE_BITS: i32 = size_of::<Vector>().ilog2() as i32;
    let zero = _mm256_setzero_si256();
    let mut codes = [zero; QUAD];
    for i in 0..QUAD {
        let bytes = load(&steps[i]);
        let high = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), _mm256_set1_epi8(15));
        // `bytes` has the high nibble 16-fold, 7 times too often. The shift does not reach into the next byte.
        codes[i] = _mm256_sub_epi8(_mm256_add_epi8(bytes, high), _mm256_slli_epi16::<3>(high));
    }
    // Rows 8 i .. 8 i + 4 of each 16 in vector 2 i, the next four in 2 i + 1: four bytes of each, widened.
    let pairs = [
        [_mm256_unpacklo_epi8(codes[0], codes[1]), _mm256_unpacklo_epi8(codes[2], codes[3])],
        [_mm256_unpackhi_epi8(codes[0], codes[1]), _mm256_unpackhi_epi8(codes[2], codes[3])],
    ];
    let (low, high) = out.split_at_mut(16);
    let (low, high) = (low.as_chunks_mut::<4>().0, high.as_chunks_mut::<4>().0);
    for (i, [first, second]) in pairs.into_iter().enumerate() {
        for (j, quads) in
            [_mm256_unpacklo_epi16(first, second), _mm256_unpackhi_epi16(first, second)].into_iter().enumerate()
        {
            let a = _mm256_slli_epi16::<SIZE_BITS>(_mm256_unpacklo_epi8(quads, zero));
            let b = _mm256_slli_epi16::<SIZE_BITS>(_mm256_unpackhi_epi8(quads, zero));
            store_bytes(bytemuck::cast_mut(&mut low[2 * i + j]), _mm256_permute2x128_si256::<0x20>(a, b));
            store_bytes(bytemuck::cast_mut(&mut high[2 * i + j]), _mm256_permute2x128_si256::<0x31>(a, b));
        }
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
                half!(@ $first, 0), "shr {offset}, 16\n",
                half!(@ $first, 1), "shr {offset}, 16\n",
                half!(@ $first, 2), "shr {offset}, 16\n",
                "vpaddw {sum}, {sum}, [{tables} + {offset} + {table} * (", $first, " + 3)]"
            )
        };
        (@ $first:literal, $group:literal) => {
            concat!(
                "movzx {low:e}, {offset:x}\n",
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
                tables = in(reg) tables.as_ptr(),
                offset = out(reg) _,
                low = out(reg) _,
                sum = out(ymm_reg) _,
                options(nostack),
            )
        };
    }
    // SAFETY: there are as many sums as rows, offsets for more, and they begin with cache lines, as `Scratch` does. `unpack` is the only
    // one to write offsets, and nibbles make none above that of MAX_CODE, so that the 32 bytes there lie within ENTRIES, whatever the
    // group.
    unsafe { if FIRST { rows!("vpxor {sum}, {sum}, {sum}") } else { rows!("vmovdqa {sum}, [{sums}]") } }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle;
    use crate::verify::{Random, activations, legal, matrix};

    #[test]
    fn more_rows_tokens_and_columns_than_are_kept_at_once() {
        let Some(kernel) = Tl1Vlut::new() else { return };
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
