//! A few tokens on `bitplane`: nibbles looked up by `vpshufb` in tables of one byte an entry, exact on every input.
//!
//! An entry is the sum of some of 4 activations. Counted from the smallest of the 16, which cancels where the plane of -1 is subtracted from
//! that of +1, it fits into a byte where `Σ |x| <= 255`, as it does for nearly all groups: absmax quantisation scales a token's largest
//! value to 127, and most others are much smaller. A group that is larger is split: its step has two columns of it in its table and is
//! looked up once more, for the other two, at the end of its block. Of inputs of a normal distribution, 2560 values a token, 1 group in 400 is
//! larger; the worst input (all ±127) takes twice the time.
//!
//! The two entries of a row lie side by side, so that `vpmaddubsw` subtracts them and leaves int16: with the extraction of nibbles 9
//! instructions for 128 weights. On 2-bit codes it takes 13; tables of pairs of weights take 11, because entries of different rows lie side by
//! side, and a pair needs as much room for both signs as 4 columns of a plane. Four tokens that share the extraction take 6.75 each, and a
//! block and what it looks up again together. A block ends where a token's `Σ |x|` over it would
//! exceed int16, as a sum could: after 256 columns at worst, and after 256 steps at best, whose numbers are bytes.

use std::arch::x86_64::*;
use std::ops::Range;

use super::bitplane_pshufb::{SIGNS, apart};
use super::interleaved::{load, store_bytes};
use super::lookup::add_rows;
use crate::activation::QuantizedActivations;
use crate::kernel::{PackedMatrix, Prepared, STREAMS};
use crate::layout::bitplane::{self, GROUP, Step, TILE_K, TILE_ROWS};
use crate::team::{SharedMut, Team};

/// Tokens that share the extraction of nibbles, where there are as many left.
const TOGETHER: usize = 4;
/// Steps of a block, at most.
const MAX_BLOCK: usize = 256;
/// And of [`TOGETHER`] tokens, whose tables stay in the L1 cache while row tiles take turns.
const MAX_BLOCK_TOGETHER: usize = 128;
/// Steps of a vector of activations.
const VECTOR_STEPS: usize = 32 / TILE_K;
/// Steps of every block but the last, at least: 8 vectors, whose `Σ |x|` is at most 4064 each.
const MIN_BLOCK: usize = 8 * VECTOR_STEPS;
/// How many bytes ahead of its loads a stream asks for memory.
const AHEAD: usize = 1024;

/// The tables of a lookup: of the first four columns of its step, and of the other four.
type Tables = [u8; 32];

/// How a group of tokens, [`TOGETHER`] or one, lies in a [`Prepared`] input. Bytes: the tables of every lookup, token after token, then for each of
/// them its step, counted from the block's first, in a byte. Sums: for every block behind which lookup and which step it ends; what
/// follows the last step is left from before.
struct Layout {
    n_steps: usize,
    lookups: usize,
    blocks: usize,
}

impl Layout {
    fn of(k: usize) -> Self {
        let n_steps = k.div_ceil(TILE_K);
        // Each step twice, and the padding of the last vector.
        Self { n_steps, lookups: 2 * n_steps + VECTOR_STEPS, blocks: n_steps.div_ceil(MIN_BLOCK).max(1) }
    }

    fn bytes(&self, n_tokens: usize) -> usize {
        (self.lookups * (n_tokens * size_of::<Tables>() + 1)).next_multiple_of(64)
    }

    /// All groups of `m` tokens.
    fn groups(&self, m: usize) -> impl Iterator<Item = Group> {
        (0..m / TOGETHER + m % TOGETHER).map(move |index| self.group(m, index))
    }

    fn group(&self, m: usize, index: usize) -> Group {
        let whole = m / TOGETHER;
        let (before, alone) = (index.min(whole), index.saturating_sub(whole));
        let n_tokens = if index < whole { TOGETHER } else { 1 };
        let (start, sums) = (before * self.bytes(TOGETHER) + alone * self.bytes(1), 2 * self.blocks * index);
        Group {
            token: before * TOGETHER + alone,
            n_tokens,
            bytes: start..start + self.bytes(n_tokens),
            sums: sums..sums + 2 * self.blocks,
        }
    }
}

/// Tokens from `token` on, and where they lie.
struct Group {
    token: usize,
    n_tokens: usize,
    bytes: Range<usize>,
    sums: Range<usize>,
}

/// In both halves, for each column of a group: 1 where it counts in an entry, else -1.
const COUNTS: [[u8; 32]; GROUP] = {
    let mut counts = [[0; 32]; GROUP];
    let mut i = 0;
    while i < 32 * GROUP {
        let (column, code) = (i / 32, i % 32);
        counts[column][code] = (2 * bitplane::CODES[code % 16][column] - 1).cast_unsigned();
        i += 1;
    }
    counts
};

/// Makes the tables, and the lists of steps and blocks.
///
/// # Safety
/// The CPU has AVX2.
pub(super) unsafe fn prepare(team: &Team, x: &QuantizedActivations, out: &mut Prepared) {
    let layout = Layout::of(x.k);
    let (n_groups, end) = layout.groups(x.m).fold((0, 0), |(n, _), group| (n + 1, group.bytes.end));
    (out.m, out.stride) = (x.m, layout.bytes(1));
    out.bytes.ensure_len(end);
    out.sums.resize(n_groups * 2 * layout.blocks, 0);
    let (bytes, ends) = (SharedMut::new(&mut out.bytes[..]), SharedMut::new(&mut out.sums));
    team.split(n_groups, 1, |groups| {
        for group in groups.map(|index| layout.group(x.m, index)) {
            // SAFETY: a group is handed out once, and its bytes and ends are its own.
            let (bytes, ends) = unsafe { (bytes.slice(group.bytes), ends.slice(group.sums).as_chunks_mut().0) };
            let (tables, steps) = bytes.split_at_mut(layout.lookups * group.n_tokens * size_of::<Tables>());
            let tables: &mut [Tables] = tables.as_chunks_mut().0;
            let row = |t| x.row(group.token + t);
            // SAFETY: the caller's CPU has AVX2.
            unsafe {
                if group.n_tokens == TOGETHER {
                    prepare_group::<TOGETHER>(std::array::from_fn(row), tables.as_chunks_mut().0, steps, ends);
                } else {
                    prepare_group::<1>([row(0)], tables.as_chunks_mut().0, steps, ends);
                }
            }
        }
    });
}

#[target_feature(enable = "avx2")]
fn prepare_group<const T: usize>(x: [&[i8]; T], tables: &mut [[Tables; T]], steps: &mut [u8], ends: &mut [[i32; 2]]) {
    let (largest, second_half) = (_mm256_set1_epi32(255), _mm256_set1_epi32(0xFFFF_0000u32.cast_signed()));
    let (bytes, words) = (_mm256_set1_epi8(1), _mm256_set1_epi16(1));
    let most = if T == 1 { MAX_BLOCK } else { MAX_BLOCK_TOGETHER };
    let mut out =
        Lookups { tables, steps, n: 0, first: 0, again: [(0, [0; T]); MAX_BLOCK], n_again: 0, ends: ends.iter_mut() };
    // What no sum of this block exceeds, of each token.
    let mut bounds = [0; T];
    let n_steps = x[0].len().div_ceil(TILE_K);
    for step in (0..n_steps).step_by(VECTOR_STEPS) {
        let (mut vectors, mut added) = ([_mm256_setzero_si256(); T], [0; T]);
        for t in 0..T {
            let x = &x[t][step * TILE_K..];
            let mut last = [0; 32];
            let x = x.first_chunk().unwrap_or_else(|| {
                last[..x.len()].copy_from_slice(x);
                &last
            });
            vectors[t] = load(bytemuck::cast_ref::<[i8; 32], _>(x));
            added[t] = sum(_mm256_abs_epi8(vectors[t]));
        }
        let too_much = (0..T).any(|t| bounds[t] + added[t] > i16::MAX.into());
        if too_much || step + VECTOR_STEPS - out.first > most {
            out.end_block(step);
            bounds = [0; T];
        }
        let (mut columns, mut others) = ([[0; T]; VECTOR_STEPS], [[0; T]; VECTOR_STEPS]);
        let mut which = 0;
        for t in 0..T {
            bounds[t] += added[t];
            let groups = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(vectors[t]), bytes), words);
            let too_large = _mm256_cmpgt_epi32(groups, largest);
            let apart = _mm256_and_si256(too_large, second_half);
            // A bit for each byte, of which a step has 8.
            which |= _mm256_movemask_epi8(too_large).cast_unsigned();
            let first = steps_of(_mm256_andnot_si256(apart, vectors[t]));
            let second = steps_of(_mm256_and_si256(apart, vectors[t]));
            for i in 0..VECTOR_STEPS {
                (columns[i][t], others[i][t]) = (first[i], second[i]);
            }
        }
        out.push(step, &columns);
        while which != 0 {
            let i = which.trailing_zeros() as usize / TILE_K;
            which &= !(0xFF << (i * TILE_K));
            out.push_again(step + i, others[i]);
        }
    }
    // The padding of the last vector.
    out.n -= n_steps.next_multiple_of(VECTOR_STEPS) - n_steps;
    out.end_block(n_steps);
}

/// The lookups of a group, while they are listed.
struct Lookups<'a, const T: usize> {
    tables: &'a mut [[Tables; T]],
    steps: &'a mut [u8],
    n: usize,
    ends: std::slice::IterMut<'a, [i32; 2]>,
    /// The first step of the block.
    first: usize,
    /// What the block looks up once more at its end: step and columns, zeros for tokens that need it not.
    again: [(u8, [i64; T]); MAX_BLOCK],
    n_again: usize,
}

impl<const T: usize> Lookups<'_, T> {
    /// Steps from `step` on, of which these are the columns.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn push<const STEPS: usize>(&mut self, step: usize, columns: &[[i64; T]; STEPS]) {
        let tables = self.tables[self.n..].first_chunk_mut::<STEPS>().expect("room for all");
        let steps = self.steps[self.n..].first_chunk_mut::<STEPS>().expect("room for all");
        for i in 0..STEPS {
            steps[i] = (step - self.first + i) as u8;
            for t in 0..T {
                make(columns[i][t], &mut tables[i][t]);
            }
        }
        self.n += STEPS;
    }

    #[inline]
    fn push_again(&mut self, step: usize, columns: [i64; T]) {
        self.again[self.n_again] = ((step - self.first) as u8, columns);
        self.n_again += 1;
    }

    #[target_feature(enable = "avx2")]
    fn end_block(&mut self, step: usize) {
        for i in 0..std::mem::take(&mut self.n_again) {
            let (step, columns) = self.again[i];
            self.push(self.first + usize::from(step), &[columns]);
        }
        self.first = step;
        *self.ends.next().expect("activations within ±127") = [self.n as i32, step as i32];
    }
}

/// The sum of unsigned bytes.
#[inline]
#[target_feature(enable = "avx2")]
fn sum(bytes: __m256i) -> i32 {
    let sums = _mm256_sad_epu8(bytes, _mm256_setzero_si256());
    let sums = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
    _mm_cvtsi128_si32(_mm_add_epi32(sums, _mm_unpackhi_epi64(sums, sums)))
}

/// The tables of eight columns whose groups fit into bytes: of every column `x` or 0 to an entry where it counts, else `-x` or 0.
#[inline]
#[target_feature(enable = "avx2")]
fn make(columns: i64, tables: &mut Tables) {
    let columns = _mm256_set1_epi64x(columns);
    let zero = _mm256_setzero_si256();
    let mut sums = zero;
    for (column, counts) in COUNTS.iter().enumerate() {
        let of_group = _mm256_set_m128i(_mm_set1_epi8((GROUP + column) as i8), _mm_set1_epi8(column as i8));
        let x = _mm256_sign_epi8(_mm256_shuffle_epi8(columns, of_group), load(counts));
        sums = _mm256_add_epi8(sums, _mm256_max_epi8(x, zero));
    }
    store_bytes(tables, sums);
}

/// The columns of each of four steps.
#[inline]
#[target_feature(enable = "avx2")]
fn steps_of(x: __m256i) -> [i64; VECTOR_STEPS] {
    let mut steps = [0; VECTOR_STEPS];
    store_bytes(bytemuck::cast_mut(&mut steps), x);
    steps
}

/// As [`TernaryKernel::compute`](crate::kernel::TernaryKernel::compute).
#[target_feature(enable = "avx2")]
pub(super) fn compute(w: &PackedMatrix, x: &Prepared, rows: Range<usize>, acc: &mut [i32]) {
    let layout = Layout::of(w.k);
    assert_eq!(x.stride, layout.bytes(1), "the input was prepared for another k");
    let (first, n_tiles) = (rows.start / TILE_ROWS, rows.len() / TILE_ROWS);
    acc.fill(0);
    for tile in 0..n_tiles.div_ceil(STREAMS) {
        let (at, tiles) = apart(w, first, n_tiles, tile);
        for group in layout.groups(x.m) {
            let acc = &mut acc[group.token * rows.len()..];
            if group.n_tokens == TOGETHER {
                add_group::<TOGETHER>(&layout, x, group, at, tiles, acc, rows.len());
            } else {
                add_group::<1>(&layout, x, group, at, tiles, acc, rows.len());
            }
        }
    }
}

/// Adds the products of a group of tokens with row tiles to `acc`, where tile `at` is a token's 16 sums, and a token's start every `stride`.
#[target_feature(enable = "avx2")]
fn add_group<const T: usize>(
    layout: &Layout,
    x: &Prepared,
    group: Group,
    at: [Option<usize>; STREAMS],
    tiles: [&[Step]; STREAMS],
    acc: &mut [i32],
    stride: usize,
) {
    let (tables, steps) = x.bytes[group.bytes].split_at(layout.lookups * T * size_of::<Tables>());
    let tables: &[[Tables; T]] = tables.as_chunks().0.as_chunks().0;
    let (mut lookup, mut step) = (0, 0);
    for &[next_lookup, next_step] in x.sums[group.sums].as_chunks::<2>().0 {
        let (next_lookup, next_step) = (next_lookup as usize, next_step as usize);
        let (lookups, block) = (lookup..next_lookup, step..next_step);
        let mut here = tiles;
        for tile in &mut here {
            *tile = &tile[block.clone()];
        }
        let sums = look_up(here, &tables[lookups.clone()], &steps[lookups]);
        for t in 0..T {
            let acc = &mut acc[t * stride..][..stride].as_chunks_mut().0;
            for s in 0..STREAMS {
                if let Some(acc) = at[s].and_then(|at| acc.get_mut(at)) {
                    add_rows(acc, sums[t][s]);
                }
            }
        }
        (lookup, step) = (next_lookup, next_step);
        if step == layout.n_steps {
            break;
        }
    }
}

/// The sums of the lookups of a block, int16.
#[inline]
#[target_feature(enable = "avx2")]
fn look_up<const T: usize>(tiles: [&[Step]; STREAMS], tables: &[[Tables; T]], steps: &[u8]) -> [[__m256i; STREAMS]; T] {
    const { assert!(T == 1 || T == TOGETHER) };
    let (n, n_steps) = (tables.len(), tiles[0].len());
    assert!(steps.len() == n && tiles.iter().all(|tile| tile.len() == n_steps), "blocks of one size");
    // Unlike `all`, this is compiled to vectors.
    let last = steps.iter().fold(0, |last, &step| step.max(last));
    assert!(n == 0 || usize::from(last) < n_steps, "a lookup outside its block");
    let mut sums = [[_mm256_setzero_si256(); STREAMS]; T];
    if n == 0 {
        return sums;
    }
    // SAFETY: `n` is not 0; `steps` and `tables` have `n` elements each (asserted; by definition), of as many tokens as the function is
    // for. Every step is less than `n_steps`, the length of all tiles (both asserted). This function runs with AVX2.
    unsafe {
        if T == 1 {
            sums[0] = four_tiles(tiles.map(<[Step]>::as_ptr), tables.as_ptr().cast(), steps);
        } else {
            for s in 0..STREAMS {
                let of_tokens = four_tokens(tiles[s].as_ptr(), tables.as_ptr().cast(), steps);
                for t in 0..T {
                    sums[t][s] = of_tokens[t];
                }
            }
        }
    }
    sums
}

/// The sums of one token and four tiles.
///
/// # Safety
/// The CPU has AVX2; there are tables for each of `steps`, of which there is one at least, and all lie in the tiles.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn four_tiles(tiles: [*const Step; STREAMS], tables: *const Tables, steps: &[u8]) -> [__m256i; STREAMS] {
    let mut sums = [_mm256_setzero_si256(); STREAMS];
    // `vpmulhuw` by 2^12 is a shift that takes its operand from memory, and none of the two units of Zen 3 that shuffle.
    #[rustfmt::skip]
    macro_rules! stream {
        ($s:literal) => {
            concat!(
                "vpmulhuw {high}, {sixteenth}, [{tile", $s, "} + {step}]\n",
                "vpand {low}, {nibble}, [{tile", $s, "} + {step}]\n",
                "vpand {high}, {high}, {nibble}\n",
                "vpshufb {low}, {first}, {low}\n",
                "vpshufb {high}, {second}, {high}\n",
                "vpmaddubsw {low}, {low}, {signs}\n",
                "vpmaddubsw {high}, {high}, {signs}\n",
                "vpaddw {sum", $s, "}, {sum", $s, "}, {low}\n",
                "vpaddw {sum", $s, "}, {sum", $s, "}, {high}\n",
                "prefetcht0 [{tile", $s, "} + {step} + {ahead}]",
            )
        };
    }
    // SAFETY: by this function's conditions each load lies in its tile or in the tables. No load needs alignment, nothing is written, and a
    // prefetch may name any address.
    unsafe {
        std::arch::asm!(
            "2:",
            "movzx {step:e}, byte ptr [{steps}]",
            "inc {steps}",
            "shl {step:e}, {step_bits}",
            "vbroadcasti128 {first}, [{tables}]",
            "vbroadcasti128 {second}, [{tables} + 16]",
            "add {tables}, 32",
            stream!(0),
            stream!(1),
            stream!(2),
            stream!(3),
            "dec {n}",
            "jnz 2b",
            step_bits = const size_of::<Step>().ilog2(),
            ahead = const AHEAD,
            steps = inout(reg) steps.as_ptr() => _,
            tables = inout(reg) tables => _,
            n = inout(reg) steps.len() => _,
            step = out(reg) _,
            tile0 = in(reg) tiles[0],
            tile1 = in(reg) tiles[1],
            tile2 = in(reg) tiles[2],
            tile3 = in(reg) tiles[3],
            sum0 = inout(ymm_reg) sums[0],
            sum1 = inout(ymm_reg) sums[1],
            sum2 = inout(ymm_reg) sums[2],
            sum3 = inout(ymm_reg) sums[3],
            nibble = in(ymm_reg) _mm256_set1_epi8(15),
            sixteenth = in(ymm_reg) _mm256_set1_epi16(1 << 12),
            signs = in(ymm_reg) _mm256_set1_epi16(SIGNS),
            first = out(ymm_reg) _,
            second = out(ymm_reg) _,
            low = out(ymm_reg) _,
            high = out(ymm_reg) _,
            options(nostack, readonly),
        );
    }
    sums
}

/// The sums of four tokens and one tile.
///
/// # Safety
/// As for [`four_tiles`], with four tables for each step.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn four_tokens(tile: *const Step, tables: *const Tables, steps: &[u8]) -> [__m256i; TOGETHER] {
    let mut sums = [_mm256_setzero_si256(); TOGETHER];
    #[rustfmt::skip]
    macro_rules! token {
        ($t:literal) => {
            concat!(
                "vbroadcasti128 {first}, [{tables} + 32 * ", $t, "]\n",
                "vbroadcasti128 {second}, [{tables} + 32 * ", $t, " + 16]\n",
                "vpshufb {first}, {first}, {low}\n",
                "vpshufb {second}, {second}, {high}\n",
                "vpmaddubsw {first}, {first}, {signs}\n",
                "vpmaddubsw {second}, {second}, {signs}\n",
                "vpaddw {sum", $t, "}, {sum", $t, "}, {first}\n",
                "vpaddw {sum", $t, "}, {sum", $t, "}, {second}",
            )
        };
    }
    // SAFETY: as for four tiles.
    unsafe {
        std::arch::asm!(
            "2:",
            "movzx {step:e}, byte ptr [{steps}]",
            "inc {steps}",
            "shl {step:e}, {step_bits}",
            "vpmulhuw {high}, {sixteenth}, [{tile} + {step}]",
            "vpand {low}, {nibble}, [{tile} + {step}]",
            "vpand {high}, {high}, {nibble}",
            token!(0),
            token!(1),
            token!(2),
            token!(3),
            "prefetcht0 [{tile} + {step} + {ahead}]",
            "add {tables}, 128",
            "dec {n}",
            "jnz 2b",
            step_bits = const size_of::<Step>().ilog2(),
            ahead = const AHEAD,
            steps = inout(reg) steps.as_ptr() => _,
            tables = inout(reg) tables => _,
            n = inout(reg) steps.len() => _,
            step = out(reg) _,
            tile = in(reg) tile,
            sum0 = inout(ymm_reg) sums[0],
            sum1 = inout(ymm_reg) sums[1],
            sum2 = inout(ymm_reg) sums[2],
            sum3 = inout(ymm_reg) sums[3],
            nibble = in(ymm_reg) _mm256_set1_epi8(15),
            sixteenth = in(ymm_reg) _mm256_set1_epi16(1 << 12),
            signs = in(ymm_reg) _mm256_set1_epi16(SIGNS),
            first = out(ymm_reg) _,
            second = out(ymm_reg) _,
            low = out(ymm_reg) _,
            high = out(ymm_reg) _,
            options(nostack, readonly),
        );
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::x86_64::avx2::bitplane_vlut::BitplaneVlut;
    use crate::kernel::TernaryKernel;
    use crate::oracle;
    use crate::verify::{Random, activations, matrix};

    #[test]
    fn groups_that_fit_into_bytes_and_groups_that_do_not() {
        let Some(kernel) = BitplaneVlut::new() else { return };
        let mut random = Random::new(1);
        // Rows 0 to 3 meet every token's largest sums; 9 tiles leave places of unequal length.
        let n = 8 * TILE_ROWS + 1;
        for k in [1, 3, 4, 7, 8, 31, 32, 33, 36, 255, 257, 1024, 1028, 2085] {
            let w = matrix(n, k, |row, column| match row {
                0 => 1,
                1 => -1,
                2 => [1, -1][column % 2],
                3 => [-1, 1][column % 2],
                _ => random.below(3) as i8 - 1,
            });
            let mut normal = Random::new(2);
            let x = activations(9, k, |token, column| match token {
                0 => 127,
                1 => -127,
                2 => [127, -127][column % 2],
                // 255 fits, 256 does not.
                3 => [64, -64, 64, 63][column % 4],
                4 => [-64, 64][column % 2],
                5 => 0,
                // Σ |x| is 32,767, which a block holds, and one more.
                6 | 7 => [127, token as i8 - 5, 0][usize::from(column >= 258) + usize::from(column >= 259)],
                _ => (19.0 * normal.normal()).clamp(-127.0, 127.0) as i8,
            });
            let packed = kernel.pack(&w);
            let mut prepared = Prepared::default();
            kernel.prepare(&Team::alone(), &x, &mut prepared);
            let n_rows = n.next_multiple_of(TILE_ROWS);
            let mut acc = vec![1; x.m * n_rows];
            kernel.compute(&packed, &prepared, 0..n_rows, &mut acc);
            for (token, (acc, expected)) in acc.chunks(n_rows).zip(oracle::gemm(&w, &x).chunks(n)).enumerate() {
                assert_eq!(acc[..n], *expected, "k {k}, token {token}");
            }
            let (n_steps, layout) = (k.div_ceil(TILE_K), Layout::of(k));
            let mut lookups = |token: usize| {
                let alone = activations(1, k, |_, column| x.row(token)[column]);
                kernel.prepare(&Team::alone(), &alone, &mut prepared);
                let mut acc = vec![1; n_rows];
                kernel.compute(&packed, &prepared, 0..n_rows, &mut acc);
                assert_eq!(acc[..n], oracle::gemm(&w, &alone), "k {k}, token {token} alone");
                let ends = &prepared.sums[layout.group(1, 0).sums].as_chunks::<2>().0;
                let all = ends.iter().find(|[_, step]| *step as usize == n_steps).map(|[n, _]| *n as usize);
                all.expect("the last block ends with the last step")
            };
            // Of a step one group is enough. The last has as many columns as are left: 3 of 127 are too many, and 4 of 64.
            let with = |columns: usize| (k + TILE_K - columns) / TILE_K;
            let expected = [with(3), with(3), with(3), 0, with(4), 0].map(|again| n_steps + again);
            assert_eq!([0, 1, 2, 3, 4, 5].map(&mut lookups), expected, "k {k}: what does not fit is looked up again");
            for token in 6..9 {
                lookups(token);
            }
        }
    }
}
